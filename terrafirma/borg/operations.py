"""Backups with borgmatic."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from pyinfra import host
from pyinfra.api import FunctionCommand, Host, QuoteString, State, StringCommand
from pyinfra.connectors.util import CommandOutput
from pyinfra.facts.files import FileContents

from terrafirma.borg.facts import Archives, Backups
from terrafirma.host.files import PathStates
from terrafirma.host.operation import operation
from terrafirma.paths import BACKUP_PROGRAM

RANDOM_BYTES = 32
"""Length of the passphrase. Other secrets are generated in files/terrafirma_host/secrets.py."""


@operation
def keys(directory: str) -> Generator[StringCommand]:
    """
    Generate, on the server, the repository's passphrase and the SSH key for the backup host.

    No archive can be read without the passphrase, so an existing passphrase or key is never
    replaced.
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
    """Print the public key at `path`, for the backup host's authorized_keys; changes nothing."""
    for line in host.get_fact(FileContents, path=path) or ():
        host.log_styled(line, fg="green")
    host.noop("shown")
    yield from ()


@operation
def first_backup(
    *, configuration: Sequence[str], stamp: str, result: str
) -> Generator[StringCommand | FunctionCommand]:
    """
    Make one backup with the present configuration, read it back, and find it in the repository.

    Where that was done before, warn if the last backup failed or is incomplete.

    + configuration: the files with the repository, its keys and the backup host's keys
    + stamp: file for the archive's name, so that later runs need not ask the backup host
    + result: file in which the program noted how the last backup ended
    """
    known = host.get_fact(Backups, stamp=stamp, configuration=configuration, result=result)
    if known["first"]:
        if known["trouble"]:
            host.log_styled(known["trouble"], fg="yellow")
        host.noop(f"{known['first']} proved this configuration")
        return
    # Prune nothing here: a user who sets backups up again may be about to restore an old archive.
    yield FunctionCommand(_make_archive, (), {})
    yield FunctionCommand(_list_archives, (stamp,), {})


def _run(host: Host, command: StringCommand) -> tuple[bool, CommandOutput]:
    return host.run_shell_command(
        command,
        _sudo=bool(host.data.get("_sudo")),
        _sudo_password=host.data.get("_sudo_password", ""),
    )


def _make_archive(state: State, host: Host) -> bool:
    """Show the program's errors even if it succeeds: one database may be missing in the backup."""
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
    """Print `message` as a warning; changes nothing."""
    host.log_styled(message, fg="yellow", bold=True)
    host.noop(message)
    yield from ()
