"""Variables that a project asks for, and that nothing sets."""

from pathlib import Path
from typing import Any

import pytest

from terrafirma.app.check import check
from terrafirma.app.wanted import unset, wanted
from tests.unit.settings import application

COMPOSE = """\
services:
  web:
    build: .
    # HIDDEN: x
    environment: [DEBUG=0]
    ports: ["${PORT:-8000}:8000"]
"""


def test_variables_that_nothing_sets() -> None:
    example = dict.fromkeys(["DEBUG", "PORT", "HIDDEN", "TOKEN", "DEBUG_LEVEL", "OWN", "PATHS"], "")
    texts = [COMPOSE, "FROM x\nENV PATHS=/x\n"]
    assert unset(example, {"OWN"}, texts) == ["HIDDEN", "TOKEN", "DEBUG_LEVEL"]
    assert unset({}, (), texts) == []


@pytest.mark.parametrize("kind", ["compose", "Dockerfile"])
def test_an_application_is_told_what_it_asks_for(tmp_path: Path, kind: str) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nENV DEBUG=0 PORT=1\nEXPOSE 8000\n")
    (tmp_path / "compose.yaml").write_text(COMPOSE)
    (tmp_path / ".env.example").write_text(
        "# for all\nDEBUG=1\nPORT=\nMAIL=me\nTOKEN=s3cret\n#OLD=1\nDATABASE_URL=x\n"
    )
    (tmp_path / ".env").write_text("MAIL=us\n")
    compose: dict[str, Any] = (
        {"compose": ["compose.yaml"], "service": "web"} if kind == "compose" else {}
    )
    source: dict[str, Any] = {"source": str(tmp_path), **compose}
    line = (
        "the example of its .env names DATABASE_URL, MAIL, TOKEN: no env, env_file or secrets_env "
        "sets them"
    )
    assert wanted(application(**source)) == [line]
    report = check(source)
    assert any(line in one for one in report.lines)
    assert "s3cret" not in str(report.lines)
    given: dict[str, Any] = {"secrets": {"token": "generated"}, "secrets_env": True}
    some = application(**source, **given, env_file=[str(tmp_path / ".env")])
    assert wanted(some) == []
    # As files, they are no variables.
    given["secrets_env"] = False
    (words,) = wanted(application(**source, **given, env={"MAIL": "x", "DATABASE_URL": "x"}))
    assert words == "the example of its .env names TOKEN: no env, env_file or secrets_env sets it"
    (tmp_path / ".env.example").write_text("".join(f"V{number}=\n" for number in range(20)))
    (words,) = wanted(application(**source))
    assert "V18, V19 and 8 more: " in words
