"""
Managed by Terrafirma. Mounts of files and directories of the source, which each release replaces.

Configuration is mounted read-only. Directories that hold data become volumes, which last. Code that
the image has, too, is not mounted. Each of these is said in a line of the release.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from terrafirma_host.spec import Application

Mount = Mapping[str, Any]

# Files that programs write: databases, logs, certificates.
WRITTEN = re.compile(r".*\.(db|sqlite3?|sqlite-\w+|log|pid|rdb|aof)|acme\.json")
# Files of configuration, by the ends of their names.
CONFIGURES = re.compile(
    r".*\.(conf|cnf|cfg|ini|ya?ml|json|toml|xml|properties|env|pem|crt|key|sql|sh|py|js|rb|php|html"
    r"|tmpl|template|j2|tpl|rules|hcl|lua|acl|htpasswd)|Caddyfile|Corefile|\.env.*|\.htpasswd"
)
# Directories in a container from which programs only read.
READ = re.compile(
    r"/(etc|usr/(local/)?(etc|share)|docker-entrypoint[^/]*)(/.*)?"
    r"|.*/(conf|configs?|conf\.d|configuration|templates?|provisioning|dashboards|rules|certs?|ssl"
    r"|initdb|init|scripts|sql|migrations|fixtures|themes|locales?|realms?|import|html|public"
    r"|static|assets)/?"
)
# Directories in a container that hold data.
DATA = re.compile(
    r"/(data|bitnami|backups?|dump|storage|uploads?|media|files|logs?|cache|var/lib|var/log"
    r"|var/opt|var/backups|var/spool|var/cache|opt/[^/]+/(data|logs))(/.*)?"
    r"|.*/(data|uploads?|media|storage|logs?|backups?|cache|database|db|tmp|node_modules|\.n8n)/?"
)
# Directories in a container into which a build installs packages, or compiles.
INSTALLED = re.compile(
    r".*/(node_modules|bower_components|vendor|\.?venv|site-packages|\.next|\.nuxt|\.yarn|_build)"
)
# What Compose takes for a path of Windows: a volume with a name of one letter.
DRIVE = re.compile(r"[A-Za-z]:[/\\]")
PATH = "x-terrafirma-directory"
"""Key of a volume that stands for a directory of the source: that directory."""
KINDS = ("read", "code", "data")
# Bytes of a Dockerfile that are read.
LARGEST = 2**20
# Files that keep an empty directory in a repository.
PLACEHOLDERS = {".gitkeep", ".keep", ".gitignore", ".empty", "README.md", "README"}


@dataclass(frozen=True)
class Changed:
    """The mounts of a service as they are here, and lines about those that the files have not."""

    mounts: list[Mount]
    lines: list[str]


def changed(app: Application, name: str, service: Mapping[str, Any],
            volumes: dict[str, Any]) -> Changed:  # fmt: skip
    """
    The mounts of a service as they are here.

    + volumes: those of the project, by their keys; this adds those that stand for directories
    """
    kept: list[Mount] = []
    lines: list[str] = []
    gone: list[str] = []
    mounts = service.get("volumes") or []
    for mount in mounts:
        target, source = mount["target"], mount.get("source") or ""
        if mount["type"] == "volume" and not source and _below(target, gone):
            # It kept the mounted code from hiding a directory of the image.
            continue
        if mount["type"] == "volume" and not source and _is_built(service, target):
            lines.append(f"{name}: {target} is the image's own directory, not a volume without a "
                         "name: each release has what its build installs")  # fmt: skip
            continue
        if not _in_source(app, mount):
            kept.append(mount)
            continue
        word = _word(app, source)
        match _kind(service, mount):
            case "read":
                kept.append({**mount, "read_only": True})
                lines.append(f"{name}: {word} is mounted read-only at {target}: each release has "
                             "its own files")  # fmt: skip
            case "code":
                gone.append(target)
                lines.append(f"{name}: {word} is not mounted at {target}: the image has its own "
                             "copy, which the Dockerfile makes")  # fmt: skip
            case "data":
                key = _key(app, source, volumes)
                volumes[key] = {"name": f"{app.name}_{key}", PATH: source}
                kept.append({"type": "volume", "source": key, "target": target})
                lines.append(f"{name}: {target} is the volume {key}, not {word}: that would go "
                             "with the source of a release")  # fmt: skip
            case _:
                kept.append(mount)
    return Changed(kept, lines)


def _is_built(service: Mapping[str, Any], target: str) -> bool:
    """Whether a volume without a name only keeps what the build of the image puts there."""
    return bool(service.get("build")) and bool(INSTALLED.fullmatch(posixpath.normpath(target)))


def _word(app: Application, path: str) -> str:
    """A path in the source as the files write it."""
    below = posixpath.relpath(path, app.source)
    return "." if below == "." else f"./{below}"


def _in_source(app: Application, mount: Mount) -> bool:
    source = mount.get("source") or ""
    inside = app.source and PurePosixPath(source).is_relative_to(app.source)
    return bool(mount["type"] == "bind" and inside and not mount.get("read_only"))


def _below(path: str, tops: Iterable[str]) -> bool:
    return any(PurePosixPath(path).is_relative_to(top) for top in tops)


def _kind(service: Mapping[str, Any], mount: Mount) -> str:
    """What becomes of a mount, one of KINDS; or else the words of a refusal."""
    # Compose prints each dollar sign twice.
    path = Path(mount["source"].replace("$$", "$"))
    target = posixpath.normpath(mount["target"])
    context = (service.get("build") or {}).get("context") or ""
    if path.is_file():
        if WRITTEN.fullmatch(path.name):
            return (f"is a file that is written at {target}, and would go with the source of a "
                    "release: mount a directory, which becomes a volume")  # fmt: skip
        return "read"
    if not path.exists():
        if CONFIGURES.fullmatch(posixpath.basename(target)):
            return (f"is not in the source, so {target} would be an empty directory: add the file, "
                    "or see that it is uploaded")  # fmt: skip
        return "data"
    code = context and (path == Path(context) or path.is_relative_to(context)
                        or Path(context).is_relative_to(path))  # fmt: skip
    if DATA.fullmatch(target) or not any(_files(path)):
        return "data"
    if code and not READ.fullmatch(target):
        return "code" if _copies(service, path, context) else "read"
    return "read"


def is_configuration(target: str) -> bool:
    """Whether what is mounted at a path of a container is only read, by its name."""
    named = posixpath.basename(target)
    return bool(READ.fullmatch(target) or CONFIGURES.fullmatch(named) or WRITTEN.fullmatch(named))


def _files(path: Path) -> Iterator[Path]:
    """The files of a directory that are more than placeholders."""
    return (one for one in path.rglob("*") if one.is_file() and one.name not in PLACEHOLDERS)


def _copies(service: Mapping[str, Any], path: Path, context: str) -> bool:
    """Whether the Dockerfile of a service copies a directory of its context, or all of it."""
    build = service["build"]
    text = build.get("dockerfile_inline")
    if text is None:
        try:
            # A deploy key may have sent it, of any size.
            with Path(context, build.get("dockerfile") or "Dockerfile").open("rb") as file:
                text = file.read(LARGEST).decode(errors="replace")
        except OSError:
            return False
    text = re.sub(r"\\\s*\n", " ", text)
    inner = posixpath.relpath(path, context) if path.is_relative_to(context) else "."
    for line in re.findall(r"(?im)^[ \t]*(?:COPY|ADD)[ \t]+(.+)$", text):
        if "--from=" in line:
            continue
        words = [one.strip('",[]') for one in line.split() if not one.startswith("--")]
        for word in words[:-1]:
            source = posixpath.normpath(word.strip("/") or ".")
            if source in (".", inner) or inner.startswith(f"{source}/"):
                return True
    return False


def _key(app: Application, source: str, volumes: Mapping[str, Any]) -> str:
    """The key of the volume for a directory: its path with hyphens."""
    path = posixpath.relpath(source, app.source)
    key = re.sub(r"[^A-Za-z0-9_.]+", "-", path).strip("-.") or "source"
    taken = key in volumes and (volumes[key] or {}).get(PATH) != source
    return f"{key}-directory" if taken else key


# --- the engine's socket --------------------------------------------------------------------------

# Paths by which a container reaches the engine, and so may do anything on the host.
SOCKET = re.compile(r"/|/var|(/var)?/run|(/var)?/run/(docker|containerd|podman|user)(/.*)?"
                    r"|.*/(docker|containerd|podman|balena-engine)\.sock")  # fmt: skip


def refusals(app: Application, name: str, service: Mapping[str, Any]) -> Iterator[str]:
    """Why the mounts of a service are refused: what its image would lose, or gain."""
    for mount in service.get("volumes") or []:
        path = posixpath.normpath(mount.get("source") or ".")
        if words := next(filter(DRIVE.match, (mount.get("source") or "", mount["target"])), ""):
            yield (f"{name}: volumes: {words} is a path of Windows for Compose, because the name "
                   f"{words[0]} has one letter: take a longer name")  # fmt: skip
        if mount["type"] != "bind":
            continue
        if SOCKET.fullmatch(path) and name not in app.docker_socket:
            yield _socket(app, name, path)
        if _in_source(app, mount) and (kind := _kind(service, mount)) not in KINDS:
            yield f"{name}: volumes: {_word(app, path)} {kind}"


def has_socket(service: Mapping[str, Any]) -> bool:
    """Whether a service mounts the engine's socket."""
    binds = [one for one in service.get("volumes") or [] if one["type"] == "bind"]
    return any(SOCKET.fullmatch(posixpath.normpath(one["source"])) for one in binds)


def _socket(app: Application, name: str, path: str) -> str:
    what = path if path.endswith(".sock") else f"{path}, where Docker's socket is,"
    away = f', or leave_out = ["{name}"] if it is not needed' if name != app.service else ""
    return (
        f"docker_socket: {name} mounts {what} and could do anything on the host as root: "
        f'docker_socket = ["{name}"] if it may{away}'
    )
