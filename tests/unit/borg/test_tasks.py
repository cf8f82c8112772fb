"""What a run says about backups."""

import json
from typing import Any

import pytest

from terrafirma.borg.facts import Backups
from terrafirma.paths import BACKUP_CONFIG, BACKUP_KEY, BACKUP_RESULT, BACKUP_SECRETS, BACKUP_STAMP
from tests.conftest import Pyinfra
from tests.unit.fake_host import command, machine
from tests.unit.settings import KEY

DATA = {
    "borg_repository": "ssh://box@backup.acme.com/./a",
    "borg_known_hosts": [f"backup.acme.com {KEY}"],
}
ASKED = command(
    Backups,
    stamp=BACKUP_STAMP,
    configuration=[
        BACKUP_CONFIG, "/etc/borgmatic/known_hosts", BACKUP_KEY, f"{BACKUP_SECRETS}/passphrase",
    ],
    result=BACKUP_RESULT,
)  # fmt: skip
WORDS = "the last backup (2026-11-29 02:00 UTC) is incomplete: backup_command of jobs/queue: exit 1"


@pytest.mark.parametrize(
    ("words", "archive", "warned"),
    [
        (WORDS, "first=web-1", True),
        ("", "first=web-1", False),
        # This run makes a new one.
        (WORDS, "", False),
    ],
)
def test_a_run_warns_of_the_last_backup(
    pyinfra: Pyinfra, inventory: Any, words: str, archive: str, warned: bool
) -> None:
    lines = [f"result={json.dumps({'words': words, 'invocation': 'a'})}", *filter(None, [archive])]
    hosts = inventory(host=(machine() | {ASKED: lines}, DATA))
    result = pyinfra.call(hosts, "tasks/borg.py", "--dry", "--json")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count(WORDS) == int(warned)
    plan = {one["name"]: one["hosts_with_change"] for one in json.loads(result.stdout)["plan"]}
    assert bool(plan["Make and verify a first backup"]) == (not archive)
