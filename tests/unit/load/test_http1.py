"""The load generator: each fault of a server is counted correctly."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.e2e import load
from tests.e2e.support import LIBRARIES
from tests.unit.load.servers import (
    BODY,
    CHUNKED,
    COUNTED,
    GOOD,
    NAME,
    Serve,
    UnderLoad,
    Visit,
    answer,
)

pytestmark = COUNTED


# --- HTTP/1.1 ---


async def well(visit: Visit) -> None:
    while await visit.asked():
        await visit.say()


def test_a_good_server(under_load: UnderLoad) -> None:
    seen = under_load(well, keep=1, fresh=1, posts=0.5, rate=200, requests=60, paths=("/a", "/b"))
    assert seen.failed == []
    assert (seen.replayed, seen.reconnected) == (0, 0)
    assert seen.requests == len(seen.log) >= 60
    assert set(seen.log) == {"GET /a", "GET /b", "POST /a"}
    # Clients that keep their connection send no POST; every other request has its own connection.
    fresh = seen.kinds["http/1.1 fresh"]["requests"]
    assert seen.log.count("POST /a") == fresh // 2 > 0
    assert seen.visits == 1 + fresh
    assert seen.gap_seconds < 1
    (who,) = seen.answers
    assert (who["release"], who["replica"], who["count"]) == ("one", "a", seen.requests)
    assert seen.started <= who["first"] <= who["asked"] <= who["last"]


async def chunked(visit: Visit) -> None:
    while await visit.asked():
        chunks = b"7\r\n%b\r\n%x\r\n%b\r\n0\r\nTrailer: x\r\n\r\n" % (
            BODY[:7], len(BODY) - 7, BODY[7:],
        )  # fmt: skip
        await visit.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)


def test_a_body_in_chunks(under_load: UnderLoad) -> None:
    seen = under_load(chunked, keep=1)
    assert seen.failed == []
    assert seen.visits == 1
    assert seen.answers[0]["count"] == seen.requests


async def informed(visit: Visit) -> None:
    while await visit.asked():
        hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"
        await visit.say(b"HTTP/1.1 100 Continue\r\n\r\n" + hints)
        await asyncio.sleep(0.01)
        await visit.say()


async def empty(visit: Visit) -> None:
    while await visit.asked():
        await visit.say(b"HTTP/1.1 204 No Content\r\n\r\n")


@pytest.mark.parametrize(("serve", "status"), [(informed, 200), (empty, 204)])
def test_an_answer_that_is_whole_without_a_length_of_its_own(
    under_load: UnderLoad, serve: Serve, status: int
) -> None:
    seen = under_load(serve, keep=1, status=status)
    assert (seen.failed, seen.visits) == ([], 1)
    assert seen.requests == len(seen.log)


async def reset(visit: Visit) -> None:
    await visit.asked()
    visit.reset()


async def reset_in_the_body(visit: Visit) -> None:
    await visit.asked()
    await visit.say(GOOD[:-4])
    await asyncio.sleep(0.05)
    visit.reset()


async def silence(visit: Visit) -> None:
    await visit.asked()
    await visit.reader.read()


@pytest.mark.parametrize(
    ("serve", "words"),
    [
        (answer(GOOD[:-4]), f"truncated after {len(BODY) - 4} of {len(BODY)} bytes"),
        (answer(CHUNKED + b"5\r\nhello\r\n"), "truncated before its last chunk"),
        (answer(CHUNKED + b"5\r\nhel"), "truncated before its last chunk"),
        (answer(CHUNKED + b"5\r\nhello\r\n0\r\n"), "truncated before its last chunk"),
        (answer(CHUNKED + b"hello\r\n"), "illegal chunk header"),
        (answer(GOOD[:20]), "closed by the server"),
        (answer(b""), "closed by the server"),
        (answer(b"HTTP/1.1 200 OK\r\n\r\n" + BODY), "without a length"),
        (answer(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"), "502"),
        (answer(b"hello\r\n\r\n"), "no HTTP/1.1"),
        (reset, "ConnectionResetError"),
        (reset_in_the_body, "truncated after"),
        (silence, "nothing within 0.3 s"),
    ],
)
@pytest.mark.parametrize("kind", ["keep", "fresh"])
def test_a_bad_answer_has_failed(
    under_load: UnderLoad, serve: Serve, words: str, kind: str
) -> None:
    timeout = 0.3 if serve is silence else 2
    seen = under_load(serve, requests=3, timeout=timeout, **{kind: 1})
    assert seen.requests == len(seen.failed) == seen.visits >= 3
    assert all(words in one for one in seen.words), seen.words
    assert seen.replayed == 0
    one = seen.failed[0]
    assert (one["kind"][:8], one["method"], one["path"]) == ("http/1.1", "GET", "/")
    assert seen.started <= one["at"]


@pytest.mark.parametrize(("together", "later"), [(b"HTTP", b""), (b"", b"HTTP")])
def test_bytes_that_belong_to_no_answer_are_a_failure(
    under_load: UnderLoad, together: bytes, later: bytes
) -> None:
    async def serve(visit: Visit) -> None:
        while await visit.asked():
            await visit.say(GOOD + together)
            await asyncio.sleep(0.01)
            await visit.say(later)

    seen = under_load(serve, keep=1, rate=20)
    assert len(seen.failed) == seen.requests // 2 == 3
    assert "belong to no answer" in seen.words[0]
    assert seen.replayed == 0


def test_an_idle_connection_that_was_closed_is_not_used_again(under_load: UnderLoad) -> None:
    async def serve(visit: Visit) -> None:
        await visit.asked()
        await visit.say()  # and closed while the client waits for its turn

    seen = under_load(serve, keep=1, rate=20)
    assert (seen.failed, seen.replayed) == ([], 0)
    assert seen.visits == seen.requests >= 6


def test_connection_close_is_heeded(under_load: UnderLoad) -> None:
    async def serve(visit: Visit) -> None:
        await visit.asked()
        await visit.say(GOOD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
        await visit.reader.read()

    seen = under_load(serve, keep=1)
    assert (seen.failed, seen.replayed) == ([], 0)
    assert seen.visits == seen.requests


async def closes_when_asked_again(visit: Visit) -> None:
    await visit.asked()
    await visit.say()
    await visit.asked()


async def resets_when_asked_again(visit: Visit) -> None:
    await closes_when_asked_again(visit)
    visit.reset()


@pytest.mark.parametrize("serve", [closes_when_asked_again, resets_when_asked_again])
def test_a_race_with_the_end_of_a_connection_is_replayed(
    under_load: UnderLoad, serve: Serve
) -> None:
    seen = under_load(serve, keep=1)
    assert seen.failed == []
    assert seen.kinds["http/1.1 keep-alive"]["replayed"] == seen.replayed == seen.requests - 1
    assert seen.visits == seen.requests
    assert len(seen.log) == seen.requests + seen.replayed


def test_a_request_is_replayed_once(under_load: UnderLoad) -> None:
    async def serve(visit: Visit) -> None:
        if visit.number == 1:
            await closes_when_asked_again(visit)
        else:
            await visit.asked()

    seen = under_load(serve, keep=1, requests=2)
    assert (seen.requests, seen.replayed, len(seen.failed)) == (2, 1, 1)
    assert seen.visits == 2


def test_an_answer_that_began_is_not_replayed(under_load: UnderLoad) -> None:
    async def serve(visit: Visit) -> None:
        await closes_when_asked_again(visit)
        await visit.say(GOOD[:1])

    seen = under_load(serve, keep=1)
    assert seen.replayed == 0
    assert len(seen.failed) == seen.requests // 2 == 3


def test_a_request_that_was_under_way_is_not_replayed(
    under_load: UnderLoad, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "RACE", 0.1)

    async def serve(visit: Visit) -> None:
        await closes_when_asked_again(visit)
        await asyncio.sleep(0.3)

    seen = under_load(serve, keep=1, requests=4)
    assert (seen.replayed, len(seen.failed)) == (0, 2)


def test_a_post_is_never_sent_twice(under_load: UnderLoad) -> None:
    seen = under_load(reset, fresh=2, posts=1.0)
    assert set(seen.log) == {"POST /"}
    assert seen.requests == len(seen.failed) == len(seen.log)
    assert seen.failed[0]["method"] == "POST"
    assert seen.replayed == 0


def test_slow_requests(under_load: UnderLoad) -> None:
    async def serve(visit: Visit) -> None:
        while "slow" in await visit.asked():
            await asyncio.sleep(0.2)
            await visit.say()

    seen = under_load(serve, slow=2, requests=4)
    assert seen.failed == []
    assert seen.kinds["slow"]["requests"] == seen.requests
    assert set(seen.log) == {"GET /slow?seconds=5"}
    assert seen.slowest_ms == 0  # a slow answer says nothing about how quick the server is


# --- the connection ---


def test_a_closed_port(under_load: UnderLoad) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        seen = under_load(well, keep=1, fresh=1, http2=1, port=free.getsockname()[1], requests=20)
    assert seen.requests == len(seen.failed)
    assert all("ConnectionRefusedError" in one for one in seen.words)
    assert {one["kind"] for one in seen.failed} == set(seen.kinds)
    assert seen.gap_seconds == pytest.approx(seen.stopped - seen.started, abs=0.01)


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ({"authority": ""}, "CERTIFICATE_VERIFY_FAILED"),
        ({"domain": "other.test"}, "Hostname mismatch"),
        ({"keep": 0, "http2": 1, "streams": 1}, "the server speaks None, not h2"),
    ],
)
def test_tls(under_load: UnderLoad, order: dict[str, Any], words: str) -> None:
    seen = under_load(well, **{"keep": 1} | order)
    assert seen.requests == len(seen.failed)
    assert all(words in one for one in seen.words), seen.words


# --- when it stops, and what it reports ---


def test_it_continues_until_it_is_stopped(under_load: UnderLoad) -> None:
    seen = under_load(well, keep=1, requests=1, until=asyncio.sleep(0.5))
    assert seen.stopped - seen.started >= 0.5
    assert seen.requests > 10


def test_it_continues_until_enough_requests_are_done(under_load: UnderLoad) -> None:
    seen = under_load(well, keep=2, requests=500)
    assert 500 <= seen.requests <= 504  # those that were under way


def test_it_does_not_go_on_for_ever(under_load: UnderLoad) -> None:
    seen = under_load(well, keep=1, requests=10**9, patience=0.2)
    assert 0.2 <= seen.stopped - seen.started < 2
    seen = under_load(well, keep=1, until=asyncio.sleep(1), limit=0.2)
    assert seen.stopped - seen.started < 0.9


def test_the_rate_is_kept(under_load: UnderLoad) -> None:
    seen = under_load(well, keep=4, rate=100, requests=50)
    assert seen.stopped - seen.started >= 0.45


def test_a_gap_and_a_change_of_release(under_load: UnderLoad) -> None:
    async def serve(visit: Visit) -> None:
        while await visit.asked():
            done = len(visit.log)
            if done == 10:
                await asyncio.sleep(0.4)
            if 10 <= done < 15:
                await visit.say(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
            else:
                await visit.say(GOOD if done < 10 else GOOD.replace(b"one", b"two"))

    seen = under_load(serve, keep=1, requests=30)
    assert len(seen.failed) == 5
    assert 0.4 <= seen.gap_seconds < 2
    old, new = seen.answers
    assert (old["release"], old["count"]) == ("one", 9)
    assert (new["release"], new["count"]) == ("two", seen.requests - 14)
    assert old["asked"] <= old["last"] < new["first"] - 0.4


def test_the_command_line(tmp_path: Path) -> None:
    """It prints two lines, ends when standard input ends, and needs nothing but LIBRARIES."""
    shutil.copy(ROOT / "tests/e2e/load.py", tmp_path)
    for library in LIBRARIES:
        (tmp_path / library).symlink_to(Path(sysconfig.get_path("purelib")) / library)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        order = {"address": "127.0.0.1", "port": free.getsockname()[1], "domain": NAME}
        result = subprocess.run(
            [sys.executable, "-S", str(tmp_path / "load.py"), json.dumps(order)],
            input="",
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    begun, said = map(json.loads, result.stdout.splitlines())
    assert begun == {"begun": True}
    assert said["requests"] == len(said["failed"]) >= 8
