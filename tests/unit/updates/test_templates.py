"""The configuration of unattended-upgrades and needrestart, and the units of the windows."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from terrafirma.updates import engines
from terrafirma.updates.origins import security_origins
from tests.unit.templates import rendered, settled

APT = "updates/60terrafirma-updates.j2"


def test_only_the_security_archive_counts() -> None:
    text = rendered(APT)
    (patterns,) = re.findall(
        r"^Unattended-Upgrade::Origins-Pattern \{\n(.*?)^};", text, re.MULTILINE | re.DOTALL
    )
    assert patterns.split() == [
        '"origin=Debian,codename=${distro_codename}-security,label=Debian-Security";'
    ]
    # apt adds the lists of all files, so ours clears those of the others.
    for name in ("Allowed-Origins", "Origins-Pattern"):
        assert f"#clear Unattended-Upgrade::{name};" in text
        assert text.index(f"#clear Unattended-Upgrade::{name};") < (
            text.find(f"\nUnattended-Upgrade::{name} ") % len(text)
        )


def test_ubuntu_has_names_of_its_own() -> None:
    first, *pro = security_origins("ubuntu")
    assert first == "origin=Ubuntu,archive=${distro_codename}-security,label=Ubuntu"
    assert all("origin=UbuntuESM" in one for one in pro)
    assert first in rendered(APT, origins=security_origins("ubuntu"))


@pytest.mark.parametrize(("security", "number"), [(True, "1"), (False, "0")])
def test_security_updates_can_be_switched_off(security: bool, number: str) -> None:
    lines = settled(rendered(APT, security=security))
    assert f'APT::Periodic::Unattended-Upgrade "{number}";' in lines
    # Another file may have switched off all of apt's daily work.
    assert 'APT::Periodic::Enable "1";' in lines
    assert 'Unattended-Upgrade::Automatic-Reboot "false";' in lines


@pytest.mark.skipif(not shutil.which("apt-config"), reason="no apt here")
def test_our_file_replaces_what_other_files_set(tmp_path: Path) -> None:
    parts = tmp_path / "apt.conf.d"
    parts.mkdir()
    other = parts / "50unattended-upgrades"
    other.write_text(
        'Unattended-Upgrade::Origins-Pattern { "origin=Debian,label=Debian"; };\n'
        'Unattended-Upgrade::Allowed-Origins { "Ubuntu:noble"; };\n'
        'Unattended-Upgrade::Package-Blacklist { "vim"; };\n'
    )
    ours = parts / "60terrafirma-updates"
    ours.write_text(rendered(APT))
    main = tmp_path / "apt.conf"
    main.write_text(f'Dir::Etc::Parts "{parts}";\n')
    said = subprocess.run(
        ["apt-config", "dump"], env={"APT_CONFIG": str(main), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    found = re.findall(r'^Unattended-Upgrade::(\S+):: "(.*)";$', said, re.MULTILINE)
    assert [value for name, value in found if name == "Origins-Pattern"] == [
        *security_origins("debian")
    ]
    assert not [value for name, value in found if name == "Allowed-Origins"]
    # The engines are added to the packages that an administrator excludes.
    excluded = [value for name, value in found if name == "Package-Blacklist"]
    assert excluded == ["vim", *(f"^{name}$" for name in engines.PACKAGES)]


PERL = r"""
our %nrconf = (restart => 'i', override_rc => { qr(^docker) => 0, qr(^gdm) => 0 });
do $ARGV[0];
die $@ if $@;
for my $unit (@ARGV[1 .. $#ARGV]) {
    my $restart = 1;
    for (keys %{$nrconf{override_rc}}) {
        $restart = $nrconf{override_rc}{$_} if $unit =~ /$_/;
    }
    print "$nrconf{restart} $unit $restart\n";
}
"""


@pytest.mark.skipif(not shutil.which("perl"), reason="no perl here")
def test_needrestart_restarts_all_units_but_the_listed_ones(tmp_path: Path) -> None:
    conf = tmp_path / "terrafirma.conf"
    conf.write_text(rendered("updates/needrestart.conf.j2"))
    units = ["postgresql@17-main.service", "docker.service", "cron.service", "ssh.service"]
    said = subprocess.run(
        ["perl", "-we", PERL, str(conf), *units], capture_output=True, text=True, check=True
    )
    assert said.stderr == ""
    assert said.stdout.splitlines() == [
        *("a postgresql@17-main.service 0", "a docker.service 0"),
        *("a cron.service 1", "a ssh.service 0"),
    ]


def test_no_unit_waits_for_ever() -> None:
    """systemd gives a oneshot unit no timeout by default."""
    assert "TimeoutStartSec=2h" in settled(rendered("updates/apt-daily.conf.j2"))
    assert "TimeoutStartSec=5400" in settled(rendered("updates/reboot.service.j2"))
    assert "TimeoutStartSec=12h" in settled(rendered("updates/postgres-minor.service.j2"))


def test_a_minor_release_may_be_chosen() -> None:
    start = "ExecStart=/usr/local/bin/terrafirma postgres-minor 3600"
    template = "updates/postgres-minor.service.j2"
    assert f"{start} 17.5" in settled(rendered(template))
    assert start in settled(rendered(template, version=""))


@pytest.mark.parametrize("name", ["reboot", "postgres-minor"])
def test_a_missed_window_is_not_made_up_for(name: str) -> None:
    lines = settled(rendered(f"updates/{name}.timer.j2"))
    assert "OnCalendar=Sun *-*-* 04:00:00" in lines
    assert "Persistent=false" in lines
