"""The accounts in `users_accounts` have exactly their home, shell, groups, keys and sudo rules."""

from pyinfra import host
from pyinfra.api import DeployError

from terrafirma.guard.changes import logins
from terrafirma.guard.logins import shut_out
from terrafirma.guard.operations import guarded
from terrafirma.host.asking import ask
from terrafirma.host.connection import key_in_use
from terrafirma.host.files import Directory, put, template
from terrafirma.host.keys import fingerprint, parse
from terrafirma.host.packages import packages
from terrafirma.paths import HOST_PROGRAM
from terrafirma.site import begin
from terrafirma.users.accounts import homes, refusals, undoing
from terrafirma.users.facts import Accounts
from terrafirma.users.operations import accounts, sudo_rules

server, machine = begin(host)
settings = server.users

for account in settings.accounts:
    if account.name != machine["user"]:
        continue
    if not (account.keys and "ALL" in account.sudo):
        raise DeployError(
            f"{host.name}: users_accounts: you are connected as {account.name!r}, which would lose "
            "its keys or its sudo; give it both, or connect as another user"
        )
    key = key_in_use(host)
    if key and key not in [parse(text).blob for text in account.keys]:
        shown = "a certificate" if b"-cert-v01@" in key[:64] else f"the key {fingerprint(key)}"
        raise DeployError(
            f"{host.name}: users_accounts: you are connected as {account.name!r} with {shown}, "
            "which is not one of its keys, and would no longer be let in; add the key to them, or "
            "connect with another"
        )

if machine["user"] != "root" and machine["user"] not in [one.name for one in settings.accounts]:
    host.log_styled(
        f"you are connected as {machine['user']!r}, which users_accounts does not name: it keeps "
        "its keys and sudo as long as you deploy with it",
        fg="yellow",
    )

known = ask(host, Accounts, homes=homes(settings.accounts))
if wrong := list(refusals(settings.accounts, known)):
    raise DeployError(f"{host.name}: {'; '.join(wrong)}")

# The only command that the keys of a releasing account run, and that sudo allows it. Names of
# applications need no quotes.
commands = {
    account.name: " ".join([HOST_PROGRAM, "forced", *account.releases])
    for account in settings.accounts
    if account.releases
}

packages(name="Install sudo, and Python for the guard", packages=["sudo", "python3"])

before = [known["accounts"].get(account.name) for account in settings.accounts]
undo = [undoing(one, now) for one, now in zip(settings.accounts, before, strict=True) if now]

with guarded(
    server,
    machine,
    logins(server, machine["user"], first=filter(None, undo)),
    # tasks/sshd.py will let them in.
    missing=lambda: shut_out(host, server, machine),
):
    accounts(name="Create the accounts", accounts=settings.accounts, connected=machine["user"])

    put(
        name="Authorize exactly the declared keys",
        entries=[
            entry
            for account in settings.accounts
            for entry in (
                Directory(
                    f"{account.directory}/.ssh", "700", account.name, account.name, as_owner=True
                ),
                template(
                    "users/authorized_keys.j2",
                    f"{account.directory}/.ssh/authorized_keys",
                    data={"keys": account.keys, "command": commands.get(account.name, "")},
                    mode="600",
                    user=account.name,
                    group=account.name,
                    as_owner=True,
                ),
            )
        ],
    )

    sudo_rules(
        name="Allow exactly the declared commands as root",
        accounts=settings.accounts,
        commands=commands,
        spare=machine["user"],
    )
