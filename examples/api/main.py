"""An API that reads and writes a row in PostgreSQL and tells which replica answered."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

REPLICA = socket.gethostname()
# A file, not a variable of the environment: `docker inspect` does not show it.
DATABASE_URL = Path("/run/secrets/database_url").read_text().strip()

pool = AsyncConnectionPool(
    DATABASE_URL,
    min_size=1,
    max_size=5,
    timeout=5,
    open=False,
    # A longer outage must not make it wait longer and longer between two tries.
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
    """Write a row, then tell who answered and how many rows there are."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "insert into visits (replica) values (%s) returning id", [REPLICA]
        )
        (row,) = await cursor.fetchone()
        cursor = await connection.execute("select count(*) from visits")
        (visits,) = await cursor.fetchone()
    return JSONResponse({"replica": REPLICA, "row": row, "visits": visits})


async def visit(request: Request) -> JSONResponse:
    """Read one row, whichever replica wrote it."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "select id, replica from visits where id = %s", [request.path_params["row"]]
        )
        found = await cursor.fetchone()
    if found is None:
        return JSONResponse({"error": "no such row"}, status_code=404)
    return JSONResponse({"replica": REPLICA, "row": found[0], "written_by": found[1]})


async def health(_: Request) -> JSONResponse:
    """Healthy means: this replica reads from the database."""
    async with pool.connection() as connection:
        await connection.execute("select 1")
    return JSONResponse({"replica": REPLICA, "healthy": True})


app = Starlette(
    routes=[
        Route("/", index),
        Route("/visits/{row:int}", visit),
        Route("/healthz", health),
    ],
    lifespan=lifespan,
)
