"""What the settings say about backups: in which container a command runs, and known volumes."""

from dataclasses import replace
from typing import Any

import pytest
from terrafirma_host import dumps
from terrafirma_host.dumps import Dump
from terrafirma_host.shell import Failed

from tests.unit.terrafirma_host.projects import SHOP, project, volume

SAVE: dict[str, Any] = {"backup_command": ["redis-cli", "SAVE"]}
FILES = project(
    {"data": {}, "media": {"name": "photos"}, "old": {"name": "theirs", "external": True}},
    db={"image": "redis", "volumes": [volume("data")]},
    setup={"image": "acme/setup", "restart": "no"},
    dev={"image": "acme/dev", "profiles": ["dev"]},
)


def test_commands_of_an_application_and_of_its_services() -> None:
    db = SAVE | {"backup_after": ["rm", "x"], "backup_seconds": 5}
    app = replace(
        SHOP, backup_command=("./copy",), backup_after=("./end",), backup_seconds=60,
        services={"db": db, "jobs": {"cpus": 1}},
    )  # fmt: skip
    assert dumps.of(app) == [
        Dump("shop", "web", ("./copy",), ("./end",), 60),
        Dump("shop", "db", ("redis-cli", "SAVE"), ("rm", "x"), 5),
    ]
    assert [str(one) for one in dumps.of(app)] == ["shop/web", "shop/db"]
    # A service without a time of its own has that of the application.
    assert dumps.of(replace(app, services={"db": SAVE}))[1].seconds == 60
    assert dumps.of(SHOP) == []


BAD: list[tuple[dict[str, Any], str]] = [
    ({"services": {"setup": SAVE}}, "services: setup has a backup_command, and no container of it "
     "runs during a backup: it ends by itself; take the command out, or name another service"),
    ({"services": {"dev": SAVE}}, "during a backup: no release starts it; take the command out"),
    ({"backup_leave_out": ("cache",)},
     "backup_leave_out: there is no volume 'cache' (data, photos, theirs)"),
    ({"backup_leave_out": ("media",)}, "there is no volume 'media' (data, photos, theirs)"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "words"), BAD)
def test_what_no_backup_would_find_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(Failed) as refused:
        dumps.refuse(replace(SHOP, stateful=("db",), **fields), FILES)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_a_backup_finds() -> None:
    services = {"db": SAVE, "web": SAVE}
    left = ("data", "photos", "theirs")
    app = replace(SHOP, stateful=("db",), services=services, backup_leave_out=left)
    dumps.refuse(app, FILES)


@pytest.mark.parametrize(
    ("volume", "left"),
    [("shop_data", True), ("photos", True), ("data", True), ("shop_photo", False), ("x", False)],
)
def test_volumes_that_are_left_out(volume: str, left: bool) -> None:
    data = {"name": "shop", "backup_leave_out": ["data", "photos"]}
    assert dumps.left_out(data, volume) is left
    # Described by the version before.
    assert not dumps.left_out({"name": "shop"}, volume)
