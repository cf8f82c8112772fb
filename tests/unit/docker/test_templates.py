"""The engine's drop-in: restarts after crashes, and keeps ports and IPv6 addresses."""

import shlex
import subprocess
from pathlib import Path

from tests.unit.templates import rendered, settled


def test_a_crashed_engine_is_restarted_without_a_limit() -> None:
    """The package's unit sets the restart itself."""
    lines = settled(rendered("docker/service.conf.j2"))
    assert "StartLimitIntervalSec=0" in lines[lines.index("[Unit]") : lines.index("[Service]")]


IP = """#!/bin/sh
case "$*" in
*show*) test "$*" = '-6 -oneline address show dev docker0 scope global tentative' &&
    printf '3: docker0    inet6 %s scope global tentative \\\\ valid\n' fd00:1::1/64 fd00:2::1/80 ;;
*) echo "$*" >> "$SAID" ;;
esac
"""


def test_docker0s_ipv6_addresses_are_added_without_duplicate_detection(tmp_path: Path) -> None:
    lines = settled(rendered("docker/service.conf.j2"))
    (line,) = (line for line in lines if line.startswith("ExecStartPost=-/bin/sh"))
    # systemd unescapes `$$`.
    words = shlex.split(line.partition("=-")[2].replace("$$", "$"))
    (tmp_path / "ip").write_text(IP)
    (tmp_path / "ip").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SAID": str(tmp_path / "said")}
    subprocess.run(words, env=environment, check=True)
    assert (tmp_path / "said").read_text().splitlines() == [
        f"-6 address {verb}"
        for address in ("fd00:1::1/64", "fd00:2::1/80")
        for verb in (f"delete {address} dev docker0", f"add {address} dev docker0 nodad")
    ]


def test_ports_are_kept_while_the_engine_starts() -> None:
    text = rendered("docker/service.conf.j2")
    assert "ExecStartPre=-/usr/local/lib/terrafirma/docker-ports keep\n" in text
    assert "ExecStartPost=-/usr/local/lib/terrafirma/docker-ports drop\n" in text
    assert "ExecStartPost=-/usr/local/lib/terrafirma/docker-engine forward\n" in text
