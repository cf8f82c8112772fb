"""Registries of images: how often a run asks them, and that the one of the tests needs a login."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Pyinfra
from tests.e2e.clones import HOST, clone
from tests.e2e.support import Registry, Target, changed, registry

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.budget(minutes=5, why="30 containers start for each of two releases"),
]


@pytest.fixture(scope="module")
def server(pyinfra: Pyinfra) -> Iterator[Target]:
    with clone(pyinfra, "tf-test-puller", 2436, HOST) as one:
        yield one


@pytest.fixture(scope="module")
def images() -> Iterator[Registry]:
    with registry("tf-test-registry") as one:
        yield one


def test_a_pull_needs_credentials(server: Target, images: Registry) -> None:
    server.run("echo 'FROM scratch\nLABEL one=1' | DOCKER_BUILDKIT=0 docker build -q -t one:1 -")
    assert "unknown authority" in server.call(f"docker pull {images.host}/one:1").stderr
    images.trust(server)
    reference = images.push(server, "one:1", "one:1")
    assert reference == f"{images.host}/one:1"
    server.run("docker image rm one:1")
    assert server.call(f"docker image inspect {reference}").returncode != 0

    assert "no basic auth credentials" in server.call(f"docker pull {reference}").stderr
    login = f"docker login --username {images.user} --password-stdin {images.host}"
    assert "401 Unauthorized" in server.call(login, stdin="a guess").stderr
    assert "no basic auth credentials" in server.call(f"docker pull {reference}").stderr
    server.run(login, stdin=images.password)
    server.run(f"docker pull {reference}")
    server.run(f"docker image inspect {reference}")
    server.run(f"docker logout {images.host}")
    assert images.password not in images.run("cat /var/log/registry.log /srv/users")


# --- a project of 30 services ---------------------------------------------------------------------

TAGGED, PINNED, SERVICES = 12, 3, 30
# Answers every request with the file VERSION; Perl is in the smallest Debian.
WEB = """\
FROM debian:trixie
COPY VERSION serve.pl /
EXPOSE 8000
CMD ["perl", "/serve.pl"]
"""
SERVE = """\
use IO::Socket::INET;
$SIG{TERM} = sub { exit };
$SIG{CHLD} = "IGNORE";
open my $file, "<", "/VERSION"; my $text = <$file>;
my $server = IO::Socket::INET->new(LocalPort => 8000, Listen => 64, ReuseAddr => 1) or die;
while (1) {
    my $client = $server->accept or next;
    next if fork;
    while (<$client>) { last if /^\\r?$/ }
    print $client "HTTP/1.1 200 OK\\r\\nConnection: close\\r\\nContent-Length: ",
        length $text, "\\r\\n\\r\\n$text";
    exit;
}
"""


def pushed(server: Target, images: Registry) -> tuple[list[str], list[str]]:
    """Images of the registry by tag and by digest, each in a repository of its own."""
    server.run(
        # One program and its libraries are a whole image.
        "tar -chP $(ldd /usr/bin/sleep | grep -o '/[^ ]*') /usr/bin/sleep | docker import - sleeps"
    )
    names = []
    for number in range(TAGGED + PINNED):
        server.run(
            "DOCKER_BUILDKIT=0 docker build -q -t part -",
            stdin=f'FROM sleeps\nLABEL part="{number}"\nCMD ["/usr/bin/sleep", "infinity"]\n',
        )
        names.append(images.push(server, "part", f"team/part{number}:1"))
        server.run("docker image rm part")
    pinned = [f"{name.rpartition(':')[0]}@{digest(images, name)}" for name in names[TAGGED:]]
    return names[:TAGGED], pinned


def digest(images: Registry, name: str) -> str:
    path = name.partition("/")[2].rpartition(":")[0]
    file = f"/var/lib/docker-registry/docker/registry/v2/repositories/{path}/_manifests/tags/1"
    return images.run(f"cat {file}/current/link")


@pytest.fixture
def data(
    server: Target, images: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """The settings of a project whose 29 parts share 15 images of the registry."""
    monkeypatch.setenv("REGISTRY_PASSWORD", images.password)
    images.trust(server)
    tagged, pinned = pushed(server, images)
    shared = [*tagged, *pinned]
    parts = [
        f"  part{number}: {{image: '{shared[number % len(shared)]}', stop_signal: SIGKILL}}\n"
        for number in range(SERVICES - 1)
    ]
    files = {
        "Dockerfile": WEB,
        "serve.pl": SERVE,
        "VERSION": "one",
        "compose.yaml": f"services:\n  web: {{build: .}}\n{''.join(parts)}",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return {
        "apps": {
            "parts": {
                "source": str(tmp_path), "compose": ["compose.yaml"], "service": "web",
                "domain": "parts.terrafirma.test", "health_path": "/", "replicas": 1, "port": 9100,
                "drain_seconds": 1, "start_seconds": 60, "stop_seconds": 5,
                "registries": {
                    images.host: {"user": images.user, "password": "env:REGISTRY_PASSWORD"}
                },
            }
        }
    }  # fmt: skip


@pytest.mark.long
@pytest.mark.promise(
    "A run asks a registry once about each image with a tag, and never about one with a digest, "
    "however many services share it"
)
def test_requests_of_a_project_with_many_services(
    server: Target, images: Registry, data: dict[str, Any]
) -> None:
    def asked(*, planned: bool = False) -> list[str]:
        """The requests that a run sends, or a plan."""
        before = len(images.asked())
        if planned:
            server.plan("tasks/caddy.py", "tasks/app.py", **data)
        else:
            answers.append(server.deploy("tasks/caddy.py", "tasks/app.py", **data))
        return images.asked()[before:]

    answers: list[dict[str, Any]] = []
    once = Counter(f"HEAD /v2/team/part{number}/manifests/1 terrafirma" for number in range(TAGGED))

    first = Counter(one for one in asked() if "/blobs/" not in one)
    ours = Counter({one: count for one, count in first.items() if one.endswith(" terrafirma")})
    assert ours == once
    # What is left are pulls, one for each image, by its digest.
    pulls = [one for one in (first - ours).elements() if one.startswith("GET ") and "team" in one]
    assert len(pulls) == TAGGED + PINNED
    assert len({one for one in pulls if "/manifests/sha256:" in one}) == TAGGED + PINNED
    assert not any("/manifests/1 " in one for one in first - ours)
    assert server.run("docker ps -q --filter label=terrafirma.app=parts | wc -l") == str(SERVICES)

    assert Counter(asked()) == once
    assert changed(answers[-1]) == []
    assert Counter(asked(planned=True)) == once

    (Path(data["apps"]["parts"]["source"]) / "VERSION").write_text("two")
    assert Counter(asked()) == once
    ask = (
        "curl -sS --fail --insecure --resolve parts.terrafirma.test:443:127.0.0.1"
        " https://parts.terrafirma.test/"
    )
    assert server.run(ask) == "two"
