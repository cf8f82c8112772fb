"""The facts of a PostgreSQL cluster, whether it runs or not."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyinfra.api import FactBase, FactProcessError

from terrafirma.paths import HOST_PROGRAM, PASSWORDS_PROGRAM
from terrafirma.postgres.facts import (
    CONNECT,
    PSQL_OPTIONS,
    Contents,
    Databases,
    Roles,
    Server,
    WrongPasswords,
    at_server,
    connect,
    psql,
)
from terrafirma.postgres.upgrade_facts import UpgradeProgress, UpgradeState
from tests.unit.facts import Cluster, ask, shell, text
from tests.unit.programs import Program

# Shortened answers of PostgreSQL 15 for a cluster of a test.
ROLES = """\
{ "postgres" : {"login" : true, "superuser" : true, "create_database" : true, \
"create_role" : true, "replication" : true, "bypass_rls" : true, "inherit" : true, \
"expires" : false, "connection_limit" : -1, "member_of" : [], "settings" : []}, \
"reader" : {"login" : true, "superuser" : false, "create_database" : false, \
"create_role" : false, "replication" : false, "bypass_rls" : false, "inherit" : true, \
"expires" : false, "connection_limit" : 20, \
"member_of" : [["owner", "", true], ["pg_monitor", "dba", false]], \
"settings" : ["jit=off","search_path=\\"$user\\", public"]} }
""".splitlines()
DATABASES = """\
{ "shop" : {"owner" : "owner", "encoding" : "UTF8", "locale" : "de-DE", \
"connection_limit" : 30, "connectable" : true, "template" : false, \
"acl" : [["owner", "CREATE"], \
["owner", "TEMPORARY"], ["owner", "CONNECT"], ["reader", "CONNECT"]], \
"handed" : [["dba", "reader", "CONNECT"]], \
"settings" : ["statement_timeout=5000"], "role_settings" : {"mig" : ["role=owner"]}}, \
"postgres" : {"owner" : "postgres", "encoding" : "UTF8", "locale" : "C.UTF-8", \
"connection_limit" : -1, "connectable" : true, "template" : false, \
"acl" : [["public", "TEMPORARY"], \
["public", "CONNECT"]], "handed" : [], "settings" : [], "role_settings" : {}} }
""".splitlines()
CONTENTS = """\
{"database" : "postgres", "extensions" : ["plpgsql"], "schemas" : {}, "default_acl" : []}
{"database" : "shop", "extensions" : ["hstore","plpgsql"], "schemas" : { "public" : \
{"owner" : "pg_database_owner", "of_extension" : false, \
"acl" : [["public", "USAGE"], ["reader", "USAGE"]], "handed" : [["r", "dba", "", "SELECT"]], \
"tables" : 2, "sequences" : 1, "table_acl" : [["reader", "SELECT", 2]], \
"sequence_acl" : [["reader", "SELECT", 1]], \
"default_acl" : [["owner", "r", "reader", "SELECT", false]], \
"strangers" : [["dba", "r", 1]]} }, "default_acl" : [["owner", "r", "reader", "SELECT"]]}
""".splitlines()


def test_roles_of_a_cluster() -> None:
    roles = Roles().process(ROLES)
    assert roles
    assert list(roles) == ["postgres", "reader"]
    assert roles["postgres"]["superuser"]
    assert roles["reader"] == {
        "login": True,
        "superuser": False,
        "create_database": False,
        "create_role": False,
        "replication": False,
        "bypass_rls": False,
        "inherit": True,
        "expires": False,
        "connection_limit": 20,
        "member_of": [["owner", "", True], ["pg_monitor", "dba", False]],
        "settings": ["jit=off", 'search_path="$user", public'],
    }


def test_databases_of_a_cluster() -> None:
    databases = Databases().process(DATABASES)
    assert databases
    assert list(databases) == ["shop", "postgres"]
    assert databases["shop"] == {
        "owner": "owner",
        "encoding": "UTF8",
        "locale": "de-DE",
        "connection_limit": 30,
        "connectable": True,
        "template": False,
        "acl": [
            ["owner", "CREATE"],
            ["owner", "TEMPORARY"],
            ["owner", "CONNECT"],
            ["reader", "CONNECT"],
        ],
        "handed": [["dba", "reader", "CONNECT"]],
        "settings": ["statement_timeout=5000"],
        "role_settings": {"mig": ["role=owner"]},
    }


def test_contents_of_the_databases_of_a_cluster() -> None:
    contents: Any = Contents().process(CONTENTS)
    assert contents
    assert contents == Contents().process([CONTENTS[0], "", CONTENTS[1]])
    assert list(contents) == ["postgres", "shop"]
    assert contents["postgres"] == {
        "extensions": ["plpgsql"],
        "schemas": {},
        "default_acl": [],
    }
    assert contents["shop"]["default_acl"] == [["owner", "r", "reader", "SELECT"]]
    assert contents["shop"]["extensions"] == ["hstore", "plpgsql"]
    assert contents["shop"]["schemas"]["public"] == {
        "owner": "pg_database_owner",
        "of_extension": False,
        "acl": [["public", "USAGE"], ["reader", "USAGE"]],
        "handed": [["r", "dba", "", "SELECT"]],
        "tables": 2,
        "sequences": 1,
        "table_acl": [["reader", "SELECT", 2]],
        "sequence_acl": [["reader", "SELECT", 1]],
        "default_acl": [["owner", "r", "reader", "SELECT", False]],
        "strangers": [["dba", "r", 1]],
    }


def test_the_state_of_the_settings_of_a_server() -> None:
    """A shortened answer of PostgreSQL 17, after a reload with other shared_buffers."""
    answer = (
        '{"pending" : ["shared_buffers"], "restart" : ["archive_mode","port","shared_buffers"], '
        '"by_hand" : ["work_mem"]}'
    )
    assert Server().process([answer]) == {
        "pending": ["shared_buffers"],
        "restart": ["archive_mode", "port", "shared_buffers"],
        "by_hand": ["work_mem"],
    }


@pytest.mark.parametrize("fact", [Contents, Databases, Roles, Server])
def test_a_missing_cluster_holds_nothing(
    fact: type[FactBase[Any]], program: Program, cluster: Cluster
) -> None:
    program("runuser", "echo 'psql: error: connection to server failed' >&2; exit 2")
    assert ask(fact, cluster.is_not_there(), version=17) == fact().default()


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize(
    ("fact", "answer"),
    [(Contents, None), (Databases, None), (Roles, None), (Server, Server.default())],
)
def test_a_cluster_that_is_down_does_not_show_what_it_holds(
    fact: type[FactBase[Any]], answer: Any, program: Program, cluster: Cluster, left: bool
) -> None:
    """If it were taken for empty, a run would create its content a second time."""
    program("runuser", "echo 'psql: error: connection to server failed' >&2; exit 2")
    # After a crash the pid file is left, and another process may have that pid.
    path = cluster.runs(pid=os.getpid()) if left else cluster.is_down()
    assert ask(fact, path, version=17) == answer


@pytest.mark.parametrize("fact", [Databases, Roles, Server])
def test_the_query_reaches_psql_unharmed(
    fact: type[FactBase[Any]], program: Program, cluster: Cluster
) -> None:
    """The query is quoted for the shell, and reaches psql over standard input."""
    cluster.runs()
    path = program("runuser", 'cat > "$0.input"; echo "$*" > "$0.arguments"; echo \'{"a": 1}\'')
    assert shell(text(fact, version=17), path) == ['{"a": 1}']
    query = (path / "runuser.input").read_text()
    assert query.removeprefix("do 'begin perform from pg_file_settings; end'; ").startswith(
        "select json_"
    )
    assert query.count("(") == query.count(")")
    assert query.count("'") % 2 == 0
    assert "\\" not in query
    assert "/usr/lib/postgresql/17/bin/psql" in (path / "runuser.arguments").read_text()


def at_this_server(program: Program, cluster: Cluster) -> str:
    """A command line for a psql that prints where and how it connects."""
    program("runuser", 'test "$1 $2 $3" = "-u postgres --" && shift 3 && exec "$@"')
    program("psql", 'echo "$PGHOST $PGPORT $PGOPTIONS"; echo "$*"; cat')
    return at_server(17, "psql -d 'a b' postgres", "-c jit=off").replace(
        "/usr/lib/postgresql/17/bin/", ""
    )


def test_a_server_is_asked_where_it_listens(program: Program, cluster: Cluster) -> None:
    """The configuration may already name the port or socket of the next start."""
    command = at_this_server(program, cluster)
    path = cluster.runs(socket="/run/else where")
    where, arguments, said = shell(f"echo hello | {command}", path)
    options = f"{PSQL_OPTIONS} -c transaction_timeout=0 -c jit=off"
    assert where == f"/run/else where 6543 {options}"
    assert arguments == "-d a b postgres"
    assert said == "hello"


def test_settings_of_a_database_do_not_affect_our_sessions() -> None:
    """A time limit of 1 ms, or an encoding that lacks characters, would break them."""
    for one in ("lock_timeout=0", "idle_session_timeout=0", "client_encoding=UTF8"):
        assert f"-c {one}" in psql(15)
    # PostgreSQL ends a session with an unknown setting.
    assert [one for one in (15, 16, 17, 18) if "-c transaction_timeout=0" in psql(one)] == [17, 18]
    # A last dump keeps the database's own encoding: SQL_ASCII cannot be converted.
    assert "client_encoding" not in at_server(17, "pg_dump api")


@pytest.mark.parametrize("what", ["down", "crashed", "without a socket", "not there"])
def test_no_other_server_is_asked_instead(program: Program, cluster: Cluster, what: str) -> None:
    command = at_this_server(program, cluster)
    path = {
        "down": cluster.is_down,
        "crashed": lambda: cluster.runs(pid=os.getpid()),
        "without a socket": lambda: cluster.runs(socket=""),
        "not there": cluster.is_not_there,
    }[what]()
    with pytest.raises(AssertionError, match="exit 2: 17/main does not run, or has no socket"):
        shell(f"echo hello | {command}", path)


# Both run at the same time; the first is recognised by its query.
TWO_PSQLS = """\
case $* in */17/bin/psql*postgres) ;; *) exit 9 ;; esac
cat > "$0.$$"
case $(cat "$0.$$") in
select*) mv "$0.$$" "$0.first"
printf '%s\\n' '\\connect "a b"' '\\connect "tab\\t%s$(touch canary)"' '  blanks ' 'x  blanks ' ;;
*) mv "$0.$$" "$0.second"
echo '{"database": "a b", "extensions": [], "schemas": {}, "default_acl": []}' ;;
esac"""


def test_all_databases_are_asked_with_one_command(
    program: Program, cluster: Cluster, no_canary: None
) -> None:
    """The names come from the cluster itself: any role that may create databases chose them."""
    cluster.runs()
    path = program("runuser", TWO_PSQLS)
    wanted = '\\connect "a b"\n\\connect "new"\n\\connect "tab\\t%s$(touch canary)"\n  blanks \n'
    answer = ask(Contents, path, stdin=wanted, version=17)
    assert list(answer) == ["a b"]
    assert (path / "runuser.first").read_text() == " ".join(CONNECT.split())
    sent = (path / "runuser.second").read_text().splitlines()
    assert sent[::2] == [
        '\\connect "a b"',
        '\\connect "tab\\t%s$(touch canary)"',
        "  blanks ",
    ]
    (query,) = set(sent[1::2])
    assert query.startswith("with spaces as (")
    assert query.endswith(";")
    assert query.count("(") == query.count(")")
    assert query.count("'") % 2 == query.count('"') % 2 == 0


def test_only_databases_in_the_settings_are_asked(program: Program, cluster: Cluster) -> None:
    """Lines are matched exactly, so a broken other database does not matter."""
    assert connect("api") == """\\connect -reuse-previous=on "dbname='api'\""""
    cluster.runs()
    lines = "".join(f"{connect(name)}\n" for name in ("api", "api2", "xapi", "a.i"))
    path = program("runuser", TWO_PSQLS)
    (path / "lines").write_text(lines)
    program("runuser", re.sub(r"\nprintf .*;;", f"\ncat {path}/lines ;;", TWO_PSQLS))
    ask(Contents, path, stdin=f"{connect('postgres')}\n{connect('api')}\n", version=17)
    sent = (path / "runuser.second").read_text().splitlines()
    assert sent[::2] == [connect("api")]


def test_a_failed_list_of_databases_is_no_answer(program: Program, cluster: Cluster) -> None:
    """Otherwise a cluster that refuses one more connection would be taken for an empty one."""
    cluster.runs()
    failing = "select*) echo 'psql: error: too many clients already' >&2; exit 2"
    path = program("runuser", TWO_PSQLS.replace("select*) ", f"{failing} ;;\nnever) "))
    with pytest.raises(AssertionError, match="too many clients"):
        shell(text(Contents, version=17), path)
    assert not (path / "runuser.second").exists()


PROGRAM_ASKED = "given api czNjcmV0LXMzY3JldC1zM2NyZXQ=\ngenerated worker\n"


def wrong_passwords(stdin: str, program: Path, path: Path | None = None) -> list[str]:
    command = text(WrongPasswords, version=17)
    assert command.count(PASSWORDS_PROGRAM) == 1
    command = command.replace(PASSWORDS_PROGRAM, str(program))
    # `--help` shows whether the program starts at all.
    command = command.replace(f"{HOST_PROGRAM} --help", f"{program} --help")
    return WrongPasswords().process(shell(command, path, stdin))


def test_the_command_that_asks_for_passwords_is_the_same_for_any_role() -> None:
    """The process list and pyinfra show the command; passwords go over standard input."""
    assert "czNjcmV0" not in text(WrongPasswords, version=17)


def test_passwords_are_all_wrong_where_there_is_no_cluster(
    program: Program, cluster: Cluster
) -> None:
    path = cluster.is_not_there()
    program("passwords", "exit 9")
    assert wrong_passwords(PROGRAM_ASKED, path / "passwords", path) == ["api", "worker"]


def test_passwords_are_all_wrong_before_the_program_is_installed(
    program: Program, cluster: Cluster
) -> None:
    path = cluster.runs()
    assert wrong_passwords(PROGRAM_ASKED, path / "no", path) == ["api", "worker"]


@pytest.mark.parametrize(
    ("script", "known"),
    [
        ("exit 2", True),
        ('test "$1" = --help || exit 1', False),
        ('test "$1" = --help || exit 3', False),
        # A program that a killed run left half replaced does not start.
        ("exit 1", True),
    ],
)
def test_a_program_of_another_version_says_nothing_of_passwords(
    program: Program, cluster: Cluster, script: str, *, known: bool
) -> None:
    """An older program refuses unknown arguments; any other failure is a failure of the fact."""
    path = cluster.runs()
    program("passwords", script)
    if known:
        assert wrong_passwords(PROGRAM_ASKED, path / "passwords", path) == ["api", "worker"]
    else:
        with pytest.raises(AssertionError, match="exit 1"):
            wrong_passwords(PROGRAM_ASKED, path / "passwords", path)


@pytest.mark.parametrize("line", ["s3cret", "", "wrong", "wrong a b", "right a"])
def test_an_unknown_answer_about_passwords_is_not_shown(line: str) -> None:
    with pytest.raises(FactProcessError) as error:
        WrongPasswords().process([line])
    assert "s3cret" not in str(error.value)


def test_a_server_that_is_down_does_not_say_which_passwords_are_wrong(
    program: Program, cluster: Cluster
) -> None:
    path = cluster.is_down()
    program("passwords", "exit 9")
    assert wrong_passwords(PROGRAM_ASKED, path / "passwords", path) == []


def test_the_program_on_the_host_is_asked_for_wrong_passwords(
    program: Program, cluster: Cluster
) -> None:
    path = cluster.runs()
    program("passwords", 'echo "$*" > "$0.arguments"; cat > "$0.input"; echo wrong worker')
    assert wrong_passwords(PROGRAM_ASKED, path / "passwords", path) == ["worker"]
    assert (path / "passwords.arguments").read_text() == "check 17\n"
    assert (path / "passwords.input").read_text() == PROGRAM_ASKED


def test_no_role_has_no_wrong_password(program: Program, cluster: Cluster) -> None:
    path = cluster.is_not_there()
    assert wrong_passwords("", path / "no", path) == []


@pytest.fixture
def needs(program: Program, tmp_path: Path) -> Callable[[], Any]:
    """Asks a host whose database `shop` uses two extensions, and whose data are on this machine."""
    data = tmp_path / "it's data"
    data.mkdir()
    (data / "rows").write_bytes(b"x" * 4_000_000)
    (data / "pg_tblspc").mkdir()
    program("pg_lsclusters", 'printf "15  main    5432 online postgres %s log\\n" "$DATA"')
    program(
        "runuser",
        r"""case "$*" in *search_path=pg_catalog*15/main*psql*) ;; *) exit 9 ;; esac
        while IFS= read -r line || test -n "$line"; do case $line in
        *datname*) printf '%s\n' '\connect "dbname=my shop"' '\connect "dbname=postgres"' ;;
        '\connect "dbname=my shop"') name=shop ;;
        '\connect "dbname=postgres"') name= ;;
        *shared_preload_libraries*)
            printf '/usr/lib/postgresql/15/lib/%s.so\n' pg_cron auto_explain ;;
        *extname*) for name in plpgsql ${name:+vector}; do
            echo "/usr/share/postgresql/15/extension/$name.control"; done ;;
        *) exit 9 ;;
        esac; done""",
    )
    program(
        "dpkg",
        """case "$2" in
        */plpgsql.control|*/auto_explain.so) echo "postgresql-15: $2" ;;
        */vector.control) echo "postgresql-15-pgvector: $2" ;;
        */pg_cron.so) echo "postgresql-15-cron: $2" ;;
        *) echo "dpkg-query: no path found matching pattern $2" >&2; exit 1 ;;
        esac""",
    )
    path = program("apt-cache", 'echo "$2" | grep -v cron; echo "$2-dbgsym"')

    def ask_it() -> Any:
        # A path without blanks, as on Debian.
        link = tmp_path / "data"
        link.symlink_to(data)
        command = text(UpgradeState, old=15, new=17).replace("/var/lib/postgresql", str(tmp_path))
        return UpgradeState().process(shell(f"DATA={link}; export DATA; {command}", path))

    return ask_it


def test_the_needs_of_an_upgrade(needs: Callable[[], Any], tmp_path: Path) -> None:
    state = needs()
    assert state["online"]
    assert 3900 < state["size"] < 4200
    assert state["free"] == pytest.approx(shutil.disk_usage(tmp_path).free // 1024, rel=0.2)
    type_ = subprocess.check_output(["stat", "-f", "-c", "%T", tmp_path], text=True).strip()
    assert state["may_share"] is (type_ in ("xfs", "btrfs"))
    assert state["packages"] == ["postgresql-17", "postgresql-17-cron", "postgresql-17-pgvector"]
    assert state["missing"] == ["postgresql-17-cron"]
    assert state["inside"] == []


@pytest.mark.parametrize(
    ("types", "may_share"),
    [
        (["xfs", "xfs"], True),
        (["btrfs", "btrfs"], True),
        (["xfs", "ext2/ext3"], False),
        (["tmpfs", "tmpfs"], False),
        ([""], False),
    ],
)
def test_file_systems_on_which_a_copy_may_take_no_room(
    types: list[str], *, may_share: bool
) -> None:
    lines = ["online=yes", "size=7", "free=1000", *(f"type={one}" for one in types)]
    assert UpgradeState().process(lines)["may_share"] is may_share


def test_tablespaces_inside_the_old_data(needs: Callable[[], Any], tmp_path: Path) -> None:
    data = tmp_path / "it's data"
    for number, place in enumerate((tmp_path, data), 1):
        (place / "far").mkdir()
        (data / "pg_tblspc" / str(number)).symlink_to(place / "far")
    # A tablespace in place, which only developers use.
    (data / "pg_tblspc" / "3").mkdir()
    assert needs()["inside"] == [f"{data}/far", f"{data}/pg_tblspc/3"]


@pytest.mark.parametrize(
    "answer",
    [
        "echo 'Error: cluster 15 main does not exist' >&2; exit 1",
        "echo '15  main    5432 down   postgres /var/lib/postgresql/15/main log'",
    ],
)
def test_a_cluster_that_does_not_run_is_not_upgraded(program: Program, answer: str) -> None:
    path = program("pg_lsclusters", answer)
    assert ask(UpgradeState, path, old=15, new=17) == UpgradeState().default()


def test_the_progress_of_an_upgrade(tmp_path: Path) -> None:
    """The state is read before the log, so the last lines are not lost."""
    command = text(UpgradeProgress, seen=1).replace("/run/systemd/transient", str(tmp_path))
    command = command.replace("/var/lib/terrafirma/upgrade/log", f"{tmp_path}/log")
    assert UpgradeProgress().process(shell(command)) == {"running": False, "lines": []}
    (tmp_path / "log").write_text("Stopping 15/main\nStarting 17/main\nfinished\n")
    (tmp_path / "terrafirma-postgres-upgrade.service").touch()
    state = UpgradeProgress().process(shell(command))
    assert state == {"running": True, "lines": ["Starting 17/main", "finished"]}
