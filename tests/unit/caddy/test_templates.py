"""The Caddyfile: sites, guards, limits and the slot that serves."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.unit.templates import BCRYPT, CADDY_PATH, SITE, rendered, settled


def sites(**data: Any) -> dict[str, str]:
    """The blocks of the Caddyfile by their addresses; the global block under ""."""
    text = rendered("caddy/Caddyfile.j2", **data)
    assert text.count("{") == text.count("}")
    return dict(re.findall(r"^(\S*) ?\{\n(.*?)^\}$", text, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize(("timeout", "tried"), [(60, 10), (10, 10), (2, 2)])
def test_a_request_waits_for_a_replica_no_longer_than_for_its_answer(
    timeout: int, tried: int
) -> None:
    text = rendered("caddy/Caddyfile.j2", sites=[SITE | {"timeout_seconds": timeout}])
    assert re.findall(r"\blb_try_duration (\S+)", text) == [f"{tried}s", f"{tried}s"]


def test_a_file_decides_which_slot_gets_the_requests() -> None:
    blocks = sites()
    assert list(blocks) == [
        *("", "api.terrafirma.test"),
        *("acme.com", "web.acme.test", "www.acme.com"),
    ]
    for name, domain, blue, green in (
        ("api", "api.terrafirma.test", "127.0.0.1:8000 127.0.0.1:8001",
         "127.0.0.1:8064 127.0.0.1:8065"),
        ("web", "www.acme.com", "127.0.0.1:9000", "127.0.0.1:9064"),
    ):  # fmt: skip
        proxies = re.findall(
            r"^\treverse_proxy (.*?)\{\n(.*?)^\t\}$", blocks[domain], re.MULTILINE | re.DOTALL
        )
        assert [matcher for matcher, _ in proxies] == ["@green ", ""]
        for (_, proxy), ports, slot in zip(proxies, (green, blue), ("green", "blue"), strict=True):
            assert re.findall(r"^\t\tto (.*)$", proxy, re.MULTILINE) == [ports]
            # The release in the slot writes the health check.
            assert f"import upstreams/{name}.{slot}.*caddy\n" in proxy
            assert "health_uri" not in proxy
        # The two proxies differ only in their ports and in the file with the health check.
        assert proxies[0][1].replace(green, blue).replace("green", "blue") == proxies[1][1]
        (matcher,) = re.findall(
            r"^\t@green file \{\n(.*?)^\t\}$", blocks[domain], re.MULTILINE | re.DOTALL
        )
        assert matcher.split() == [
            *("root", "/etc/caddy/upstreams"),
            *("try_files", f"/{name}.green"),
        ]
        # One `*` is all that Caddy accepts; the dot keeps other applications' files out.
        assert f"import maintenance/{name}.*caddy\n" in blocks[domain]


def test_caddy_does_not_log_failed_health_checks() -> None:
    assert "exclude http.handlers.reverse_proxy.health_checker.active\n" in sites()[""]


def test_a_kernel_that_cannot_hand_over_connections_is_no_failure() -> None:
    """systemd-sysctl ignores a missing setting if its line begins with `-`."""
    assert settled(rendered("caddy/sysctl.conf.j2")) == ["-net.ipv4.tcp_migrate_req = 1"]


def test_caddy_signs_private_names_itself_and_no_others() -> None:
    blocks = sites()
    for private in ("api.terrafirma.test", "web.acme.test"):
        assert "tls internal" in blocks[private]
    for public in ("www.acme.com", "acme.com", ""):
        assert "tls " not in blocks[public]


def test_caddy_redirects_further_names_to_the_domain() -> None:
    blocks = sites()
    for name in ("acme.com", "web.acme.test"):
        assert "\tredir https://www.acme.com{uri} 308\n" in blocks[name]
        assert '\theader ?Strict-Transport-Security "max-age=31536000"\n' in blocks[name]
        assert "X-Mine" not in blocks[name]
        assert "reverse_proxy" not in blocks[name]
    assert "redir https" not in blocks["api.terrafirma.test"]


def test_caddy_logs_are_bounded() -> None:
    blocks = sites()
    for name, domain in (
        ("api", "api.terrafirma.test"),
        ("web", "www.acme.com"),
        ("web", "acme.com"),
    ):
        assert f"output file /var/log/caddy/{name}.log" in blocks[domain]
        assert "roll_size 50MiB" in blocks[domain]
        assert "roll_keep 10" in blocks[domain]


def test_caddy_uses_the_configured_authority() -> None:
    for key in ("email", "acme_ca", "acme_ca_root"):
        assert key not in sites()[""]
    block = sites(
        email="ops@acme.com", acme_ca="https://ca.acme.com/directory", acme_ca_root="/etc/root.pem"
    )[""]
    assert "\temail ops@acme.com\n" in block
    assert "\tacme_ca https://ca.acme.com/directory\n" in block
    assert "\tacme_ca_root /etc/root.pem\n" in block


def test_the_caddyfile_suits_the_installed_version() -> None:
    old, new = sites(), sites(version=(2, 11))
    assert "stream_close_delay" not in old["www.acme.com"]
    assert "stream_close_delay 45s\n" in new["www.acme.com"]
    assert "\tbasicauth @login_2 {\n" in old["www.acme.com"]
    assert "\tbasic_auth @login_2 {\n" in new["www.acme.com"]
    assert "\tservers {\n\t\tmetrics\n" in old[""]
    assert "\n\tmetrics\n" in new[""]


def test_the_admin_endpoint_is_on_loopback_only() -> None:
    assert re.findall(r"^\tadmin (.*)$", sites()[""], re.MULTILINE) == ["localhost:2019"]


def test_limits_of_body_and_time() -> None:
    blocks = sites()
    for domain, size, exact, seconds in (
        ("api.terrafirma.test", 100, 104_857_600, 60),
        ("www.acme.com", 7, 7_340_032, 90),
    ):
        assert f"max_size {size}MiB\n" in blocks[domain]
        assert f"> {exact}`\n" in blocks[domain]
        assert f"response_header_timeout {seconds}s\n" in blocks[domain]


def test_caddy_guards_a_part_before_anything_serves_it() -> None:
    block, bare = sites()["www.acme.com"], sites()["api.terrafirma.test"]
    assert "order error after try_files" in sites()[""]
    assert "path /*\n\t\tnot remote_ip 192.0.2.0/24 2001:db8::/32\n" in block
    assert "\terror @stranger_1 403\n" in block
    assert "\t@login_2 path /a /a/*\n" in block
    assert f"\t\tbob {BCRYPT}\n" in block
    for word in ("stranger_2", "login_1"):
        assert word not in block
    for word in ("remote_ip", "basicauth", "file_server", "redir "):
        assert word not in bare


def test_caddy_serves_directories_by_itself() -> None:
    block = sites()["www.acme.com"]
    assert "\thandle_path /assets/* {\n\t\troot * /srv/assets\n\t\tfile_server {\n" in block
    assert "\thandle /icon.ico {\n\t\troot * /srv/icons\n" in block


def test_lines_of_a_snippet_are_in_the_caddyfile() -> None:
    block = sites()["www.acme.com"]
    assert "\t# From web.caddy\nredir /old /new\n" in block
    assert 'X-Mine `a "b" {c}`\n\t\t-Via\n\t\tdefer\n' in block
    block = sites(options={"file": "mine", "text": "\tgrace_period 5s"})[""]
    assert "\t# From mine\n\tgrace_period 5s\n" in block
    assert "# From" not in sites()[""]


def test_caddy_without_applications() -> None:
    assert list(sites(sites=[])) == [""]


@pytest.mark.skipif(not shutil.which("caddy", path=CADDY_PATH), reason="no caddy here")
@pytest.mark.parametrize("maintenance", [False, True])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"version": (2, 11)},
        {"email": "a@acme.com", "acme_ca": "https://ca.acme.com/d"},
        {"options": {"file": "mine", "text": "grace_period 5s"}},
        {"sites": []},
    ],
)
def test_caddy_accepts_it(more: dict[str, Any], maintenance: bool, tmp_path: Path) -> None:
    """The newest Caddy also accepts the directives of older versions."""
    text = rendered("caddy/Caddyfile.j2", **more).replace("/var/log/caddy", str(tmp_path))
    path = tmp_path / "Caddyfile"
    path.write_text(text)
    if maintenance:
        (tmp_path / "maintenance").mkdir()
        (tmp_path / "maintenance/other.api.caddy.new").write_text("}}}\n")
        (tmp_path / "maintenance/api.caddy").write_text('error "maintenance" 503\n')
    command = ["caddy", "validate", "--adapter", "caddyfile", "--config", str(path)]
    environment = os.environ | {"PATH": CADDY_PATH, "HOME": str(tmp_path)}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
