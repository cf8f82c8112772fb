"""Dropping databases and roles: never one with connected sessions, or one that owns something."""

import os
import subprocess
from pathlib import Path

import pytest

from terrafirma.paths import DROPPED
from terrafirma.postgres.operations import drop_database_script, drop_role_sql

# A server whose answers on connected sessions are in the files connected.1, connected.2 …
SERVER = """\
#!/bin/sh
case "$*" in *pg_dump*) echo rows; exit "$DUMPED" ;; esac
sql=$(cat)
case $sql in
*pg_stat_activity*) n=$(($(cat asked 2> /dev/null || echo 0) + 1)); echo $n > asked
    cat "connected.$n" 2> /dev/null || true ;;
*datconnlimit*) echo "$LIMIT" ;;
*) echo "$sql" >> said; case $sql in drop*) exit "$GONE" ;; esac ;;
esac
"""
SESSION = "drop: 1 sessions are connected to shop, from 10.0.0.1 (shop, 1)"
CLOSE, OPEN, DROP = (
    'alter database "shop" connection limit 0;',
    'alter database "shop" connection limit 7;',
    'drop database "shop";',
)
NO_TEMPLATE = 'alter database "shop" is_template false;'


def test_a_role_is_dropped_with_its_rights_and_nothing_else() -> None:
    """PostgreSQL answers the second script, so all refusals come before that."""
    _, owns, closed, _, visit, *drops = drop_role_sql(["shop~", "shop"])
    assert "rolname in ('shop~', 'shop')" in owns
    assert "deptype = 'o'" in owns
    assert "raise exception 'drop_role: " in owns
    assert "where not open" in closed
    assert "raise exception 'drop_role: shop has rights in %" in closed
    assert "drop owned" not in owns + closed
    # Each database is checked once more, in the same transaction.
    begin, check, drop = (visit.index(text) for text in ("begin;", owns, "drop owned by"))
    assert begin < check < drop
    assert 'drop owned by "shop~", "shop";\ncommit;' in visit
    assert drops == ["""select 'drop role "shop~";';""", """select 'drop role "shop";';"""]


# Sessions at the first and second check, the connection limit, exit codes of the dump and the drop;
# the statements sent to the server, whether the dump stays.
DROPS: dict[str, tuple[tuple[str, ...], int, int, int, list[str], bool]] = {
    "idle": (("", ""), 7, 0, 0, [CLOSE, NO_TEMPLATE, DROP], True),
    "connected": ((SESSION, ""), 7, 0, 0, [], False),
    "connected later": (("", SESSION), 7, 0, 0, [CLOSE, OPEN], False),
    "no dump": (("", ""), 7, 1, 0, [CLOSE, OPEN], False),
    "no drop": (("", ""), 7, 0, 1, [CLOSE, NO_TEMPLATE, DROP, OPEN], True),
    "died before": (("", ""), -2, 1, 0, [DROP], False),
}


@pytest.mark.parametrize("case", DROPS)
def test_a_database_is_dropped_or_left_unchanged(tmp_path: Path, case: str) -> None:
    connected, limit, dumped, gone, said, kept = DROPS[case]
    for number, words in enumerate(connected, 1):
        if words:
            (tmp_path / f"connected.{number}").write_text(f"{words}\n")
    (tmp_path / "runuser").write_text(SERVER)
    (tmp_path / "runuser").chmod(0o755)
    result = subprocess.run(
        ["sh", "-c", drop_database_script(17, "shop").replace(DROPPED, f"{tmp_path}/dropped")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "LIMIT": str(limit),
            "DUMPED": str(dumped),
            "GONE": str(gone),
        },
    )
    heard = tmp_path / "said"
    assert (heard.read_text().splitlines() if heard.exists() else []) == said
    assert (result.returncode == 0) is (case in ("idle", "died before"))
    assert result.stderr.splitlines() == [one for one in connected if one]
    dump = tmp_path / "dropped" / "shop.dump"
    assert dump.exists() is kept
    if kept:
        assert dump.stat().st_mode & 0o777 == 0o600
