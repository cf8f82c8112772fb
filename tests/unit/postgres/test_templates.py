"""PostgreSQL's files: who may connect, what a new owner gets, and each setting once."""

import re
from typing import Any

import pytest

from terrafirma.postgres.tuning import Tuned
from tests.unit.templates import NETWORKS, SERVER, VISITORS, rendered, rules, settled

# --- pg_hba.conf ----------------------------------------------------------------------------------


@pytest.mark.parametrize("networks", NETWORKS)
def test_each_role_connects_to_its_own_databases_only(networks: list[dict[str, Any]]) -> None:
    local, *clients, last = rules(networks=networks)
    assert local == ["local", "all", "postgres", "peer"]
    assert last == ["host", "all", "all", "all", "reject"]
    assert {(kind, method) for kind, _, _, _, method in clients} == {("host", "scram-sha-256")}
    sources = ["127.0.0.1/32", "::1/128", *(network["subnet"] for network in networks)]
    # The second name is the second login of the role while its password is renewed.
    assert sorted((name, roles, source) for _, name, roles, source, _ in clients) == sorted(
        (name, f"{role},{role}~", source) for name, role in VISITORS for source in sources
    )


@pytest.mark.parametrize("networks", NETWORKS)
@pytest.mark.parametrize("visitors", [(), VISITORS])
def test_no_rule_admits_every_address_or_the_superuser(
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


def test_without_docker_only_the_host_itself_connects() -> None:
    addresses = {
        rule[3] for rule in rules(networks=[]) if rule[0] == "host" and rule[4] != "reject"
    }
    assert addresses == {"127.0.0.1/32", "::1/128"}


# --- hand_over.sql --------------------------------------------------------------------------------


def test_a_database_is_handed_over_as_a_whole_or_not_at_all() -> None:
    lines = rendered("postgres/hand_over.sql.j2").splitlines()
    assert lines[:2] == ['\\connect "shop"', "begin;"]
    # Later statements of the same script go to the maintenance database.
    assert lines[-3:] == [
        'alter database "shop" owner to "shop_owner";',
        "commit;",
        "\\connect postgres",
    ]
    assert sum(line.startswith("\\connect") for line in lines) == 2
    assert sum(line in ("begin;", "commit;") for line in lines) == 2


def test_the_wait_for_a_locked_table_is_short() -> None:
    """All tables are locked before the first changes its owner, and only in the transaction."""
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
        # PostgreSQL's own objects, and those of extensions, are left out.
        assert "nspname !~ '^pg_'" in question
        assert 'owner to "shop_owner";' in question
    assert "reassign" not in text


# --- terrafirma.conf ------------------------------------------------------------------------------


def server(**data: Any) -> dict[str, str]:
    lines = settled(rendered("postgres/terrafirma.conf.j2", **data))
    pairs = [line.split(" = ", 1) for line in lines]
    assert len({name for name, _ in pairs}) == len(pairs)
    return dict(pairs)


def test_each_setting_is_written_once() -> None:
    assert server() == {
        "listen_addresses": "'localhost,10.210.0.1'",
        "port": "5432",
        "max_connections": "100",
        "x.y": "'it''s # no comment'",
    }


def test_postgresql_listens_on_the_given_addresses_only() -> None:
    settings = {**SERVER, "listen_addresses": Tuned("'localhost'", "")}
    assert server(settings=settings) == {**server(), "listen_addresses": "'localhost'"}


def test_each_setting_of_postgresql_has_its_reason_above_it() -> None:
    lines = rendered("postgres/terrafirma.conf.j2").splitlines()
    for name, (value, reason) in SERVER.items():
        at = lines.index(f"{name} = {value}")
        if name not in ("listen_addresses", "port"):
            assert lines[at - 1] == f"# {reason}"
    # The comment above these two is in the template itself.
    assert (
        lines.index("port = 5432") == lines.index("listen_addresses = 'localhost,10.210.0.1'") + 1
    )


# --- units and the rest ---------------------------------------------------------------------------


def test_the_cluster_starts_at_boot() -> None:
    """The upgrade changes this one word, and keeps the other lines."""
    assert settled(rendered("postgres/start.conf.j2")) == ["auto"]
    assert rendered("postgres/start.conf.j2").endswith("\n\nauto\n")


def test_postgresql_may_bind_an_address_that_does_not_exist_yet() -> None:
    """The dash lets systemd-sysctl succeed on a kernel without IPv6."""
    assert settled(rendered("postgres/sysctl.conf.j2", huge_pages=0)) == [
        "net.ipv4.ip_nonlocal_bind = 1",
        "-net.ipv6.ip_nonlocal_bind = 1",
    ]


def test_huge_pages_are_reserved_if_there_are_any() -> None:
    few, many = (settled(rendered("postgres/sysctl.conf.j2", huge_pages=n)) for n in (0, 4506))
    assert many == [*few, "vm.nr_hugepages = 4506"]


def test_the_package_makes_no_cluster_of_its_own() -> None:
    assert settled(rendered("postgres/createcluster.conf.j2")) == ["create_main_cluster = false"]
