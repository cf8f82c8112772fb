"""The Docker engine, with bounded logs, containers that outlive the daemon, and known subnets."""

import json
from ipaddress import IPv4Network

from pyinfra import host
from pyinfra.api import DeployError
from pyinfra.facts.files import FileContents

from terrafirma.facts.docker import DockerAddresses
from terrafirma.facts.machine import UsedNetworks
from terrafirma.machine import distribution, ready
from terrafirma.operations.docker import networks
from terrafirma.operations.files import File, put, source, template
from terrafirma.operations.packages import packages
from terrafirma.operations.services import unit
from terrafirma.paths import DOCKER_PORTS
from terrafirma.settings import Docker

machine = ready(host)
settings = Docker.of(host)
daemon_json = "/etc/docker/daemon.json"
drop_in = "/etc/systemd/system/docker.service.d/terrafirma.conf"

if machine["foreign_engine"]:
    raise DeployError(
        f"{host.name}: apt_source: the distribution's engine would replace "
        f"{', '.join(machine['foreign_engine'])} on the host; remove that first"
    )

present = "\n".join(host.get_fact(FileContents, path=daemon_json) or [])
if present and "managed-by=terrafirma" not in present:
    raise DeployError(
        f"{host.name}: docker_daemon: {daemon_json} on the host is not ours; move what you need of "
        "it to docker_daemon, and the file away"
    )


# Declared, because an engine that elects it may elect another one at the next boot, and PostgreSQL
# listens on it: where docker0 is now, or else the first subnet of the pool that is free.
def docker0() -> str:
    if declared := json.loads(present or "{}").get("bip"):
        return str(declared)
    if elected := [address for address in host.get_fact(DockerAddresses) if "." in address]:
        return elected[0]
    # Halves of the internet, as some VPNs route them, say nothing of a private network.
    used = [
        network
        for network in (IPv4Network(one) for one in host.get_fact(UsedNetworks))
        if network.prefixlen > 1
    ]
    subnets = settings.address_pool.subnets(new_prefix=settings.subnet_size)
    free = (one for one in subnets if not any(one.overlaps(other) for other in used))
    if (subnet := next(free, None)) is None:
        raise DeployError(
            f"{host.name}: docker_address_pool: the host has routes into all of "
            f"{settings.address_pool}; use another private network"
        )
    return f"{next(subnet.hosts())}/{subnet.prefixlen}"


daemon_settings = {
    "bip": docker0(),
    "default-address-pools": [{"base": str(settings.address_pool), "size": settings.subnet_size}],
    "labels": ["managed-by=terrafirma"],
    "live-restore": True,
    "log-driver": "local",
    "log-opts": {"max-file": str(settings.log_max_files), "max-size": settings.log_max_size},
    # A proxy for each port dies with the daemon, and its connections with it; the kernel's rules
    # stay, and are faster.
    "userland-proxy": False,
    **settings.daemon,
}

# Before the package: the daemon's first start is already the right one.
configuration = put(
    name="Configure the engine",
    entries=[File(daemon_json, json.dumps(daemon_settings, indent=2, sort_keys=True))],
    # Before version 23 the daemon cannot check a file.
    check="! dockerd --help 2> /dev/null | grep -q -- --validate || "
    'dockerd --validate --config-file "$new" > /dev/null',
)

policy = put(
    name="Keep the engine running, and its ports answering as it starts",
    entries=[
        source("docker/docker-ports", DOCKER_PORTS, mode="755"),
        template(
            "docker/service.conf.j2",
            drop_in,
            data={
                "docker_ports": DOCKER_PORTS,
                # Its proxies answer at 127.0.0.1 themselves; there the rules lead nowhere.
                "keep_ports": not daemon_settings["userland-proxy"],
                "ipv6": bool(daemon_settings.get("ipv6")),
            },
        ),
    ],
)

packages(name="Install the engine", packages=distribution(machine).docker)

unit(
    name="Run the engine",
    unit="docker.service",
    unit_files={drop_in: policy},
    restart_on={daemon_json: configuration},
    # A reload switches live-restore on: only then a restart leaves the containers alone.
    restart_command="systemctl reload docker.service && sleep 1 && "
    "{ test \"$(docker info --format '{{.LiveRestoreEnabled}}')\" = true || "
    'test -z "$(docker ps --quiet)" || '
    "{ echo 'docker_daemon: without live-restore a restart would stop containers' >&2; "
    "exit 1; }; } && "
    "systemctl restart docker.service",
)

networks(name="Create the networks of the applications", names=settings.networks)
