"""An application's description for the program on the host, and where its source comes from."""

from __future__ import annotations

import getpass
import json
import socket
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from pyinfra.api import DeployError, Host

from terrafirma.app.env_files import ENV_FILE, given
from terrafirma.app.environment import text_of
from terrafirma.app.hashes import tree_digest
from terrafirma.app.left_out import entries, env_files
from terrafirma.app.public import SLOT_PORTS, Guard, Public, covers, matched
from terrafirma.app.registries import file_of
from terrafirma.app.selection import selection
from terrafirma.app.settings import Application
from terrafirma.users.settings import Users


def uploaded_source(app: Application) -> str:
    """Where the source of `app` is on the host: a directory named after its content; or ""."""
    if not app.source:
        return ""
    return f"{app.directory}/sources/{tree_digest(app.source_directory, selection(app))}"


def description(app: Application, users: Users, *, routed: bool = False) -> str:
    """
    The content of NAME.json: the fields of files/terrafirma_host/spec.py; nothing secret.

    + routed: whether each release writes how Caddy reaches it, although the settings need it not
    """
    secrets = {name: f"{app.secrets_directory}/{name}" for name in app.secrets}
    secrets |= {one: f"{app.secrets_directory}/{one}" for one in app.database_urls.values()}
    data: dict[str, Any] = app.model_dump(
        include={
            *("name", "image", "dockerfile", "target", "compose", "stateful", "shared", "scratch"),
            *("read_only", "writable", "volumes", "profiles", "leave_out"),
            *("docker_socket", "database_replaces"),
            *("migrate", "cron", "strategy", "secrets_env"),
            *("domain", "smoke_path", "container_port", "replicas", "user"),
            *("protocol", "health", "health_path", "health_headers"),
            *("memory_mb", "cpus", "timeout_seconds"),
            *("backup_command", "backup_after", "backup_seconds", "backup_leave_out"),
            *("start_seconds", "drain_seconds", "stop_seconds"),
        }
    )
    data |= {
        "managed by Terrafirma": "tasks/app.py",
        "source": uploaded_source(app),
        "selection": selection(app).as_json() if app.source else {},
        "service": app.service or app.name,
        "services": {name: one.told() for name, one in app.services.items()},
        "build_args": {name: text_of(value) for name, value in app.build_args.items()},
        "env": {name: text_of(value) for name, value in app.env.items()},
        "secrets": secrets,
        "variables": sorted(given(app)),
        "env_file": f"{app.secrets_directory}/{ENV_FILE}" if app.env_file else "",
        "env_files": env_files(app),
        "registries": {
            host: {"user": login.user, "password": f"{app.secrets_directory}/{file_of(host)}"}
            for host, login in app.registries.items()
        },
        "slots": app.slots,
        "network": app.network,
        "keep": app.keep_releases,
        "guarded": _is_guarded(app.guards, app.page),
        "routed": routed or app.needs_routes,
        "public": {name: _public(app, name, one) for name, one in app.public.items()},
        "automated": any(app.name in account.releases for account in users.accounts),
    }
    return json.dumps(data, indent=2, sort_keys=True) + "\n"


def source_in(described: str) -> str:
    """Where the source of an application is on the host, by its description; or ""."""
    return str(json.loads(described)["source"])


def refuse_further_files(host: Host, app: Application, users: Users) -> None:
    """Raise DeployError where a deploy key could replace a file that a compose file reads."""
    for words in further_files(app, users):
        raise DeployError(f"{host.name}: {app.key('compose')}: {words}")


def further_files(app: Application, users: Users) -> Iterator[str]:
    """
    A line for each compose file that reads further files, which a deploy key could replace.

    On the host, root reads only the compose files of the deploy, never those that a key sends.
    """
    if not any(app.name in account.releases for account in users.accounts):
        return
    for name in app.compose:
        try:
            further = _reads_further(yaml.compose((app.source_directory / name).read_text()))
        except (yaml.YAMLError, OSError, ValueError, RecursionError) as error:
            yield f"{name} is not YAML: {' '.join(str(error).split())}"
            continue
        if further:
            yield (
                f"{name} reads further files ({further}), which its deploy key could change: list "
                "them in compose instead"
            )


def _reads_further(top: yaml.Node | None) -> str:
    """The key by which a compose file reads others: `include`, or `extends` with a file; or ""."""
    tops = {id(top)}
    for node, word, value in entries(top):
        if word == "<<" and id(node) in tops:
            # Keys that are merged into the top level count as keys of the top level.
            tops |= {id(value), *(id(more) for more in value.value)}
        if (word == "include" and id(node) in tops) or (
            word == "extends"
            and isinstance(value, yaml.MappingNode)
            and [name.value for name, _ in value.value] != ["service"]
        ):
            return str(word)
    return ""


def _public(app: Application, name: str, one: Public) -> dict[str, Any]:
    """A public service: the fields of Public in files/terrafirma_host/public.py."""
    own = app.guards if (one.domain or app.domain) == app.domain else ()
    first = app.public_ports.get(name, 0)
    return one.model_dump(include={"protocol", "health", "health_path", "health_headers"}) | {
        "domain": one.domain or "",
        "paths": one.paths,
        "prefix": one.prefix,
        "container_port": one.port,
        "replicas": one.containers,
        "slots": {"blue": first, "green": first + SLOT_PORTS},
        "guarded": _is_guarded((*own, *one.guards_of()), one.page[0]),
    }


def _is_guarded(guards: Iterable[Guard], path: str) -> bool:
    return any(covers(matched(guard.path), path) for guard in guards)


def revision(directory: Path) -> str:
    """The commit of a source, with "+" if files differ from it; empty outside of a repository."""

    def git(*words: str) -> str:
        result = subprocess.run(
            ["git", "-C", str(directory), *words], capture_output=True, text=True, check=False
        )
        return result.stdout.strip() if result.returncode == 0 else ""

    try:
        commit = git("rev-parse", "HEAD")
        return commit and commit + ("+" if git("status", "--porcelain", "--", ".") else "")
    except FileNotFoundError:
        return ""


def deployer() -> str:
    """The user and machine that run pyinfra, for the list of releases."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = "unknown"
    return f"{name}@{socket.gethostname()}"
