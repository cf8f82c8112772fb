"""A server under load, for as long as a test needs it."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import load
from tests.e2e.load import Generator, Order
from tests.unit.load.servers import NAME, Outcome, Serve, Visit


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for NAME, with its key in the same file."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-subj", f"/CN={NAME}"),
            *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-addext", f"subjectAltName=DNS:{NAME}"),
            *("-addext", "keyUsage=critical,keyCertSign,digitalSignature"),
            *("-out", str(path), "-keyout", str(path.with_name("key.pem"))),
        ],
        check=True,
        capture_output=True,
    )
    return path


@pytest.fixture
def under_load(certificate: Path) -> Callable[..., Outcome]:
    """Runs the load generator against a server that behaves like `serve`, for its result."""

    async def measure(
        serve: Serve,
        protocols: tuple[str, ...],
        until: Coroutine[Any, Any, None] | None,
        **order: Any,
    ) -> Outcome:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate, certificate.with_name("key.pem"))
        tls.set_alpn_protocols(list(protocols))
        log: list[str] = []
        visits = 0
        tasks: set[asyncio.Task[None] | None] = set()

        async def welcome(reader: StreamReader, writer: StreamWriter) -> None:
            nonlocal visits
            visits += 1
            tasks.add(asyncio.current_task())
            try:
                await serve(Visit(visits, log, reader, writer))
            except (EOFError, OSError):
                pass  # the client left
            finally:
                writer.close()

        server = await asyncio.start_server(welcome, "127.0.0.1", 0, ssl=tls)
        given = {
            "address": "127.0.0.1",
            "port": server.sockets[0].getsockname()[1],
            "domain": NAME,
            "authority": certificate.read_text(),
            "keep": 0,
            "fresh": 0,
            "timeout": 2,
            "patience": 10,
        }
        generator = Generator(Order(**given | order))
        stop = asyncio.Event()

        async def tell() -> None:
            if until:
                await until
            stop.set()

        teller = asyncio.create_task(tell())
        result = await generator.run(stop, lambda: None)
        await teller
        server.close()
        await asyncio.gather(*filter(None, tasks))
        return Outcome(result, log, visits)

    def run(
        serve: Serve,
        protocols: tuple[str, ...] = ("http/1.1",),
        until: Coroutine[Any, Any, None] | None = None,
        **order: Any,
    ) -> Outcome:
        return asyncio.run(measure(serve, protocols, until, **{"requests": 6} | order))

    return run


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for pause in ("PAUSE", "FRESH_PAUSE", "SAY"):
        monkeypatch.setattr(load, pause, 0.01)
