"""Shows the key that the backup host must let in; makes it first. Not a part of `deploy.py`."""

from pyinfra import host

from terrafirma.machine import ready
from terrafirma.operations.backup import keys, show_key
from terrafirma.operations.packages import packages
from terrafirma.paths import BACKUP_KEY, BACKUP_SECRETS

ready(host)

packages(name="Install ssh-keygen", packages=["openssh-client"])

keys(name="Create the keys", directory=BACKUP_SECRETS)

show_key(name="Add this key to the backup host", path=BACKUP_KEY)
