"""Runs of the tasks firewall and exposure."""

import json
from collections.abc import Sequence
from subprocess import CompletedProcess

import pytest

from terrafirma.firewall.facts import Firewall
from tests.conftest import Pyinfra
from tests.unit.fake_host import DEBIAN_13, command, commands, fake, machine, refuses, written

ASKED = command(Firewall)
ME = DEBIAN_13 | {"connection": "192.0.2.1 50000 203.0.113.10 2222"}
RULES = "/etc/terrafirma/firewall.nft"

REFUSALS: dict[str, tuple[str, list[str], Sequence[str]]] = {
    **{
        f"{name}: {page}": (
            page,
            fake(machine() | {ASKED: [f"other={name}"]}),
            (f"firewall_enabled: {name} is active on the host", end),
        )
        for name, end in (("ufw", "ufw disable"), ("firewalld", "disable --now firewalld"))
        for page in ("tasks/firewall", "deploy")
    },
    "a port of sshd's": (
        "tasks/firewall",
        fake(machine() | {ASKED: ["ssh=2200"]}, firewall_open=[{"port": 2200}]),
        ("firewall_open: 2200/tcp: 2200 is sshd's", "firewall_ssh_sources"),
    ),
    "the port in use, which sshd no longer names": (
        "tasks/firewall",
        fake(machine(ME) | {ASKED: ["ssh=22"]}, firewall_open=[{"port": 2222}]),
        ("firewall_open: 2222/tcp: 2222 is sshd's",),
    ),
    "sources without the own address": (
        "tasks/firewall",
        fake(machine(ME), firewall_ssh_sources=["192.0.2.2"]),
        ("firewall_ssh_sources: you are connected from 192.0.2.1", "lock yourself out"),
    ),
    "a typing error": (
        "tasks/firewall",
        fake(machine(), firewall_opn=[]),
        ("firewall_opn: there is no such key, did you mean firewall_open?",),
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_refuses_in_one_line_before_anything_changes(
    refused: dict[str, CompletedProcess[str]], what: str
) -> None:
    refuses(refused[what], REFUSALS[what][2])


def test_the_rules_are_those_of_the_settings(pyinfra: Pyinfra) -> None:
    answers = machine(ME) | {ASKED: ["ssh=22", "uplink=br0"]}
    data = {"firewall_open": [{"port": 9100, "sources": ["192.0.2.0/24"], "comment": "node"}]}
    result = pyinfra.call(
        "@fake/host", "tasks/firewall.py", "--dry", "--diff", *fake(answers, **data)
    )
    text = written(result, RULES)
    for line in (
        'tcp dport 22 accept comment "sshd"',
        # The port of the connection, whatever sshd's files say now.
        'tcp dport 2222 accept comment "sshd"',
        'udp dport 443 accept comment "Caddy"',
        'ip saddr { 192.0.2.0/24 } tcp dport 9100 accept comment "node"',
        'iifname "br0" goto outside',
    ):
        assert line in text
    assert "tcp dport 2222 accept" in written(result, "/etc/terrafirma/firewall-ssh.nft")


def test_rules_that_somebody_changed_are_loaded_anew(pyinfra: Pyinfra) -> None:
    for answer, done in (([], True), (["in_force"], False)):
        host = fake(machine() | {ASKED: answer})
        plan = pyinfra.run("@fake/host", "tasks/firewall.py", "--dry", *host)["plan"]
        change = {one["name"]: bool(one["hosts_with_change"]) for one in plan}
        assert change["Close everything else"] is done


def test_a_failure_at_the_last_start_is_said(pyinfra: Pyinfra) -> None:
    host = fake(machine() | {ASKED: ["failed=line 3: syntax error"]})
    result = pyinfra.call("@fake/host", "tasks/firewall.py", "--dry", *host)
    assert result.returncode == 0
    assert "SSH alone was open: line 3: syntax error" in result.stderr


@pytest.mark.parametrize(("answer", "done"), [(["there"], True), ([], False)])
def test_without_the_firewall_its_rules_are_removed(
    pyinfra: Pyinfra, answer: list[str], done: bool
) -> None:
    host = fake(machine() | {ASKED: answer}, firewall_enabled=False)
    result = pyinfra.call("@fake/host", "tasks/firewall.py", "-y", "-vv", *host)
    asked = "\n".join(commands(result))
    assert ("systemctl disable --quiet --now terrafirma-firewall.service" in asked) is done
    assert "nft -c" not in asked
    assert "flush" not in asked


def test_a_host_that_is_not_reached_over_ssh_is_not_proved(pyinfra: Pyinfra) -> None:
    result = pyinfra.call("@fake/host", "tasks/exposure.py", "-y", *fake(machine(ME)))
    assert result.returncode == 0, result.stderr
    assert "Not proved from outside: the connection goes through a jump host, or is no" in (
        result.stderr
    )
    totals = json.loads(result.stdout)["results"]["totals"]
    assert totals["success"] == 0


@pytest.mark.parametrize("data", [{"firewall_proof": False}, {"firewall_enabled": False}])
def test_a_proof_that_nobody_wants_is_left_out(pyinfra: Pyinfra, data: dict[str, bool]) -> None:
    result = pyinfra.call("@fake/host", "tasks/exposure.py", "-y", *fake(machine(ME), **data))
    assert result.returncode == 0, result.stderr
    assert "Not proved" not in result.stderr
