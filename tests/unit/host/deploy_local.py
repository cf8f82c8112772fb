"""The deploy that test_operations.py applies to this machine, below the directory `x_directory`."""

from getpass import getuser
from grp import getgrgid
from os import getgid
from pathlib import Path

from pyinfra import host

from terrafirma.app.hashes import tree_digest
from terrafirma.app.source import upload_source
from terrafirma.host.files import Absent, Directory, File, put

root = Path(host.data.x_directory)
user, group = getuser(), getgrgid(getgid()).gr_name


def ours(name: str, content: str, mode: str = "644") -> File:
    return File(f"{root}/{name}", content, mode, user, group)


put(
    name="Put files and directories",
    entries=[
        Directory(f"{root}/private", "0700", user, group),
        ours("deep/er/plain", "without a line break at its end"),
        ours("it's $HOME/odd", "`touch canary`\n$(touch canary)\n%s \\n ünïcode\n", "600"),
        Absent(f"{root}/stale"),
    ],
)

put(name="Replace a foreign file", entries=[ours("foreign", "# Managed by Terrafirma: x\n1\n")])

put(
    name="Put what its check accepts",
    entries=lambda: [ours("checked", "# Managed by Terrafirma: x\ngood\n", "640")],
    check='grep -q good "$new" && test "$(stat -c %a "$new")" = 640',
)

put(
    name="Put what its check refuses",
    entries=[ours("refused", "bad\n")],
    check='grep -q good "$new"',
    _ignore_errors=True,
)

put(
    name="Put a file where a directory is",
    entries=[ours("occupied", "x\n")],
    _ignore_errors=True,
)

upload_source(
    name="Upload a source",
    directory=root / "source",
    dest=f"{root}/copies/{tree_digest(root / 'source')}",
    program=f"{root}/program",
)
