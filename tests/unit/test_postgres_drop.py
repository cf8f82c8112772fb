"""What is dropped on request: nothing that somebody owns."""

from terrafirma.operations.postgres import drop_role_sql


def test_a_role_is_dropped_with_its_rights_and_nothing_else() -> None:
    """PostgreSQL answers the second script, so all that refuses has to be before that."""
    _, owns, closed, _, visit, *drops = drop_role_sql(["shop~", "shop"])
    assert "rolname in ('shop~', 'shop')" in owns
    assert "deptype = 'o'" in owns
    assert "raise exception 'postgres_drop_role: " in owns
    assert "where not open" in closed
    assert "raise exception 'postgres_drop_role: shop has rights in %" in closed
    assert "drop owned" not in owns + closed
    # In each database: looked at once more, in the same transaction.
    begin, check, drop = (visit.index(text) for text in ("begin;", owns, "drop owned by"))
    assert begin < check < drop
    assert 'drop owned by "shop~", "shop";\ncommit;' in visit
    assert drops == ["""select 'drop role "shop~";';""", """select 'drop role "shop";';"""]
