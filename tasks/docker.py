"""The Docker engine, with bounded logs, containers that outlive it, and declared subnets."""

import json
from ipaddress import IPv4Network

from pyinfra import host
from pyinfra.api import DeployError
from pyinfra.facts.files import FileContents

from terrafirma.apt.operations import install, look
from terrafirma.docker.daemon import is_json, runtime_paths, unknown
from terrafirma.docker.facts import DockerAddresses
from terrafirma.docker.operations import connect
from terrafirma.host.asking import ask
from terrafirma.host.facts import UsedNetworks
from terrafirma.host.files import File, PathStates, put, source, template
from terrafirma.host.machine import distribution
from terrafirma.host.units import unit
from terrafirma.paths import DOCKER_ENGINE, DOCKER_PORTS
from terrafirma.site import begin

server, machine = begin(host)
settings = server.docker
daemon_json = "/etc/docker/daemon.json"
drop_in = "/etc/systemd/system/docker.service.d/terrafirma.conf"

if machine["foreign_engine"] and server.apt.source == "distro":
    raise DeployError(
        f"{host.name}: apt_source: the distribution's engine would replace "
        f"{', '.join(machine['foreign_engine'])} on the host; remove that first"
    )

if machine["snaps"]:
    raise DeployError(
        f"{host.name}: snap: the snap {', '.join(machine['snaps'])} on the host is an engine of "
        "its own, on the same socket; save its volumes, and remove it first: snap remove docker"
    )

engine = look(host, server, machine, "docker")
version = engine.numbers or distribution(machine).engine

if newer := list(unknown(settings.daemon, version)):
    raise DeployError(f"{host.name}: docker_daemon: {'; '.join(newer)}")
# Without these programs no container would start, at the latest after the next boot.
if runtimes := runtime_paths(settings.daemon):
    there = host.get_fact(PathStates, paths=runtimes)
    for path in runtimes:
        if path not in there or not int(there[path]["mode"], 8) & 0o100:
            raise DeployError(
                f"{host.name}: docker_daemon: runtimes: {path} on the host is not a program: "
                "install it first"
            )
profile = settings.daemon.get("seccomp-profile", "builtin")
if profile != "builtin" and not is_json(host.get_fact(FileContents, path=profile)):
    raise DeployError(
        f"{host.name}: docker_daemon: seccomp-profile: {profile} on the host is missing or not a "
        "profile (JSON): put one there, or leave the key out"
    )

# PostgreSQL admits connections from every address of the pool.
for network in map(IPv4Network, machine["networks"]):
    if network.overlaps(settings.address_pool):
        raise DeployError(
            f"{host.name}: docker_address_pool: {settings.address_pool} overlaps {network}, which "
            "the server shares with its neighbours; use another private network"
        )

present = "\n".join(host.get_fact(FileContents, path=daemon_json) or [])
if present and "managed-by=terrafirma" not in present:
    raise DeployError(
        f"{host.name}: docker_daemon: {daemon_json} on the host is not ours; move what you need of "
        "it to docker_daemon, and the file away"
    )


def docker0() -> str:
    """
    The address of docker0: the present one, or else in the first free subnet of the pool.

    It is declared because PostgreSQL listens on it: an engine that chooses the address itself may
    choose another one at the next boot.
    """
    if declared := json.loads(present or "{}").get("bip"):
        return str(declared)
    if present_addresses := [one for one in ask(host, DockerAddresses) if "." in one]:
        return present_addresses[0]
    # Ignore the routes of some VPNs to the two halves of the internet.
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
    **settings.daemon,
    "bip": docker0(),
    "default-address-pools": [{"base": str(settings.address_pool), "size": settings.subnet_size}],
    "labels": ["managed-by=terrafirma"],
    "live-restore": True,
    "log-driver": "local",
    "log-opts": {"max-file": str(settings.log_max_files), "max-size": settings.log_max_size},
    # Let the kernel's rules forward ports: a proxy dies with the daemon, and its connections too.
    "userland-proxy": False,
}

policy = put(
    name="Keep the engine and its ports available",
    entries=[
        source("docker/docker-ports", DOCKER_PORTS, mode="755"),
        source("docker/docker-engine", DOCKER_ENGINE, mode="755"),
        template(
            "docker/service.conf.j2",
            drop_in,
            data={
                "docker_ports": DOCKER_PORTS,
                "docker_engine": DOCKER_ENGINE,
                "ipv6": bool(daemon_settings.get("ipv6")),
            },
        ),
    ],
)

# Before the package, so that the daemon's first start already uses it.
configuration = put(
    name="Configure the engine",
    entries=[File(daemon_json, json.dumps(daemon_settings, indent=2, sort_keys=True))],
    check=f'{DOCKER_ENGINE} check "$new"',
)

install(name="Install the engine", server=server, machine=machine, engine="docker")

unit(
    name="Run the engine",
    unit="docker.service",
    unit_files={drop_in: policy},
    restart_on={daemon_json: configuration},
    restart_command=f"{DOCKER_ENGINE} restart",
)

reached = {
    clients: {one.port: one.program for one in server.sockets if one.clients == clients}
    for clients in ("internet", "containers")
}
# Port 80 may be closed on purpose.
reached["internet"].pop(80, None)
connect(
    name="Connect the containers",
    networks=settings.networks,
    serves=reached["internet"],
    guests=reached["containers"],
)
