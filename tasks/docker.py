"""The Docker engine, with bounded logs, containers that outlive the daemon, and known subnets."""

import json

from pyinfra import host
from pyinfra.api import DeployError
from pyinfra.facts.files import FileContents

from terrafirma.machine import distribution, ready
from terrafirma.operations.docker import networks
from terrafirma.operations.files import File, put
from terrafirma.operations.packages import packages
from terrafirma.operations.services import unit
from terrafirma.settings import Docker

machine = ready(host)
settings = Docker.of(host)
daemon_json = "/etc/docker/daemon.json"

present = "\n".join(host.get_fact(FileContents, path=daemon_json) or [])
if present and "managed-by=terrafirma" not in present:
    raise DeployError(
        f"{host.name}: docker_daemon: {daemon_json} on the host is not ours; move what you need of "
        "it to docker_daemon, and the file away"
    )

# Before the package: the daemon's first start is already the right one.
configuration = put(
    name="Configure the engine",
    entries=[
        File(
            daemon_json,
            json.dumps(
                {
                    "default-address-pools": [
                        {"base": str(settings.address_pool), "size": settings.subnet_size}
                    ],
                    "labels": ["managed-by=terrafirma"],
                    "live-restore": True,
                    "log-driver": "local",
                    "log-opts": {
                        "max-file": str(settings.log_max_files),
                        "max-size": settings.log_max_size,
                    },
                    **settings.daemon,
                },
                indent=2,
                sort_keys=True,
            ),
        )
    ],
    # Before version 23 the daemon cannot check a file.
    check="! dockerd --help 2> /dev/null | grep -q -- --validate || "
    'dockerd --validate --config-file "$new" > /dev/null',
)

packages(name="Install the engine", packages=distribution(machine).docker)

unit(
    name="Run the engine",
    unit="docker.service",
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
