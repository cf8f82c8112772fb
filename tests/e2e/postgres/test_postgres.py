"""PostgreSQL: rights, changes made by hand, and settings that are refused."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import Pyinfra
from tests.e2e.databases import (
    ACCESS,
    BOOT,
    CONF,
    CONFIGURE,
    CONTENTS,
    DATA,
    DATABASES,
    GIVEN,
    HBA,
    LISTEN,
    LOGINS,
    NEIGHBOUR,
    OUTSIDE,
    OWN,
    PASSWORDS,
    POSTGRES,
    PREPARE,
    REJECTED,
    RELOAD,
    RESTART,
    RIGHTS,
    ROLES,
    SESSIONS,
    START,
    UNDO,
    database_server,
    password,
    sessions,
)
from tests.e2e.support import (
    BYSTANDER,
    Container,
    Target,
    api,
    beside_api,
    bystander,
    changed,
    eventually,
    networks,
    open_ports,
    options,
    output,
)

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.budget(
        minutes=5,
        why="three runs for each group of changes made by hand",
    ),
]


@pytest.fixture(scope="module")
def server(pyinfra: Pyinfra) -> Iterator[Target]:
    with database_server(pyinfra, "tf-test-postgres", 2415) as server:
        yield server


@pytest.fixture(scope="module")
def answers(server: Target) -> dict[str, list[str]]:
    """PostgreSQL's answers to containers of three networks, one of them created after the run."""
    known = {role["name"]: "" for role in DATA["postgres_roles"]}
    for role in DATA["postgres_roles"]:
        if role.get("login", True):
            known[role["name"]] = password(server, role["name"])
    cases = [(role, known.get(role, "x") or "x", where, sql) for role, where, sql, _ in RIGHTS]
    server.run("docker network create later")
    return {network: sessions(server, network, cases) for network in ("bridge", "shop", "later")}


@pytest.mark.promise(
    "A role has exactly the declared rights in a database; PostgreSQL itself answers the "
    "containers that ask ([the answers](tasks/postgres.md#tried-from-containers))"
)
@pytest.mark.parametrize(
    "number", range(len(RIGHTS)), ids=[" ".join(right[:3]) for right in RIGHTS]
)
def test_rights(answers: dict[str, list[str]], number: int) -> None:
    expected = RIGHTS[number][3]
    for network, all_answers in answers.items():
        answer = all_answers[number]
        assert answer == expected or (" " in expected and expected in answer), (network, answer)


@pytest.mark.parametrize("role", ["api", "reader", "shop"])
def test_a_wrong_password(server: Target, role: str) -> None:
    database = "shop" if role == "shop" else "api"
    (answer,) = sessions(server, "apps", [(role, "wrong", database, "select 1")])
    assert f'password authentication failed for user "{role}"' in answer


def test_the_internet_does_not_reach_postgresql(server: Target, outsider: Container) -> None:
    assert open_ports(outsider, server, 22, 5432) == [22]


def test_a_role_that_lost_its_access_is_refused(server: Target) -> None:
    data = json.loads(json.dumps(DATA))
    del data["postgres_databases"][0]["access"]["reader"]
    case = [("reader", password(server, "reader"), "api", "select count(*) from notes")]
    assert sessions(server, "apps", case)[0].isdigit()
    try:
        assert changed(server.deploy(POSTGRES, **data)) == [ACCESS, RELOAD, DATABASES, CONTENTS]
        assert REJECTED in sessions(server, "apps", case)[0]
        rights = "select has_table_privilege('reader', 'notes', 'select')"
        assert server.psql(rights, "api") == "f"
        # Nothing is dropped, and the role can come back unchanged.
        assert server.psql("select count(*) from pg_roles where rolname = 'reader'") == "1"
    finally:
        server.deploy(POSTGRES, **DATA)
    assert sessions(server, "apps", case)[0].isdigit()


def test_a_given_password_becomes_the_roles_password(server: Target) -> None:
    assert password(server, "ann") == GIVEN
    (answer,) = sessions(server, "apps", [("ann", GIVEN, "api", "select 'in'")])
    assert answer == "in"


def test_a_missing_given_password_is_refused(
    server: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TF_TEST_ANN")
    line = server.refuse(POSTGRES, **DATA)
    assert "postgres_roles: ann: TF_TEST_ANN is not set" in line


def test_another_given_password_is_set_by_the_next_run(
    server: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("TF_TEST_ANN", "another-that-ann-has-chosen")
        assert server.plan(POSTGRES, **DATA) == ["Give the roles their passwords"]
        assert changed(server.deploy(POSTGRES, **DATA)) == ["Give the roles their passwords"]
        assert changed(server.deploy(POSTGRES, **DATA)) == []
    assert changed(server.deploy(POSTGRES, **DATA)) == ["Give the roles their passwords"]


def by_sql(sql: str, database: str = "postgres") -> Callable[[Target], object]:
    return lambda server: server.psql(sql, database)


def by_shell(command: str) -> Callable[[Target], object]:
    return lambda server: server.run(command)


# Changes made by hand, in groups that one run repairs, and the operations of that run.
DRIFTS: dict[str, tuple[dict[str, Callable[[Target], object]], list[str]]] = {
    "in the databases": (
        {
            "superuser": by_sql("alter role reader superuser"),
            "no login": by_sql("alter role reader nologin"),
            "expiry": by_sql("alter role reader valid until '2020-01-01'"),
            "role setting": by_sql("alter role reader reset statement_timeout"),
            "connection limit": by_sql("alter role shop connection limit 3"),
            "membership": by_sql("grant api to reader"),
            "membership by another": by_sql(
                "grant api to reader with admin option; set role reader; grant api to writer;"
            ),
            "declared membership by another": by_sql(
                "grant analysts to writer with admin option; revoke analysts from ann;"
                "set role writer; grant analysts to ann;"
            ),
            "admin option": by_sql("grant pg_monitor to analysts with admin option"),
            "inherit": by_sql("grant pg_monitor to analysts with inherit false"),
            "missing role": by_sql("drop role retired"),
            "password": by_sql("alter role writer password 'x'"),
            "no password": by_sql("alter role shop password null"),
            "mode": by_shell("chmod 644 /etc/terrafirma/secrets/postgres/writer"),
            "owner of a password": by_shell(
                "chown nobody /etc/terrafirma/secrets/postgres/deployer"
            ),
            "owner": by_sql("alter database shop owner to postgres"),
            "limit": by_sql("alter database api connection limit 1"),
            "connect": by_sql("grant connect on database api to shop"),
            "connect by another": by_sql(
                "grant connect on database api to writer with grant option;"
                "set role writer; grant connect on database api to shop_owner;"
            ),
            "maintenance database": by_sql("grant connect on database postgres to reader"),
            "public": by_sql("grant connect on database api to public"),
            "database setting": by_sql("alter database api set statement_timeout to 0"),
            "undeclared setting": by_sql("alter database api set work_mem to '1GB'"),
            "missing grant": by_sql("revoke select on notes from reader", "api"),
            "grant too many": by_sql("grant insert on notes to reader", "api"),
            "grant option": by_sql("grant select on notes to writer with grant option", "api"),
            "grant by another": by_sql(
                "grant select, delete on notes to writer with grant option;"
                "set role writer; grant select, delete on notes to reader, shop;",
                "api",
            ),
            "schema by another": by_sql(
                "grant usage on schema public to writer with grant option;"
                "set role writer; grant usage on schema public to shop;",
                "api",
            ),
            "undeclared schema": by_sql(
                "set role api; create schema side; create table side.notes (text text);"
                "grant usage on schema side to reader; grant select on side.notes to reader;"
                "alter default privileges in schema side grant select on tables to reader;",
                "api",
            ),
            "default grant in all schemas": by_sql(
                "alter default privileges for role api grant insert on tables to reader", "api"
            ),
            "default grant option": by_sql(
                "alter default privileges for role api in schema public "
                "grant select on tables to writer with grant option",
                "api",
            ),
            "default grant": by_sql(
                "alter default privileges for role api in schema public "
                "revoke select on tables from reader",
                "api",
            ),
            "table of another owner": by_sql("create table stray (id int)", "api"),
            "schema": by_sql("grant create on schema public to public", "api"),
            "extension": by_sql("drop extension pg_trgm", "api"),
        },
        [ROLES, PASSWORDS, DATABASES, CONTENTS],
    ),
    "files": (
        {
            "mode of the secrets": by_shell("chmod 755 /etc/terrafirma/secrets/postgres"),
            "program": by_shell("echo >> /usr/local/lib/terrafirma/terrafirma_host/secrets.py"),
            "missing sysctl file": by_shell("rm /etc/sysctl.d/60-terrafirma-postgres.conf"),
            "sysctl": by_shell("sysctl -qw net.ipv4.ip_nonlocal_bind=0"),
            "manual start": by_shell(f"echo manual > {START}"),
            "tuning value": by_shell(f"sed -i 's/^work_mem.*/work_mem = 64kB/' {CONF}"),
            "owner of the settings": by_shell(f"chown root {CONF}"),
            "alter system": by_sql("alter system set work_mem to '64kB'"),
            "alter system in capitals": by_sql("alter system set \"Work_Mem\" to '64kB'"),
            "hba line": by_shell(f"sed -i '/ writer,/d' {HBA}"),
            "foreign hba line": by_shell(f"sed -i '1i host all all 0.0.0.0/0 trust' {HBA}"),
            "mode of pg_hba.conf": by_shell(f"chmod 644 {HBA}"),
        },
        [PREPARE, LISTEN, BOOT, CONFIGURE, ACCESS, RELOAD, UNDO],
    ),
    "listen address": (
        {
            "alter system": by_shell(
                "runuser -u postgres -- psql -c \"alter system set listen_addresses to '*'\" && "
                "systemctl restart postgresql@17-main"
            ),
            "file": by_shell(f"sed -i \"s/^listen_addresses.*/listen_addresses = '*'/\" {CONF}"),
        },
        [CONFIGURE, RELOAD, UNDO, RESTART],
    ),
    "the unit": (
        {
            "disabled": by_shell(f"sed -i s/^auto/disabled/ {START}"),
            "stopped": by_shell("systemctl stop postgresql@17-main"),
        },
        [BOOT, RELOAD],
    ),
}  # fmt: skip

# Everything that the changes above touch, without the passwords themselves.
STATE = f"""
{{ runuser -u postgres -- pg_dumpall --globals-only --no-role-passwords
    runuser -u postgres -- pg_dump --schema-only --create api; }} |
    grep -v -e ^.restrict -e ^.unrestrict -e ^-- | sort
runuser -u postgres -- psql -Atc "show listen_addresses; show work_mem;
    select datname, datdba::regrole, datconnlimit, unnest(datacl)::text from pg_database
    order by 1, 4"
for login in writer:api shop:shop; do
    role=${{login%:*}} database=${{login#*:}}
    export PGPASSWORD=$(cat /etc/terrafirma/secrets/postgres/$role)
    psql -h 127.0.0.1 -U $role -d $database -c '' 2>&1 | grep -o 'authentication failed.*'
done
stat -c '%n %a %U' /etc/terrafirma/secrets/postgres {CONF} {HBA}
stat -c '%n %a %U' /etc/terrafirma/secrets/postgres/*
sha256sum /usr/local/lib/terrafirma/terrafirma_host/*.py /etc/sysctl.d/60-terrafirma-*
sha256sum {CONF} {HBA} {START} /var/lib/postgresql/17/main/postgresql.auto.conf
sysctl net.ipv4.ip_nonlocal_bind
systemctl is-active postgresql@17-main
"""


@pytest.mark.promise(
    "A dry run names what was changed by hand, and a run repairs exactly that: roles, "
    "owners, rights, rules, settings, files, the service"
)
@pytest.mark.parametrize("group", DRIFTS)
def test_drift(server: Target, group: str) -> None:
    def state() -> str:
        return server.call(STATE).stdout

    changes, expected = DRIFTS[group]
    now = right = state()
    for what, change in changes.items():
        change(server)
        before, now = now, state()
        assert now != before, what
    assert server.plan(POSTGRES, **DATA) == expected
    assert changed(server.deploy(POSTGRES, **DATA)) == expected
    # A table keeps its owner.
    if group == "in the databases":
        owner = server.psql("select tableowner from pg_tables where tablename = 'stray'", "api")
        assert owner == "postgres"
        server.psql("drop schema side cascade; drop table stray;", "api")
    assert state() == right
    assert changed(server.deploy(POSTGRES, **DATA)) == []


def test_rights_that_an_undeclared_role_granted_are_revoked(server: Target) -> None:
    """The undeclared role keeps the rights that it was granted itself."""
    server.psql(
        "create role dba; grant usage on schema public to dba;"
        "grant select, insert on notes to dba with grant option;"
        "set role dba; grant insert on notes to reader;",
        "api",
    )
    assert server.plan(POSTGRES, **DATA) == [CONTENTS]
    assert changed(server.deploy(POSTGRES, **DATA)) == [CONTENTS]
    assert changed(server.deploy(POSTGRES, **DATA)) == []
    may = "select has_table_privilege('{}', 'notes', 'insert')"
    assert server.psql(may.format("reader"), "api") == "f"
    assert server.psql(may.format("dba"), "api") == "t"
    server.psql("drop owned by dba; drop role dba;", "api")


ODD = (
    "a=b",
    "host=/tmp",
    "postgres://x/y",
    "it's",
    'say "hi"',
    "a b",
    "back\\slash",
    "$(id)",
    "-c",
)


def test_databases_of_others_may_have_any_name(server: Target) -> None:
    for name in ODD:
        quoted = name.replace('"', '""')
        server.psql(f'create database "{quoted}"')
    server.psql("revoke select on notes from reader", "api")
    assert server.plan(POSTGRES, **DATA) == [CONTENTS]
    assert changed(server.deploy(POSTGRES, **DATA)) == [CONTENTS]
    assert changed(server.deploy(POSTGRES, **DATA)) == []
    for name in ODD:
        quoted = name.replace('"', '""')
        server.psql(f'drop database "{quoted}"')


# Functions that a superuser's session would call by mistake in a database with another search_path
# (CVE-2018-1058): each one makes the database's owner a superuser.
PLANTED = """
create function public.seize() returns void language plpgsql as $$ begin
    if (select rolsuper from pg_catalog.pg_roles where rolname operator(pg_catalog.=) current_user)
    then execute 'alter role api superuser'; end if;
end $$;
create function public.pg_get_userbyid(oid) returns name language plpgsql as $$ begin
    perform public.seize(); return pg_catalog.pg_get_userbyid($1); end $$;
create function public.current_database() returns name language plpgsql as $$ begin
    perform public.seize(); return pg_catalog.current_database(); end $$;
create function public.pg_total_relation_size(regclass) returns bigint language plpgsql as $$ begin
    perform public.seize(); return 0; end $$;
create function public.set_config(text, text, boolean) returns text language plpgsql as $$ begin
    perform public.seize(); return ''; end $$;
create function public.same(name, name) returns boolean language plpgsql as $$ begin
    perform public.seize(); return $1 operator(pg_catalog.=) $2; end $$;
create operator public.= (leftarg = name, rightarg = name, function = public.same);
create function public.same(oid, oid) returns boolean language plpgsql as $$ begin
    perform public.seize(); return $1 operator(pg_catalog.=) $2; end $$;
create operator public.= (leftarg = oid, rightarg = oid, function = public.same);
"""


@pytest.mark.promise(
    "A database owner cannot become superuser through functions planted for a run to call"
)
def test_an_owner_does_not_become_a_superuser(server: Target) -> None:
    """Neither through a declared database nor through one that the settings do not name."""
    server.psql("create database planted owner api")
    for name in ("api", "planted"):
        server.psql(f"set role api; {PLANTED}", name)
        server.psql(f"set role api; alter database {name} set search_path = public, pg_catalog;")
        server.psql(f"alter database {name} set role = 'api'")
    superuser = "select rolsuper from pg_roles where rolname = 'api'"
    # The trap works for a session without our options.
    server.psql("set role postgres; select current_database();", "planted")
    assert server.psql(superuser) == "t"
    server.psql("alter role api nosuperuser")
    server.psql("revoke select on notes from reader", "api")
    assert server.psql(superuser) == "f"
    expected = [DATABASES, CONTENTS]
    assert server.plan(POSTGRES, **DATA) == expected
    assert server.psql(superuser) == "f"
    server.deploy("commands/postgres_status.py", **DATA)
    assert server.psql(superuser) == "f"
    # The run resets the owner's settings for sessions. Another operation runs before that:
    server.psql("alter role reader password 'x'")
    assert changed(server.deploy(POSTGRES, **DATA)) == [
        "Give the roles their passwords", *expected,
    ]  # fmt: skip
    assert server.psql(superuser) == "f"
    server.psql("set role api; alter database api set search_path = public, pg_catalog;")
    data = json.loads(json.dumps(DATA)) | api(role="api")
    data["postgres_databases"][0] |= {"owner": "shop_owner", "settings": {}}
    data["postgres_databases"][0]["access"] = {"api": "write"}
    server.deploy(POSTGRES, **data)
    server.deploy(POSTGRES, **DATA)
    assert changed(server.deploy(POSTGRES, **DATA)) == []
    assert server.psql(superuser) == "f"
    server.psql("drop database planted")
    server.psql(
        "drop operator public.= (name, name); drop operator public.= (oid, oid);"
        "drop function seize, public.pg_get_userbyid, public.current_database,"
        " public.pg_total_relation_size, public.set_config, public.same(name, name),"
        " public.same(oid, oid);",
        "api",
    )


def test_a_system_account_is_not_the_role_of_its_name(server: Target) -> None:
    server.run("useradd --system reader")
    connect = "runuser -u reader -- psql -XAtqc 'select current_user' -d api"
    answer = server.call(connect)
    assert answer.returncode != 0
    assert "no pg_hba.conf entry" in answer.stderr
    # The password opens localhost. It goes over stdin: a command line ends up in the journal.
    known = f"read -r PGPASSWORD; export PGPASSWORD; {connect} -h localhost"
    assert server.run(known, stdin=f"{password(server, 'reader')}\n") == "reader"
    server.run("userdel reader")


@pytest.mark.promise(
    "Roles and databases that your settings do not mention are listed, and never changed"
)
def test_undeclared_roles_and_databases_are_listed_and_left_alone(server: Target) -> None:
    server.psql("create role stranger login; create database strange owner stranger;")
    server.psql("create extension hstore;", "api")
    result = server.pyinfra.imported.call("-y", *options(DATA), *server.arguments(), POSTGRES)
    assert result.returncode == 0
    for what in ("roles stranger", "databases strange", "extensions of api hstore"):
        assert f"Not in your settings, left alone: {what}" in result.stderr
    assert server.psql("select count(*) from pg_database where datname = 'strange'") == "1"
    assert server.psql("select count(*) from pg_roles where rolname = 'stranger'") == "1"


@pytest.mark.promise("A database is dumped to a file before it is dropped")
def test_a_dropped_database_leaves_a_dump(server: Target) -> None:
    drop = "commands/postgres_drop.py"
    server.psql("drop database strange")
    server.psql(
        "create database strange owner stranger template template0 locale 'C.UTF-8'"
        " locale_provider icu icu_locale 'de-DE';"
    )
    server.psql("alter database strange set work_mem to '8MB'; create role \"stranger~\";")
    server.psql("create table kept (text text); insert into kept values ('still here');", "strange")
    line = server.refuse(drop, **DATA, drop="strange")
    assert "127.0.0.1: confirm: '' is not 'strange'" in line
    strange = {"drop": "strange", "confirm": "strange"}
    assert server.plan(drop, **DATA, **strange) == ["Dump and drop the database strange"]
    assert server.psql("select count(*) from pg_database where datname = 'strange'") == "1"
    server.deploy(drop, **DATA, **strange)
    assert server.psql("select count(*) from pg_database where datname = 'strange'") == "0"
    dump = "/var/lib/terrafirma/dropped/strange.dump"
    assert server.run(f"stat -c %a:%U {dump}") == "600:root"
    # The dump restores the database; only rights to connect are left to the next run.
    server.run(f"runuser -u postgres -- pg_restore --create --dbname postgres < {dump}")
    assert server.psql("select text from kept", "strange") == "still here"
    assert server.psql("show work_mem", "strange") == "8MB"
    assert server.psql(
        "select datlocale, pg_get_userbyid(datdba) from pg_database where datname = 'strange'"
    ) == "de-DE|stranger"  # fmt: skip
    server.deploy(drop, **DATA, **strange)
    assert server.run("ls /var/lib/terrafirma/dropped") == "strange.2.dump\nstrange.dump"
    assert changed(server.deploy(drop, **DATA, **strange)) == []
    stranger = {"drop_role": "stranger", "confirm": "stranger"}
    left = "/etc/terrafirma/secrets/postgres/stranger~"
    server.run(f"touch '{left}'")
    server.deploy(drop, **DATA, **stranger)
    assert server.psql("select count(*) from pg_roles where rolname like 'stranger%'") == "0"
    assert server.call(f"test -e '{left}'").returncode != 0
    # As if the connection broke after the role was dropped: the file of the password is left.
    server.run(f"touch '{left}'")
    assert changed(server.deploy(drop, **DATA, **stranger)) == ["Drop the role stranger"]
    assert changed(server.deploy(drop, **DATA, **stranger)) == []
    server.psql("drop extension hstore", "api")


def test_a_new_owner_gets_all_objects_of_the_old_one(server: Target) -> None:
    server.psql(
        "set role api; create schema extra; create table extra.things (id serial primary key);"
        "create view seen as select * from extra.things; create type mood as enum ('good');"
        "create function one() returns int language sql as 'select 1';",
        "api",
    )
    data = json.loads(json.dumps(DATA)) | api(role="api")
    data["postgres_roles"].append({"name": "api_owner", "login": False})
    data["postgres_databases"][0] |= {"owner": "api_owner"}
    data["postgres_databases"][0]["access"]["api"] = "write"
    # A session holds a table for a long time. The run must not make the application wait.
    holder = subprocess.Popen(
        ["docker", "exec", server.name, "runuser", "-u", "postgres", "--", "psql", "-Xqd", "api",
         "-c", "begin", "-c", "lock table notes in access share mode", "-c", "select pg_sleep(60)"],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    locks = "select count(*) from pg_locks where relation = 'notes'::regclass"
    eventually(lambda: server.psql(locks, "api") == "1", 10)
    result = server.pyinfra.imported.call("-y", *options(data), *server.arguments(), POSTGRES)
    assert result.returncode != 0
    assert "postgres_databases: api keeps its owner for now: a transaction holds" in result.stderr
    owner = "select pg_get_userbyid(datdba) from pg_database where datname = 'api'"
    assert server.psql(owner) == "api"
    server.psql(
        "select pg_terminate_backend(pid) from pg_stat_activity "
        "where query ~ 'pg_sleep' and pid <> pg_backend_pid()"
    )
    holder.wait(10)
    server.deploy(POSTGRES, **data)
    left = (
        "select count(*) from pg_class where pg_get_userbyid(relowner) = '{0}' and relkind <> 'i'"
        " and relnamespace <> 'pg_toast'::regnamespace;"
    )
    assert server.psql(left.format("api"), "api") == "0"
    assert server.psql("select pg_get_userbyid(proowner) from pg_proc where proname = 'one'",
                       "api") == "api_owner"  # fmt: skip
    case = [("api", password(server, "api"), "api", "insert into visits (replica) values ('x')"),
            ("api", password(server, "api"), "api", "drop table visits")]  # fmt: skip
    assert sessions(server, "apps", case)[0] == "done"
    assert "must be owner of table visits" in sessions(server, "apps", case)[1]
    assert changed(server.deploy(POSTGRES, **data)) == []
    # And back.
    server.deploy(POSTGRES, **DATA)
    assert changed(server.deploy(POSTGRES, **DATA)) == []
    assert server.psql(left.format("api_owner"), "api") == "0"


def test_a_new_network_is_in_the_plan(server: Target) -> None:
    """A network outside the pool is refused until a run adds a line for it."""
    server.run("docker network create --subnet 10.77.0.0/24 far")
    case = [("api", password(server, "api"), "api", "select 1")]
    assert REJECTED in sessions(server, "far", case)[0]
    arguments = ("--dry", "--diff", *options(DATA), *server.arguments(), POSTGRES)
    result = server.pyinfra.imported.call(*arguments)
    assert "+ host  api  api,api~  10.77.0.0/24  scram-sha-256" in result.stderr
    assert server.plan(POSTGRES, **DATA) == [ACCESS, RELOAD]
    assert changed(server.deploy(POSTGRES, **DATA)) == [ACCESS, RELOAD]
    assert sessions(server, "far", case) == ["1"]
    server.run("docker network rm far later")
    assert changed(server.deploy(POSTGRES, **DATA)) == [ACCESS, RELOAD]


def test_a_file_that_is_being_checked_is_not_live(server: Target) -> None:
    """If the check is killed, perhaps by the kernel, the old file stays."""
    hba = "/etc/postgresql/17/main/pg_hba.conf"
    before = server.run(f"sha256sum {hba}")
    server.run("docker network create --subnet 10.78.0.0/24 killed")
    cut = subprocess.Popen(
        ["docker", "exec", server.name, "bash", "-c",
         "until pgrep -f 'initd[b] -D /tmp' > /dev/null; do :; done;"
         " pkill -9 -f 'pg_hba_file[_]rules|initd[b] -D /tmp'"]
    )  # fmt: skip
    result = server.pyinfra.imported.call("-y", *options(DATA), *server.arguments(), POSTGRES)
    assert cut.wait(30) == 0
    assert result.returncode != 0
    assert server.run(f"sha256sum {hba}") == before
    assert changed(server.deploy(POSTGRES, **DATA)) == [ACCESS, RELOAD]
    assert "10.78.0.0/24" in server.run(f"cat {hba}")
    server.run("docker network rm killed")
    assert changed(server.deploy(POSTGRES, **DATA)) == [ACCESS, RELOAD]


def test_the_log_is_rotated(server: Target) -> None:
    log = "/var/log/postgresql/postgresql-17-main.log"
    server.run("logrotate --force /etc/logrotate.d/postgresql-common")
    assert server.run(f"ls {log}.1")
    server.psql("select pg_sleep(1.1)")
    eventually(lambda: "pg_sleep" in server.run(f"cat {log}"), 10)


@pytest.mark.promise(
    "A run with 500 more roles and 200 more databases asks at most 1.5 times as many questions"
)
@pytest.mark.long
def test_many_roles_and_databases_cost_no_more_questions(server: Target) -> None:
    names = [f"many_{number}" for number in range(200)]
    readers = [f"reader_{number}" for number in range(300)]
    many = DATA | {
        "postgres_roles": [*DATA["postgres_roles"], *({"name": name} for name in names + readers)],
        "postgres_databases": [
            *DATA["postgres_databases"],
            *(
                {"name": name, "owner": name, "access": {readers[number]: "read"}}
                for number, name in enumerate(names)
            ),
        ],
    }

    def questions(data: dict[str, Any]) -> int:
        result = server.pyinfra.imported.call(
            "-y", "-vv", *options(data), *server.arguments(), POSTGRES
        )
        assert result.returncode == 0, result.stderr
        return result.stderr.count(">>> ")

    few = questions(DATA)
    server.deploy(POSTGRES, **many)
    assert changed(server.deploy(POSTGRES, **many)) == []
    assert few > 5
    assert questions(many) <= few * 1.5


# --- who connects from where ----------------------------------------------------------------------


@pytest.fixture
def neighbour(server: Target) -> Iterator[Container]:
    """
    A container beside the server with psycopg and a route to docker0's address.

    The firewall is off meanwhile, which would stop its packets before PostgreSQL.
    """
    with bystander("tf-test-neighbour") as container:
        docker0 = networks(server)["bridge"]
        # The container itself may not set routes; a second one that shares its network may.
        output(
            "docker", "run", "--rm", "--network", f"container:{container.name}", "--cap-add",
            "NET_ADMIN", BYSTANDER, "ip", "route", "add", docker0, "via", server.address,
        )  # fmt: skip
        server.run("systemctl stop terrafirma-firewall && nft delete table inet terrafirma")
        yield container
        server.run("systemctl start terrafirma-firewall")


@pytest.mark.promise(
    "PostgreSQL accepts each client for its own database only. Two applications, other "
    "networks, the server's neighbours, the superuser, a wrong password and a role that "
    "lost its access try it"
)
def test_logins(server: Target, neighbour: Container) -> None:
    data = json.loads(json.dumps(DATA))
    known = {role: password(server, role) for role in ("api", "shop", "deployer", "reader", "ann")}
    del data["postgres_databases"][0]["access"]["deployer"]
    server.deploy(POSTGRES, **data)
    server.psql("revoke connect on database api from reader; alter role ann nologin;")
    addresses = {
        NEIGHBOUR: server.psql("show listen_addresses").split(",")[1],
        OUTSIDE: server.address,
    }
    try:
        for place in dict.fromkeys(login[0] for login in LOGINS):
            here = [login for login in LOGINS if login[0] == place]
            cases = []
            for _, who, whose, database, _ in here:
                role = who.split(",")[0]
                owner = role if whose == OWN else whose.removesuffix("'s")
                cases.append((role, known.get(owner, "wrong"), database, "select current_user"))
            if place in addresses:
                answers = neighbour.python(SESSIONS, addresses[place], json.dumps(cases))
            else:
                answers = sessions(server, place, cases)
            for login, answer in zip(here, answers, strict=True):
                expected = login[4]
                assert answer == expected or (" " in expected and expected in answer), (
                    login,
                    answer,
                )
    finally:
        assert changed(server.deploy(POSTGRES, **DATA)) == [
            ACCESS, RELOAD, ROLES, DATABASES,
        ]  # fmt: skip


TRY = """
import json, sys
from pathlib import Path
import psycopg
from psycopg.conninfo import make_conninfo

url = Path("/run/secrets/database_url").read_text().strip()
answers = []
for other in json.loads(sys.argv[1]):
    try:
        with psycopg.connect(make_conninfo(url, **other), connect_timeout=5) as connection:
            row = connection.execute("select current_user, current_database()").fetchone()
            answers.append(" in ".join(row))
    except psycopg.Error as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


@pytest.mark.promise(like=test_logins)
def test_two_applications_do_not_see_each_other(server: Target) -> None:
    """The replicas themselves try it, each with its own URL."""
    data = json.loads(json.dumps(DATA))
    data["postgres_databases"][1]["access"]["shop"] = "migrate"
    data |= beside_api(
        shop={
            "source": "examples/api", "domain": "shop.terrafirma.test", "database": "shop",
            "role": "shop", "port": 8128, "replicas": 1,
        }
    )  # fmt: skip
    tries = [{}, {"dbname": "api"}, {"dbname": "shop"}, {"dbname": "postgres"},
             {"user": "api"}, {"user": "shop"}, {"user": "postgres"}]  # fmt: skip
    expected = {
        "api": ["api in api", "api in api", REJECTED, REJECTED, "api in api", REJECTED, REJECTED],
        "shop": ["shop_owner in shop", REJECTED, "shop_owner in shop", REJECTED, REJECTED,
                 "shop_owner in shop", REJECTED],
    }  # fmt: skip
    server.deploy(**data)
    try:
        for name, answers in expected.items():
            replica = server.run(f"docker ps -q --filter label=terrafirma.app={name} | head -n 1")
            found = json.loads(
                server.run(
                    f"docker exec -i {replica} python3 - {shlex.quote(json.dumps(tries))}",
                    stdin=TRY,
                )
            )
            for how, wanted, answer in zip(tries, answers, found, strict=True):
                assert wanted in answer, (name, how, answer)
    finally:
        server.run(
            "docker rm --force $(docker ps -aq --filter label=terrafirma.app=shop);"
            " rm /etc/terrafirma/apps/shop.json"
        )
        server.deploy(**DATA)
    assert changed(server.deploy(**DATA)) == []


def test_a_database_has_its_locale_encoding_and_limit(server: Target) -> None:
    """Text sorts as in its language, or by code point; the cluster has checksums and UTF-8."""
    assert [server.psql("select 'ä' < 'z', 'a' < 'Z'", name) for name in ("api", "shop")] == [
        "f|f", "t|t",
    ]  # fmt: skip
    sql = (
        "select datname, pg_encoding_to_char(encoding), datlocprovider, datconnlimit"
        " from pg_database where datname in ('api', 'shop') order by 1"
    )
    assert server.psql(sql).splitlines() == ["api|UTF8|c|80", "shop|UTF8|i|-1"]
    assert server.psql("show data_checksums") == "on"


# --- settings with which PostgreSQL would not start -----------------------------------------------

# Settings that the parser accepts, and PostgreSQL's error when it starts with them.
WOULD_NOT_START: dict[str, tuple[dict[str, Any], str]] = {
    "memory": ({"shared_buffers": "4TB"}, "could not map anonymous shared memory"),
    "two that do not fit": ({"wal_level": "minimal"}, 'requires "wal_level" to be "replica"'),
    "certificate": ({"ssl_cert_file": "/nowhere"}, 'server certificate file "/nowhere"'),
    "library": ({"shared_preload_libraries": "nowhere"}, 'could not access file "nowhere"'),
}


@pytest.mark.parametrize(
    "what",
    # All take the same way through the code; only PostgreSQL's message differs.
    [
        pytest.param(what, marks=pytest.mark.long if number else ())
        for number, what in enumerate(WOULD_NOT_START)
    ],
)
def test_settings_with_which_postgresql_would_not_start_are_refused(
    server: Target, what: str
) -> None:
    chosen, words = WOULD_NOT_START[what]
    data = DATA | {"postgres_settings": chosen}
    server.deploy(POSTGRES, **DATA)
    since = "systemctl show --property ActiveEnterTimestamp,MainPID postgresql@17-main"
    before = server.run(f"{since}; sha256sum {CONF}")
    result = server.pyinfra.imported.call("-y", *options(data), *server.arguments(), POSTGRES)
    assert result.returncode != 0
    (line,) = (one for one in result.stderr.splitlines() if "would not start" in one)
    assert "postgres_settings: " in line
    assert words in line
    assert server.run(f"{since}; sha256sum {CONF}") == before
    assert server.run("ls -A /tmp | grep terrafirma || true") == ""
    assert changed(server.deploy(POSTGRES, **DATA)) == []


def test_a_trial_of_settings_touches_nothing_else(server: Target) -> None:
    """The trial server archives nothing, and writes no pid file."""
    archive = {"archive_mode": "on", "archive_command": "touch /tmp/archived"}
    data = DATA | {"postgres_settings": archive}
    before = server.run("cat /run/postgresql/17-main.pid")
    result = server.pyinfra.imported.call(
        "-y", *options(data | {"postgres_settings": archive | {"wal_level": "minimal"}}),
        *server.arguments(), POSTGRES,
    )  # fmt: skip
    assert "would not start" in result.stderr
    assert server.run("cat /run/postgresql/17-main.pid") == before
    # Broken lines in the present file do not keep a run from replacing it.
    server.run(f"echo \"shared_buffers = '4TB'\" >> {CONF}")
    server.run(f"echo 'no such setting' >> {CONF}")
    assert changed(server.deploy(POSTGRES, **DATA)) == [CONFIGURE, RELOAD]
    assert server.call("test -e /tmp/archived").returncode != 0
