"""Settings: the defaults fit the models, and a mistake is reported in one helpful line."""

from typing import Any

import pytest
from pydantic import ValidationError

from terrafirma.app.settings import Application
from terrafirma.borg.settings import Borg
from terrafirma.caddy.settings import Caddy
from terrafirma.docker.settings import Docker
from terrafirma.pgbouncer.settings import PgBouncer
from terrafirma.postgres.settings import Postgres
from terrafirma.server import SECTIONS, Server, applications
from terrafirma.settings import Refused, Settings
from terrafirma.sshd.settings import Sshd
from tests.unit.settings import (
    API,
    DEFAULTS,
    application,
    entry,
    keep_rules,
    of,
    refusal,
    refusal_of,
    refused,
    server,
)

# --- the defaults ---------------------------------------------------------------------------------


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.prefix)
def test_the_defaults_are_right(section: type[Settings]) -> None:
    assert of(section)


def test_the_defaults_are_right_together() -> None:
    keep_rules(server())


def test_every_setting_has_a_default_and_every_default_is_a_setting() -> None:
    known = {f"{one.prefix}_{field}" for one in SECTIONS for field in one.model_fields}
    assert known | {"apps"} == {key for key in DEFAULTS if not key.startswith("ssh_")}


def test_an_application_has_the_defaults_of_its_fields() -> None:
    """Each default is also a valid value."""
    required = {name for name, field in Application.model_fields.items() if field.is_required()}
    assert required == {"name", "domain"}
    defaults = {
        name: list(field.default) if isinstance(field.default, tuple) else field.default
        for name, field in Application.model_fields.items()
        # One of the first two is required; 0 stands for a port that is left out.
        if name not in {*required, "source", "image", "port"}
    }
    said = entry("api")
    assert application() == applications({"apps": {"api": defaults | said}})[0]


def test_prefixes_do_not_nest() -> None:
    prefixes = [f"{section.prefix}_" for section in SECTIONS]
    for prefix in prefixes:
        assert [other for other in prefixes if other.startswith(prefix)] == [prefix]
    assert not "apps".startswith(tuple(prefixes))


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.prefix)
def test_settings_cannot_be_changed(section: type[Settings]) -> None:
    read = of(section)
    with pytest.raises(ValidationError):
        setattr(read, next(iter(section.model_fields)), None)


def test_applications_and_servers_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        application().replicas = 1
    with pytest.raises(AttributeError):
        server().name = "db2"  # type: ignore[misc]  # must fail


# --- whose keys -----------------------------------------------------------------------------------


def test_reads_only_its_own_keys() -> None:
    assert of(Sshd, users_accounts="not mine", sshd_allow_users=["me"]).allow_users == ("me",)


@pytest.mark.parametrize(
    "key",
    [
        *("_sudo", "_sudo_password", "ssh_user", "ssh_port", "ssh_paramiko_connect_kwargs"),
        *("docker_identifier", "docker_platform", "vagrant_options", "podman_identifier"),
        # Keys of pyinfra's @fake connector, with which a deploy is tried without a host.
        *("fake_responses", "fake_delay"),
        "x_mine",
    ],
)
def test_keys_of_pyinfra_and_of_the_user_are_let_through(key: str) -> None:
    assert server(**{key: "x"}) == server()
    assert of(Docker, **{key: "x"}) == of(Docker)


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("postgres_versoin", "did you mean postgres_version?"),
        ("postgress_version", "did you mean postgres_version?"),
        ("postgres_databses", "did you mean postgres_databases?"),
        ("Postgres_port", "did you mean postgres_port?"),
        ("shd_allow_users", "did you mean sshd_allow_users?"),
        ("app", "did you mean apps?"),
        ("postgres_zzzzzz", "there is no such key"),
        ("zzzzzz", "x_"),
    ],
)
def test_an_unknown_key_is_refused_and_a_known_one_suggested(key: str, suggestion: str) -> None:
    message = refused(**{key: 1})
    assert message.startswith(f"{key}: ")
    assert suggestion in message
    assert ";" not in message


def test_all_that_is_wrong_is_said_at_once() -> None:
    api = API | {"replicas": 0, "domain": "A", "start_seconds": "soon"}
    message = refused(
        apps={"api": api, "web": entry(image="api:1")}, postgres_port=0, cady_email=""
    )
    for key in (
        *("apps.api.replicas", "apps.api.domain", "apps.api.start_seconds", "apps.web.image"),
        *("postgres_port", "cady_email"),
    ):
        assert f"{key}: " in message


@pytest.mark.parametrize("key", ["docker_address_pool", "users_accounts"])
def test_a_key_that_is_missing(key: str) -> None:
    data = {name: value for name, value in DEFAULTS.items() if name != key}
    with pytest.raises(Refused, match=rf"^{key}: Field required$"):
        Server.of("db1", data)


def test_a_field_that_is_missing() -> None:
    entries = {"api": {"source": "examples/api"}, "web": entry()}
    assert refused(apps=entries) == "apps.api.domain: Field required"


# --- bad data -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "data"),
    [
        (Caddy, {"caddy_acme_ca": "http://me:s3cret@ca.acme.com/d"}),
        (Caddy, {"caddy_email": "me:s3cret@acme.com }"}),
        (Borg, {"borg_repository": "b:s3cret@host:./a"}),
        (Borg, {"borg_repository": "ssh:b:s3cret@host/./a"}),
        (Docker, {"docker_networks": ["me:s3cret@apps"]}),
        (Postgres, {"postgres_roles": [{"name": "api", "password": ["s3cret"]}]}),
        (Postgres, {"postgres_settings": {"primary_conninfo": ["s3cret"]}}),
        (PgBouncer, {"pgbouncer_settings": {"verbose": {"password": "s3cret"}}}),
    ],
)
def test_a_password_in_another_value_is_not_shown(
    section: type[Settings], data: dict[str, Any]
) -> None:
    assert "s3cret" not in refusal(section, **data)


def test_a_value_without_a_password_is_shown() -> None:
    repository = "ssh://b@host/./a b"
    assert repr(repository) in refusal(Borg, borg_repository=repository)
    image = f"api:1@sha256:{'0' * 63}"
    assert repr(image) in refusal_of(source="", image=image)
