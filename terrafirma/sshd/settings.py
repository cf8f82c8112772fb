"""Settings of sshd: who may log in, and how."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from terrafirma.fields import AccountName, Port, refuse_duplicates
from terrafirma.settings import Settings


class Sshd(Settings):
    prefix = "sshd"

    password_authentication: bool
    allow_users: tuple[AccountName, ...]
    root_login: bool
    ports: tuple[Port, ...]
    max_auth_tries: int = Field(ge=2, le=10)

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse_duplicates("sshd_ports", map(str, self.ports))
        if not self.root_login and "root" in self.allow_users:
            raise ValueError(
                "sshd_root_login: sshd_allow_users has root, which is to be shut out: decide"
            )
        return self
