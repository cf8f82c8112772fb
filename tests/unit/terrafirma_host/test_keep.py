"""Which releases of an application are kept, and with what."""

import json
from dataclasses import replace
from pathlib import Path

from terrafirma_host import keep
from terrafirma_host.spec import Application, Serving

from tests.unit.terrafirma_host.applications import records, told
from tests.unit.terrafirma_host.docker import inspected
from tests.unit.terrafirma_host.releases import asked


def test_the_last_releases_are_kept_with_their_images_and_sources(
    host: Path, app: Application
) -> None:
    app = replace(app, keep=2)
    sources = app.directory / "sources"
    for name in ("s1", "s2", "s3", "s4", "stray", ".new-now", Path(app.source).name):
        (sources / name).mkdir(parents=True)
    lists = app.directory / "lists"
    lists.mkdir()
    for name in ("s1", "s2"):
        (lists / name).touch()
    for number in range(1, 5):
        records(
            app, f"release{number}", source=str(sources / f"s{number}"),
            at=f"2026-01-0{number}T00:00:00.000Z", code=f"code{number}",
            images={"api": f"terrafirma/api:{number}"}, pulled=("base",) if number < 3 else (),
        )  # fmt: skip
    # The same code with other settings: no target of a rollback.
    records(app, "release0", source=str(sources / "s4"), at="2026-01-03T01:00:00.000Z",
            code="code4", images={"api": "terrafirma/api:0"})  # fmt: skip
    tags = "".join(f"terrafirma/api:{number}\n" for number in range(5))
    (host / "images").write_text(tags)
    # The oldest serves, after a rollback: it is kept beside the two.
    Serving("release1", "blue", 4, 8000).save(app)
    (host / "apps" / "api.json").write_text(told(app))
    keep.prune(app)
    assert sorted(one.stem for one in app.releases.iterdir()) == [
        "release1", "release3", "release4"
    ]  # fmt: skip
    kept = {"s1", "s3", "s4", Path(app.source).name}
    # Another source may just be on its way.
    assert {one.name for one in sources.iterdir()} == kept | {".new-now"}
    assert {one.name for one in lists.iterdir()} == {"s1"}
    # Images that a kept release also needs stay; and only images are removed.
    removed = [line for line in asked(host) if " rm " in line or "prune" in line]
    assert removed == ["image rm terrafirma/api:0", "image rm terrafirma/api:2"]


def test_a_source_that_a_stateful_service_has_mounted_is_kept(host: Path, app: Application) -> None:
    """No release recreates the service: it keeps its files."""
    sources = app.directory / "sources"
    for name in ("theirs", "theirs-2", Path(app.source).name):
        (sources / name / "conf").mkdir(parents=True)
    records(app, "0123456789ab")
    Serving("0123456789ab", "blue", 4, 8000).save(app)
    (host / "apps" / "api.json").write_text(told(app))
    answer = [inspected("api-state-redis-1") | {"Mounts": [{"Source": f"{sources}/theirs/conf"}]}]
    (host / "containers").write_text(json.dumps(answer))
    keep.prune(app)
    assert {one.name for one in sources.iterdir()} == {"theirs", Path(app.source).name}


def test_images_of_a_release_that_never_served_go_with_it(host: Path, app: Application) -> None:
    records(app, "0123456789ab")
    (host / "images").write_text("terrafirma/api:0123456789ab\nterrafirma/api:ba9876543210\n")
    (app.directory / "fetched").write_text("x:1\ny:1\nz:1\n")
    records(app, "0123456789ab", pulled=("x:1",))
    # An image in use is not removed yet.
    program = host / "programs" / "docker"
    program.write_text(
        program.read_text().replace("*inspect*)", "*'inspect y:1') echo '[]' ;;\n*inspect*)")
    )
    keep.remove_unused_images(app)
    assert [line for line in asked(host) if " rm " in line] == [
        "image rm terrafirma/api:ba9876543210",
        "image rm y:1",
        "image rm z:1",
    ]
    assert (app.directory / "fetched").read_text() == "x:1\nz:1\n"
