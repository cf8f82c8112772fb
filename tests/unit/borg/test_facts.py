"""What facts read of archives, and which archive proves a configuration."""

import os
from pathlib import Path
from typing import Any

from terrafirma.borg.facts import Archives, FirstArchive
from tests.unit.facts import ask


def test_archives_of_a_repository() -> None:
    archive = '{"archive": "t1-%s", "barchive": "t1", "id": "1", "name": "t1-%s", "start": "x"}'
    output = f'[{{"archives": [{archive % (1, 1)}, {archive % (2, 2)}], "encryption": {{}}}}]'
    assert Archives().process([output]) == ["t1-1", "t1-2"]
    assert Archives().process(['[{"archives": []}]']) == []


def test_an_archive_proves_the_configuration_that_it_was_made_with(tmp_path: Path) -> None:
    stamp, first, second = (tmp_path / name for name in ("it's a stamp", "a.yaml", "it's b"))
    for file in (first, second):
        file.touch()
        os.utime(file, (1000, 1000))

    def proof() -> Any:
        return ask(FirstArchive, stamp=str(stamp), configuration=[str(first), str(second)])

    assert proof() is None
    stamp.write_text("t1-2026-11-23T23:50:00\n")
    assert proof() == "t1-2026-11-23T23:50:00"
    os.utime(stamp, (2000, 2000))
    for file in (first, second):
        os.utime(file, (3000, 3000))
        assert proof() is None
        os.utime(file, (1000, 1000))
    assert proof() == "t1-2026-11-23T23:50:00"
