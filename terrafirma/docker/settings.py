"""Settings of the Docker engine, its logs and its networks."""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import Annotated, Any, Self

from pydantic import (
    Field,
    model_validator,
)

from terrafirma.docker import daemon
from terrafirma.fields import NetworkName, VersionPrefix, refuse_duplicates
from terrafirma.settings import Settings

_PRIVATE_NETWORKS = tuple(map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))


class Docker(Settings):
    prefix = "docker"

    version: VersionPrefix
    address_pool: Annotated[IPv4Network, Field(title="private IPv4 network")]
    subnet_size: int = Field(ge=16, le=29)
    log_max_size: Annotated[
        str, Field(pattern=r"^[1-9][0-9]*[kmg]$", title="number and `k`, `m` or `g`")
    ]
    log_max_files: int = Field(ge=1, le=1000)
    networks: tuple[NetworkName, ...]
    daemon: dict[str, Any]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.subnet_size <= self.address_pool.prefixlen:
            raise ValueError(
                f"docker_subnet_size: /{self.subnet_size} is not smaller than the pool "
                f"{self.address_pool}: use a number above {self.address_pool.prefixlen}"
            )
        if not any(self.address_pool.subnet_of(private) for private in _PRIVATE_NETWORKS):
            raise ValueError(
                f"docker_address_pool: {self.address_pool} is not a private network (RFC 1918)"
            )
        if wrong := list(daemon.refuse(self.daemon)):
            raise ValueError(f"docker_daemon: {'; '.join(wrong)}")
        refuse_duplicates("docker_networks", self.networks)
        for reserved in sorted({"bridge", "host", "none", "default"} & set(self.networks)):
            raise ValueError(
                f"docker_networks: {reserved!r} is a name of Docker's own; use another"
            )
        return self
