"""Managed by Terrafirma. A target: the code of a release, with current settings and secrets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from terrafirma_host import kinds, layers, pulls, stores, values
from terrafirma_host.compose import Compose
from terrafirma_host.shell import Failed
from terrafirma_host.spec import (
    Application,
    Release,
    Serving,
    identity,
    known_releases,
    now,
    serving_release,
)

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Target:
    """An application as it is to run. Its ID is a digest of its code, settings and secrets."""

    compose: Compose
    project: layers.Project
    id: str
    code: str  # digest of the code, without settings and secrets
    image: str = ""  # with a digest
    others: Mapping[str, str] = field(
        default_factory=dict
    )  # images of a user's project, by service

    @property
    def app(self) -> Application:
        return self.compose.app

    @classmethod
    def described(cls, app: Application) -> Self:
        """The described target. Registries are asked for digests; no image is fetched."""
        compose = Compose(app)
        project = compose.project()
        # With what the files themselves say about it.
        app = compose.app
        others = {
            name: project["services"][name]["image"]
            for name in stores.started(app, project)
            if app.compose and not kinds.builder(project["services"], name)
        }
        found = pulls.resolve(app, [*others.values(), *([app.image] if app.image else [])])
        image = found.get(app.image, "")
        others = {name: found[one] for name, one in others.items()}
        built = [app.dockerfile, app.target, json.dumps(app.build_args, sort_keys=True)]
        built = built if app.dockerfile or app.target or app.build_args else []
        code = identity(Path(app.source).name, image, json.dumps(others), *built)
        release = _release_id(compose, project, code, " ".join(app.migrate))
        return cls(compose, project, release, code, image, others)

    @classmethod
    def of_release(cls, app: Application, release: Release) -> Self:
        """
        The code of a known release, under the current settings and secrets.

        Its images are those of the release, wherever tags point by now. No migration runs, so the
        one in the ID is the migration that ran; a changed command is for the next release.
        """
        if not fits_description(app, release):
            raise Failed(f"release {release.id} is of another kind, or has other compose files, "
                         "than what is described now: release that")  # fmt: skip
        compose = Compose(with_code_of(app, release))
        project = compose.project()
        needed = {*stores.started(compose.app, project)}
        if missing := sorted(needed - release.images.keys()):
            names = ", ".join(missing)
            raise Failed(f"release {release.id} has no image of {names}: release its code")
        target = _release_id(compose, project, release.code, release.migrate)
        return cls(compose, project, target, release.code)

    def new_record(self, *, by: str, revision: str) -> Release:
        """A record of its release that has no images yet."""
        app = self.app
        return Release(
            id=self.id, source=app.source, image=self.image, images={}, pulled=(), code=self.code,
            migrate=" ".join(app.migrate), revision=revision, by=by, at=now(), withdrawn=False,
            compose=app.compose,
        )  # fmt: skip


def _release_id(compose: Compose, project: layers.Project, code: str, migrated: str) -> str:
    app = compose.app
    shape = layers.slot_layer(app, project, slot="", release="", replicas=0, images={},
                              owner=app.owner())  # fmt: skip
    # The layer has what we change; add the files themselves.
    shape += json.dumps(project, sort_keys=True)
    # The layer has no image yet, which may replace a port that the settings do not choose.
    shape += f"container_port {app.container_port}" if app.container_port else ""
    # The values follow from the secrets and from how the settings refer to them.
    own = {name: values.hidden(one.get("env") or {}) for name, one in app.services.items()}
    own = {name: env for name, env in own.items() if env}
    said = [one for one in (values.hidden(app.env), compose.variables, own) if one]
    secret = [json.dumps(one, sort_keys=True) for one in (compose.secrets, *said)]
    return identity(code, migrated, shape, *secret)


# --- the code of a release, under the current description -----------------------------------------


def with_code_of(app: Application, release: Release) -> Application:
    """The description, with the source or the image of a release."""
    return (
        app.with_source(Path(release.source)) if release.source else app.with_image(release.image)
    )


def with_serving_code(app: Application) -> Application:
    """The description; where a deploy key sends the code, with the code that serves."""
    serving = Serving.load(app) if app.automated else None
    release = Release.load(app, serving.release) if serving else None
    return with_code_of(app, release) if release and fits_description(app, release) else app


def in_release(app: Application) -> tuple[Compose, str]:
    """
    The project of the release that serves, and the path of its layer, for one more container.

    After a release that failed, the description is of another one: raises Failed where that counts.
    """
    serving, release = serving_release(app)
    if not fits_description(app, release):
        raise Failed(f"release {release.id}, which serves, is of another kind, or has other "
                     "compose files, than what is described now: release that first")  # fmt: skip
    compose = Compose(with_code_of(app, release)).decided()
    path = compose.work / f"{serving.slot}.yaml"
    if gone := compose.lacks(path):
        raise Failed(f"release {release.id}, which serves, has variables that are no longer "
                     f"described ({', '.join(gone)}): release what is described first")  # fmt: skip
    return compose, str(path)


def fits_description(app: Application, release: Release) -> bool:
    """
    Whether a release is of the described kind: image or Dockerfile, and the same compose files.

    Other compose files, which a deploy key may have sent, were never checked.
    """
    return bool(release.source) == bool(app.source) and release.compose == app.compose


def unfit_releases(app: Application) -> str:
    """A sentence about kept releases that do not fit the description, or ""."""
    others = [one.id for one in known_releases(app) if not fits_description(app, one)]
    if not others:
        return ""
    return (
        f" {', '.join(others)} came of another kind (an image, a Dockerfile or other compose files)"
        " than your settings now describe: restore the settings of then, and deploy."
    )
