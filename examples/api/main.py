"""An API that writes and reads rows in PostgreSQL; its answers name the replica."""

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

WHO = {
    "release": os.environ.get("TERRAFIRMA_RELEASE", ""),
    "replica": socket.gethostname(),
}
# In a file instead of an environment variable, so that `docker inspect` does not show it.
DATABASE_URL = Path("/run/secrets/database_url").read_text().strip()

pool = AsyncConnectionPool(
    DATABASE_URL,
    min_size=1,
    max_size=5,
    timeout=5,
    open=False,
    # Keeps the pauses between attempts short after a long outage.
    reconnect_timeout=10,
    # After a restart of the server the next request gets a fresh connection, not an error.
    check=AsyncConnectionPool.check_connection,
)

# The lock keeps replicas that start together from creating the table twice.
SCHEMA = """
select pg_advisory_xact_lock(1);
create table if not exists visits (
    id bigint generated always as identity primary key,
    replica text not null,
    at timestamptz not null default now()
);
"""


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    await pool.open(wait=True, timeout=60)
    async with pool.connection() as connection:
        await connection.execute(SCHEMA)
    yield
    await pool.close()


async def index(_: Request) -> JSONResponse:
    """Write a row; the answer has the replica and the number of rows."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "insert into visits (replica) values (%s) returning id", [WHO["replica"]]
        )
        (row,) = await cursor.fetchone()
        cursor = await connection.execute("select count(*) from visits")
        (visits,) = await cursor.fetchone()
    return JSONResponse({**WHO, "row": row, "visits": visits})


async def visit(request: Request) -> JSONResponse:
    """Read one row, which any replica may have written."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "select id, replica from visits where id = %s", [request.path_params["row"]]
        )
        found = await cursor.fetchone()
    if found is None:
        return JSONResponse({"error": "no such row"}, status_code=404)
    return JSONResponse({**WHO, "row": found[0], "written_by": found[1]})


async def health(_: Request) -> JSONResponse:
    """Healthy if this replica can read from the database."""
    async with pool.connection() as connection:
        await connection.execute("select 1")
    return JSONResponse({**WHO, "healthy": True})


async def whoami(_: Request) -> JSONResponse:
    """Name the replica, without asking the database."""
    return JSONResponse(WHO)


async def slow(request: Request) -> JSONResponse:
    """Name the replica after some seconds."""
    seconds = float(request.query_params.get("seconds", 5))
    await asyncio.sleep(seconds)
    return JSONResponse({**WHO, "seconds": seconds})


async def events(_: Request) -> StreamingResponse:
    """Server-sent events, two each second, until the client leaves or the server stops."""

    async def stream() -> AsyncIterator[str]:
        while not server.should_exit:
            yield f"data: {json.dumps(WHO)}\n\n"
            await asyncio.sleep(0.5)

    headers = {"Cache-Control": "no-store"}
    return StreamingResponse(stream(), media_type="text/event-stream", headers=headers)


async def echo(websocket: WebSocket) -> None:
    """Send each message of a client back."""
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


app = Starlette(
    routes=[
        Route("/", index, methods=["GET", "POST"]),
        Route("/visits/{row:int}", visit),
        Route("/healthz", health),
        Route("/whoami", whoami, methods=["GET", "POST"]),
        Route("/slow", slow),
        Route("/events", events),
        WebSocketRoute("/ws", echo),
    ],
    lifespan=lifespan,
)

# At SIGTERM the server accepts no new connections, finishes requests under way, closes WebSockets
# with a close frame, and ends.
server = uvicorn.Server(uvicorn.Config(app, host="0.0.0.0", port=8000, access_log=False))

if __name__ == "__main__":
    server.run()
