"""Fake hosts: the answers of pyinfra's @fake connector, and the output of runs against them."""

import json
import re
from collections.abc import Sequence
from itertools import takewhile
from subprocess import CompletedProcess
from typing import Any

from pyinfra.api import FactBase, StringCommand

from terrafirma.app.facts import Kept
from terrafirma.docker.facts import DockerAddresses
from terrafirma.host.facts import Machine
from tests.unit.settings import KEY

DEBIAN_13 = {
    "id": "debian",
    "version": "13",
    "name": "Debian GNU/Linux 13 (trixie)",
    "architecture": "amd64",
    "user": "root",
    "root": "yes",
    "systemd": "yes",
    "free_kb": "78453624",
}
DEBIAN_12 = DEBIAN_13 | {"version": "12", "name": "Debian GNU/Linux 12 (bookworm)"}
UBUNTU_24 = DEBIAN_13 | {"id": "ubuntu", "version": "24.04", "name": "Ubuntu 24.04.3 LTS"}
UBUNTU_26 = UBUNTU_24 | {"version": "26.04", "name": "Ubuntu 26.04 LTS"}
UBUNTU_22 = UBUNTU_24 | {"version": "22.04", "name": "Ubuntu 22.04.5 LTS"}

Answers = dict[str, Any]

SHOP = {"source": "examples/api", "domain": "shop.test", "port": 9000}


def command(fact: type[FactBase[Any]], **arguments: Any) -> str:
    """The command of a fact, which is the key of its answer in pyinfra's @fake connector."""
    text = fact().command(**arguments)
    return text.get_raw_value() if isinstance(text, StringCommand) else text


POOLED = {"pgbouncer_enabled": True}
DOCKER0 = command(DockerAddresses)


def kept(**ports: int) -> Answers:
    """The answer of a host that has applications with these ports."""
    lines = [f'/etc/terrafirma/apps/{name}.json:    "blue": {ports[name]},' for name in ports]
    return {command(Kept): lines}


def machine(kind: dict[str, str] = DEBIAN_13, *more: str, **but: str) -> Answers:
    """The answers of a bare host, on which nothing is installed."""
    lines = [f"{key}={value}" for key, value in (kind | but).items() if value]
    return {command(Machine): [*lines, *more]}


def fake(answers: Answers, **data: Any) -> list[str]:
    """The arguments for a host with these answers and this host data."""
    values = {"fake_responses": answers, **data}
    pairs = (
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in values.items()
    )
    return [word for pair in pairs for word in ("--data", pair)]


def api(**fields: Any) -> dict[str, Any]:
    """The data that set fields of the default application `api`."""
    return {f"apps.api.{name}": value for name, value in fields.items()}


def refusal(result: CompletedProcess[str]) -> str:
    """The one line with which a run was refused; asserts that nothing was done."""
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert "Starting operation" not in result.stderr
    # A refused value may be a secret.
    assert "s3cret" not in result.stdout + result.stderr
    *_, line = filter(None, result.stderr.splitlines())
    message = re.search(r"pyinfra error.*: (@fake/\w+: .*)$", line)
    assert message, result.stderr
    return message[1]


def refuses(result: CompletedProcess[str], parts: Sequence[str]) -> None:
    """Asserts that the refusal begins with the first part, after the host, and has the others."""
    message = refusal(result)
    first, *more = parts
    assert message.startswith(f"@fake/host: {first}"), message
    for part in more:
        assert part in message, message


def written(result: CompletedProcess[str], path: str, host: str = "host") -> str:
    """The new file `path`, as a run with --diff shows it."""
    assert result.returncode == 0, result.stderr
    found = re.search(rf"\[@fake/{host}\] +Will create {path}\n", result.stderr)
    assert found, result.stderr
    _, *lines = result.stderr[found.end() :].splitlines()
    return "".join(
        f"{line.strip().removeprefix('+').removeprefix(' ')}\n"
        for line in takewhile(lambda line: line.strip().startswith("+"), lines)
    )


def commands(result: CompletedProcess[str], host: str = "host") -> list[str]:
    """The commands that a run with -vv shows for a host, line by line."""
    assert result.returncode == 0, result.stderr
    return re.findall(rf"\[@fake/{host}\] +>>> (.*)", result.stderr)


def said_to_psql(result: CompletedProcess[str], host: str = "host") -> list[str]:
    """The statements that a dry run shows for a host."""
    verbs = "alter|create|grant|revoke"
    return re.findall(rf"\[@fake/{host}\] +((?:{verbs}) .*;)$", result.stderr, re.MULTILINE)


BACKUP = {
    "borg_repository": "ssh://b@backup.acme.com/./web",
    "borg_known_hosts": [f"backup.acme.com {KEY}"],
}
INVENTORY = """\
from json import loads


class Turns(dict):
    # One answer for each call; the last one is repeated.
    def get(self, key, default=None):
        turns = self["turns"]
        if key != "stdout":
            return default
        return turns.pop(0) if len(turns) > 1 else turns[0]


def answer(data):
    return Turns(data) if data.keys() == {{"turns"}} else data


servers = [(name, data) for name, data in loads({text!r}, object_hook=answer).items()]
"""


SIX = "5: docker0    inet6 fd00::1/64 scope global nodad"
ON_172 = {
    DOCKER0: [
        "daemon=",
        "5: docker0    inet 172.17.0.1/16 brd 172.17.255.255 scope global docker0",
    ]
}
