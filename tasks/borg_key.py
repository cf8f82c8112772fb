"""Shows the key that the backup host must let in; makes it first. Not a part of `deploy.py`."""

from pyinfra import host

from terrafirma.backup import PUBLIC_KEY, SECRETS
from terrafirma.machine import ready
from terrafirma.operations.backup import keys, show_key
from terrafirma.operations.packages import packages

ready(host)

packages(name="Install ssh-keygen", packages=["openssh-client"])

keys(name="Create the keys", directory=SECRETS)

show_key(name="Add this key to the backup host", path=PUBLIC_KEY)
