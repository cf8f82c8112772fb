"""Applications and releases as the program on the host knows them."""

import json
from dataclasses import asdict, replace
from typing import Any

from terrafirma_host import spec

from terrafirma.app.description import description
from tests.unit.settings import API, server


def described(**fields: Any) -> spec.Application:
    """The application `api` as its description gives it, with these fields."""
    placed = server(apps={"api": API | fields}).with_ports({})
    (app,) = placed.apps
    return spec.Application.of(json.loads(description(app, placed.users)))


def told(app: spec.Application) -> str:
    """The content of an application's description."""
    fields = {name: getattr(app, name) for name in spec.Application.required_fields()}
    return json.dumps(fields, default=asdict)


def records(app: spec.Application, release: str, **but: Any) -> spec.Release:
    """A record of a release."""
    made = spec.Release(
        id=release, source=app.source, image="", images={"api": f"terrafirma/api:{release}"},
        pulled=(), code="c0de", migrate="", revision="", by="me@here",
        at="2026-01-31T12:00:00.000Z", withdrawn=False,
    )  # fmt: skip
    made = replace(made, **but)
    made.save(app)
    return made
