"""Whether applications answer: real servers are asked; files stand in for the rest of a host."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from terrafirma_host import answers
from terrafirma_host.engine import Container
from terrafirma_host.spec import Application

from tests.unit.programs import Program
from tests.unit.terrafirma_host.applications import described
from tests.unit.terrafirma_host.health_kinds import DOMAIN, OK, Sends, serving, status


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Application:
    monkeypatch.setattr(answers, "PATIENCE", 0)
    return described(domain=DOMAIN, timeout_seconds=1)


def replica(port: int, **but: object) -> Container:
    container = {
        "id": str(port), "name": f"api-blue-api-{port}", "service": "api", "release": "1234",
        "state": "running", "health": "healthy", "restarts": 0, "done": False, "hosts": "/no/where",
        "mounts": (), "pid": os.getpid(), "port": port,
    }  # fmt: skip
    return Container(**(container | but))  # type: ignore[arg-type]


def hangs(connection: socket.socket, _: bytes) -> None:
    time.sleep(3)


def dies(connection: socket.socket, _: bytes) -> None:
    connection.close()


BUSY = status("503 Service Unavailable", body="no database")


@contextmanager
def running(*kinds: bytes | Sends | None) -> Iterator[list[Container]]:
    """Replicas of these kinds; None: nothing listens."""
    with ExitStack() as stack:
        there = []
        for kind in kinds:
            if kind is None:
                with socket.create_server(("127.0.0.1", 0)) as closed:
                    there.append(replica(closed.getsockname()[1]))
            else:
                there.append(replica(stack.enter_context(serving(kind))))
        yield there


# What the replicas do; how many are to be replaced; whether new ones would be no better.
REPLICAS: dict[str, tuple[tuple[bytes | Sends | None, ...], int, bool]] = {
    "all answer": ((OK, OK, OK), 0, False),
    "one hangs": ((OK, hangs, OK), 1, False),
    "one takes no connection": ((None, OK), 1, False),
    "one closes every connection": ((OK, dies), 1, False),
    "one answers 503": ((OK, BUSY), 1, False),
    "one says what is no HTTP": ((OK, b"SSH-2.0-x\r\n"), 1, False),
    "all hang": ((hangs, hangs), 2, False),
    "all take no connection": ((None, None), 2, False),
    "all answer 503": ((BUSY, BUSY), 0, True),
    "the only one answers 503": ((BUSY,), 0, True),
    "the only one hangs": ((hangs,), 1, False),
    "all fail, in two ways": ((BUSY, hangs), 2, False),
}


@pytest.mark.parametrize("case", REPLICAS)
def test_silent_replicas_are_replaced_where_new_ones_would_answer(
    asked: Application, case: str
) -> None:
    kinds, silent, trouble = REPLICAS[case]
    with running(*kinds) as there:
        gone, troubles = answers._replicas(asked, there)
    assert len(gone) == silent, gone
    assert bool(troubles) is trouble, troubles
    for words in troubles:
        assert "it answers 503 to /healthz (no database)" in words


def test_a_replica_that_is_busy_for_a_moment_is_asked_again(
    asked: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "PATIENCE", 10)
    seen = []

    def at_last(connection: socket.socket, _: bytes) -> None:
        seen.append(connection)
        if len(seen) > 2:
            connection.sendall(OK)

    with running(OK, at_last) as there:
        assert answers._replicas(asked, there) == ([], [])
    assert len(seen) == 3


def test_a_replica_that_just_started_may_take_start_seconds(asked: Application) -> None:
    began = time.monotonic()

    def at_last(connection: socket.socket, _: bytes) -> None:
        if time.monotonic() - began > 2:
            connection.sendall(OK)

    with running(at_last) as (one,):
        young = replica(one.port, health="", started=time.time())
        assert answers._replicas(asked, [young]) == ([], [])


def test_a_paused_or_unconnected_replica_is_silent_without_a_question(asked: Application) -> None:
    with running(OK) as (fine,):
        there = [fine, replica(8001, state="paused"), replica(0, name="api-blue-api-2")]
        gone, troubles = answers._replicas(asked, there)
    assert gone == ["api-blue-api-8001 is paused", "api-blue-api-2 is in no network"]
    assert troubles == []


# --- places that a host itself uses ---------------------------------------------------------------

PLACES: dict[str, tuple[dict[str, str], list[answers.Place]]] = {
    "nothing": ({}, []),
    "resolvers": (
        {"resolv.conf": "search x\nnameserver 192.0.2.53\nnameserver  2001:db8::1\n"
         "#nameserver 192.0.2.54\n"},
        [("192.0.2.53", 53)],
    ),
    "a resolver of the host's own": ({"resolv.conf": "nameserver 127.0.0.53\n"}, []),
    "one line": (
        {"apt/sources.list": "# deb http://old.test/ x main\n"
         "deb [signed-by=/usr/x.gpg arch=amd64] http://deb.test/debian/ trixie main\n"
         "deb-src https://src.test:8443/debian trixie main\n"},
        [("deb.test", 80), ("src.test", 8443)],
    ),
    "deb822": (
        {"apt/sources.list.d/debian.sources": "Types: deb\n"
         "URIs: https://deb.test/debian http://more.test/\nSuites: trixie\n"},
        [("deb.test", 443)],
    ),
    "a disk": ({"apt/sources.list": "deb file:/srv/mirror trixie main\ndeb cdrom:[x]/ y\n"}, []),
    "no port": ({"apt/sources.list": "deb http://deb.test:port/ trixie main\n"}, []),
    "twice": (
        {"apt/sources.list": "deb http://deb.test/a x\ndeb http://deb.test/b y\n"},
        [("deb.test", 80)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PLACES)
def test_where_the_host_itself_goes(case: str, tmp_path: Path) -> None:
    files, expected = PLACES[case]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert list(answers.places(tmp_path, tmp_path / "run")) == expected


def test_a_resolver_behind_the_hosts_own_is_one(tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.53\n")
    (tmp_path / "systemd/resolve").mkdir(parents=True)
    (tmp_path / "systemd/resolve/resolv.conf").write_text("nameserver 192.0.2.1\n")
    assert list(answers.places(tmp_path, tmp_path)) == [("192.0.2.1", 53)]


def test_only_places_that_the_host_reaches_count() -> None:
    """An address of the host itself does not count: no container's way out leads there."""
    with socket.create_server(("127.0.0.1", 0)) as own:
        began = time.monotonic()
        nowhere = ("no-such-host.invalid", 80)
        assert answers.reached(iter([own.getsockname(), ("127.0.0.1", 1), nowhere])) == []
        assert time.monotonic() - began < 2
    assert answers.reached(iter([])) == []


class Way:
    """A container that reaches some of the places that the host reaches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *reached: answers.Place) -> None:
        self.asked: list[answers.Place] = []
        for name, answer in {
            "PATIENCE": 0,
            "reached": lambda _: list(reached),
            "own_rules": lambda: False,
            "suspects": lambda: ["a rule"],
            "_has_a_way": lambda: True,
        }.items():
            monkeypatch.setattr(answers, name, answer)

    def out(self) -> answers.Found:
        found = answers.Found()
        answers.way_out([replica(8000)], found)
        return found


@contextmanager
def shut() -> Iterator[answers.Place]:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        place = closed.getsockname()
    yield place


def test_a_way_out_is_any_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resolvers and archives may each be kept from containers on purpose."""
    with shut() as closed, socket.create_server(("127.0.0.1", 0)) as server:
        found = Way(monkeypatch, closed, server.getsockname()).out()
    assert (found.troubles, found.notes) == ([], [])


def test_no_way_out_is_a_trouble_and_no_resolver_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    with shut() as closed:
        found = Way(monkeypatch, closed, ("127.0.0.1", 1)).out()
        assert found.notes == []
        (words,) = found.troubles
        assert f"the host reaches {closed[0]}:{closed[1]}, 127.0.0.1:1, and" in words
        assert "a rule; rules of your own belong into the chain DOCKER-USER" in words
    # Nothing answers there, either.
    found = Way(monkeypatch, ("127.0.0.1", 53)).out()
    assert (found.troubles, len(found.notes)) == ([], 1)


def test_one_place_for_each_port_is_enough() -> None:
    with socket.create_server(("127.0.0.2", 0)) as one:
        port = one.getsockname()[1]
        with socket.create_server(("127.0.0.3", port)):
            places = [("127.0.0.2", port), ("127.0.0.3", port)]
            assert answers.reached(iter(places)) == places[:1]


def test_a_resolv_conf_that_is_no_text_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_bytes(b"nameserver \xff\xfe\n")
    assert answers.resolves(described(), replica(8000, hosts=str(tmp_path / "hosts")))


# --- known causes ---------------------------------------------------------------------------------

CHAINS = """\
table ip filter {
	chain FORWARD {
		type filter hook forward priority filter; policy drop;
	}
}
table inet filter {
	chain input {
		type filter hook input priority filter; policy accept;
	}
	chain forward {
		type filter hook forward priority filter; policy drop;
	}
}
"""


def test_chains_of_others_that_drop_are_named(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker's own forwarding chain drops what it has no rule for: that is no suspect."""
    path = program("nft", f"test \"$*\" = 'list chains' && cat <<'END'\n{CHAINS}\nEND")
    monkeypatch.setenv("PATH", f"{path}:{os.environ['PATH']}")
    (words,) = [one for one in answers.suspects() if "nft" in one]
    assert words == (
        "the chain forward of the table inet filter (nft) drops what it has no rule for (forward)"
    )


@pytest.mark.parametrize(
    ("rules", "own"),
    [
        ("", False),
        ("-N DOCKER-USER\n-A DOCKER-USER -j RETURN", False),
        ("-N DOCKER-USER\n-A DOCKER-USER -i apps -j DROP\n-A DOCKER-USER -j RETURN", True),
    ],
)
def test_rules_where_they_belong_are_meant(
    rules: str, own: bool, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = program("iptables", f"printf '%s\\n' '{rules}'" if rules else "exit 1")
    monkeypatch.setenv("PATH", f"{path}:{os.environ['PATH']}")
    assert answers.own_rules() is own
