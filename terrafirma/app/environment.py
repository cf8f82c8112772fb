"""The values of environment variables: text of any number of lines, perhaps with references."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field
from terrafirma_host import values

if TYPE_CHECKING:
    from terrafirma.app.settings import Application


def text_of(value: object) -> str:
    """The text of a value as a container gets it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _value(value: Any) -> Any:
    if not isinstance(value, bool | int | float | str):
        given = "None" if value is None else f"a {type(value).__name__}"
        raise ValueError(f"{given} is not a valid value: use True, False, a number or text")
    # Not repeated: it may be a secret by mistake.
    if isinstance(value, str) and re.search(
        r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]", value
    ):
        raise ValueError("has a control character other than a line break or a tab")
    values.references(text_of(value))
    return value


EnvironmentValue = Annotated[
    Any,
    AfterValidator(_value),
    Field(title="`True`, `False`, number or text, perhaps with references"),
]


def refuse_unknown(app: Application) -> None:
    """Raise ValueError for a reference to a secret or a database that the application lacks."""
    given = {f"env: {name}": value for name, value in app.env.items()}
    for service, own in app.services.items():
        given |= {f"services: {service}: env: {name}": one for name, one in own.env.items()}
    for where, value in given.items():
        for one in values.references(text_of(value)):
            if one.part and one.secret not in app.database_urls.values():
                raise ValueError(f"{where}: {_no_database(app, one)}")
            if not one.part and one.secret not in app.secrets:
                known = ", ".join(app.secrets) or "none"
                raise ValueError(f"{where}: secrets has no {one.secret!r} ({known})")


def _no_database(app: Application, reference: values.Reference) -> str:
    if reference.secret == values.DATABASE_URL:
        return f"{app.name} has no database: set one"
    name = reference.secret.removeprefix(values.secret_of(""))
    if name == app.database:
        part = f"{reference.part}:{reference.scheme}".rstrip(":")
        return f"{name} is the database of {app.name}: {{database.{part}}}"
    return f"databases has no {name!r} ({', '.join(app.databases) or 'none'})"
