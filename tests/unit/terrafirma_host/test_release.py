"""Sequences of releases, rollbacks, restarts and refreshes; and the removal."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from terrafirma_host import proxy, release, spec
from terrafirma_host.repair import is_complete
from terrafirma_host.shell import Failed
from terrafirma_host.spec import Application, Serving

from tests.unit.terrafirma_host.applications import records
from tests.unit.terrafirma_host.docker import DIGEST
from tests.unit.terrafirma_host.releases import (
    ALONE,
    FINE,
    Answering,
    asked,
    containers,
    current,
    known,
    release_id,
    uploaded,
)


def test_other_ports_are_those_of_the_next_release(host: Path, app: Application) -> None:
    """It moves the replicas; a recovery points Caddy at the slot that serves."""
    serves = Serving("0123456789ab", "blue", 2, 8000)
    serves.save(app)
    containers(host, FINE, FINE)
    moved = replace(app, replicas=2, slots={"blue": 9000, "green": 9064}, drain_seconds=1)
    assert not is_complete(moved, ALONE, serves)
    # The state after a release that died after its switch.
    proxy.point(moved, "green")
    release.restore_serving_state(moved)
    assert proxy.slot_of(moved) == "blue"


def test_a_release_and_its_rollback(host: Path, answering: Answering) -> None:
    """A rollback runs the old code under the current settings, and its ID is a digest of both."""
    first = answering()
    release.release(first, by="me", revision="r1")
    one = current(first)
    assert one == (release_id(first), "blue")
    images = known(first, one[0]).images
    uploaded(Path(first.source))
    second = answering(source=uploaded(host / "opt" / "api" / "sources" / "4567"))
    release.release(second, by="me", revision="r2")
    two = current(second)
    assert two == (release_id(second), "green")
    assert proxy.slot_of(second) == "green"

    now = replace(second, env={"A": "1"})
    release.rollback(now, "", by="me")
    back, slot = current(now)
    assert slot == proxy.slot_of(now) == "blue"
    assert back == release_id(replace(first, env={"A": "1"})) != one[0]
    assert (known(now, back).images, known(now, back).revision) == (images, "r1")
    # The code is withdrawn, under any settings.
    assert known(now, two[0]).withdrawn
    assert not known(now, back).withdrawn
    for again in (second, replace(second, env={"B": "2"})):
        with pytest.raises(Failed, match="was rolled back: change it, or let it serve"):
            release.release(again, by="me")
    # So there is no earlier release: other settings alone do not make one.
    words = (
        rf"no such release to go back to; kept besides {back}, which serves: {two[0]}; name one "
        r"with `--data rollback=api:RELEASE`, or .*\(A rollback"
    )
    with pytest.raises(Failed, match=words):
        release.rollback(now, "", by="me")
    # After `--again` the code is no longer withdrawn.
    release.release(second, by="me", again=True)
    assert current(second) == (two[0], "green")
    assert not known(second, two[0]).withdrawn
    actions = [line["action"] for line in spec.history(second)]
    assert actions == ["release", "rollback", "release", "release"]


def test_a_rollback_to_a_withdrawn_release_withdraws_nothing(
    host: Path, answering: Answering
) -> None:
    """So the next rollback goes back again to the release before."""
    first = answering()
    release.release(first, by="me")
    uploaded(Path(first.source))
    second = answering(source=uploaded(host / "opt" / "api" / "sources" / "4567"))
    release.release(second, by="me")
    one, two = release_id(first), release_id(second)
    for wanted, serves, withdrawn in (("", one, two), (two, two, None), ("", one, two)):
        release.rollback(second, wanted, by="me")
        assert current(second)[0] == serves
        assert [name for name in (one, two) if known(second, name).withdrawn] == (
            [withdrawn] if withdrawn else []
        )


def test_a_restart_is_under_the_settings_of_now(host: Path, answering: Answering) -> None:
    app = answering()
    release.release(app, by="me", revision="r1")
    release.restart(app, by="me")
    assert current(app) == (release_id(app), "green")
    now = replace(app, env={"A": "1"})
    release.restart(now, by="me")
    assert current(now) == (release_id(now), "blue")
    assert known(now, release_id(now)).revision == "r1"
    # The next run has nothing to do.
    release.release(now, by="me")
    assert current(now) == (release_id(now), "blue")


def test_settings_and_secrets_reach_the_release_after_a_rollback(
    host: Path, answering: Answering
) -> None:
    first = answering(source=uploaded(host / "opt" / "api" / "sources" / "0123"))
    release.release(first, by="me")
    second = answering(source=uploaded(host / "opt" / "api" / "sources" / "4567"))
    release.release(second, by="me")
    release.rollback(second, "", by="me")
    now = replace(second, env={"A": "1"})
    said = release.status(now)
    assert (said["withdrawn"], said["current"], said["wanted"]) == (True, False, release_id(now))
    (host / "asked").unlink()
    release.refresh(now, by="me")
    assert current(now) == (release_id(replace(first, env={"A": "1"})), "green")
    # With the old image.
    assert not [line for line in asked(host) if " build " in line]
    assert spec.history(now)[0]["action"] == "refresh"
    assert spec.is_withdrawn(now, known(second, release_id(second)).code)
    # A tag that has moved since counts for the next release.
    (host / "digest").write_text("sha256:another")
    # A mark of a rollback that died before it served is removed.
    spec.set_withdrawn(now, known(now, current(now)[0]).code, withdrawn=True)
    release.restore_serving_state(now)
    assert not spec.is_withdrawn(now, known(now, current(now)[0]).code)


def test_an_application_that_left_the_settings_is_removed_on_demand(
    host: Path, capsys: Any
) -> None:
    """Also one that another version described, and after a killed removal."""
    (host / "apps" / "api.json").write_text('{"name": "api", "stop_seconds": 5, "gone": 1}')
    (host / "secrets" / "api").mkdir(parents=True)
    (host / "secrets" / "api" / "token").touch()
    (host / "secrets" / "slots" / "api" / "blue").mkdir(parents=True)
    (host / "caddy" / "upstreams").mkdir(parents=True)
    (host / "caddy" / "upstreams" / "api.green").touch()
    site = host / "caddy" / "Caddyfile"
    site.write_text("root /etc/caddy/upstreams\ntry_files /api.green\n")
    app = Application.of_any_version("api")
    records(app, "0123456789ab")
    (app.directory / "fetched").write_text("api@sha256:1\n")
    with pytest.raises(Failed, match="Caddy serves api: take it out of apps, and run"):
        release.remove(app, by="me")
    assert not (host / "asked").exists()
    site.write_text("try_files /our-api.green\n")
    release.remove(app, by="me")
    assert capsys.readouterr().out.endswith(f"left alone: {host}/secrets/api\n")
    assert "stop one" in asked(host)
    assert "image rm api@sha256:1" in asked(host)
    assert not [line for line in asked(host) if "volume rm" in line]
    left = {str(one.relative_to(host)) for one in host.rglob("*") if one.is_file()}
    assert "secrets/api/token" in left
    assert not [one for one in left if one.startswith(("apps", "opt", "caddy/upstreams"))]
    with pytest.raises(Failed, match="there is no application 'api'; there are: none"):
        Application.of_any_version("api")


def test_a_release_of_another_kind_is_no_target_of_a_rollback(host: Path, app: Application) -> None:
    """Nor is one with compose files that a deploy key sent, which were never checked."""
    uploaded(Path(app.source))
    (Path(app.source) / "compose.yaml").touch()
    records(app, "0123456789ab")
    records(app, "00000000000a", source="", image=f"api@{DIGEST}", code="other")
    records(app, "00000000000b", compose=("compose.yaml",), code="more")
    Serving("0123456789ab", "blue", 1, 8000).save(app)
    for other in ("00000000000a", "00000000000b"):
        with pytest.raises(
            Failed,
            match=r"which serves: none\. 00000000000b, 00000000000a came of another kind",
        ):
            release.rollback(app, other, by="me")


def test_a_release_of_another_kind_is_not_refreshed(host: Path, app: Application) -> None:
    records(app, "0123456789ab")
    Serving("0123456789ab", "blue", 1, 8000).save(app)
    other = app.with_image("registry.test/api:1")
    for what in (release.refresh, release.restart):
        with pytest.raises(Failed, match="release 0123456789ab is of another kind, or has other"):
            what(other, by="me")


def test_a_moved_tag_counts_for_the_next_release(host: Path, answering: Answering) -> None:
    app = answering(source="", image="registry.test/api:1")
    release.release(app, by="me")
    (host / "digest").write_text("sha256:another")
    now = replace(app, env={"A": "1"})
    release.refresh(now, by="me")
    # The ID is not that of the moved tag.
    assert current(now)[0] != release_id(now)
    release.release(now, by="me")
    assert current(now)[0] == release_id(now)


def test_a_release_without_an_image_that_is_now_needed_is_refused(
    host: Path, answering: Answering
) -> None:
    """A service that was stateful then was not built for it."""
    app = answering()
    release.release(app, by="me")
    records(app, "00000000000a", images={"redis": "terrafirma/api/redis:0"}, code="other")
    with pytest.raises(Failed, match="release 00000000000a has no image of api: release its code"):
        release.rollback(app, "00000000000a", by="me")
    assert proxy.slot_of(app) == "blue"
