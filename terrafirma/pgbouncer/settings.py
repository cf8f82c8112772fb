"""Settings of PgBouncer."""

from __future__ import annotations

from typing import Self

from pydantic import (
    Field,
    model_validator,
)

from terrafirma.fields import Identifier, Setting, UserPort
from terrafirma.settings import Settings

# Settings that PgBouncer reads only when it starts; it reads all others on a reload, too.
_READ_AT_START = frozenset(
    {"disable_pqexec", "listen_backlog", "pkt_buf", "resolv_conf", "so_reuseport"}
    | {"track_extra_parameters", "unix_socket_group", "unix_socket_mode"}
)
# Settings that tasks/pgbouncer.py writes, and settings that would circumvent it.
_POOLER_DERIVED = frozenset(
    {"listen_addr", "listen_port", "unix_socket_dir", "default_pool_size", "max_client_conn"}
    | {"admin_users", "stats_users", "conffile", "job_name", "service_name", "user"}
    | {"logfile", "pidfile"}
)


class PgBouncer(Settings):
    prefix = "pgbouncer"

    enabled: bool
    port: UserPort
    pool_size: int = Field(ge=1, le=1000)
    # LimitNOFILE in templates/pgbouncer/restart.conf.j2 has room for them and the pools.
    max_clients: int = Field(ge=1, le=50_000)
    settings: dict[Identifier, Setting]

    def chosen(self, *, at_start: bool) -> dict[str, str]:
        """The settings that need a restart, or else those that do not, in PgBouncer's spelling."""
        return {
            name: str(int(value) if isinstance(value, bool) else value)
            for name, value in self.settings.items()
            if (name in _READ_AT_START) == at_start
        }

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key in sorted(self.settings):
            if key in _POOLER_DERIVED or key.startswith("auth_"):
                raise ValueError(f"pgbouncer_settings: {key} is derived; it cannot be set here")
        return self
