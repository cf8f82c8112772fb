"""Updates: what a server installs by itself, and what it does in its windows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Pyinfra
from tests.e2e.clones import DEPLOYED, clone, serves
from tests.e2e.support import Container, Target, changed, eventually, execute, get, options, output

pytestmark = pytest.mark.e2e

TASK = "tasks/updates.py"
WINDOWS = {"updates_reboot": "Sun *-*-* 04:00:00", "updates_postgres": "Sun *-*-* 03:00:00"}

# An archive that claims to be the distribution's security archive, with the highest versions. The
# packages are empty: those of engines must never be installed.
ARCHIVE = r"""
set -e
mkdir -p /opt/security && cd /opt/security
pack() {
    mkdir -p "/tmp/$1/DEBIAN"
    printf 'Package: %s\nVersion: %s\nArchitecture: all\nMaintainer: x <x@example.com>\n' \
        "$1" "$2" > "/tmp/$1/DEBIAN/control"
    echo 'Description: of a test' >> "/tmp/$1/DEBIAN/control"
    dpkg-deb --build "/tmp/$1" "$1_$2.deb" > /dev/null
}
for name in docker.io docker-cli containerd runc caddy postgresql-17 postgresql-client-17; do
    pack $name 1000:99-1
done
pack harmless 1-1 && dpkg -i harmless_1-1.deb > /dev/null && rm harmless_1-1.deb
pack harmless 2-1
for deb in *.deb; do
    dpkg-deb -f "$deb"
    echo "Filename: ./$deb"
    echo "Size: $(stat -c %s "$deb")"
    echo "SHA256: $(sha256sum "$deb" | cut -d' ' -f1)"
    echo
done > Packages
{
    printf 'Origin: Debian\nLabel: Debian-Security\nSuite: stable-security\n'
    printf 'Codename: trixie-security\nDate: %s\nSHA256:\n' "$(date -Ru)"
    echo " $(sha256sum Packages | cut -d' ' -f1) $(stat -c %s Packages) Packages"
} > Release
echo 'deb [trusted=yes] file:/opt/security ./' > /etc/apt/sources.list.d/test.list
apt-get -q update > /dev/null
"""
# The installed PostgreSQL, repackaged as a future minor release.
MINOR = r"""
set -e
rm -f /etc/apt/sources.list.d/test.list && apt-get -q update > /dev/null
mkdir -p /opt/minor && cd /opt/minor
apt-get -q download postgresql-17 > /dev/null 2>&1
dpkg-deb -R postgresql-17_*.deb /tmp/minor && rm postgresql-17_*.deb
sed -i 's/^Version: .*/Version: 17.99-1/' /tmp/minor/DEBIAN/control
dpkg-deb -Znone --build /tmp/minor new.deb > /dev/null
{
    dpkg-deb -f new.deb
    printf 'Filename: ./new.deb\nSize: %s\nSHA256: %s\n' \
        "$(stat -c %s new.deb)" "$(sha256sum new.deb | cut -d' ' -f1)"
} > Packages
echo 'deb [trusted=yes] file:/opt/minor ./' > /etc/apt/sources.list.d/test.list
"""
# A release of `api` by another user, as other programs see it.
RELEASE = r"""
import sys, time
sys.path.insert(0, "/usr/local/lib/terrafirma")
from terrafirma_host.lease import lease
from terrafirma_host.spec import Application
with lease(Application.load("api"), "ci@runner", "release", 60) as mine:
    mine.step("health")
    open("/run/test-holds", "w").close()
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def server(pyinfra: Pyinfra) -> Iterator[Target]:
    with clone(pyinfra, "tf-test-updates", 2491, DEPLOYED) as one:
        yield one


def report(server: Target) -> dict[str, Any]:
    return dict(json.loads(server.run("terrafirma updates")))


def versions(server: Target) -> str:
    return server.run(
        "dpkg-query -W docker.io docker-cli containerd runc caddy 'postgresql*' pgbouncer"
        " 2> /dev/null || true"
    )


def said(server: Target, **data: Any) -> str:
    """The messages of a run, which must change nothing."""
    result = server.pyinfra.call("-y", *options(data), *server.arguments(), TASK)
    assert result.returncode == 0, result.stderr
    assert changed(json.loads(result.stdout)) == []
    return result.stderr


@pytest.mark.promise("Security updates are installed every day, and a second run changes nothing")
def test_a_converged_server_stays_as_it_is(server: Target) -> None:
    before = server.digest()
    assert changed(server.deploy(TASK)) == []
    assert server.plan(TASK) == []
    assert server.digest() == before
    timers = server.run("systemctl list-timers --no-legend 'apt-daily*' | awk '{ print $(NF-1) }'")
    assert sorted(timers.split()) == ["apt-daily-upgrade.timer", "apt-daily.timer"]
    for unit in ("apt-daily.service", "apt-daily-upgrade.service"):
        bound = server.run(f"systemctl show --property TimeoutStartUSec --value {unit}")
        assert bound in ("2h", "6h")


@pytest.mark.promise("Security updates never change Docker, PostgreSQL or Caddy")
def test_security_updates_change_no_engine(server: Target, outsider: Container) -> None:
    server.run(ARCHIVE)
    # Without the holds only the blacklist protects the engines.
    server.run("apt-mark showhold | xargs --no-run-if-empty apt-mark unhold")
    before = versions(server)
    assert "1000:99-1" in server.run("apt-cache policy caddy")
    planned = server.run("unattended-upgrade --dry-run --verbose 2>&1", timeout=170)
    assert "harmless" in planned
    for line in planned.splitlines():
        if "will be upgraded" in line:
            assert line.split(":")[-1].split() == ["harmless"]
    server.run("unattended-upgrade --verbose", timeout=170)
    assert server.run("dpkg-query -Wf '${Version}' harmless") == "2-1"
    assert versions(server) == before
    assert server.run("terrafirma promises") == "all is as promised"
    assert get(outsider, server)[0][0] == 200
    server.run("rm /etc/apt/sources.list.d/test.list && apt-get -q update")


def test_needrestart_restarts_no_engine(server: Target) -> None:
    """Replaced programs stand for an updated library: both need a restart of the units."""
    server.run(
        "set -e; for file in /usr/bin/caddy /usr/lib/postgresql/17/bin/postgres /usr/sbin/cron"
        " /lib/systemd/systemd-logind; do test ! -e $file || { cp -p $file $file.new;"
        " mv $file.new $file; }; done"
    )
    units = ("caddy", "postgresql@17-main", "docker", "containerd", "ssh")
    since = f"systemctl show --property ActiveEnterTimestamp {' '.join(units)}"
    before = server.run(since)
    listed = server.run("needrestart -r a -m a 2>&1")
    assert "caddy.service" in listed
    assert "postgresql@17-main.service" in listed
    assert server.run(since) == before


@pytest.mark.promise("Each run reports a due reboot; it happens only in its window")
def test_a_due_reboot_is_reported(server: Target) -> None:
    assert "a reboot is due" not in said(server)
    server.run("echo libc6 > /run/reboot-required.pkgs; touch /run/reboot-required")
    words = "a reboot is due (asked for by libc6): reboot the host, or set updates_reboot"
    assert words in said(server)
    assert report(server)["alarms"] == [words]


def test_a_window_is_opened_and_closed(server: Target) -> None:
    refused = server.refuse(TASK, updates_reboot="noon-ish")
    assert "updates_reboot: systemd does not understand 'noon-ish'" in refused
    assert "Open the window for a reboot" in changed(server.deploy(TASK, **WINDOWS))
    assert "it will happen in the window updates_reboot" in said(server, **WINDOWS)
    timers = server.run("systemctl list-timers --no-legend 'terrafirma-*'")
    assert "terrafirma-reboot.timer" in timers
    assert "terrafirma-postgres-minor.timer" in timers
    assert changed(server.deploy(TASK)) == [
        "Close the window for a reboot",
        "Close the window for PostgreSQL's minor releases",
    ]
    assert server.run("systemctl list-timers --no-legend 'terrafirma-*'") == ""
    assert changed(server.deploy(TASK)) == []
    server.deploy(TASK, **WINDOWS)


def test_a_reboot_never_interrupts_a_release(server: Target) -> None:
    server.run("cat > /root/release.py", stdin=RELEASE)
    server.run("systemd-run --quiet --unit=test-release python3 /root/release.py")
    eventually(lambda: server.call("test -e /run/test-holds").returncode == 0, 10)
    result = server.call("terrafirma reboot window 0")
    assert result.returncode == 1
    assert "a release of api is going on (ci@runner does the release" in result.stderr
    assert "did not happen in its window" in said(server, **WINDOWS)
    server.run("systemctl stop test-release")


@pytest.mark.promise(like=test_a_due_reboot_is_reported)
def test_a_due_reboot_happens_in_its_window(server: Target, outsider: Container) -> None:
    """`systemctl reboot` ends the target's container; starting it again stands for the boot."""
    server.run("systemctl start --no-block terrafirma-reboot.service")
    state = ("docker", "inspect", "--format", "{{.State.Running}}", server.name)
    eventually(lambda: output(*state) == "false", 60)
    output("docker", "start", server.name)
    serves(server, DEPLOYED)
    note = "/var/lib/terrafirma/updates/reboot.json"
    eventually(lambda: "again" in server.call(f"cat {note}").stdout, 60)
    assert "(asked for by libc6): all was as promised again after" in said(server, **WINDOWS)
    assert report(server)["alarms"] == []
    assert get(outsider, server)[0][0] == 200
    assert execute(*state).stdout == "true\n"


@pytest.mark.promise("PostgreSQL's minor releases are installed in their window, with one restart")
def test_a_minor_release_is_installed_in_its_window(server: Target) -> None:
    server.run(MINOR)
    server.run("apt-mark hold postgresql-17 postgresql-client-17")
    began = server.run("date +%s")
    server.run("systemctl start terrafirma-postgres-minor.service", timeout=170)
    assert server.run("dpkg-query -Wf '${Version}' postgresql-17") == "17.99-1"
    assert "postgresql-17" in server.run("apt-mark showhold").split()
    journal = server.run(f"journalctl -o cat -u postgresql@17-main --since @{began}")
    assert journal.count("Started ") == 1
    assert "to 17.99-1 at" in said(server, **WINDOWS)
    assert server.run("terrafirma promises") == "all is as promised"
