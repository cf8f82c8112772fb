"""Releases: Caddy beside the replicas themselves, and the time of a release and of a rollback."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

from testbed.bench_lib import ROOT, pyinfra, ssh, target
from tests.conftest import Pyinfra
from tests.e2e.support import DOMAIN, Container, Mix, Target, bystander, load

NAME, PORT, OUTSIDER = "tf-bench-releases", 2424, "tf-bench-outsider"
REPLICAS = (1, 2, 4, 8)
ROUNDS, SECONDS, CLIENTS = 3, 5, "-t 8 -c 16 --timeout 10s"
TIMES = 3  # how often a release and a rollback are timed
# Short requests only: a release waits for long ones, and the time would measure them.
ASKING = Mix(keep=6, fresh=2, http2=2, streams=6, posts=0.1)
# Two slots of eight replicas have more connections than PostgreSQL's default admits.
DATA = ("--data", "postgres_max_connections=200")
WRK = """
local ports, turn = { %s }, 0
function setup(thread)
  if #ports > 0 then
    thread.addr = wrk.lookup("127.0.0.1", ports[turn %% #ports + 1])[1]
    turn = turn + 1
  end
end
function done(summary, latency)
  local bad = summary.errors
  print(string.format('{"requests": %%d, "seconds": %%f, "p99_ms": %%f, "failed": %%d}',
    summary.requests, summary.duration / 1e6, latency:percentile(99) / 1e3,
    bad.connect + bad.read + bad.write + bad.status + bad.timeout))
end
"""
INSTALL = "apt-get update -q && apt-get install -qy --no-install-recommends wrk"


class Round(NamedTuple):
    rate: float
    p99_ms: float


class Switch(NamedTuple):
    """Seconds from the beginning of a release to its first answer, and to its end."""

    answers: float
    ends: float
    requests: int


def wrk(client: Container, url: str, ports: list[str]) -> Round:
    """One run of wrk: eight threads with two connections each, which take `ports` in turn."""
    client.run("cat > /root/wrk.lua", stdin=WRK % ", ".join(f'"{port}"' for port in ports))
    said = client.run(f"wrk {CLIENTS} -d {SECONDS}s -s /root/wrk.lua {url}").splitlines()[-1]
    answer = json.loads(said)
    if answer["failed"]:
        sys.exit(f"bench: {url}: {said}")
    return Round(answer["requests"] / answer["seconds"], answer["p99_ms"])


def upstreams() -> list[str]:
    """The loopback ports of the replicas that serve."""
    serving = json.loads(ssh(PORT, "cat /opt/terrafirma/api/serving.json"))
    return [str(serving["port"] + number) for number in range(serving["replicas"])]


def throughput(server: Target, outsider: Container, replicas: int) -> None:
    ways = {
        "directly": partial(wrk, server, "http://127.0.0.1/whoami", upstreams()),
        "through Caddy": partial(wrk, outsider, f"https://{DOMAIN}/whoami", []),
    }
    rounds: dict[str, list[Round]] = {way: [] for way in ways}
    for number in range(ROUNDS):
        # Alternate which goes first, so that neither has a quieter machine.
        for way in sorted(ways, reverse=number % 2 == 1):
            rounds[way].append(ways[way]())
    base = median(one.rate for one in rounds["directly"])
    for way, ran in rounds.items():
        rate, p99 = (median(values) for values in zip(*ran, strict=True))
        print(
            f"{f'{replicas} replicas, {way}':38} {rate:6.0f} /s  {rate / base:.2f} of directly"
            f"   (p99 {p99:.1f} ms; {min(one.rate for one in ran):.0f} to"
            f" {max(one.rate for one in ran):.0f} /s)",
            flush=True,
        )


def switch(server: Target, outsider: Container, action: Callable[[], object]) -> Switch:
    """Time `action`, a release, as clients see it that send requests meanwhile."""
    with load(outsider, server, "/whoami", mix=ASKING, rate=200) as seen:
        time.sleep(1)
        started = time.time()
        action()
        ended = time.time()
        time.sleep(1)
    if seen["failed"]:
        sys.exit(f"bench: {len(seen['failed'])} requests failed: {seen['failed'][:3]}")
    # A replica that answers for the first time belongs to the new release.
    new = [who["first"] for who in seen["answers"] if who["first"] > started]
    old = [who["asked"] for who in seen["answers"] if who["first"] < started]
    if not new or max(old) > ended:
        sys.exit(f"bench: no new replica took over: {seen['answers']}")
    return Switch(min(new) - started, ended - started, seen["requests"])


def report(what: str, *ran: Switch) -> None:
    answers, ends, _ = (median(values) for values in zip(*ran, strict=True))
    print(
        f"{what:38} {answers:6.1f} s to its first answer, {ends:.1f} s to its end"
        f"   ({len(ran)} times; {sum(one.requests for one in ran)} requests, none failed)",
        flush=True,
    )


def bench() -> None:
    with (
        target(NAME, PORT),
        bystander(OUTSIDER) as outsider,
        tempfile.TemporaryDirectory() as directory,
    ):
        server = Target(NAME, PORT, Pyinfra())
        pyinfra(PORT, "-y", *DATA, "deploy.py")
        for container in (server, outsider):
            container.run(INSTALL)
        outsider.run(f"echo {server.address} {DOMAIN} >> /etc/hosts")
        for replicas in REPLICAS:
            pyinfra(PORT, "-y", *DATA, "--data", f"apps.api.replicas={replicas}", "tasks/app.py")
            throughput(server, outsider, replicas)
        source = Path(directory) / "api"
        shutil.copytree(ROOT / "examples/api", source)
        with (source / ".dockerignore").open("a") as ignored:
            ignored.write("!VERSION\n")
        data = (*DATA, "--data", f"apps.api.source={source}")
        deploy = partial(pyinfra, PORT, "-y", *data, "tasks/app.py")
        deploy()
        made = []
        for number in range(TIMES):
            (source / "VERSION").write_text(f"{number}\n")
            made.append(switch(server, outsider, deploy))
        report("tasks/app.py, other code", *made)
        # --again: a release that was rolled back is made again only on request.
        release, rollback = "terrafirma release api --again", "terrafirma rollback api"
        back, again = [], []
        for _ in range(TIMES):
            back.append(switch(server, outsider, partial(ssh, PORT, rollback)))
            again.append(switch(server, outsider, partial(ssh, PORT, release)))
        report("terrafirma release", *again)
        report("terrafirma rollback", *back)
