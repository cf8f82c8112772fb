"""What kind of service each is, by what its files say: rows."""

from typing import Any

import pytest
from terrafirma_host import kinds

ENDS: dict[str, dict[str, Any]] = {
    "migrate": {},
    "db-migrate": {},
    "migrations": {},
    "init-permissions": {},
    "minio-init": {},
    "createbuckets": {"entrypoint": ["/bin/sh", "-c", "mc alias set x; mc mb x/y; exit 0"]},
    "create_superuser": {},
    "setup": {"command": ["true"]},
    "a": {"command": ["python", "manage.py", "migrate", "--noinput"]},
    "b": {"command": ["sh", "-c", "python manage.py migrate && python manage.py collectstatic"]},
    "c": {"command": ["bundle", "exec", "rails", "db:prepare"]},
    "d": {"command": ["alembic", "upgrade", "head"]},
    "e": {"command": ["npx", "prisma", "migrate", "deploy"]},
    "f": {"command": "chown -R 1000 /data"},
    "g": {"entrypoint": ["bash", "-c"], "command": ["sleep 5 && npm run seed"]},
    "h": {"command": ["php", "artisan", "migrate", "--force"]},
}
LASTS: dict[str, dict[str, Any]] = {
    "worker": {},
    "setup": {"restart": "always"},
    "migrator": {"ports": [{"target": 80}]},
    "init": {"healthcheck": {"test": ["CMD", "true"]}},
    "seed": {"deploy": {"restart_policy": {"condition": "any"}}},
    "initiator": {},
    "a": {"command": ["sh", "-c", "alembic upgrade head && uvicorn app:app"]},
    "b": {"command": ["celery", "-A", "app", "worker"]},
    "c": {"command": ["python", "manage.py", "runserver"]},
    "d": {"command": ["trueapp"]},
    "e": {"command": ["npm", "start"]},
    "f": {"command": ["mysqld", "--x"]},
}


@pytest.mark.parametrize("name", ENDS)
def test_services_that_end(name: str) -> None:
    assert kinds.looks_once(name, ENDS[name])


@pytest.mark.parametrize("name", LASTS)
def test_services_that_last(name: str) -> None:
    assert not kinds.looks_once(name, LASTS[name])


@pytest.mark.parametrize(
    ("service", "builder"),
    [
        ({"build": {}}, "own"),
        ({"image": "shop"}, "web"),
        ({"image": "docker.io/library/shop:latest"}, "web"),
        ({"image": "shop:1"}, ""),
        ({"image": "acme/shop"}, ""),
        ({"image": "ghcr.io/acme/api:1.2"}, "api"),
        # The name that Compose gives to an image of a project.
        ({"image": "my-project-jobs"}, "jobs"),
        ({"image": "my_project_jobs:latest"}, "jobs"),
        ({"image": "acme/my-project-jobs"}, ""),
        ({"image": "nginx"}, ""),
        ({}, ""),
    ],
)
def test_which_service_builds_an_image(service: dict[str, Any], builder: str) -> None:
    services: dict[str, dict[str, Any]] = {
        "web": {"build": {}, "image": "shop"},
        "api": {"build": {}, "image": "ghcr.io/acme/api:1.2"},
        "jobs": {"build": {}},
        "own": service,
    }
    assert kinds.builder(services, "own") == builder


@pytest.mark.parametrize(
    ("profiles", "chosen", "runs"),
    [([], (), True), (["a"], (), False), (["a", "b"], ("b",), True), (["a"], ("b",), False)],
)
def test_profiles(profiles: list[str], chosen: tuple[str, ...], runs: bool) -> None:
    assert kinds.has_profile({"profiles": profiles}, chosen) is runs
