"""The settings that a project most likely needs, from its files."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from terrafirma_host import databases, images
from terrafirma_host.layers import Project

from terrafirma.app.compose import DEFAULTS, default_file
from terrafirma.app.env_files import EXAMPLES
from terrafirma.app.frameworks import (
    Framework,
    exposed,
    framework_of,
    health_paths,
    listens,
    migrates,
)
from terrafirma.app.listening import bound, checked_path
from terrafirma.app.settings import Application
from terrafirma.fields import here
from terrafirma.settings import text as as_text

# Ports on which applications serve HTTP, the most usual first.
_HTTP = (80, 8000, 8080, 3000, 5000, 4000, 443, 8443)
_NAMES = ("web", "app", "site", "www", "frontend", "nginx", "server", "api")

# Names of variables whose value is a secret.
_SECRET = re.compile(r"(?i)(password|passwd|secret|token|(?<!public_)key|_pw|salt)(_base)?$")
# … and of those that others issue: a generated value would not be theirs.
_ISSUED = re.compile(
    r"(?i)(api_?key|access_key|client_secret|webhook_secret|licen[cs]e(_key)?|(?<!jwt_)token)$"
    r"|^(smtp|e?mail|aws|s3|stripe|paypal|openai|anthropic|sendgrid|mailgun|postmark|twilio|slack"
    r"|github|gitlab|google|cloudflare|sentry|oauth)_"
)


def settings_of(directory: str) -> dict[str, Any]:
    """The entry of `apps` to begin with, for a directory that no settings name yet."""
    for below in ("", "*/"):
        for name in DEFAULTS:
            found = sorted(Path(directory).glob(f"{below}{name}"))
            # Directories like .devcontainer are for tools.
            for file in (one for one in found if not one.parent.name.startswith(".") or not below):
                return {"source": directory, "compose": [file.relative_to(directory).as_posix()]}
        if (Path(directory) / "Dockerfile").is_file():
            break
    return {"source": directory}


# Proxies that find the services they lead to by Docker's socket, in place of which Caddy is here.
_PROXY = re.compile(
    r"(^|/)(traefik|nginx-proxy|caddy-docker-proxy|swag|nginx-proxy-manager)(:|@|$)"
)


def _is_replaced(service: Mapping[str, Any]) -> bool:
    """Whether a service is a proxy that Caddy replaces."""
    return "build" not in service and bool(_PROXY.search(str(service.get("image") or "")))


def web_service(services: Mapping[str, Any]) -> str:
    """The service that most likely serves HTTP; "" without a service."""

    def likely(name: str) -> tuple[int, int, int]:
        service = services[name]
        ports = ports_of(service)
        usual = min((_HTTP.index(one) for one in ports if one in _HTTP), default=len(_HTTP))
        named = _NAMES.index(name) if name in _NAMES else len(_NAMES)
        strange = (not ports) + ("build" not in service) + 3 * _is_replaced(service)
        return strange, named, usual

    serving = [
        name
        for name, service in services.items()
        if "build" in service or not databases.is_database(str(service.get("image") or ""))
    ]
    always = [name for name in serving if not services[name].get("profiles")]
    return min(always or serving, key=likely, default="")


def ports_of(service: Mapping[str, Any]) -> list[int]:
    """The ports in a container that a service publishes."""
    return [int(port["target"]) for port in service.get("ports") or [] if "target" in port]


# --- what a refusal asks for ----------------------------------------------------------------------


def answers(
    data: Mapping[str, Any], project: Project | None, refusals: Sequence[str]
) -> dict[str, Any]:
    """Fields without which the refusals stay, and whose values the files tell."""
    found: dict[str, Any] = {}
    wanted: list[str] = []
    for line in refusals:
        if re.search(r"\.service: the compose files have no service", line) and project:
            found |= {"service": name} if (name := web_service(project["services"])) else {}
        socket = re.search(r"\.docker_socket: ([\w.-]+) mounts ", line)
        if socket and project and _is_replaced(project["services"][socket[1]]):
            found["leave_out"] = [*data.get("leave_out", []), socket[1]]
        wanted += re.findall(r"\$\{(\w+)\} \(", line)
        wanted += re.findall(r"required variable (\w+) is", line)
    wanted = [name for name in dict.fromkeys(wanted) if name not in data.get("env", {})]
    if file := _env_file(data, wanted):
        return found | {"env_file": [*data.get("env_file", []), file]}
    env = {name: value_of(name, data) for name in wanted if not _SECRET.search(name)}
    secrets = {
        name.lower(): f"env:{name}" if _ISSUED.search(name) else "generated"
        for name in wanted
        if _SECRET.search(name)
    }
    if env:
        found["env"] = {**(data.get("env") or {}), **env}
    if secrets:
        found |= {"secrets": {**(data.get("secrets") or {}), **secrets}, "secrets_env": True}
    return found


# What stands for a value that only you know, by the name of its variable, or by its place.
_VALUES = (
    (r"(?i)(^|_)(uid|gid|puid|pgid)$", "1000"),
    (r"(?i)port$", "8000"),
    (r"(?i)(tag|version)$", "latest"),
    (r"(?i)(replicas|count|workers|concurrency|timeout|size)$", "1"),
    (r"(?i)(time_?zone|^tz)$", "UTC"),
)


def value_of(name: str, data: Mapping[str, Any]) -> str:
    """A value for a variable: that of the project's example, or one that stands for yours."""
    source = here(as_text(data["source"])) if data.get("source") else None
    if source and (example := examples(source).get(name)):
        return example
    names = data.get("compose") or ([default_file(source)] if source else [])
    for file in [source / name for name in names] if source else []:
        try:
            text = file.read_text(errors="replace")
        except OSError:
            continue
        variable = rf"\$\{{?{name}\b[^\s:\"']*"
        if re.search(rf"{variable}:/(?!/)|\bsource:\s*[\"']?{variable}", text):
            # The path of a mount.
            return f"/srv/{name.lower()}"
    if re.search("(?i)(domain|host|hostname)$", name):
        return str(data["domain"])
    if re.search("(?i)(url|origin)$", name):
        return f"https://{data['domain']}"
    return next((value for pattern, value in _VALUES if re.search(pattern, name)), "…")


def examples(directory: Path) -> dict[str, str]:
    """The variables of the example of an env file, with the values that it proposes."""
    found: dict[str, str] = {}
    for name in reversed(EXAMPLES):
        found |= _assigned(directory / name)
    return found


def _assigned(file: Path) -> dict[str, str]:
    """The variables of an env file, as a guess is made from them."""
    try:
        text = file.read_text(errors="replace")
    except OSError:
        return {}
    pairs = re.findall(r"(?m)^\s*(?:export\s+)?([A-Za-z_]\w*)\s*=(.*)$", text)
    found: dict[str, str] = {}
    for name, value in pairs:
        found.setdefault(name, re.sub(r"\s+#.*$", "", value).strip().strip("\"'"))
    return found


def _env_file(data: Mapping[str, Any], wanted: Sequence[str]) -> str:
    """The file of this machine that has all these variables; "" where there is none."""
    for name in (".env.production", ".env.prod", ".env") if data.get("source") else ():
        path = posixpath.normpath(posixpath.join(as_text(data["source"]), name))
        if wanted and {*wanted} <= _assigned(here(path)).keys():
            return "" if path in data.get("env_file", []) else path
    return ""


# --- what is usual --------------------------------------------------------------------------------


class Usual:
    """What the framework of an application usually needs, as far as the settings lack it."""

    def __init__(
        self, data: Mapping[str, Any], app: Application | None, project: Project | None, source: str
    ) -> None:
        """`source` is the directory of its files in `project`."""
        self.data = data
        services = project["services"] if app and app.compose and project else {}
        self.service: Mapping[str, Any] = services.get(app.service or app.name, {}) if app else {}
        self.context = self._directory(app, source)
        self.dockerfile = self._dockerfile()
        self.directory = self._code()
        self.framework = framework_of(self.directory) if self.directory else None
        self.bound, self.inside = bound(self.directory) if self.directory else (0, "")
        theirs = checked_path(self.service, self.dockerfile, ports_of(self.service))
        self.paths = [theirs] if theirs else []
        self.paths += health_paths(self.directory) if self.directory else []

    def _directory(self, app: Application | None, source: str) -> Path | None:
        """Where the code of the web service is on this machine."""
        if not app or not app.source:
            return None
        if not app.compose:
            return app.source_directory
        context = str((self.service.get("build") or {}).get("context", ""))
        if not source or not context.startswith(source):
            return None
        directory = app.source_directory / context[len(source) :].lstrip("/")
        return directory if directory.is_dir() else None

    def _name(self) -> str:
        """The path of the Dockerfile in the context."""
        build = self.service.get("build") or {}
        return str(build.get("dockerfile") or self.data.get("dockerfile") or "Dockerfile")

    def _code(self) -> Path | None:
        """In a repository of several applications, the one that has the Dockerfile beside it."""
        below = (self.context / self._name()).parent if self.context else None
        own = below if below and ".." not in below.parts and below.is_dir() else None
        return own if own and framework_of(own) else self.context

    def _dockerfile(self) -> str:
        build = self.service.get("build") or {}
        if text := build.get("dockerfile_inline"):
            return str(text)
        try:
            file = self.context / self._name() if self.context else None
            return file.read_text(errors="replace") if file else ""
        except OSError:
            return ""

    def fields(self) -> dict[str, Any]:
        """The usual fields, by name."""
        defaults = {key: field.default for key, field in Application.model_fields.items()}
        return {
            key: value
            for key, value in self._each()
            if key not in self.data and value != defaults[key]
        }

    def words(self) -> list[str]:
        """Lines about what no setting decides."""
        if not self.framework:
            return []
        more = f": {self.framework.words}" if self.framework.words else ""
        lines = [f"looks like {self.framework.name}{more}"]
        if not self.paths and "health_path" not in self.data and not self.framework.health:
            path = Application.model_fields["health_path"].default
            lines.append(f"no path of a health check is in its code: {path} has to answer 200, or "
                         "health_path names another")  # fmt: skip
        if self.inside:
            lines.append(f"{self.inside} listens on 127.0.0.1, which Caddy does not reach: it has "
                         "to listen on 0.0.0.0")  # fmt: skip
        return lines

    def _each(self) -> Iterator[tuple[str, Any]]:
        framework = self.framework
        if port := self._port(framework):
            yield "container_port", port
        if paths := self.paths or [framework.health if framework else ""]:
            yield "health_path", paths[0] or Application.model_fields["health_path"].default
        if not framework:
            return
        commands = [str(self.service.get(key)) for key in ("command", "entrypoint")]
        if framework.migrate and self.directory and not migrates(self.directory, commands):
            yield "migrate", list(framework.migrate)
        theirs = self.service.get("environment") or {}
        env = {
            name: value
            for name, value in framework.env.items()
            if name not in theirs and not re.search(rf"\b{name}\b", self.dockerfile)
        }
        if env and "env" not in self.data:
            yield "env", env
        if framework.key and framework.key not in theirs and "secrets" not in self.data:
            yield "secrets", {framework.key.lower(): "generated"}
            yield "secrets_env", True

    def _port(self, framework: Framework | None) -> int:
        if ports_of(self.service) or self.service.get("expose") or exposed(self.dockerfile):
            # The host takes it from there, too.
            return 0
        port = listens(self.dockerfile)
        port = port or self.bound
        port = port or (framework.port if framework and not self.service else 0)
        return 0 if port == images.USUAL else port
