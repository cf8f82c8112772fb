"""Templates as the operations render them, with present and with absent facts."""

import re

import pytest
from jinja2 import UndefinedError

from terrafirma.host.files import render
from tests.conftest import ROOT
from tests.unit.templates import DATA, rendered, settled

# --- all of them ----------------------------------------------------------------------------------


def test_every_template_is_in_the_table_of_this_file() -> None:
    templates = ROOT / "templates"
    assert {str(path.relative_to(templates)) for path in templates.rglob("*.j2")} == set(DATA)


# Input for psql, which is no file on the host.
SCRIPTS = {"postgres/hand_over.sql.j2"}


@pytest.mark.parametrize("template", [name for name in DATA if name not in SCRIPTS])
def test_says_first_who_manages_it(template: str) -> None:
    """Operations recognise our own files by this line: see terrafirma/host/files.py."""
    first, *rest = rendered(template).splitlines()
    assert re.match(r"(#|//) Managed by Terrafirma: (tasks/\w+\.py|\w+)$", first)
    assert rest


@pytest.mark.parametrize("template", DATA)
def test_leaves_nothing_of_jinja_behind(template: str) -> None:
    text = rendered(template)
    assert not re.search(r"\{%|%\}|\{\{|\}\}|\{#", text)
    assert "None" not in text
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    assert [line for line in text.splitlines() if line != line.rstrip()] == []


@pytest.mark.parametrize("template", [name for name, data in DATA.items() if data])
def test_a_name_that_is_missing_is_an_error(template: str) -> None:
    with pytest.raises(UndefinedError):
        render(template)


# --- units and the rest ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template", ["caddy/restart.conf.j2", "pgbouncer/restart.conf.j2", "postgres/restart.conf.j2"]
)
def test_a_service_that_crashed_is_started_again(template: str) -> None:
    lines = settled(rendered(template))
    assert "StartLimitIntervalSec=0" in lines[lines.index("[Unit]") : lines.index("[Service]")]
    assert any(line.startswith("Restart=on-") for line in lines[lines.index("[Service]") :])
