"""Settings: the defaults fit the models, and what is wrong is said in one line that helps."""

import re
import runpy
from base64 import b64encode
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import ValidationError
from pyinfra.api import DeployError

from terrafirma.budget import refuse_overdraft, refuse_overload
from terrafirma.extensions import CONTRIB, EXTENSION_PACKAGES, PRELOADED, packages_of
from terrafirma.given import passwords
from terrafirma.pooler import pool_sizes, pooler, role_limits
from terrafirma.settings import (
    ALL_SETTINGS,
    App,
    Application,
    Apt,
    Borg,
    Caddy,
    Docker,
    PgBouncer,
    Postgres,
    Preflight,
    Settings,
    Sshd,
    Users,
    is_public,
)
from tests.conftest import ROOT

DEFAULTS = {
    key: value
    for key, value in runpy.run_path(str(ROOT / "group_data" / "all.py")).items()
    if not key.startswith("_") and not callable(value)
}
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGc1+glbGrHlrI9G1dvS2Q54l8v1A9J2h2KIlylF3/L8"
SECURITY_KEY = (
    "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAILfwl0Vx9OJ8"
    "q0ZkEUmQ3HbQHZqzXf8SDtTEYVuQm3zgAAAABHNzaDo="
)


def rsa(bits: int) -> str:
    key = generate_private_key(65537, bits).public_key()
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def compressed() -> str:
    """An ECDSA key whose point is written in the short way, as OpenSSH writes none."""
    kind, curve = b"ecdsa-sha2-nistp256", b"nistp256"
    point = b"\x02" + bytes(31) + b"\x05"
    blob = b"".join(len(part).to_bytes(4, "big") + part for part in (kind, curve, point))
    return f"{kind.decode()} {b64encode(blob).decode()}"


S = TypeVar("S", bound=Settings)


def host(**data: Any) -> Any:
    return SimpleNamespace(name="db1", data=SimpleNamespace(dict=lambda: data))


def of(settings: type[S], **data: Any) -> S:
    """These settings of a host that has `data` instead of the defaults."""
    return settings.of(host(**DEFAULTS | data))


def refusal(settings: type[Settings], **data: Any) -> str:
    with pytest.raises(DeployError) as error:
        of(settings, **data)
    message = str(error.value)
    assert message.startswith("db1: ")
    assert "\n" not in message
    # Names of pydantic's own, which help nobody.
    assert "function-" not in message
    return message


def application(name: str = "web", **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "source": "examples/api",
        "domain": f"{name}.acme.com",
        "database": "api",
        "port": 9000,
        **more,
    }


# --- the defaults ---------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", ALL_SETTINGS, ids=lambda settings: settings.prefix)
def test_the_defaults_are_right(settings: type[Settings]) -> None:
    assert of(settings)


def test_every_setting_has_a_default_and_every_default_is_a_setting() -> None:
    known = {f"{one.prefix}_{field}" for one in ALL_SETTINGS for field in one.model_fields}
    assert known == {key for key in DEFAULTS if not key.startswith("ssh_")}


def test_further_applications_have_the_defaults_of_the_first() -> None:
    """But for what it is: the example."""
    for name, field in Application.model_fields.items():
        if not field.is_required() and name not in ("source", "database"):
            default = list(field.default) if isinstance(field.default, tuple) else field.default
            assert default == DEFAULTS[f"app_{name}"], name


def test_prefixes_do_not_nest() -> None:
    prefixes = [f"{settings.prefix}_" for settings in ALL_SETTINGS]
    for prefix in prefixes:
        assert [other for other in prefixes if other.startswith(prefix)] == [prefix]


@pytest.mark.parametrize("settings", ALL_SETTINGS, ids=lambda settings: settings.prefix)
def test_settings_cannot_be_changed(settings: type[Settings]) -> None:
    read = of(settings)
    with pytest.raises(ValidationError):
        setattr(read, next(iter(settings.model_fields)), None)


# --- whose keys -----------------------------------------------------------------------------------


def test_reads_only_its_own_keys() -> None:
    assert of(Sshd, users_accounts="not mine", sshd_allow_users=["me"]).allow_users == ("me",)


@pytest.mark.parametrize(
    "key",
    [
        *("_sudo", "_sudo_password", "ssh_user", "ssh_port", "ssh_paramiko_connect_kwargs"),
        *("docker_identifier", "docker_platform", "vagrant_options", "podman_identifier"),
        # pyinfra's @fake connector, with which a deploy is tried without a host.
        *("fake_responses", "fake_delay"),
        "x_mine",
    ],
)
def test_keys_of_pyinfra_and_of_the_user_are_let_through(key: str) -> None:
    assert of(Docker, **{key: "x"}) == of(Docker)


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("postgres_versoin", "did you mean postgres_version?"),
        ("postgress_version", "did you mean postgres_version?"),
        ("postgres_databses", "did you mean postgres_databases?"),
        ("Postgres_port", "did you mean postgres_port?"),
        ("shd_allow_users", "did you mean sshd_allow_users?"),
        ("postgres_zzzzzz", "there is no such key"),
        ("zzzzzz", "x_"),
    ],
)
def test_an_unknown_key_is_refused_and_a_known_one_suggested(key: str, suggestion: str) -> None:
    message = refusal(Postgres, **{key: 1})
    assert f"{key}: " in message
    assert suggestion in message


def test_a_wrong_prefix_is_refused_by_every_task() -> None:
    for settings in ALL_SETTINGS:
        assert "did you mean caddy_email?" in refusal(settings, cady_email="")


def test_all_that_is_wrong_is_said_at_once() -> None:
    message = refusal(App, app_replicas=0, app_domain="A", app_start_seconds="soon")
    for key in ("app_replicas", "app_domain", "app_start_seconds"):
        assert f"{key}: " in message


@pytest.mark.parametrize("key", ["docker_address_pool", "users_accounts", "app_name"])
def test_a_key_that_is_missing(key: str) -> None:
    data = {name: value for name, value in DEFAULTS.items() if name != key}
    (settings,) = (one for one in ALL_SETTINGS if key.startswith(f"{one.prefix}_"))
    with pytest.raises(DeployError, match=rf"^db1: {key}: Field required$"):
        settings.of(host(**data))


# --- bad data -------------------------------------------------------------------------------------

BAD_ROLES: list[tuple[Any, str, str]] = [
    # what it is, after one that is right; the key; what would be right
    ("worker", "postgres_roles.1", "valid dictionary"),
    ({}, "postgres_roles.1.name", "Field required"),
    ({"name": "api~"}, "postgres_roles.1.name", "'api~' does not match"),
    ({"name": "grant"}, "postgres_roles.1.name", "'grant' is reserved"),
    # With a ~ it is one more, and PostgreSQL cuts off what is longer than 63.
    ({"name": "a" * 63}, "postgres_roles.1", "is too long: 62 characters fit"),
    ({"name": "a", "login": "perhaps"}, "postgres_roles.1.login", "valid boolean"),
    ({"name": "a", "member_of": "api"}, "postgres_roles.1.member_of", "must be a list"),
    (
        {"name": "a", "member_of": ["api", "api"]},
        "postgres_roles.1: member_of",
        "'api' is there twice",
    ),
    (
        {"name": "a", "member_of": ["ap"]},
        "postgres_roles: a is a member of 'ap'",
        "not in postgres_roles (a, api)",
    ),
    (
        {"name": "a", "member_of": ["a"]},
        "postgres_roles: ",
        "a role cannot be a member of itself: a in a (",
    ),
    # They write any file, run any program, read every table.
    *(
        (
            {"name": "a", "member_of": [name]},
            "postgres_roles.1.member_of.0",
            f"'{name}' is reserved",
        )
        for name in (
            *("pg_write_server_files", "pg_execute_server_program", "pg_database_owner"),
            *("pg_read_all_data", "postgres"),
        )
    ),
    ({"name": "a", "settings": ["jit"]}, "postgres_roles.1.settings", "dictionary"),
    ({"name": "a", "settings": {"a b": 1}}, "postgres_roles.1.settings", "does not match"),
    (
        {"name": "a", "settings": {"search_path": ["a", "b"]}},
        "postgres_roles.1.settings.search_path",
        "use True, False, a number or text",
    ),
    (
        {"name": "a", "settings": {"search_path": "a\nb"}},
        "postgres_roles.1.settings.search_path",
        "line break",
    ),
    (
        {"name": "a", "settings": {"jit": None}},
        "postgres_roles.1.settings.jit",
        "None is no valid value",
    ),
    ({"name": "a", "password": "env:A-B"}, "postgres_roles.1.password", "does not match"),
    ({"name": "a", "password": "env:"}, "postgres_roles.1.password", "does not match"),
    ({"name": "a", "password": "env:A\n"}, "postgres_roles.1.password", "does not match"),
    (
        {"name": "a", "password": "env:A", "login": False},
        "postgres_roles.1",
        "password: a does not log in",
    ),
    (
        {"name": "a", "connection_limit": "many"},
        "postgres_roles.1.connection_limit",
        "valid integer",
    ),
]
BAD_DATABASES: list[tuple[dict[str, Any], str, str]] = [
    # what it is, after one that is right; the key; what would be right
    ({}, "postgres_databases.1.name", "Field required"),
    ({"name": "a-b"}, "postgres_databases.1.name", "'a-b' does not match"),
    ({"name": "template1"}, "postgres_databases.1.name", "reserved"),
    ({"name": "a", "onwer": "api"}, "postgres_databases.1.onwer", "no such key"),
    (
        {"name": "a", "owner": "Api"},
        "postgres_databases.1.owner",
        "'Api' does not match",
    ),
    (
        {"name": "a", "access": {"op": "read"}},
        "postgres_databases: a gives access to 'op'",
        "not in postgres_roles (api, ops)",
    ),
    (
        {"name": "a", "access": {"public": "read"}},
        "postgres_databases.1.access.public",
        "reserved",
    ),
    (
        {"name": "a", "access": {"ops": "admin"}},
        "postgres_databases.1.access.ops",
        "'read', 'write' or 'migrate'",
    ),
    ({"name": "a", "access": ["ops"]}, "postgres_databases.1.access", "dictionary"),
    (
        {"name": "a", "access": {"api": "read"}},
        "postgres_databases.1",
        "access: 'api' owns a",
    ),
    ({"name": "a", "schemas": ["x", "x"]}, "postgres_databases.1: schemas", "'x' is there"),
    ({"name": "a", "schemas": ["pg_x"]}, "postgres_databases.1.schemas.0", "reserved"),
    ({"name": "a", "schemas": ["a b"]}, "postgres_databases.1.schemas.0", "match"),
    ({"name": "a", "schemas": "public"}, "postgres_databases.1.schemas", "must be a list"),
    (
        {"name": "a", "extensions": ["hstore", "hstore"]},
        "postgres_databases.1: extensions",
        "'hstore' is there twice",
    ),
    (
        {"name": "a", "extensions": ["hstor"]},
        "postgres_databases: a",
        "'hstor', did you mean hstore?",
    ),
    (
        {"name": "a", "extensions": ["zzzzzz"]},
        "postgres_databases: a",
        "name it in postgres_packages",
    ),
    (
        {"name": "a", "extensions": ['x"; drop']},
        "postgres_databases.1.extensions.0",
        "does not match",
    ),
    ({"name": "a", "encoding": "KOI8R"}, "postgres_databases.1.encoding", "'UTF8'"),
    (
        {"name": "a", "encoding": "LATIN1"},
        "postgres_databases.1",
        "encoding: LATIN1 needs the locale C, not C.UTF-8",
    ),
    (
        {"name": "a", "encoding": "LATIN1", "locale": "de-DE"},
        "postgres_databases.1",
        "encoding: LATIN1 needs the locale C",
    ),
    *(
        ({"name": "a", "locale": one}, "postgres_databases.1.locale", "does not match")
        for one in ("de_DE.UTF-8", "C.utf8", "", "de-DE'", "german", "de-DE\n")
    ),
    (
        {"name": "a", "connection_limit": -2},
        "postgres_databases.1.connection_limit",
        "greater than or equal to -1",
    ),
    (
        {"name": "a", "settings": {"search_path": ("a", "b")}},
        "postgres_databases.1.settings.search_path",
        "use True, False, a number or text",
    ),
    (
        {"name": "a", "settings": {"jit": "on\r"}},
        "postgres_databases.1.settings.jit",
        "line break",
    ),
]
IMAGE = {"source": "", "image": "registry.acme.com/team/api:1.2"}
PROJECT = {"source": "examples/compose", "compose": ["compose.yaml"]}
BCRYPT = "$2a$14$" + "a" * 53

BAD_APP: list[tuple[str, Any, str, str]] = [
    # key of an application, its value; what is wrong in it, what would be right
    ("image", "Registry.acme.com/api", "", "no image, like registry.example.com/team/api:1.2"),
    ("image", "registry.acme.com/api:", "", "no image, like"),
    ("image", "registry.acme.com/api@sha256:12", "", "no image, like"),
    ("image", "-v", "", "no image, like"),
    ("image", "api:1.2", "", "api has a source too: it is one or the other"),
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
    ("migrate", ["sh", "-c", "a\nb"], ".2", "line break"),
    ("env", {"LOG-LEVEL": "x"}, ".LOG-LEVEL", "does not match"),
    ("env", {"2ND": "x"}, ".2ND", "does not match"),
    ("secrets", {"TOKEN": "born"}, ".TOKEN", "does not match"),
    ("secrets", {"../token": "born"}, ".'../token'", "does not match"),
    ("secrets", {"token": ""}, ".token", "use 'born' (made on the server), 'env:NAME'"),
    ("secrets", {"token": "env:A-B"}, ".token", "use 'born' (made on the server), 'env:NAME'"),
    ("secrets", {"token": "command:"}, ".token", "'command:…' (what a command prints here)"),
    ("secrets", {"token": "command:cat x\ny"}, ".token", "a command is one line"),
    ("secrets", {"database_url": "born"}, "", "database_url is derived; it cannot be set here"),
    ("secrets_env", "some", "", "valid boolean"),
    ("registry_password", "s3cret", "", "is no source of a secret"),
    ("redirects", ["www.acme.com", "www.acme.com"], "", "'www.acme.com' is there twice"),
    ("redirects", ["api.terrafirma.test"], "", "'api.terrafirma.test' is there twice"),
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
    ("snippet", "no/such/file", "", "api: cannot read 'no/such/file'"),
    ("snippet", "~nobody-here/snippet", "", "api: cannot read '~nobody-here/snippet'"),
    ("snippet", "examples", "", "api: cannot read 'examples'"),
    ("smoke_path", "up", "", "'up' does not match"),
    ("user", "Prod", "", "'Prod' does not match"),
    ("memory_mb", -1, "", "greater than or equal to 0"),
    ("cpus", -0.5, "", "greater than or equal to 0"),
    *((f"{what}_seconds", 0, "", "equal to 1") for what in ("start", "drain", "stop")),
    *((f"{what}_seconds", "5", "", "valid integer") for what in ("start", "drain", "stop")),
    ("keep_releases", 0, "", "greater than or equal to 1"),
    ("rollback", "api:latest", "", "does not match"),
    ("rollback", "api 0123456789ab", "", "does not match"),
]
BAD_KINDS: list[tuple[dict[str, Any], str, str]] = [
    # keys of an application that do not fit together; the one that is named, what would be right
    ({"image": "api:1.2"}, "image", "has a source too: it is one or the other"),
    (IMAGE | {"compose": ["compose.yaml"]}, "compose", "has no source: name the directory"),
    ({"service": "web"}, "service", "has no compose files: there is one service"),
    ({"stateful": ["redis"]}, "stateful", "has no compose files: there is one service"),
    ({"shared": ["uploads"]}, "shared", "has no compose files: there is one service"),
    ({"scratch": ["redis"]}, "scratch", "has no compose files: its one service is"),
    ({"user": ""}, "user", "has none: name one of users_accounts"),
    ({"database": "", "role": "api"}, "role", "has no database in which it could act"),
    (
        {"registry_user": "ci", "registry_password": "env:X"},
        "registry",
        "has no image: name the host that registry_user logs in to",
    ),
    ({"registry": "acme.com:5000"}, "registry_user", "has a registry, and nobody to log in"),
]


BAD: list[tuple[type[Settings], dict[str, Any], str, str]] = [
    # what host data says; the key that the message names; what would be right
    (Preflight, {"preflight_free_disk_gb": -1}, "preflight_free_disk_gb", "greater than or equal"),
    (Preflight, {"preflight_free_disk_gb": "much"}, "preflight_free_disk_gb", ", not 'much'"),
    (Preflight, {"preflight_wait_seconds": 0}, "preflight_wait_seconds", "greater than or equal"),
    (
        Preflight,
        {"preflight_wait_seconds": 100_000},
        "preflight_wait_seconds",
        "less than or equal",
    ),
    (Apt, {"apt_source": "vendor"}, "apt_source", "'distro' or 'upstream'"),
    (Apt, {"apt_cache_hours": 0}, "apt_cache_hours", "greater than or equal"),
    (Apt, {"apt_packages": "vim"}, "apt_packages", "must be a list"),
    (Apt, {"apt_packages": ["vim", "a b"]}, "apt_packages.1", "'a b' does not match"),
    (Apt, {"apt_packages": ["--reinstall"]}, "apt_packages.0", "does not match"),
    (Apt, {"apt_packages": ["vim\n"]}, "apt_packages.0", "does not match"),
    # accounts
    (Users, {"users_accounts": {"name": "dev"}}, "users_accounts", "must be a list"),
    (Users, {"users_accounts": ["dev"]}, "users_accounts.0", "valid dictionary"),
    (Users, {"users_accounts": [{}]}, "users_accounts.0.name", "Field required"),
    (Users, {"users_accounts": [{"nmae": "dev"}]}, "users_accounts.0.nmae", "no such key"),
    (Users, {"users_accounts": [{"name": "Dev"}]}, "users_accounts.0.name", "does not match"),
    (Users, {"users_accounts": [{"name": "a;b"}]}, "users_accounts.0.name", "does not match"),
    (Users, {"users_accounts": [{"name": "dev\n"}]}, "users_accounts.0.name", "does not match"),
    (Users, {"users_accounts": [{"name": "a" * 33}]}, "users_accounts.0.name", "does not match"),
    (Users, {"users_accounts": [{"name": "root"}]}, "users_accounts.0", "root exists already"),
    (
        Users,
        {"users_accounts": [{"name": "a"}, {"name": "a"}]},
        "users_accounts",
        "'a' is there twice",
    ),
    (
        Users,
        {"users_accounts": [{"name": "a", "shell": "bash"}]},
        "users_accounts.0.shell",
        "absolute",
    ),
    (
        Users,
        {"users_accounts": [{"name": "a", "shell": "/b;c"}]},
        "users_accounts.0.shell",
        "absolute",
    ),
    (
        Users,
        {"users_accounts": [{"name": "a", "home": "/a b"}]},
        "users_accounts.0.home",
        "absolute",
    ),
    (Users, {"users_accounts": [{"name": "a", "home": "a"}]}, "users_accounts.0.home", "absolute"),
    (
        Users,
        {"users_accounts": [{"name": "a", "sudo": "ALL"}]},
        "users_accounts.0.sudo",
        "must be a list",
    ),
    (
        Users,
        {"users_accounts": [{"name": "a", "sudo": ["ls"]}]},
        "users_accounts.0",
        "absolute path",
    ),
    (
        Users,
        {"users_accounts": [{"name": "a", "sudo": ["/bin/ls\nb ALL=ALL"]}]},
        "users_accounts.0.sudo.0",
        "line break",
    ),
    (
        Users,
        {"users_accounts": [{"name": "a", "groups": ["a b"]}]},
        "users_accounts.0.groups.0",
        "match",
    ),
    # Each of these would change the account anew on each run.
    (Users, {"users_accounts": [{"name": "a", "groups": ["b", "b"]}]}, "users_accounts.0", "b"),
    *(
        (
            Users,
            {"users_accounts": [{"name": "ci", "keys": [KEY], "releases": ["api"], key: value}]},
            "users_accounts.0",
            f"releases: ci releases applications and does nothing else: leave {key} out",
        )
        for key, value in (
            ("sudo", ["/bin/ls"]),
            ("sudo", ["ALL"]),
            ("groups", ["docker"]),
            ("shell", "/bin/bash"),
        )
    ),
    (
        Users,
        {"users_accounts": [{"name": "ci", "keys": [KEY], "releases": ["api", "api"]}]},
        "users_accounts.0",
        "releases: 'api' is there twice",
    ),
    *(
        (
            Users,
            {"users_accounts": [{"name": "ci", "keys": [KEY], "releases": [name]}]},
            "users_accounts.0.releases.0",
            "does not match",
        )
        for name in ('api"', "a b", "a;b", "api\n", "-a", "a,b", "ALL")
    ),
    (Users, {"users_accounts": [{"name": "a", "groups": ["a"]}]}, "users_accounts.0", "a"),
    # keys
    (
        Users,
        {"users_accounts": [{"name": "a", "keys": ["/no/such.pub"]}]},
        "users_accounts.0.keys.0",
        "cannot read '/no/such.pub' (No such file or directory)",
    ),
    (
        Users,
        {"users_accounts": [{"name": "a", "keys": ["~nobody-here/id.pub"]}]},
        "users_accounts.0.keys.0",
        "cannot read '~nobody-here/id.pub'",
    ),
    (
        Users,
        {"users_accounts": [{"name": "a", "keys": ["/tmp"]}]},
        "users_accounts.0.keys.0",
        "a directory",
    ),
    (
        Users,
        {"users_accounts": [{"name": "a", "keys": ["/bin/sh"]}]},
        "users_accounts.0.keys.0",
        "text",
    ),
    (
        Users,
        {"users_accounts": [{"name": "a", "keys": [""]}]},
        "users_accounts.0.keys.0",
        "public key",
    ),
    (
        Users,
        {"users_accounts": [{"name": "a", "keys": ["a\0b"]}]},
        "users_accounts.0.keys.0",
        "public key",
    ),
    (
        Users,
        {"users_accounts": [{"name": "a", "keys": KEY}]},
        "users_accounts.0.keys",
        "must be a list",
    ),
    (
        Users,
        {"users_accounts": [{"name": "a", "keys": ["ssh-ed25519 AAAA"]}]},
        "users_accounts.0.keys.0",
        "'ssh-ed25519 AAAA…'",
    ),
    (
        Users,
        {"users_accounts": [{"name": "a", "keys": [f"{KEY} me\n{KEY} you"]}]},
        "users_accounts.0.keys.0",
        "one SSH public key",
    ),
    (
        Users,
        {"users_accounts": [{"name": "a", "keys": [f'command="x" {KEY}']}]},
        "users_accounts.0.keys.0",
        "public key",
    ),
    *(
        (Users, {"users_accounts": [{"name": "a", "keys": [key]}]}, "users_accounts.0.keys.0", why)
        for key, why in {
            KEY[:-1]: "cut off",
            KEY[:-4]: "cut off or damaged",
            KEY[:-24]: "cut off or damaged",
            compressed(): "a compressed point",
            f"{KEY}AAAA": "cut off or damaged",
            KEY.replace("AAAAC3", "AAAAC 3"): "cut off, or no base64",
            KEY.replace("IGc1", "I*c1"): "cut off, or no base64",
            KEY.replace(
                "ssh-ed25519 ", "ssh-rsa "
            ): "ssh-rsa in front of a key of type 'ssh-ed25519'",
            f"ssh-ed25519 {SECURITY_KEY.split()[1]}": "in front of a key of type 'sk-ssh-ed25519",
            KEY.replace("ssh-ed25519 ", "ssh-ed25519-cert-v01@openssh.com "): "a certificate",
            KEY.replace("ssh-ed25519 ", "ssh-dss "): "a DSA key",
            KEY.replace("ssh-ed25519 ", "ssh-ed448 "): "neither ssh-ed25519",
            f"{KEY} {KEY}": "two keys in one line",
            f"{KEY} me {SECURITY_KEY}": "two keys in one line",
            f"{KEY}\n{SECURITY_KEY}": "2 lines",
            f"# mine\n{KEY}\n\n{KEY} other\n": "2 lines",
            f'from="10.0.0.0/8" {KEY}': "options are not taken",
            f"restrict,pty {KEY}": "options are not taken",
            f"no-pty {KEY}": "options are not taken",
            "---- BEGIN SSH2 PUBLIC KEY ----\nAAAA\n---- END": "ssh-keygen -i",
            "-----BEGIN RSA PRIVATE KEY-----\nAAAA": "a private key, which must stay where it is",
            rsa(1024): "an RSA key of 1024 bits",
        }.items()
    ),
    *(
        (Users, {"users_accounts": [{"name": name}]}, "users_accounts.0", "of the system's own")
        for name in (
            *("docker", "postgres", "caddy", "pgbouncer", "sshd", "_apt", "www-data", "nobody"),
            *("systemd-network", "messagebus", "adm", "sudo", "disk", "lxd", "staff", "wheel"),
        )
    ),
    *(
        (Users, {"users_accounts": [{"name": "a", "sudo": [one]}]}, "users_accounts.0", "comma")
        for one in ("/bin/ls, ALL", "/bin/ls,/bin/sh", "/bin/ls # ALL", "/bin/true,!/bin/x")
    ),
    # sshd
    (Sshd, {"sshd_password_authentication": "perhaps"}, "sshd_password_authentication", "boolean"),
    (Sshd, {"sshd_allow_users": "me"}, "sshd_allow_users", "must be a list"),
    (Sshd, {"sshd_allow_users": ["me", "a b"]}, "sshd_allow_users.1", "'a b' does not match"),
    (
        Sshd,
        {"sshd_allow_users": ["me\nPermitRootLogin yes"]},
        "sshd_allow_users.0",
        "does not match",
    ),
    # docker
    (Docker, {"docker_address_pool": "8.8.0.0/16"}, "docker_address_pool", "RFC 1918"),
    (Docker, {"docker_address_pool": "127.0.0.0/8"}, "docker_address_pool", "RFC 1918"),
    (Docker, {"docker_address_pool": "169.254.0.0/16"}, "docker_address_pool", "RFC 1918"),
    (Docker, {"docker_address_pool": "10.0.0.1/16"}, "docker_address_pool", "valid IPv4 network"),
    (Docker, {"docker_address_pool": "fd00::/16"}, "docker_address_pool", "valid IPv4 network"),
    (Docker, {"docker_subnet_size": 16}, "docker_subnet_size", "a number above 16"),
    (Docker, {"docker_subnet_size": 12}, "docker_subnet_size", "greater than or equal"),
    (Docker, {"docker_subnet_size": 31}, "docker_subnet_size", "less than or equal"),
    (Docker, {"docker_log_max_size": "20"}, "docker_log_max_size", "'20' does not match"),
    (Docker, {"docker_log_max_files": 0}, "docker_log_max_files", "greater than or equal"),
    (Docker, {"docker_networks": "apps"}, "docker_networks", "must be a list"),
    (Docker, {"docker_networks": ["a", "a"]}, "docker_networks", "'a' is there twice"),
    (Docker, {"docker_networks": ["host"]}, "docker_networks", "'host' is Docker's own"),
    (Docker, {"docker_networks": ["bridge"]}, "docker_networks", "'bridge' is Docker's own"),
    (Docker, {"docker_networks": ["-a"]}, "docker_networks.0", "'-a' does not match"),
    (Docker, {"docker_daemon": ["debug"]}, "docker_daemon", "valid dictionary"),
    # postgres
    (PgBouncer, {"pgbouncer_enabled": "maybe"}, "pgbouncer_enabled", "valid boolean"),
    (PgBouncer, {"pgbouncer_port": 443}, "pgbouncer_port", "greater than or equal to 1024"),
    (PgBouncer, {"pgbouncer_pool_size": 0}, "pgbouncer_pool_size", "greater than or equal to 1"),
    (PgBouncer, {"pgbouncer_max_clients": 60_000}, "pgbouncer_max_clients", "50000"),
    (
        PgBouncer,
        {"pgbouncer_poolsize": 9},
        "pgbouncer_poolsize",
        "did you mean pgbouncer_pool_size",
    ),
    (
        PgBouncer,
        {"pgbouncer_settings": {"listen_addr": "*"}},
        "pgbouncer_settings",
        "listen_addr is derived; it cannot be set here",
    ),
    (
        PgBouncer,
        {"pgbouncer_settings": {"auth_type": "any"}},
        "pgbouncer_settings",
        "auth_type is derived",
    ),
    (
        PgBouncer,
        {"pgbouncer_settings": {"admin_users": "api"}},
        "pgbouncer_settings",
        "admin_users is derived",
    ),
    (
        PgBouncer,
        {"pgbouncer_settings": {"query_wait_timeout": "5\nauth_type = any"}},
        "pgbouncer_settings.query_wait_timeout",
        "line break",
    ),
    (PgBouncer, {"pgbouncer_settings": {"%include /x": 1}}, "pgbouncer_settings", "does not match"),
    (PgBouncer, {"pgbouncer_settings": {"verbose": None}}, "pgbouncer_settings.verbose", "valid"),
    (App, {"app_pgbouncer": "perhaps"}, "app_pgbouncer", "valid boolean"),
    (Postgres, {"postgres_version": "new"}, "postgres_version", "valid integer"),
    (Postgres, {"postgres_version": 9}, "postgres_version", "greater than or equal to 15"),
    (Postgres, {"postgres_version": 99}, "postgres_version", "less than or equal to 30, not 99"),
    (Postgres, {"postgres_upgrade": "forth"}, "postgres_upgrade", "'', 'back' or 'clean'"),
    (Postgres, {"postgres_upgrade": None}, "postgres_upgrade", "'', 'back' or 'clean'"),
    (Postgres, {"postgres_port": 0}, "postgres_port", "greater than or equal to 1"),
    (Postgres, {"postgres_port": 65536}, "postgres_port", "less than or equal to 65535"),
    (
        Postgres,
        {"postgres_max_connections": 3},
        "postgres_max_connections",
        "greater than or equal",
    ),
    (Postgres, {"postgres_roles": "api"}, "postgres_roles", "must be a list"),
    (
        Postgres,
        {"postgres_roles": [{"name": "api", "superuser": True}]},
        "postgres_roles.0",
        "no such key",
    ),
    (Postgres, {"postgres_roles": [{"name": 'a"b'}]}, "postgres_roles.0.name", "does not match"),
    (Postgres, {"postgres_roles": [{"name": "a'b"}]}, "postgres_roles.0.name", "does not match"),
    (Postgres, {"postgres_roles": [{"name": "a b"}]}, "postgres_roles.0.name", "does not match"),
    (Postgres, {"postgres_roles": [{"name": "a\n"}]}, "postgres_roles.0.name", "does not match"),
    (Postgres, {"postgres_roles": [{"name": "a" * 64}]}, "postgres_roles.0.name", "does not match"),
    (Postgres, {"postgres_roles": [{"name": ""}]}, "postgres_roles.0.name", "does not match"),
    (Postgres, {"postgres_roles": [{"name": "API"}]}, "postgres_roles.0.name", "does not match"),
    (
        Postgres,
        {"postgres_roles": [{"name": "api", "connection_limit": -2}]},
        "postgres_roles.0.connection_limit",
        "greater than or equal to -1",
    ),
    (
        Postgres,
        {"postgres_roles": [{"name": "api"}, {"name": "api"}]},
        "postgres_roles",
        "'api' is there twice",
    ),
    (
        Postgres,
        {"postgres_databases": [{"name": "api", "owner": "api"}] * 2},
        "postgres_databases",
        "'api' is there twice",
    ),
    (
        Postgres,
        {"postgres_databases": [{"name": "api", "owner": "ap"}]},
        "postgres_databases",
        "not in postgres_roles (api)",
    ),
    (
        Postgres,
        {"postgres_roles": [], "postgres_databases": [{"name": "api", "owner": "api"}]},
        "postgres_databases",
        "not in postgres_roles (empty)",
    ),
    (Postgres, {"postgres_settings": {"port": 1}}, "postgres_settings", "port is derived"),
    (
        Postgres,
        {"postgres_settings": {"allow_alter_system": False}},
        "postgres_settings: ",
        "allow_alter_system cannot be set here: ",
    ),
    (
        Postgres,
        {"postgres_settings": {"hba_file": "x"}},
        "postgres_settings",
        "hba_file is derived",
    ),
    (
        Postgres,
        {"postgres_settings": {"work mem": 1}},
        "postgres_settings",
        "'work mem' does not match",
    ),
    (Postgres, {"postgres_settings": {"a\nb": 1}}, "postgres_settings", "does not match"),
    (Postgres, {"postgres_settings": {"work_mem": None}}, "postgres_settings.work_mem", "valid"),
    (
        Postgres,
        {"postgres_settings": {"work_mem": "1\nhba_file = '/tmp/x'"}},
        "postgres_settings.work_mem",
        "line break",
    ),
    # roles
    *(
        (Postgres, {"postgres_roles": [{"name": "api"}, role]}, key, right)
        for role, key, right in BAD_ROLES
    ),
    (
        Postgres,
        {
            "postgres_roles": [
                {"name": "api", "member_of": ["b"]},
                {"name": "b", "member_of": ["c"]},
                {"name": "c", "member_of": ["api"]},
            ]
        },
        "postgres_roles: ",
        "a role cannot be a member of itself: ",
    ),
    # databases
    *(
        (
            Postgres,
            {
                "postgres_roles": [{"name": "api"}, {"name": "ops"}],
                "postgres_databases": [{"name": "api", "owner": "api"}, {"owner": "api", **base}],
            },
            key,
            right,
        )
        for base, key, right in BAD_DATABASES
    ),
    # Whoever migrates is a member of the owner.
    (
        Postgres,
        {
            "postgres_roles": [{"name": "api", "member_of": ["ops"]}, {"name": "ops"}],
            "postgres_databases": [{"name": "a", "owner": "api", "access": {"ops": "migrate"}}],
        },
        "postgres_roles: ",
        "(member_of, or access to migrate)",
    ),
    (
        Postgres,
        {
            "postgres_roles": [{"name": "api"}, {"name": "ops"}],
            "postgres_databases": [
                {"name": "a", "owner": "api", "access": {"ops": "migrate"}},
                {"name": "b", "owner": "ops", "access": {"api": "migrate"}},
            ],
        },
        "postgres_roles: ",
        "a role cannot be a member of itself: ",
    ),
    *(
        (Postgres, {"postgres_settings": {name: 1}}, "postgres_settings", f"{name} is derived")
        for name in (
            *("listen_addresses", "max_connections", "password_encryption", "data_directory"),
            *("config_file", "ident_file", "external_pid_file", "db_user_namespace"),
            *("include", "include_dir", "include_if_exists"),
        )
    ),
    *(
        (
            Postgres,
            {"postgres_settings": {"unix_socket_directories": value}},
            "postgres_settings",
            "is no list of absolute paths",
        )
        for value in ("", "run/postgresql", "/run/postgresql,", "@postgres", ", /tmp", 7)
    ),
    (Postgres, {"postgres_packages": ["a b"]}, "postgres_packages.0", "'a b' does not match"),
    (Postgres, {"postgres_packages": ["--purge"]}, "postgres_packages.0", "does not match"),
    (Postgres, {"postgres_max_connections": 20_000}, "postgres_max_connections", "less than"),
    (Postgres, {"postgres_memory_percent": 95}, "postgres_memory_percent", "less than or equal"),
    *(
        (Postgres, {key: name}, key, f"{name!r} is no name of a role or database")
        for key in ("postgres_rotate", "postgres_drop", "postgres_drop_role")
        for name in ("Api", 'a"b', "a b", "../a", "-a", "api~", "a" * 64)
    ),
    # Not even by somebody who confirms it.
    *(
        (Postgres, {key: name}, key, f"{name!r} is reserved by PostgreSQL")
        for key in ("postgres_rotate", "postgres_drop", "postgres_drop_role")
        for name in ("postgres", "template1", "template0", "pg_monitor", "pg_x", "public", "user")
    ),
    *(
        (Postgres, {key: 7}, key, "valid string")
        for key in ("postgres_rotate", "postgres_drop", "postgres_drop_role", "postgres_confirm")
    ),
    # applications
    (App, {"app_role": "Api"}, "app_role", "'Api' is no name of a role"),
    (App, {"app_role": "a'b"}, "app_role", "is no name of a role"),
    (App, {"app_connections": 0}, "app_connections", "greater than or equal to 1"),
    (App, {"app_connections": 1001}, "app_connections", "less than or equal to 1000"),
    (App, {"app_connections": "5"}, "app_connections", "valid integer"),
    (App, {"app_more": [application(role="a b")]}, "app_more.0.role", "is no name of a role"),
    (App, {"app_name": "Api"}, "app_name", "'Api' does not match"),
    (App, {"app_name": "a_b"}, "app_name", "does not match"),
    # Docker refuses it as the name of an image.
    (App, {"app_name": "api-"}, "app_name", "'api-'"),
    (App, {"app_source": "examples"}, "app_source", "not a directory with a Dockerfile"),
    (App, {"app_source": "no/where"}, "app_source", "not a directory with a Dockerfile"),
    (App, {"app_source": "~nobody-here/api"}, "app_source", "not a directory with a Dockerfile"),
    (App, {"app_source": "a\nb"}, "app_source", "line break"),
    (App, {"app_database": "postgres"}, "app_database", "reserved"),
    (App, {"app_replicas": 0}, "app_replicas", "greater than or equal to 1"),
    (App, {"app_replicas": 65}, "app_replicas", "less than or equal to 64"),
    (App, {"app_replicas": 1.5}, "app_replicas", "valid integer"),
    (App, {"app_replicas": "many"}, "app_replicas", "valid integer, not 'many'"),
    (App, {"app_replicas": True}, "app_replicas", "valid integer"),
    (App, {"app_replicas": None}, "app_replicas", "valid integer"),
    (App, {"app_port": 80}, "app_port", "greater than or equal to 1024"),
    (App, {"app_port": 65536}, "app_port", "less than or equal to 65535"),
    (App, {"app_port": 65409}, "app_port", "api has 65409 to 65536, but 65535 is the last"),
    (App, {"app_more": [application(port=65500)]}, "app_port", "web has 65500 to 65627"),
    (App, {"app_container_port": 0}, "app_container_port", "greater than or equal to 1"),
    (App, {"app_health_path": "healthz"}, "app_health_path", "does not match"),
    (App, {"app_health_path": "/a b"}, "app_health_path", "does not match"),
    (App, {"app_health_path": "/a {"}, "app_health_path", "does not match"),
    (App, {"app_network": "a b"}, "app_network", "does not match"),
    (App, {"app_more": [{"name": "web"}]}, "app_more.0.domain", "Field required"),
    (App, {"app_more": [application(port=8127)]}, "app_port", "web begins at 8127, but api has"),
    (App, {"app_more": [application(port=7873)]}, "app_port", "set it to 8001 or more"),
    (
        App,
        {"app_more": [application(), application("b", port=9003)]},
        "app_port",
        "b begins at 9003, but web has 9000 to 9127; set it to 9128 or more",
    ),
    (App, {"app_more": [application("api")]}, "app_name", "'api' is there twice"),
    (
        App,
        {"app_more": [application(domain="api.terrafirma.test")]},
        "app_domain",
        "'api.terrafirma.test' is there twice",
    ),
    (
        App,
        {"app_more": [application(source="")]},
        "app_source",
        "web has neither source nor image",
    ),
    *((App, {f"app_{key}": value}, f"app_{key}{at}: ", right) for key, value, at, right in BAD_APP),
    *(
        (App, {"app_more": [application(**more)]}, f"app_more.0: {key}: web ", right)
        for more, key, right in BAD_KINDS
    ),
    *(
        (App, {f"app_{name}": value for name, value in more.items()}, f"app_{key}: api ", right)
        for more, key, right in BAD_KINDS
    ),
    *(
        (App, {f"app_{name}": value for name, value in (IMAGE | more).items()}, f"app_{key}: ", it)
        for more, key, it in (
            ({"registry_user": "ci"}, "registry_password", "belong together"),
            ({"registry_password": "env:X"}, "registry_password", "belong together"),
            ({"registry": "acme.com"}, "registry", "an image, whose name says it"),
            ({"registry": "registry"}, "registry", "no host of a registry, like registry.example"),
            ({"registry": "https://a.b"}, "registry", "no host of a registry, like registry.exam"),
            (
                {"registry_user": "ci", "registry_password": "born"},
                "registry_password",
                "the registry knows it already: env:… or command:…",
            ),
        )
    ),
    (
        App,
        {f"app_{key}": value for key, value in (PROJECT | {"stateful": ["redis"] * 2}).items()},
        "app_stateful: ",
        "'redis' is there twice",
    ),
    (
        App,
        {f"app_{key}": value for key, value in (PROJECT | {"shared": ["/srv/a"] * 2}).items()},
        "app_shared: ",
        "'/srv/a' is there twice",
    ),
    (
        App,
        {f"app_{key}": ["redis"] for key in ("stateful", "scratch")}
        | {f"app_{key}": value for key, value in PROJECT.items()},
        "app_scratch: ",
        "'redis' is in stateful too",
    ),
    # One name for two applications.
    (
        App,
        {"app_redirects": ["www.acme.com"], "app_more": [application("www")]},
        "app_domain: ",
        "'www.acme.com' is there twice",
    ),
    # sites
    (App, {"app_redirects": ["api.terrafirma.test"]}, "redirects", "is there twice"),
    (App, {"app_redirects": ["www.acme.com"] * 2}, "redirects", "'www.acme.com' is there twice"),
    (
        App,
        {"app_redirects": ["web.acme.com"], "app_more": [application()]},
        "app_domain",
        "'web.acme.com' is there twice",
    ),
    (App, {"app_redirects": ["WWW.acme.com"]}, "app_redirects.0", "in lower case"),
    (App, {"app_headers": {"X Mine": "1"}}, "app_headers.'X Mine'", "does not match"),
    (App, {"app_headers": {"-Server": "1"}}, "app_headers.-Server", "does not match"),
    (App, {"app_headers": {"X-Mine": "a\nb"}}, "app_headers.X-Mine", "line break"),
    (App, {"app_headers": {"X-Mine": "a`b"}}, "app_headers.X-Mine", "has a backtick"),
    (App, {"app_headers": {"X-Mine": "a{$HOME}"}}, "app_headers.X-Mine", "which Caddy would read"),
    (App, {"app_max_upload_mb": 0}, "app_max_upload_mb", "greater than or equal to 1"),
    (App, {"app_timeout_seconds": 0}, "app_timeout_seconds", "greater than or equal to 1"),
    (App, {"app_hsts_seconds": -1}, "app_hsts_seconds", "greater than or equal to 0"),
    (App, {"app_guards": [{"path": "/a"}]}, "app_guards.0", "it guards nothing"),
    (App, {"app_guards": [{"path": "a", "allow": ["::1"]}]}, "app_guards.0.path", "does not match"),
    (App, {"app_guards": [{"allow": ["acme.com"]}]}, "app_guards.0.allow.0", "no address"),
    (App, {"app_guards": [{"users": {"bob": "1234"}}]}, "app_guards.0.users.bob", "no bcrypt hash"),
    (App, {"app_guards": [{"users": {"a b": "1234"}}]}, "app_guards.0.users", "does not match"),
    (App, {"app_static": {"assets": "/srv"}}, "app_static.assets", "does not match"),
    (App, {"app_static": {"/a/*": "srv"}}, "app_static.'/a/*'", "is not an absolute path"),
    (App, {"app_snippet": "~nobody-here/x"}, "app_snippet", "cannot read"),
    (App, {"app_snippet": "no/where.caddy"}, "app_snippet", "cannot read 'no/where.caddy'"),
    # caddy
    (Caddy, {"caddy_email": "me"}, "caddy_email", "'me' does not match"),
    (Caddy, {"caddy_email": "me@acme.com {"}, "caddy_email", "does not match"),
    (Caddy, {"caddy_acme_ca": "http://ca.acme.com"}, "caddy_acme_ca", "does not match"),
    (Caddy, {"caddy_acme_ca_root": "LICENSE"}, "caddy_acme_ca_root", "caddy_acme_ca is empty"),
    (
        Caddy,
        {"caddy_acme_ca": "https://ca.acme.com/d", "caddy_acme_ca_root": "no/where.pem"},
        "caddy_acme_ca_root",
        "cannot read 'no/where.pem'",
    ),
    (Caddy, {"caddy_snippet": "tests"}, "caddy_snippet", "cannot read 'tests'"),
    (Caddy, {"caddy_snippet": "~nobody-here/x"}, "caddy_snippet", "cannot read"),
    (Caddy, {"caddy_log_size_mb": 0}, "caddy_log_size_mb", "greater than or equal to 1"),
    (Caddy, {"caddy_log_files": 0}, "caddy_log_files", "greater than or equal to 1"),
    # borg
    (Borg, {"borg_repository": "/srv/backup"}, "borg_repository", "does not match"),
    (Borg, {"borg_repository": "ssh://b@host"}, "borg_repository", "does not match"),
    (Borg, {"borg_repository": "ssh://b@host/./a b"}, "borg_repository", "does not match"),
    *(
        (Borg, {"borg_repository": f"ssh://b@host/{one}"}, "borg_repository", "without '..'")
        for one in ("..", "./a/../b", "../b", "a/..", "~/../b")
    ),
    (Borg, {"borg_repository": "ssh://b@host/./a"}, "borg_known_hosts", "ssh-keyscan"),
    *(
        (Borg, {"borg_repository": f"ssh://b@{one}/./a"}, "borg_repository", "the server itself")
        for one in (
            *("localhost", "LOCALHOST.", "localhost:2222", "localhost.localdomain", "127.0.0.1"),
            *("127.1", "127.0.1.1:22", "0.0.0.0", "0", "[::1]", "[::1]:22", "[::ffff:127.0.0.1]"),
            *("[::]", "web.localhost"),
        )
    ),
    *(
        (Borg, {"borg_repository": one}, "borg_repository", "tasks/borg_key.py shows")
        for one in (
            *("ssh://b:s3cret@host/./a", "ssh://b:s3cret@host:23/./a", "ssh://b:@host/./a"),
            *("ssh://b:s3/cret@host/./a", "ssh://b:s3@cret@host/./a", "ssh://:s3cret@host/./a"),
            *("sftp://b:s3cret@host/a", "https://b:s3cret@host/a"),
        )
    ),
    *(
        (Borg, {"borg_remote_path": one}, "borg_remote_path", "does not match")
        for one in ("borg 1.4", "-oProxyCommand=x", "borg;id", "$(id)", "a\nb")
    ),
    *(
        (Borg, {f"borg_repository_{key}": one}, f"borg_repository_{key}", "does not match")
        for key in ("id", "replaces")
        for one in ("new", "4ed3", "g" * 64, "A" * 64, "a" * 65)
    ),
    (Borg, {"borg_exclude_databases": "api"}, "borg_exclude_databases", "must be a list"),
    (Borg, {"borg_known_hosts": "host ssh-ed25519 AAAA"}, "borg_known_hosts", "must be a list"),
    (Borg, {"borg_known_hosts": ["a\nb"]}, "borg_known_hosts.0", "line break"),
    *(
        (Borg, {"borg_known_hosts": [one]}, "borg_known_hosts.0", said)
        for one, said in (
            ("host", "no key"),
            (KEY, "neither ssh-ed25519"),
            ("host ssh-ed25519 AAAA", "cut off"),
            (f"host {KEY[:-4]}", "cut off"),
            (f"# host:22 {KEY}", "something in front of the key"),
            (f"@revoked host {KEY}", "something in front of the key"),
            (f"host ssh-rsa {KEY.split()[1]}", "in front of a key of type 'ssh-ed25519'"),
        )
    ),
    (Borg, {"borg_directories": ["etc"]}, "borg_directories.0", "absolute path"),
    (Borg, {"borg_directories": []}, "borg_directories", ""),
    (Borg, {"borg_exclude": ["a\tb"]}, "borg_exclude.0", "control character"),
    (Borg, {"borg_keep_daily": 0}, "borg_keep_daily", "greater than or equal to 1"),
    (Borg, {"borg_keep_weekly": -1}, "borg_keep_weekly", "greater than or equal to 0"),
    (Borg, {"borg_schedule": "daily\nUnit=evil.service"}, "borg_schedule", "line break"),
    (Borg, {"borg_schedule": ""}, "borg_schedule", ""),
]


@pytest.mark.parametrize(
    ("settings", "data", "key", "right"),
    [pytest.param(*one, id=f"{one[2]}-{number}") for number, one in enumerate(BAD)],
)
def test_bad_data_names_the_host_the_key_and_what_would_be_right(
    settings: type[Settings], data: dict[str, Any], key: str, right: str
) -> None:
    message = refusal(settings, **data)
    assert key in message
    assert right in message


@pytest.mark.parametrize(
    "name",
    [
        *("postgres", "public", "none", "template0", "template1", "pg_monitor", "pg_x"),
        *("all", "sameuser", "samerole", "replication", "user", "current_user", "session_user"),
        # Key words, each of which somebody would type without quotes.
        *("order", "select", "table", "grant", "group", "end", "default", "analyze", "limit"),
        *("system_user", "lateral", "window", "offset", "references", "placing", "primary"),
    ],
)
def test_names_of_postgresqls_own_are_refused(name: str) -> None:
    """As a role, as a database, and where an application names one."""
    assert name in refusal(Postgres, postgres_roles=[{"name": name}], postgres_databases=[])
    databases = [{"name": name, "owner": "api"}]
    assert "reserved" in refusal(Postgres, postgres_databases=databases)
    assert "app_database: " in refusal(App, app_database=name)


@pytest.mark.parametrize(
    "domain",
    [
        *("API.acme.com", "a_b.acme.com", "-a.acme.com", "a-.acme.com", "a..acme.com", ".acme.com"),
        *("acme.com.", "", "a b.acme.com", "*.acme.com", "https://acme.com", "acme.com/api"),
        *("acme.com:443", "acme.com\n", "acme.com {", "ümlaut.de", f"{'a' * 64}.com", "a." * 127),
    ],
)
def test_what_is_no_domain_is_refused(domain: str) -> None:
    assert "app_domain: " in refusal(App, app_domain=domain)
    assert "app_more.0.domain: " in refusal(App, app_more=[application(domain=domain)])


def test_a_password_that_stands_in_the_data_is_not_shown() -> None:
    message = refusal(Postgres, postgres_roles=[{"name": "api", "password": "hunter2-in-data"}])
    assert "postgres_roles.0.password: what is there does not match ^$|^env:" in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    "data",
    [
        {"app_secrets": {"token": "s3cret-s3cret"}},
        {"app_registry_user": "ci", "app_registry_password": "s3cret-s3cret"},
        {"app_guards": [{"users": {"me": "s3cret-s3cret"}}]},
    ],
)
def test_a_secret_in_the_place_of_its_source_is_not_shown(data: dict[str, Any]) -> None:
    assert "s3cret" not in refusal(App, **data)


def test_a_private_key_is_not_shown() -> None:
    key = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmU\n-----END"
    message = refusal(Users, users_accounts=[{"name": "a", "keys": [key]}])
    assert "b3BlbnNzaC1rZXktdjEAAAAABG5vbmU" not in message


def test_a_private_key_file_is_refused_and_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "id_ed25519"
    path.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmU\n")
    message = refusal(Users, users_accounts=[{"name": "a", "keys": [str(path)]}])
    assert "b3BlbnNzaC1rZXktdjEAAAAABG5vbmU" not in message


# --- good data ------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", ["acme.com", "api.acme.io", "xn--bcher-kva.de", "contest.de"])
def test_a_public_name_gets_a_public_certificate(domain: str) -> None:
    assert of(App, app_domain=domain).domain == domain
    assert is_public(domain)


@pytest.mark.parametrize(
    "domain",
    [
        *("localhost", "api.localhost", "api.terrafirma.test", "db.internal", "nas.local"),
        *("nas.home.arpa", "www.example.com", "example.org", "a.example", "a.invalid"),
        *("intranet", "10.0.0.1", "203.0.113.10"),
    ],
)
def test_a_private_name_gets_none(domain: str) -> None:
    assert of(App, app_domain=domain).domain == domain
    assert not is_public(domain)


@pytest.mark.parametrize("domain", ["mytest.com", "test.de", "notexample.com", "local.acme.com"])
def test_a_name_that_only_looks_private_is_public(domain: str) -> None:
    assert is_public(domain)


def test_an_account_has_its_home_below_home() -> None:
    accounts = [{"name": "a"}, {"name": "b", "home": "/srv/b"}]
    first, second = of(Users, users_accounts=accounts).accounts
    assert (first.directory, second.directory) == ("/home/a", "/srv/b")
    assert (first.shell, first.keys, first.groups, first.sudo) == ("/bin/bash", (), (), ())


def test_an_empty_home_is_the_usual_one() -> None:
    (account,) = of(Users, users_accounts=[{"name": "a", "home": ""}]).accounts
    assert account.directory == "/home/a"


@pytest.mark.parametrize("key", [KEY, f"{KEY} me@laptop of mine", SECURITY_KEY, rsa(2048)])
def test_a_key_may_be_written_or_named(key: str, tmp_path: Path) -> None:
    path = tmp_path / "id.pub"
    path.write_text(f"{key}\n")
    (account,) = of(Users, users_accounts=[{"name": "a", "keys": [key, str(path)]}]).accounts
    assert account.keys == (key, key)


@pytest.mark.parametrize(
    "text", [f"  {KEY} me  ", f"{KEY}\tme\r\n", f"\n# of mine\n\n{KEY} me\n\n", f"{KEY}   me"]
)
def test_a_key_file_may_have_space_around_its_key(text: str, tmp_path: Path) -> None:
    (tmp_path / "ssh-keys").mkdir()
    path = tmp_path / "ssh-keys" / "ssh-ed25519.pub"
    path.write_text(text)
    (account,) = of(Users, users_accounts=[{"name": "a", "keys": [str(path)]}]).accounts
    assert account.keys == (f"{KEY} me",)


def test_a_key_is_cut_off_wherever_it_ends() -> None:
    kind, encoded = KEY.split()
    for end in range(1, len(encoded)):
        refusal(Users, users_accounts=[{"name": "a", "keys": [f"{kind} {encoded[:end]}"]}])


def test_a_key_may_be_below_the_home_of_whoever_deploys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "id.pub").write_text(KEY)
    (account,) = of(Users, users_accounts=[{"name": "a", "keys": ["~/id.pub"]}]).accounts
    assert account.keys == (KEY,)


def test_sudo_is_for_all_or_for_single_commands() -> None:
    sudo = ["ALL", "/usr/bin/systemctl restart caddy.service", "/usr/bin/journalctl"]
    (account,) = of(Users, users_accounts=[{"name": "a", "sudo": sudo}]).accounts
    assert list(account.sudo) == sudo


def test_settings_of_postgresql_keep_their_types() -> None:
    settings = {
        "jit": False,
        "work_mem": "64MB",
        "effective_io_concurrency": 200,
        "seq_page_cost": 1.5,
    }
    read = of(Postgres, postgres_settings=settings).settings
    assert read == settings
    assert [type(value) for value in read.values()] == [bool, str, int, float]


def test_one_role_may_own_two_databases() -> None:
    databases = [{"name": "api", "owner": "api"}, {"name": "jobs", "owner": "api"}]
    assert len(of(Postgres, postgres_databases=databases).databases) == 2


# --- PostgreSQL: who comes in ---------------------------------------------------------------------


def cluster(roles: list[dict[str, Any]], *databases: dict[str, Any], **more: Any) -> Postgres:
    return of(Postgres, postgres_roles=roles, postgres_databases=list(databases), **more)


@pytest.mark.parametrize("value", ["/run/postgresql", "/run/postgresql, /tmp", "/a,/b"])
def test_the_superuser_may_come_in_through_other_sockets(value: str) -> None:
    settings = cluster([{"name": "api"}], postgres_settings={"unix_socket_directories": value})
    assert settings.settings == {"unix_socket_directories": value}


def test_whoever_has_rights_in_a_database_comes_in_and_nobody_else() -> None:
    settings = cluster(
        [{"name": name} for name in ("api", "jobs", "reader", "writer", "mig", "stranger")],
        {
            "name": "shop",
            "owner": "api",
            "access": {"reader": "read", "writer": "write", "mig": "migrate"},
        },
        {"name": "queue", "owner": "jobs"},
    )
    assert settings.visitors == (
        *(("shop", name) for name in ("api", "reader", "writer", "mig")),
        ("queue", "jobs"),
    )


def test_members_of_members_come_in() -> None:
    """But no group itself, and no role because of one of PostgreSQL's own."""
    settings = cluster(
        [
            {"name": "owners", "login": False},
            {"name": "readers", "login": False},
            {"name": "analysts", "login": False, "member_of": ["readers"]},
            {"name": "ann", "member_of": ["analysts"]},
            {"name": "ops", "member_of": ["owners"]},
            {"name": "watcher", "member_of": ["pg_monitor"]},
            {"name": "ben", "member_of": ["ann"]},
        ],
        {"name": "shop", "owner": "owners", "access": {"readers": "read"}},
        {"name": "empty", "owner": "owners"},
    )
    assert settings.visitors == (
        *(("shop", name) for name in ("ann", "ops", "ben")),
        ("empty", "ops"),
    )


def test_pooled_roles_are_those_that_come_in_somewhere_once_each() -> None:
    settings = cluster(
        [
            *({"name": name} for name in ("web", "api", "stranger")),
            {"name": "team", "login": False},
            {"name": "ann", "member_of": ["team"]},
        ],
        {"name": "shop", "owner": "api", "access": {"web": "read", "team": "read"}},
        {"name": "queue", "owner": "api", "access": {"web": "write"}},
    )
    assert settings.pooled_roles == ["ann", "api", "web"]
    assert cluster([{"name": "api"}]).pooled_roles == []


def test_a_member_of_an_owner_comes_into_all_its_databases() -> None:
    """It is what the data say: what the owner may do, it may do everywhere."""
    settings = cluster(
        [{"name": "api", "login": False}, {"name": "ops", "member_of": ["api"]}],
        {"name": "shop", "owner": "api"},
        {"name": "queue", "owner": "api"},
    )
    assert settings.visitors == (("shop", "ops"), ("queue", "ops"))


MIGRATES = {"name": "shop", "owner": "api", "access": {"mig": "migrate", "web": "write"}}


@pytest.mark.parametrize("access", [{}, {"mig": "read"}, {"web": "migrate"}])
@pytest.mark.parametrize("turned", [False, True])
def test_whoever_migrates_one_database_of_an_owner_migrates_all(
    access: dict[str, str], turned: bool
) -> None:
    """Or would, without a word in the data."""
    databases = [MIGRATES, {"name": "queue", "owner": "api", "access": access}]
    roles = [{"name": name} for name in ("api", "mig", "web")]
    message = refusal(
        Postgres, postgres_roles=roles, postgres_databases=databases[:: -1 if turned else 1]
    )
    one, other, role = (
        ("queue", "shop", "web") if turned and "web" in access else ("shop", "queue", "mig")
    )
    assert message == (
        f"db1: postgres_databases: {role!r} migrates {one} as 'api', who owns {other} as well: "
        f"give {other} another owner, or {role!r} migrate there, too"
    )


def test_databases_of_other_owners_are_nothing_to_whoever_migrates() -> None:
    settings = cluster(
        [{"name": name} for name in ("api", "jobs", "mig", "web")],
        MIGRATES,
        {"name": "more", "owner": "api", "access": {"mig": "migrate"}},
        {"name": "queue", "owner": "jobs", "access": {"mig": "read"}},
    )
    assert settings.groups(settings.roles[2]) == ("api",)


def test_groups_are_those_of_the_role_and_the_owners_for_whom_it_migrates() -> None:
    settings = cluster(
        [
            {"name": "api"},
            {"name": "jobs"},
            {"name": "mig", "member_of": ["team", "pg_monitor"]},
            {"name": "team", "login": False},
        ],
        {"name": "shop", "owner": "jobs", "access": {"mig": "migrate", "team": "read"}},
        {"name": "queue", "owner": "api", "access": {"mig": "migrate"}},
        {"name": "more", "owner": "api", "access": {"mig": "migrate"}},
    )
    groups = {role.name: settings.groups(role) for role in settings.roles}
    assert groups == {
        "api": (),
        "jobs": (),
        "mig": ("api", "jobs", "pg_monitor", "team"),
        "team": (),
    }


def test_a_chain_of_members_is_no_cycle() -> None:
    settings = cluster(
        [
            {"name": "a", "member_of": ["b", "c"]},
            {"name": "b", "member_of": ["c"]},
            {"name": "c"},
        ],
        {"name": "shop", "owner": "c", "access": {"a": "migrate", "b": "migrate"}},
    )
    assert settings.visitors == (("shop", "a"), ("shop", "b"), ("shop", "c"))


def test_a_cycle_is_shown() -> None:
    roles = [{"name": one, "member_of": [of]} for one, of in ("ab", "bc", "ca")]
    message = refusal(Postgres, postgres_roles=roles, postgres_databases=[])
    path = re.search(r"itself: (.*) \(", message)
    assert path
    chain = path[1].split(" in ")
    assert len(chain) == 4
    assert set(pairwise(chain)) == {("a", "b"), ("b", "c"), ("c", "a")}


def test_an_application_connects_as_the_owner_or_as_its_role() -> None:
    settings = cluster([{"name": "own"}, {"name": "web"}], {"name": "api", "owner": "own"})
    app = of(App)
    assert settings.role_of(app) == "own"
    assert settings.role_of(of(App, app_role="web")) == "web"
    assert settings.role_of(of(App, app_database="shop")) == ""
    pooler = of(PgBouncer, pgbouncer_enabled=True)
    url = "postgresql://{}:*@host.docker.internal:{}/api"
    assert settings.url(app, "own~", pooler) == url.format("own~", 5432)
    assert settings.url(of(App, app_pgbouncer=True), "web", pooler) == url.format("web", 6432)


def test_extensions_of_all_databases_once_each() -> None:
    settings = cluster(
        [{"name": "a"}],
        {"name": "x", "owner": "a", "extensions": ["vector", "hstore"]},
        {"name": "y", "owner": "a", "extensions": ["postgis", "postgis_raster", "hstore"]},
    )
    assert settings.extensions == ("hstore", "postgis", "postgis_raster", "vector")
    assert packages_of(settings.extensions, 17) == [
        "postgresql-17-pgvector",
        "postgresql-17-postgis-3",
    ]


def test_an_unknown_extension_may_come_from_a_package_that_is_named() -> None:
    settings = cluster(
        [{"name": "a"}],
        {"name": "x", "owner": "a", "extensions": ["zzzzzz"]},
        postgres_packages=["postgresql-17-zzzzzz"],
    )
    assert settings.extensions == ("zzzzzz",)


def test_what_every_database_has_may_be_declared() -> None:
    settings = cluster([{"name": "a"}], {"name": "x", "owner": "a", "extensions": ["plpgsql"]})
    assert settings.extensions == ("plpgsql",)
    assert packages_of(settings.extensions, 17) == []


@pytest.mark.parametrize("locale", ["C", "C.UTF-8", "de", "de-DE", "zh-Hant-TW", "und"])
def test_locales(locale: str) -> None:
    settings = cluster([{"name": "a"}], {"name": "x", "owner": "a", "locale": locale})
    assert settings.databases[0].locale == locale


def test_a_role_may_have_as_long_a_name_as_leaves_room_for_a_second_login() -> None:
    name = "a" * 62
    database = {"name": "b" * 63, "owner": name}
    settings = cluster([{"name": name}], database, postgres_rotate=name, postgres_drop="c" * 63)
    assert settings.visitors == (("b" * 63, name),)


def test_roles_may_have_a_name_that_only_looks_reserved() -> None:
    roles = [{"name": name} for name in ("orders", "users", "public_api", "_all", "pgx")]
    assert len(cluster(roles).roles) == 5


# --- passwords that are brought along -------------------------------------------------------------

SECRET = "s3cret.Chosen_elsewhere~-1"


def given(**environment: str) -> dict[str, str]:
    settings = cluster(
        [
            {"name": "api"},
            {"name": "ops", "password": "env:OPS_PASSWORD"},
            {"name": "team", "login": False},
        ]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OPS_PASSWORD", raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        return passwords(host(), settings)


def test_a_password_comes_from_the_environment() -> None:
    assert given(OPS_PASSWORD=SECRET, API_PASSWORD="x" * 20) == {"ops": SECRET}
    assert given(OPS_PASSWORD="a" * 16) == {"ops": "a" * 16}
    assert given(OPS_PASSWORD="a" * 200) == {"ops": "a" * 200}


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        (None, "is not set"),
        ("", "is not set"),
        ("sh0rt-password!"[:14], "is too short"),
        ("a" * 15, "too short"),
        ("a" * 201, "quotes"),
        *(
            (f"s3cret-s3cret{odd}s3cret", "would need quotes in a URL")
            for odd in ("@", ":", "/", "%", "'", '"', " ", "\n", "$", "ü", "\\")
        ),
        (f"{SECRET}\n", "quotes"),
    ],
)
def test_a_password_that_would_not_do_is_not_repeated(value: str | None, wrong: str) -> None:
    with pytest.raises(DeployError) as error:
        given(**({} if value is None else {"OPS_PASSWORD": value}))
    message = str(error.value)
    assert message.startswith("db1: postgres_roles: ops: OPS_PASSWORD ")
    assert wrong in message
    assert "16 to 200" in message
    assert "\n" not in message
    for part in filter(None, (value, (value or "").strip(), "s3cret")):
        assert part not in message


# --- connections ----------------------------------------------------------------------------------


def overdraft(**data: Any) -> str:
    """What refuses a host with that data."""
    with pytest.raises(DeployError) as error:
        refuse_overdraft(host(**DEFAULTS | data))
    message = str(error.value)
    assert message.startswith("db1: ")
    assert "\n" not in message
    return message


WORKERS = application("web", replicas=2, connections=20)


def test_connections_that_are_enough() -> None:
    refuse_overdraft(host(**DEFAULTS))
    # 4 x 5 x 2 + 10 and 2 x 20 x 2 more.
    refuse_overdraft(host(**DEFAULTS | {"postgres_max_connections": 50}))
    more = {"postgres_max_connections": 130, "app_more": [WORKERS]}
    refuse_overdraft(host(**DEFAULTS | more))
    refuse_overdraft(host(**DEFAULTS | {"app_source": "", "postgres_max_connections": 20}))


def test_connections_that_are_too_few_are_counted() -> None:
    message = overdraft(postgres_max_connections=129, app_more=[WORKERS])
    assert "postgres_max_connections: 129 is too few" in message
    assert "api 4 replicas x 5 x 2 releases = 40" in message
    assert "web 2 replicas x 20 x 2 releases = 80" in message
    assert "reserved 10; set it to 130 or more" in message
    assert "app_connections" in message
    assert "set it to 50 or more" in overdraft(postgres_max_connections=49)


def limited(role: int = -1, database: int = -1) -> dict[str, Any]:
    return {
        "postgres_roles": [{"name": "api", "connection_limit": role}, {"name": "x"}],
        "postgres_databases": [{"name": "api", "owner": "api", "connection_limit": database}],
    }


def test_limits_that_are_enough() -> None:
    refuse_overdraft(host(**DEFAULTS | limited(40, 40)))
    # Nobody's application connects as it.
    refuse_overdraft(host(**DEFAULTS | limited(3, -1) | {"app_role": "x"}))


@pytest.mark.parametrize("limit", [0, 1, 39])
def test_a_limit_that_is_too_low_for_the_applications(limit: int) -> None:
    message = overdraft(**limited(role=limit))
    assert f"postgres_roles: api: connection_limit {limit} is too low for api" in message
    assert "set it to 40 or more" in message
    message = overdraft(**limited(database=limit))
    assert f"postgres_databases: api: connection_limit {limit} is too low for api" in message
    assert "set it to 40 or more" in message


def test_applications_share_the_limit_of_their_database() -> None:
    message = overdraft(**limited(database=99), postgres_max_connections=200, app_more=[WORKERS])
    assert "is too low for api, web: set it to 120 or more" in message


# --- memory and processors ------------------------------------------------------------------------


def overload(memory_mb: int | None, cores: int = 4, **data: Any) -> str:
    """What refuses a host of that size with that data; empty: nothing."""
    known = None if memory_mb is None else {"memory": memory_mb * 1024, "cores": cores, "ssd": True}
    one = host(**DEFAULTS | data)
    one.get_fact = lambda fact, **arguments: known
    try:
        refuse_overload(one)
    except DeployError as error:
        message = str(error)
        assert message.startswith("db1: ")
        assert "\n" not in message
        return message
    return ""


def test_memory_that_is_enough() -> None:
    # 4 x 256 x 2 and 75 %.
    assert not overload(8192, app_memory_mb=256)
    # What says nothing counts as nothing.
    assert not overload(512)
    assert not overload(8192, app_memory_mb=256, app_more=[application("web", replicas=64)])
    assert not overload(8192, app_memory_mb=256, app_more=[application("web")], app_source="")
    # A host that does not say what it has.
    assert not overload(None, app_memory_mb=99_999, app_cpus=99)


def test_a_host_is_asked_only_if_there_is_a_limit() -> None:
    with pytest.raises(AttributeError):
        refuse_overload(host(**DEFAULTS | {"app_memory_mb": 1}))
    refuse_overload(host(**DEFAULTS))


def test_memory_that_is_too_little_is_counted() -> None:
    web = application("web", replicas=2, memory_mb=100)
    message = overload(8192, app_memory_mb=257, app_more=[web])
    assert message == (
        "db1: app_memory_mb: 8192 MB of memory are too few: api 4 replicas x 257 MB x 2 releases = "
        "2056 MB, web 2 replicas x 100 MB x 2 releases = 400 MB, PostgreSQL 75 % = 6144 MB; lower "
        "app_memory_mb or app_replicas until the applications take 2048 MB, or "
        "postgres_memory_percent to 70"
    )
    assert not overload(8192, app_memory_mb=257, app_more=[web], postgres_memory_percent=70)


def test_what_would_not_help_is_not_advised() -> None:
    assert "postgres_memory_percent to" not in overload(1024, app_memory_mb=512)


def test_processors() -> None:
    assert not overload(8192, cores=2, app_cpus=2)
    message = overload(8192, cores=2, app_cpus=2.5)
    assert "app_cpus: a container of api may take 2.5, but the host has 2; set it to 2" in message
    web = application("web", cpus=3)
    assert "a container of web may take 3, but" in overload(8192, cores=2, app_more=[web])


POOLS: dict[str, Any] = {
    "pgbouncer_enabled": True,
    "postgres_roles": [{"name": "api"}, {"name": "web", "connection_limit": 7}, {"name": "x"}],
    "postgres_databases": [
        {"name": "api", "owner": "api", "access": {"web": "read"}},
        {"name": "shop", "owner": "api"},
    ],
}


@pytest.mark.parametrize(
    ("data", "sizes"),
    [
        # One for each role that comes into each database, no larger than the role's limit.
        ({}, [20, 7, 20]),
        ({"pgbouncer_pool_size": 5}, [5, 5, 5]),
        ({"postgres_databases": []}, []),
        ({"pgbouncer_enabled": False}, []),
    ],
)
def test_pools_are_as_large_as_they_may_become(data: dict[str, Any], sizes: list[int]) -> None:
    data = POOLS | data
    found = pool_sizes(of(PgBouncer, **data), of(Postgres, **data))
    assert list(found.values()) == sizes


def test_a_role_that_may_not_connect_has_a_pool_of_no_limit_of_its_own() -> None:
    """0 would be none to PgBouncer."""
    data = POOLS | {"postgres_roles": [{"name": "api", "connection_limit": 0}, {"name": "web"}]}
    assert role_limits(of(Postgres, **data)) == {}
    assert role_limits(of(Postgres, **POOLS)) == {"web": 7}


def test_whether_the_pools_fit_is_not_the_poolers_question() -> None:
    """It is that of the budget, with all the others."""
    data = POOLS | {"pgbouncer_pool_size": 1000}
    assert pooler(host(**DEFAULTS | data)).pool_size == 1000
    overdraft(**data)


def test_pools_count_beside_the_applications_that_do_not_use_them() -> None:
    # 4 x 5 x 2, pools of 20, 7 and 20, those of `api` twice, and 10 more.
    refuse_overdraft(host(**DEFAULTS | POOLS | {"postgres_max_connections": 137}))
    message = overdraft(**POOLS, postgres_max_connections=136)
    assert "postgres_max_connections: 136 is too few: api 4 replicas x 5 x 2" in message
    assert (
        "releases = 40, 3 pools of PgBouncer = 47, 40 while a password is renewed, reserved 10; "
        "set it to 137 or more"
    ) in message
    assert message.endswith(" or lower app_connections and pgbouncer_pool_size")
    # One that nobody runs has none.
    off = POOLS | {"pgbouncer_enabled": False}
    refuse_overdraft(host(**DEFAULTS | off | {"postgres_max_connections": 50}))
    message = overdraft(**off, postgres_max_connections=49)
    assert "PgBouncer" not in message
    assert message.endswith(" or lower app_connections")


def test_an_application_that_uses_the_pools_opens_no_connection_itself() -> None:
    pooled = POOLS | {"app_pgbouncer": True}
    refuse_overdraft(host(**DEFAULTS | pooled | {"postgres_max_connections": 97}))
    message = overdraft(**pooled, postgres_max_connections=96)
    assert "96 is too few: 3 pools of PgBouncer = 47, 40 while a" in message
    assert "reserved 10; set it to 97" in message
    assert message.endswith(" or lower pgbouncer_pool_size")
    # Of two applications one.
    both = pooled | {"app_more": [WORKERS]}
    refuse_overdraft(host(**DEFAULTS | both | {"postgres_max_connections": 177}))
    message = overdraft(**both, postgres_max_connections=176)
    assert "too few: web 2 replicas x 20 x 2 releases = 80, 3 pools" in message
    assert "api" not in message


def test_limits_are_not_for_an_application_that_uses_the_pools() -> None:
    """Its clients wait for one another there; only who comes beside the pool needs room."""
    refuse_overdraft(
        host(**DEFAULTS | limited(role=3) | {"pgbouncer_enabled": True, "app_pgbouncer": True})
    )
    message = overdraft(
        **limited(role=79),
        pgbouncer_enabled=True,
        app_pgbouncer=True,
        app_more=[WORKERS],
        postgres_max_connections=200,
    )
    # 2 x 20 x 2, and the pool of 20.
    assert "too low for api, web: set it to 100 or more" in message


# --- applications ---------------------------------------------------------------------------------


def test_the_first_application_comes_first() -> None:
    settings = of(App, app_more=[application(), application("jobs", port=9128, replicas=1)])
    assert [one.name for one in settings.applications] == ["api", "web", "jobs"]
    assert settings.applications[1].directory == "/opt/terrafirma/web"


def test_an_application_has_two_slots_of_ports() -> None:
    """One for the release that serves, one for the release that takes over."""
    settings = of(App, app_more=[application(port=8128, replicas=1)])
    assert [one.ports for one in settings.applications] == [
        [*range(8000, 8008), *range(8064, 8072)],
        [*range(8128, 8136), *range(8192, 8200)],
    ]
    assert [one.reserved_ports for one in settings.applications] == [
        range(8000, 8128),
        range(8128, 8256),
    ]
    most = of(App, app_port=65408, app_replicas=64).applications[0]
    assert max(most.ports) == most.reserved_ports[-1] == 65535


def test_without_source_and_image_there_is_no_application() -> None:
    assert of(App, app_source="").applications == ()
    settings = of(App, app_source="", app_more=[application(port=8000)])
    assert [one.name for one in settings.applications] == ["web"]
    assert [one.name for one in of(App, app_source="", app_image="api:1").applications] == ["api"]


@pytest.mark.parametrize(
    "image",
    [
        *("api", "api:1.2", "team/api:v1.2-rc_3", "localhost/api", "localhost:5000/team/api"),
        *("registry.acme.com:5000/a/b/c:latest", f"ghcr.io/acme/api@sha256:{'0' * 64}"),
        f"ghcr.io/acme/api:1.2@sha256:{'a1' * 32}",
    ],
)
def test_images(image: str) -> None:
    assert of(App, app_source="", app_image=image).image == image


@pytest.mark.parametrize(
    "source", ["born", "env:API_TOKEN", "env:_x", "command:pass show api", "command:op read 'a b'"]
)
def test_sources_of_secrets(source: str) -> None:
    assert of(App, app_secrets={"token": source}).secrets == {"token": source}


def test_a_project_of_its_own_says_what_it_runs() -> None:
    project = of(
        App, app_source="examples/compose", app_compose=["compose.yaml"], app_service="web",
        app_stateful=["redis"], app_migrate=["migrate"], app_user="", app_database="",
    )  # fmt: skip
    assert project.applications == (project,)
    assert project.compose == ("compose.yaml",)


def test_guards() -> None:
    (guard,) = of(App, app_guards=[{"allow": ["10.0.0.0/8", "2001:db8::1"]}]).guards
    assert (guard.path, guard.allow) == ("/*", ("10.0.0.0/8", "2001:db8::1/128"))
    (guard,) = of(App, app_guards=[{"path": "/a/*", "users": {"me@x": BCRYPT}}]).guards
    assert guard.users == {"me@x": BCRYPT}


def test_a_source_is_found_from_the_project_or_from_the_root(tmp_path: Path) -> None:
    assert of(App).source_directory == ROOT / "examples" / "api"
    (tmp_path / "Dockerfile").touch()
    assert of(App, app_source=str(tmp_path)).source_directory == tmp_path


@pytest.mark.parametrize(
    "repository",
    [
        "",
        "ssh://b@host/./a",
        "ssh://u1@u1.your-storagebox.de:23/./backups/web",
        "ssh://b@host:22/srv/a",
        # An address, a path with what looks like another, and names like those of this machine.
        "ssh://b@[2001:db8::1]:23/./a",
        "ssh://b@host:22/srv/c:d@127.0.0.1/a",
        "ssh://b@localhost.acme.com/./a",
        "ssh://b@127.acme.com/./a",
        "ssh://localhost@host/./a",
    ],
)
def test_repositories(repository: str) -> None:
    settings = of(Borg, borg_repository=repository, borg_known_hosts=[f"host {KEY}"])
    assert settings.repository == repository


@pytest.mark.parametrize(
    "line",
    [
        f"box.acme.com,10.0.0.2 {KEY}",
        f"[box.acme.com]:23 {KEY} root@box",
        f"|1|F1E1KeoE/eEWhi10WpGv4OdiO6Y=|3988QV0VE8wmZL7suNrYQLITLCg= {KEY}",
        f"@cert-authority *.acme.com {KEY}",
    ],
)
def test_known_hosts(line: str) -> None:
    assert of(Borg, borg_known_hosts=[line]).known_hosts == (line,)


def test_a_password_in_a_repository_is_not_repeated() -> None:
    for one in ("ssh://b:s3cret@host/./a", "sftp://b:s3cret@host/a", "ssh://b:s3/cret@[::1]/a"):
        assert "s3" not in refusal(Borg, borg_repository=one)


@pytest.mark.parametrize(
    ("name", "more"),
    [("db1", {}), ("DB1", {}), ("10.0.0.7", {}), ("elsewhere", {"ssh_hostname": "DB1"})],
)
def test_a_server_is_not_its_own_backup_host(name: str, more: dict[str, Any]) -> None:
    at = "db1" if more else name
    data = (
        DEFAULTS
        | more
        | {"borg_repository": f"ssh://b@{at}:22/./a", "borg_known_hosts": [f"db1 {KEY}"]}
    )
    one = SimpleNamespace(name=name, data=SimpleNamespace(dict=lambda: data))
    with pytest.raises(DeployError, match=rf"^{name}: borg_repository: .* is the server itself"):
        Borg.of(one)  # type: ignore[arg-type]


def test_addresses_of_docker_are_private() -> None:
    for pool in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"):
        assert str(of(Docker, docker_address_pool=pool).address_pool) == pool


# --- extensions -----------------------------------------------------------------------------------


def test_extensions_are_of_the_server_or_of_one_package() -> None:
    assert set(EXTENSION_PACKAGES).isdisjoint(CONTRIB)
    assert set(EXTENSION_PACKAGES) | CONTRIB >= PRELOADED
    for package in EXTENSION_PACKAGES.values():
        assert package.count("{}") == 1


def test_extensions_of_the_server_itself_need_no_package() -> None:
    assert packages_of(["hstore", "pg_trgm", "zzzzzz"], 17) == []
    assert packages_of(["plpython3u", "vector"], 15) == [
        "postgresql-15-pgvector",
        "postgresql-plpython3-15",
    ]


def test_settings_of_the_pooler_go_where_it_reads_them() -> None:
    settings = {"so_reuseport": True, "query_wait_timeout": 1.5, "track_extra_parameters": "x, y"}
    read = of(PgBouncer, pgbouncer_settings=settings)
    assert read.chosen(at_start=True) == {"so_reuseport": "1", "track_extra_parameters": "x, y"}
    assert read.chosen(at_start=False) == {"query_wait_timeout": "1.5"}
