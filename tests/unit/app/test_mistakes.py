"""Mistakes in a project or in its settings: each is one line with its file, service and key."""

from pathlib import Path
from typing import Any

import pytest

from terrafirma.app.check import check

DATA = {"domain": "shop.acme.com", "compose": ["compose.yaml"], "service": "web"}

# Lines of compose.yaml below `services: web: build: .`, and what the one line begins with.
LINES: dict[str, tuple[str, str]] = {
    "a tab": ("\tports: []", ": compose.yaml, line 4: found character '\\t' that cannot start any"),
    "a brace": ("    ports: {", ": compose.yaml, line 5: expected the node content, but found"),
    "a key twice": ("    build: .", ': compose.yaml: line 4: mapping key "build" already defined'),
    "an unknown key": (
        "    prots: ['80:80']",
        ": compose.yaml, line 4: services.web additional properties 'prots' not allowed",
    ),
    "a wrong type": (
        "    environment: 3",
        ": compose.yaml, line 4: services.web.environment must be a mapping",
    ),
    "a wrong name": (
        "    container_name: a b",
        ": compose.yaml, line 4: services.web.container_name 'a b' does not match pattern",
    ),
    "a service without an image": (
        "  job: {command: run}",
        ': compose.yaml, line 4: service "job" has neither an image nor a build context',
    ),
    "an unknown dependency": (
        "    depends_on: [db]",
        ': compose.yaml, line 4: depends_on: service "web" depends on undefined service "db"',
    ),
    "a circle": (
        "    depends_on: [job]\n  job: {image: a, depends_on: [web]}",
        ": compose.yaml, line 4: depends_on: dependency cycle detected: job -> web -> job",
    ),
    "an undeclared volume": (
        "    volumes: ['data:/data']",
        ': compose.yaml, line 4: volumes: service "web" refers to undefined volume data',
    ),
    "an undeclared network": (
        "    networks: [back]",
        ': compose.yaml, line 4: networks: service "web" refers to undefined network back',
    ),
    "an undeclared secret": (
        "    secrets: [key]",
        ': compose.yaml, line 4: secrets: service "web" refers to undefined secret key',
    ),
    "a wrong port": (
        "    ports: ['80:http']",
        ": compose.yaml, line 4: web: ports: invalid containerPort: http",
    ),
    "a wrong limit": (
        "    mem_limit: lots",
        ": compose.yaml, line 4: decoding failed due to the following error(s): "
        "'services[web].mem_limit' invalid size: 'lots'",
    ),
    "a required variable": (
        "    environment: {K: '${KEY:?say it}'}",
        ": compose.yaml, line 4: error while interpolating services.web.environment.K: required "
        "variable KEY is missing a value: say it",
    ),
    "a variable that nothing sets": (
        "    environment: {K: '${KEY}'}",
        ".env: ${KEY} (compose.yaml, line 4, web) is not set: name what is to stand there in env",
    ),
    "a wrong variable": (
        "    environment: {K: '${KEY'}",
        ": compose.yaml, line 4: invalid interpolation format for services.web.environment.K",
    ),
    "no file to extend": (
        "    extends: {file: base.yaml, service: web}",
        ": compose.yaml, line 4: web: extends: open base.yaml: no such file or directory",
    ),
    "no service to extend": (
        "    extends: {file: more.yaml, service: wep}",
        ': compose.yaml, line 4: extends: cannot extend service "web" in compose.yaml: service '
        '"wep" not found in more.yaml',
    ),
    "no file to include": (
        "include: [base.yaml]",
        ": compose.yaml, line 4: include: open base.yaml: no such file or directory",
    ),
    "lists in lists": (
        f"x-deep: {'[' * 2000}{']' * 2000}\n",
        ": compose.yaml: lists lie too deep in each other",
    ),
    "no env_file, twice": (
        "    env_file: app.env\n  job: {image: a, env_file: app.env}",
        ".compose: compose.yaml: env_file reads app.env, which is not there: write /",
    ),
    "an env_file that is no path": (
        r'    env_file: "a\0b"',
        r".compose: compose.yaml: env_file reads 'a\x00b', which is no path of a file",
    ),
    "an env_file with a long name": (
        f"    env_file: {'x' * 500}",
        ".compose: compose.yaml: env_file reads xxx",
    ),
    "no env_file": (
        "    env_file: app.env",
        ".compose: compose.yaml: env_file reads app.env, which is not there: write /",
    ),
    "an env_file that is not uploaded": (
        "    env_file: .env",
        '.compose: compose.yaml: env_file reads .env, which is not uploaded: env_file = ["/',
    ),
    "no file of a secret": (
        "    secrets: [key]\nsecrets: {key: {file: key.txt}}",
        ".secrets: key is the file key.txt, which is not on the host: name the secret in secrets",
    ),
    "an external secret": (
        "    secrets: [key]\nsecrets: {key: {external: true}}",
        ".secrets: key is external, which Compose has none of: name it in secrets",
    ),
    "no Dockerfile": (
        "  job: {build: sub}",
        ": compose.yaml, line 4: job: build: dockerfile: the source has no file sub/Dockerfile",
    ),
    "no directory to build": (
        "  job: {build: {context: no}}",
        ": compose.yaml, line 4: job: build: context: the source has no directory no",
    ),
    "a directory outside": (
        "  job: {build: ../job}",
        ": compose.yaml, line 4: job: build: context: ../job is outside of the source",
    ),
    "a mount outside": (
        "    volumes: ['../data:/data']",
        ": compose.yaml, line 4: web: volumes: ../data is outside of the source",
    ),
    "the host's network": (
        "    network_mode: host",
        ".service: web has the host's network (network_mode: host), and two releases of it would "
        "listen on the same ports: leave network_mode out, and write its port in ports",
    ),
    "a mount of a home": (
        "    volumes: ['~/data:/data']",
        ": compose.yaml, line 4: web: volumes: ~/data is below /root on the host",
    ),
}  # fmt: skip

# Further settings, and what the one line begins with.
SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "no such file": ({"compose": ["docker.yml"]}, ".compose: "),
    "no such service": ({"service": "wep"}, ".service: the compose files have no service 'wep'"),
    "no such stateful service": (
        {"stateful": ["db"]},
        ".stateful: the compose files have no service 'db' (web)",
    ),
    "a stateful service that serves": ({"stateful": ["web"]}, ".stateful: web serves HTTP"),
    "no such volume": ({"shared": ["data"]}, ".shared: the compose files mount no 'data' (none)"),
    "no such field": (
        {"servise": "web"},
        ".servise: there is no such key, did you mean apps.shop.service?",
    ),
    "a wrong type": ({"replicas": "many"}, ".replicas: Input should be a valid integer, not 'man"),
    "a wrong reference": (
        {"env": {"URL": "{database.uri}"}},
        ".env.URL: {database.uri} is none of {database.url}",
    ),
    "two kinds": ({"image": "acme/web"}, ".image: shop has a source too: set only one of the two"),
    "no database": ({"role": "shop"}, ".role: shop has no database: set one, or leave role out"),
}


def lines(directory: Path, more: str = "", **data: Any) -> list[str]:
    """What is said about a project with these lines in its compose file."""
    source = directory / "shop"
    (source / "sub").mkdir(parents=True)
    for name, text in {
        "Dockerfile": "FROM scratch\n",
        "compose.yaml": f"services:\n  web:\n    build: .\n{more}\n",
        "more.yaml": "services: {web: {image: acme/web}}",
        ".env": "KEY=1\n",
        "sub/code": "",
    }.items():
        (source / name).write_text(text)
    return check({"source": str(source), **DATA, **data}).refusals


@pytest.mark.parametrize("what", LINES)
def test_a_mistake_in_a_compose_file(tmp_path: Path, what: str) -> None:
    more, begins = LINES[what]
    (said,) = lines(tmp_path, more)
    assert said.startswith(f"apps.shop{begins}"), said
    assert "\n" not in said
    # No path of the copy that Compose reads.
    assert "/terrafirma-" not in said


@pytest.mark.parametrize("what", SETTINGS)
def test_a_mistake_in_the_settings(tmp_path: Path, what: str) -> None:
    data, begins = SETTINGS[what]
    (said,) = lines(tmp_path, **data)
    assert said.startswith(f"apps.shop{begins}"), said
    assert "\n" not in said


def test_a_file_of_several(tmp_path: Path) -> None:
    """The message names the file that has the mistake."""
    source = tmp_path / "shop"
    lines(tmp_path)
    (source / "more.yaml").write_text("\nservices: {web: {ports: ['x:http']}}")
    said = check({"source": str(source), **DATA, "compose": ["compose.yaml", "more.yaml"]}).refusals
    assert said[0].startswith("apps.shop: more.yaml, line 2: web: ports: invalid ")


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "null",
            "[]",
            "services:",
            "services: []",
            "services: {web: }",
            "x: \0",
            "? [a]\n: b\n",
        ),
        *("services: {web: {build: }}", "services: {? {a: b} : c}", "a: &a [*a]", "include: [..]"),
        "services: {web: {build: ., env_file: [{path: }]}}",
        "services: {web: {build: ., env_file: {a: b}}}",
        "services: {web: {build: ., ports: [{target: x}]}}",
        "services: {web: {build: ., volumes: [3]}}",
        "services: {web: {build: ., extends: {service: web}}}",
    ],
)
def test_what_no_compose_file_says(tmp_path: Path, text: str) -> None:
    lines(tmp_path)
    (tmp_path / "shop" / "compose.yaml").write_text(text)
    said = check({"source": str(tmp_path / "shop"), **DATA}).refusals
    assert said
    for line in said:
        assert line.startswith("apps.shop")
        assert "\n" not in line
        assert "/terrafirma-" not in line
