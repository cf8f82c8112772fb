"""sshd lets in the declared accounts and whoever deploys, with a key."""

from pyinfra import host
from pyinfra.api import DeployError

from terrafirma.machine import ready
from terrafirma.operations.files import put, template
from terrafirma.operations.packages import packages
from terrafirma.operations.services import unit
from terrafirma.settings import Sshd, Users

machine = ready(host)
settings = Sshd.of(host)
drop_in = "/etc/ssh/sshd_config.d/00-terrafirma.conf"

# Not even with passwords allowed does root get in with one.
if host.data.get("ssh_password") and (
    machine["user"] == "root" or not settings.password_authentication
):
    raise DeployError(
        f"{host.name}: sshd_password_authentication: you are connected with a password, which "
        "would no longer let you in; connect with a key first"
    )

packages(name="Install sshd", packages=["openssh-server"])

configuration = put(
    name="Allow the declared accounts and whoever deploys",
    entries=[
        template(
            "sshd/00-terrafirma.conf.j2",
            drop_in,
            data={
                "password_authentication": settings.password_authentication,
                "users": sorted(
                    {
                        machine["user"],
                        *settings.allow_users,
                        *(account.name for account in Users.of(host).accounts),
                    }
                ),
            },
        )
    ],
    # The whole configuration, with the new file in its place: first.
    # An sshd_config without Debian's Include would ignore it.
    check="grep -Eqi '^ *Include +/etc/ssh/sshd_config.d/' /etc/ssh/sshd_config || "
    "{ echo '/etc/ssh/sshd_config does not include sshd_config.d/*.conf' >&2; exit 1; }; "
    'mkdir -p /run/sshd && cat "$new" /etc/ssh/sshd_config > "$new.all" && '
    'sshd -t -f "$new.all"; status=$?; rm -f "$new.all"; exit $status',
)

unit(name="Run sshd", unit="ssh.service", reload_on={drop_in: configuration})
