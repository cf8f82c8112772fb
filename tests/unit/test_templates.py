"""Templates as the operations render them: right for facts that are there and those to come."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2 import UndefinedError

from terrafirma.operations.files import render
from terrafirma.settings import Database
from terrafirma.tuning import Tuned
from tests.conftest import ROOT

DATABASES = (Database(name="api", owner="api"), Database(name="jobs", owner="worker"))
VISITORS = (("api", "api"), ("api", "reader"), ("jobs", "worker"))
BRIDGE = {"name": "bridge", "subnet": "10.210.0.0/24"}
APPS = {"name": "apps", "subnet": "10.210.1.0/24"}
APPS_6 = {"name": "apps", "subnet": "fd00:1::/64"}


SERVER = {
    "listen_addresses": Tuned("'localhost,10.210.0.1'", ""),
    "port": Tuned("5432", ""),
    "max_connections": Tuned("100", "postgres_max_connections"),
    "x.y": Tuned("'it''s # no comment'", "postgres_settings"),
}

BCRYPT = "$2b$05$CmPv0xRvR5sSyz9vWiX9mOK8jNmGCyjRvzcSjPdVlPV7TfJPAu9Mi"
SITE = {
    "name": "api",
    "domain": "api.terrafirma.test",
    "public": False,
    "redirects": [],
    "headers": ['?Strict-Transport-Security "max-age=31536000"', "-Server"],
    "set_headers": [],
    "redirect_headers": ['?Strict-Transport-Security "max-age=31536000"', "-Server"],
    "max_upload_mb": 100,
    "timeout_seconds": 60,
    "drain_seconds": 30,
    "guards": [],
    "static": [],
    "snippet": None,
    "blue": ["127.0.0.1:8000", "127.0.0.1:8001"],
    "green": ["127.0.0.1:8064", "127.0.0.1:8065"],
}
# `make venv` brings one; a system's may stand in.
CADDY_PATH = f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"

DATA: dict[str, dict[str, Any]] = {
    "apt/60terrafirma.j2": {"wait_seconds": 600},
    "borg/borgmatic.service.j2": {"program": "/usr/local/lib/terrafirma/backup"},
    "borg/borgmatic.timer.j2": {"schedule": "*-*-* 02:00:00"},
    "borg/config.yaml.j2": {
        "repository": "ssh://b@backup.acme.com:23/./web",
        "directories": ("/etc", "/home"),
        "exclude": ("/var/cache", "*/__pycache__", 're:it\'s "odd" & <new>'),
        "keep_daily": 7,
        "keep_weekly": 4,
        "keep_monthly": 6,
        "schedule": "daily",
        "cluster": "17/main",
        "databases": DATABASES,
        "known_hosts": "/etc/borgmatic/known_hosts",
        "known_host_lines": ("a ssh-ed25519 AAAA",),
        "remote_path": "borg-1.4",
        "repository_id": "",
        "repository_replaces": "",
        "exclude_databases": ('it\'s "odd" </script>',),
        "secrets": "/etc/terrafirma/secrets/borg",
        "sections": False,
        "state": "/var/lib/terrafirma/backup",
    },
    "borg/known_hosts.j2": {"lines": ("a ssh-ed25519 AAAA", "b ssh-rsa BBBB")},
    "caddy/Caddyfile.j2": {
        "version": (2, 6),
        "email": "",
        "acme_ca": "",
        "acme_ca_root": "",
        "options": None,
        "log_size_mb": 50,
        "log_files": 10,
        "sites": [
            SITE,
            SITE
            | {
                "name": "web",
                "domain": "www.acme.com",
                "public": True,
                "redirects": [
                    {"domain": "acme.com", "public": True},
                    {"domain": "web.acme.test", "public": False},
                ],
                "headers": ["?X-Frame-Options SAMEORIGIN"],
                "set_headers": ['X-Mine `a "b" {c}`', "-Via"],
                "max_upload_mb": 7,
                "timeout_seconds": 90,
                "drain_seconds": 45,
                "guards": [
                    {"paths": ["/*"], "allow": ("192.0.2.0/24", "2001:db8::/32"), "users": {}},
                    {"paths": ["/a", "/a/*"], "allow": (), "users": {"bob": BCRYPT}},
                ],
                "static": [
                    {"directive": "handle_path", "path": "/assets/*", "root": "/srv/assets"},
                    {"directive": "handle", "path": "/icon.ico", "root": "/srv/icons"},
                ],
                "snippet": {"file": "web.caddy", "text": "redir /old /new"},
                "blue": ["127.0.0.1:9000"],
                "green": ["127.0.0.1:9064"],
            },
        ],
    },
    "app/recover.service.j2": {},
    "caddy/restart.conf.j2": {},
    "caddy/sysctl.conf.j2": {},
    "docker/service.conf.j2": {
        "docker_ports": "/usr/local/lib/terrafirma/docker-ports",
        "docker_engine": "/usr/local/lib/terrafirma/docker-engine",
        "ipv6": True,
    },
    "pgbouncer/hba.conf.j2": {"visitors": VISITORS, "networks": [BRIDGE, APPS, APPS_6]},
    "pgbouncer/pgbouncer.ini.j2": {
        "addresses": ["localhost", "10.210.0.1"],
        "port": 6432,
        "settings": {"listen_backlog": "512"},
    },
    "pgbouncer/restart.conf.j2": {},
    "pgbouncer/terrafirma.ini.j2": {
        "pool_size": 20,
        "max_clients": 1000,
        "prepared_statements": True,
        "settings": {"query_wait_timeout": "10"},
        "databases": ["api", "jobs"],
        "server_port": 5432,
        "limits": {"worker": 5},
    },
    "postgres/createcluster.conf.j2": {},
    "postgres/hand_over.sql.j2": {"database": "shop", "old": "'api'", "new": "shop_owner"},
    "postgres/pg_hba.conf.j2": {"visitors": VISITORS, "networks": [BRIDGE, APPS, APPS_6]},
    "postgres/restart.conf.j2": {},
    "postgres/start.conf.j2": {},
    "postgres/sysctl.conf.j2": {"huge_pages": 0},
    "postgres/terrafirma.conf.j2": {"settings": SERVER},
    "sshd/00-terrafirma.conf.j2": {"password_authentication": False, "users": ["dev", "root"]},
    "users/authorized_keys.j2": {
        "keys": ("ssh-ed25519 AAAA me", "ssh-rsa BBBB"),
        "command": "",
    },
    "users/sudoers.j2": {"name": "dev", "commands": ("/bin/a b", "/bin/c"), "command": ""},
}


def rendered(template: str, **data: Any) -> str:
    return render(template, **DATA[template] | data)


def settled(text: str) -> list[str]:
    """The lines that count: without comments and empty ones."""
    return [
        line.strip()
        for line in text.splitlines()
        if line.strip() and not line.strip().startswith("#")
    ]


# --- all of them ----------------------------------------------------------------------------------


def test_every_template_is_in_the_table_of_this_file() -> None:
    templates = ROOT / "templates"
    assert {str(path.relative_to(templates)) for path in templates.rglob("*.j2")} == set(DATA)


# Is said to psql, and is no file on the host.
SCRIPTS = {"postgres/hand_over.sql.j2"}


@pytest.mark.parametrize("template", [name for name in DATA if name not in SCRIPTS])
def test_says_first_who_manages_it(template: str) -> None:
    """The operations know a file as ours by this line: see terrafirma/operations/files.py."""
    first, *rest = rendered(template).splitlines()
    assert re.match(r"(#|//) Managed by Terrafirma: (tasks/\w+\.py|\w+)$", first)
    assert rest


@pytest.mark.parametrize("template", DATA)
def test_leaves_nothing_of_jinja_behind(template: str) -> None:
    text = rendered(template)
    assert not re.search(r"\{%|%\}|\{\{|\}\}|\{#", text)
    assert "None" not in text
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    assert [line for line in text.splitlines() if line != line.rstrip()] == []


@pytest.mark.parametrize("template", [name for name, data in DATA.items() if data])
def test_a_name_that_is_missing_is_an_error(template: str) -> None:
    with pytest.raises(UndefinedError):
        render(template)


# --- pg_hba.conf ----------------------------------------------------------------------------------


def rules(**data: Any) -> list[list[str]]:
    return [line.split() for line in settled(rendered("postgres/pg_hba.conf.j2", **data))]


NETWORKS: list[list[dict[str, Any]]] = [[], [BRIDGE], [BRIDGE, APPS, APPS_6]]


@pytest.mark.parametrize("networks", NETWORKS)
def test_each_visitor_comes_into_its_own_databases_alone(networks: list[dict[str, Any]]) -> None:
    local, *clients, last = rules(networks=networks)
    assert local == ["local", "all", "postgres", "peer"]
    assert last == ["host", "all", "all", "all", "reject"]
    assert {(kind, method) for kind, _, _, _, method in clients} == {("host", "scram-sha-256")}
    sources = ["127.0.0.1/32", "::1/128", *(network["subnet"] for network in networks)]
    # The second name is the same role while its password is renewed.
    assert sorted((name, roles, source) for _, name, roles, source, _ in clients) == sorted(
        (name, f"{role},{role}~", source) for name, role in VISITORS for source in sources
    )


@pytest.mark.parametrize("networks", NETWORKS)
@pytest.mark.parametrize("visitors", [(), VISITORS])
def test_nobody_comes_in_from_everywhere_or_as_superuser(
    visitors: tuple[tuple[str, str], ...], networks: list[dict[str, Any]]
) -> None:
    written = rules(visitors=visitors, networks=networks)
    for kind, name, roles, address, method in (rule for rule in written if rule[0] != "local"):
        if method != "reject":
            assert kind == "host"
            assert "postgres" not in (name, *roles.split(","))
            assert "all" not in (name, *roles.split(","), address)
            assert not address.endswith("/0")
            assert method == "scram-sha-256"
    assert written[-1][-1] == "reject"
    assert "trust" not in rendered("postgres/pg_hba.conf.j2", networks=networks)


def test_without_docker_only_the_host_itself_comes_in() -> None:
    addresses = {
        rule[3] for rule in rules(networks=[]) if rule[0] == "host" and rule[4] != "reject"
    }
    assert addresses == {"127.0.0.1/32", "::1/128"}


# --- hand_over.sql --------------------------------------------------------------------------------


def test_a_database_is_handed_over_as_a_whole_or_not_at_all() -> None:
    lines = rendered("postgres/hand_over.sql.j2").splitlines()
    assert lines[:2] == ['\\connect "shop"', "begin;"]
    # What comes after it in the same script is said to the maintenance database.
    assert lines[-3:] == [
        'alter database "shop" owner to "shop_owner";',
        "commit;",
        "\\connect postgres",
    ]
    assert sum(line.startswith("\\connect") for line in lines) == 2
    assert sum(line in ("begin;", "commit;") for line in lines) == 2


def test_whoever_holds_a_table_is_not_waited_for_long() -> None:
    """All of them are locked before the first changes hands, and only within the transaction."""
    text = rendered("postgres/hand_over.sql.j2")
    assert text.index("begin;") < text.index("set local lock_timeout to '5s';")
    assert text.index("lock table") < text.index("\\gexec")
    assert "pg_get_userbyid(relowner) = 'api'" in text[: text.index("lock table")]
    assert "raise 'postgres_databases: shop keeps its owner for now: " in text


def test_only_what_the_old_owner_has_is_handed_over() -> None:
    text = rendered("postgres/hand_over.sql.j2")
    questions = text.split("\\gexec")[:-1]
    assert len(questions) == 4
    for question in questions:
        assert re.search(r"pg_get_userbyid\(\w+owner\) = 'api'", question)
        # Not what is PostgreSQL's own, nor what belongs to an extension.
        assert "nspname !~ '^pg_'" in question
        assert 'owner to "shop_owner";' in question
    assert "reassign" not in text


# --- terrafirma.conf ------------------------------------------------------------------------------


def server(**data: Any) -> dict[str, str]:
    lines = settled(rendered("postgres/terrafirma.conf.j2", **data))
    pairs = [line.split(" = ", 1) for line in lines]
    assert len({name for name, _ in pairs}) == len(pairs)
    return dict(pairs)


def test_postgresql_is_told_each_setting_once() -> None:
    assert server() == {
        "listen_addresses": "'localhost,10.210.0.1'",
        "port": "5432",
        "max_connections": "100",
        "x.y": "'it''s # no comment'",
    }


def test_postgresql_listens_where_it_is_told_and_nowhere_else() -> None:
    settings = {**SERVER, "listen_addresses": Tuned("'localhost'", "")}
    assert server(settings=settings) == {**server(), "listen_addresses": "'localhost'"}


def test_each_setting_of_postgresql_has_its_reason_above_it() -> None:
    lines = rendered("postgres/terrafirma.conf.j2").splitlines()
    for name, (value, reason) in SERVER.items():
        at = lines.index(f"{name} = {value}")
        if name not in ("listen_addresses", "port"):
            assert lines[at - 1] == f"# {reason}"
    # The comment on both of these is the template's own.
    assert (
        lines.index("port = 5432") == lines.index("listen_addresses = 'localhost,10.210.0.1'") + 1
    )


# --- PgBouncer ------------------------------------------------------------------------------------


@pytest.mark.parametrize("networks", NETWORKS)
def test_the_pooler_admits_whom_postgresql_admits(networks: list[dict[str, Any]]) -> None:
    data = {"networks": networks}
    local, *clients = [line.split() for line in settled(rendered("pgbouncer/hba.conf.j2", **data))]
    theirs = [rule for rule in rules(**data) if rule[-1] == "scram-sha-256"]
    # A line for each visitor and address.
    assert len(theirs) == len(VISITORS) * (2 + len(networks))
    assert [rule for rule in clients if rule[-1] == "scram-sha-256"] == theirs
    # Not even through the socket: the console needs no rule.
    assert local == ["local", "all", "all", "reject"]
    assert clients[len(theirs) :] == [
        ["host", "all", "all", "0.0.0.0/0", "reject"],
        ["host", "all", "all", "::/0", "reject"],
    ]


def sections(text: str) -> dict[str, list[str]]:
    """The lines of an ini file by their section; those before the first one under ""."""
    found: dict[str, list[str]] = {"": []}
    for line in settled(text):
        if line.startswith("["):
            section = found.setdefault(line.strip("[]"), [])
        else:
            (section if len(found) > 1 else found[""]).append(line)
    return found


def test_the_pooler_knows_the_declared_databases_and_no_others() -> None:
    found = sections(rendered("pgbouncer/terrafirma.ini.j2"))
    assert found["databases"] == [
        "api = host=127.0.0.1 port=5432 dbname=api",
        "jobs = host=127.0.0.1 port=5432 dbname=jobs",
    ]
    assert found["users"] == ["worker = max_user_connections=5"]
    assert "users" not in sections(rendered("pgbouncer/terrafirma.ini.j2", limits={}))


def test_the_pooler_pools_transactions_for_whoever_proves_a_password() -> None:
    settings = sections(rendered("pgbouncer/terrafirma.ini.j2"))[""]
    for line in (
        "pool_mode = transaction",
        "default_pool_size = 20",
        "max_client_conn = 1000",
        "auth_type = hba",
        "auth_hba_file = /etc/pgbouncer/hba.conf",
        "max_prepared_statements = 200",
    ):
        assert line in settings
    # The last one counts.
    assert settings[-1] == "query_wait_timeout = 10"
    text = rendered("pgbouncer/terrafirma.ini.j2") + rendered("pgbouncer/pgbouncer.ini.j2")
    for name in ("admin_users", "stats_users", "auth_user", "auth_query", "trust"):
        assert name not in text


def test_an_old_pooler_is_not_told_what_it_does_not_know() -> None:
    text = rendered("pgbouncer/terrafirma.ini.j2", prepared_statements=False, settings={})
    assert "max_prepared_statements" not in text
    assert "pgbouncer_settings" not in text


def test_what_a_start_reads_comes_before_what_a_reload_reads() -> None:
    """A section that begins twice forgets what stood in it: there is one, and a file goes on."""
    text = rendered("pgbouncer/pgbouncer.ini.j2")
    found = sections(text)
    assert list(found) == ["", "pgbouncer"]
    assert found["pgbouncer"] == [
        "listen_addr = localhost,10.210.0.1",
        "listen_port = 6432",
        "unix_socket_dir = /run/postgresql",
        "listen_backlog = 512",
        "%include /etc/pgbouncer/terrafirma.ini",
    ]
    assert "[pgbouncer]" not in settled(rendered("pgbouncer/terrafirma.ini.j2"))


# --- Caddyfile ------------------------------------------------------------------------------------


def sites(**data: Any) -> dict[str, str]:
    """The blocks of the Caddyfile by what stands before them; the global one under ""."""
    text = rendered("caddy/Caddyfile.j2", **data)
    assert text.count("{") == text.count("}")
    return dict(re.findall(r"^(\S*) ?\{\n(.*?)^\}$", text, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize(("timeout", "tried"), [(60, 10), (10, 10), (2, 2)])
def test_a_request_waits_for_a_replica_no_longer_than_for_its_answer(
    timeout: int, tried: int
) -> None:
    text = rendered("caddy/Caddyfile.j2", sites=[SITE | {"timeout_seconds": timeout}])
    assert re.findall(r"\blb_try_duration (\S+)", text) == [f"{tried}s", f"{tried}s"]


def test_caddy_looks_for_a_file_and_sends_to_the_slot_that_it_names() -> None:
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
            # How they are asked is said by the release in the slot.
            assert f"import upstreams/{name}.{slot}.*caddy\n" in proxy
            assert "health_uri" not in proxy
        # No more than where they send to, and what they are asked, tells them apart.
        assert proxies[0][1].replace(green, blue).replace("green", "blue") == proxies[1][1]
        (matcher,) = re.findall(
            r"^\t@green file \{\n(.*?)^\t\}$", blocks[domain], re.MULTILINE | re.DOTALL
        )
        assert matcher.split() == [
            *("root", "/etc/caddy/upstreams"),
            *("try_files", f"/{name}.green"),
        ]
        # One `*`, which is all that Caddy takes, and no file of another application.
        assert f"import maintenance/{name}.*caddy\n" in blocks[domain]


def test_caddy_does_not_log_each_second_what_is_not_there() -> None:
    assert "exclude http.handlers.reverse_proxy.health_checker.active\n" in sites()[""]


def test_a_kernel_that_cannot_hand_over_connections_is_no_failure() -> None:
    """systemd-sysctl passes over what is not there where a `-` stands before it."""
    assert settled(rendered("caddy/sysctl.conf.j2")) == ["-net.ipv4.tcp_migrate_req = 1"]


def test_caddy_signs_private_names_itself_and_no_others() -> None:
    blocks = sites()
    for private in ("api.terrafirma.test", "web.acme.test"):
        assert "tls internal" in blocks[private]
    for public in ("www.acme.com", "acme.com", ""):
        assert "tls " not in blocks[public]


def test_caddy_sends_clients_to_the_one_name() -> None:
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


def test_caddy_asks_the_authority_that_it_is_told() -> None:
    for key in ("email", "acme_ca", "acme_ca_root"):
        assert key not in sites()[""]
    told = sites(
        email="ops@acme.com", acme_ca="https://ca.acme.com/directory", acme_ca_root="/etc/root.pem"
    )[""]
    assert "\temail ops@acme.com\n" in told
    assert "\tacme_ca https://ca.acme.com/directory\n" in told
    assert "\tacme_ca_root /etc/root.pem\n" in told


def test_caddy_is_asked_for_what_its_version_knows() -> None:
    old, new = sites(), sites(version=(2, 11))
    assert "stream_close_delay" not in old["www.acme.com"]
    assert "stream_close_delay 45s\n" in new["www.acme.com"]
    assert "\tbasicauth @login_2 {\n" in old["www.acme.com"]
    assert "\tbasic_auth @login_2 {\n" in new["www.acme.com"]
    assert "\tservers {\n\t\tmetrics\n" in old[""]
    assert "\n\tmetrics\n" in new[""]


def test_caddy_listens_to_commands_on_loopback_alone() -> None:
    assert re.findall(r"^\tadmin (.*)$", sites()[""], re.MULTILINE) == ["localhost:2019"]


def test_caddy_limits_what_is_sent_and_how_long_it_waits() -> None:
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


def test_caddy_has_the_lines_of_ones_own() -> None:
    block = sites()["www.acme.com"]
    assert "\t# From web.caddy\nredir /old /new\n" in block
    assert 'X-Mine `a "b" {c}`\n\t\t-Via\n\t\tdefer\n' in block
    told = sites(options={"file": "mine", "text": "\tgrace_period 5s"})[""]
    assert "\t# From mine\n\tgrace_period 5s\n" in told
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
    """The newest, which takes the spelling of the older ones too."""
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


# --- accounts and sshd ----------------------------------------------------------------------------


def test_authorized_keys_are_exactly_the_declared_ones() -> None:
    assert settled(rendered("users/authorized_keys.j2")) == ["ssh-ed25519 AAAA me", "ssh-rsa BBBB"]
    assert settled(rendered("users/authorized_keys.j2", keys=())) == []


RELEASE = "/usr/local/bin/terrafirma forced api shop"


def test_keys_that_release_do_nothing_else() -> None:
    assert settled(rendered("users/authorized_keys.j2", command=RELEASE)) == [
        f'restrict,command="sudo -n {RELEASE}" ssh-ed25519 AAAA me',
        f'restrict,command="sudo -n {RELEASE}" ssh-rsa BBBB',
    ]


def test_sudoers_of_an_account_that_releases() -> None:
    lines = settled(rendered("users/sudoers.j2", name="ci-bot", commands=(), command=RELEASE))
    assert lines == [
        'Defaults:ci-bot env_keep += "SSH_ORIGINAL_COMMAND"',
        f"ci-bot ALL=(root) NOPASSWD: {RELEASE}",
    ]


@pytest.mark.parametrize(
    ("commands", "rule"),
    [
        (("ALL",), "dev ALL=(ALL:ALL) NOPASSWD: ALL"),
        (("/bin/a b", "/bin/c"), "dev ALL=(ALL:ALL) NOPASSWD: /bin/a b, /bin/c"),
    ],
)
def test_sudoers(commands: tuple[str, ...], rule: str) -> None:
    assert settled(rendered("users/sudoers.j2", commands=commands)) == [rule]


@pytest.mark.skipif(not shutil.which("visudo"), reason="no visudo here")
@pytest.mark.parametrize("command", ["", RELEASE])
def test_visudo_accepts_it(tmp_path: Path, command: str) -> None:
    path = tmp_path / "sudoers"
    path.write_text(rendered("users/sudoers.j2", name="ci-bot", command=command))
    result = subprocess.run(["visudo", "-cf", path], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_sshd_lets_in_the_declared_users_with_keys() -> None:
    directives = dict(
        line.split(" ", 1) for line in settled(rendered("sshd/00-terrafirma.conf.j2"))
    )
    assert directives["PasswordAuthentication"] == "no"
    assert directives["KbdInteractiveAuthentication"] == "no"
    assert directives["PubkeyAuthentication"] == "yes"
    assert directives["PermitRootLogin"] == "prohibit-password"
    assert directives["AllowUsers"] == "dev root"
    assert {"TrustedUserCAKeys none", "AuthorizedKeysCommand none"} <= {
        *map(" ".join, directives.items())
    }


def test_sshd_lets_in_with_passwords_only_when_told() -> None:
    text = rendered("sshd/00-terrafirma.conf.j2", password_authentication=True)
    assert "PasswordAuthentication yes" in settled(text)
    assert "PermitRootLogin prohibit-password" in settled(text)


# --- backups --------------------------------------------------------------------------------------

# The sections of borgmatic before 1.8, and the settings of ours in each.
SECTIONS = {
    "location": {
        *("source_directories", "exclude_patterns", "exclude_caches", "repositories"),
        "remote_path",
    },
    "storage": {
        *("encryption_passcommand", "ssh_command", "compression", "lock_wait"),
        "archive_name_format",
    },
    "retention": {"keep_daily", "keep_weekly", "keep_monthly"},
    "consistency": {"checks"},
    "hooks": {"before_backup", "postgresql_databases"},
}


def backup(*, sections: bool, **data: Any) -> dict[str, Any]:
    """borgmatic's settings, without their sections."""
    read = yaml.safe_load(rendered("borg/config.yaml.j2", sections=sections, **data))
    if not sections:
        flat: dict[str, Any] = read
        return flat
    without = set() if data.get("remote_path", True) else {"remote_path"}
    assert {name: set(settings) for name, settings in read.items()} == {
        name: settings - without for name, settings in SECTIONS.items()
    }
    return {key: value for settings in read.values() for key, value in settings.items()}


@pytest.mark.parametrize("sections", [False, True])
def test_borgmatic_backs_up_what_is_declared(sections: bool) -> None:
    settings = backup(sections=sections)
    data = DATA["borg/config.yaml.j2"]
    # Old borgmatic prunes by the host's name in any case.
    only_new = set() if sections else {"match_archives"}
    assert set(settings) == set().union(*SECTIONS.values()) | only_new
    assert settings["source_directories"] == list(data["directories"])
    assert settings["exclude_patterns"] == list(data["exclude"])
    assert [settings[f"keep_{kind}"] for kind in ("daily", "weekly", "monthly")] == [7, 4, 6]
    assert settings["encryption_passcommand"] == "cat /etc/terrafirma/secrets/borg/passphrase"
    assert "StrictHostKeyChecking=yes" in settings["ssh_command"]
    assert "UserKnownHostsFile=/etc/borgmatic/known_hosts" in settings["ssh_command"]
    assert "-i /etc/terrafirma/secrets/borg/id_ed25519" in settings["ssh_command"]


def test_new_borgmatic_is_told_the_repository_by_path() -> None:
    assert backup(sections=False)["repositories"] == [{"path": "ssh://b@backup.acme.com:23/./web"}]


def test_old_borgmatic_is_told_the_repository_as_text() -> None:
    """1.7.7, that of Debian 12, refuses anything else: {'path': …} is not of type 'string'."""
    assert backup(sections=True)["repositories"] == ["ssh://b@backup.acme.com:23/./web"]


@pytest.mark.parametrize("sections", [False, True])
def test_databases_are_dumped_by_the_superuser(sections: bool) -> None:
    settings = backup(sections=sections)
    for database in settings["postgresql_databases"]:
        assert database["format"] == "custom"
        for command in ("pg_dump_command", "pg_restore_command", "psql_command"):
            assert database[command].startswith("runuser -u postgres -- ")
            assert "--cluster 17/main" in database[command]
    (roles,) = settings["before_backup"]
    assert "pg_dumpall --cluster 17/main --globals-only > /var/lib/terrafirma/backup/" in roles
    assert roles.startswith("umask 077 ")


def test_old_borgmatic_need_not_list_the_databases() -> None:
    """For `all` with a format 1.7.7 runs plain `psql --list` as root, not psql_command."""
    names = [database["name"] for database in backup(sections=True)["postgresql_databases"]]
    assert "all" not in names


@pytest.mark.parametrize("sections", [False, True])
def test_an_archive_that_nobody_read_back_does_not_count(sections: bool) -> None:
    """By whomever borgmatic is started; and prune goes by the names of those that count."""
    settings = backup(sections=sections)
    assert settings["archive_name_format"].startswith("{hostname}-{now:")
    assert settings["archive_name_format"].endswith(".checkpoint")
    assert settings.get("match_archives", "sh:{hostname}-*") == "sh:{hostname}-*"


@pytest.mark.parametrize("sections", [False, True])
def test_the_program_borg_there_may_have_another_name(sections: bool) -> None:
    assert backup(sections=sections)["remote_path"] == "borg-1.4"
    assert "remote_path" not in backup(sections=sections, remote_path="")


@pytest.mark.parametrize("sections", [False, True])
def test_nothing_need_be_excluded(sections: bool) -> None:
    assert backup(sections=sections, exclude=()).get("exclude_patterns", []) == []


def test_a_backup_is_made_on_time() -> None:
    assert "OnCalendar=*-*-* 02:00:00" in settled(rendered("borg/borgmatic.timer.j2"))
    assert "Persistent=true" in settled(rendered("borg/borgmatic.timer.j2"))


def test_hosts_that_are_known() -> None:
    assert settled(rendered("borg/known_hosts.j2")) == ["a ssh-ed25519 AAAA", "b ssh-rsa BBBB"]


# --- units and the rest ---------------------------------------------------------------------------


def test_an_engine_that_crashed_is_started_again_however_often() -> None:
    """That it is at all says its own unit."""
    lines = settled(rendered("docker/service.conf.j2"))
    assert "StartLimitIntervalSec=0" in lines[lines.index("[Unit]") : lines.index("[Service]")]


@pytest.mark.parametrize(
    "template", ["caddy/restart.conf.j2", "pgbouncer/restart.conf.j2", "postgres/restart.conf.j2"]
)
def test_a_service_that_crashed_is_started_again(template: str) -> None:
    lines = settled(rendered(template))
    assert "StartLimitIntervalSec=0" in lines[lines.index("[Unit]") : lines.index("[Service]")]
    assert any(line.startswith("Restart=on-") for line in lines[lines.index("[Service]") :])


IP = """#!/bin/sh
case "$*" in
*show*) test "$*" = '-6 -oneline address show dev docker0 scope global tentative' &&
    printf '3: docker0    inet6 %s scope global tentative \\\\ valid\n' fd00:1::1/64 fd00:2::1/80 ;;
*) echo "$*" >> "$SAID" ;;
esac
"""


def test_docker0s_ipv6_addresses_are_made_anew_without_the_look(tmp_path: Path) -> None:
    lines = settled(rendered("docker/service.conf.j2"))
    (line,) = (line for line in lines if line.startswith("ExecStartPost=-/bin/sh"))
    # As systemd reads it.
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


def test_the_cluster_starts_at_boot() -> None:
    """One word, in a file whose other lines the upgrade leaves as they are."""
    assert settled(rendered("postgres/start.conf.j2")) == ["auto"]
    assert rendered("postgres/start.conf.j2").endswith("\n\nauto\n")


def test_postgresql_may_bind_an_address_to_come() -> None:
    """The dash: systemd-sysctl fails where a kernel lacks one of them, but for such a line."""
    assert settled(rendered("postgres/sysctl.conf.j2", huge_pages=0)) == [
        "net.ipv4.ip_nonlocal_bind = 1",
        "-net.ipv6.ip_nonlocal_bind = 1",
    ]


def test_huge_pages_are_set_apart_where_they_are_worth_it() -> None:
    few, many = (settled(rendered("postgres/sysctl.conf.j2", huge_pages=n)) for n in (0, 4506))
    assert many == [*few, "vm.nr_hugepages = 4506"]


def test_the_package_makes_no_cluster_of_its_own() -> None:
    assert settled(rendered("postgres/createcluster.conf.j2")) == ["create_main_cluster = false"]


def test_apt_waits_for_its_lock() -> None:
    assert 'DPkg::Lock::Timeout "600";' in rendered("apt/60terrafirma.j2")
