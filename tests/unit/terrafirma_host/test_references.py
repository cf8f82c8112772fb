"""References of compose files; in `tests/e2e/projects.py` Compose itself reads such files."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from terrafirma_host import references, variables
from terrafirma_host.project_files import Files
from terrafirma_host.shell import Failed

from tests.unit.terrafirma_host.projects import SHOP, project


@pytest.mark.parametrize("line", ["{", "${A:-", "$", "{$", "}", "${A", "$$"])
def test_a_long_line_takes_no_longer(tmp_path: Path, line: str) -> None:
    (tmp_path / "compose.yaml").write_text(f"{line * 60_000} ${{B}}\n$WANTED\n")
    asked = replace(files({}), paths=[f"{tmp_path}/compose.yaml"], warnings=blank("WANTED"))
    start = time.process_time()
    with pytest.raises(Failed, match=r"WANTED\} \([^,]*compose.yaml, line 2\) is not set"):
        references.check(asked)
    assert time.process_time() - start < 5


def test_the_home_of_a_default_counts_where_it_is_needed() -> None:
    raw = {"services": {"web": {"volumes": [{"source": "${DATA:-$HOME/data}"}]}}}
    references.check(files(raw))
    # Compose warns of each variable, needed or not.
    references.check(files(raw | {"services": {"web": {"image": "${DATA:-${PWD}}"}}}, "PWD"))
    raw["services"]["web"]["volumes"] = [{"source": "${OTHER:-$HOME/data}"}]
    with pytest.raises(Failed, match=r"^\$HOME \(the compose files, web\) is /root on the host"):
        references.check(files(raw))


def test_a_default_where_compose_cannot_say_the_words_of_the_files(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text("a: ${DATA:-${PWD}/data}\nb: ${DATA:-$HOME}\n")
    references.check(replace(files({}, "PWD"), paths=[f"{tmp_path}/compose.yaml"]))


@pytest.mark.parametrize(
    "further", [["docs=../docs"], {"docs": "../docs"}, ["own=./own", "docs=../docs"]]
)
def test_further_contexts_in_both_ways_of_writing(further: Any) -> None:
    build = {"context": SHOP.source, "additional_contexts": {"docs": "/no/where", "own": "/own"}}
    raw = {"services": {"web": {"build": {"context": ".", "additional_contexts": further}}}}
    with pytest.raises(Failed, match=r"^web: build: additional_contexts: docs: \.\./docs is outs"):
        references.check(files(raw, web={"build": build}))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("seccomp=../p.json", "../p.json is outside of the source"),
        ("seccomp:../p.json", "../p.json is outside of the source"),
        ("seccomp=./a/../../p.json", "outside of the source"),
        ("seccomp=~/p.json", "~/p.json is below /root"),
        ("seccomp=link.json", "link.json is a link to /etc/hostname, outside of the source"),
        ("seccomp=none.json", " is the file none.json, which is not on the host"),
        ("seccomp=/no/where.json", " is the file /no/where.json, which is not on the host"),
        ("seccomp=.", "which is not on the host"),
        ("seccomp=p.json", ""),
        ("seccomp:./p.json", ""),
        ("seccomp=/etc/hostname", ""),
        ("seccomp=unconfined", ""),
        ("seccomp=builtin", ""),
        ("apparmor=../p", ""),
        ("no-new-privileges:true", ""),
    ],
)
def test_a_profile_is_a_file_of_the_source_or_the_host(
    tmp_path: Path, option: str, words: str
) -> None:
    (tmp_path / "p.json").touch()
    (tmp_path / "link.json").symlink_to("/etc/hostname")
    asked = files({"services": {"web": {}}}, web={"security_opt": [option]})
    asked = replace(asked, app=replace(SHOP, source=str(tmp_path)))
    if words:
        with pytest.raises(Failed, match=r"^web: security_opt: seccomp") as said:
            references.check(asked)
        assert words in str(said.value)
    else:
        references.check(asked)


def blank(*names: str) -> list[str]:
    return [f'The "{name}" variable is not set. Defaulting to a blank string.' for name in names]


GIVEN = {"DATA": "/srv/data", "EMPTY": "", "HOME": "/root"}


def files(raw: dict[str, Any], *names: str, **more: Any) -> Files:
    services = {name: {} for name in raw.get("services", {})} | more
    return Files(SHOP, [], project(**services), raw, blank(*names), given=GIVEN, kept=frozenset())


def test_a_blank_variable_counts_where_it_is_used() -> None:
    raw = {"services": {"web": {"command": "$A"}, "tools": {"image": "x:$B"}}}
    references.check(files(raw, "B", tools={"profiles": ["x"]}))
    with pytest.raises(Failed, match=r"^env: \$\{A\} \(the compose files, web\) is not set"):
        references.check(files(raw, "A", "B", tools={"profiles": ["x"]}))
    # Where Compose cannot print the files unresolved, each counts.
    with pytest.raises(Failed, match=r"\$\{B\} \(the compose files\) is not set"):
        references.check(files({}, "B"))


@pytest.mark.parametrize(
    ("line", "name", "words"),
    [
        ('volumes: ["${A}:/data"]', "A", "${A} (compose.yaml, line 1) is not set"),
        ("image: $A", "A", "${A} (compose.yaml, line 1) is not set"),
        ('volumes: ["$PWD:/data"]', "PWD", "$PWD (compose.yaml, line 1) is not set on the host"),
        ("image: ${KEPT}", "KEPT", "KEPT is a name that Docker reads itself"),
    ],
)
def test_a_variable_that_leaves_a_field_blank_is_named_with_the_error(
    tmp_path: Path, line: str, name: str, words: str
) -> None:
    """Compose fails before it prints the files."""
    (tmp_path / "compose.yaml").write_text(f"{line}\n")
    app = replace(SHOP, source=str(tmp_path))
    asked = Files(
        app, [f"{tmp_path}/compose.yaml"], {"services": {}}, {}, blank(name),
        given=GIVEN, kept=frozenset({"KEPT"}),
    )  # fmt: skip
    with pytest.raises(Failed) as said:
        variables.refuse_blank(asked, "the compose files: empty section")
    assert words in str(said.value)
    assert str(said.value).endswith(" (the compose files: empty section)")
    variables.refuse_blank(replace(asked, warnings=[]), "another error")


@pytest.mark.parametrize(
    ("service", "line"),
    [
        ({"ports": [{"target": 9000, "published": "9000"}]}, "w: port 9000 is not published"),
        ({"deploy": {"placement": {"constraints": ["a"]}}}, "w: deploy.placement has no effect"),
        ({"deploy": {"mode": "global", "labels": {"a": "b"}}}, "deploy.labels, deploy.mode has no"),
        ({"secrets": [{"source": "s", "mode": 256}]}, "w: secrets.mode has no effect"),
        ({"configs": [{"source": "s", "uid": "0"}]}, "w: configs.uid has no effect"),
        ({"environment": {"KEY": None, "A": ""}}, "w: nothing sets KEY, which its environment"),
        ({"deploy": {"placement": {}, "mode": "replicated", "replicas": 2}}, ""),
        ({"container_name": "shop_w", "environment": {"A": "1"}}, ""),
    ],
)
def test_a_key_without_effect_is_noted(service: dict[str, Any], line: str) -> None:
    asked = files({"services": {"w": {}}}, w=service)
    references.check(asked)
    if line:
        (said,) = asked.notes
        assert line in said
    else:
        assert asked.notes == []


def test_the_port_that_serves_is_published() -> None:
    web = {"build": {}, "ports": [{"target": 8000, "published": "80"}, {"target": 9090}]}
    asked = files({}, web=web)
    references.check(asked)
    assert asked.notes == ["web: port 9090 is not published: Caddy is the way in"]


def test_a_secret_in_both_files_and_settings_is_that_of_the_settings(app: Any) -> None:
    theirs = dict(project()) | {"secrets": {"token": {"file": "/no/where"}}}
    theirs["services"]["web"]["secrets"] = [{"source": "token"}]
    asked = Files(SHOP, [], theirs, {}, [], {}, frozenset())
    with pytest.raises(Failed, match=r"^secrets: token is the file /no/where, which is not on"):
        references.check(asked)
    ours = replace(asked, app=replace(SHOP, secrets={"token": "/etc/token"}), notes=[])
    references.check(ours)
    assert ours.notes == ["secrets: token is that of the settings, not that of the compose files"]
