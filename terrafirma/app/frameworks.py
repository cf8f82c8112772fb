"""The framework of an application, recognised by its files, and the lines that it usually needs."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from terrafirma.app.hashes import look


@dataclass(frozen=True)
class Framework:
    """What applications of one kind usually need."""

    name: str
    port: int
    """The port on which they listen if nobody chooses another."""
    migrate: tuple[str, ...] = ()
    key: str = ""
    """The variable with the key that signs sessions, in capital letters; it can be generated."""
    env: Mapping[str, str] = field(default_factory=dict)
    health: str = ""
    """The path of a health check that the framework itself has."""
    words: str = ""
    """What no field of the settings decides."""


HOSTS = "the health check asks with the domain as host: the application has to allow it"

FRAMEWORKS: Mapping[str, Framework] = {
    one.name: one
    for one in (
        Framework(
            "Django", 8000, ("python", "manage.py", "migrate", "--no-input"),
            words=f"ALLOWED_HOSTS: {HOSTS}",
        ),
        Framework("FastAPI", 8000),
        Framework("Flask", 5000),
        Framework(
            "Rails", 3000, ("bin/rails", "db:migrate"), "SECRET_KEY_BASE",
            {"RAILS_ENV": "production"}, "/up",
            f"config.hosts: {HOSTS}; config.assume_ssl = true, since Caddy has the certificate",
        ),
        Framework("Sinatra", 4567),
        Framework(
            "Laravel", 8000, ("php", "artisan", "migrate", "--force"), "",
            {"APP_ENV": "production"}, "/up",
            "APP_KEY (`php artisan key:generate --show`) is a secret that you give",
        ),
        Framework("Symfony", 8000, key="APP_SECRET", env={"APP_ENV": "prod"}),
        Framework(
            "Next.js", 3000, env={"HOSTNAME": "0.0.0.0"},
            words="the build fixes variables named NEXT_PUBLIC_…: they are build_args, not env",
        ),
        Framework("Nuxt", 3000, env={"HOST": "0.0.0.0"}),
        Framework("NestJS", 3000),
        Framework("Remix", 3000),
        Framework("SvelteKit", 3000),
        Framework("Fastify", 3000, words="it listens on 127.0.0.1 unless told `host: '0.0.0.0'`"),
        Framework("Express", 3000),
        Framework(
            "Phoenix", 4000, ("/app/bin/migrate",), "SECRET_KEY_BASE", {"PHX_SERVER": "true"},
            words="PHX_HOST is the domain",
        ),
        Framework("Spring Boot", 8080, env={"SERVER_FORWARD_HEADERS_STRATEGY": "framework"}),
        Framework("Quarkus", 8080),
        Framework("ASP.NET", 8080, env={"ASPNETCORE_FORWARDEDHEADERS_ENABLED": "true"}),
        Framework("Go", 8080),
        Framework("Rust", 8080),
        Framework("PHP", 80),
        Framework("a static site", 80),
    )
}  # fmt: skip


def framework_of(directory: Path) -> Framework | None:
    """The framework of the application in a directory; None where no file tells."""
    for tell in (_python, _ruby, _php, _node, _elixir, _java, _others):
        if name := tell(directory):
            return FRAMEWORKS[name]
    return None


def _text(directory: Path, *names: str) -> str:
    found = []
    for name in names:
        try:
            found.append((directory / name).read_text(errors="replace"))
        except OSError:
            continue
    return "\n".join(found)


def _python(directory: Path) -> str:
    text = _text(directory, "requirements.txt", "Pipfile", "setup.py", "setup.cfg", "Dockerfile",
                 "requirements/base.txt", "requirements/production.txt")  # fmt: skip
    try:
        project = tomllib.loads(_text(directory, "pyproject.toml"))
        text += "\n" + json.dumps(
            [project.get("project", {}).get("dependencies"), list(
                project.get("tool", {}).get("poetry", {}).get("dependencies", {}))]
        ).replace('"', "\n")  # fmt: skip
    except (tomllib.TOMLDecodeError, AttributeError, TypeError):
        pass
    packages = set(re.findall(r"(?mi)(?:^|[\s\"'])(django|fastapi|flask)\b(?![-/.\w])", text))
    packages = {one.lower() for one in packages}
    if (directory / "manage.py").is_file() and "django" in _text(directory, "manage.py").lower():
        return "Django"
    for package, name in (("django", "Django"), ("fastapi", "FastAPI"), ("flask", "Flask")):
        if package in packages:
            return name
    return ""


def _ruby(directory: Path) -> str:
    gems = re.findall(r"(?m)^\s*gem\s*\(?\s*['\"]([\w-]+)", _text(directory, "Gemfile"))
    return "Rails" if {"rails", "railties"} & {*gems} else "Sinatra" if "sinatra" in gems else ""


def _php(directory: Path) -> str:
    wanted = _json(directory / "composer.json").get("require") or {}
    if "laravel/framework" in wanted:
        return "Laravel"
    if "symfony/framework-bundle" in wanted:
        return "Symfony"
    return "PHP" if (directory / "index.php").is_file() or wanted else ""


def _node(directory: Path) -> str:
    package = _json(directory / "package.json")
    wanted = {*(package.get("dependencies") or {}), *(package.get("devDependencies") or {})}
    for name, packages in (
        ("Next.js", {"next"}),
        ("Nuxt", {"nuxt"}),
        ("NestJS", {"@nestjs/core"}),
        ("Remix", {"@remix-run/serve", "@react-router/serve"}),
        ("SvelteKit", {"@sveltejs/adapter-node"}),
        ("Fastify", {"fastify"}),
        ("Express", {"express", "koa"}),
    ):
        if packages & wanted:
            return name
    return ""


def _elixir(directory: Path) -> str:
    return "Phoenix" if re.search(r"\{\s*:phoenix\s*,", _text(directory, "mix.exs")) else ""


_BUILDS = ("pom.xml", "build.gradle", "build.gradle.kts")


def _java(directory: Path) -> str:
    text = _text(directory, *_BUILDS)
    if "spring-boot" in text or "org.springframework.boot" in text:
        return "Spring Boot"
    return "Quarkus" if "quarkus" in text else ""


def _others(directory: Path) -> str:
    if any(directory.glob("*.csproj")) or any(directory.glob("*/*.csproj")):
        return "ASP.NET"
    for name, file in (("Go", "go.mod"), ("Rust", "Cargo.toml"), ("a static site", "index.html")):
        if (directory / file).is_file():
            return name
    return ""


def _json(file: Path) -> Mapping[str, Any]:
    try:
        read = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


# --- the health check -----------------------------------------------------------------------------

# Paths of health checks, the most telling first.
_PATHS = (
    *("healthz", "health", "healthcheck", "health-check", "health_check", "_health", "livez"),
    *("readyz", "up", "ready", "live", "ping", "status"),
)
_ROUTE = re.compile(
    rf"""["'`](?P<path>/?(?:(?:api|actuator|v1|_)/)?(?:{"|".join(_PATHS)})/?)["'`]"""
)
_CODE = (".py", ".rb", ".php", ".js", ".mjs", ".cjs", ".ts", ".go", ".ex", ".exs", ".java", ".kt",
         ".cs", ".rs", ".conf")  # fmt: skip
# Next.js groups routes in directories that are no part of their path.
_GROUP = re.compile(r"/\([^/()]+\)(?=/)")
# A file with a route, in frameworks whose routes are files.
_FILE = re.compile(
    rf"(?:^|/)(?:app|pages|server/routes|server|routes)(?P<path>(?:/\w+)*/(?:{'|'.join(_PATHS)}))"
    r"(?:/route|/index|/\+server|\.get)?\.(?:js|ts|jsx|tsx)$"
)
_TESTS = re.compile(
    r"(?:^|/)(?:tests?|spec|__tests__|node_modules|vendor)/|[._-](?:test|spec)\.|(?:^|/)test_"
)
MOST = 2000
"""Files that are looked at."""


def health_paths(directory: Path) -> list[str]:
    """The paths of health checks that the code names, the most telling first."""
    found: set[str] = set()
    names = look(directory).paths
    files = ((name, directory / name) for name in names if not (directory / name).is_symlink())
    for name, path in islice(files, MOST):
        if _TESTS.search(name):
            continue
        if match := _FILE.search(_GROUP.sub("", name)):
            found.add(match["path"])
        elif path.suffix in _CODE and path.stat().st_size < 2**18:
            text = path.read_text(errors="replace")
            routes = [match["path"] for match in _ROUTE.finditer(text) if _is_route(text, match)]
            found |= {f"/{one.lstrip('/')}" for one in routes}
    if "spring-boot-starter-actuator" in _text(directory, *_BUILDS):
        found.add("/actuator/health")
    return sorted(found, key=_rank)


def _is_route(text: str, match: re.Match[str]) -> bool:
    """Whether a path is written as a route is: with a slash, or after a word for a route."""
    if match["path"].startswith("/"):
        return True
    before = text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
    return bool(
        re.search(r"\b(?:path|re_path|get|route|Get|GetMapping|resource)\s*\(?\s*$", before)
    )


def _rank(path: str) -> tuple[int, int, str]:
    last = path.strip("/").rpartition("/")[2]
    return _PATHS.index(last), len(path), path


# --- the Dockerfile -------------------------------------------------------------------------------


def exposed(dockerfile: str) -> list[int]:
    """The ports of a Dockerfile's last stage, as far as the file itself names them."""
    stage = re.split(r"(?mi)^\s*FROM\s", dockerfile)[-1]
    words = " ".join(re.findall(r"(?mi)^\s*EXPOSE\s+(.+)$", stage)).split()
    return [int(one.partition("/")[0]) for one in words if re.fullmatch(r"\d+(/tcp)?", one)]


def listens(dockerfile: str) -> int:
    """The port in a Dockerfile's command; 0 where it names none."""
    commands = re.findall(r"(?mi)^\s*(?:CMD|ENTRYPOINT|ENV)\s+(.+)$", dockerfile)
    pattern = (
        r"(?:--port|-p|--bind|-b|--http\.port|PORT|0\.0\.0\.0)[\s\"',=:]*(?:[\w.]*:)?(\d{2,5})\b"
    )
    for command in reversed(commands):
        if match := re.search(pattern, command):
            return int(match[1])
    return 0


def migrates(directory: Path, commands: Sequence[str]) -> bool:
    """Whether a container migrates by itself when it starts."""
    texts = [*commands, *(_text(directory, path.name) for path in directory.glob("*.sh"))]
    texts += [_text(directory, "Dockerfile", "docker/entrypoint.sh", "bin/docker-entrypoint")]
    return any(re.search(r"\bmigrate\b|db:prepare|db:migrate", text) for text in texts)
