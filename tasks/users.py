"""The accounts in `users_accounts`: home, shell, groups, exactly their keys, their sudo."""

from pyinfra import host
from pyinfra.api import DeployError
from pyinfra.facts.files import FindFiles

from terrafirma.facts.accounts import Accounts
from terrafirma.machine import ready
from terrafirma.operations.accounts import accounts
from terrafirma.operations.files import Absent, Directory, Entry, put, template
from terrafirma.operations.packages import packages
from terrafirma.paths import HOST_PROGRAM
from terrafirma.settings import Account, App, Users

machine = ready(host)
settings = Users.of(host)
sudoers_file = "/etc/sudoers.d/90-terrafirma-"

for account in settings.accounts:
    if account.name == machine["user"] and not (account.keys and "ALL" in account.sudo):
        raise DeployError(
            f"{host.name}: users_accounts: you are connected as {account.name!r}, which would lose "
            "its keys or its sudo; give it both, or connect as another user"
        )

for account in settings.accounts:
    # Whose keys release nothing has nothing to do with the applications.
    known_apps = [app.name for app in App.of(host).applications] if account.releases else []
    for name in account.releases:
        if name not in known_apps:
            raise DeployError(
                f"{host.name}: users_accounts: {account.name} releases {name!r}, which is no "
                f"application (app_name, app_more: {', '.join(known_apps) or 'none'})"
            )

for name, known in host.get_fact(
    Accounts, names=[account.name for account in settings.accounts]
).items():
    if known["uid"] < 1000:
        raise DeployError(
            f"{host.name}: users_accounts: {name!r} is an account of the system; take another name"
        )


# All that its keys open and all that sudo lets it do; names of applications need no quotes.
def command(account: Account) -> str:
    return " ".join([HOST_PROGRAM, "forced", *account.releases]) if account.releases else ""


packages(name="Install sudo", packages=["sudo"])

accounts(name="Create the accounts", accounts=settings.accounts)

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
                data={"keys": account.keys, "command": command(account)},
                mode="600",
                user=account.name,
                group=account.name,
                as_owner=True,
            ),
        )
    ],
)


# An account that is no longer declared loses its rights, too.
def sudoers() -> list[Entry]:
    wanted: dict[str, Entry] = {
        f"{sudoers_file}{account.name}": template(
            "users/sudoers.j2",
            f"{sudoers_file}{account.name}",
            data={
                "name": account.name,
                "commands": account.sudo,
                "command": command(account),
            },
            mode="440",
        )
        for account in settings.accounts
        if account.sudo or account.releases
    }
    present = host.get_fact(FindFiles, path="/etc/sudoers.d", fname="90-terrafirma-*")
    # Whoever is connected needs theirs for the rest of this run.
    gone = set(present) - set(wanted) - {f"{sudoers_file}{machine['user']}"}
    return [Absent(path) for path in sorted(gone)] + list(wanted.values())


put(
    name="Allow exactly the declared commands as root",
    entries=sudoers,
    check='visudo -cqf "$new"',
)
