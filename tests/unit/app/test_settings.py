"""Which fields an application takes, and what is refused in one line."""

from pathlib import Path
from typing import Any

import pytest

from terrafirma.fields import is_public
from terrafirma.server import applications
from terrafirma.settings import Refused
from tests.conftest import ROOT
from tests.unit.settings import API, application, entry, numbered, refusal_of

# --- bad data -------------------------------------------------------------------------------------

IMAGE = {"source": "", "image": "registry.acme.com/team/api:1.2"}
PROJECT = {"source": "examples/compose", "compose": ["compose.yaml"]}
BCRYPT = "$2a$14$" + "a" * 53

JOB = {"schedule": "hourly", "command": ["manage.py", "clearsessions"]}

BAD_FIELDS: list[tuple[str, Any, str, str]] = [
    # field of an application, its value; the part that is wrong, what would be right
    ("image", "Registry.acme.com/api", "", "no image, like registry.example.com/team/api:1.2"),
    ("image", "registry.acme.com/api:", "", "no image, like"),
    ("image", "registry.acme.com/api@sha256:12", "", "no image, like"),
    ("image", "-v", "", "no image, like"),
    ("image", "api:1.2", "", "web has a source too: set only one of the two"),
    ("compose", ["docker-compose.txt"], ".0", "does not match"),
    ("compose", ["/etc/compose.yaml"], ".0", "does not match"),
    ("compose", "compose.yaml", "", "must be a list"),
    ("compose", ["no.yaml"], "", "'examples/api' has no file 'no.yaml'"),
    ("service", "a b", "", "'a b' does not match"),
    ("stateful", [""], ".0", "does not match"),
    ("shared", ["uploads/x"], ".0", "does not match"),
    ("shared", ["../uploads"], ".0", "does not match"),
    ("shared", ["/"], ".0", "does not match"),
    ("shared", ["/srv/a b"], ".0", "does not match"),
    ("shared", "uploads", "", "must be a list"),
    ("scratch", [""], ".0", "does not match"),
    ("migrate", "migrate", "", "must be a list"),
    ("profiles", ["a b"], ".0", "does not match"),
    ("leave_out", "traefik", "", "must be a list"),
    ("docker_socket", True, "", "must be a list"),
    ("stateful", "db", "", 'must be a list, not str: write ["db"]'),
    ("migrate", "manage.py migrate", "", 'not str: write ["manage.py", "migrate"]'),
    ("migrate", 'say "a', "", "must be a list, not str"),
    (
        "services",
        {"db": {"backup_command": "pg_dumpall > /a"}},
        ".db.backup_command",
        'must be a list, not str: write ["sh", "-c", "pg_dumpall > /a"]',
    ),
    (
        "services",
        {"db": {"backup_comand": ["a"]}},
        ".db.backup_comand",
        "there is no such key, did you mean apps.web.services.db.backup_command?",
    ),
    (
        "health_path",
        "up",
        "",
        "'up' does not match ^/([A-Za-z0-9_.-][A-Za-z0-9/_.-]*)?$ (path that starts with one `/`)",
    ),
    ("services", {"a b": {}}, ".'a b'", "does not match"),
    ("services", {"web": {"memory": 1}}, ".web.memory", "there is no such key"),
    ("services", {"jobs": {"env": {"A-B": 1}}}, ".jobs.env.A-B", "does not match"),
    ("services", {"jobs": {"stop_signal": "INT"}}, ".jobs.stop_signal", "does not match"),
    ("services", {"jobs": {"replicas": 0}}, ".jobs.replicas", "greater than or equal to 1"),
    ("services", {"jobs": {"stop_seconds": 0}}, ".jobs.stop_seconds", "greater than or equal"),
    ("services", {"jobs": {"command": "run"}}, ".jobs.command", "must be a list"),
    ("services", {"jobs": {"memory_mb": 1}}, ".jobs.memory_mb", "Docker takes 6 MB or more"),
    *(
        (field, value, place, "its first word is empty: it is the program that runs")
        for field, value, place in (
            ("migrate", [""], ""),
            ("migrate", [" ", "up"], ""),
            ("services", {"jobs": {"command": ["", "run"]}}, ".jobs.command"),
            ("cron", {"a": JOB | {"command": [""]}}, ".a.command"),
            ("health", [""], ""),
            ("services", {"db": {"backup_command": [" "]}}, ".db.backup_command"),
            ("backup_command", [""], ""),
            ("backup_after", [""], ""),
        )
    ),
    ("services", {"db": {"backup_command": "dump"}}, ".db.backup_command", "must be a list"),
    ("services", {"db": {"backup_after": ["x"]}}, ".db", "backup_after: there is no backup_comm"),
    ("services", {"db": {"backup_seconds": 0}}, ".db.backup_seconds", "greater than or equal to 1"),
    ("services", {"db": {"backup_comand": ["x"]}}, ".db.backup_comand", "there is no such key"),
    ("backup_command", ["sh", "-c", "a\nb"], ".2", "line break"),
    ("backup_after", ["x"], "", "there is no backup_command: set that, or leave it out"),
    ("backup_seconds", 86_401, "", "less than or equal to 86400"),
    ("backup_leave_out", ["../x"], ".0", "does not match"),
    ("backup_leave_out", "cache", "", "must be a list"),
    ("backup_leave_out", ["cache", "cache"], "", "twice"),
    ("migrate", ["sh", "-c", "a\nb"], ".2", "line break"),
    ("env", {"LOG-LEVEL": "x"}, ".LOG-LEVEL", "does not match"),
    ("env", {"2ND": "x"}, ".2ND", "does not match"),
    ("env", {"A": "{database.ulr}"}, ".A", "{database.ulr} is none of {database.url}, "),
    ("env", {"A": "{secrets.token}"}, "", "env: A: secrets has no 'token' (none)"),
    ("env", {"A": "a\x1b[0m"}, ".A", "has a control character other than a line break or a tab"),
    ("env", {"A": None}, ".A", "None is not a valid value: use True, False, a number or text"),
    ("env_file", ".env", "", "must be a list"),
    ("env_file", [""], ".0", "'' does not match"),
    ("secrets", {"TOKEN": "generated"}, ".TOKEN", "does not match"),
    ("secrets", {"../token": "generated"}, ".'../token'", "does not match"),
    ("secrets", {"token": ""}, ".token", "use 'generated' (on the server), 'env:NAME'"),
    ("secrets", {"token": "env:A-B"}, ".token", "use 'generated' (on the server), 'env:NAME'"),
    ("secrets", {"token": "command:"}, ".token", "'command:…' (the output of a command"),
    ("secrets", {"token": "command:cat x\ny"}, ".token", "a command is one line"),
    (
        "secrets",
        {"database_url": "generated"},
        "",
        "database_url is derived; it cannot be set here",
    ),
    (
        "env",
        {"A": "{databases.reports.url}"},
        "",
        "env: A: databases has no 'reports' (none)",
    ),
    (
        "env",
        {"A": "{databases.api.url:postgres}"},
        "",
        "env: A: api is the database of web: {database.url:postgres}",
    ),
    ("databases", ["reports", "reports"], "", "databases: 'reports' is there twice"),
    ("databases", ["api"], "", "'api' is the database of web already: leave it out"),
    ("databases", ["postgres"], ".0", "reserved by PostgreSQL"),
    ("databases", "reports", "", "must be a list"),
    ("secrets_env", "some", "", "valid boolean"),
    *(
        ("registries", {host: login}, where, words)
        for host, login, where, words in (
            (
                "ghcr.io",
                {"user": "ci", "password": "s3cret"},
                ".ghcr.io.password",
                "is no source of",
            ),
            ("ghcr.io", {"user": "ci"}, ".ghcr.io.password", "Field required"),
            ("ghcr.io", {"user": "", "password": "env:X"}, ".ghcr.io.user", "does not match"),
            ("ghcr.io", {"user": "a:b", "password": "env:X"}, ".ghcr.io.user", "does not match"),
            (
                "ghcr.io",
                {"user": "ci", "password": "generated"},
                ".ghcr.io.password",
                "the registry has it already: use env:NAME or command:…",
            ),
            ("ghcr", {}, "", "'ghcr' is no host of a registry, like ghcr.io or docker.io"),
            ("https://ghcr.io", {}, "", "'https://ghcr.io' is no host of a registry"),
            ("ghcr.io/acme", {}, "", "'ghcr.io/acme' is no host of a registry"),
        )
    ),
    ("registries", ["ghcr.io"], "", "valid dictionary"),
    ("redirects", ["www.acme.com", "www.acme.com"], "", "'www.acme.com' is there twice"),
    ("redirects", ["web.acme.com"], "", "'web.acme.com' is there twice"),
    ("redirects", ["https://www.acme.com"], ".0", "not a domain name"),
    ("hsts_seconds", -1, "", "greater than or equal to 0"),
    ("headers", {"X-A: b": "c"}, ".'X-A: b'", "does not match"),
    ("max_upload_mb", 0, "", "greater than or equal to 1, not 0"),
    ("timeout_seconds", 3601, "", "less than or equal to 3600"),
    ("guards", [{"path": "/admin/*"}], ".0", "/admin/*: neither allow nor users: it guards"),
    ("guards", [{"path": "/a/*/b/*", "allow": ["10.0.0.1"]}], ".0.path", "does not match"),
    ("guards", [{"path": "/a//*", "allow": ["10.0.0.1"]}], ".0.path", "it would guard nothing"),
    ("guards", [{"path": "/a/../b", "allow": ["10.0.0.1"]}], ".0.path", "it would guard nothing"),
    ("guards", [{"path": "/a/..*", "allow": ["10.0.0.1"]}], ".0.path", "it would guard nothing"),
    ("guards", [{"path": "admin", "allow": ["10.0.0.1"]}], ".0.path", "does not match"),
    ("guards", [{"allow": ["10.0.0.1/8"]}], ".0.allow.0", "no address or network, like"),
    ("guards", [{"allow": ["acme.com"]}], ".0.allow.0", "no address or network, like"),
    ("guards", [{"users": {"me": "pass"}}], ".0.users.me", "`caddy hash-password` on the server"),
    ("guards", [{"users": {"me": BCRYPT + "a"}}], ".0.users.me", "is no bcrypt hash"),
    ("guards", [{"users": {"a b": BCRYPT}}], ".0.users.'a b'", "does not match"),
    ("static", {"assets": "/srv"}, ".assets", "does not match"),
    ("static", {"/assets/*": "srv"}, ".'/assets/*'", "'srv' is not an absolute path"),
    ("snippet", "no/such/file", "", "cannot read 'no/such/file'"),
    ("snippet", "~nobody-here/snippet", "", "cannot read '~nobody-here/snippet'"),
    ("snippet", "examples", "", "cannot read 'examples'"),
    ("smoke_path", "up", "", "'up' does not match"),
    ("user", "Prod", "", "'Prod' does not match"),
    ("memory_mb", -1, "", "greater than or equal to 0"),
    ("memory_mb", 5, "", "Docker takes 6 MB or more, or 0 for no limit, not 5"),
    ("memory_mb", 10**5000, "", "it is a number of more digits than Python writes"),
    ("build_args", {"A": 10**5000}, ".A", "it is a number of more digits than Python writes"),
    ("env", {"A": 10**5000}, ".A", "it is a number of more digits than Python writes"),
    ("cron", {"a": {"schedule": "hourly", "command": ["a\nb"]}}, ".a.command.0", "a line break"),
    ("cpus", -0.5, "", "greater than or equal to 0"),
    ("cpus", float("inf"), "", "finite number"),
    *((f"{what}_seconds", 0, "", "equal to 1") for what in ("start", "drain", "stop")),
    *((f"{what}_seconds", "5", "", "valid integer") for what in ("start", "drain", "stop")),
    ("keep_releases", 0, "", "greater than or equal to 1"),
    # what the application runs
    ("source", "examples", "", "not a directory with a Dockerfile"),
    ("source", "no/where", "", "not a directory with a Dockerfile"),
    ("source", "~nobody-here/api", "", "not a directory with a Dockerfile"),
    ("source", "a\nb", "", "line break"),
    ("source", "", "", "web has neither source nor image"),
    ("replicas", 0, "", "greater than or equal to 1"),
    ("replicas", 65, "", "less than or equal to 64"),
    ("replicas", 1.5, "", "valid integer"),
    ("replicas", "many", "", "valid integer, not 'many'"),
    ("replicas", True, "", "valid integer"),
    ("replicas", None, "", "valid integer"),
    ("port", 0, "", "greater than or equal to 1024"),
    ("port", 80, "", "greater than or equal to 1024"),
    ("port", 65536, "", "less than or equal to 65535"),
    ("port", 65409, "", "web has 65409 to 65536, but 65535 is the last"),
    ("port", 65500, "", "web has 65500 to 65627, but 65535 is the last"),
    ("container_port", -1, "", "greater than or equal to 0"),
    ("container_port", 65536, "", "less than or equal to 65535"),
    ("dockerfile", "docker/Dockerfile", "", "'examples/api' has no file 'docker/Dockerfile'"),
    ("dockerfile", "../Dockerfile", "", "'../Dockerfile' is no path in the source, like docker/"),
    ("dockerfile", "./../Dockerfile", "", "'./../Dockerfile' is no path in the source"),
    ("dockerfile", "./", "", "'./' is no path in the source, like docker/Dockerfile"),
    ("dockerfile", "/etc/passwd", "", "'/etc/passwd' is no path in the source"),
    ("dockerfile", "a/../../b", "", "is no path in the source"),
    ("target", "a b", "", "does not match"),
    ("target", "release", "", "the Dockerfile has no stage 'release' (none)"),
    ("build_args", {"A-B": "1"}, ".A-B", "does not match"),
    ("build_args", {"A": ["1"]}, ".A", "a list is not a valid value"),
    ("read_only", "some", "", "valid boolean"),
    ("writable", "/tmp", "", "must be a list"),
    ("writable", ["tmp"], ".0", "'tmp' is no absolute path of a directory in the container"),
    ("writable", ["/tmp:exec"], ".0", "is no absolute path of a directory"),
    ("writable", ["/a", "/a/"], "", "'/a' is there twice"),
    ("writable", ["/a/.."], ".0", "'/' is the whole file system: name the directories in it"),
    ("writable", ["//proc/x"], ".0", "'/proc/x' is a directory of the system in a container"),
    ("volumes", ["/data"], "", "should be a valid dictionary"),
    ("volumes", {"Data": "/data"}, ".Data", "does not match"),
    ("volumes", {"data": "data"}, ".data", "'data' is no absolute path"),
    ("volumes", {"data": "/da,ta"}, ".data", "is no absolute path"),
    ("volumes", {"a": "/run/secrets"}, ".a", "'/run/secrets' is a directory of the system"),
    ("volumes", {"a": "/a", "b": "/a/"}, "", "'/a' is there twice"),
    ("health_path", "healthz", "", "does not match"),
    ("health_path", "/a b", "", "does not match"),
    ("health_path", "/a {", "", "does not match"),
    ("network", "a b", "", "does not match"),
    # how it is released, and its jobs
    ("strategy", "recreate", "", "'start-first' or 'stop-first'"),
    ("cron", {"Cleanup": JOB}, ".Cleanup", "does not match"),
    ("cron", {"a.b": JOB}, ".a.b", "does not match"),
    ("cron", {"a": {"schedule": "hourly"}}, ".a.command", "Field required"),
    ("cron", {"a": JOB | {"command": "x"}}, ".a.command", "must be a list"),
    ("cron", {"a": JOB | {"command": []}}, ".a.command", "at least 1"),
    ("cron", {"a": JOB | {"timeout_seconds": 0}}, ".a.timeout_seconds", "than or equal to 1"),
    ("cron", {"a": JOB | {"every": 1}}, ".a.every", "there is no such key"),
    ("cron", {"a": JOB | {"schedule": "*/5 * * * *"}}, ".a.schedule", "is a line of a crontab"),
    ("cron", {"a": JOB | {"schedule": "0 3 * * mon"}}, ".a.schedule", "is a line of a crontab"),
    ("cron", {"a": JOB | {"schedule": "@daily"}}, ".a.schedule", "'@daily' is no OnCalendar"),
    ("cron", {"a": JOB | {"schedule": "%h"}}, ".a.schedule", "'%h' is no OnCalendar"),
    ("cron", {"a": JOB | {"schedule": ""}}, ".a.schedule", "is no OnCalendar"),
    ("cron", {"a": JOB | {"service": "a b"}}, ".a.service", "does not match"),
    # its database
    ("database", "postgres", "", "reserved"),
    ("role", "Api", "", "'Api' is no name of a role"),
    ("role", "a'b", "", "is no name of a role"),
    ("role", "a b", "", "is no name of a role"),
    ("connections", 0, "", "greater than or equal to 1"),
    ("connections", 1001, "", "less than or equal to 1000"),
    ("connections", "5", "", "valid integer"),
    ("pgbouncer", "perhaps", "", "valid boolean"),
    # its site
    ("redirects", ["WWW.acme.com"], ".0", "in lower case"),
    ("headers", {"X Mine": "1"}, ".'X Mine'", "does not match"),
    ("headers", {"-Server": "1"}, ".-Server", "does not match"),
    ("headers", {"X-Mine": "a\nb"}, ".X-Mine", "line break"),
    ("headers", {"X-Mine": "a`b"}, ".X-Mine", "has a backtick"),
    ("headers", {"X-Mine": "a{$HOME}"}, ".X-Mine", "which Caddy would read"),
    ("timeout_seconds", 0, "", "greater than or equal to 1"),
    ("guards", [{"path": "/a"}], ".0", "it guards nothing"),
    ("guards", [{"path": "a", "allow": ["::1"]}], ".0.path", "does not match"),
    ("static", {"/a/*": "srv"}, ".'/a/*'", "is not an absolute path"),
    ("snippet", "~nobody-here/x", "", "cannot read"),
    ("snippet", "no/where.caddy", "", "cannot read 'no/where.caddy'"),
]
BAD_KINDS: list[tuple[dict[str, Any], str, str]] = [
    # fields of an application that do not fit together; the one that is named, what would be right
    ({"image": "api:1.2"}, "image", "has a source too: set only one of the two"),
    (IMAGE | {"compose": ["compose.yaml"]}, "compose", "has no source: set it to the directory"),
    ({"service": "web"}, "service", "has no compose files, so only one service"),
    (
        {"strategy": "stop-first", "replicas": 4},
        "replicas",
        "'stop-first', for which one instance runs: leave replicas out",
    ),
    (
        {"cron": {"a": JOB | {"service": "web"}}},
        "cron",
        "has no compose files, so only one service: leave it out",
    ),
    ({"stateful": ["redis"]}, "stateful", "has no compose files, so only one service"),
    ({"shared": ["uploads"]}, "shared", "has no compose files, so only one service"),
    ({"scratch": ["redis"]}, "scratch", "has no compose files: its only service is"),
    ({"profiles": ["prod"]}, "profiles", "has no compose files, so only one service"),
    ({"leave_out": ["nginx"]}, "leave_out", "has no compose files, so only one service"),
    ({"docker_socket": ["api"]}, "docker_socket", "has no compose files, so only one service"),
    ({"services": {"a": {"cpus": 1}}}, "services", "has no compose files, so only one service"),
    ({"database_replaces": "db"}, "database_replaces", "has no compose files, so only one service"),
    (
        PROJECT | {"database": "", "database_replaces": "db"},
        "database_replaces",
        "has no database that could be in the place of db: set database",
    ),
    *(
        (
            PROJECT | {"database_replaces": "db", key: value},
            "database_replaces",
            f"'db' is in {key} too: one of the two",
        )
        for key, value in (
            *((key, ["db"]) for key in ("stateful", "scratch", "docker_socket", "leave_out")),
            ("services", {"db": {"cpus": 1}}),
        )
    ),
    *(
        (PROJECT | {"leave_out": ["x"], key: value}, "leave_out", f"'x' is in {key} too")
        for key, value in (
            *((key, ["x"]) for key in ("stateful", "scratch", "docker_socket")),
            ("services", {"x": {"cpus": 1}}),
        )
    ),
    (
        PROJECT | {"service": "app", "services": {"app": {"replicas": 2}}},
        "services",
        "app serves HTTP: its replicas are those of the application",
    ),
    (
        PROJECT | {"services": {"jobs": {"env": {"A": "{secrets.b}"}}}},
        "services",
        "jobs: env: A: secrets has no 'b' (none)",
    ),
    ({"writable": ["/a"], "volumes": {"a": "/a"}}, "volumes", "'/a' is there twice"),
    *(
        (kind | {key: value}, key, f"{what}: leave {key} out")
        for key, value in (("dockerfile", "Dockerfile"), ("target", "x"), ("build_args", {"A": 1}))
        for kind, what in ((IMAGE, "no source"), (PROJECT, "compose files, which say how to build"))
    ),
    ({"database": "", "role": "api"}, "role", "has no database: set one, or leave role out"),
    *(
        (more, "registries", f"there is no such key any more, write registries = {new}")
        for more, new in (
            (
                IMAGE | {"registry_user": "ci", "registry_password": "env:X"},
                '{"registry.acme.com": {"user": "ci", "password": "env:X"}}',
            ),
            (
                {"source": "", "image": "api:1", "registry_password": "command:pass s3cret"},
                '{"docker.io": {"user": "…", "password": "env:…"}}',
            ),
            (
                {"registry": "acme.com:5000", "registry_user": "ci@acme.com"},
                '{"acme.com:5000": {"user": "ci@acme.com", "password": "env:…"}}',
            ),
        )
    ),
    (PROJECT | {"stateful": ["redis"] * 2}, "stateful", "'redis' is there twice"),
    (PROJECT | {"shared": ["/srv/a"] * 2}, "shared", "'/srv/a' is there twice"),
    (
        PROJECT | {"stateful": ["redis"], "scratch": ["redis"]},
        "scratch",
        "'redis' is in stateful too",
    ),
]


def test_the_address_of_a_further_database_is_derived() -> None:
    message = refusal_of(databases=["x"], secrets={"database_url_x": "generated"})
    assert message == "apps.api.secrets: database_url_x is derived; it cannot be set here"
    # Without such a database the name is free.
    application(secrets={"database_url_x": "generated"})


def test_a_reference_to_a_database_needs_one() -> None:
    message = refusal_of("web", database="", env={"A": "x", "URL": "{database.url}"})
    assert message == "apps.web.env: URL: web has no database: set one"


@pytest.mark.parametrize(("field", "value", "at", "right"), numbered(BAD_FIELDS, 0))
def test_a_bad_field_names_the_application_and_what_would_be_right(
    field: str, value: Any, at: str, right: str
) -> None:
    message = refusal_of("web", **{field: value})
    assert f"apps.web.{field}{at}: " in message
    assert right in message


@pytest.mark.parametrize(("fields", "key", "right"), numbered(BAD_KINDS, 1))
def test_fields_that_do_not_fit_together(fields: dict[str, Any], key: str, right: str) -> None:
    for name in ("api", "shop-2"):
        message = refusal_of(name, **fields)
        assert message.startswith(f"apps.{name}.{key}: ")
        assert right in message


@pytest.mark.parametrize(
    "domain",
    [
        *("API.acme.com", "a_b.acme.com", "-a.acme.com", "a-.acme.com", "a..acme.com", ".acme.com"),
        *("acme.com.", "", "a b.acme.com", "*.acme.com", "https://acme.com", "acme.com/api"),
        *("acme.com:443", "acme.com\n", "acme.com {", "ümlaut.de", f"{'a' * 64}.com", "a." * 127),
    ],
)
def test_an_invalid_domain_is_refused(domain: str) -> None:
    assert "apps.api.domain: " in refusal_of(domain=domain)
    assert "apps.api.redirects.0: " in refusal_of(redirects=[domain])


@pytest.mark.parametrize(
    "fields",
    [
        {"secrets": {"token": "s3cret-s3cret"}},
        {"secrets": "s3cret-s3cret"},
        {"secrets": ["s3cret-s3cret"]},
        {"secrets": {"token": ["s3cret-s3cret"]}},
        {"registry_user": "ci", "registry_password": "s3cret-s3cret"},
        {"registries": {"ghcr.io": {"user": "ci", "password": "s3cret-s3cret"}}},
        {"registries": {"ghcr.io": {"user": "ci", "password": ["s3cret-s3cret"]}}},
        {"registries": {"ghcr.io": {"user": "ci", "password": "command: s3cret-s3cret"}}},
        {"registries": {"https://ci:s3cret@ghcr.io": {}}},
        {"registries": {"ghcr.io": {"user": "ci", "pasword": "s3cret-s3cret"}}},
        {"registry_user": "ci", "registry_password": ["s3cret-s3cret"]},
        {"registry_user": "ci", "registry_password": "command: s3cret-s3cret"},
        {"registry": "https://ci:s3cret@registry.acme.com"},
        {"source": "", "image": "ci:s3cret@registry.acme.com/api"},
        {"source": "", "image": "https://ci:s3/cret@registry.acme.com/api"},
        {"guards": [{"users": {"me": "s3cret-s3cret"}}]},
        {"guards": [{"users": "me:s3cret-s3cret"}]},
        {"registry_pasword": "s3cret-s3cret"},
        {"env": {"TOKEN": "s3cret\0"}},
        {"env": {"TOKEN": "s3cret\x1b"}},
        {"env": {"TOKEN": ["s3cret"]}},
        {"env": ["TOKEN=s3cret"]},
    ],
)
def test_a_secret_in_the_place_of_its_source_is_not_shown(fields: dict[str, Any]) -> None:
    assert "s3" not in refusal_of(**fields)


# --- good data ------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", ["acme.com", "api.acme.io", "xn--bcher-kva.de", "contest.de"])
def test_a_public_name_gets_a_public_certificate(domain: str) -> None:
    assert application(domain=domain).domain == domain
    assert is_public(domain)


@pytest.mark.parametrize(
    "domain",
    [
        *("localhost", "api.localhost", "api.terrafirma.test", "db.internal", "nas.local"),
        *("nas.home.arpa", "www.example.com", "example.org", "a.example", "a.invalid"),
        *("intranet", "10.0.0.1", "203.0.113.10"),
    ],
)
def test_a_private_name_gets_no_public_certificate(domain: str) -> None:
    assert application(domain=domain).domain == domain
    assert not is_public(domain)


@pytest.mark.parametrize("domain", ["mytest.com", "test.de", "notexample.com", "local.acme.com"])
def test_a_name_that_only_looks_private_is_public(domain: str) -> None:
    assert is_public(domain)


# --- applications ---------------------------------------------------------------------------------


def test_applications_come_in_their_order() -> None:
    entries = {"jobs": entry("jobs"), "api": API, "web": entry()}
    found = applications({"apps": entries})
    assert [one.name for one in found] == ["jobs", "api", "web"]
    assert found[2].directory == "/opt/terrafirma/web"


def test_an_application_has_two_slots_of_ports() -> None:
    """One for the release that serves, one for the release that takes over."""
    found = (application(port=8000), application("web", port=8128, replicas=1))
    assert [one.ports for one in found] == [
        [*range(8000, 8008), *range(8064, 8072)],
        [*range(8128, 8136), *range(8192, 8200)],
    ]
    assert [one.reserved_ports for one in found] == [range(8000, 8128), range(8128, 8256)]
    most = application(port=65408, replicas=64)
    assert max(most.ports) == most.reserved_ports[-1] == 65535


def test_without_an_entry_there_is_no_application() -> None:
    assert applications({"apps": {}}) == applications({}) == ()
    assert [one.name for one in applications({"apps": {"web": entry(port=8000)}})] == ["web"]
    assert application(source="", image="api:1").source == ""


@pytest.mark.parametrize(
    "image",
    [
        *("api", "api:1.2", "team/api:v1.2-rc_3", "localhost/api", "localhost:5000/team/api"),
        *("registry.acme.com:5000/a/b/c:latest", f"ghcr.io/acme/api@sha256:{'0' * 64}"),
        f"ghcr.io/acme/api:1.2@sha256:{'a1' * 32}",
    ],
)
def test_images(image: str) -> None:
    assert application(source="", image=image).image == image


@pytest.mark.parametrize(
    "source",
    ["generated", "env:API_TOKEN", "env:_x", "command:pass show api", "command:op read 'a b'"],
)
def test_sources_of_secrets(source: str) -> None:
    assert application(secrets={"token": source}).secrets == {"token": source}


@pytest.mark.parametrize("path", ["Dockerfile", "./Dockerfile", ".//././Dockerfile"])
def test_a_dockerfile_may_begin_with_the_directory_itself(path: str) -> None:
    assert application(dockerfile=path).dockerfile == "Dockerfile"


@pytest.mark.parametrize("limit", [0, 6, 512])
def test_memory_that_docker_takes(limit: int) -> None:
    assert application(memory_mb=limit).memory_mb == limit


def test_a_compose_project() -> None:
    project = application(
        source="examples/compose", compose=["compose.yaml"], service="web", stateful=["redis"],
        migrate=["migrate"], user="", database="",
    )  # fmt: skip
    assert project.compose == ("compose.yaml",)
    assert (project.service, project.stateful) == ("web", ("redis",))


def test_guards() -> None:
    (guard,) = application(guards=[{"allow": ["10.0.0.0/8", "2001:db8::1"]}]).guards
    assert (guard.path, guard.allow) == ("/*", ("10.0.0.0/8", "2001:db8::1/128"))
    (guard,) = application(guards=[{"path": "/a/*", "users": {"me@x": BCRYPT}}]).guards
    assert guard.users == {"me@x": BCRYPT}


def test_a_source_is_found_from_the_project_or_from_the_root(tmp_path: Path) -> None:
    assert application().source_directory == ROOT / "examples" / "api"
    (tmp_path / "Dockerfile").touch()
    assert application(source=str(tmp_path)).source_directory == tmp_path


def test_stop_first_runs_one_instance() -> None:
    app = application(strategy="stop-first")
    assert (app.replicas, app.room, app.overlap) == (1, 1, 1)
    assert application(strategy="stop-first", replicas=1) == app
    assert (application().replicas, application().overlap) == (4, 2)


@pytest.mark.parametrize(
    "schedule", ["hourly", "*:0/15", "Mon..Fri 03:30", "*-*-01 00:00:00 Europe/Berlin", "Sat~1"]
)
def test_a_job_has_a_schedule_of_systemd(schedule: str) -> None:
    (job,) = application(cron={"a": JOB | {"schedule": schedule}}).cron.values()
    assert (job.schedule, job.service, job.timeout_seconds) == (schedule, "", 3600)


@pytest.mark.parametrize(
    ("files", "fields", "compose"),
    [
        (["compose.yaml"], {}, ("compose.yaml",)),
        (["compose.yml", "docker-compose.yml"], {}, ("compose.yml",)),
        (["docker-compose.yaml", "docker-compose.yml"], {}, ("docker-compose.yaml",)),
        (["docker-compose.yml", "other.yaml"], {"compose": ["other.yaml"]}, ("other.yaml",)),
        # The Dockerfile alone is meant where no field is of a compose project.
        (["compose.yaml", "Dockerfile"], {}, ()),
        (["compose.yaml", "Dockerfile"], {"service": "web"}, ("compose.yaml",)),
        (["compose.yaml", "Dockerfile"], {"leave_out": ["x"]}, ("compose.yaml",)),
        (["compose.yaml", "app.Dockerfile"], {"dockerfile": "app.Dockerfile"}, ()),
        (["compose.yaml", "Dockerfile"], {"compose": []}, ()),
    ],
)
def test_the_compose_file_that_compose_itself_would_take(
    tmp_path: Path, files: list[str], fields: dict[str, Any], compose: tuple[str, ...]
) -> None:
    for name in files:
        (tmp_path / name).write_text("services: {web: {build: .}}\n")
    assert application(source=str(tmp_path), **fields).compose == compose


def test_a_dockerfile_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    # Reading it fails for root, too.
    (tmp_path / "Dockerfile").symlink_to("/proc/self/mem")
    with pytest.raises(Refused, match=r"source: cannot read '.*Dockerfile' \(Input/output"):
        application("shop", source=str(tmp_path))


def test_the_web_service_has_one_command_before_a_backup() -> None:
    own = {"web": {"backup_command": ["one"]}}
    shop: dict[str, Any] = {
        "source": "examples/compose", "compose": ["compose.yaml"], "service": "web"
    }  # fmt: skip
    assert application("shop", **shop, services=own).services
    with pytest.raises(Refused, match="backup_command: services has another one for web"):
        application("shop", **shop, services=own, backup_command=["two"])
