"""What a backup needs of the applications: their volumes, and dumps by commands in containers."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from terrafirma_host import backup
from terrafirma_host.shell import Failed
from terrafirma_host.spec import Application

from tests.unit.programs import Program
from tests.unit.terrafirma_host.applications import described, told
from tests.unit.terrafirma_host.docker import inspected

NAMELESS, SCRATCH = "a" * 64, "b" * 64
# The commands run here, as they would in a container. `docker` fails once `down` is there.
DOCKER = """\
test ! -e {root}/down || {{ echo "Cannot connect to the Docker daemon" >&2; exit 1; }}
case "$*" in
"volume ls"*) echo shop_data bound shop_cache plugin memory old_files ;;
"volume inspect"*) shift 2; for one; do cat {root}/volume-$one; done | sed '1s/^/[/; $s/,$/]/' ;;
"ps"*project=shop-state*) echo shop-state-db-1 ;;
"ps"*project=*) ;;
"ps"*) echo all ;;
"container inspect all") cat {root}/containers ;;
"container inspect"*) cat {root}/db ;;
"exec --env "*) shift 2; mark=$1; shift 2; echo "$*" >> {root}/ran; exec env "$mark" "$@" ;;
esac
"""


@pytest.fixture
def host(roots: Path, program: Program, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with the application shop, which has a release and a stateful service."""
    monkeypatch.setattr(backup, "NOTE", roots / "run/backup.json")
    monkeypatch.setattr(backup, "AGAIN", 0)
    directory = program("docker", DOCKER.format(root=roots))
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    _volume(roots, "shop_data", "shop")
    _volume(roots, "shop_cache", "shop")
    _volume(roots, "plugin", "shop", Driver="rexray", Mountpoint="")
    _volume(roots, "bound", "shop", Options={"type": "none", "o": "bind", "device": "/srv/x"})
    _volume(roots, "memory", "shop", Options={"type": "tmpfs"})
    _volume(roots, "old_files", "removed")
    for name in ("theirs", NAMELESS, SCRATCH):
        _volume(roots, name, "")
    containers = [
        _container("shop-state", "theirs", NAMELESS), _container("shop-blue", "shop_data", SCRATCH)
    ]  # fmt: skip
    (roots / "containers").write_text(json.dumps(containers))
    db = inspected("shop-state-db-1")
    db["Config"]["Labels"]["com.docker.compose.service"] = "db"
    (roots / "db").write_text(json.dumps([db]))
    (roots / "opt/shop").mkdir(parents=True)
    serving = {"release": "0123456789ab", "slot": "blue", "replicas": 1, "port": 9000}
    (roots / "opt/shop/serving.json").write_text(json.dumps(serving))
    return roots


def _volume(root: Path, name: str, app: str, **but: Any) -> None:
    place = root / "volumes" / name / "_data"
    place.mkdir(parents=True)
    labels = {"terrafirma.app": app} if app else None
    one = {"Name": name, "Labels": labels, "Driver": "local", "Mountpoint": str(place)} | but
    (root / f"volume-{name}").write_text(json.dumps(one) + ",\n")


def _container(project: str, *volumes: str) -> dict[str, Any]:
    labels = {"terrafirma.app": "shop", "com.docker.compose.project": project}
    mounts: list[dict[str, Any]] = [{"Type": "volume", "Name": one} for one in volumes]
    return {"Config": {"Labels": labels}, "Mounts": [*mounts, {"Type": "bind", "Source": "/srv"}]}


Describe = Callable[..., Application]


@pytest.fixture
def describe(host: Path) -> Describe:
    def write(*, drop: tuple[str, ...] = (), **fields: Any) -> Application:
        app = described(source="examples/compose", compose=["compose.yaml"], service="web",
                        user="", **fields)  # fmt: skip
        data = json.loads(told(app)) | {"name": "shop"}
        kept = {key: value for key, value in data.items() if key not in drop}
        (host / "apps/shop.json").write_text(json.dumps(kept))
        return app

    return write


def ran(host: Path) -> list[str]:
    path = host / "ran"
    return path.read_text().splitlines() if path.exists() else []


def test_all_lasting_volumes_of_applications_are_found(host: Path, describe: Describe) -> None:
    """Those of a removed one, too; of those without a name, the ones of stateful services."""
    describe(backup_leave_out=["cache"])
    found, troubles = backup.volumes()
    names = ["shop_data", "old_files", "theirs", NAMELESS]
    assert found == sorted(str(host / "volumes" / name) for name in names)
    assert troubles == {
        "the volume bound": "/srv/x is mounted only while a container has it, and none runs",
        "the volume plugin": "its driver, rexray, keeps it elsewhere (backup_leave_out)",
    }


@pytest.mark.promise(
    "A dump of a service that fails or hangs ends neither the backup nor the service: the backup "
    "is made, says so in one line, and has failed"
)
@pytest.mark.parametrize(
    ("command", "why"),
    [
        (["sh", "-c", "echo $0; echo 'no room' >&2; exit 3", "-"], "exit 3: no room"),
        (["false"], "exit 1"),
        (["sh", "-c", "sleep 60 & sleep 60"], "ended after 1 s (backup_seconds)"),
    ],
)
def test_a_command_that_fails(host: Path, describe: Describe, command: list[str], why: str) -> None:
    after = ["touch", str(host / "after")]
    describe(services={"db": {"backup_command": command, "backup_after": after,
                              "backup_seconds": 1}})  # fmt: skip
    began = time.monotonic()
    answer = backup.begin()
    assert time.monotonic() - began < 10
    assert answer["troubles"]["backup_command of shop/db"] == why
    assert answer["good"] == []
    assert str(host / "volumes/shop_data") in answer["volumes"]
    # One that fails at once is tried again.
    assert len(ran(host)) == (1 if "seconds" in why else 2)
    assert not (host / "after").exists()
    assert backup.end() == {}
    assert (host / "after").exists()


def test_a_command_that_succeeds(host: Path, describe: Describe) -> None:
    command = ["sh", "-c", "yes | head -c 10000000; echo dump > $0", str(host / "dump")]
    describe(services={"db": {"backup_command": command, "backup_after": ["echo", "over"]}})
    answer = backup.begin()
    assert answer["good"] == ["shop/db"]
    assert (host / "dump").read_text() == "dump\n"
    assert backup.end() == {}
    assert ran(host)[1:] == ["echo over"]
    # Nothing is left to end.
    assert backup.end() == {}
    assert len(ran(host)) == 2


def test_no_message_shows_a_secret(host: Path, describe: Describe) -> None:
    prints = {"backup_command": ["sh", "-c", "echo odd-p4ssw0rd; exit 1"]}
    describe(secrets={"token": "generated"}, services={"db": prints})
    data = json.loads((host / "apps/shop.json").read_text())
    data["secrets"] = {"token": str(host / "token")}
    (host / "apps/shop.json").write_text(json.dumps(data))
    (host / "token").write_text("odd-p4ssw0rd")
    assert backup.begin()["troubles"]["backup_command of shop/db"] == "exit 1: (a secret)"


def test_a_service_that_does_not_run(host: Path, describe: Describe) -> None:
    describe(services={"jobs": {"backup_command": ["true"]}})
    (host / "db").write_text("[]")
    assert "no container of it runs" in backup.begin()["troubles"]["backup_command of shop/jobs"]
    # Nor does anything of an application whose first release has failed.
    (host / "opt/shop/serving.json").unlink()
    assert backup.begin()["troubles"].keys() == {"the volume bound", "the volume plugin"}


def test_a_description_of_the_version_before(host: Path, describe: Describe) -> None:
    """A nightly backup may begin in the middle of the deploy of a new version."""
    fields = ("backup_command", "backup_after", "backup_seconds", "backup_leave_out")
    describe(drop=fields, services={"db": {"backup_command": ["true"]}})
    answer = backup.begin()
    assert answer["good"] == ["shop/db"]
    assert str(host / "volumes/shop_cache") in answer["volumes"]


def test_a_description_that_is_damaged(host: Path) -> None:
    (host / "apps/shop.json").write_text("[")
    answer = backup.begin()
    assert "the description of shop" in answer["troubles"]
    assert str(host / "volumes/shop_data") in answer["volumes"]


def test_a_backup_that_was_killed_is_ended(host: Path, describe: Describe) -> None:
    """The command that ran is killed, and the one afterwards runs."""
    describe(services={"db": {"backup_command": ["true"], "backup_after": ["echo", "over"]}})
    left = subprocess.Popen(["sleep", "60"], env={**os.environ, "TERRAFIRMA_BACKUP": "0a"})
    other = subprocess.Popen(["sleep", "60"], env={**os.environ, "TERRAFIRMA_BACKUP": "0b"})
    try:
        backup._write({"begun": ["shop/db"], "token": "0a"})
        assert backup.end() == {}
        assert left.wait(5) < 0
        assert other.poll() is None
        assert ran(host) == ["echo over"]
    finally:
        left.kill()
        other.kill()
        other.wait()


def test_an_engine_that_does_not_answer(host: Path, describe: Describe) -> None:
    describe()
    (host / "down").touch()
    with pytest.raises(Failed, match="Cannot connect to the Docker daemon"):
        backup.begin()


def test_a_host_without_docker(roots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent / "nothing"))
    assert backup.begin() == {"volumes": [], "troubles": {}, "good": []}


def test_the_words(host: Path, describe: Describe, capsys: pytest.CaptureFixture[str]) -> None:
    describe()
    backup.main(["begin"])
    assert json.loads(capsys.readouterr().out).keys() == {"volumes", "troubles", "good"}
    backup.main(["end"])
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit, match="terrafirma backup begin"):
        backup.main(["now"])
