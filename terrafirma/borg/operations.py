"""Backups with borgmatic."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from pyinfra import host
from pyinfra.api import FunctionCommand, Host, QuoteString, State, StringCommand
from pyinfra.connectors.util import CommandOutput
from pyinfra.facts.files import FileContents

from terrafirma.borg.facts import Archives, FirstArchive
from terrafirma.host.files import PathStates
from terrafirma.host.operation import operation
from terrafirma.paths import BACKUP_PROGRAM

RANDOM_BYTES = 32
"""Of the passphrase. Passwords and secrets are generated in files/terrafirma_host/secrets.py."""


@operation
def keys(directory: str) -> Generator[StringCommand]:
    """
    The passphrase of the repository and the SSH key that opens the backup host, made on the server.

    Without these two no archive can be read again: existing ones are never replaced.
    """
    passphrase, key = f"{directory}/passphrase", f"{directory}/id_ed25519"
    known = host.get_fact(PathStates, paths=[passphrase, key])
    commands = []
    if passphrase not in known:
        commands.append(
            f"( umask 077; head -c {RANDOM_BYTES} /dev/urandom | base64 > {passphrase}.new "
            f"&& mv {passphrase}.new {passphrase} )"
        )
    if key not in known:
        commands.append(f"ssh-keygen -q -t ed25519 -N '' -C \"backup@$(hostname)\" -f {key}")
    if commands:
        yield StringCommand(f"install -d -m 700 {directory} &&", " && ".join(commands))
    else:
        host.noop(f"the keys are in {directory}")


@operation
def show_key(path: str) -> Generator[StringCommand]:
    """The public key at `path`, for the backup host's authorized_keys; changes nothing."""
    for line in host.get_fact(FileContents, path=path) or ():
        host.log_styled(line, fg="green")
    host.noop("shown")
    yield from ()


@operation
def first_backup(
    *, configuration: Sequence[str], stamp: str
) -> Generator[StringCommand | FunctionCommand]:
    """
    One backup with the present configuration, read back, and listed from the repository.

    + configuration: the files that say where to and as whom
    + stamp: where the name of the archive is noted, so that a converged run need not ask the
      backup host
    """
    archive = host.get_fact(FirstArchive, stamp=stamp, configuration=configuration)
    if archive:
        host.noop(f"{archive} proved this configuration")
        return
    # Nothing is pruned: an archive that somebody is about to need must outlive a new start.
    yield FunctionCommand(_make_archive, (), {})
    yield FunctionCommand(_list_archives, (stamp,), {})


def _run(host: Host, command: StringCommand) -> tuple[bool, CommandOutput]:
    return host.run_shell_command(
        command,
        _sudo=bool(host.data.get("_sudo")),
        _sudo_password=host.data.get("_sudo_password", ""),
    )


def _make_archive(state: State, host: Host) -> bool:
    """What it says is shown of a success, too: a database may be missing."""
    made, output = _run(host, StringCommand(BACKUP_PROGRAM, "create"))
    for line in output.stderr_lines:
        host.log_styled(line, fg="yellow" if made else "red")
    return made


def _list_archives(state: State, host: Host, stamp: str) -> bool:
    archives = host.get_fact(Archives)
    if not archives:
        host.log_styled("the repository lists no archive", fg="red")
        return False
    for archive in archives:
        host.log(f"Archive in the repository: {archive}")
    noted, _ = _run(host, StringCommand("echo", QuoteString(archives[-1]), ">", QuoteString(stamp)))
    return noted


@operation
def warn(message: str) -> Generator[StringCommand]:
    """Say `message` where nobody overlooks it; changes nothing."""
    host.log_styled(message, fg="yellow", bold=True)
    host.noop(message)
    yield from ()
