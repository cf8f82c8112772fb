"""The deploy that test_operations.py applies to this machine in another user's directory."""

from pathlib import Path

from pyinfra import host

from terrafirma.host.files import File, put

root = Path(host.data.x_directory)
CHECK = 'test "$(id -un)" = nobody && test "$PWD" = / && grep -q good "$new"'


def theirs(name: str, content: str) -> File:
    content = f"# Managed by Terrafirma: x\n{content}\n"
    return File(f"{root}/{name}", content, "640", "nobody", "nogroup", as_owner=True)


put(name="Put what its check accepts", entries=[theirs("theirs/accepted", "good")], check=CHECK)

put(
    name="Put what its check refuses",
    entries=[theirs("theirs/refused", "bad")],
    check=CHECK,
    _ignore_errors=True,
)

put(name="Put over a link", entries=[theirs("theirs/link", "good")], check=CHECK)

put(name="Put over what is closed", entries=[theirs("theirs/closed", "good")], check=CHECK)

put(
    name="Put below a link",
    entries=[theirs("theirs/directory/one", "good")],
    check=CHECK,
    _ignore_errors=True,
)
