"""Around a Redis: `web` takes jobs, `worker` does them, `migrate` prepares the store."""

import os
import signal
import socket
import sys

import redis
import redis.asyncio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

URL = os.environ.get("REDIS_URL", "redis://redis:6379/0")
SCHEMA = 1  # what this version expects to find
WHO = {
    "release": os.environ.get("TERRAFIRMA_RELEASE", ""),
    "replica": socket.gethostname(),
}

# A store that hangs must not hang its callers.
store = redis.asyncio.from_url(URL, decode_responses=True, socket_timeout=5)


async def index(request: Request) -> JSONResponse:
    """A POST adds a job; both tell how many were added and done, and which releases migrated."""
    if request.method == "POST":
        await store.rpush("jobs", WHO["replica"])
        await store.incr("added")
    added, done = await store.mget("added", "done")
    migrations = await store.lrange("migrations", 0, -1)
    return JSONResponse(
        {**WHO, "added": int(added or 0), "done": int(done or 0), "migrations": migrations}
    )


async def whoami(_: Request) -> JSONResponse:
    return JSONResponse(WHO)


async def health(_: Request) -> JSONResponse:
    """Healthy means: the store answers, and has what this version expects."""
    ready = await store.get("schema") == str(SCHEMA)
    return JSONResponse({**WHO, "healthy": ready}, status_code=200 if ready else 503)


app = Starlette(
    routes=[
        Route("/", index, methods=["GET", "POST"]),
        Route("/whoami", whoami, methods=["GET", "POST"]),
        Route("/healthz", health),
    ]
)


def web() -> None:
    uvicorn.run(app, host="0.0.0.0", port=8000, access_log=False)


def worker() -> None:
    """One job after the other; at SIGTERM the present one is finished."""
    going = True

    def stop(*_: object) -> None:
        nonlocal going
        going = False

    signal.signal(signal.SIGTERM, stop)
    queue = redis.from_url(URL, socket_timeout=5)
    while going:
        if queue.blpop("jobs", timeout=1):
            queue.incr("done")


def migrate() -> None:
    """Once or ten times: the result is the same, but each run leaves a trace."""
    there = redis.from_url(URL, socket_timeout=5)
    there.set("schema", SCHEMA)
    there.rpush("migrations", WHO["release"])


if __name__ == "__main__":
    {"web": web, "worker": worker, "migrate": migrate}[sys.argv[1]]()
