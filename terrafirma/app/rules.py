"""
Rules between the fields of an application.

Each raises ValueError, in one line that begins with the field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from terrafirma_host import values

from terrafirma.app.backup import refuse_alone
from terrafirma.app.container import refuse_same_place, refuse_unknown_stage
from terrafirma.app.environment import text_of
from terrafirma.app.fields import OF_COMPOSE, Fields
from terrafirma.app.public import covers, matched
from terrafirma.fields import here, is_file, refuse_duplicates

LARGEST_COMPOSE_FILE = 2**20


def _strategy(app: Fields) -> None:
    if app.stops_first and app.replicas != 1:
        raise ValueError(
            f"replicas: {app.name} has strategy 'stop-first', for which one instance runs: "
            "leave replicas out"
        )
    for name, job in app.cron.items():
        if job.service and not app.compose:
            raise ValueError(
                f"cron: {name}: service: {app.name} has no compose files, so only one "
                "service: leave it out"
            )


def _kind(app: Fields) -> None:
    if app.source and app.image:
        raise ValueError(f"image: {app.name} has a source too: set only one of the two")
    if not app.source and not app.image:
        raise ValueError(f"source: {app.name} has neither source nor image")
    if app.compose and not app.source:
        raise ValueError(
            f"compose: {app.name} has no source: set it to the directory of the project"
        )
    if not app.compose:
        for key in OF_COMPOSE:
            if getattr(app, key):
                raise ValueError(
                    f"{key}: {app.name} has no compose files, so only one service: leave {key} out"
                )
        if any(one != app.name for one in app.scratch):
            raise ValueError(f"scratch: {app.name} has no compose files: its only service is "
                             f"{app.name!r}")  # fmt: skip
    for key in ("dockerfile", "target", "build_args"):
        if getattr(app, key) and (app.compose or not app.source):
            what = "compose files, which say how to build" if app.compose else "no source"
            raise ValueError(f"{key}: {app.name} has {what}: leave {key} out")


def _public(app: Fields) -> None:
    for line in _contradictions(app):
        raise ValueError(line)


def _contradictions(app: Fields) -> Iterator[str]:
    """A line for each contradiction between an application and its public services."""
    taken: dict[tuple[str, str], str] = {}
    for name, one in app.public.items():
        key = f"services.{name}"
        if name == (app.service or app.name):
            yield f"{key}: {name} is the service of the application, which has its own fields"
        if name in app.stateful:
            yield f"{key}: {name} is stateful too, and a release starts public services anew"
        domain = one.domain or app.domain
        if domain in app.redirects:
            yield f"{key}.domain: {domain!r} is in redirects too: take it out there"
        if domain == app.domain and not one.path:
            yield (f"{key}.path: {domain!r} is the application's own domain: set the path that "
                   "the service has there, or another domain")  # fmt: skip
        place = domain, one.path.lower()
        if other := taken.get(place):
            yield f"{key}: {domain}{one.path or '/*'} is {other}'s already: take another path"
        taken.setdefault(place, name)
        for path in app.static if domain == app.domain and one.path else ():
            if covers(matched(path), one.path.removesuffix("*")):
                yield f"{key}.path: {one.path!r} is in static too ({path!r}), which is served first"


def _lists(app: Fields) -> None:
    for derived in (values.DATABASE_URL, *app.database_urls.values()):
        if derived in app.secrets:
            raise ValueError(f"secrets: {derived} is derived; it cannot be set here")
    refuse_duplicates("databases", app.databases)
    if app.database in app.databases:
        raise ValueError(
            f"databases: {app.database!r} is the database of {app.name} already: leave it out"
        )
    if app.role and not app.database_urls:
        raise ValueError(f"role: {app.name} has no database: set one, or leave role out")
    refuse_alone(app.backup_command, app.backup_after)
    for key in (
        *("stateful", "shared", "scratch", "profiles", "leave_out", "docker_socket"),
        "backup_leave_out",
    ):
        refuse_duplicates(key, getattr(app, key))
    if app.database_replaces and not app.database:
        raise ValueError(
            f"database_replaces: {app.name} has no database that could be in the place of "
            f"{app.database_replaces}: set database"
        )
    for key in ("stateful", "scratch", "docker_socket", "services", "leave_out"):
        if app.database_replaces and app.database_replaces in getattr(app, key):
            raise ValueError(
                f"database_replaces: {app.database_replaces!r} is in {key} too: one of the two"
            )
    for key in ("stateful", "scratch", "docker_socket", "services"):
        if both := sorted({*getattr(app, key)} & {*app.leave_out}):
            raise ValueError(f"leave_out: {both[0]!r} is in {key} too: one of the two")
    web = app.services.get(app.service or app.name)
    if web and web.replicas:
        raise ValueError(
            f"services: {app.service or app.name} serves HTTP: its replicas are those of "
            "the application"
        )
    if web and web.backup_command and app.backup_command:
        raise ValueError(
            f"backup_command: services has another one for {app.service or app.name}: leave one out"
        )
    if both := sorted({*app.stateful} & {*app.scratch}):
        raise ValueError(
            f"scratch: {both[0]!r} is in stateful too: its data either lasts or does not"
        )
    refuse_same_place(app.writable, app.volumes)
    refuse_duplicates("redirects", (app.domain, *app.redirects))
    if app.port and app.reserved_ports[-1] > 65535:
        raise ValueError(
            f"port: {app.name} has {app.reserved_ports[0]} to {app.reserved_ports[-1]}, but "
            "65535 is the last port"
        )


def _references(app: Fields) -> None:
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


def _no_database(app: Fields, reference: values.Reference) -> str:
    if reference.secret == values.DATABASE_URL:
        return f"{app.name} has no database: set one"
    name = reference.secret.removeprefix(values.secret_of(""))
    if name == app.database:
        part = f"{reference.part}:{reference.scheme}".rstrip(":")
        return f"{name} is the database of {app.name}: {{database.{part}}}"
    return f"databases has no {name!r} ({', '.join(app.databases) or 'none'})"


def _files(app: Fields) -> None:
    if app.source and not app.compose:
        if app.dockerfile and not is_file(app.source_directory / app.dockerfile):
            raise ValueError(f"dockerfile: {app.source!r} has no file {app.dockerfile!r}")
        if not app.dockerfile and not is_file(app.source_directory / "Dockerfile"):
            raise ValueError(f"source: {app.source!r} is not a directory with a Dockerfile")
        file = app.source_directory / (app.dockerfile or "Dockerfile")
        try:
            text = file.read_text(errors="replace")
        except OSError as error:
            raise ValueError(f"source: cannot read {str(file)!r} ({error.strerror})") from None
        refuse_unknown_stage(text, app.target)
    for name in app.compose:
        if not is_file(app.source_directory / name):
            raise ValueError(f"compose: {app.source!r} has no file {name!r}")
        if (app.source_directory / name).stat().st_size > LARGEST_COMPOSE_FILE:
            raise ValueError(f"compose: {name!r} has more than 1 MB, which no compose file has")
    if app.snippet and not is_file(here(app.snippet)):
        raise ValueError(f"snippet: cannot read {app.snippet!r}")


RULES: Sequence[Callable[[Fields], None]] = (_strategy, _kind, _public, _lists, _references, _files)
