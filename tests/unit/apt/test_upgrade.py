"""The plan of an upgrade, and the fact from which it is made."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from terrafirma.apt.upgrade import Plan, Wanted, make
from terrafirma.apt.upgrade_facts import Packages, PackagesState
from terrafirma.apt.upgrade_operations import names_of
from tests.unit.facts import shell, text
from tests.unit.programs import Program

DEBIAN = "http://archive.example/debian trixie/main"
DOCKER_COM = "https://download.docker.com/linux/debian trixie/stable"
CADDY_COM = "https://dl.cloudsmith.io/public/caddy/stable/deb/debian any-version/main"
PGDG = "https://apt.postgresql.org/pub/repos/apt trixie-pgdg/main"
VENDORS = (DOCKER_COM, CADDY_COM, PGDG)

CADDY = Wanted(
    name="caddy",
    title="Caddy",
    key="caddy_version",
    main="caddy",
    packages=("caddy",),
    held=("caddy",),
    units=("caddy.service",),
    interruption="one restart",
)
DOCKER = Wanted(
    name="docker",
    title="Docker",
    key="docker_version",
    main="docker-ce",
    packages=("docker-ce", "docker-ce-cli", "containerd.io"),
    held=("docker-ce", "docker-ce-cli", "containerd.io"),
    replaces=("docker.io", "containerd"),
    units=("containerd.service", "docker.service"),
    archive=DOCKER_COM,
    interruption="containers continue",
)
DISTRO_DOCKER = replace(
    DOCKER,
    main="docker.io",
    packages=("docker.io", "docker-cli"),
    held=("docker.io",),
    replaces=(),
    archive="",
    foreign=("docker-ce", "containerd.io"),
)


def policy(name: str, installed: str = "", **versions: str) -> list[str]:
    """The output of `apt-cache policy`; a version without an address is only installed."""
    lines = [f"{name}:", f"  Installed: {installed or '(none)'}", "  Candidate: x",
             "  Version table:"]  # fmt: skip
    for version, url in versions.items():
        lines += [f" {'***' if version == installed else '   '} {version} 600"]
        if version == installed:
            lines += ["        100 /var/lib/dpkg/status"]
        if url:
            lines += [f"        600 {url} amd64 Packages"]
    return [f"policy|{line}" for line in lines]


def state(*packages: list[str], more: tuple[str, ...] = ("age|60",)) -> PackagesState:
    return Packages().process([line for lines in packages for line in (*lines,)] + [*more])


def lines(plan: Plan) -> str:
    return "\n".join(plan.lines())


# --- the plan -------------------------------------------------------------------------------------


def test_an_engine_is_upgraded_to_the_newest_version() -> None:
    versions = {"2.6.2-12": DEBIAN, "2.6.2-13": DEBIAN}
    plan = make([CADDY], state(policy("caddy", "2.6.2-12", **versions)), VENDORS)
    (step,) = plan.steps
    assert (step.old, step.packages) == ({"caddy": "2.6.2-12"}, {"caddy": "2.6.2-13"})
    assert "Caddy: 2.6.2-12 → 2.6.2-13: one restart" in lines(plan)
    assert "no backups" in lines(plan)
    assert step.lost == ()


def test_an_engine_in_its_newest_version_stays() -> None:
    plan = make([CADDY], state(policy("caddy", "2.6.2-12", **{"2.6.2-12": DEBIAN})), VENDORS)
    assert not plan
    assert lines(plan).splitlines() == [
        "Caddy: 2.6.2-12 is the newest that the settings allow",
        "There is nothing to upgrade",
    ]


@pytest.mark.parametrize(
    ("prefix", "version"),
    [("", "2.11.1"), ("2", "2.11.1"), ("2.10", "2.10.2"), ("2.10.1", "2.10.1")],
)
def test_an_engine_stays_within_its_prefix(prefix: str, version: str) -> None:
    offered = dict.fromkeys(("2.12.0~beta1", "2.11.1", "2.10.2", "2.10.1", "2.9.0"), CADDY_COM)
    wanted = replace(CADDY, prefix=prefix, archive=CADDY_COM)
    plan = make([wanted], state(policy("caddy", "2.9.0", **offered)), VENDORS)
    assert plan.steps[0].packages == {"caddy": version}


def test_a_version_that_is_not_offered_is_refused() -> None:
    wanted = replace(CADDY, prefix="3", archive=CADDY_COM)
    offered = {"2.11.1": CADDY_COM, "2.10.2": CADDY_COM, "2.9.0": CADDY_COM}
    plan = make([wanted], state(policy("caddy", "2.9.0", **offered)), VENDORS)
    assert plan.refusals == (
        "caddy_version: Caddy 3 is wanted, and only 2.11.1, 2.10.2, 2.9.0 is offered; choose one "
        "of these",
    )
    assert not plan.steps


def test_a_version_that_is_no_longer_offered_may_stay() -> None:
    wanted = replace(CADDY, prefix="2.9", archive=CADDY_COM)
    known = state(policy("caddy", "2.9.0", **{"2.11.1": CADDY_COM, "2.9.0": ""}))
    plan = make([wanted], known, VENDORS)
    assert (plan.steps, plan.refusals) == ((), ())
    assert "Caddy: 2.9.0 stays" in lines(plan)


def test_a_downgrade_is_refused() -> None:
    wanted = replace(CADDY, prefix="2.9", archive=CADDY_COM)
    known = state(policy("caddy", "2.11.1", **{"2.11.1": CADDY_COM, "2.9.0": CADDY_COM}))
    (words,) = make([wanted], known, VENDORS).refusals
    assert words.startswith(
        "caddy_version: Caddy 2.11.1 is installed, and cannot be downgraded to 2.9.0"
    )


@pytest.mark.parametrize(
    ("wanted", "known", "words"),
    [
        # The vendor's package has the same name.
        (
            CADDY,
            [policy("caddy", "2.11.1", **{"2.11.1": CADDY_COM, "2.6.2-12": DEBIAN})],
            "apt_source: Caddy on the host is the vendor's (caddy 2.11.1), and cannot be",
        ),
        # The vendor's packages have names of their own.
        (
            DISTRO_DOCKER,
            [
                policy("docker-ce", "5:28.2-1", **{"5:28.2-1": DOCKER_COM}),
                policy("docker.io", **{"26.1-1": DEBIAN}),
            ],
            "apt_source: Docker on the host is the vendor's (docker-ce 5:28.2-1), and cannot be ",
        ),
    ],
)
def test_a_vendors_engine_is_not_replaced_by_the_distributions(
    wanted: Wanted, known: list[list[str]], words: str
) -> None:
    plan = make([wanted], state(*known), VENDORS)
    assert plan.refusals[0].startswith(words)
    assert not plan.steps


def test_a_vendors_engine_is_refused_though_the_distribution_has_a_newer_version() -> None:
    known = state(policy("caddy", "2.6.1", **{"2.6.2-12": DEBIAN, "2.6.1": ""}))
    (words,) = make([CADDY], known, VENDORS).refusals
    assert words.startswith("apt_source: Caddy on the host is the vendor's (caddy 2.6.1)")


MOVING = (
    policy("docker.io", "26.1-1", **{"26.1-1": DEBIAN}),
    policy("containerd", "1.7-1", **{"1.7-1": DEBIAN}),
)


def test_the_vendors_packages_replace_the_distributions() -> None:
    vendor = (
        policy("docker-ce", **{"5:28.2-1": DOCKER_COM, "5:28.1-1": DOCKER_COM}),
        policy("docker-ce-cli", **{"5:28.2-1": DOCKER_COM, "5:28.1-1": DOCKER_COM}),
        policy("containerd.io", **{"2.1-1": DOCKER_COM, "2.0-1": DOCKER_COM}),
    )
    plan = make([DOCKER], state(*MOVING, *vendor), VENDORS)
    (step,) = plan.steps
    assert step.packages == {
        "docker-ce": "5:28.2-1",
        "docker-ce-cli": "5:28.2-1",
        "containerd.io": "2.1-1",
    }
    assert step.replaced == {"docker.io": "26.1-1", "containerd": "1.7-1"}
    said = lines(plan)
    assert "Docker: docker.io 26.1-1, containerd 1.7-1 → 5:28.2-1: containers continue" in said
    assert "removed, not purged: docker.io, containerd" in said
    older = make([replace(DOCKER, prefix="28.1")], state(*MOVING, *vendor), VENDORS)
    assert older.steps[0].packages["docker-ce-cli"] == "5:28.1-1"


def test_a_change_of_the_source_is_announced_before_its_versions_are_known() -> None:
    plan = make([DOCKER], state(*MOVING), VENDORS)
    assert plan.awaited == ("Docker",)
    assert plan
    assert "Docker: to the vendor's version, unknown until its repository" in lines(plan)


def test_packages_of_the_same_name_come_from_the_vendor() -> None:
    wanted = Wanted(
        name="postgres",
        title="PostgreSQL",
        key="postgres_version",
        main="postgresql-17",
        packages=("postgresql-17", "libpq5"),
        held=("postgresql-17",),
        prefix="17",
        archive=PGDG,
        interruption="one restart",
    )
    known = state(
        policy("postgresql-17", "17.5-0+deb13u1",
               **{"17.6-1.pgdg13+1": PGDG, "17.5-0+deb13u1": DEBIAN}),
        policy("libpq5", "17.5-0+deb13u1",
               **{"18.0-1.pgdg13+1": PGDG, "17.5-0+deb13u1": DEBIAN}),
    )  # fmt: skip
    (step,) = make([wanted], known, VENDORS).steps
    assert step.packages == {"postgresql-17": "17.6-1.pgdg13+1", "libpq5": "18.0-1.pgdg13+1"}
    # With the distribution as source, the vendor's versions do not count.
    assert make([replace(wanted, archive="")], known, VENDORS).steps == ()


def test_a_missing_engine_is_left_to_the_deploy() -> None:
    plan = make([DOCKER], state(policy("docker-ce", **{"5:28.2-1": DOCKER_COM})), VENDORS)
    assert not plan.steps
    assert "Docker: not installed; deploy.py installs it" in lines(plan)


@pytest.mark.parametrize(
    "wanted", [DOCKER, replace(DISTRO_DOCKER, held=("docker.io", "containerd"))]
)
@pytest.mark.parametrize("name", ["containerd", "containerd.io"])
def test_containerd_alone_does_not_bring_docker(wanted: Wanted, name: str) -> None:
    """Kubernetes uses containerd without Docker."""
    known = state(
        policy(name, "1.7-1", **{"1.7-1": DEBIAN, "1.8-1": DEBIAN}),
        policy("docker.io", **{"26.1-1": DEBIAN}),
        policy("docker-ce", **{"5:28.2-1": DOCKER_COM}),
    )
    wanted = replace(wanted, foreign=())
    plan = make([wanted], known, VENDORS)
    assert (plan.steps, plan.awaited) == ((), ())
    assert "Docker: not installed" in lines(plan)


def test_the_fact_is_asked_about_all_packages_that_only_an_upgrade_changes() -> None:
    wanted = replace(DISTRO_DOCKER, held=("docker.io", "containerd", "runc"))
    assert {"containerd", "runc"} <= {*names_of([wanted])}
    known = state(
        policy("docker.io", "26.1-1", **{"26.1-1": DEBIAN}),
        policy("containerd", "1.7-1", **{"1.7-1": DEBIAN, "1.8-1": DEBIAN}),
    )
    (step,) = make([wanted], known, VENDORS).steps
    assert step.packages == {"docker.io": "26.1-1", "containerd": "1.8-1"}


@pytest.mark.parametrize(
    ("url", "more", "lost"),
    [
        (CADDY_COM, (), ()),
        ("file:/srv/mirror ./", (), ()),
        ("", (), ("caddy",)),
        ("", ("file|caddy_2.9.0_amd64.deb",), ()),
        ("", ("file|caddy_2.8.0_amd64.deb",), ("caddy",)),
    ],
)
def test_the_plan_says_if_no_rollback_is_possible(
    url: str, more: tuple[str, ...], lost: tuple[str, ...]
) -> None:
    wanted = replace(CADDY, archive=CADDY_COM)
    known = state(policy("caddy", "2.9.0", **{"2.11.1": CADDY_COM, "2.9.0": url}), more=more)
    plan = make([wanted], known, VENDORS)
    assert plan.steps[0].lost == lost
    assert ("no rollback: the installed caddy is no longer offered" in lines(plan)) is bool(lost)


def test_all_other_packages_are_named_or_counted() -> None:
    rest = [f"rest|p{number} [1.{number}] (2.{number} Debian:13)" for number in range(12)]
    more = (
        *rest,
        "rest|openssh-server [1:10.0] (1:10.1 Debian-Security:13/stable [amd64])",
        "rest|linux-image-6.12.50+deb13-amd64 (6.12.50-1 Debian:13.1/stable [amd64])",
        "rest|caddy [2.6.2-12] (2.6.2-13 Debian:13.1/stable [amd64])",
        "backups|", "reboot|", "left|",
    )  # fmt: skip
    plan = make([CADDY], state(policy("caddy", "2.6.2-12", **{"2.6.2-12": DEBIAN}), more=more))
    said = lines(plan)
    assert "13 other packages, which cannot be rolled back: p0 1.0 → 2.0, " in said
    assert " and 5 more" in said
    assert "openssh-server: sshd restarts, open sessions continue" in said
    assert "Kernel: linux-image-6.12.50+deb13-amd64 6.12.50-1, which runs after a reboot" in said
    assert "A reboot is due" in said
    assert "An earlier upgrade was interrupted" in said
    assert "lists are older than an hour" in said
    # A package of an engine is upgraded only with the engine.
    assert "caddy 2.6.2-12 →" not in said


def test_an_engine_that_was_not_announced_is_left_to_the_next_run() -> None:
    versions = {"2.6.2-12": DEBIAN, "2.6.2-13": DEBIAN}
    plan = make([CADDY], state(policy("caddy", "2.6.2-12", **versions)))
    assert plan.only({"caddy"}).steps == plan.steps
    later = plan.only({"docker"})
    assert not later
    assert "Caddy: 2.6.2-13 is offered since the plan was shown; the next run takes" in lines(later)


def test_the_host_program_can_read_the_plan() -> None:
    from terrafirma_host import upgrade as program

    vendor = policy("docker-ce", **{"5:28.2-1": DOCKER_COM})
    plan = make([DOCKER], state(*MOVING, vendor, more=("rest|curl [8.1] (8.2 Debian:13)",)))
    read = program.Plan.of(json.loads(plan.data()))
    (engine,) = read.engines
    assert read.rest
    assert engine.before == plan.steps[0].before
    assert engine.packages == plan.steps[0].packages
    assert engine.units == DOCKER.units


# --- the fact -------------------------------------------------------------------------------------

POLICY = """\
caddy:
  Installed: 2.11.1
  Candidate: 2.11.2
  Package pin: 2.11.2
  Version table:
     2.11.2 600 (phased 20%)
        600 https://dl.cloudsmith.io/public/caddy/stable/deb/debian any-version/main amd64 Packages
 *** 2.11.1 600
        600 https://dl.cloudsmith.io/public/caddy/stable/deb/debian any-version/main amd64 Packages
        100 /var/lib/dpkg/status
     2.6.2-12 -1
         -1 http://archive.example/debian trixie/main amd64 Packages
docker.io:
  Installed: (none)
  Candidate: (none)
  Version table:
"""


def test_the_fact_reads_the_output_of_apt(program: Program, tmp_path: Path) -> None:
    program("apt-cache", f"cat <<'END'\n{POLICY}END")
    path = program(
        "apt-get", "echo 'Inst curl [8.1] (8.2 Debian:13/stable [amd64])'; echo 'Conf x'"
    )
    command = text(Packages, names=["caddy", "docker.io"])
    for place in ("/var/lib/terrafirma/packages", "/var/cache/apt/archives", "/var/lib/apt/lists",
                  "/usr/local/lib/terrafirma", "/etc/borgmatic", "/run/"):  # fmt: skip
        assert place in command
        command = command.replace(place, f"{tmp_path}{place}")
    assert Packages().process(shell(command, path))["age"] is None
    for file in ("var/lib/terrafirma/packages/docker-ce_5%3a28.2-1_amd64.deb",
                 "var/cache/apt/archives/caddy_2.11.1_amd64.deb",
        "var/cache/apt/archives/mine.deb",
                 "var/lib/terrafirma/packages/current.json",
                 "var/lib/apt/lists/archive.example_InRelease",
                 "usr/local/lib/terrafirma/backup", "etc/borgmatic/config.yaml",
                 "run/reboot-required"):  # fmt: skip
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    answer: dict[str, Any] = dict(Packages().process(shell(command, path)))
    assert answer.pop("age") in range(60)
    assert answer == {
        "packages": {
            "caddy": {
                "installed": "2.11.1",
                "versions": [
                    ("2.11.2", [CADDY_COM]),
                    ("2.11.1", [CADDY_COM, "/var/lib/dpkg/status"]),
                    ("2.6.2-12", [DEBIAN]),
                ],
            },
            "docker.io": {"installed": "", "versions": []},
        },
        "files": [("docker-ce", "5:28.2-1"), ("caddy", "2.11.1")],
        "rest": [("curl", "8.1", "8.2")],
        "backups": True,
        "reboot": True,
        "left": True,
    }


def test_a_refresh_that_finds_no_newer_lists_counts(program: Program, tmp_path: Path) -> None:
    path = program("apt-get", "true")
    command = text(Packages, names=[]).replace("/var/lib/apt/lists", f"{tmp_path}/lists")
    (tmp_path / "lists/partial").mkdir(parents=True)
    assert Packages().process(shell(command, path))["age"] is None
    list_of_packages = tmp_path / "lists/archive.example_InRelease"
    list_of_packages.touch()
    hours_ago = time.time() - 7200
    os.utime(list_of_packages, (hours_ago, hours_ago))
    assert Packages().process(shell(command, path))["age"] in range(60)
    os.utime(tmp_path / "lists/partial", (hours_ago, hours_ago))
    assert Packages().process(shell(command, path))["age"] in range(7200, 7260)
