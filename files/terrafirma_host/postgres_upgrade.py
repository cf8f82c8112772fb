"""
Managed by Terrafirma. PostgreSQL's cluster OLD/main moves to the major version NEW, with all its
rows, and back.

    terrafirma postgres-upgrade ACTION OLD NEW

    backup     make a backup with borgmatic where that is set up, else a dump
    create     create NEW/main, empty, with the encoding and locale of OLD/main
    upgrade    check, stop OLD/main, copy, start NEW/main, gather statistics
    recover    start the one of the two that is not set aside
    back       stop NEW/main, start OLD/main as it was
    analyse    gather the planner's statistics of NEW/main
    clean      remove OLD/main, if it is set aside

A drop-in of its systemd unit sets a cluster aside: systemd does not start a unit that has this
file. Renaming the file from one cluster's unit to the other's is the only step that decides which
cluster is the server. So a reboot at any moment starts the right one, and only that.

Configuration, data and workplace are in directories of the account postgres, which could place a
link there for root to follow. So everything there is read, written and removed as postgres.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from terrafirma_host import postgres
from terrafirma_host.postgres import Address, as_postgres, session
from terrafirma_host.shell import Failed, follow, last, locked, run, say, succeeds, write

STATE = Path("/var/lib/terrafirma/upgrade")
WORK = Path("/var/lib/postgresql/terrafirma-upgrade")
BORGMATIC = Path("/etc/borgmatic/config.yaml")
BORGMATIC_UNIT = Path("/etc/systemd/system/borgmatic.service")
LOCK = Path("/run/terrafirma-postgres-upgrade.lock")
SPARE = 1024**3  # bytes that stay free beside the copy
PORT = "50432"  # of a server that only this program connects to
FREE_PORT = "50433"
# The units that may be enabled for a cluster.
UNITS = ("postgresql@{}", "pg_receivewal@{}", "pg_basebackup@{}.timer", "pg_dump@{}.timer")
MARK = """\
# Managed by Terrafirma: commands/postgres_upgrade.py
# This cluster is set aside: systemd does not start it while this file is here.
[Unit]
AssertPathExists=!/
"""


def read(path: Path, **how: Any) -> str:
    return as_postgres("cat", path, **how)


def unconverted(version: str) -> dict[str, str]:
    """A session without conversion of text: a database of SQL_ASCII may hold any bytes."""
    return session(version, "SQL_ASCII")


def files(name: str, *directories: Path) -> list[Path]:
    """Files with this name below the directories, the newest first."""
    how = ("-type", "f", "-name", name, "-printf", "%T@ %p\\n")
    lines = as_postgres("find", *directories, *how, check=False).splitlines()
    return [Path(line.partition(" ")[2]) for line in sorted(lines, reverse=True)]


class Cluster(postgres.Cluster):
    def __init__(self, version: str, cluster: str = "main") -> None:
        super().__init__(version, cluster)
        self.unit = f"postgresql@{version}-{cluster}.service"
        self.drop_ins = Path(f"/etc/systemd/system/{self.unit}.d")
        self.retired = self.drop_ins / "terrafirma-retired.conf"
        self.unfinished = self.drop_ins / "terrafirma-unfinished.conf"
        # Exists until the planner has its statistics.
        self.unanalysed = STATE / f"{version}.unanalysed"

    def exists(self) -> bool:
        return (self.etc / "postgresql.conf").exists()

    def set_aside(self) -> bool:
        return self.retired.exists() or self.unfinished.exists()

    def online(self) -> bool:
        answer = as_postgres("pg_lsclusters", "-h", self.version, self.cluster, check=False)
        return "online" in answer.split()

    def start_conf(self, word: str) -> None:
        path = self.etc / "start.conf"
        lines = read(path).splitlines()
        kept = [line for line in lines if not line.strip() or line.startswith("#")]
        new = path.with_name("start.conf.terrafirma-new")
        as_postgres("tee", new, stdin="\n".join([*kept, word]) + "\n")
        as_postgres("mv", "-fT", new, path)

    def tablespaces(self) -> list[Path]:
        return [Path(os.path.realpath(link)) for link in (self.data / "pg_tblspc").glob("*")]

    def drop(self) -> None:
        """Remove the cluster and its configuration; only a cluster that is set aside."""
        if not self.set_aside():
            raise Failed(f"{self.name} is not set aside: it is not removed")
        if self.online():
            raise Failed(f"{self.name} runs: it is not removed")
        if self.exists():
            refuse_foreign_data(self)
            data = self.data
            for unit in UNITS:
                unit = unit.format(f"{self.version}-{self.cluster}")
                run("systemctl", "disable", "--quiet", "--now", unit, check=False)
            try:
                as_postgres("pg_dropcluster", self.version, self.cluster)
            except Failed:
                # Where postgres does not own the parent directory, an empty one stays: no error.
                if not data.is_dir() or any(data.iterdir()):
                    raise
            run("/usr/share/postgresql-common/pg_updateaptconfig", check=False)
        # pg_dropcluster leaves files that it does not know.
        as_postgres("rm", "-rf", self.etc)
        with suppress(OSError):
            self.etc.parent.rmdir()


def refuse_foreign_data(cluster: Cluster) -> None:
    """Raise Failed if removing a cluster would also remove data of another one or a file system."""
    data = cluster.data
    gone = {Path(os.path.realpath(path)) for path in (cluster.etc, data, data / "pg_wal")}
    for place in cluster.tablespaces():
        gone |= {*place.glob(f"PG_{cluster.version}_*")}

    def check(path: Path | str, what: str) -> None:
        place = Path(os.path.realpath(path))
        if gone & {place, *place.parents}:
            raise Failed(f"{cluster.name} is not removed: {place} {what}; move that first")

    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split()[4])
        if Path(mount) not in gone:
            check(mount, "is a file system of its own")
    for line in as_postgres("pg_lsclusters", "-h").splitlines():
        version, name, _, status = line.split()[:4]
        if (version, name) == (cluster.version, cluster.cluster):
            continue
        other = Cluster(version, name)
        check(other.data, f"holds {other.name}")
        # The other cluster's tablespaces are links, too.
        places = [place for place in (other.etc, other.data) if place.is_dir()]
        links = run("find", *places, "-ignore_readdir_race", "-type", "l", "-print0")
        for link in links.split("\0")[:-1]:
            check(link, f"is in use by {other.name} ({link})")
        if "online" in status.split(","):
            settings = other.ask("select json_object_agg(name, setting) from pg_settings")
            for setting, value in settings.items():
                if str(data) in value or str(cluster.etc) in value:
                    raise Failed(
                        f"{cluster.name} is not removed: {setting} of {other.name} names a "
                        f"directory of it ({value}); change that first"
                    )


def reload() -> None:
    run("systemctl", "daemon-reload")


def start(cluster: Cluster) -> None:
    run("systemctl", "reset-failed", cluster.unit, check=False)
    run("systemctl", "start", cluster.unit)
    for _ in range(600):
        if cluster.online():
            try:
                cluster.sql("select 1")
                return
            except Failed:
                pass
        time.sleep(0.1)
    raise Failed(f"{cluster.name} does not answer: journalctl -u {cluster.unit}")


def stop(cluster: Cluster) -> None:
    run("systemctl", "stop", cluster.unit)
    if cluster.online():
        # The server was started without systemd.
        run(
            *("pg_ctlcluster", "--skip-systemctl-redirect", "-m", "fast"),
            *(cluster.version, "main", "stop"),
        )
    if cluster.online():
        raise Failed(f"{cluster.name} does not stop")


def size(path: Path) -> int:
    # Files come and go below a running server, so ignore errors of du about them.
    words = as_postgres("du", "-skL", path, check=False).splitlines()
    return int(words[-1].split()[0]) * 1024 if words and words[-1].split()[0].isdigit() else 0


def need_room(old: Cluster, new: Cluster) -> None:
    copy = size(old.data) * 11 // 10
    free = shutil.disk_usage(new.data).free
    if not clones(old, new) and free < copy + SPARE:
        raise Failed(
            f"{free / 1e9:.1f} GB are free, {(copy + SPARE) / 1e9:.1f} are needed for the copy"
        )


def warn_of_alter_system(old: Cluster) -> None:
    lines = read(old.data / "postgresql.auto.conf", check=False).splitlines()
    names = [line.partition("=")[0].strip() for line in lines if re.match(r"[a-z]", line)]
    if names:
        say(f"  Set with ALTER SYSTEM, and not taken along: {', '.join(names)} (postgres_settings)")


def clones(old: Cluster, new: Cluster) -> bool:
    """Whether all file systems with data can copy a file by sharing its blocks."""
    try_it = (
        'echo x > "$1.from" && cp --reflink=always "$1.from" "$2.to"; no=$?; '
        'rm -f "$1.from" "$2.to"; exit $no'
    )
    ask = (*postgres.AS_POSTGRES, "sh", "-c", try_it, "sh")
    return all(
        succeeds(*ask, *(one / "terrafirma-clone" for one in pair))
        # Files of a tablespace are copied within the tablespace.
        for pair in ((old.data, new.data), *((place, place) for place in old.tablespaces()))
    )


@contextmanager
def workplace() -> Iterator[None]:
    as_postgres("rm", "-rf", WORK)
    as_postgres("mkdir", "-m", "700", WORK)
    try:
        yield
    finally:
        as_postgres("rm", "-rf", WORK, check=False)


@contextmanager
def alone(cluster: Cluster, *settings: str) -> Iterator[Address]:
    """Run the server of a cluster on a private socket, to which only this program connects."""
    settings = (
        f"config_file={cluster.etc}/postgresql.conf",
        *("listen_addresses=", f"unix_socket_directories={WORK}", f"port={PORT}"),
        *("external_pid_file=", "archive_mode=off", "autovacuum=off", "logging_collector=off"),
        *settings,
    )
    log = WORK / "server.log"
    control = (cluster.programs / "pg_ctl", "-D", cluster.data, "-w", "-t", "600")
    options = " ".join(f"-c {setting}" for setting in settings)
    # With our pipe as its output, the server would keep the pipe open while it runs.
    unheard = ("sh", "-c", 'exec "$@" > /dev/null 2>&1', "sh")
    try:
        as_postgres(*unheard, *control, "-l", log, "-o", options, "start")
    except Failed:
        words = last(read(log, check=False)) or "its log is empty"
        raise Failed(f"{cluster.name} does not start: {words}") from None
    try:
        yield str(WORK), PORT
    finally:
        as_postgres(*control, "-m", "fast", "stop")


def contents(cluster: Cluster, address: Address | None = None) -> dict[str, dict[str, Any]]:
    """Databases with their number of relations by kind, and roles with their verifiers' digests."""
    names = cluster.ask(
        "select json_agg(datname order by datname) from pg_database where datallowconn",
        address=address,
    )
    count = """
        select coalesce(json_object_agg(kind, number order by kind), '{}') from (
            select relkind as kind, count(*) as number from pg_class
            join pg_namespace on pg_namespace.oid = relnamespace
            where nspname !~ '^pg_' and nspname <> 'information_schema'
            group by relkind) as kinds"""
    roles = """
        select json_object_agg(rolname, md5(rolpassword) order by rolname) from pg_authid
        where rolname !~ '^pg_'"""
    return {
        "databases": {name: cluster.ask(count, database=name, address=address) for name in names},
        "roles": cluster.ask(roles, address=address),
    }


def pg_upgrade(old: Cluster, new: Cluster, *options: str, socket: Path | str = WORK) -> None:
    """Run pg_upgrade and show its progress; raises Failed with its last lines and its reports."""
    said = []

    def heard(line: str) -> None:
        line = " ".join(line.split())
        if line.strip("-"):
            said.append(line)
            if line.endswith(" ok") and not line.startswith("Checking"):
                say(f"  {line.removesuffix(' ok')}")

    try:
        follow(
            *(*postgres.AS_POSTGRES, "env", f"--chdir={WORK}"),
            *(new.programs / "pg_upgrade", "-s", socket, "-j", str(os.cpu_count() or 1), *options),
            *("-b", old.programs, "-B", new.programs, "-d", old.data, "-D", new.data),
            *("-o", f"-c config_file={old.etc}/postgresql.conf"),
            *("-O", f"-c config_file={new.etc}/postgresql.conf"),
            heard=heard,
            # pg_upgrade and its programs connect to both servers; the older knows fewer options.
            env=unconverted(old.version),
        )
    except Failed:
        places = (WORK, new.data / "pg_upgrade_output.d")
        reports = files("*.txt", *places)
        words = [f"{path.name}: {last(read(path, check=False))}" for path in sorted(reports)]
        if not reports:
            words = [last(read(path, check=False)) for path in files("*.log", *places)[:1]]
        tail = [line for line in said if not line.endswith(" ok")][-12:]
        raise Failed("\n".join(["pg_upgrade:", *tail, *words])) from None


@contextmanager
def progress(path: Path, total: int) -> Iterator[None]:
    """Show every ten seconds how much has been copied."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(10):
            say(f"  {size(path) / 1e9:.1f} of {total / 1e9:.1f} GB are copied")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def backup(old: Cluster, new: Cluster) -> None:
    if BORGMATIC.exists() and BORGMATIC_UNIT.exists():
        say("Making a backup with borgmatic")
        try:
            run("systemctl", "start", "borgmatic.service")
        except Failed:
            words = last(run("journalctl", "-u", "borgmatic.service", "-n", "8", "-o", "cat"), 8)
            raise Failed(f"the backup failed, nothing was upgraded: {words}") from None
        return
    dump = STATE / f"{old.version}-to-{new.version}.sql.gz"
    say(f"Dumping all databases into {dump}")
    command = old.client("pg_dumpall")
    part = dump.with_suffix(".part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with (
            os.fdopen(descriptor, "wb") as file,
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env={**os.environ, **unconverted(old.version)},
            ) as dumper,
            subprocess.Popen(["gzip", "-c"], stdin=dumper.stdout, stdout=file) as gzip,
        ):  # fmt: skip
            assert dumper.stdout
            assert dumper.stderr
            dumper.stdout.close()
            words = dumper.stderr.read().decode(errors="replace")
            if dumper.wait() or gzip.wait():
                raise Failed(f"the dump failed, nothing was upgraded: {last(words)}")
        part.rename(dump)
    finally:
        part.unlink(missing_ok=True)
    say(f"  {dump.stat().st_size / 1e6:.1f} MB")


def create(old: Cluster, new: Cluster) -> None:
    remove_unfinished(new)
    if new.exists():
        raise Failed(f"there is a cluster {new.name} that no upgrade made")
    known = old.ask("""
        select to_jsonb(d) || jsonb_build_object(
            'encoding', pg_encoding_to_char(d.encoding),
            'checksums', current_setting('data_checksums'),
            'segment', (select setting from pg_settings where name = 'wal_segment_size'))
        from pg_database as d where datname = 'template0'""")
    collate, ctype = known["datcollate"], known["datctype"]
    locale = known.get("datlocale") or known.get("daticulocale")
    initdb = ["--auth-local", "peer", "--auth-host", "scram-sha-256"]
    initdb += ["--wal-segsize", str(int(known["segment"]) // 1024**2)]
    if known["checksums"] == "on":
        initdb.append("--data-checksums")
    elif int(new.version) >= 18:
        initdb.append("--no-data-checksums")
    provider = known.get("datlocprovider", "c")
    if provider == "i":
        initdb += ["--locale-provider", "icu", "--icu-locale", locale]
        if known.get("daticurules"):
            initdb += ["--icu-rules", known["daticurules"]]
    elif provider == "b":
        initdb += ["--locale-provider", "builtin", "--builtin-locale", locale]
    # The mark comes first: after a kill, the next run knows that the cluster is its own.
    write(new.unfinished, MARK)
    reload()
    run(
        *("pg_createcluster", "--encoding", known["encoding"], "--locale", ctype),
        *("--lc-collate", collate, "--lc-ctype", ctype, new.version, "main", "--", *initdb),
    )


def remove_unfinished(new: Cluster) -> None:
    if new.unfinished.exists():
        new.drop()
        new.unfinished.unlink()
        reload()


def upgrade(old: Cluster, new: Cluster) -> None:
    if not new.unfinished.exists() or not new.exists() or old.set_aside():
        raise Failed(f"{new.name} was not made for this upgrade")
    if not old.online():
        raise Failed(f"{old.name} does not run")
    with workplace():
        step = "checking"
        try:
            say(f"Checking that {new.name} starts with its configuration, on a private socket")
            # With little memory, because the old server runs, too.
            with alone(new, "shared_buffers=16MB", "huge_pages=off") as address:
                wrong = new.sql(
                    "select line_number, error from pg_hba_file_rules where error is not null",
                    address=address,
                )
                if wrong:
                    raise Failed(f"{new.etc}/pg_hba.conf: {wrong}")
            say(f"Checking {old.name} with pg_upgrade, while it serves")
            directory, port = old.address()
            pg_upgrade(old, new, "--check", "-p", port, "-P", PORT, socket=directory)
            need_room(old, new)
            warn_of_alter_system(old)
            total = size(old.data)

            step = "copying"
            say(f"Stopping {old.name}")
            stopped = time.monotonic()
            stop(old)
            # Nothing may start the server during the copy: no person, and no package script.
            run("systemctl", "mask", "--runtime", "--quiet", old.unit)
            # Counted after the stop: until then applications could create and drop tables.
            with alone(old) as address:
                wanted = contents(old, address)
            how = ["--clone"] if clones(old, new) else []
            say(f"Copying {total / 1e9:.1f} GB{' by sharing blocks' if how else ''}")
            with progress(new.data, total):
                pg_upgrade(old, new, *how, "-p", PORT, "-P", FREE_PORT)

            step = "comparing"
            say("Comparing databases and roles, on a private socket")
            with alone(new) as address:
                found = contents(new, address)
            for what in wanted:
                for name in {*wanted[what], *found[what]}:
                    before, after = (one[what].get(name, "nothing") for one in (wanted, found))
                    if before != after:
                        raise Failed(f"{what}: {name} was {before}, is {after}")

            step = "starting"
            say(f"Starting {new.name}")
            switch(old, new)
            say(f"{new.name} serves; PostgreSQL was down for {time.monotonic() - stopped:.1f} s")
        except (Failed, OSError, ValueError, IndexError) as error:
            raise Failed(f"{step}: {error}") from error
        # pg_upgrade writes this file where there is something to update.
        if files("update_extensions.sql", WORK):
            update_extensions(new, read(WORK / "update_extensions.sql"))
    analyse(old, new)


def switch(old: Cluster, new: Cluster) -> None:
    """Make the new cluster the server; if it does not start, everything is as before."""
    STATE.mkdir(mode=0o700, parents=True, exist_ok=True)
    new.unanalysed.touch()
    new.start_conf("auto")
    new.unfinished.rename(old.retired)
    run("systemctl", "unmask", "--runtime", "--quiet", old.unit)
    reload()
    try:
        start(new)
    except Failed:
        run("systemctl", "stop", new.unit, check=False)
        old.retired.rename(new.unfinished)
        new.unanalysed.unlink()
        reload()
        raise
    retire(old)
    point_backups(old, new)


def retire(cluster: Cluster) -> None:
    cluster.start_conf("disabled")
    run("systemctl", "disable", "--quiet", cluster.unit, check=False)
    reload()


def point_backups(before: Cluster, after: Cluster) -> None:
    """Name the new cluster in borgmatic's configuration, as the next run of tasks/borg.py would."""
    if not BORGMATIC.exists():
        return
    text = BORGMATIC.read_text()
    changed = text.replace(f"--cluster {before.name}", f"--cluster {after.name}")
    if changed != text and "anaged by Terrafirma" in text:
        write(BORGMATIC, changed, 0o600)


def update_extensions(new: Cluster, sql: str) -> None:
    say("Updating extensions")
    try:
        words = ("-Xq", "-v", "ON_ERROR_STOP=0", "-d", "postgres")
        run(*new.client("psql", *words), stdin=sql, env=session(new.version))
    except Failed as error:
        say(f"  {error}")


def analyse(old: Cluster, new: Cluster) -> None:
    def heard(line: str) -> None:
        # Warnings of the server are left out: `warn_of_order` reports once.
        if line.startswith("vacuumdb:"):
            say(f"  {line.removeprefix('vacuumdb: ').removeprefix('processing ')}")

    say("Gathering the planner's statistics")
    # From 18 on pg_upgrade copies most statistics: gather the missing ones first, then all.
    steps = (
        [["--analyze-in-stages"]]
        if int(new.version) < 18
        else [["--analyze-in-stages", "--missing-stats-only"], ["--analyze-only"]]
    )
    for step in steps:
        try:
            follow(
                *new.client("vacuumdb", "--all", *step, "-j", str(os.cpu_count() or 1)),
                heard=heard,
                env=unconverted(new.version),
            )
        except Failed as error:
            raise Failed(f"statistics: {error}") from None
    new.unanalysed.unlink(missing_ok=True)
    warn_of_order(new)


def warn_of_order(cluster: Cluster) -> None:
    """Warn of databases whose text the system now sorts otherwise: their indexes may be wrong."""
    if int(cluster.version) < 15:
        return
    names = cluster.ask("""
        select coalesce(json_agg(datname), '[]') from pg_database
        where datcollversion <> pg_database_collation_actual_version(oid)""")
    for name in names:
        say(
            f"Database {name}: the system sorts text by newer rules than its indexes. Rebuild them "
            f"(reindexdb --concurrently {name}), then: alter database ... refresh collation version"
        )


def back(old: Cluster, new: Cluster) -> None:
    if not old.retired.exists() or not old.exists() or new.set_aside():
        raise Failed(f"{new.name} was not upgraded from {old.name}, so there is no way back")
    say(f"Stopping {new.name}")
    stop(new)
    say(f"Starting {old.name}")
    old.start_conf("auto")
    old.retired.rename(new.retired)
    reload()
    try:
        start(old)
    except Failed:
        run("systemctl", "stop", old.unit, check=False)
        new.retired.rename(old.retired)
        old.start_conf("disabled")
        reload()
        raise
    retire(new)
    new.unanalysed.unlink(missing_ok=True)
    point_backups(new, old)
    say(f"{old.name} serves")


def recover(old: Cluster, new: Cluster) -> None:
    """After a failure, start the cluster that is not set aside; after success, do nothing."""
    live = new if old.set_aside() else old
    run("systemctl", "unmask", "--runtime", "--quiet", old.unit, check=False)
    if live.exists() and not live.online():
        say(f"Starting {live.name} again")
        start(live)
        say(f"{live.name} serves as before")
    away = old if live is new else new
    if away.retired.exists() and os.environ.get("SERVICE_RESULT", "") != "success":
        # The upgrade may have ended after the rename and before these two steps.
        retire(away)
        point_backups(away, live)
    if new.unfinished.exists() and os.environ.get("SERVICE_RESULT", "") != "success":
        remove_unfinished(new)
        say(f"{new.name}, which was not in use yet, is removed")
    as_postgres("rm", "-rf", WORK, check=False)


def clean(old: Cluster, new: Cluster) -> None:
    if not old.retired.exists():
        raise Failed(f"{old.name} is not set aside: it is not removed")
    if not any(
        "online" in line.split()[3] for line in as_postgres("pg_lsclusters", "-h").splitlines()
    ):
        raise Failed(f"no server runs: {old.name} may be all that is left, and is not removed")
    old.drop()
    shutil.rmtree(old.drop_ins)
    reload()


ACTIONS = {
    one.__name__: one for one in (backup, create, upgrade, recover, back, analyse, clean)
}  # fmt: skip


def main(words: Sequence[str]) -> None:
    action, *versions = words or [""]
    right = [version for version in versions if re.fullmatch(r"[0-9]+", version)]
    if action not in ACTIONS or len(right) != 2 or right != versions:
        sys.exit(__doc__)
    # Drop-ins for systemd are readable for all.
    os.umask(0o022)
    # systemd ends this program with SIGTERM; private servers are stopped on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Only one upgrade at a time. A recovery runs without the lock, after its upgrade has ended.
    recovery = action == "recover"
    alone = locked(LOCK, lambda: Failed("another upgrade is going on"))
    try:
        with nullcontext() if recovery else alone:
            ACTIONS[action](*map(Cluster, versions))
    except Failed as error:
        say(f"failed: {error}")
        sys.exit(1)
    except (OSError, ValueError, IndexError) as error:
        # An unexpected error: the traceback tells where it happened.
        say(f"failed: {error!r}")
        traceback.print_exc()
        sys.exit(1)
    except KeyboardInterrupt:
        say("failed: stopped from outside")
        sys.exit(1)
    if not recovery:
        say("finished")
