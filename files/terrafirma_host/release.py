"""
Managed by Terrafirma. A release: all that serves is the new one, or all of it is the old one.

What serves is what serving.json says. It is written once the new replicas are healthy, Caddy sends
to them, and the public address has answered. Whatever ends a release before that, `recover` puts
Caddy back to what the file says, and stops the rest; whatever ends it after that, the rest is
stopped by the next.
"""

from __future__ import annotations

import filecmp
import gzip
import json
import shutil
import subprocess
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from terrafirma_host import answers, engine, holders, layers, proxy, stores
from terrafirma_host.engine import Compose
from terrafirma_host.lease import Lease, lease
from terrafirma_host.shell import Expired, Failed, ends, run, say, write
from terrafirma_host.spec import (
    SECRETS,
    SPECS,
    Application,
    Release,
    Serving,
    identity,
    known_releases,
    make_key,
    note,
    now,
    tree_digest,
)
from terrafirma_host.uptime import Watch

# What can go wrong without our being wrong: each is undone, and said in one line.
BROKEN = (Failed, OSError, ValueError, subprocess.SubprocessError)

# Longer than any release takes that is not stuck: building, pulling, migrating, draining and
# stopping may take an hour each.
LEASE = 6 * 3600

# What a deploy key may send: seconds, and bytes of all files together.
UPLOAD = 15 * 60
SOURCE = 2 * 2**30


@dataclass(frozen=True)
class Wanted:
    """What is to run, by its content."""

    id: str
    code: str
    source: str
    image: str  # with a digest
    others: Mapping[str, str]  # images of other people in a project of the user's, by service
    project: layers.Project


def wanted(app: Application, compose: Compose, made: Release | None = None) -> Wanted:
    """
    What the description asks for. Nothing is changed, nothing fetched but digests.

    With `made`, the code of that release, whatever tags say by now, and what was migrated for it.
    """
    project = compose.project()
    begun = {name: project["services"][name] for name in stores.started(app, project)}
    image, others = "", {}
    if made:
        code, migrated = made.code, made.migrate
    else:
        image = engine.resolve(app, app.image) if app.image else ""
        others = {
            name: engine.resolve(app, service["image"])
            for name, service in begun.items()
            if app.compose and "build" not in service
        }
        code = identity(Path(app.source).name, image, json.dumps(others))
        migrated = " ".join(app.migrate)
    shape = layers.slot_layer(app, project, slot="", release="", replicas=0, images={},
                              owner=app.owner())  # fmt: skip
    # All that the files say, whichever of them: commands, networks of other people …
    shape += json.dumps(project, sort_keys=True)
    return Wanted(
        id=identity(code, migrated, shape, json.dumps(compose.secrets, sort_keys=True)),
        code=code, source=app.source, image=image, others=others, project=project,
    )  # fmt: skip


def other(app: Application, slot: str) -> str:
    return next(one for one in app.slots if one != slot)


# --- the steps ------------------------------------------------------------------------------------


def release(
    app: Application, *, by: str, revision: str = "", again: bool = False,
    upload: IO[bytes] | None = None,
) -> None:  # fmt: skip
    """Release what the description asks for, or the source that comes in as a gzipped tar."""
    with lease(app, by, "release", LEASE) as held:
        make_key()
        settle(app)
        if upload:
            held.step("upload")
            with held.at_most(UPLOAD):
                brought = app.with_source(unpack(app, upload))
            refuse_other_files(app, brought)
            app = brought
        compose = Compose(app)
        target = wanted(app, compose)
        known = Release.load(app, target.id)
        if is_withdrawn(app, target.code) and not again:
            refuse_withdrawn(app, target)
        serving = Serving.load(app)
        if serving and stands(app, compose, target, serving, held):
            return
        for line in compose.notes:
            say(line)
        held.step("prepare")
        compose.agree(target.project)
        before = Release.load(app, serving.release) if serving else None
        try:
            made = (
                known
                if known and engine.has_images(known)
                else prepare(app, compose, target, by=by, revision=revision)
            )
            last = (before.code, before.migrate) if before else None
            if app.migrate and last != (target.code, " ".join(app.migrate)):
                held.step("migrate")
                migrate(app, compose, target.project, made, serving)
        except BROKEN:
            tidy(app)
            raise
        if not serving or serving.release != target.id:
            # Without a revision it is that of the same code, which ran with other settings.
            alike = [one for one in known_releases(app) if one.code == made.code]
            revision = revision or next((one.revision for one in alike if one.revision), "")
            made = replace(made, at=now(), by=by, revision=revision, withdrawn=False)
        take_over(app, compose, target.project, made, serving, held, by=by, action="release")


def refuse_withdrawn(app: Application, target: Wanted) -> None:
    """Raise Failed with the ways to have it all the same."""
    alike = next(one.id for one in known_releases(app) if one.code == target.code)
    again = f"rollback {app.name} {alike}" if app.automated else f"release {app.name} --again"
    raise Failed(
        f"the code of release {target.id} was taken back: change it, or let it serve all the "
        f"same with `terrafirma {again}`"
    )


def stands(
    app: Application, compose: Compose, target: Wanted, serving: Serving, held: Lease
) -> bool:
    """Whether it serves already; what is missing of it is added, if nobody notices that."""
    made = Release.load(app, target.id)
    if serving.release != target.id or serving.ports != app.ports(serving.slot, app.replicas):
        return False
    silent = answers.silent(app, serving)
    if not silent and whole(app, serving, target.project):
        say(f"release {target.id} of {app.name} serves already")
        return True
    for words in silent:
        say(f"new replicas take over: {words}")
    if not made or not engine.has_images(made) or silent or worn(app, serving):
        return False
    repair(app, compose, target.project, made, serving, held)
    return True


def rollback(app: Application, wanted_release: str, *, by: str) -> None:
    """An earlier release serves again, by the same way; the one that served is marked."""
    with lease(app, by, "rollback", LEASE) as held:
        settle(app)
        serving = Serving.load(app)
        if not serving:
            raise Failed(f"{app.name} has no release yet")
        known = [one for one in known_releases(app) if fits(app, one) and engine.has_images(one)]
        if wanted_release:
            fitting = [one for one in known if one.id.startswith(wanted_release)]
            if any(one.id == serving.release for one in fitting):
                say(f"release {serving.release} of {app.name} serves already")
                return
        else:
            fitting = earlier(app, serving, known)
        if not fitting:
            there = ", ".join(one.id for one in known) or "none"
            raise Failed(
                f"there is no such release to go back to; kept are: {there}.{other_kinds(app)} "
                "(Settings and secrets are always those of the data: change them there, and "
                "deploy.)"
            )
        since = f"{fitting[0].revision[:12] or 'no revision'}, of {fitting[0].at[:19]}"
        say(f"going back to release {fitting[0].id} of {app.name} ({since})")
        app, compose, target = of_now(app, fitting[0])
        made = replace(fitting[0], id=target.id, at=now())
        take_over(app, compose, target.project, made, serving, held, by=by, action="rollback")


def earlier(app: Application, serving: Serving, known: Sequence[Release]) -> list[Release]:
    """The releases before the one that serves, the last one first; nothing that was taken back."""
    current = Release.load(app, serving.release)
    older = [
        one for one in known
        if one.id != serving.release and not one.withdrawn and (not current or one.at <= current.at)
    ]  # fmt: skip
    # Those of the same code differ in settings and secrets, and these are always those of now.
    return [one for one in older if not current or one.code != current.code]


def of_now(app: Application, made: Release) -> tuple[Application, Compose, Wanted]:
    """The code of a release under the settings and secrets of now: it is called after all three."""
    if not fits(app, made):
        raise Failed(f"release {made.id} is of another kind, or has other compose files, than what "
                     "is described now: release that")  # fmt: skip
    app = as_released(app, made)
    compose = Compose(app)
    # Nothing is migrated: another command than the one that ran is the next release's.
    target = wanted(app, compose, made)
    needed = {*stores.started(app, target.project)}
    if missing := sorted(needed - made.images.keys()):
        raise Failed(f"release {made.id} has no image of {', '.join(missing)}: release its code")
    return app, compose, target


def restart(app: Application, *, by: str) -> None:
    """New containers of the release that serves, by the way of every release: none is missed."""
    with lease(app, by, "restart", LEASE) as held:
        settle(app)
        serving, made = serves(app)
        app, compose, target = of_now(app, made)
        made = replace(made, id=target.id)
        take_over(app, compose, target.project, made, serving, held, by=by, action="restart")


def refresh(app: Application, *, by: str) -> None:
    """The code that serves, whole, and with the settings and secrets of now."""
    with lease(app, by, "refresh", LEASE) as held:
        settle(app)
        serving, made = serves(app)
        app, compose, target = of_now(app, made)
        if not stands(app, compose, target, serving, held):
            made = replace(made, id=target.id, at=now())
            take_over(app, compose, target.project, made, serving, held, by=by, action="refresh")


def recover(app: Application, *, by: str) -> None:
    """After a release that was killed: all is as serving.json says."""
    with lease(app, by, "recovery", LEASE) as held:
        held.step("settle")
        settle(app)


def serves(app: Application) -> tuple[Serving, Release]:
    """What serves; raises Failed where nothing does."""
    serving = Serving.load(app)
    made = Release.load(app, serving.release) if serving else None
    if not serving or not made:
        raise Failed(f"{app.name} has no release yet")
    return serving, made


def described(app: Application) -> Application:
    """The description; where the code comes with a deploy key, with the code that serves."""
    serving = Serving.load(app) if app.automated else None
    made = Release.load(app, serving.release) if serving else None
    return as_released(app, made) if made and fits(app, made) else app


def fits(app: Application, made: Release) -> bool:
    """
    Whether a release is of the kind that is described now: image, Dockerfile, these compose files.

    Others in its source were nobody's to look at when a deploy key sent it.
    """
    return bool(made.source) == bool(app.source) and made.compose == app.compose


def other_kinds(app: Application) -> str:
    """A sentence about kept releases that a rollback leaves out, since they do not fit; or ""."""
    others = [one.id for one in known_releases(app) if not fits(app, one)]
    if not others:
        return ""
    return (
        f" {', '.join(others)} came of another kind (an image, a Dockerfile or other compose files)"
        " than your settings now describe: set what was set then, and deploy."
    )


def as_released(app: Application, made: Release) -> Application:
    """The description, with the source or image of that release."""
    return app.with_source(Path(made.source)) if made.source else app.with_image(made.image)


def is_withdrawn(app: Application, code: str) -> bool:
    """Whether somebody went back from that code, under whatever settings it ran."""
    return any(one.withdrawn for one in known_releases(app) if one.code == code)


def mark(app: Application, code: str, *, withdrawn: bool) -> None:
    for one in known_releases(app):
        if one.code == code and one.withdrawn != withdrawn:
            replace(one, withdrawn=withdrawn).save(app)


def settle(app: Application) -> None:
    """What a release left that died: Caddy and containers are as serving.json says."""
    serving = Serving.load(app)
    if serving and proxy.slot_of(app) != serving.slot:
        say(f"putting Caddy back to release {serving.release}")
        proxy.point(app, serving.slot)
    holders.settle(app)
    for slot in app.slots:
        if serving and slot == serving.slot:
            continue
        replicas = len(engine.containers(app.project(slot), app.service))
        if serving and replicas:
            proxy.drain(app.ports(slot, replicas), app.drain_seconds)
        clear(app, slot)
    # What serves is not taken back, though a way back may have died that had marked it.
    with suppress(*BROKEN, TypeError):
        if serving and (made := Release.load(app, serving.release)):
            mark(app, made.code, withdrawn=False)


def whole(app: Application, serving: Serving, project: layers.Project) -> bool:
    """Whether all runs that should, and Caddy sends to it."""
    there = engine.settled(app.project(serving.slot))
    state = {one.service for one in engine.settled(app.project("state"))
             if one.up or one.done} if app.stateful else set()  # fmt: skip
    once, lasting = layers.once(app, project), layers.lasting(app, project)
    judged = [one for one in there if one.service not in once]
    runs = [
        one.service for one in judged
        if one.release == serving.release and one.up and one.health != "unhealthy"
    ]  # fmt: skip
    return (
        sorted(runs) == sorted(one.service for one in judged) == lasting
        # What has done its work may be gone.
        and all(one.done or one.up for one in there if one.service in once)
        and state >= set(app.stateful)
        and not engine.containers(app.project(other(app, serving.slot)))
        and serving.ports == app.ports(serving.slot, app.replicas)
        and proxy.slot_of(app) == serving.slot
        and proxy.expects(app, serving.slot)
        and not worn(app, serving)
    )


def worn(app: Application, serving: Serving) -> bool:
    """
    Whether some of its replicas are no good any more: then new ones take over, as in a release.

    Those that look for the host where it is no more; and those that say so themselves, which may be
    all of them, and the best there is; and those that somebody has frozen.
    """
    there = engine.containers(app.project(serving.slot))
    sick = any(one.service == app.service and one.health == "unhealthy" for one in there)
    return sick or any(one.state == "paused" or engine.lost_host(one) for one in there)


def repair(
    app: Application, compose: Compose, project: layers.Project, made: Release, serving: Serving,
    held: Lease,
) -> None:  # fmt: skip
    """The release that serves, with what somebody stopped, spoilt or removed of it."""
    say(f"repairing release {serving.release} of {app.name}")
    end(app, [one.id for one in engine.containers(app.project(serving.slot))
              if one.health == "unhealthy"])  # fmt: skip
    held.step("start")
    # What runs is left alone, even where Compose would make it otherwise by now.
    start(app, compose, project, made, serving.slot, "--no-recreate")
    held.step("health")
    # As it was asked until now: another path is the next release's.
    asked = proxy.as_asked(app, serving.slot)
    await_health(asked, made, serving.slot, project)
    proxy.expect(asked, serving.slot)
    say(f"release {serving.release} of {app.name} serves with {app.replicas} replicas")


def prepare(
    app: Application, compose: Compose, target: Wanted, *, by: str, revision: str
) -> Release:
    """The images of a release, built here or fetched. Nothing that runs notices."""
    images: dict[str, str] = {}
    pulled: list[str] = []
    project = target.project
    app.directory.mkdir(parents=True, exist_ok=True)
    begun = stores.started(app, project)
    built = [name for name in begun if "build" in project["services"][name]]
    if built:
        say(f"building release {target.id} of {app.name}")
        layer = compose.layer("build", layers.build_layer(app, project, target.id))
        try:
            compose.fetch(app.project("build"), layer, "build", *built)
        except Failed as error:
            raise Failed(f"the image does not build: {error}") from None
        images |= {name: layers.image_name(app, name, target.id) for name in built}
    for name in begun:
        if name in images:
            continue
        reference = target.others.get(name, target.image)
        if engine.pull(app, reference):
            pulled.append(reference)
        images[name] = layers.image_name(app, name, target.id)
        run("docker", "tag", reference, images[name])
    return Release(
        id=target.id, source=target.source, image=target.image, images=images,
        pulled=tuple(pulled), code=target.code, migrate=" ".join(app.migrate),
        revision=revision, by=by, at=now(),
        withdrawn=False, compose=app.compose,
    )  # fmt: skip


def migrate(
    app: Application, compose: Compose, project: layers.Project, made: Release,
    serving: Serving | None,
) -> None:  # fmt: skip
    """The migration, once, in a container of its own, while the old release serves."""
    slot = other(app, serving.slot if serving else "")
    say(f"migrating: {' '.join(app.migrate)}")
    layer = prepare_slot(app, compose, project, made, slot)
    # A command of its own: the image's entry point may be the server.
    words = (
        [app.migrate[0]]
        if layers.migrates_by_service(app, project)
        else ["--entrypoint", app.migrate[0], app.service, *app.migrate[1:]]
    )
    try:
        said = compose.run(
            app.project(slot), layer, "run", "--rm", "--no-deps", "--no-TTY", "--interactive=false",
            *words, timeout=engine.PATIENT,
        )  # fmt: skip
    except Failed as error:
        raise Failed(f"the migration failed: {error}") from None
    if said.strip():
        say(ends(said))


def prepare_slot(
    app: Application, compose: Compose, project: layers.Project, made: Release, slot: str
) -> str:
    """Networks, volumes and stateful services that a slot needs; returns the path of its layer."""
    holders.refuse_images(app, project, made.images)
    holders.start_state(compose, project, slot)
    lay_out_secrets(app, compose, slot)
    text = layers.slot_layer(
        app, project, slot=slot, release=made.id, replicas=app.replicas, images=made.images,
        owner=app.owner(),
    )  # fmt: skip
    return compose.layer(slot, text)


def lay_out_secrets(app: Application, compose: Compose, slot: str) -> None:
    """
    A release's secrets, for the containers of its slot, however often Docker starts them again.

    Each is the same file under another name: what changes a secret makes a new file of it.
    """
    directory = app.slot_secrets(slot)
    directory.mkdir(parents=True, exist_ok=True)
    for name, path in app.secrets.items():
        there = directory / name
        if not (there.exists() and there.samefile(path)):
            there.unlink(missing_ok=True)
            there.hardlink_to(path)
        if there.read_text() != compose.secrets[name]:
            raise Failed(f"the secret {name} was changed while this was under way: run it again")


def start(
    app: Application, compose: Compose, project: layers.Project, made: Release, slot: str,
    *options: str,
) -> None:  # fmt: skip
    layer = prepare_slot(app, compose, project, made, slot)
    try:
        compose.run(
            app.project(slot), layer, "up", "--detach", "--no-build", "--pull", "never",
            "--remove-orphans", *options, timeout=app.start_seconds + engine.CREATING,
        )  # fmt: skip
    except Expired:
        raise
    except Failed:
        # What others wait for may be to blame, and has words of its own.
        Watch(app, project, made, slot).refuse_awaited()
        raise


def await_health(
    app: Application, made: Release, slot: str, project: layers.Project | None = None
) -> Watch:
    """Every container of a slot has shown that it runs, every replica that it can serve."""
    watch = Watch(app, project or {"services": {}}, made, slot)
    watch.until_up()
    return watch


def take_over(
    app: Application, compose: Compose, project: layers.Project, made: Release,
    serving: Serving | None, held: Lease, *, by: str, action: str,
) -> None:  # fmt: skip
    """The new replicas beside the old ones; then Caddy; then the old ones go."""
    slot = other(app, serving.slot if serving else "green")
    old = Release.load(app, serving.release) if serving else None
    say(f"starting {app.replicas} replicas of release {made.id} in {slot}")
    for line in (*layers.mended(app, project), *layers.limited(app, project)):
        say(line)
    switched = False
    try:
        held.step("start")
        start(app, compose, project, made, slot)
        held.step("health")
        watch = await_health(app, made, slot, project)
        reloaded = time.monotonic() if proxy.expect(app, slot) else 0
        # Caddy has to have noticed, too: it asks again, and is answered.
        noticed = proxy.NOTICED + watch.slowest
        time.sleep(noticed)
        held.step("switch")
        switched = True
        proxy.point(app, slot)
        held.step("smoke")
        if proxy.smoke(app):
            # Until Caddy has asked all of them once more; after a reload, until it knows of each.
            proxy.watch(app, max(noticed, reloaded + proxy.SETTLED - time.monotonic()))
        watch.still_up()
        held.step("commit")
        made.save(app)
        if action == "rollback" and old and old.code != made.code:
            mark(app, old.code, withdrawn=True)
        Serving(made.id, slot, app.replicas, app.slots[slot]).save(app)
    except BROKEN as error:
        step = held.data["step"]
        if committed(app, made, slot):
            say(f"warning: {error}")
        else:
            undo(app, slot, serving, switched=switched)
            raise Failed(f"at the step {step!r}: {error}") from None
    # It serves, whatever goes wrong from here on: the next release, or the boot, tidies up.
    say(f"release {made.id} of {app.name} serves")
    if action in ("release", "refresh") and serving and serving.release == made.id:
        same = serving.ports == app.ports(serving.slot, app.replicas)
        action = "repair" if same else "scale"
    with suppress(OSError):
        note(app, action, made.id, made.revision, by)
        mark(app, made.code, withdrawn=False)
    try:
        held.step("drain")
        if serving:
            proxy.drain(serving.ports, app.drain_seconds)
            held.step("stop")
            clear(app, serving.slot)
        held.step("prune")
        prune(app)
        for line in watch.notes():
            say(line)
    except BROKEN as error:
        say(f"warning: {error}")


def committed(app: Application, made: Release, slot: str) -> bool:
    """Whether what decides says so, whatever went wrong after it was written."""
    serving = Serving.load(app)
    return serving is not None and (serving.release, serving.slot) == (made.id, slot)


def undo(app: Application, slot: str, serving: Serving | None, *, switched: bool) -> None:
    """All is as it was; what cannot be undone is said, and keeps nothing else from it."""
    steps: list[Callable[[], object]] = []
    if switched:
        steps += [lambda: proxy.point(app, serving.slot if serving else "blue")]
        steps += [lambda: proxy.drain(app.ports(slot, app.replicas), app.drain_seconds)]
    steps += [lambda: clear(app, slot), lambda: tidy(app)]
    if old := Release.load(app, serving.release) if serving else None:
        steps += [lambda: mark(app, old.code, withdrawn=False)]
    for one in steps:
        try:
            one()
        except BROKEN as error:
            say(f"warning: {error}")
    if not serving:
        say(f"nothing serves: {app.name} had no release before")


def refuse_other_files(app: Application, brought: Application) -> None:
    """
    Raise Failed where a source that was sent describes its services otherwise than the deploy did.

    What runs in a container is the key's to say; what a container may do on the host is not.
    Compared byte by byte: root reads nothing of what these files say.
    """
    for name in app.compose:
        if not filecmp.cmp(Path(app.source, name), Path(brought.source, name), shallow=False):
            raise Failed(
                f"{name}, as it was sent, is not that of the deploy: run deploy.py with it"
            )


def remove(app: Application, *, by: str) -> None:
    """
    Nothing of an application runs any more, and its code is gone.

    Left are volumes, secrets and the database: nobody can make these again.
    """
    with lease(app, by, "removal", LEASE):
        if proxy.has_site(app):
            raise Failed(f"Caddy serves {app.name}: take it out of the data, and run deploy.py")
        for project in ("blue", "green", "run", "build", "state"):
            clear(app, project)
        ours = ["--filter", f"label=terrafirma.app={app.name}"]
        if networks := run("docker", "network", "ls", "--quiet", *ours).split():
            run("docker", "network", "rm", *networks)
        pulled = {image for one in known_releases(app) for image in one.pulled}
        engine.remove_images([*engine.our_images(app), *(pulled | engine.fetched(app))])
        proxy.forget(app)
        shutil.rmtree(app.slot_secrets(""), ignore_errors=True)
        shutil.rmtree(app.directory)
        # The last: until then the same command goes on where one was killed.
        (SPECS / f"{app.name}.json").unlink()
    volumes = run("docker", "volume", "ls", "--quiet", *ours).split()
    secrets = SECRETS / app.name
    left = [*volumes, str(secrets)] if secrets.exists() else volumes
    say(f"{app.name} is removed; left alone: {', '.join(left) or 'nothing'}")


def clear(app: Application, slot: str) -> None:
    """No container of a slot; each is asked to stop first."""
    # What a migration left that was killed is one of them.
    end(app, run(
        "docker", "ps", "--all", "--quiet", "--no-trunc", "--filter",
        f"label=com.docker.compose.project={app.project(slot)}",
    ).split())  # fmt: skip
    shutil.rmtree(app.slot_secrets(slot), ignore_errors=True)


def end(app: Application, containers: Sequence[str]) -> None:
    if containers:
        patience = app.stop_seconds + engine.PROMPT
        run("docker", "stop", "--time", str(app.stop_seconds), *containers, timeout=patience)
        run("docker", "rm", "--force", *containers)


def tidy(app: Application, dropped: Sequence[Release] = ()) -> None:
    """No image of ours that no release has: of one that failed, was killed, or is kept no more."""
    needed = {image for one in known_releases(app) for image in (*one.images.values(), *one.pulled)}
    fetched = engine.fetched(app) | {image for one in dropped for image in one.pulled}
    engine.remove_images(
        [one for one in (*engine.our_images(app), *sorted(fetched)) if one not in needed]
    )
    left = {one for one in fetched if one in needed or engine.inspect("image", [one])}
    if left != engine.fetched(app):
        lines = "".join(f"{image}\n" for image in sorted(left))
        write(app.directory / engine.FETCHED, lines, 0o600)


def prune(app: Application) -> None:
    """
    The last releases are kept, one of each code, with their images and sources.

    Never is a volume touched.
    """
    serving = Serving.load(app)
    known = known_releases(app)
    current = next((one for one in known if serving and one.id == serving.release), None)
    kept = [current] if current else []
    for one in known:
        if len(kept) <= app.keep and one.code not in {other.code for other in kept}:
            kept.append(one)
    dropped = [one for one in known if one not in kept]
    for one in dropped:
        (app.releases / f"{one.id}.json").unlink(missing_ok=True)
    tidy(app, dropped)
    # The one that tasks/app.py has uploaded, too, though a key may have brought another.
    sources = {one.source for one in kept} | {app.source, Application.load(app.name).source}
    # … and what a service has mounted that no release recreates.
    mounts = [mount for one in engine.containers(app.project("state")) for mount in one.mounts]
    for path in (app.directory / "sources").glob("*"):
        mounted = any(Path(mount).is_relative_to(path) for mount in mounts)
        if str(path) not in sources and not mounted:
            shutil.rmtree(path, ignore_errors=True)


def unpack(app: Application, upload: IO[bytes]) -> Path:
    """A source that came as a gzipped tar, in a directory named after its content."""
    sources = app.directory / "sources"
    sources.mkdir(parents=True, exist_ok=True)
    size = 0

    def measured(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        nonlocal size
        # Each takes a block at least; what is none of a file's sizes takes nothing away.
        size += max(member.size, 0) + 4096
        if size > SOURCE:
            raise Failed(f"the source that was sent has more than {SOURCE // 2**20} MB")
        # Nothing outside of the directory, no devices, no owners.
        return tarfile.data_filter(member, path)

    with tempfile.TemporaryDirectory(dir=sources, prefix=".new-") as new:
        try:
            with gzip.open(upload) as whole_of_it:
                with tarfile.open(fileobj=whole_of_it, mode="r|") as tar:
                    tar.extractall(new, filter=measured)  # noqa: S202  # the filter refuses what leaves `new`
                # To its end, which one that was cut off has not.
                while whole_of_it.read(2**20):
                    pass
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise Failed(f"the source is no gzipped tar that can be unpacked: {error}") from None
        for name in app.compose or ("Dockerfile",):
            if not (Path(new) / name).is_file():
                raise Failed(f"the source that was sent has no file {name!r}")
        dest = sources / tree_digest(Path(new))
        if not dest.exists():
            # Whoever runs in a container reads what is copied or mounted there; root alone gets
            # as far on the host.
            for path in Path(new).rglob("*"):
                if path.is_symlink():
                    continue
                executable = path.is_dir() or path.stat().st_mode & 0o100
                path.chmod(0o755 if executable else 0o644)
            Path(new).rename(dest)
            # TemporaryDirectory removes what is at its own path, and there is nothing any more.
            Path(new).mkdir()
    return dest


def status(app: Application) -> dict[str, object]:
    """What serves, what should, whether that is the same, and whether it answers."""
    serving = Serving.load(app)
    target, withdrawn, current, trouble = "", False, False, ""
    found = answers.Found()
    try:
        app = described(app)
        made = wanted(app, Compose(app))
        target, withdrawn = made.id, is_withdrawn(app, made.code)
        if withdrawn:
            # Another serves in its place, and is to have the settings and secrets of now.
            app, _, made = of_now(app, serves(app)[1])
        if serving and serving.release == made.id and whole(app, serving, made.project):
            found = answers.look(app, serving)
            current = not found.silent
    except Failed as error:
        trouble = str(error)
    return {
        "serving": serving.release if serving else "",
        "wanted": target,
        "withdrawn": withdrawn,
        "current": current,
        "trouble": trouble,
        **vars(found),
    }
