"""Rules between sections: settings that do not fit together are refused."""

from typing import Any

import pytest

from terrafirma.host.facts import HardwareState
from terrafirma.rules import enough_hardware, limits_hardware
from terrafirma.server import Server
from terrafirma.settings import Refused
from tests.unit.settings import API, DEFAULTS, KEY, POOLS, entry, keep_rules, refused, server

# --- rules between sections -----------------------------------------------------------------------

POOLED = {"pgbouncer_enabled": True}
WEB = entry(port=9000)
# A database with the name of PgBouncer's console.
CONSOLE = {
    "postgres_databases": [{"name": name, "owner": "api"} for name in ("api", "pgbouncer")],
    "postgres_max_connections": 200,
}
CI = {"name": "ci", "keys": [KEY]}


@pytest.mark.parametrize(
    ("wrong", "right", "message"),
    [
        # One port, one program.
        (
            POOLED | {"pgbouncer_port": 5432},
            POOLED | {"pgbouncer_port": 5433},
            "pgbouncer_port: 5432 is taken by postgres_port; take another",
        ),
        (
            POOLED | {"postgres_port": 6432},
            # PgBouncer does not run.
            {"postgres_port": 6432},
            "pgbouncer_port: 6432 is taken by postgres_port; take another",
        ),
        *(
            (
                {"apps": {"web": WEB}, "postgres_port": port},
                {"apps": {"web": WEB}, "postgres_port": right},
                f"apps.web.port: {port} is taken by postgres_port; take another, or leave it out",
            )
            for port, right in ((9000, 8999), (9127, 9128))
        ),
        (
            POOLED | {"apps": {"web": WEB}, "pgbouncer_port": 9064},
            POOLED | {"apps": {"web": WEB}, "pgbouncer_port": 9128},
            "apps.web.port: 9064 is taken by pgbouncer_port; take another, or leave it out",
        ),
        *(
            (
                {"apps": {"web": WEB, "jobs": entry("jobs", port=port)}},
                {"apps": {"web": WEB, "jobs": entry("jobs", port=right)}},
                f"apps.jobs.port: {first} is taken by apps.web.port (9000 to 9127); "
                "take another, or leave it out",
            )
            for port, first, right in (
                *((9000, 9000, 9128), (9127, 9127, 9128), (8873, 9000, 8872), (9003, 9003, 9128)),
            )
        ),
        # One domain, one application.
        (
            {"apps": {"api": API, "web": entry(domain=API["domain"])}},
            {"apps": {"api": API, "web": entry()}},
            "apps.web.domain: 'api.terrafirma.test' is a name of api already; take another",
        ),
        (
            {"apps": {"api": API | {"redirects": ["web.acme.com"]}, "web": entry()}},
            {"apps": {"api": API | {"redirects": ["www.acme.com"]}, "web": entry()}},
            "apps.web.domain: 'web.acme.com' is a name of api already; take another",
        ),
        (
            {"apps": {"web": entry(), "api": API | {"redirects": ["a.com", "web.acme.com"]}}},
            {"apps": {"web": entry(), "api": API | {"redirects": ["a.com", "b.com"]}}},
            "apps.api.redirects: 'web.acme.com' is a name of web already; take another",
        ),
        (
            {"apps": {name: entry(name, redirects=["a.com"]) for name in ("api", "web")}},
            {"apps": {name: entry(name, redirects=[f"{name}.com"]) for name in ("api", "web")}},
            "apps.web.redirects: 'a.com' is a name of api already; take another",
        ),
        # An application refers to something that is not declared.
        (
            {"apps": {"api": API | {"database": "shop"}}},
            {
                "apps": {"api": API | {"database": "shop"}},
                "postgres_databases": [{"name": "shop", "owner": "api"}],
            },
            "apps.api.database: 'shop' is not in postgres_databases (api); "
            'add {"name": "shop", "owner": "shop"} there, and {"name": "shop"} to postgres_roles',
        ),
        (
            {"apps": {"api": API | {"databases": ["reports"]}}},
            {
                "apps": {"api": API | {"databases": ["reports"]}},
                "postgres_databases": [
                    {"name": name, "owner": "api"} for name in ("api", "reports")
                ],
            },
            "apps.api.databases: 'reports' is not in postgres_databases (api); "
            'add {"name": "reports", "owner": "reports"} there, and {"name": "reports"} to '
            "postgres_roles",
        ),
        (
            {"postgres_databases": []},
            {"postgres_databases": [], "apps": {"api": API | {"database": ""}}},
            "apps.api.database: 'api' is not in postgres_databases (empty); "
            'add {"name": "api", "owner": "api"} there',
        ),
        (
            {
                "apps": {"web": entry(role="web")},
                "postgres_roles": [{"name": "api"}, {"name": "web"}],
            },
            {
                "apps": {"web": entry(role="web")},
                "postgres_roles": [{"name": "api"}, {"name": "web"}],
                "postgres_databases": [{"name": "api", "owner": "api", "access": {"web": "read"}}],
            },
            "apps.web.role: 'web' is not in the roles that log in to api (api)",
        ),
        # The owner does not log in.
        (
            {"postgres_roles": [{"name": "api", "login": False}]},
            {"postgres_roles": [{"name": "api", "login": True}]},
            "apps.api.role: 'api' is not in the roles that log in to api (empty)",
        ),
        (
            {"apps": {"api": API | {"user": "nobody"}}},
            {"apps": {"api": API | {"user": "dev"}}},
            "apps.api.user: 'nobody' is not in users_accounts (dev, ingres, prod)",
        ),
        (
            {"apps": {"web": entry(network="jobs")}},
            {"apps": {"web": entry(network="jobs")}, "docker_networks": ["apps", "jobs"]},
            "apps.web.network: 'jobs' is not in docker_networks (apps)",
        ),
        # An account may release only declared applications.
        (
            {"users_accounts": [{"name": "prod"}, CI | {"releases": ["api", "web"]}]},
            {"users_accounts": [{"name": "prod"}, CI | {"releases": ["api"]}]},
            "users_accounts: ci releases 'web', which is not an application (apps: api)",
        ),
        (
            {"users_accounts": [CI | {"releases": ["api"]}], "apps": {}},
            {"users_accounts": [CI], "apps": {}},
            "users_accounts: ci releases 'api', which is not an application (apps: none)",
        ),
        # PgBouncer.
        (
            {"apps": {"web": entry(pgbouncer=True)}},
            {"apps": {"web": entry(pgbouncer=True)}, "pgbouncer_enabled": True},
            "apps.web.pgbouncer: pgbouncer_enabled is False; set that to True, or this to False",
        ),
        (
            POOLED | CONSOLE,
            CONSOLE,
            "postgres_databases: 'pgbouncer' is the name of PgBouncer's console; take another, or "
            "set pgbouncer_enabled to False",
        ),
        # Backups.
        *(
            (
                more
                | {"borg_repository": f"ssh://b@{at}:22/./a", "borg_known_hosts": [f"x {KEY}"]},
                more | {"borg_repository": "ssh://b@box/./a", "borg_known_hosts": [f"x {KEY}"]},
                f"borg_repository: {at.lower()} is the server itself, and a backup there is lost "
                "with it: name another host, ssh://user@host:port/./path",
            )
            for at, more in (
                *(("db1", {}), ("DB1", {}), ("10.0.0.7", {"ssh_hostname": "10.0.0.7"})),
                *(
                    ("web.acme.com", {"ssh_hostname": "WEB.acme.com"}),
                    ("db1", {"ssh_hostname": "x"}),
                ),
            )
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(
    wrong: dict[str, Any], right: dict[str, Any], message: str
) -> None:
    assert refused(**wrong) == message
    keep_rules(server(**right))


@pytest.mark.parametrize(
    ("name", "more", "at"),
    [
        ("db1", {}, "db1"),
        ("DB1", {}, "DB1"),
        ("10.0.0.7", {}, "10.0.0.7"),
        ("elsewhere", {"ssh_hostname": "DB1"}, "db1"),
    ],
)
def test_a_server_is_not_its_own_backup_host(name: str, more: dict[str, Any], at: str) -> None:
    data = {"borg_repository": f"ssh://b@{at}:22/./a", "borg_known_hosts": [f"db1 {KEY}"]}
    with pytest.raises(Refused, match=r"^borg_repository: \S+ is the server itself"):
        keep_rules(Server.of(name, DEFAULTS | data | more))


def test_all_rules_are_asked() -> None:
    message = refused(
        apps={"api": API | {"user": "nobody", "pgbouncer": True}, "web": API},
        postgres_max_connections=20,
    )
    for key in (
        *("apps.api.user", "apps.api.pgbouncer", "apps.web.domain", "postgres_max_connections"),
    ):
        assert f"{key}: " in message


# --- connections ----------------------------------------------------------------------------------

WORKERS = entry("web", replicas=2, connections=20)
BOTH = {"api": API, "web": WORKERS}


def test_connections_that_are_enough() -> None:
    keep_rules(server())
    # 4 x 5 x 2 + 10 and 2 x 20 x 2 more.
    keep_rules(server(postgres_max_connections=50))
    keep_rules(server(postgres_max_connections=130, apps=BOTH))
    keep_rules(server(apps={}, postgres_max_connections=20))
    # An application without a database opens none.
    keep_rules(server(apps={"api": API | {"database": ""}}, postgres_max_connections=20))


def test_connections_that_are_too_few_are_counted() -> None:
    assert refused(postgres_max_connections=129, apps=BOTH) == (
        "postgres_max_connections: 129 is too few: api 4 replicas x 5 x 2 releases = 40, "
        "web 2 replicas x 20 x 2 releases = 80, reserved 10; set it to 130 or more, or lower "
        "apps.*.connections"
    )
    assert "set it to 50 or more" in refused(postgres_max_connections=49)
    one = API | {"strategy": "stop-first", "connections": 50}
    assert "api 1 replicas x 50 x 1 releases = 50, reserved 10" in refused(
        postgres_max_connections=59, apps={"api": one}
    )


def test_connections_to_further_databases_count() -> None:
    data: dict[str, Any] = {
        "apps": {"api": API | {"databases": ["reports", "stats"]}},
        "postgres_roles": [{"name": "api"}, {"name": "stats", "connection_limit": 39}],
        "postgres_databases": [
            {"name": "api", "owner": "api"},
            {"name": "reports", "owner": "stats", "access": {"api": "read"}},
            {"name": "stats", "owner": "stats"},
        ],
    }
    assert refused(**data, postgres_max_connections=129) == (
        "postgres_max_connections: 129 is too few: api 4 replicas x 5 x 2 releases x 3 databases = "
        "120, reserved 10; set it to 130 or more, or lower apps.*.connections; postgres_roles: "
        "stats: connection_limit 39 is too low for api: set it to 40 or more"
    )
    data["postgres_roles"] = [
        {"name": "api", "connection_limit": 80}, {"name": "stats", "connection_limit": 40},
    ]  # fmt: skip
    keep_rules(server(**data, postgres_max_connections=130))


def limited(role: int = -1, database: int = -1) -> dict[str, Any]:
    return {
        "postgres_roles": [{"name": "api", "connection_limit": role}, {"name": "x"}],
        "postgres_databases": [
            {"name": "api", "owner": "api", "connection_limit": database, "access": {"x": "read"}}
        ],
    }


def test_limits_that_are_enough() -> None:
    keep_rules(server(**limited(40, 40)))
    # No application connects with this role.
    keep_rules(server(**limited(3, -1), apps={"api": API | {"role": "x"}}))


@pytest.mark.parametrize("limit", [0, 1, 39])
def test_a_limit_that_is_too_low_for_the_applications(limit: int) -> None:
    low = f"api: connection_limit {limit} is too low for api: set it to 40 or more"
    assert refused(**limited(role=limit)) == f"postgres_roles: {low}"
    assert refused(**limited(database=limit)) == f"postgres_databases: {low}"


def test_applications_share_the_limit_of_their_database() -> None:
    message = refused(**limited(database=99), postgres_max_connections=200, apps=BOTH)
    assert "is too low for api, web: set it to 120 or more" in message
    keep_rules(server(**limited(database=120), postgres_max_connections=200, apps=BOTH))


def test_pools_count_among_the_servers_connections() -> None:
    """Pools count among the server's connections, with all others."""
    data = POOLS | {"pgbouncer_pool_size": 1000}
    assert server(**data).pgbouncer.pool_size == 1000
    assert refused(**data).startswith("postgres_max_connections: 100 is too few: ")


def test_pools_count_beside_the_applications_that_do_not_use_them() -> None:
    # 4 x 5 x 2, pools of 20, 7 and 20, those of `api` twice, and 10 more.
    keep_rules(server(**POOLS, postgres_max_connections=137))
    assert refused(**POOLS, postgres_max_connections=136) == (
        "postgres_max_connections: 136 is too few: api 4 replicas x 5 x 2 releases = 40, 3 pools "
        "of PgBouncer = 47, 40 while a password is renewed, reserved 10; set it to 137 or more, or "
        "lower apps.*.connections and pgbouncer_pool_size"
    )
    # A pooler that does not run has no pools.
    off = POOLS | {"pgbouncer_enabled": False}
    keep_rules(server(**off, postgres_max_connections=50))
    message = refused(**off, postgres_max_connections=49)
    assert "PgBouncer" not in message
    assert message.endswith(" or lower apps.*.connections")


def test_an_application_that_uses_the_pools_opens_no_connection_itself() -> None:
    pooled = {"api": API | {"pgbouncer": True}}
    keep_rules(server(**POOLS, apps=pooled, postgres_max_connections=97))
    message = refused(**POOLS, apps=pooled, postgres_max_connections=96)
    assert "96 is too few: 3 pools of PgBouncer = 47, 40 while a" in message
    assert "reserved 10; set it to 97" in message
    assert message.endswith(" or lower pgbouncer_pool_size")
    # One of two applications uses the pools.
    both = pooled | {"web": WORKERS}
    keep_rules(server(**POOLS, apps=both, postgres_max_connections=177))
    message = refused(**POOLS, apps=both, postgres_max_connections=176)
    assert "too few: web 2 replicas x 20 x 2 releases = 80, 3 pools" in message
    assert "api" not in message


def test_limits_are_not_for_an_application_that_uses_the_pools() -> None:
    """In the pool its clients wait for each other; only direct connections need the limit."""
    pooled = {"api": API | {"pgbouncer": True}}
    keep_rules(server(**limited(role=3), pgbouncer_enabled=True, apps=pooled))
    data = limited(role=79) | {"pgbouncer_enabled": True, "postgres_max_connections": 200}
    message = refused(**data, apps=pooled | {"web": WORKERS})
    # 2 x 20 x 2, and the pool of 20.
    assert "too low for api, web: set it to 100 or more" in message


# --- memory and processors ------------------------------------------------------------------------


def overload(
    memory_mb: int, fields: dict[str, Any], web: dict[str, Any] | None = None, **more: Any
) -> list[str]:
    """The message that refuses a host of that size, whose application `api` has these fields."""
    cores = more.pop("cores", 4)
    entries = {"api": API | fields} | ({"web": web} if web else {})
    known = HardwareState(memory=memory_mb * 1024, cores=cores, ssd=True)
    return list(enough_hardware(server(**{"apps": entries} | more), known))


def test_memory_that_is_enough() -> None:
    # 4 x 256 x 2 and 75 %.
    assert not overload(8192, {"memory_mb": 256})
    # An application without a limit counts as zero.
    assert not overload(512, {})
    assert not overload(8192, {"memory_mb": 256}, entry(replicas=64))
    assert not overload(8192, {}, apps={"web": entry()})


def test_a_host_is_asked_only_if_there_is_a_limit() -> None:
    assert not limits_hardware(server())
    assert not limits_hardware(server(apps={}))
    for limit in ({"memory_mb": 64}, {"cpus": 0.5}):
        assert limits_hardware(server(apps={"api": API | limit}))
        assert limits_hardware(server(apps={"api": API, "web": entry(**limit)}))


def test_memory_that_is_too_little_is_counted() -> None:
    web = entry("web", replicas=2, memory_mb=100)
    assert overload(8192, {"memory_mb": 257}, web) == [
        "apps.api.memory_mb: 8192 MB of memory are too few: api 4 replicas x 257 MB x 2 releases = "
        "2056 MB, web 2 replicas x 100 MB x 2 releases = 400 MB, PostgreSQL 75 % = 6144 MB; lower "
        "memory_mb or replicas until the applications take 2048 MB, or "
        "postgres_memory_percent to 70"
    ]
    assert not overload(8192, {"memory_mb": 257}, web, postgres_memory_percent=70)
    # The message names the key of an application with a limit.
    (message,) = overload(8192, {}, entry("web", memory_mb=300))
    assert message.startswith("apps.web.memory_mb: 8192 MB of memory are too few: web 4 replicas x")


def test_useless_advice_is_left_out() -> None:
    (message,) = overload(1024, {"memory_mb": 512})
    assert "postgres_memory_percent to" not in message


def test_processors() -> None:
    assert not overload(8192, {"cpus": 2}, cores=2)
    assert overload(8192, {"cpus": 2.5}, cores=2) == [
        "apps.api.cpus: a container may take 2.5, but the host has 2; set it to 2 or less"
    ]
    assert overload(8192, {}, entry(cpus=3), cores=2) == [
        "apps.web.cpus: a container may take 3, but the host has 2; set it to 2 or less"
    ]
