"""What a run plans for applications: their descriptions, ports, secrets and releases."""

import base64
import json
import re
from collections.abc import Sequence
from hashlib import sha256
from subprocess import CompletedProcess
from typing import Any

import pytest

from terrafirma.app.description import description, uploaded_source
from terrafirma.app.facts import AppSecrets, ReleaseStatus
from terrafirma.host.files import PathStates
from terrafirma.paths import HOST_PROGRAM, OURS
from tests.conftest import Pyinfra
from tests.unit.fake_host import (
    DEBIAN_12,
    POOLED,
    SHOP,
    Answers,
    api,
    command,
    commands,
    fake,
    kept,
    machine,
    refuses,
    written,
)
from tests.unit.settings import API, entry
from tests.unit.settings import server as server_of

OURS_ARE = command(PathStates, paths=(), patterns=OURS)


# --- refusals -------------------------------------------------------------------------------------

# The mistake; the task; the host; the key in the message, and what would be right.
REFUSALS: dict[str, tuple[str, list[str], Sequence[str]]] = {
    "a limit that an application would run into": (
        "tasks/app",
        fake(machine(), postgres_roles=[{"name": "api", "connection_limit": 39}]),
        ("postgres_roles: ", "api: connection_limit 39", "set it to 40 or more"),
    ),
    "an application on Debian 12": (
        "tasks/app",
        fake(machine(DEBIAN_12)),
        ("apps: ", "Debian GNU/Linux 12 (bookworm)", "Debian 13 or Ubuntu 24.04", "apps to {}"),
    ),
    "an application without its database": (
        "tasks/app",
        fake(machine(), **api(database="shop")),
        (
            "apps.api.database: ",
            "'shop' is not in postgres_databases (api)",
            'add {"name": "shop", "owner": "shop"} there, and {"name": "shop"} to postgres_roles',
        ),
    ),
    "an application whose role does not come in": (
        "tasks/app",
        fake(machine(), postgres_roles=[{"name": "api"}, {"name": "web"}], **api(role="web")),
        ("apps.api.role: ", "'web' is not in", "log in to api (api)"),
    ),
    "an application whose role is a group": (
        "tasks/app",
        fake(
            machine(),
            postgres_roles=[{"name": "api", "login": False}, {"name": "web"}],
            postgres_databases=[{"name": "api", "owner": "api", "access": {"web": "write"}}],
        ),
        ("apps.api.role: ", "'api' is not in", "log in to api (web)"),
    ),
    "an application without its network": (
        "tasks/app",
        fake(machine(), **api(network="jobs")),
        ("apps.api.network: ", "'jobs' is not in docker_networks (apps)"),
    ),
    "an application on PostgreSQL's port": (
        "tasks/app",
        fake(machine(), **api(port=5400)),
        ("apps.api.port: ", "5432 is taken by postgres_port; take another, or leave it out"),
    ),
    "an application of two kinds": (
        "tasks/app",
        fake(machine(), **api(image="api:1")),
        ("apps.api.image: ", "api has a source too: set only one of the two"),
    ),
    "an application on another's ports below the platform": (
        "deploy",
        fake(machine(), apps={"api": API | {"port": 8000}, "shop": SHOP | {"port": 8127}}),
        ("apps.shop.port: ", "8127 is taken by apps.api.port (8000 to 8127)", "or leave it out"),
    ),
    "an application beyond the last port": (
        "tasks/app",
        fake(machine(), **api(port=65409)),
        ("apps.api.port: ", "api has 65409 to 65536, but 65535 is the last"),
    ),
    "a compose file that there is not below the platform": (
        "deploy",
        fake(machine(), **api(compose=["compose.yaml"])),
        ("apps.api.compose: ", "'examples/api' has no file 'compose.yaml'"),
    ),
    "a source in the home of an unknown user": (
        "tasks/app",
        fake(machine(), **api(source="~nobody-here/api")),
        ("apps.api.source: ", "'~nobody-here/api' is not a directory with a Dockerfile"),
    ),
    "an image that is none": (
        "tasks/app",
        fake(machine(), **api(source="", image="registry.acme.com/Api")),
        ("apps.api.image: ", "no image, like registry.example.com/team/api:1.2"),
    ),
    "a registry without its password": (
        "tasks/app",
        fake(machine(), **api(source="", image="api:1", registries={"docker.io": {"user": "ci"}})),
        ("apps.api.registries.docker.io.password: ", "Field required"),
    ),
    "a secret in the place of its source": (
        "deploy",
        fake(machine(), **api(secrets={"token": "s3cret-itself"})),
        ("apps.api.secrets.token: ", "use 'generated' (on the server), 'env:NAME'"),
    ),
    "an application of an unknown account": (
        "tasks/app",
        fake(machine(), **api(user="shop")),
        ("apps.api.user: ", "'shop' is not in users_accounts"),
    ),
    "nothing to go back with": (
        "commands/rollback",
        fake(machine()),
        ("rollback: ", "'' is none of api", "--data rollback=APPLICATION"),
    ),
    "an unknown application to go back with": (
        "commands/rollback",
        fake(machine(), rollback="shop:0123456789ab"),
        ("rollback: ", "'shop' is none of api"),
    ),
    "a release that is none to go back to": (
        "commands/rollback",
        fake(machine(), rollback="api:last"),
        ("rollback: ", "'api:last' does not match"),
    ),
    "an application on the ports of one that is left": (
        "tasks/app",
        fake(machine() | kept(old=9100), apps={"shop": SHOP}),
        ("apps.shop.port: ", "9100 belongs to old", "or end old on the host: terrafirma remove"),
    ),
    "an application through no pooler": (
        "tasks/app",
        fake(machine(), **api(pgbouncer=True)),
        ("apps.api.pgbouncer: ", "pgbouncer_enabled is False"),
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_refuses_in_one_line_before_anything_changes(
    refused: dict[str, CompletedProcess[str]], what: str
) -> None:
    refuses(refused[what], REFUSALS[what][2])


# --- descriptions, ports and releases -------------------------------------------------------------


def description_of(
    result: CompletedProcess[str], host: str = "host", name: str = "api"
) -> dict[str, Any]:
    """The description of an application for the program on the host."""
    text = written(result, f"/etc/terrafirma/apps/{name}.json", host)
    answer: dict[str, Any] = json.loads(text)
    return answer


def test_a_new_application_changes_no_other_description(pyinfra: Pyinfra, inventory: Any) -> None:
    """A changed description would make a new release of every application."""
    hosts = inventory(
        one=(machine(), {}),
        more=(machine(), {"apps": {"api": API, "shop": SHOP}}),
        other=(machine(), api(replicas=2)),
    )
    result = pyinfra.call(hosts, "tasks/app.py", "--dry", "--diff")
    assert description_of(result, "more") == description_of(result, "one")
    assert description_of(result, "more", "shop")["slots"] == {"blue": 9000, "green": 9064}
    assert description_of(result, "other") == description_of(result, "one") | {"replicas": 2}


def test_an_application_keeps_its_ports(pyinfra: Pyinfra, inventory: Any) -> None:
    """Its place in the settings does not matter."""
    new = SHOP | {"domain": "new.test", "port": 8256}
    apps = {"new": new, "web": entry(), "api": API}
    hosts = inventory(
        bare=(machine(), {"apps": apps}),
        known=(machine() | kept(api=8000, old=8128), {"apps": apps}),
        moved=(machine() | kept(api=8000), api(port=9000)),
    )
    result = pyinfra.call(hosts, "deploy.py", "--dry", "--diff")
    slots = {
        (host, name): description_of(result, host, name)["slots"]["blue"]
        for host, names in {"bare": apps, "known": apps, "moved": {"api": API}}.items()
        for name in names
    }
    assert slots == {
        ("bare", "new"): 8256,
        ("bare", "web"): 8000,
        ("bare", "api"): 8128,
        ("known", "new"): 8256,
        ("known", "web"): 8384,
        ("known", "api"): 8000,
        ("moved", "api"): 9000,
    }
    # Caddy asks where they are.
    caddyfile = written(result, "/etc/caddy/Caddyfile", "known")
    assert {int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", caddyfile)} >= {
        *range(8000, 8008), *range(8064, 8072), *range(8384, 8392), *range(8256, 8264),
    }  # fmt: skip
    assert "Not in apps, left alone: old; `terrafirma remove old` on the host" in result.stderr


# What the program on the host reports of `api`; whether the run releases; what the run says.
STATES: dict[str, tuple[dict[str, Any] | None, bool, str]] = {
    "bare": (None, True, ""),
    "first": ({"serving": ""}, True, ""),
    "another": ({}, True, ""),
    "scaled": ({"serving": "ba9876543210"}, True, ""),
    "current": ({"serving": "ba9876543210", "current": True}, False, ""),
    "withdrawn": (
        {"withdrawn": True, "current": True},
        False,
        "api: release ba9876543210 was rolled back, and 0123456789ab serves: change the source and "
        "deploy; or release it after all with `sudo terrafirma release api --again` on the host",
    ),
    "withdrawn_and_other_settings": (
        {"withdrawn": True},
        True,
        "api: release ba9876543210 was rolled back, and 0123456789ab serves: change the source and "
        "deploy; or release it after all with `sudo terrafirma release api --again` on the host",
    ),
    "hung": (
        {"silent": ["api-blue-api-1 is paused"]},
        True,
        "api: api-blue-api-1 is paused",
    ),
    "maintained": (
        {"current": True, "notes": ["maintenance of api is on"]},
        False,
        "api: maintenance of api is on",
    ),
    "before_the_first": (
        {"serving": "", "wanted": "", "trouble": "there was no release yet on this host"},
        True,
        "api: no release yet; this is the first",
    ),
    "unknown": (
        {"wanted": "", "trouble": "registry.acme.com: no route to host"},
        True,
        "api: cannot tell if it is current: registry.acme.com: no route to host",
    ),
}


def test_a_release_is_asked_for_where_another_one_serves(pyinfra: Pyinfra, inventory: Any) -> None:
    state = {
        "serving": "0123456789ab",
        "wanted": "ba9876543210",
        "withdrawn": False,
        "current": False,
        "trouble": "",
    }
    question = command(ReleaseStatus, app="api")
    hosts = inventory(
        **{
            name: (machine() | ({question: [json.dumps(state | said)]} if said else {}), {})
            for name, (said, _, _) in STATES.items()
        }
    )
    result = pyinfra.call(hosts, "tasks/app.py", "-y", "-vv")
    assert result.returncode == 0, result.stderr
    (release,) = [
        one
        for one in json.loads(result.stdout)["results"]["operations"]
        if one["name"] == "Release api, 4 replicas"
    ]
    asked = {f"@fake/{name}" for name, (_, asked, _) in STATES.items() if asked}
    assert set(release["success"]) == asked
    assert set(release["no_change"]) == {f"@fake/{name}" for name in STATES} - asked
    # After a rollback the release that serves is refreshed, and the rolled back one stays away.
    for name, verb in (("withdrawn_and_other_settings", "refresh"), ("another", "release")):
        done = [one for one in commands(result, name) if one.startswith(f"{HOST_PROGRAM} ")]
        assert [one.split()[1] for one in done if " --by " in one] == [verb]
    for name, (_, _, words) in STATES.items():
        assert len(re.findall(rf"@fake/{name}\]\S* .*{words or 'rolled back'}", result.stderr)) == (
            1 if words else 0
        )


def test_a_plan_has_a_release_where_something_of_it_is_to_change(
    pyinfra: Pyinfra, inventory: Any
) -> None:
    """The host still has the old description, and its release serves."""
    data = api(secrets={"token": "generated"})
    placed = server_of(**data).with_ports({})
    (app,) = placed.apps
    text = description(app, placed.users)
    file, source = "/etc/terrafirma/apps/api.json", uploaded_source(app)
    uploaded = [f"700|root|root|directory|{source}"]
    described = [
        f"600|root|root|regular file|{file}",
        f"{sha256(text.encode()).hexdigest()}  {file}",
    ]
    state = {"serving": "0123456789ab", "wanted": "0123456789ab", "current": True}
    state |= {"withdrawn": False, "trouble": ""}
    secrets = command(AppSecrets, directory="/etc/terrafirma/secrets/app/api")
    right: Answers = {
        secrets: [],
        "echo no account": ["right"],
        OURS_ARE: [*uploaded, *described],
        command(ReleaseStatus, app="api"): [json.dumps(state)],
    }
    # The fact that differs; the step that is planned for it. A release follows each.
    differences: dict[str, tuple[Answers, str]] = {
        "secret": ({secrets: ["wrong token"]}, "Give api its secrets"),
        "url": ({"echo no account": ["wrong"]}, "Give api the address of its database"),
        "source": ({OURS_ARE: described}, "Upload the source of api"),
        "description": ({OURS_ARE: uploaded}, "Write the description of api"),
    }
    hosts = inventory(
        converged=(machine() | right, data),
        **{name: (machine() | right | but, data) for name, (but, _) in differences.items()},
    )
    plan = pyinfra.run(hosts, "tasks/app.py", "--dry")["plan"]
    change = {one["name"]: set(one["hosts_with_change"]) for one in plan}
    for name, (_, step) in differences.items():
        assert change[step] == {f"@fake/{name}"}
    assert change["Release api, 4 replicas"] == {f"@fake/{name}" for name in differences}


def test_a_fault_that_no_release_repairs_ends_the_run(pyinfra: Pyinfra) -> None:
    """The plan shows the fault, too."""
    state = {
        "serving": "0123456789ab",
        "wanted": "0123456789ab",
        "withdrawn": False,
        "trouble": "",
        "current": True,
        "silent": [],
        "troubles": ["https://api.test/ answers 503"],
        "notes": [],
    }
    host = fake(machine() | {command(ReleaseStatus, app="api"): [json.dumps(state)]})
    plan = pyinfra.call("@fake/host", "tasks/app.py", "--dry", *host)
    assert "api: https://api.test/ answers 503" in plan.stderr
    result = pyinfra.call("@fake/host", "tasks/app.py", "-y", "-vv", *host)
    assert "api does not answer: https://api.test/ answers 503" in result.stderr


def test_releases_are_shown_and_nothing_changes(pyinfra: Pyinfra) -> None:
    shown = ["api: 4 replicas of 0123456789ab", "  2026-01-31T12:00:00  release   0123456789ab"]
    question = f"test ! -x {HOST_PROGRAM} || {HOST_PROGRAM} releases"
    answers = machine() | {question: shown}
    result = pyinfra.call("@fake/host", "commands/releases.py", "-y", *fake(answers))
    assert result.returncode == 0, result.stderr
    assert "\n".join(shown) in result.stderr
    assert json.loads(result.stdout)["results"]["operations"] == []
    bare = pyinfra.call("@fake/host", "commands/releases.py", "--dry", *fake(machine()))
    assert "no application" in bare.stderr


def test_the_url_leads_through_pgbouncer_if_asked_for(pyinfra: Pyinfra, inventory: Any) -> None:
    hosts = inventory(direct=(machine(), POOLED), pooled=(machine(), POOLED | api(pgbouncer=True)))
    result = pyinfra.call(hosts, "tasks/app.py", "--dry", "-vv", "--diff")
    assert result.returncode == 0, result.stderr
    for name, port in (("direct", 5432), ("pooled", 6432)):
        (asked,) = {
            url
            for line in commands(result, name)
            for url in re.findall(r"host\.docker\.internal:(\d+)/api", line)
        }
        assert asked == str(port)
    # The URL is a secret, so the description does not show it; the host itself notices a change.
    assert description_of(result, "direct") == description_of(result, "pooled")


@pytest.mark.parametrize("how", ["--dry", "-y"])
def test_a_value_is_not_shown(pyinfra: Pyinfra, how: str) -> None:
    asked = command(AppSecrets, directory="/etc/terrafirma/secrets/app/api")
    host = fake(
        machine() | {asked: ["wrong token", "wrong key", "other stale"]},
        apps={
            "api": API
            | {
                "secrets": {
                    "token": "env:TF_TOKEN",
                    "key": "generated",
                    "more": "command:echo m0re-$TF_TOKEN",
                }
            }
        },
    )
    # With -vv pyinfra prints every fact, with its arguments, and every command.
    call = ("@fake/host", "tests/e2e/deploy_secrets.py", how, "--diff", "-vvv", "--debug", *host)
    result = pyinfra.call(*call, TF_TOKEN="s3cret-s3cret")
    done = commands(result)
    assert asked in done
    changes = "/usr/local/bin/terrafirma secrets set /etc/terrafirma/secrets/app/api"
    assert (how == "-y") == (changes in done)
    assert "s3cret-s3cret" not in result.stdout + result.stderr
    assert base64.b64encode(b"s3cret-s3cret").decode() not in result.stdout + result.stderr
    # pyinfra does print the other arguments, so the check above means something.
    assert "_stdin=…" in result.stderr
    assert "left alone: /etc/terrafirma/secrets/app/api/ stale" in result.stderr
    assert (how == "--dry") == ("  token, key" in result.stderr)
