"""The program that upgrades engines: one that breaks a promise is rolled back."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from terrafirma_host import postgres_minor, reboot
from terrafirma_host import upgrade as program
from terrafirma_host.shell import Failed

from tests.unit.programs import terrafirma

DOCKER: dict[str, Any] = {
    "name": "docker",
    "title": "Docker",
    "main": "docker-ce",
    "packages": {"docker-ce": "5:28.2-1", "containerd.io": "2.1-1"},
    "old": {"docker-ce": "5:28.1-1", "containerd.io": "2.0-1"},
    "held": ["docker-ce", "containerd.io", "docker.io", "containerd"],
    "units": ["containerd.service", "docker.service"],
}
CADDY: dict[str, Any] = {
    "name": "caddy",
    "title": "Caddy",
    "main": "caddy",
    "packages": {"caddy": "2.11.1"},
    "old": {"caddy": "2.6.2-12"},
    "held": ["caddy"],
    "units": ["caddy.service"],
}
# From the distribution's packages to the vendor's.
MOVE = DOCKER | {"old": {}, "replaced": {"docker.io": "26.1-1", "containerd": "1.7-1"}}


INSTALL = r"User=root install --allow-change\S* --no-install\S* (docker-ce|caddy)="


class Killed(BaseException):
    """Stands for SIGKILL: nothing runs after it."""


class Host:
    """Packages, units with the packages that they were started with, and faults."""

    def __init__(self, state: Path, cache: Path) -> None:
        self.state, self.cache = state, cache
        self.there: dict[str, str] = {}
        self.offered: set[tuple[str, str]] = set()
        self.running: dict[str, str] = {}
        self.held: set[str] = set()
        self.asked: list[str] = []
        self.breaks: dict[str, str] = {}  # versions, and the promise that each breaks
        self.unpacks_not: set[str] = set()
        self.damaged: set[Path] = set()  # files that are not whole
        self.gone: list[str] = []  # packages that apt would remove
        self.dies: str = ""  # the command with which the run is killed

    def has(self, engine: dict[str, Any]) -> None:
        self.there |= {**engine["old"], **engine.get("replaced", {})}
        self.offered |= {*self.there.items(), *engine["packages"].items()}
        self.running |= dict.fromkeys(engine["units"], self.version)

    @property
    def version(self) -> str:
        return json.dumps(self.there, sort_keys=True)

    def broken(self) -> list[str]:
        return [words for version, words in self.breaks.items() if version in self.there.values()]

    def deb(self, directory: Path, name: str, version: str) -> None:
        (directory / f"{name}_{version.replace(':', '%3a')}_all.deb").touch()

    def run(self, *command: Any, check: bool = True, **_: Any) -> str:
        words = [str(word) for word in command]
        line = " ".join(words)
        self.asked.append(line)
        if self.dies and re.search(self.dies, line):
            self.dies = ""
            self.change(words)
            raise Killed
        return self.answer(words, line)

    def answer(self, words: list[str], line: str) -> str:
        if words[0] == "dpkg-query":
            version = self.there.get(words[-1])
            return f"installed {version}" if version else ""
        if words[0] == "dpkg-deb":
            if "--contents" in words and Path(words[-1]) in self.damaged:
                raise Failed("dpkg-deb: error: unexpected end of file")
            name, version, _ = Path(words[-1]).name.split("_")
            return f"{name} {version.replace('%3a', ':')}"
        if words[:2] == ["systemctl", "restart"] or words[-1] == "restart":
            self.running[words[-1]] = self.version
        elif words[:2] == ["apt-mark", "hold"]:
            self.held = set(words[2:])
        elif "download" in words:
            name, version = words[-1].split("=")
            if (name, version) not in self.offered:
                raise Failed(f"apt-get download: E: Version {version} was not found")
            self.deb(self.state, name, version)
            self.damaged.clear()
        elif "--simulate" in words:
            return "".join(f"Remv {name} [1]\n" for name in self.gone)
        elif "--download-only" in words:
            for name, version in (
                word.split("=") for word in words if re.match(r"[a-z.-]+=", word)
            ):
                self.deb(self.cache, name, version)
        elif "install" in words or "--install" in words:
            self.change(words)
        return ""

    def change(self, words: list[str]) -> None:
        if not {"install", "--install"} & {*words} or "--download-only" in words:
            return
        files = [Path(word).name.split("_")[:2] for word in words if word.endswith(".deb")]
        wanted = {name: version.replace("%3a", ":") for name, version in files}
        wanted |= dict(word.split("=") for word in words if re.match(r"[a-z.-]+=\S+$", word))
        for word in words:
            if re.fullmatch(r"[a-z.]+[a-z.-]*-", word):
                self.there.pop(word[:-1], None)
        for name, version in wanted.items():
            if version in self.unpacks_not:
                raise Failed(f"dpkg: error processing {name}")
            self.there[name] = version


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    state, cache = tmp_path / "state", tmp_path / "cache"
    state.mkdir()
    cache.mkdir()
    one = Host(state, cache)
    monkeypatch.setattr(program, "run", one.run)
    monkeypatch.setattr(program, "STATE", state)
    monkeypatch.setattr(program, "CACHE", cache)
    monkeypatch.setattr(program, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(postgres_minor, "BACKUP_CONFIG", tmp_path / "config.yaml")
    monkeypatch.setattr(program, "PATIENCE", 0)
    monkeypatch.setattr(program, "PAUSE", 0)
    monkeypatch.setattr(program, "broken", one.broken)
    monkeypatch.setattr(program, "succeeds", lambda *words: words[-1] in one.running)
    monkeypatch.setattr(program, "runs_old", lambda unit: one.running.get(unit) != one.version)
    for name in ("standstill", "once_well"):
        monkeypatch.setattr(program, name, lambda *_, **__: nullcontext())
    monkeypatch.setattr(reboot, "due", list)
    return one


def perform(*engines: dict[str, Any], rest: bool = False) -> None:
    program.perform(program.Plan.of({"engines": engines, "rest": rest, "held": ["caddy"]}))


def carry_out(host: Host, *engines: dict[str, Any]) -> tuple[int, str]:
    """Run as the unit does; returns the exit code and the log."""
    plan = json.dumps({"engines": engines, "rest": False, "held": []})
    (host.state / "plan.json").write_text(plan)
    with pytest.raises(SystemExit) as end:
        program.carry_out()
    assert json.loads((host.state / "end.json").read_text())["status"] == end.value.code
    return int(str(end.value.code)), (host.state / "log").read_text()


def test_refuses_an_unknown_argument() -> None:
    result = terrafirma("upgrade", "everything")
    assert result.returncode == 1
    assert "terrafirma upgrade recover" in result.stderr


def test_an_engine_is_upgraded_held_and_restarted(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    host.has(DOCKER)
    perform(DOCKER)
    assert host.there == DOCKER["packages"]
    assert host.held == {*DOCKER["packages"]}
    assert set(host.running.values()) == {host.version}
    assert not (host.state / "current.json").exists()
    said = capsys.readouterr().out
    assert "Docker: 5:28.1-1 is replaced by 5:28.2-1" in said
    assert "5:28.2-1 runs, and all is as promised" in said


def test_the_old_packages_are_saved_before_anything_changes(host: Host) -> None:
    host.has(DOCKER)
    host.dies = INSTALL
    with pytest.raises(Killed):
        perform(DOCKER)
    for name, version in {**DOCKER["old"], **DOCKER["packages"]}.items():
        assert program.kept(name, version), name


def test_packages_in_apts_cache_are_not_fetched(host: Host) -> None:
    host.has(CADDY)
    host.deb(host.cache, "caddy", "2.6.2-12")
    host.offered.clear()
    perform(CADDY)
    assert host.there == CADDY["packages"]


@pytest.mark.parametrize("place", ["state", "cache"])
def test_a_truncated_package_is_fetched_again(host: Host, place: str) -> None:
    host.has(CADDY)
    host.deb(getattr(host, place), "caddy", "2.6.2-12")
    host.damaged = {host.state / "caddy_2.6.2-12_all.deb"}
    perform(CADDY)
    assert any(line.endswith("download caddy=2.6.2-12") for line in host.asked)
    assert not host.damaged


def test_nothing_changes_without_the_planned_way_back(host: Host) -> None:
    host.has(CADDY)
    host.offered.clear()
    with pytest.raises(Failed, match=r"nothing was changed: caddy 2\.6\.2-12, the way back"):
        perform(CADDY)
    assert host.there == CADDY["old"]


def test_an_upgrade_that_was_announced_without_a_way_back_goes_on(host: Host) -> None:
    host.has(CADDY)
    host.offered.clear()
    perform(CADDY | {"lost": ["caddy"]})
    assert host.there == CADDY["packages"]


def test_an_engine_that_breaks_a_promise_is_rolled_back(host: Host) -> None:
    host.has(DOCKER)
    host.breaks["5:28.2-1"] = "api: the replica on port 8000 is not healthy"
    with pytest.raises(Failed) as error:
        perform(DOCKER)
    assert "Docker 5:28.2-1 was rolled back: api: the replica" in str(error.value)
    assert "5:28.1-1 runs again, and all is as promised" in str(error.value)
    assert host.there == DOCKER["old"]
    assert host.held == {*DOCKER["old"]}
    assert set(host.running.values()) == {host.version}
    assert not (host.state / "current.json").exists()


def test_the_message_has_both_failures_if_the_way_back_does_not_help(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.has(CADDY)
    asked: list[int] = []

    def broken() -> list[str]:
        asked.append(1)
        return ["Caddy does not run"] if len(asked) > 1 else []

    monkeypatch.setattr(program, "broken", broken)
    with pytest.raises(
        Failed, match=r"Caddy 2\.11\.1: Caddy does not run; after the return to 2\.6"
    ):
        perform(CADDY)


def test_a_package_that_cannot_be_unpacked_is_rolled_back(host: Host) -> None:
    host.has(CADDY)
    host.unpacks_not.add("2.11.1")
    with pytest.raises(Failed, match=r"rolled back: .*dpkg: error processing caddy"):
        perform(CADDY)
    assert host.there == CADDY["old"]


def test_dpkg_rolls_back_if_apt_refuses(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.has(CADDY)
    host.breaks["2.11.1"] = "https://api.test answers 502"
    known = host.answer

    def stubborn(words: list[str], line: str) -> str:
        if "--allow-downgrades" in words:
            raise Failed("E: Unmet dependencies")
        return known(words, line)

    monkeypatch.setattr(host, "answer", stubborn)
    with pytest.raises(Failed, match="rolled back"):
        perform(CADDY)
    assert host.there == CADDY["old"]


def test_without_a_way_back_the_new_packages_stay(host: Host) -> None:
    host.has(CADDY)
    host.breaks["2.11.1"] = "https://api.test answers 502"
    with pytest.raises(Failed, match="there is no way back, because caddy is no longer offered"):
        perform(CADDY | {"lost": ["caddy"]})
    assert host.there == CADDY["packages"]


def test_the_first_failure_ends_the_upgrade(host: Host) -> None:
    host.has(DOCKER)
    host.has(CADDY)
    host.breaks["5:28.2-1"] = "api: not healthy"
    with pytest.raises(Failed):
        perform(DOCKER, CADDY, rest=True)
    assert host.there == {**DOCKER["old"], **CADDY["old"]}
    assert not any("--with-new-pkgs" in line for line in host.asked)


def test_conflicting_packages_are_removed_and_not_purged(host: Host) -> None:
    host.has(MOVE)
    perform(MOVE)
    assert host.there == MOVE["packages"]
    assert not any("purge" in line.replace("Get::Purge=false", "") for line in host.asked)
    assert "systemctl enable --quiet containerd.service docker.service" in host.asked


def test_the_distributions_packages_come_back_after_a_move_that_failed(host: Host) -> None:
    host.has(MOVE)
    host.breaks["5:28.2-1"] = "api: not healthy"
    with pytest.raises(
        Failed, match=r"docker\.io 26\.1-1, containerd 1\.7-1 runs again, and all is"
    ):
        perform(MOVE)
    assert host.there == MOVE["replaced"]
    assert host.held == {*MOVE["replaced"]}


def test_apt_may_not_remove_other_packages(host: Host) -> None:
    host.has(CADDY)
    host.gone = ["xcaddy"]
    with pytest.raises(Failed, match=r"nothing was changed: Caddy 2\.11\.1 would remove xcaddy"):
        perform(CADDY)
    assert host.there == CADDY["old"]


def test_a_broken_host_is_not_upgraded(host: Host) -> None:
    host.has(CADDY)
    host.breaks["2.6.2-12"] = "PostgreSQL 17 answers no query"
    with pytest.raises(Failed, match="nothing was changed: something is already broken"):
        perform(CADDY)
    assert not any("install" in line for line in host.asked)


def test_a_backup_is_made_first(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.has(CADDY)
    (tmp_path / "backup").touch()
    (tmp_path / "config.yaml").touch()
    monkeypatch.setattr(postgres_minor, "BACKUP", tmp_path / "backup")

    def run(*command: Any, **_: Any) -> str:
        assert command == (tmp_path / "backup", "create")
        raise Failed("the repository is full")

    monkeypatch.setattr(postgres_minor, "run", run)
    with pytest.raises(Failed, match="repository is full"):
        perform(CADDY)
    assert host.there == CADDY["old"]


@pytest.mark.parametrize(
    ("dies", "there", "words"),
    [
        (r"download-only", "old", None),
        (INSTALL, "packages", "all is as promised"),
        (r"apt-mark hold", "packages", "all is as promised"),
        (r"systemctl daemon-reload", "packages", "all is as promised"),
    ],
)
def test_a_run_that_was_killed_is_finished(
    host: Host, dies: str, there: str, words: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    host.has(DOCKER)
    host.dies = dies
    with pytest.raises(Killed):
        perform(DOCKER)
    capsys.readouterr()
    program.recover()
    assert host.there == DOCKER[there]
    said = capsys.readouterr().out
    assert words in said if words else not said
    assert not (host.state / "current.json").exists()
    # A second recovery has nothing to do.
    host.asked.clear()
    program.recover()
    assert host.asked == []


def test_nothing_else_begins_during_a_recovery(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.has(DOCKER)
    host.dies = INSTALL
    with pytest.raises(Killed):
        perform(DOCKER)
    alone: list[str] = []

    @contextmanager
    def once_well(*_: Any, apt: bool) -> Iterator[None]:
        assert not apt
        host.asked.clear()
        yield
        alone.extend(host.asked)

    monkeypatch.setattr(program, "once_well", once_well)
    program.recover()
    assert alone
    assert alone == host.asked
    # Without a killed upgrade it need not wait for anything.
    alone.clear()
    program.recover()
    assert alone == []


def test_a_run_that_was_killed_half_way_is_undone(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.has(DOCKER)
    host.dies = INSTALL

    def half(words: list[str]) -> None:
        host.there["docker-ce"] = "5:28.2-1"

    with monkeypatch.context() as patch:
        patch.setattr(host, "change", half)
        with pytest.raises(Killed):
            perform(DOCKER)
    status, said = carry_out(host, DOCKER)
    assert status == 1
    assert "was rolled back: it was killed half-way" in said
    assert host.there == DOCKER["old"]
    # The next run is a usual upgrade.
    assert carry_out(host, DOCKER)[0] == 0
    assert host.there == DOCKER["packages"]


def test_a_run_that_was_killed_during_its_rollback_is_undone(host: Host) -> None:
    host.has(CADDY)
    host.breaks["2.11.1"] = "https://api.test answers 502"
    host.dies = "--allow-downgrades"
    with pytest.raises(Killed):
        perform(CADDY)
    program.recover()
    assert host.there == CADDY["old"]
    assert not (host.state / "current.json").exists()


def test_a_recovery_rolls_back_an_engine_that_breaks_a_promise(host: Host) -> None:
    host.has(CADDY)
    host.dies = INSTALL
    with pytest.raises(Killed):
        perform(CADDY)
    host.breaks["2.11.1"] = "https://api.test answers 502"
    with pytest.raises(Failed, match=r"rolled back: https://api\.test answers 502"):
        program.recover()
    assert host.there == CADDY["old"]


def test_a_recovery_rolls_back_an_engine_that_does_not_start(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.has(CADDY)
    host.dies = INSTALL
    with pytest.raises(Killed):
        perform(CADDY)
    known = host.answer

    def answer(words: list[str], line: str) -> str:
        if line == "systemctl restart caddy.service" and host.there == CADDY["packages"]:
            raise Failed("Job for caddy.service failed")
        return known(words, line)

    monkeypatch.setattr(host, "answer", answer)
    with pytest.raises(Failed, match=r"rolled back: Job for caddy\.service failed"):
        program.recover()
    assert host.there == CADDY["old"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"phase": "installing"}', '{"engine": 7}'])
def test_a_damaged_record_is_ignored(host: Host, content: str) -> None:
    (host.state / "current.json").write_text(content)
    program.recover()
    assert host.asked == []


def test_older_packages_are_deleted(host: Host) -> None:
    host.has(CADDY)
    host.deb(host.state, "caddy", "2.5.0")
    host.deb(host.state, "other", "1.0")
    perform(CADDY)
    assert sorted(path.name for path in host.state.glob("*.deb")) == [
        "caddy_2.11.1_all.deb",
        "caddy_2.6.2-12_all.deb",
        "other_1.0_all.deb",
    ]


def test_a_file_that_is_not_a_package_is_deleted(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.has(CADDY)
    host.deb(host.state, "caddy", "2.6.2-12")
    known = host.answer
    monkeypatch.setattr(
        host, "answer", lambda words, line: "" if words[0] == "dpkg-deb" else known(words, line)
    )
    assert program.kept("caddy", "2.6.2-12") is None
    assert list(host.state.glob("*.deb")) == []


def test_the_other_packages_come_last(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.has(CADDY)
    followed: list[str] = []

    def follow(*words: str, heard: Callable[[str], None], **_: Any) -> None:
        assert host.there == CADDY["packages"]
        followed.append(" ".join(words))
        heard("Setting up openssl (3.0.2) ...")

    monkeypatch.setattr(program, "follow", follow)
    perform(CADDY, rest=True)
    assert followed
    assert followed[0].endswith("upgrade --with-new-pkgs")
    assert "full-upgrade" not in followed[0]
    assert host.held == {"caddy"}


def test_a_run_records_how_it_ended(host: Host) -> None:
    host.has(CADDY)
    assert carry_out(host, CADDY)[0] == 0
    host.breaks["2.12"] = "https://api.test answers 502"
    again = CADDY | {"packages": {"caddy": "2.12"}, "old": {"caddy": "2.11.1"}}
    host.offered.add(("caddy", "2.12"))
    status, said = carry_out(host, again)
    assert status == 1
    assert "failed: Caddy 2.12 was rolled back" in said
