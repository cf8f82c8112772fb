"""Settings of sshd: who may log in, and how."""

from __future__ import annotations

from terrafirma.fields import AccountName
from terrafirma.settings import Settings


class Sshd(Settings):
    prefix = "sshd"

    password_authentication: bool
    allow_users: tuple[AccountName, ...]
