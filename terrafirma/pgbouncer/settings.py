"""Pools of connections."""

from __future__ import annotations

from typing import Self

from pydantic import (
    Field,
    model_validator,
)

from terrafirma.fields import Identifier, Setting, UserPort
from terrafirma.settings import Settings

# What PgBouncer reads only as it starts; everything else follows a reload.
_READ_AT_START = frozenset(
    {"disable_pqexec", "listen_backlog", "pkt_buf", "resolv_conf", "so_reuseport"}
    | {"track_extra_parameters", "unix_socket_group", "unix_socket_mode"}
)
# What tasks/pgbouncer.py says itself, and what would open a way past it.
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
        """Those of `settings` that only a start reads, or the others, as PgBouncer writes them."""
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
