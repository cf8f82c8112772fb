"""
Deployed servers to start from: clones of a server that was prepared once.

A clone is like a server made from a provider's snapshot: it has the whole disk of the original, and
its own machine-id, name and address.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tests.conftest import ROOT, Pyinfra
from tests.e2e.support import DOMAIN, STATE, Target, eventually, execute, image, output, target

# Everything, besides the image of the target, that decides what a run makes of a server.
DEPLOY = (
    *("tasks", "commands", "terrafirma", "templates", "files", "group_data", "examples"),
    *("deploy.py", "config.py", "requirements.lock", "testbed/target.sh", "testbed/snapshot.sh"),
)


@dataclass(frozen=True)
class Recipe:
    """How to make a server from a bare one, and how to tell that a clone of it is up."""

    name: str
    port: int
    tasks: tuple[str, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    commands: str = ""
    ready: str = "true"
    distro: str = "debian13"

    def digest(self) -> str:
        """Changes with everything that would change the server, and with the date."""
        image(self.distro)
        bare = f"terrafirma/target:{self.distro}"
        bare = output("docker", "image", "inspect", "--format", "{{.Id}}", bare)
        parts = [json.dumps(asdict(self)), bare, time.strftime("%F")]
        if self.tasks:
            parts.append(code())
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


DEPLOYED = Recipe(
    name="deployed",
    port=2401,
    tasks=("deploy.py",),
    # After a boot, Docker starts the replicas again, and Caddy asks each for its health.
    ready="test $(docker ps --quiet --filter health=healthy | wc -l) = 4 && curl --fail --insecure"
    f" --silent --output /dev/null --resolve {DOMAIN}:443:127.0.0.1 https://{DOMAIN}/",
)
HOST = Recipe(
    name="host",
    port=2402,
    tasks=tuple(f"tasks/{task}.py" for task in ("apt", "users", "sshd", "docker", "caddy")),
    data={"apps": {}},
    ready="docker info",
)
POSTGRES = Recipe(
    name="postgres",
    port=2403,
    tasks=("tasks/postgres.py",),
    ready="runuser -u postgres -- psql -c 'select 1'",
)
# A backup host: borg, and an account with SSH keys.
STORAGE = Recipe(
    name="storage",
    port=2404,
    commands="apt-get update -q && apt-get install -qy --no-install-recommends borgbackup"
    " && useradd --create-home box && install -d -m 700 -o box -g box /home/box/.ssh"
    # Tests fail to log in more often than sshd tolerates in a minute.
    " && { ! sshd -T | grep -q persourcepenalties ||"
    " echo 'PerSourcePenalties no' > /etc/ssh/sshd_config.d/penalties.conf; }",
)


def files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    for one in sorted(path.rglob("*")):
        if one.is_file() and "__pycache__" not in one.parts:
            yield one


@cache
def code() -> str:
    parts = hashlib.sha256()
    for name in DEPLOY:
        for path in files(ROOT / name):
            parts.update(f"{path.relative_to(ROOT)}\0{path.stat().st_size}\0".encode())
            parts.update(path.read_bytes())
    return parts.hexdigest()


def snapshot(pyinfra: Pyinfra, recipe: Recipe) -> str:
    """The name of the snapshot of `recipe`; the first caller makes the snapshot."""
    series, digest = f"{recipe.name}-{recipe.distro}", recipe.digest()
    name = f"{series}-{digest}"
    with (STATE / f"snapshot-{series}.lock").open("w") as lock:
        # The lock is released even if the process is killed.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if execute("docker", "image", "inspect", f"terrafirma/snapshot:{name}").returncode:
            with target(pyinfra, f"tf-{recipe.name}", recipe.port, recipe.distro) as server:
                if recipe.commands:
                    server.run(recipe.commands)
                if recipe.tasks:
                    server.deploy(*recipe.tasks, **recipe.data)
                keep = str(ROOT / "testbed/snapshot.sh")
                output(keep, server.name, series, digest, timeout=600)
    return name


@contextmanager
def clone(pyinfra: Pyinfra, name: str, port: int, recipe: Recipe) -> Iterator[Target]:
    """A server as `recipe` makes it, and up; removed afterwards unless KEEP_TARGETS is set."""
    kept = snapshot(pyinfra, recipe)
    with target(pyinfra, name, port, recipe.distro, snapshot=kept) as server:
        serves(server, recipe)
        yield server


def serves(server: Target, recipe: Recipe) -> float:
    """Wait until the server is ready, as after any boot; returns the seconds."""
    return eventually(lambda: server.call(recipe.ready).returncode == 0, 90)


def admit(storage: Target, server: Target, repository: str) -> dict[str, Any]:
    """
    Make a key on the server, and allow it to use one repository on the backup host.

    Returns the settings for the backup host. Backups then run at normal priority: at their own, low
    one they would wait for the tests beside them.
    """
    drop_in = "/etc/systemd/system/borgmatic.service.d"
    server.run(f"mkdir -p {drop_in} && cat > {drop_in}/test.conf", stdin="[Service]\nNice=0\n")
    server.deploy("commands/borg_key.py")
    key = server.run("cat /etc/terrafirma/secrets/borg/id_ed25519.pub")
    storage.run(
        "cat >> /home/box/.ssh/authorized_keys && chown box: /home/box/.ssh/authorized_keys",
        stdin=f'command="borg serve --restrict-to-repository {repository}",restrict {key}\n',
    )
    host_key = storage.run("cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub")
    return {
        "borg_repository": f"ssh://box@{storage.address}{repository}",
        "borg_known_hosts": [f"{storage.address} {host_key}"],
    }


@contextmanager
def backed_up(pyinfra: Pyinfra, name: str, port: int) -> Iterator[tuple[Target, dict[str, Any]]]:
    """A deployed server that has a backup, and the settings for its backup host."""
    with (
        clone(pyinfra, name, port, DEPLOYED) as server,
        clone(pyinfra, f"{name}-store", port + 1, STORAGE) as storage,
    ):
        data = admit(storage, server, "/home/box/server.borg")
        server.deploy("tasks/borg.py", **data)
        yield server, data
