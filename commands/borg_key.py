"""Print the public key for the backup host, generated if missing. Not a part of `deploy.py`."""

from pyinfra import host

from terrafirma.borg.operations import keys, show_key
from terrafirma.host.packages import packages
from terrafirma.paths import BACKUP_KEY, BACKUP_SECRETS
from terrafirma.site import begin

begin(host)

packages(name="Install ssh-keygen", packages=["openssh-client"])

keys(name="Create the backup keys", directory=BACKUP_SECRETS)

show_key(name="Add this key to the backup host", path=BACKUP_KEY)
