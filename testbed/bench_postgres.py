"""PostgreSQL: pgbench with the tuned settings beside PostgreSQL's own defaults, on one target."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from statistics import median
from typing import NamedTuple

from terrafirma.host.facts import Hardware
from terrafirma.postgres import tuning
from testbed.bench_lib import pyinfra, ssh, target

NAME, PORT = "tf-bench-postgres", 2423
SHARE = 2 * 1024 * tuning.MB  # kB for PostgreSQL: much more than its default of 128 MB
SCALE_KB = 15 * 1024  # size of one unit of pgbench's scale, with its index
CLUSTER = "17/main"
CONF = f"/etc/postgresql/{CLUSTER}/conf.d/terrafirma.conf"
PGBENCH = "/usr/lib/postgresql/17/bin/pgbench"
# Prepared statements, as the drivers of applications use them (psycopg 3, asyncpg, JDBC, pgx).
# Otherwise a third of the work would be to parse and plan the same statements again.
ROUNDS, CLIENTS = 3, "-c 8 -j 2 -M prepared"
# After a checkpoint, PostgreSQL writes each page in full to the WAL once. With the default settings
# a round of writes has several checkpoints; with the tuned settings it has fewer than one. Each
# round begins just after a checkpoint, when most of these full pages are written.
MODES = {"read-only": ("-S", 20), "read-write": ("", 120)}


class Round(NamedTuple):
    tps: float
    """Transactions per second; the time includes a checkpoint after them."""
    checkpoints: int
    """Checkpoints during the transactions."""
    wal: float
    """Bytes of WAL for each transaction, which does not depend on how busy the machine is."""


def as_postgres(command: str, stdin: str = "") -> str:
    return ssh(PORT, f"cd / && runuser -u postgres -- {command}", stdin.encode())


def sql(statements: str) -> str:
    return as_postgres("psql -XqAt -v ON_ERROR_STOP=1 bench", statements).strip()


def deploy(percent: int) -> None:
    pyinfra(PORT, "-y", "--data", f"postgres_memory_percent={percent}", "tasks/postgres.py")


def configure(configuration: str, percent: int) -> str:
    """Restart the server with this configuration, and return its shared_buffers."""
    if configuration == "tuned":
        deploy(percent)
    else:
        # PostgreSQL skips files that do not end in .conf, so pg_createcluster's settings are left.
        ssh(PORT, f"if test -e {CONF}; then mv {CONF} {CONF}.aside; fi")
    ssh(PORT, "systemctl restart postgresql@17-main")
    return sql("show shared_buffers")


def measure(mode: str) -> Round:
    """
    One round, which begins without dead rows or dirty pages, and with a full cache.

    The time to write the pages that it leaves dirty counts too: larger buffers put off more.
    """
    option, seconds = MODES[mode]
    sql("truncate pgbench_history; vacuum analyze; checkpoint;")
    sql("select pg_prewarm('pgbench_accounts'), pg_prewarm('pgbench_accounts_pkey')")
    sql("select pg_stat_reset_shared('checkpointer'), pg_stat_reset_shared('wal')")
    output = as_postgres(f"{PGBENCH} -n {option} {CLIENTS} -T {seconds} bench")
    checkpoints, wal, rest = sql(
        "select num_timed + num_requested from pg_stat_checkpointer;"
        "select wal_bytes from pg_stat_wal;"
        "select clock_timestamp() as began \\gset\n"
        "checkpoint;"
        "select extract(epoch from clock_timestamp() - :'began'::timestamptz)"
    ).split()
    found = re.search(
        r"actually processed: (\d+).*^tps = ([0-9.]+)", output, re.DOTALL | re.MULTILINE
    )
    if not found:
        sys.exit(f"bench: pgbench answered {output[-2000:]}")
    done = int(found[1])
    return Round(
        tps=done / (done / float(found[2]) + float(rest)),
        checkpoints=int(checkpoints),
        wal=int(wal) / done,
    )


def share() -> tuple[int, int]:
    """The percentage of the target's memory that is nearest to SHARE, and the same in kB."""
    fact = Hardware()
    known = fact.process(
        ssh(PORT, fact.command("/var/lib/postgresql").get_raw_value()).splitlines()
    )
    # The setting allows 5 to 90; on a small machine, leave a quarter for the rest, as the default.
    percent = min(75, max(5, round(100 * SHARE / known["memory"])))
    return percent, tuning.hardware(known, percent, "").memory


def bench() -> None:
    with target(NAME, PORT):
        percent, memory = share()
        deploy(percent)
        scale = memory // 2 // SCALE_KB
        as_postgres("createdb bench")
        as_postgres(f"{PGBENCH} -i -q -s {scale} bench")
        sql("create extension pg_prewarm")
        rounds: dict[tuple[str, str], list[Round]] = defaultdict(list)
        buffers = {}
        for number in range(ROUNDS):
            # Alternate which goes first, so that neither has newer tables or a quieter machine.
            order = ("default", "tuned") if number % 2 == 0 else ("tuned", "default")
            for configuration in order:
                buffers[configuration] = configure(configuration, percent)
                for mode in MODES:
                    result = measure(mode)
                    rounds[mode, configuration].append(result)
                    print(f"round {number + 1}: {mode}, {configuration}: {result}", file=sys.stderr)
        print(
            f"pgbench, {CLIENTS}, scale {scale}; {memory // tuning.MB} MB are PostgreSQL's; "
            f"shared_buffers: default {buffers['default']}, tuned {buffers['tuned']}"
        )
        for mode in MODES:
            base = median(each.tps for each in rounds[mode, "default"])
            for configuration in ("default", "tuned"):
                report(f"{mode}, {configuration}", rounds[mode, configuration], base)


def report(what: str, rounds: list[Round], base: float) -> None:
    tps = [each.tps for each in rounds]
    print(
        f"{f'pgbench {what}':38} {median(tps):6.0f} tps {median(tps) / base:.2f} of the default"
        f"   ({min(tps):.0f} to {max(tps):.0f};"
        f" checkpoints {' '.join(str(each.checkpoints) for each in rounds)};"
        f" WAL {median(each.wal for each in rounds):.0f} bytes each)",
        flush=True,
    )
