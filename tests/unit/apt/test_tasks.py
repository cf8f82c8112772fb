"""How a run plans sources and engines, and what it refuses before anything changes."""

import hashlib
from collections.abc import Sequence
from subprocess import CompletedProcess
from typing import Any

import pytest

from terrafirma.apt.facts import OfferedPackages
from terrafirma.apt.operations import PROXY_WORKS, is_right, record, record_path
from terrafirma.apt.settings import PROXY_PASSWORD
from terrafirma.apt.vendors import repository
from terrafirma.host.packages import InstalledPackages
from terrafirma.paths import APT_PREFERENCES, APT_PROXY
from tests.conftest import Pyinfra
from tests.unit.facts import shell
from tests.unit.fake_host import (
    DEBIAN_12,
    DEBIAN_13,
    UBUNTU_24,
    Answers,
    command,
    commands,
    fake,
    machine,
    refuses,
    written,
)
from tests.unit.programs import Program

INSTALLED, OFFERED = command(InstalledPackages), command(OfferedPackages)
DOCKER = "https://download.docker.com/linux/debian trixie/stable amd64 Packages"
DEBIAN = "http://archive.example/debian trixie/main amd64 Packages"
UPSTREAM: dict[str, Any] = {"apt_source": "upstream"}


def installed(**packages: str) -> Answers:
    return {INSTALLED: _lines(packages, "install")}


def _lines(packages: dict[str, str], want: str) -> list[str]:
    names = {name.replace("__", ".").replace("_", "-"): one for name, one in packages.items()}
    return [f"installed {want} {name} {version}" for name, version in names.items()]


def offered(*rows: tuple[str, str, str]) -> Answers:
    return {OFFERED: [f" {name} | {version} | {where}" for name, version, where in rows]}


# --- plans ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [DEBIAN_13, DEBIAN_12, UBUNTU_24])
def test_a_bare_host_gets_its_engines_from_their_vendors(
    pyinfra: Pyinfra, kind: dict[str, str]
) -> None:
    answer = pyinfra.run("@fake/host", "deploy.py", "--dry", *fake(machine(kind), **UPSTREAM))
    names = [step["name"].rpartition("| ")[2] for step in answer["plan"]]
    for name in ("Add the vendors' repositories", "Install the engine", "Install Caddy"):
        assert name in names
    # The preferences are there before any package can come from a vendor.
    assert names.index("Take only the engines from the vendors") < names.index(
        "Add the vendors' repositories"
    )


def test_a_bare_host_gets_the_preferences(pyinfra: Pyinfra) -> None:
    result = pyinfra.call("@fake/host", "tasks/apt.py", "--dry", "--diff",
                          *fake(machine(), **UPSTREAM))  # fmt: skip
    assert "Pin: release n=trixie-pgdg" in written(result, APT_PREFERENCES)


def test_the_password_of_the_proxy_is_in_no_output(
    pyinfra: Pyinfra, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PROXY_PASSWORD, "s3cret@x")
    data = fake(machine(), apt_proxy="http://deploy@proxy:3128")
    for words in (["--dry", "--diff", "-vvv"], ["-y", "--diff", "-vvv"]):
        result = pyinfra.call("@fake/host", "tasks/apt.py", *words, *data)
        assert result.returncode == 0, result.stderr
        assert APT_PROXY in result.stderr
        assert "s3cret" not in result.stdout + result.stderr


INDEXES = ("http://a.test/dists/x/InRelease", "https://b.test/dists/./InRelease", "file:/c")


@pytest.mark.parametrize("comes", ["a.test", "b.test"])
def test_a_proxy_works_if_it_fetches_one_of_the_indexes(program: Program, comes: str) -> None:
    path = program("apt-get", f"printf '%s\\n' {' '.join(INDEXES)}")
    program("apt-helper", f'case "$*" in *//{comes}/*) exit 0;; esac; exit 100')
    check = PROXY_WORKS.format(proxy="http://proxy:3128").replace("/usr/lib/apt/", f"{path}/")
    assert shell(f"( {check} ) && echo accepted", path) == ["accepted"]


def test_a_proxy_that_fetches_no_index_is_refused(program: Program) -> None:
    path = program("apt-get", f"printf '%s\\n' {' '.join(INDEXES)}")
    program("apt-helper", "echo 'Err:1 x'; echo '  403 Forbidden'; exit 100")
    check = PROXY_WORKS.format(proxy="http://proxy:3128").replace("/usr/lib/apt/", f"{path}/")
    words = rf"http://proxy:3128 does not fetch {INDEXES[0]}: 403 Forbidden"
    with pytest.raises(AssertionError, match=words):
        shell(check, path)
    program("apt-get", "echo file:/c")
    assert shell(check, path) == []


def test_the_first_installation_takes_what_is_allowed_and_is_held(
    pyinfra: Pyinfra, inventory: Any
) -> None:
    then = {"docker_ce": "5:28.1.1-1~debian.13~trixie", "containerd__io": "1.7.27-1"}
    answers = offered(
        *(
            (name, f"5:{version}-1~debian.13~trixie", DOCKER)
            for name in ("docker-ce", "docker-ce-cli")
            for version in ("28.2.2", "28.1.1")
        )
    ) | {INSTALLED: {"turns": [["installed install runc 1.1"]] * 3 + [_lines(then, "install")]}}
    hosts = inventory(host=(machine() | answers, {**UPSTREAM, "docker_version": "28.1"}))
    result = pyinfra.call(hosts, "tasks/docker.py", "-y", "-vv")
    said = "\n".join(commands(result))
    version = "5:28.1.1-1~debian.13~trixie"
    assert f"docker-ce={version}" in said
    assert f"docker-ce-cli={version}" in said
    assert "containerd.io " in said
    # Only the packages that Docker wants removed are removed.
    assert "runc-" in said
    assert "would have to be removed as well" in said
    assert "apt-mark hold docker-ce containerd.io" in said


def test_apt_chooses_if_the_settings_name_no_version(pyinfra: Pyinfra) -> None:
    result = pyinfra.call("@fake/host", "tasks/caddy.py", "-y", "-vv",
                          *fake(machine() | installed(vim="1")))  # fmt: skip
    said = "\n".join(commands(result))
    assert "install --no-install-recommends --no-remove" in said
    assert "force-confold caddy ||" in said


def test_an_installed_engine_stays_and_a_newer_version_is_reported(pyinfra: Pyinfra) -> None:
    answers = installed(caddy="2.6.2-12") | offered(("caddy", "2.6.2-13", DEBIAN))
    result = pyinfra.call("@fake/host", "tasks/caddy.py", "--dry", *fake(machine() | answers))
    assert result.returncode == 0, result.stderr
    assert "Caddy: 2.6.2 → 2.6.2: run commands/upgrade.py to upgrade" in result.stderr


# --- whether anything is fetched ------------------------------------------------------------------


def test_a_tested_source_is_left_alone() -> None:
    one = repository("docker", distribution="debian", codename="trixie", architecture="amd64")
    source = hashlib.sha256(b"the source with the key").hexdigest()
    tested = f"{record(one, None)}sha256 {source}\n"
    file: Any = {"kind": "file", "mode": "644", "user": "root", "group": "root", "sha256": source}
    note: Any = file | {"mode": "644", "sha256": hashlib.sha256(tested.encode()).hexdigest()}
    right = {one.path: file, record_path(one): note}
    assert is_right(one, None, right)
    # The source was changed, removed, or made unreadable.
    assert not is_right(one, None, right | {one.path: file | {"sha256": "0" * 64}})
    assert not is_right(one, None, right | {one.path: file | {"mode": "600"}})
    assert not is_right(one, None, {record_path(one): note})
    assert not is_right(one, None, {one.path: file})
    # The settings have changed.
    assert not is_right(one, b"a key", right)
    other = repository("docker", distribution="debian", codename="trixie", architecture="amd64",
                       urls={"docker": "https://mirror.acme.com/docker"})  # fmt: skip
    assert not is_right(other, None, right)


# --- refusals -------------------------------------------------------------------------------------

CE = "5:28.1.1-1~debian.13~trixie"
# By the mistake: the page; the host; parts of the message.
REFUSALS: dict[str, tuple[str, list[str], Sequence[str]]] = {
    "an engine of the distribution": (
        "deploy",
        fake(machine() | installed(docker__io="26.1.5+dfsg1-9"), **UPSTREAM),
        ("apt_source: Docker 26.1.5", "the distribution's", "commands/upgrade.py"),
    ),
    "a database of the distribution": (
        "tasks/postgres",
        fake(machine() | installed(postgresql_17="17.4-2"), **UPSTREAM),
        ("apt_source: PostgreSQL 17.4", "the distribution's", "commands/upgrade.py"),
    ),
    "sources beside an engine of the distribution": (
        "tasks/apt",
        fake(machine() | installed(caddy="2.6.2-12"), **UPSTREAM),
        ("apt_source: Caddy 2.6.2", "the distribution's", "commands/upgrade.py"),
    ),
    "the distribution after a vendor": (
        "deploy",
        fake(machine() | installed(caddy="2.10.2")),
        ("apt_source: Caddy 2.10.2", "older one", "apt_source = 'upstream'"),
    ),
    "another version than is installed": (
        "deploy",
        fake(
            machine() | installed(docker_ce=CE) | offered(("docker-ce", "5:28.2.2-1", DOCKER)),
            **UPSTREAM,
            docker_version='"28.2"',
        ),
        ("docker_version: 28.2 is wanted, and 28.1.1", "commands/upgrade.py"),
    ),
    "a version that is not offered": (
        "deploy",
        fake(
            machine() | offered(("docker-ce", "5:28.2.2-1", DOCKER)),
            **UPSTREAM,
            docker_version="27",
        ),
        ("docker_version: Docker offers 28.2.2, not 27",),
    ),
    "a version that the distribution does not have": (
        "tasks/caddy",
        fake(machine() | offered(("caddy", "2.6.2-12", DEBIAN)), caddy_version='"2.10"'),
        ("caddy_version: the distribution offers 2.6.2, not 2.10", "'upstream'"),
    ),
    "a minor version below the installed one": (
        "tasks/postgres",
        fake(
            machine() | installed(postgresql_17="17.5-1.pgdg130+1"),
            **UPSTREAM,
            postgres_version='"17.4"',
        ),
        ("postgres_version: 17.4 is wanted, and 17.5", "downgraded"),
    ),
    "no password for the proxy": (
        "deploy",
        fake(machine(), apt_proxy="http://deploy@proxy:3128"),
        ("apt_proxy: ", PROXY_PASSWORD, "is not set"),
    ),
    "a password in the settings": (
        "deploy",
        fake(machine(), apt_proxy="http://deploy:s3cret@proxy:3128"),
        ("apt_proxy: ", PROXY_PASSWORD),
    ),
    "a key that is not there": (
        "deploy",
        fake(machine(), apt_keys={"docker": "keys/docker.asc"}),
        ("apt_keys: docker: cannot read 'keys/docker.asc'",),
    ),
    "an unknown vendor": (
        "deploy",
        fake(machine(), apt_urls={"nginx": "https://mirror.acme.com"}),
        ("apt_urls.nginx: ", "'pgdg', 'docker' or 'caddy'"),
    ),
    "a version with a dot at its end": (
        "deploy",
        fake(machine(), docker_version="28."),
        ("docker_version: ", "write '28'"),
    ),
    "a major version that does not exist": (
        "deploy",
        fake(machine(), **UPSTREAM, postgres_version=30),
        ("postgres_version: ", "15 and 16 and 17 and 18, not 30"),
    ),
}


@pytest.fixture(scope="module")
def refused(pyinfra: Pyinfra) -> dict[str, CompletedProcess[str]]:
    return pyinfra.call_all(
        {
            what: ["@fake/host", f"{page}.py", "-y", *arguments]
            for what, (page, arguments, _) in REFUSALS.items()
        }
    )


@pytest.mark.parametrize("what", REFUSALS)
def test_refuses_in_one_line_before_anything_changes(
    refused: dict[str, CompletedProcess[str]], what: str
) -> None:
    refuses(refused[what], REFUSALS[what][2])
