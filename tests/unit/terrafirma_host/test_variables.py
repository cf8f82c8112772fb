"""The variables in the text of compose files."""

import pytest
from terrafirma_host.variables import variables

GIVEN = {"DATA": "/srv/data", "EMPTY": "", "HOME": "/root"}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("$A", {"A"}),
        ("${A}/x-$B", {"A", "B"}),
        ("${A:-${B-$C}}", {"A", "B", "C"}),
        ("$$A $${B} $$$C", {"C"}),
        ("${A:?said} ${B:+b}", {"A", "B"}),
        ("a$", set()),
        ("10$ 5$%", set()),
        ("$_a1-", {"_a1"}),
    ],
)
def test_the_variables_in_a_text(text: str, names: set[str]) -> None:
    assert variables({"command": [text]}) == names
    assert variables({text: None}) == names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("${DATA:-$HOME/data}:/data", {"DATA"}),
        ("${DATA:-${PWD}/data}:/data", {"DATA"}),
        ("${DATA-${PWD:-${HOME}}/data}/${B}", {"DATA", "B"}),
        ("${EMPTY-$HOME}", {"EMPTY"}),
        ("${EMPTY:-$HOME}", {"EMPTY", "HOME"}),
        ("${OTHER:-$HOME/data}", {"OTHER", "HOME"}),
        ("${OTHER:-${DATA:-$HOME}/$PWD}", {"OTHER", "DATA", "PWD"}),
        ("${DATA:?$HOME}", {"DATA"}),
        ("${DATA:+$HOME}", {"DATA", "HOME"}),
        ("${EMPTY+$HOME} ${EMPTY:+$PWD}", {"EMPTY", "HOME"}),
        ("${OTHER+$HOME}", {"OTHER"}),
        ('{"a": "${DATA:-{$HOME}}"} $HOME', {"DATA", "HOME"}),
        ("} $PWD ${DATA}", {"PWD", "DATA"}),
        ("${DATA:-$$HOME} $$$PWD", {"DATA", "PWD"}),
    ],
)
def test_a_default_that_is_not_needed_names_nothing(text: str, names: set[str]) -> None:
    assert variables([text], GIVEN) == names
