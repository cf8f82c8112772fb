"""sshd admits the declared accounts and the user who deploys, with a key."""

from base64 import b64encode

from pyinfra import host
from pyinfra.api import DeployError

from terrafirma.guard import changes
from terrafirma.guard.operations import guarded
from terrafirma.host.connection import key_in_use
from terrafirma.host.files import put, template
from terrafirma.host.keys import parse
from terrafirma.host.packages import packages
from terrafirma.host.units import unit
from terrafirma.site import begin
from terrafirma.sshd.facts import Logins
from terrafirma.sshd.logins import elsewhere, keyless, misconfigured, obstacles, strangers

server, machine = begin(host)
settings = server.sshd
accounts = {account.name: account for account in server.users.accounts}
users = sorted({machine["user"], *settings.allow_users, *accounts})
drop_in = template(
    "sshd/00-terrafirma.conf.j2",
    "/etc/ssh/sshd_config.d/00-terrafirma.conf",
    data={"password_authentication": settings.password_authentication, "users": users},
)

# root cannot log in with a password, even if other accounts can.
if host.data.get("ssh_password") and (
    machine["user"] == "root" or not settings.password_authentication
):
    raise DeployError(
        f"{host.name}: sshd_password_authentication: you are connected with a password, which "
        "would no longer let you in; connect with a key first"
    )

logins = host.get_fact(
    Logins,
    path=drop_in.path,
    content=drop_in.content,
    users={name: [name, *accounts[name].groups] if name in accounts else [] for name in users},
    connection=machine["connection"],
    me=machine["user"],
    key=b64encode(key_in_use(host) or b"").decode(),
)
wrong = list(misconfigured(logins))
for name in users if not wrong else ():
    account = accounts.get(name)
    if account is None:
        wrong += obstacles(name, logins, keys=[], groups=None)
    elif account.keys:
        keys = [parse(text) for text in account.keys]
        wrong += obstacles(name, logins, keys=keys, groups=[name, *account.groups])
    wrong += keyless(name, logins, passwords=settings.password_authentication)
# Skip declared accounts: this run writes their keys.
if not wrong and machine["user"] not in accounts:
    wrong += elsewhere(machine["user"], logins)
wrong += strangers(users, logins)
if wrong:
    raise DeployError(f"{host.name}: users_accounts: {'; '.join(wrong)}")

packages(name="Install sshd, and Python for the guard", packages=["openssh-server", "python3"])

with guarded(server, machine, changes.logins(server, machine["user"])):
    configuration = put(
        name="Admit only the declared accounts and the deploying user",
        entries=[drop_in],
        # Test the whole configuration, with the new file at its beginning.
        check='mkdir -p /run/sshd && cat "$new" /etc/ssh/sshd_config > "$new.all" && '
        'sshd -t -f "$new.all"; status=$?; rm -f "$new.all"; exit $status',
    )

    # On Ubuntu, systemd listens and starts this unit for the first client.
    unit(
        name="Run sshd",
        unit="ssh.service",
        reload_on={drop_in.path: configuration},
        socket="ssh.socket",
    )
