"""Who is admitted to a host, and what prevents it: settings against the answers of its sshd."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pyinfra.api import Host

from terrafirma.guard.logins import administrators, key_at_hand, named_keys
from terrafirma.host.facts import MachineState
from terrafirma.host.keys import parse
from terrafirma.server import Server
from terrafirma.sshd.facts import LoginsState
from terrafirma.sshd.hardening import softer
from terrafirma.sshd.logins import elsewhere, keyless, misconfigured, obstacles, strangers


def admitted(server: Server, connected: str) -> list[str]:
    """The accounts that sshd is to let in; `connected` is the one that deploys."""
    names = {connected, *server.sshd.allow_users, *(one.name for one in server.users.accounts)}
    return sorted(names if server.sshd.root_login else names - {"root"})


def leaving(host: Host, server: Server, machine: MachineState) -> str:
    """Why the connection of this run would be the last one of its kind; empty if it is not."""
    port = machine["connection"].rpartition(" ")[2]
    if server.sshd.ports and port.isdigit() and int(port) not in server.sshd.ports:
        return (
            f"sshd_ports: you are connected to port {port}, which would close; list it too, and "
            "take it out in a run through another port"
        )
    if server.sshd.root_login or machine["user"] != "root":
        return ""
    found = administrators(server, "root")
    if any(key_at_hand(host, one, named_keys(host, one.name)) for one in found):
        return ""
    return (
        "sshd_root_login: you are connected as root, and the private key of no account with "
        f"sudo ALL ({', '.join(one.name for one in found) or 'none is declared'}) is on this "
        "machine, so its login cannot be proved before root is shut out; connect as such an "
        "account, or leave sshd_root_login True"
    )


def refusals(
    server: Server, connected: str, known: LoginsState, hard: Mapping[str, str]
) -> Iterator[str]:
    """What a person has to change on the host first; `known` is as the new file makes it."""
    accounts = {account.name: account for account in server.users.accounts}
    users = admitted(server, connected)
    wrong = list(misconfigured(known))
    for name in users if not wrong else ():
        account = accounts.get(name)
        if account is None:
            wrong += obstacles(name, known, keys=[], groups=None)
        elif account.keys:
            keys = [parse(text) for text in account.keys]
            wrong += obstacles(name, known, keys=keys, groups=[name, *account.groups])
        wrong += keyless(name, known, passwords=server.sshd.password_authentication)
    if not wrong:
        # Skip declared accounts: this run writes their keys.
        if connected not in accounts:
            wrong += elsewhere(connected, known)
        forwards = {name: account.forwards for name, account in accounts.items()}
        wrong += softer(known, hard, forwards or {connected: ()})
        wrong += _ports(server, known)
    yield from wrong
    yield from strangers(users, known)


def _ports(server: Server, known: LoginsState) -> Iterator[str]:
    """Ports of other files, which sshd adds to ours."""
    for login in known["logins"].values():
        more = [port for port in login["rules"].get("port", ()) if server.sshd.ports]
        more = [port for port in more if int(port) not in server.sshd.ports]
        if more:
            places = [place for keyword, place in known["places"] if keyword == "port"]
            where = f" ({', '.join(places)})" if places else ""
            yield f"sshd would listen on other ports, too: {', '.join(more)}{where}"
            return
