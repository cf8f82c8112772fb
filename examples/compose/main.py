"""An application around Redis: `web` accepts jobs, `worker` does them, `migrate` prepares Redis."""

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
SCHEMA = 1  # the version of the data that this code needs
WHO = {
    "release": os.environ.get("TERRAFIRMA_RELEASE", ""),
    "replica": socket.gethostname(),
}

# With a timeout, so that callers do not hang when Redis hangs.
store = redis.asyncio.from_url(URL, decode_responses=True, socket_timeout=5)


async def index(request: Request) -> JSONResponse:
    """A POST adds a job; every answer has the numbers of jobs, and the releases that migrated."""
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
    """Healthy if Redis answers, and `migrate` has prepared it for this version."""
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
    """Do one job after the other; at SIGTERM, finish the current one and end."""
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
    """Prepare Redis. Repeated runs do no harm; each is recorded."""
    there = redis.from_url(URL, socket_timeout=5)
    there.set("schema", SCHEMA)
    there.rpush("migrations", WHO["release"])


if __name__ == "__main__":
    {"web": web, "worker": worker, "migrate": migrate}[sys.argv[1]]()
