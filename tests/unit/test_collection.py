"""
Projects as other people write them, through the check that a release begins with.

Each file in tests/collection is a project of one kind, written for these tests:

- kind: its features, in a sentence
- files: its files by their paths in the source
- beside: files beside the source, on the machine that deploys; `BESIDE` in `data` is their place
- data: the entry of `apps`, without `source` and `domain`, in at most six lines
- refused: words of the one line that refuses it; without these, it is served
- says: parts of the page
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from terrafirma.app.check import Report, check
from tests.conftest import ROOT

COLLECTION = ROOT / "tests" / "collection"
ENTRIES = {str(path.relative_to(COLLECTION).with_suffix("")): path
           for path in sorted(COLLECTION.glob("*/*.yaml"))}  # fmt: skip
KEYS = {"kind", "files", "beside", "data", "refused", "says"}
LINES = 6
"""Lines of data that a project may need."""
WIDTH = 100


def read(path: Path) -> dict[str, Any]:
    entry: dict[str, Any] = yaml.safe_load(path.read_text())
    assert entry.keys() <= KEYS, entry.keys() - KEYS
    assert {"kind", "files", "data"} <= entry.keys()
    return entry


def checked(entry: dict[str, Any], directory: Path) -> Report:
    source, beside = directory / "source", directory / "beside"
    for place, files in ((source, entry["files"]), (beside, entry.get("beside") or {})):
        for name, text in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(text)
    data = json.loads(json.dumps(entry["data"]).replace("BESIDE", str(beside)))
    return check({"name": "app", "domain": "app.test", "source": str(source), **data})


def lines(data: dict[str, Any]) -> int:
    """The lines of these settings, written as this project's formatter would."""
    count = 0
    for key, value in data.items():
        whole = f'        "{key}": {json.dumps(value)},'
        count += 1 if len(whole) <= WIDTH else len(value)
    return count


@pytest.mark.parametrize("name", ENTRIES)
def test_a_project_as_people_have_it(name: str, tmp_path: Path) -> None:
    entry = read(ENTRIES[name])
    assert lines(entry["data"]) <= LINES
    report = checked(entry, tmp_path)
    assert all("\n" not in line for line in report.refusals)
    if words := entry.get("refused"):
        assert any(words in line for line in report.refusals), report.refusals
    else:
        assert report.refusals == []
        page = "\n".join(report.lines)
        for words in entry.get("says") or []:
            assert words in page


def test_there_are_enough() -> None:
    kinds = [name.partition("/")[0] for name in ENTRIES]
    assert kinds.count("compose") >= 40
    assert kinds.count("dockerfile") >= 20
