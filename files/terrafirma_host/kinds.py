"""
Managed by Terrafirma. What kind of service each service of a compose project is.

Pure functions of one service, or of all services, as `docker compose config` prints them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Service = Mapping[str, Any]
Services = Mapping[str, Service]

# Names of services that do some work once, and end.
ONCE = re.compile(
    r"(?:.*[-_.])?"
    r"(?:migrate|migrations?|migrator|init|initdb|initializer|setup|seed|seeder|bootstrap"
    r"|provision|collectstatic|create-?buckets?|createsuperuser|loaddata|fixtures|permissions"
    r"|wait)"
    r"|(?:init|create|setup|seed|migrate|wait-for|fix|prepare)[-_].+"
)
# The beginnings of commands that do some work once, and end.
WORK = re.compile(
    r"true\b|exit 0|echo\b|ls\b|mkdir\b|chown\b|chmod\b|cp\b|alembic (upgrade|stamp)"
    r"|flask (db|init|seed)|(bundle exec )?(\S*/)?(rails|rake) (db:|assets:)"
    r"|(python3? )?(\S*/)?manage\.py"
    r" (migrate|collectstatic|createsuperuser|loaddata|check|compilemessages|createcachetable)"
    r"|(npx |pnpm |yarn |npm exec )?(prisma (migrate|db|generate)|knex (migrate|seed)|typeorm "
    r"|sequelize |drizzle-kit )|(npm|pnpm|yarn) (run )?(build|migrate\S*|migration\S*|seed\S*|ci"
    r"|install)\b|php artisan (migrate|db:|config:|storage:|key:)|mix ecto\.|goose |dbmate |flyway "
    r"|psql\b|mysql\b|pg_restore\b|mongosh?\b|mc (mb|alias|config|policy|anonymous)\b"
)
# Commands of a shell between others.
BESIDE = re.compile(r"(sleep|set|cd|until|while|do|done|export|exit|if|then|fi|wait-for|test|\[)\b")
# A shell before the words of a command.
PARTS = re.compile(r"&&|\|\||;|\n")
SHELL = re.compile(r"^(/usr)?(/bin/)?(ba|da|a)?sh( -[a-z]+)? ")


def policy(service: Service) -> str:
    """The restart policy of a service that may end, "no" or "on-failure"; "" for any other."""
    own = (service.get("deploy") or {}).get("restart_policy")
    # Where both are set, Compose uses that of `deploy`.
    name = str(own.get("condition") if own else service.get("restart"))
    name = {"none": "no"}.get(name, name).partition(":")[0]
    return name if name in ("no", "on-failure") else ""


def says_policy(service: Service) -> bool:
    """Whether the files give a service a restart policy; without one, Docker's is "no"."""
    own = (service.get("deploy") or {}).get("restart_policy") or {}
    return bool(service.get("restart") or own.get("condition"))


def awaited(services: Services, condition: str) -> set[str]:
    """The services that others wait for with this condition."""
    return {
        name
        for service in services.values()
        for name, how in (service.get("depends_on") or {}).items()
        if how.get("condition") == condition
    }


def looks_once(name: str, service: Service) -> bool:
    """Whether the name or the command of a service without a restart policy says that it ends."""
    if says_policy(service) or service.get("ports") or service.get("healthcheck"):
        return False
    words = " ".join([*words_of(service, "entrypoint"), *words_of(service, "command")])
    words = SHELL.sub("", words.strip()).strip("'\" ")
    parts = [one for one in (part.strip(" '\"\n") for part in PARTS.split(words)) if one]
    works = [bool(WORK.match(part)) for part in parts]
    # A command that begins like a migration may go on to serve.
    ends = any(works) and all(map(lambda part, work: work or BESIDE.match(part), parts, works))
    return bool(ONCE.fullmatch(name.lower()) or ends)


def words_of(service: Service, key: str) -> list[str]:
    """A value that the files may give as text or as a list, as a list."""
    value = service.get(key) or []
    return [value] if isinstance(value, str) else [str(one) for one in value]


def has_profile(service: Service, chosen: tuple[str, ...]) -> bool:
    """Whether a service runs with these profiles; one without a profile always does."""
    profiles = service.get("profiles") or []
    return not profiles or bool({*profiles} & {*chosen})


def builder(services: Services, name: str) -> str:
    """
    The service whose build makes the image of a service; "" where the image is a registry's.

    It may be another service with the same image: that image is in no registry, or a stranger's.
    """
    service = services[name]
    if "build" in service:
        return name
    wanted = tagged(service.get("image") or "")
    for other, one in services.items():
        if "build" not in one:
            continue
        own = one.get("image")
        if own and tagged(own) == wanted:
            return other
        # The name that Compose gives to an image without one: that of the project, and the service.
        if not own and re.fullmatch(rf"[a-z0-9_-]+[-_]{re.escape(other.lower())}:latest", wanted):
            return other
    return ""


def tagged(image: str) -> str:
    """The name of an image with its tag, so that two names of one image are equal."""
    for start in ("docker.io/", "index.docker.io/", "library/"):
        image = image.removeprefix(start)
    named = "@" in image or ":" in image.rpartition("/")[2]
    return image if named else f"{image}:latest"
