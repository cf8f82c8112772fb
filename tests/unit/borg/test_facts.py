"""What facts read of archives and of backups, and which archive proves a configuration."""

import json
import os
from pathlib import Path
from typing import Any

from terrafirma.borg.facts import Archives, Backups
from tests.unit.facts import ask


def test_archives_of_a_repository() -> None:
    archive = '{"archive": "t1-%s", "barchive": "t1", "id": "1", "name": "t1-%s", "start": "x"}'
    output = f'[{{"archives": [{archive % (1, 1)}, {archive % (2, 2)}], "encryption": {{}}}}]'
    assert Archives().process([output]) == ["t1-1", "t1-2"]
    assert Archives().process(['[{"archives": []}]']) == []


def test_an_archive_proves_the_configuration_that_it_was_made_with(tmp_path: Path) -> None:
    names = ("it's a stamp", "a.yaml", "it's b", "it's a result")
    stamp, first, second, result = (tmp_path / name for name in names)
    for file in (first, second):
        file.touch()
        os.utime(file, (1000, 1000))

    def proof() -> Any:
        files = [str(first), str(second)]
        return ask(Backups, stamp=str(stamp), configuration=files, result=str(result))["first"]

    assert proof() == ""
    stamp.write_text("t1-2026-11-23T23:50:00\n")
    assert proof() == "t1-2026-11-23T23:50:00"
    os.utime(stamp, (2000, 2000))
    for file in (first, second):
        os.utime(file, (3000, 3000))
        assert proof() == ""
        os.utime(file, (1000, 1000))
    assert proof() == "t1-2026-11-23T23:50:00"


def test_what_is_wrong_with_the_last_backup(tmp_path: Path) -> None:
    stamp, configuration, result = (tmp_path / name for name in ("stamp", "a", "it's a result"))
    words = "the last backup (2026-11-29 02:00 UTC) is incomplete: x=1 `y`"

    def state() -> Any:
        files = [str(configuration)]
        return ask(Backups, stamp=str(stamp), configuration=files, result=str(result))

    result.write_text(json.dumps({"words": words, "invocation": "1"}) + "\n")
    assert state() == {"first": "", "trouble": words}
    configuration.touch()
    stamp.write_text("web-1\n")
    os.utime(configuration, (1000, 1000))
    assert state() == {"first": "web-1", "trouble": words}
    result.write_text('{"words": "", "invocation": ""}\n')
    assert state() == {"first": "web-1", "trouble": ""}
