"""Release an application, and give it its secrets."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from functools import cache
from secrets import token_hex
from types import MappingProxyType

from pyinfra import host
from pyinfra.api import FunctionCommand, Host, QuoteString, State, StringCommand
from pyinfra.api.operation import OperationMeta

from terrafirma.app.facts import AppSecrets, DatabaseUrl, ReleaseStatus, owner_of_secrets
from terrafirma.host.operation import failure, operation
from terrafirma.host.program import told
from terrafirma.paths import HOST_PROGRAM, PASSWORDS, SECRETS_PROGRAM


@cache
def name_of(run: State) -> str:
    """A name of this run: on the host, all its questions about an image have one answer."""
    return token_hex(8)


# The trouble that `terrafirma status` reports on a host without a key of releases.
NO_RELEASE_YET = "there was no release yet on this host"


@operation
def release(
    app: str,
    *,
    description: str,
    revision: str,
    by: str,
    after: Sequence[OperationMeta] = (),
    notes: Sequence[str] = (),
) -> Generator[FunctionCommand | StringCommand]:
    """
    Make an application serve what its description says. A failure leaves the old release serving.

    + description: the content of NAME.json, which the same run may have yet to write
    + revision: of the source, for the list of releases
    + by: who releases
    + after: operations of the same run whose changes make another release
    + notes: what to know about a release that is made

    pyinfra's docker.compose runs `up` on each run, which stops all containers before new ones run.
    """
    known = host.get_fact(ReleaseStatus, app=app, _stdin=[description, name_of(host.state)])
    planned = any(not meta.is_complete() and meta.will_change for meta in after)
    if known["withdrawn"]:
        host.log_styled(
            f"{app}: release {known['wanted']} was rolled back, and {known['serving']} serves: "
            f"change the source and deploy; or release it after all with "
            f"`sudo terrafirma release {app} --again` on the host",
            fg="yellow",
        )
    if known["trouble"] == NO_RELEASE_YET and not planned:
        host.log(f"{app}: no release yet; this is the first")
    elif known["trouble"] and not planned:
        host.log(f"{app}: cannot tell if it is current: {known['trouble'].splitlines()[0]}")
    # pyinfra's plan does not show that an operation will fail, so a warning does.
    planned_failure = [] if host.state.is_executing else known["troubles"]
    for words in [*known["silent"], *planned_failure, *known["notes"]]:
        host.log_styled(f"{app}: {words}", fg="yellow")
    if not known["current"] or planned:
        for words in notes:
            host.log(f"{app}: {words}")
        # After a rollback the release that serves still gets the current settings and secrets.
        how = (
            ["refresh"]
            if known["withdrawn"]
            else ["release", "--run", name_of(host.state), "--revision", QuoteString(revision)]
        )
        yield _streamed(*how, QuoteString(app), "--by", QuoteString(by))
        known = host.get_fact(ReleaseStatus, app=app, _stdin=[description, name_of(host.state)])
    if known["troubles"]:
        yield failure(f"{app} does not answer: {'; '.join(known['troubles'])}")
    else:
        host.noop(f"release {known['serving']} of {app} serves, and answers")


@operation
def rollback(app: str, *, release: str, by: str) -> Generator[FunctionCommand]:
    """
    Make an earlier release of an application serve again.

    + release: its name; empty: the release before the present one
    """
    which = [QuoteString(release)] if release else []
    yield _streamed("rollback", QuoteString(app), *which, "--by", QuoteString(by))


@operation
def refresh(app: str, *, by: str) -> Generator[FunctionCommand]:
    """Release the code that serves again, with the current settings and secrets."""
    yield _streamed("refresh", QuoteString(app), "--by", QuoteString(by))


def _streamed(*words: str | QuoteString) -> FunctionCommand:
    return FunctionCommand(_stream, (StringCommand(HOST_PROGRAM, *words),), {})


def _stream(state: State, host: Host, command: StringCommand) -> bool:
    """Run a command that may take minutes, and show its output as it comes."""
    sudo = {key: host.data.get(key) for key in ("_sudo", "_sudo_password") if host.data.get(key)}
    status, _ = host.run_shell_command(
        command, print_output=True, print_input=state.print_input, **sudo
    )
    return status


@operation
def app_secrets(
    directory: str,
    *,
    secrets: Iterable[str],
    given: Mapping[str, str],
    user: str,
    private: Mapping[str, str] = MappingProxyType({}),
) -> Generator[StringCommand]:
    """
    Files with the secrets of an application. Secrets without a given value are generated once.

    + directory: where the files go, 0700 and root's; created if missing
    + secrets: the names of all secrets
    + given: the values that come from this machine, by name
    + user: the only account that may read the files; empty: every id in a container (0444, root's)
    + private: further values, by names that start with a dot; only root can read their files

    The program on the host writes and compares the files; values travel on its standard input. A
    file that your settings do not mention is listed, and never changed.
    """
    values = {**{name: given.get(name) for name in secrets}, **private}
    stdin = told(values, user)
    known = host.get_fact(AppSecrets, directory=directory, _stdin=stdin)
    if known["other"]:
        host.log(f"Not in your settings, left alone: {directory}/ {', '.join(known['other'][:10])}")
    if not known["wrong"]:
        host.noop(f"{len(values)} secrets in {directory} match your settings")
        return
    if not host.state.is_executing:
        host.log(f"  {', '.join(known['wrong'])}")
    yield StringCommand(SECRETS_PROGRAM, "set", QuoteString(directory), _stdin=stdin)


@operation
def database_url(path: str, *, url: str, role: str, user: str) -> Generator[StringCommand]:
    """
    A file that holds the URL of a database, with the password that was generated on the server.

    + path: the file, in a directory that only root may enter
    + url: with `*` where the password goes
    + role: the role whose password it is
    + user: the only account that may read the file; empty: every id in a container
    """
    known = host.get_fact(DatabaseUrl, path=path, url=url, role=role, user=user)
    if known == "right":
        host.noop(f"{path} is up to date")
        return
    # In a dry run on a bare host, earlier tasks have yet to create the account and the password.
    if host.state.is_executing and known == "no account":
        yield failure(f"there is no account {user!r}; run tasks/users.py first")
    if host.state.is_executing and known == "no password":
        yield failure(f"role {role!r} has no password yet; run tasks/postgres.py first")
    before, _, after = url.partition("*")
    mode, owner = owner_of_secrets(user)
    yield StringCommand(
        StringCommand("file=", QuoteString(path), _separator=""),
        '; umask 077; mkdir -p "${file%/*}" &&',
        f'printf "%s\\n" "{before}$(cat {PASSWORDS}/{role}){after}" > "$file.new" &&',
        f'chown {owner}: "$file.new" && chmod {mode} "$file.new" && mv -f "$file.new" "$file"',
    )
