"""New connections to a host, which show who logs in and becomes root at this moment."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from logging import CRITICAL, getLogger
from pathlib import Path
from typing import Any

import gevent
from paramiko import Agent, ECDSAKey, Ed25519Key, PKey, RSAKey, SSHException
from pyinfra.api import Host, StringCommand
from pyinfra.api.exceptions import ConnectError, PyinfraError
from pyinfra.connectors.ssh import SSHConnector
from pyinfra.connectors.sshuserclient.client import get_host_keys
from typing_extensions import override

from terrafirma.host.facts import MachineState
from terrafirma.host.keys import parse
from terrafirma.server import Server
from terrafirma.sshd.facts import Logins
from terrafirma.sshd.logins import obstacles
from terrafirma.users.settings import Account

SECONDS = 15
"""How long one login may take."""
# Between a reload and the moment in which sshd listens again.
_TRIES = 4
_KINDS: dict[str, type[PKey]] = {
    "ssh-ed25519": Ed25519Key, "ssh-rsa": RSAKey, "ecdsa-sha2-nistp256": ECDSAKey,
    "ecdsa-sha2-nistp384": ECDSAKey, "ecdsa-sha2-nistp521": ECDSAKey,
}  # fmt: skip


def over_ssh(host: Host) -> bool:
    """Whether this run reaches `host` over SSH, as its users do."""
    return isinstance(host.connector, SSHConnector)


@dataclass(frozen=True)
class Login:
    """A login to try."""

    user: str  # empty: as this run is connected
    key: PKey | None = None
    root: bool = False  # it is root already
    port: int = 0  # another port than the one of this run


class _Fresh(SSHConnector):
    """pyinfra's connector with the settings of the host, for one further connection."""

    login = Login("")

    @override
    def make_paramiko_kwargs(self) -> dict[str, Any]:
        words: dict[str, Any] = super().make_paramiko_kwargs()
        words |= {"banner_timeout": SECONDS, "auth_timeout": SECONDS}
        if self.login.key:
            words |= {
                "username": self.login.user, "pkey": self.login.key,
                "allow_agent": False, "look_for_keys": False,
            }  # fmt: skip
            words.pop("password", None)
        if self.login.port:
            words["port"] = self.login.port
        return words


def fails(host: Host, login: Login) -> str:
    """Why `login` does not log in and become root over a new connection; empty if it does."""
    # It prints a traceback for a connection that sshd drops while it reloads.
    getLogger("paramiko.transport").setLevel(CRITICAL)
    # The host's key that this run accepted as a new one is in the file, and counts from now on.
    get_host_keys.cache.clear()
    for left in reversed(range(_TRIES)):
        fresh = _Fresh(host.state, host)
        fresh.login = login
        try:
            with gevent.Timeout(SECONDS):
                fresh.connect()
                return _becomes_root(fresh, login)
        except gevent.Timeout:
            return f"no answer within {SECONDS} s"
        except (ConnectError, PyinfraError, OSError, SSHException, EOFError) as error:
            # Refused logins count against this machine, so only a lost connection is tried again.
            if "uthentication" in str(error) or not left:
                return str(error)
            time.sleep(0.5)
        finally:
            if fresh.client:
                fresh.client.close()
    raise AssertionError("unreachable")


def _becomes_root(fresh: SSHConnector, login: Login) -> str:
    host = fresh.host
    how: dict[str, Any] = {}
    password = host.data.get("_sudo_password") or host.connector_data.get("prompted_sudo_password")
    if login.root:
        question = "id -u 2>&1"
    elif not login.key and password:
        question = "id -u 2>&1"
        how = {"_sudo": True, "_sudo_password": password}
    else:
        question = "sudo -H -n sh -c 'id -u' 2>&1 < /dev/null"
    # pyinfra asks for a password when it reads sudo's own words.
    question = f'echo "it becomes $({question} | tail -n 1)"'
    success, output = fresh.run_shell_command(StringCommand(question), **how)
    lines = [*output.stdout_lines, *output.stderr_lines]
    if success and "it becomes 0" in lines:
        return ""
    said = " ".join(lines[-1:]).removeprefix("it becomes ")
    return f"it logs in, and does not become root: {said or 'no answer'}"


def administrators(server: Server, connected: str) -> list[Account]:
    """The declared accounts with every right and a key, except the connected one."""
    return [
        account
        for account in server.users.accounts
        if account.keys and "ALL" in account.sudo and account.name != connected
    ]


def key_at_hand(host: Host, account: Account, named: Sequence[str]) -> PKey | None:
    """
    A private key on this machine with which `account` may log in.

    + named: its keys as the settings write them, which may be names of files
    """
    wanted = {key.blob: key.kind for key in map(parse, account.keys)}
    for key in _loaded(host):
        with suppress(Exception):
            # A key that needs a touch would make the run wait for a person.
            if not key.get_name().startswith("sk-") and key.asbytes() in wanted:
                return key
    files = [Path(name).expanduser() for name in named if name.endswith(".pub")]
    files += sorted((Path.home() / ".ssh").glob("id_*.pub"))
    for public in files:
        with suppress(OSError, ValueError, SSHException):
            if (kind := wanted.get(parse(public.read_text()).blob)) in _KINDS:
                password = host.data.get("ssh_key_password")
                private = str(public.with_suffix(""))
                try:
                    return _KINDS[kind].from_private_key_file(private)
                except SSHException:
                    return _KINDS[kind].from_private_key_file(private, password=password)
    return None


def _loaded(host: Host) -> Iterator[PKey]:
    """The keys of the run itself, and of the agent."""
    yield from host.state.private_keys.values()
    with suppress(Exception):
        yield from Agent().get_keys()


def shut_out(host: Host, server: Server, machine: MachineState) -> list[str]:
    """The declared accounts that sshd, as it is now, does not let in whatever their keys."""
    accounts = server.users.accounts
    known = host.get_fact(
        Logins,
        # A file with nothing in it, so that sshd's present configuration is asked.
        path="/etc/ssh/sshd_config.d/zz-terrafirma-none.conf",
        content="",
        users={account.name: [] for account in accounts},
        connection=machine["connection"],
        me=machine["user"],
        key="",
    )
    return [
        account.name
        for account in accounts
        if [*obstacles(account.name, known, keys=[parse(key) for key in account.keys], groups=None)]
    ]


def named_keys(host: Host, account: str) -> list[str]:
    """The keys of `account` in the data of the host, before files were read."""
    accounts: Iterable[Any] = host.data.dict().get("users_accounts") or ()
    return [
        str(key)
        for one in accounts
        if isinstance(one, dict) and one.get("name") == account
        for key in one.get("keys") or ()
    ]
