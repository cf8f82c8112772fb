"""sshd admits the declared accounts and the user who deploys, with a key, and offers no more."""

from base64 import b64encode

from pyinfra import host
from pyinfra.api import DeployError

from terrafirma.guard import changes
from terrafirma.guard.operations import guarded
from terrafirma.host.connection import key_in_use
from terrafirma.host.files import put, template
from terrafirma.host.packages import packages
from terrafirma.host.units import unit
from terrafirma.paths import SSHD_SOCKET
from terrafirma.site import begin
from terrafirma.sshd.admission import admitted, leaving, refusals
from terrafirma.sshd.facts import Logins
from terrafirma.sshd.hardening import forwarding, hardening, listening

server, machine = begin(host)
settings = server.sshd
accounts = {account.name: account for account in server.users.accounts}
users = admitted(server, machine["user"])
hard = hardening(machine["openssh"], machine["host_keys"], settings.max_auth_tries)
drop_in = template(
    "sshd/00-terrafirma.conf.j2",
    "/etc/ssh/sshd_config.d/00-terrafirma.conf",
    data={
        "password_authentication": settings.password_authentication,
        "root_login": settings.root_login,
        "users": users,
        "ports": settings.ports,
        "hardening": hard,
        "forwards": {
            one.name: forwarding(one.forwards) for one in server.users.accounts if one.forwards
        },
    },
)

# root cannot log in with a password, even if other accounts can.
if host.data.get("ssh_password") and (
    machine["user"] == "root" or not settings.password_authentication
):
    raise DeployError(
        f"{host.name}: sshd_password_authentication: you are connected with a password, which "
        "would no longer let you in; connect with a key first"
    )
if wrong := leaving(host, server, machine):
    raise DeployError(f"{host.name}: {wrong}")

if machine["user"] not in users:
    host.log_styled(
        "sshd_root_login: root is shut out by this run, once an administrator has logged in; from "
        "the next run on, connect as one (ssh_user)",
        fg="yellow",
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
if wrong := "; ".join(refusals(server, machine["user"], logins, hard)):
    raise DeployError(f"{host.name}: users_accounts: {wrong}")

packages(name="Install sshd, and Python for the guard", packages=["openssh-server", "python3"])

with guarded(server, machine, changes.logins(server, machine["user"])):
    configuration = put(
        name="Admit only the declared accounts and the deploying user",
        entries=[drop_in],
        # Test the whole configuration, with the new file at its beginning.
        check='mkdir -p /run/sshd && cat "$new" /etc/ssh/sshd_config > "$new.all" && '
        'sshd -t -f "$new.all"; status=$?; rm -f "$new.all"; exit $status',
    )

    # Where systemd listens for sshd, as on Ubuntu, this file decides.
    ports = put(
        name="Have systemd listen on the declared ports", entries=[listening(settings.ports)]
    )

    unit(
        name="Run sshd",
        unit="ssh.service",
        reload_on={drop_in.path: configuration},
        socket="ssh.socket",
        socket_files={SSHD_SOCKET: ports},
    )
