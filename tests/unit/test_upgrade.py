"""The program that moves a cluster: which one is the server, at every step and after every end."""

import subprocess
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import ROOT

PROGRAM = ROOT / "files" / "postgres" / "postgres-upgrade"


@pytest.fixture(scope="module")
def program() -> ModuleType:
    loader = SourceFileLoader("postgres_upgrade", str(PROGRAM))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)
        loader.exec_module(module)
    return module


class Server:
    """A host whose clusters are directories, and whose systemd starts what is not set aside."""

    def __init__(self, program: ModuleType, directory: Path) -> None:
        self.program = program
        self.directory = directory
        self.running: set[str] = set()
        self.broken: set[str] = set()

    def cluster(self, version: str, start: str = "auto") -> Any:
        one = self.program.Cluster(version)
        one.etc = self.directory / "etc" / version
        one.drop_ins = self.directory / "drop-ins" / version
        one.retired = one.drop_ins / "terrafirma-retired.conf"
        one.unfinished = one.drop_ins / "terrafirma-unfinished.conf"
        one.unanalysed = self.directory / f"{version}.unanalysed"
        one.online = lambda: one.name in self.running
        one.sql = lambda *_, **__: "1"
        one.etc.mkdir(parents=True)
        one.drop_ins.mkdir(parents=True)
        (one.etc / "postgresql.conf").touch()
        (one.etc / "start.conf").write_text(f"# Automatic startup\n\n{start}\n")
        self.clusters = {**getattr(self, "clusters", {}), one.unit: one}
        return one

    def run(self, *command: Any, check: bool = True, input: str = "", **_: Any) -> str:
        words = [str(word) for word in command]
        # The rights are the host's affair: here both are ours.
        if words[:4] == ["runuser", "-u", "postgres", "--"]:
            words = words[4:]
        if words[0] == "tee":
            Path(words[1]).write_text(input)
        elif words[0] == "mv":
            Path(words[-2]).rename(words[-1])
        elif words[0] == "pg_lsclusters":
            states = {one.name: "online" if one.name in self.running else "down"
                      for one in self.clusters.values()}  # fmt: skip
            return "".join(f"{name.replace('/', ' ')} 5432 {states[name]}\n" for name in states)
        one: Any = self.clusters.get(words[-1])
        if words[:2] == ["systemctl", "start"]:
            if one.set_aside() or one.name in self.broken:
                raise self.program.Failed("assertion failed")
            self.running.add(one.name)
        elif words[:2] == ["systemctl", "stop"]:
            self.running.discard(one.name)
        elif words[0] == "pg_dropcluster":
            (self.clusters[f"postgresql@{words[1]}-main.service"].etc / "postgresql.conf").unlink()
        return ""


@pytest.fixture
def server(program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    one = Server(program, tmp_path)
    monkeypatch.setattr(program, "run", one.run)
    monkeypatch.setattr(program, "STATE", tmp_path / "state")
    monkeypatch.setattr(program, "WORK", tmp_path / "work")
    monkeypatch.setattr(program, "BORGMATIC", tmp_path / "config.yaml")
    monkeypatch.delenv("SERVICE_RESULT", raising=False)
    return one


def start_conf(cluster: Any) -> str:
    return str((cluster.etc / "start.conf").read_text()).split()[-1]


@pytest.fixture
def half_way(server: Server) -> tuple[Any, Any]:
    """The new cluster is complete, and nobody runs."""
    old, new = server.cluster("15"), server.cluster("17")
    new.unfinished.write_text(server.program.MARK)
    return old, new


def test_runs_without_any_package_of_ours() -> None:
    for words in (["explain", "15", "17"], ["upgrade"], ["upgrade", "15", "../17"]):
        bare = [sys.executable, "-I", "-S", str(PROGRAM), *words]
        result = subprocess.run(bare, capture_output=True, text=True, check=False)
        assert result.returncode == 1
        assert "postgres-upgrade upgrade OLD NEW" in result.stderr


def test_the_new_one_serves_after_the_switch(server: Server, half_way: tuple[Any, Any]) -> None:
    old, new = half_way
    config = server.directory / "config.yaml"
    config.write_text("# Managed by Terrafirma: x\n- pg_dump --cluster 15/main\n")
    server.program.switch(old, new)
    assert server.running == {"17/main"}
    assert (old.set_aside(), new.set_aside()) == (True, False)
    assert (start_conf(old), start_conf(new)) == ("disabled", "auto")
    assert new.unanalysed.exists()
    assert config.read_text() == "# Managed by Terrafirma: x\n- pg_dump --cluster 17/main\n"
    assert config.stat().st_mode & 0o777 == 0o600


def test_a_switch_that_fails_is_none(server: Server, half_way: tuple[Any, Any]) -> None:
    old, new = half_way
    server.broken.add("17/main")
    with pytest.raises(server.program.Failed):
        server.program.switch(old, new)
    assert (old.set_aside(), new.set_aside()) == (False, True)
    assert start_conf(old) == "auto"
    server.program.recover(old, new)
    assert server.running == {"15/main"}
    assert not new.exists()
    assert not new.set_aside()


@pytest.mark.parametrize("result", ["exit-code", "signal", "oom-kill", ""])
def test_whatever_ends_it_before_the_switch_the_old_one_serves(
    server: Server, half_way: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, result: str
) -> None:
    old, new = half_way
    monkeypatch.setenv("SERVICE_RESULT", result)
    server.program.recover(old, new)
    assert server.running == {"15/main"}
    assert (old.exists(), new.exists()) == (True, False)


def test_a_kill_after_the_switch_goes_on_with_the_new_one(
    server: Server, half_way: tuple[Any, Any]
) -> None:
    old, new = half_way
    new.unfinished.rename(old.retired)
    server.program.recover(old, new)
    assert server.running == {"17/main"}
    assert old.exists()


def test_after_success_nothing_is_recovered(
    server: Server, half_way: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup is made while the cluster of a former run may still be there."""
    old, new = half_way
    server.running.add("15/main")
    monkeypatch.setenv("SERVICE_RESULT", "success")
    server.program.recover(old, new)
    assert (server.running, new.exists()) == ({"15/main"}, True)


def test_back_and_the_way_back_that_fails(server: Server, half_way: tuple[Any, Any]) -> None:
    old, new = half_way
    server.program.switch(old, new)
    server.broken.add("15/main")
    with pytest.raises(server.program.Failed):
        server.program.back(old, new)
    server.program.recover(old, new)
    assert server.running == {"17/main"}
    assert (old.set_aside(), start_conf(old)) == (True, "disabled")
    server.broken.clear()
    server.program.back(old, new)
    assert server.running == {"15/main"}
    assert (old.set_aside(), new.set_aside()) == (False, True)
    assert (start_conf(old), start_conf(new)) == ("auto", "disabled")


def refused(server: Server, action: Callable[..., None], old: Any, new: Any) -> None:
    before = (set(server.running), old.exists(), new.exists(), old.set_aside(), new.set_aside())
    with pytest.raises(server.program.Failed):
        action(old, new)
    assert before == (
        *(set(server.running), old.exists(), new.exists()),
        *(old.set_aside(), new.set_aside()),
    )


def test_nothing_that_is_in_use_is_removed_or_replaced(server: Server) -> None:
    old, new = server.cluster("15"), server.cluster("17")
    server.running.add("15/main")
    for action in ("clean", "create", "upgrade", "back"):
        refused(server, getattr(server.program, action), old, new)
    old.retired.touch()
    # Set aside, and started by hand.
    refused(server, server.program.clean, old, new)
    server.running.clear()
    # Then it may be all that is left.
    refused(server, server.program.clean, old, new)
    server.running.add("17/main")
    server.program.clean(old, new)
    assert (old.exists(), old.drop_ins.exists(), new.exists()) == (False, False, True)


def test_a_configuration_that_is_not_ours_is_left_alone(
    server: Server, half_way: tuple[Any, Any]
) -> None:
    config = server.directory / "config.yaml"
    config.write_text("- pg_dump --cluster 15/main\n")
    server.program.point_backups(*half_way)
    assert config.read_text() == "- pg_dump --cluster 15/main\n"


def test_a_warning_is_no_answer(program: ModuleType) -> None:
    """A server whose system sorts text otherwise warns whoever connects."""
    assert program.run("sh", "-c", "echo '[1]'; echo 'WARNING:  collation' >&2") == "[1]\n"
    with pytest.raises(program.Failed, match=r"^sh: no room$"):
        program.run("sh", "-c", "echo no room >&2; exit 1")


def test_the_mark_is_one_that_systemd_reads(program: ModuleType) -> None:
    assert "\n[Unit]\nAssertPathExists=!/\n" in program.MARK
