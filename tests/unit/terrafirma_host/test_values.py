"""References in the values of `env`, and the variables that they make."""

import traceback

import pytest
from terrafirma_host import values
from terrafirma_host.shell import Failed
from terrafirma_host.values import Address, Reference

URL = "postgresql://api:pa%20ss-w0rd@host.docker.internal:5432/api\n"
REPORTS = "postgresql://reader:0ther-w0rd@host.docker.internal:6432/reports\n"
SECRETS = {
    "database_url": URL,
    "database_url_reports": REPORTS,
    "token": "t0ken",
    "key": "-----BEGIN-----\nAAAA\n-----END-----\n",
}


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("", ""),
        ("as it is", "as it is"),
        ("{database.url}", "postgresql://api:pa%20ss-w0rd@host.docker.internal:5432/api"),
        (
            "{database.url:postgresql+psycopg}?sslmode=disable",
            "postgresql+psycopg://api:pa%20ss-w0rd@host.docker.internal:5432/api?sslmode=disable",
        ),
        ("{database.url:postgres}", "postgres://api:pa%20ss-w0rd@host.docker.internal:5432/api"),
        ("{database.host}:{database.port}", "host.docker.internal:5432"),
        ("{database.user}/{database.password}/{database.name}", "api/pa ss-w0rd/api"),
        (
            "jdbc:postgresql://{databases.reports.host}:{databases.reports.port}/"
            "{databases.reports.name}?user={databases.reports.user}",
            "jdbc:postgresql://host.docker.internal:6432/reports?user=reader",
        ),
        ("Bearer {secrets.token}", "Bearer t0ken"),
        ("{secrets.key}", "-----BEGIN-----\nAAAA\n-----END-----"),
        ("one\n{secrets.token}\nthree\n", "one\nt0ken\nthree\n"),
        ('{"password": "{database.password}"}', '{"password": "pa ss-w0rd"}'),
        # Braces of others.
        ('{"a": {"b": {}}}', '{"a": {"b": {}}}'),
        ("/users/{id}/{user.name}", "/users/{id}/{user.name}"),
        ("{{ value }} {{user.name}} {{.Name}}", "{{ value }} {{user.name}} {{.Name}}"),
        ("${HOME} {} { } {a.b: 1} {database.url", "${HOME} {} { } {a.b: 1} {database.url"),
        # A brace that is meant.
        ("{{database.url}", "{database.url}"),
        ("{{database.url}}", "{database.url}"),
        ("{{{secrets.token}}}", "{{secrets.token}}"),
        ("{{secrets.x}} {secrets.token}", "{secrets.x} t0ken"),
        ("${{secrets.token}}", "${secrets.token}"),
    ],
)
def test_references_are_filled_in(text: str, filled: str) -> None:
    assert values.fill(text, SECRETS) == filled


ADDRESS = (
    "{database.url}, {database.host}, {database.port}, {database.name}, {database.user}, "
    "{database.password}"
)


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("{database}", f"{{database}} is none of {ADDRESS}"),
        ("x {database.ulr}", f"{{database.ulr}} is none of {ADDRESS}"),
        ("{database.url.x}", "is none of"),
        ("{databases.reports}", "{databases.reports} is none of {databases.reports.url}, "),
        ("{databases}", "{databases} is not of the form {databases.NAME.url}"),
        ("{databases.}", "is not of the form {databases.NAME.url}"),
        ("{secrets}", "{secrets} is not of the form {secrets.NAME}"),
        ("{secrets.}", "is not of the form {secrets.NAME}"),
        ("{secrets.a.b}", "is not of the form {secrets.NAME}"),
        ("{secrets.token:x}", "is not of the form {secrets.NAME}"),
        (
            "{databse.url}",
            "{databse.url} refers to nothing: there are {database.url}, {databases.NAME.url} and "
            "{secrets.NAME}; write {{databse.url} for the text itself",
        ),
        ("{db.url}", "refers to nothing"),
        ("{secret.token}", "refers to nothing"),
        ("{Database.Url}", "refers to nothing"),
        (
            "{database.host:mysql}",
            "{database.host:mysql}: after the colon there is another scheme for a URL, like "
            "{database.url:postgresql+psycopg}",
        ),
        ("{databases.reports.url:}", "like {databases.reports.url:postgresql+psycopg}"),
        ("{database.url:a b}", "another scheme"),
        ("${database.url}", "${database.url} has no $ before it: {database.url}"),
    ],
)
def test_a_reference_to_nothing_is_refused(text: str, refusal: str) -> None:
    with pytest.raises(ValueError, match=r"\{") as error:
        values.references(text)
    assert refusal in str(error.value)
    assert "\n" not in str(error.value)


def test_what_a_value_refers_to_is_known() -> None:
    assert values.references("{database.url:a}{secrets.token}{databases.reports.port}") == [
        Reference("database_url", "url", "a"),
        Reference("token"),
        Reference("database_url_reports", "port"),
    ]


@pytest.mark.parametrize(
    "url", ["", "s3cret", "postgresql://s3cret@host/x", "postgresql://a:s3cret@h:x/d", "//a:s3cret"]
)
def test_what_is_no_address_is_refused_unseen(url: str) -> None:
    with pytest.raises(Failed) as error:
        values.fill("{database.url}", {"database_url": url})
    assert str(error.value) == "the secret database_url is not the URL of a database; run deploy.py"
    assert "s3cret" not in "".join(traceback.format_exception(error.value))


def test_a_secret_that_is_missing_is_named() -> None:
    with pytest.raises(Failed, match="env: there is no secret token; run deploy"):
        values.fill("{secrets.token}", {})


def test_a_url_is_made_of_its_parts() -> None:
    address = Address("a@b", "p/w:d", "db", "5432", "näme")
    assert Address.of(address.url("postgres")) == address
    assert "p/w" not in repr(address)


def test_variables_with_references_are_secret() -> None:
    env = {"PLAIN": "{{secrets.token}} {}", "TOKEN": "x{secrets.token}", "LEVEL": "info"}
    assert values.shown(env) == {"PLAIN": "{secrets.token} {}", "LEVEL": "info"}
    assert values.hidden(env) == {"TOKEN": "x{secrets.token}"}
    assert values.secret_variables(env, SECRETS, every=False) == {"TOKEN": "xt0ken"}


def test_a_variable_of_the_settings_wins_over_a_secret() -> None:
    env = {"DATABASE_URL": "{database.url:postgres}", "KEY": "mine"}
    made = values.secret_variables(env, SECRETS, every=True)
    assert made == {
        "DATABASE_URL": "postgres://api:pa%20ss-w0rd@host.docker.internal:5432/api",
        "DATABASE_URL_REPORTS": REPORTS.strip(),
        "TOKEN": "t0ken",
    }
