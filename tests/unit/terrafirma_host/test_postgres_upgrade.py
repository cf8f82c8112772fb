"""The upgrade of a cluster: which cluster is the server, at each step and after each failure."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from terrafirma_host import postgres
from terrafirma_host import postgres_upgrade as program
from terrafirma_host.shell import Failed, run

from terrafirma.postgres.facts import PSQL_OPTIONS
from tests.unit.programs import terrafirma


class Server:
    """A host whose clusters are directories, and whose systemd starts clusters not set aside."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.known = program.Cluster
        self.running: set[str] = set()
        self.broken: set[str] = set()
        self.settings: dict[str, str] = {}
        self.clusters: dict[str, Any] = {}

    def cluster(self, version: str, start: str = "auto") -> Any:
        one: Any = self.known(version)
        one.etc = self.directory / "etc" / version
        one.drop_ins = self.directory / "drop-ins" / version
        one.retired = one.drop_ins / "terrafirma-retired.conf"
        one.unfinished = one.drop_ins / "terrafirma-unfinished.conf"
        one.unanalysed = self.directory / f"{version}.unanalysed"
        one.online = lambda: one.name in self.running
        one.sql = lambda *_, **__: json.dumps(self.settings)
        one.etc.mkdir(parents=True)
        one.drop_ins.mkdir(parents=True)
        (one.etc / "postgresql.conf").touch()
        (one.etc / "start.conf").write_text(f"# Automatic startup\n\n{start}\n")
        (self.data(version) / "pg_tblspc").mkdir(parents=True)
        (self.data(version) / "pg_wal").mkdir()
        self.clusters[one.unit] = one
        return one

    def data(self, version: str) -> Path:
        return self.directory / "data" / version / "main"

    def tablespace(self, version: str, place: Path) -> None:
        """A tablespace of that cluster with a file in it, as PostgreSQL makes them."""
        place.mkdir(exist_ok=True)
        (self.data(version) / "pg_tblspc" / "16400").symlink_to(place)
        (place / f"PG_{version}_202209061").mkdir()
        (place / f"PG_{version}_202209061" / "rows").touch()

    def run(self, *command: Any, check: bool = True, stdin: str = "", **_: Any) -> str:
        words = [str(word) for word in command]
        # In the test one account owns both.
        if words[:4] == ["runuser", "-u", "postgres", "--"]:
            words = words[4:]
        if words[0] in ("cat", "find", "rm", "tee", "mv", "mkdir"):
            return run(*words, check=check, stdin=stdin)
        if words[0] == "pg_conftool":
            return f"{self.data(words[2])}\n"
        if words[0] == "pg_lsclusters":
            states = {one.name: "online" if one.name in self.running else "down"
                      for one in self.clusters.values() if one.exists()}  # fmt: skip
            return "".join(f"{name.replace('/', ' ')} 5432 {states[name]}\n" for name in states)
        one: Any = self.clusters.get(words[-1])
        if words[:2] == ["systemctl", "start"]:
            if one.set_aside() or one.name in self.broken:
                raise Failed("assertion failed")
            self.running.add(one.name)
        elif words[:2] == ["systemctl", "stop"]:
            self.running.discard(one.name)
        elif words[0] == "pg_dropcluster":
            for place in (self.data(words[1]) / "pg_tblspc").iterdir():
                shutil.rmtree(place.resolve() / f"PG_{words[1]}_202209061")
            shutil.rmtree(self.data(words[1]))
            (self.clusters[f"postgresql@{words[1]}-main.service"].etc / "postgresql.conf").unlink()
        return ""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    one = Server(tmp_path)
    for module in (program, postgres):
        monkeypatch.setattr(module, "run", one.run)
    monkeypatch.setattr(
        program,
        "Cluster",
        lambda version, name: one.clusters[f"postgresql@{version}-{name}.service"],
    )
    monkeypatch.setattr(program, "STATE", tmp_path / "state")
    monkeypatch.setattr(program, "WORK", tmp_path / "work")
    monkeypatch.setattr(program, "BORGMATIC", tmp_path / "config.yaml")
    monkeypatch.delenv("SERVICE_RESULT", raising=False)
    return one


def start_conf(cluster: Any) -> str:
    return str((cluster.etc / "start.conf").read_text()).split()[-1]


@pytest.fixture
def half_way(server: Server) -> tuple[Any, Any]:
    """The new cluster is complete, and no server runs."""
    old, new = server.cluster("15"), server.cluster("17")
    new.unfinished.write_text(program.MARK)
    return old, new


def test_runs_without_any_package_of_ours() -> None:
    for words in (["explain", "15", "17"], ["upgrade"], ["upgrade", "15", "../17"]):
        result = terrafirma("postgres-upgrade", *words)
        assert result.returncode == 1
        assert "terrafirma postgres-upgrade ACTION OLD NEW" in result.stderr


def test_the_new_one_serves_after_the_switch(server: Server, half_way: tuple[Any, Any]) -> None:
    old, new = half_way
    config = server.directory / "config.yaml"
    config.write_text("# Managed by Terrafirma: x\n- pg_dump --cluster 15/main\n")
    program.switch(old, new)
    assert server.running == {"17/main"}
    assert (old.set_aside(), new.set_aside()) == (True, False)
    assert (start_conf(old), start_conf(new)) == ("disabled", "auto")
    assert new.unanalysed.exists()
    assert config.read_text() == "# Managed by Terrafirma: x\n- pg_dump --cluster 17/main\n"
    assert config.stat().st_mode & 0o777 == 0o600


def test_a_failed_switch_changes_nothing(server: Server, half_way: tuple[Any, Any]) -> None:
    old, new = half_way
    server.broken.add("17/main")
    with pytest.raises(Failed):
        program.switch(old, new)
    assert (old.set_aside(), new.set_aside()) == (False, True)
    assert start_conf(old) == "auto"
    program.recover(old, new)
    assert server.running == {"15/main"}
    assert not new.exists()
    assert not new.set_aside()


def test_changes_until_the_stop_are_no_difference(
    server: Server, half_way: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An application can make tables until the server stops."""
    old, new = half_way
    server.running.add("15/main")
    old.address = lambda: ("/run", "5432")
    new.sql = lambda *_, **__: ""
    tables = [1]

    @contextmanager
    def alone(cluster: Any, *_: str) -> Iterator[tuple[str, str]]:
        yield "/alone", cluster.name

    def contents(cluster: Any, address: tuple[str, str] | None = None) -> dict[str, Any]:
        assert address in (None, ("/alone", cluster.name))
        return {"databases": {"api": {"r": tables[0]}}, "roles": {}}

    def stop(cluster: Any) -> None:
        tables[0] += 1
        server.running.discard(cluster.name)

    for name, function in (("alone", alone), ("contents", contents), ("stop", stop)):
        monkeypatch.setattr(program, name, function)
    monkeypatch.setattr(program, "pg_upgrade", lambda *_, **__: None)
    monkeypatch.setattr(program, "clones", lambda *_: True)
    monkeypatch.setattr(program, "analyse", lambda *_: None)
    program.upgrade(old, new)
    assert server.running == {"17/main"}
    assert (old.set_aside(), new.set_aside()) == (True, False)


@pytest.mark.parametrize("result", ["exit-code", "signal", "oom-kill", ""])
def test_an_upgrade_that_ends_before_the_switch_leaves_the_old_one_serving(
    server: Server, half_way: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, result: str
) -> None:
    old, new = half_way
    monkeypatch.setenv("SERVICE_RESULT", result)
    program.recover(old, new)
    assert server.running == {"15/main"}
    assert (old.exists(), new.exists()) == (True, False)


def test_a_kill_after_the_switch_goes_on_with_the_new_one(
    server: Server, half_way: tuple[Any, Any]
) -> None:
    old, new = half_way
    config = server.directory / "config.yaml"
    config.write_text("# Managed by Terrafirma: x\n- pg_dump --cluster 15/main\n")
    new.unfinished.rename(old.retired)
    # A second recovery changes nothing.
    for _ in range(2):
        program.recover(old, new)
        assert server.running == {"17/main"}
        assert old.exists()
        assert (start_conf(old), start_conf(new)) == ("disabled", "auto")
        assert config.read_text() == "# Managed by Terrafirma: x\n- pg_dump --cluster 17/main\n"


def test_a_kill_on_the_way_back_goes_on_with_the_old_one(
    server: Server, half_way: tuple[Any, Any]
) -> None:
    old, new = half_way
    program.switch(old, new)
    config = server.directory / "config.yaml"
    config.write_text("# Managed by Terrafirma: x\n- pg_dump --cluster 17/main\n")
    server.running.clear()
    old.start_conf("auto")
    old.retired.rename(new.retired)
    program.recover(old, new)
    assert server.running == {"15/main"}
    assert (start_conf(old), start_conf(new)) == ("auto", "disabled")
    assert config.read_text() == "# Managed by Terrafirma: x\n- pg_dump --cluster 15/main\n"


def test_after_success_nothing_is_recovered(
    server: Server, half_way: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup may run while the cluster of an earlier run still exists."""
    old, new = half_way
    server.running.add("15/main")
    monkeypatch.setenv("SERVICE_RESULT", "success")
    program.recover(old, new)
    assert (server.running, new.exists()) == ({"15/main"}, True)


def test_back_and_the_way_back_that_fails(server: Server, half_way: tuple[Any, Any]) -> None:
    old, new = half_way
    program.switch(old, new)
    server.broken.add("15/main")
    with pytest.raises(Failed):
        program.back(old, new)
    program.recover(old, new)
    assert server.running == {"17/main"}
    assert (old.set_aside(), start_conf(old)) == (True, "disabled")
    server.broken.clear()
    program.back(old, new)
    assert server.running == {"15/main"}
    assert (old.set_aside(), new.set_aside()) == (False, True)
    assert (start_conf(old), start_conf(new)) == ("auto", "disabled")


def refused(server: Server, action: Callable[..., None], old: Any, new: Any) -> None:
    before = (set(server.running), old.exists(), new.exists(), old.set_aside(), new.set_aside())
    with pytest.raises(Failed):
        action(old, new)
    assert before == (
        *(set(server.running), old.exists(), new.exists()),
        *(old.set_aside(), new.set_aside()),
    )


def test_nothing_that_is_in_use_is_removed_or_replaced(server: Server) -> None:
    old, new = server.cluster("15"), server.cluster("17")
    server.running.add("15/main")
    for action in ("clean", "create", "upgrade", "back"):
        refused(server, getattr(program, action), old, new)
    old.retired.touch()
    # Set aside, and started by hand.
    refused(server, program.clean, old, new)
    server.running.clear()
    # Then the old cluster may be all that is left.
    refused(server, program.clean, old, new)
    server.running.add("17/main")
    program.clean(old, new)
    assert (old.exists(), old.drop_ins.exists(), new.exists()) == (False, False, True)


def test_a_cluster_with_an_interrupted_creation_is_removed(
    server: Server, half_way: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its configuration does not name the data directory yet."""
    old, new = half_way
    really = server.data
    known = server.run

    def silent(*command: Any, **how: Any) -> Any:
        return "" if {"pg_conftool", "17"} <= {*command} else known(*command, **how)

    monkeypatch.setattr(postgres, "run", silent)
    assert str(new.data) == "/var/lib/postgresql/17/main"
    assert old.data == really("15")
    program.recover(old, new)
    assert (server.running, new.exists(), new.set_aside()) == ({"15/main"}, False, False)


@pytest.fixture
def retired(server: Server, half_way: tuple[Any, Any]) -> tuple[Any, Any]:
    """The new cluster serves, the old one is kept."""
    program.switch(*half_way)
    return half_way


def test_with_a_cluster_only_its_own_part_of_a_tablespace_is_removed(
    server: Server, retired: tuple[Any, Any]
) -> None:
    old, new = retired
    for version in ("15", "17"):
        server.tablespace(version, server.directory / "far")
    program.clean(old, old)
    assert (old.exists(), new.exists()) == (False, True)
    assert not server.data("15").exists()
    assert [path.name for path in (server.directory / "far").iterdir()] == ["PG_17_202209061"]


# Links with their targets; the message.
USES: dict[str, tuple[dict[str, str], str]] = {
    "a tablespace of the new one": (
        {"{new}/pg_tblspc/16400": "{old}/far"},
        "far is in use by 17/main",
    ),
    "a tablespace in the part of another that goes": (
        {
            "{old}/pg_tblspc/16400": "{root}/far",
            "{new}/pg_tblspc/16400": "{root}/far/PG_15_202209061/x",
        },
        "PG_15_202209061/x is in use by 17/main",
    ),
    "a link of the new one": (
        {"{new}/server.key": "{old}/server.key"},
        "server.key is in use by 17/main",
    ),
    "a link by way of another": (
        {"{root}/way": "{old}", "{new}/deep": "{root}/way/deep"},
        "deep is in use by 17/main",
    ),
    "a link of its configuration": (
        {"{root}/etc/17/pg_ident.conf": "{old}/pg_ident.conf"},
        "pg_ident.conf is in use by 17/main",
    ),
    "a log below the old one's": (
        {"{old}/pg_wal": "{root}/wal", "{new}/pg_wal": "{root}/wal/17"},
        "wal/17 is in use by 17/main",
    ),
    "a link to its configuration": (
        {"{new}/server.crt": "{root}/etc/15/server.crt"},
        "server.crt is in use by 17/main",
    ),
    "all of it": ({"{new}": "{old}"}, "15/main holds 17/main"),
}


@pytest.mark.parametrize("use", USES)
def test_a_cluster_with_what_another_one_uses_is_not_removed(
    server: Server, retired: tuple[Any, Any], use: str
) -> None:
    links, words = USES[use]
    places = {"old": server.data("15"), "new": server.data("17"), "root": server.directory}
    for link, target in links.items():
        one, other = (Path(text.format(**places)) for text in (link, target))
        other.mkdir(parents=True, exist_ok=True)
        if one.exists():
            shutil.rmtree(one)
        one.symlink_to(other)
    says_why(server, *retired, words)


@pytest.mark.parametrize("place", ["data/15/main", "etc/15"])
def test_a_cluster_that_a_setting_of_another_one_names_is_not_removed(
    server: Server, retired: tuple[Any, Any], place: str
) -> None:
    server.settings["archive_command"] = f"cp %p {server.directory / place}/archive/%f"
    says_why(server, *retired, "archive_command of 17/main names a directory of it")


def says_why(server: Server, old: Any, new: Any, words: str) -> None:
    refused(server, program.clean, old, new)
    with pytest.raises(Failed) as refusal:
        program.clean(old, new)
    assert re.match(r"15/main is not removed: [^\n]*; \w+ that first$", str(refusal.value))
    assert words in str(refusal.value)
    assert server.data("15").exists()


def test_a_cluster_with_another_file_system_in_it_is_not_removed(
    server: Server, retired: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A test cannot mount, so it replaces the kernel's list of mounts.
    place = next(
        line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if line.split()[4].count("/") > 1
    )  # fmt: skip
    old, _ = retired
    monkeypatch.setattr(type(old), "data", Path(place).parent)
    with pytest.raises(Failed, match="is a file system of its own"):
        program.refuse_foreign_data(old)


def test_a_configuration_that_is_not_ours_is_left_alone(
    server: Server, half_way: tuple[Any, Any]
) -> None:
    config = server.directory / "config.yaml"
    config.write_text("- pg_dump --cluster 15/main\n")
    program.point_backups(*half_way)
    assert config.read_text() == "- pg_dump --cluster 15/main\n"


def test_a_warning_is_not_part_of_an_answer() -> None:
    """A server whose system sorts text otherwise warns each client."""
    assert run("sh", "-c", "echo '[1]'; echo 'WARNING:  collation' >&2") == "[1]\n"
    with pytest.raises(Failed, match=r"^sh: no room$"):
        run("sh", "-c", "echo no room >&2; exit 1")


def test_the_mark_is_one_that_systemd_reads() -> None:
    assert "\n[Unit]\nAssertPathExists=!/\n" in program.MARK


# Few file systems share blocks: here all do, except between two of them and on the slow one.
CP = """\
#!/bin/sh
test "$1" = --reflink=always || exit 1
case "$2 $3" in *slow*) exit 1 ;; esac
exec /bin/cp "$2" "$3"
"""


@pytest.mark.parametrize(
    ("old_data", "new_data", "tablespaces", "shared"),
    [
        ("fast/old", "fast/new", [], True),
        ("fast/old", "fast/new", ["fast"], True),
        ("slow/old", "fast/new", [], False),
        ("fast/old", "slow/new", [], False),
        ("fast/old", "fast/new", ["fast", "slow"], False),
    ],
)
def test_blocks_are_shared_only_where_all_file_systems_can(
    server: Server, monkeypatch: pytest.MonkeyPatch, *,
    old_data: str, new_data: str, tablespaces: list[str], shared: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(postgres, "AS_POSTGRES", ())
    (server.directory / "cp").write_text(CP)
    (server.directory / "cp").chmod(0o755)
    monkeypatch.setenv("PATH", f"{server.directory}:{os.environ['PATH']}")
    old, new = server.cluster("15"), server.cluster("17")
    places = {"15": server.directory / old_data, "17": server.directory / new_data}
    for place in places.values():
        (place / "pg_tblspc").mkdir(parents=True)
    monkeypatch.setattr(server, "data", places.get)
    for name in tablespaces:
        (server.directory / name).mkdir(exist_ok=True)
        (places["15"] / "pg_tblspc" / name).symlink_to(server.directory / name)
    assert program.clones(old, new) is shared
    assert list(server.directory.glob("**/terrafirma-clone*")) == []


VACUUMDB = """\
#!/bin/sh
echo "$*" >> "$0.said"
echo "$PGOPTIONS" >> "$0.options"
echo 'vacuumdb: processing database "api": Generating minimal optimizer statistics'
"""


@pytest.mark.parametrize(
    ("version", "steps"),
    [
        ("17", ["--all --analyze-in-stages"]),
        ("18", ["--all --analyze-in-stages --missing-stats-only", "--all --analyze-only"]),
    ],
)
def test_statistics_that_came_along_are_not_gathered_twice(
    server: Server, monkeypatch: pytest.MonkeyPatch, version: str, steps: list[str]
) -> None:
    monkeypatch.setattr(postgres, "AS_POSTGRES", ())
    one = server.cluster(version)
    one.programs = server.directory
    one.address = lambda: ("/run", "5432")
    one.ask = lambda *_: []
    one.unanalysed.touch()
    (server.directory / "vacuumdb").write_text(VACUUMDB)
    (server.directory / "vacuumdb").chmod(0o755)
    program.analyse(one, one)
    said = (server.directory / "vacuumdb.said").read_text().splitlines()
    assert [line.partition(" -j ")[0] for line in said] == steps
    assert not one.unanalysed.exists()
    for options in (server.directory / "vacuumdb.options").read_text().splitlines():
        assert named(PSQL_OPTIONS) <= named(options)


def named(options: str) -> set[str]:
    """The names of a session's settings."""
    words = options.split()
    assert words[::2] == ["-c"] * (len(words) // 2)
    return {word.partition("=")[0] for word in words[1::2]}


def test_sessions_of_an_upgrade_have_all_settings_of_ours() -> None:
    assert set(PSQL_OPTIONS.split()) <= set(postgres.OPTIONS.split())
    for version, timeout in (("15", False), ("16", False), ("17", True), ("18", True)):
        for environment in (postgres.session(version), program.unconverted(version)):
            assert named(postgres.OPTIONS) <= named(environment["PGOPTIONS"])
            # A server that does not know the option would refuse the session.
            assert ("transaction_timeout" in named(environment["PGOPTIONS"])) is timeout


def test_pg_upgrade_and_pg_dumpall_run_in_such_sessions(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both servers must know all options, so they are those of the older one."""
    monkeypatch.setattr(postgres, "AS_POSTGRES", ())
    program.WORK.mkdir()
    program.STATE.mkdir()
    old, new = server.cluster("15"), server.cluster("17")
    old.address = lambda: ("/run", "5432")
    for one in (old, new):
        one.programs = server.directory
    for name in ("pg_upgrade", "pg_dumpall"):
        (server.directory / name).write_text(VACUUMDB)
        (server.directory / name).chmod(0o755)
    program.pg_upgrade(old, new, "--check")
    program.backup(old, new)
    for name in ("pg_upgrade", "pg_dumpall"):
        options = (server.directory / f"{name}.options").read_text()
        assert options.strip() == program.unconverted("15")["PGOPTIONS"]


# --- links that postgres could place for root -----------------------------------------------------


def test_root_opens_nothing_in_the_directories_of_postgres(server: Server) -> None:
    """Each file there is read by a program that runs as postgres."""
    asked: list[list[str]] = []
    known = server.run

    def watch(*command: Any, **how: Any) -> Any:
        asked.append([str(word) for word in command])
        return known(*command, **how)

    old, new = server.cluster("15"), server.cluster("17")
    new.unfinished.write_text(program.MARK)
    with pytest.MonkeyPatch.context() as patch:
        for module in (program, postgres):
            patch.setattr(module, "run", watch)
        patch.setattr(Path, "read_text", None)
        patch.setattr(Path, "write_text", None)
        patch.setattr(shutil, "chown", None)
        patch.setattr(shutil, "rmtree", None)
        program.switch(old, new)
        with program.workplace():
            program.warn_of_alter_system(old)
            assert program.files("*.txt", program.WORK) == []
        with pytest.raises(Failed, match=r"^15/main does not run"):
            old.address()
    reads = [words for words in asked if words[0] != "systemctl"]
    assert len(reads) > 5
    for words in reads:
        assert words[:4] == ["runuser", "-u", "postgres", "--"]
