"""The proof from outside: what is tried, and how the findings are judged."""

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from terrafirma.firewall import outside
from terrafirma.firewall.facts import Firewall
from terrafirma.firewall.outside import View, judge, look, probe, sample, unanswered
from terrafirma.firewall.settings import Opening, network

HERE = "127.0.0.1"
ME, THERE = "192.0.2.1", "203.0.113.10"
VIEW = View((THERE, "2001:db8::10"), ME)


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.create_server((HERE, 0)) as one:
        yield one.getsockname()[1]


@pytest.fixture
def refusing() -> Iterator[int]:
    with socket.socket() as one:
        one.bind((HERE, 0))
        yield one.getsockname()[1]


@pytest.fixture
def silent() -> Iterator[int]:
    """A port whose queue of connections is full: the kernel drops what comes."""
    with socket.socket() as one:
        one.bind((HERE, 0))
        one.listen(0)
        port = one.getsockname()[1]
        clients = []
        for _ in range(3):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex((HERE, port))
            clients.append(client)
        time.sleep(0.05)
        yield port
        for client in clients:
            client.close()


def test_ports_are_tried(listening: int, refusing: int, silent: int) -> None:
    began = time.monotonic()
    found = probe([(HERE, port) for port in (listening, refusing, silent)], 0.3)
    assert [found[HERE, port] for port in (listening, refusing, silent)] == [
        "open", "refused", "silent",
    ]  # fmt: skip
    assert 0.25 < time.monotonic() - began < 2


def test_no_more_are_tried_at_once_than_allowed(
    monkeypatch: pytest.MonkeyPatch, listening: int, refusing: int
) -> None:
    monkeypatch.setattr(outside, "AT_ONCE", 2)
    places = [(HERE, refusing), (HERE, listening), *((HERE, port) for port in range(1, 20))]
    found = probe(places, 1)
    assert len(found) == len(places)
    assert found[HERE, listening] == "open"


def test_an_address_without_a_way_is_silent() -> None:
    assert probe([("ff00::", 80)], 0.1) == {("ff00::", 80): "silent"}


class Connected(socket.socket):
    """A socket that says that it is connected somewhere."""

    peer: tuple[str, int] = (THERE, 22)

    def getpeername(self) -> Any:
        return self.peer


@pytest.fixture
def connected() -> Iterator[Connected]:
    with Connected() as one:
        yield one


def test_a_host_is_seen_at_the_address_that_the_run_is_connected_to(connected: Connected) -> None:
    assert look(connected, f"{ME} 50000 {THERE} 22", [THERE]) == View((THERE,), ME)
    connected.peer = f"::ffff:{THERE}", 22
    assert look(connected, f"::ffff:{ME} 50000 ::ffff:{THERE} 22", []) == View((THERE,), ME)


def test_the_other_version_is_seen_where_there_is_a_way(
    connected: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [THERE, "10.0.0.7", "fd00::7", "2a01:4f8::10"]
    connected.peer = "8.8.8.8", 22
    line = f"{ME} 50000 8.8.8.8 22"
    monkeypatch.setattr(outside, "_has_route", lambda address: True)
    # Not the private one, for which another machine may answer here.
    assert look(connected, line, known).addresses == ("8.8.8.8", "2a01:4f8::10")
    monkeypatch.setattr(outside, "_has_route", lambda address: False)
    seen = look(connected, line, known)
    assert seen.addresses == ("8.8.8.8",)
    assert seen.missing == (
        "this machine has no route to 2a01:4f8::10: IPv6 is not tried",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("peer", "connection", "words"),
    [
        (None, f"{ME} 50000 {THERE} 22", "goes through a jump host"),
        ((THERE, 22), "", "goes through a jump host, or is no SSH"),
        ((THERE, 22), f"{ME} 50000 10.0.0.5 22",
         f"the host is behind a NAT: {THERE} port 22 leads to its 10.0.0.5 port 22"),
        ((THERE, 2222), f"{ME} 50000 {THERE} 22", "port 2222 leads to its 203.0.113.10 port 22"),
        ((HERE, 22), f"{HERE} 50000 {HERE} 22", "this machine is the host itself"),
    ],
)  # fmt: skip
def test_what_cannot_be_seen_is_said(
    connected: Connected, peer: tuple[str, int] | None, connection: str, words: str
) -> None:
    connected.peer = peer or (THERE, 22)
    seen = look(connected if peer else object(), connection, [THERE])
    assert seen.addresses == ()
    assert words in seen.missing[0]


def test_a_sample_has_all_that_listens_and_nothing_that_is_declared() -> None:
    state = Firewall.default() | {"listeners": {22: "sshd", 31337: "nc"}}
    openings = [Opening(port="22"), Opening(port="9000-9100"), Opening(port="53", protocol="udp")]
    found = sample(openings, state)
    assert {31337, 53, 2375, 5432} <= {*found}
    assert not {22, 9000, 9090, 9100} & {*found}
    assert sorted({*found}) == found
    assert len(found) > 50


def opening(**fields: Any) -> Opening:
    sources = tuple(map(network, fields.pop("sources", ())))
    return Opening(**{"port": "443", "comment": "Caddy"} | fields, sources=sources)


@pytest.mark.parametrize(
    ("outcome", "openings", "faults", "notes"),
    [
        ("open", [opening()], "", ""),
        ("silent", [opening()], "443 at 203.0.113.10 (Caddy) is declared, and does not answer: a "
         "firewall of the provider, or on the way, may drop what comes", ""),
        ("refused", [opening()], "",
         "443 at 203.0.113.10 (Caddy) is declared, and nothing listens there"),
        ("open", [], "443 at 203.0.113.10 is open and is not declared (nginx); stop it, bind it to "
         "127.0.0.1, or declare it in firewall_open", ""),
        ("refused", [], "", ""),
        ("silent", [], "", ""),
        # Declared for containers, or another protocol.
        ("open", [opening(clients="containers")], "is not declared (nginx)", ""),
        ("open", [opening(protocol="udp")], "is not declared (nginx)", ""),
        ("open", [opening(clients="everyone")], "", ""),
        # Sources with this machine, and without it.
        ("open", [opening(sources=[ME])], "", ""),
        ("silent", [opening(sources=[ME])], "does not answer", ""),
        ("open", [opening(sources=["192.0.2.2"])], "is not declared for this machine (nginx)", ""),
        ("silent", [opening(sources=["192.0.2.2"])], "", ""),
        # A rate may have been used up; a range may be used in part.
        ("silent", [opening(rate="1/hour")], "", ""),
        ("refused", [opening(port="440-450")], "", ""),
        ("open", [opening(port="440-450")], "", ""),
    ],
)  # fmt: skip
def test_findings_are_judged(
    outcome: Any, openings: list[Opening], faults: str, notes: str
) -> None:
    state: Any = Firewall.default() | {"listeners": {443: "nginx"}}
    verdict = judge({(THERE, 443): outcome}, openings, state, VIEW)
    for said, words in ((verdict.faults, faults), (verdict.notes, notes)):
        assert len(said) == bool(words)
        assert all(words in one for one in said)


def test_at_a_further_address_this_machine_does_not_know_its_own() -> None:
    state: Any = Firewall.default()
    for outcome in ("open", "silent"):
        found: Any = {("2001:db8::10", 443): outcome}
        assert judge(found, [opening(sources=["192.0.2.2"])], state, VIEW).faults == ()
    (said,) = judge({("2001:db8::10", 9): "open"}, [], state, VIEW).faults
    assert "9 at 2001:db8::10 is open and is not declared (no program that the host shows)" in said


def test_a_further_address_at_which_not_even_ssh_answers_says_nothing() -> None:
    found: Any = {(THERE, 22): "open", ("2001:db8::10", 22): "silent"}
    assert list(unanswered(found, VIEW, [22])) == ["2001:db8::10"]
    found["2001:db8::10", 22] = "open"
    assert list(unanswered(found, VIEW, [22])) == []
