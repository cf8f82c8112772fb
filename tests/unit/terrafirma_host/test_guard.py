"""The way back: every path is as it was, unless the change was confirmed."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from terrafirma_host import guard
from terrafirma_host.guard import Failed, arm, confirm, main, revert

# Answers about units from a file, and notes every call.
SYSTEMCTL = """#!/bin/sh
echo "$*" >> "$HERE/calls"
case $1 in
show) cat "$HERE/state" ;;
is-active) test ! -e "$HERE/boots" ;;
esac
"""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("bin", "units", "etc/tree", "lib"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "bin/systemctl").write_text(SYSTEMCTL)
    (tmp_path / "bin/systemctl").chmod(0o755)
    (tmp_path / "state").write_text("inactive\n\ninactive\n")
    monkeypatch.setenv("HERE", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(guard, "STATE", tmp_path / "lib")
    monkeypatch.setattr(guard, "ARMED", tmp_path / "lib/armed")
    monkeypatch.setattr(guard, "UNDONE", tmp_path / "lib/undone")
    monkeypatch.setattr(guard, "UNITS", tmp_path / "units")
    (tmp_path / "etc/file").write_text("before\n")
    (tmp_path / "etc/tree/one").write_text("one\n")
    return tmp_path


def order(host: Path, **more: Any) -> dict[str, Any]:
    etc = host / "etc"
    paths = [f"{etc}/file", f"{etc}/tree/", f"{etc}/absent", f"{etc}/sub", f"{etc}/sub/keys"]
    return {"token": "t", "seconds": 60, "what": "x", "paths": paths} | more


def tree(path: Path) -> dict[str, tuple[str, int, str]]:
    """Kind, mode and content of all that is below `path`."""
    found = {}
    for one in sorted(path.rglob("*")):
        now = one.lstat()
        content = str(one.readlink()) if one.is_symlink() else one.is_file() and one.read_text()
        kind = stat.filemode(now.st_mode)
        found[str(one.relative_to(path))] = (kind, stat.S_IMODE(now.st_mode), str(content))
    return found


# Commands, in the directory `etc`.
CHANGES = {
    "nothing": "true",
    "content": "echo after > file",
    "a mode": "chmod 600 file",
    "another file in its place": "echo after > new && mv new file",
    "no file": "rm file",
    "a directory in its place": "rm file && mkdir file",
    "a link in its place": "rm file && ln -s x file",
    "a new file": "echo x > absent",
    "a new file in a tree": "echo x > tree/00-first",
    "new directories in a tree": "mkdir -p tree/a/b && echo x > tree/a/b/c",
    "a file less in a tree": "rm tree/one",
    "a new directory with a file": "mkdir sub && echo x > sub/keys",
    "the mode of a tree": "chmod 777 tree",
    "no tree": "rm -r tree",
}


def change(host: Path, what: str) -> None:
    subprocess.run(["sh", "-c", CHANGES[what]], cwd=host / "etc", check=True)


@pytest.mark.parametrize("what", CHANGES)
def test_everything_is_as_it_was(host: Path, what: str) -> None:
    before = tree(host / "etc")
    arm(order(host))
    change(host, what)
    revert()
    assert tree(host / "etc") == before
    assert not (host / "lib/armed").exists()
    assert tree(host / "units") == {
        "sysinit.target.wants": tree(host)["units/sysinit.target.wants"]
    }
    # A second way back, as at a boot, does nothing.
    revert()
    assert tree(host / "etc") == before


@pytest.mark.parametrize("what", CHANGES)
def test_a_way_back_that_was_killed_begins_again(
    host: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(host / "etc")
    arm(order(host))
    change(host, what)
    with monkeypatch.context() as killed:
        killed.setattr(guard, "_remove_units", lambda: 1 / 0)
        killed.setattr(guard, "ARMED", host / "lib/armed")
        with pytest.raises(ZeroDivisionError):
            revert()
    (host / "lib/undone").rename(host / "lib/armed")
    revert()
    assert tree(host / "etc") == before


def test_a_confirmed_change_stays(host: Path) -> None:
    arm(order(host, seconds=60))
    assert "OnActiveSec=55\n" in (host / "units/terrafirma-guard.timer").read_text()
    assert (host / "units/sysinit.target.wants/terrafirma-guard.service").is_symlink()
    (host / "etc/file").write_text("after\n")
    confirm("t")
    revert()
    assert (host / "etc/file").read_text() == "after\n"
    assert not (host / "units/terrafirma-guard.service").exists()
    assert sorted(one.name for one in (host / "lib").iterdir()) == ["lock"]


@pytest.mark.parametrize("token", ["another", "t"])
def test_what_was_undone_is_not_confirmed(host: Path, token: str) -> None:
    arm(order(host))
    if token == "t":
        revert()
    with pytest.raises(Failed, match="was undone"):
        confirm(token)


def test_what_a_late_run_changed_afterwards_is_undone_too(host: Path) -> None:
    arm(order(host))
    (host / "etc/file").write_text("after\n")
    revert()
    mode = (host / "etc/file").stat().st_mode
    change(host, "a mode")
    change(host, "a new file in a tree")
    with pytest.raises(Failed, match="took too long"):
        confirm("t")
    assert (host / "etc/file").stat().st_mode == mode
    assert (host / "etc/file").read_text() == "before\n"
    assert not (host / "etc/tree/00-first").exists()


def test_the_commands_run_before_and_after(host: Path) -> None:
    order_ = order(
        host,
        first=[f"cat {host}/etc/file > {host}/first"],
        commands=["exit 3", f"cat {host}/etc/file > {host}/then"],
    )
    arm(order_)
    (host / "etc/file").write_text("after\n")
    revert()
    assert ((host / "first").read_text(), (host / "then").read_text()) == ("after\n", "before\n")
    # At a boot the services start later.
    (host / "then").unlink()
    arm(order_)
    (host / "boots").touch()
    revert()
    assert not (host / "then").exists()


def test_one_change_at_a_time(host: Path) -> None:
    arm(order(host))
    (host / "state").write_text("active\n\ninactive\n")
    with pytest.raises(Failed, match="another run"):
        arm(order(host))
    # The timer never started, since the run was killed: its change is undone first.
    (host / "state").write_text("inactive\n\ninactive\n")
    (host / "etc/file").write_text("after\n")
    arm(order(host, token="u"))
    assert (host / "etc/file").read_text() == "before\n"
    confirm("u")


def test_what_is_in_the_way_is_kept_aside(host: Path) -> None:
    arm(order(host))
    (host / "etc/tree/00-first").write_text("foreign\n")
    revert()
    (kept,) = (host / "lib/undone/aside").iterdir()
    assert kept.name.endswith("tree__00-first")
    assert kept.read_text() == "foreign\n"


def test_a_link_leads_nobody_elsewhere(host: Path) -> None:
    """An account puts a link to another place where its directory was."""
    home, victim = host / "home", host / "victim"
    for one in (home / ".ssh", victim):
        one.mkdir(parents=True)
    (home / ".ssh/authorized_keys").write_text("mine\n")
    (victim / "authorized_keys").write_text("theirs\n")
    arm(order(host, paths=[f"{home}/.ssh/authorized_keys"]))
    (home / ".ssh").rename(home / "moved")
    (home / ".ssh").symlink_to(victim)
    revert()
    assert (victim / "authorized_keys").read_text() == "theirs\n"


def test_a_home_may_be_behind_a_link(host: Path) -> None:
    (host / "srv").mkdir()
    (host / "home").symlink_to(host / "srv")
    (host / "srv/keys").write_text("mine\n")
    arm(order(host, paths=[f"{host}/home/keys", "~nobody-here/.ssh"]))
    (host / "srv/keys").write_text("other\n")
    revert()
    assert (host / "srv/keys").read_text() == "mine\n"


def test_nothing_is_armed_without_a_copy(host: Path) -> None:
    os.mkfifo(host / "etc/tree/pipe")
    with pytest.raises(Failed, match="neither a file nor a directory"):
        arm(order(host))
    assert not (host / "lib/armed").exists()
    assert not (host / "units/terrafirma-guard.timer").exists()


def test_nothing_is_armed_without_its_timer(host: Path) -> None:
    (host / "bin/systemctl").write_text("#!/bin/sh\ncase $1 in start) exit 1 ;; esac\n")
    with pytest.raises(Failed, match="cannot be armed"):
        arm(order(host))
    assert not (host / "lib/armed").exists()


def test_other_words_are_refused() -> None:
    with pytest.raises(Failed, match="usage"):
        main(["armed"])
