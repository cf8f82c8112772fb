"""PgBouncer's user list, and a PgBouncer that Terrafirma did not set up."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from terrafirma.pgbouncer.facts import ForeignPooler, UserList
from tests.unit.facts import Cluster, ask, shell, text
from tests.unit.programs import Program

USER_LIST = "/etc/pgbouncer/userlist.txt"
VERIFIERS = (
    '"api" "SCRAM-SHA-256$4096:c2FsdA==$c3RvcmVk:c2VydmVy"\n"worker" "SCRAM-SHA-256$1:a$b:c"'
)


@pytest.fixture
def users(program: Program, cluster: Cluster, tmp_path: Path) -> Callable[..., Any]:
    """The fact's answer about a user list; checks that it shows no verifier."""

    def read(
        content: str | None, known: str = VERIFIERS, *, mode: str = "640:root:postgres"
    ) -> Any:
        cluster.runs()
        program("stat", f"echo {mode}")
        (tmp_path / "known").write_text(known)
        path = program("runuser", f'cat > "$0.input"; cat "{tmp_path}/known"')
        file = tmp_path / "userlist.txt"
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_text(content)
        command = text(UserList, version=17, roles=["api", "worker"])
        assert USER_LIST in command
        output = shell(command.replace(USER_LIST, str(file)), path)
        assert "SCRAM" not in "".join(output)
        query = (path / "runuser.input").read_text()
        # NAME~ is the second login of the role while its password is renewed.
        assert "rolname = any('{api,api~,worker,worker~}')" in query
        assert "and rolpassword like 'SCRAM-SHA-256$%'" in query
        return UserList().process(output) if output else UserList().default()

    return read


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        (f"; Managed by Terrafirma: tasks/pgbouncer.py\n{VERIFIERS}\n", "right"),
        (VERIFIERS, "right"),
        (f'{VERIFIERS}\n"postgres" ""\n', "wrong"),
        (VERIFIERS.replace("c2FsdA", "b2xk"), "wrong"),
        (VERIFIERS.splitlines()[0], "wrong"),
        ("", "wrong"),
        (None, "wrong"),
    ],
)
def test_a_user_list_is_compared_with_the_cluster(
    users: Callable[..., Any], content: str | None, answer: str
) -> None:
    assert users(content) == answer


def test_a_user_list_has_both_logins_of_a_role_while_its_password_is_renewed(
    users: Callable[..., Any],
) -> None:
    api, worker = VERIFIERS.splitlines()
    both = "\n".join((api, api.replace("api", "api~").replace("$c3RvcmVk", "$bmV3"), worker))
    assert users(VERIFIERS, known=both) == "wrong"
    assert users(both, known=both) == "right"
    # The second login has been removed.
    assert users(both) == "wrong"


def test_a_user_list_that_others_may_read_is_wrong(users: Callable[..., Any]) -> None:
    assert users(VERIFIERS, mode="644:root:postgres") == "wrong"
    assert users(VERIFIERS, mode="640:postgres:postgres") == "wrong"


def test_a_role_without_a_verifier_has_no_place_in_a_user_list(users: Callable[..., Any]) -> None:
    first = VERIFIERS.splitlines()[0]
    assert users(first, known=first) == "no verifiers"
    assert users("", known="") == "no verifiers"


def test_a_second_login_does_not_stand_in_for_another_role(users: Callable[..., Any]) -> None:
    api = VERIFIERS.splitlines()[0]
    assert users("", known=f"{api}\n{api.replace('api', 'api~')}") == "no verifiers"


def test_there_are_no_verifiers_where_no_cluster_runs(cluster: Cluster) -> None:
    path = cluster.is_not_there()
    assert ask(UserList, path, version=17, roles=["api"]) == "no verifiers"
    path = cluster.is_down()
    assert ask(UserList, path, version=17, roles=["api"]) == "no verifiers"


def test_a_cluster_that_does_not_answer_has_no_user_list(
    program: Program, cluster: Cluster
) -> None:
    cluster.runs()
    path = program("runuser", "echo 'psql: error: out of memory' >&2; exit 2")
    with pytest.raises(AssertionError, match="out of memory"):
        shell(text(UserList, version=17, roles=["api"]), path)


@pytest.mark.parametrize(
    ("content", "ours", "known", "verify", "foreign"),
    [
        (None, False, True, "", False),
        ("# Managed by Terrafirma: tasks/pgbouncer.py\n", False, True, "{file}", False),
        # The package's own file, unchanged.
        ("[databases]\n", False, True, "", False),
        ("[databases]\n", False, True, "??5?????? c {file}", True),
        ("[databases]\n", False, False, "", True),
        # A run of Terrafirma died before it wrote the file.
        ("[databases]\n", True, True, "??5?????? c {file}", False),
    ],
)
def test_a_foreign_pooler_is_noticed(
    program: Program,
    tmp_path: Path,
    content: str | None,
    ours: bool,
    known: bool,
    verify: str,
    foreign: bool,
) -> None:
    file, drop_in = tmp_path / "pgbouncer.ini", tmp_path / "terrafirma.conf"
    if content is not None:
        file.write_text(content)
    if ours:
        drop_in.touch()
    program("dpkg-query", f"exit {0 if known else 1}")
    path = program("dpkg", f'test "$1" != --verify || echo "{verify.format(file=file)}"')
    command = text(ForeignPooler).replace("/etc/pgbouncer/pgbouncer.ini", str(file))
    command = command.replace(
        "/etc/systemd/system/pgbouncer.service.d/terrafirma.conf", str(drop_in)
    )
    output = shell(command, path)
    assert (ForeignPooler().process(output) if output else False) is foreign
