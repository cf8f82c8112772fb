"""Where the backups keep what they need on a host."""

from terrafirma import passwords

SECRETS = f"{passwords.SECRETS}/borg"
"""The passphrase of the repository and the SSH key that opens the backup host."""

PUBLIC_KEY = f"{SECRETS}/id_ed25519.pub"
"""What the backup host must let in."""

CONFIG = "/etc/borgmatic/config.yaml"
"""borgmatic's configuration."""

STATE = "/var/lib/terrafirma/backup"
"""The roles of the last dump."""

STAMP = f"{STATE}/proved-by"
"""Name of the archive that proved the configuration."""
