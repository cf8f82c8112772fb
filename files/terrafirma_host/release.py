"""
Managed by Terrafirma. Releases: release, rollback, restart, refresh, recover, remove, status.

Each command holds the lease, cleans up after a killed release, decides what is to run (target.py),
and lets that take over (takeover.py). serving.json says which release serves.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import IO

from terrafirma_host import answers, cron, engine, holders, proxy, pulls, slots, stop_first, upload
from terrafirma_host.lease import lease
from terrafirma_host.repair import Repair, is_complete, is_serving, needs_replacement
from terrafirma_host.shell import BROKEN, Failed, run, say
from terrafirma_host.spec import (
    SECRETS,
    SPECS,
    Application,
    Release,
    Serving,
    is_withdrawn,
    known_releases,
    make_key,
    now,
    revision_of,
    serving_release,
    set_withdrawn,
)
from terrafirma_host.stop_first import takeover
from terrafirma_host.takeover import Takeover
from terrafirma_host.target import Target, fits_description, unfit_releases, with_serving_code


def release(
    app: Application,
    *,
    by: str,
    revision: str = "",
    again: bool = False,
    source: IO[bytes] | None = None,
) -> None:
    """Release the described code, or the source that arrives as a gzipped tar."""
    with lease(app, by, "release") as held:
        make_key()
        restore_serving_state(app)
        if source:
            app = upload.receive(app, source, held)
        target = Target.described(app)
        if not again:
            refuse_withdrawn(target)
        serving = Serving.load(app)
        bring_up(takeover(target, release_record(target, serving, by, revision), serving, held))
        cron.agree(app)


def release_record(target: Target, serving: Serving | None, by: str, revision: str) -> Release:
    """The record of a target's release: the known one if its images are still here, else a new."""
    known = Release.load(target.app, target.id)
    record = target.new_record(by=by, revision=revision)
    if known and pulls.has_images(known):
        record = known
    if serving and serving.release == target.id:
        return record
    # Without a revision, take that of an earlier release of the same code.
    revision = revision or revision_of(target.app, target.code)
    return replace(record, by=by, revision=revision, withdrawn=False)


def refuse_withdrawn(target: Target) -> None:
    """Raise Failed where the code was rolled back, and say how to release it all the same."""
    app = target.app
    if not is_withdrawn(app, target.code):
        return
    same = next(one.id for one in known_releases(app) if one.code == target.code)
    again = f"rollback {app.name} {same}" if app.automated else f"release {app.name} --again"
    raise Failed(
        f"the code of release {target.id} was rolled back: change it, or let it serve all the "
        f"same with `terrafirma {again}`"
    )


def bring_up(new: Takeover) -> None:
    """The target serves, with the least change: none, a repair in place, or new replicas."""
    target, record, serving = new.target, new.release, new.serving
    if not serving or not is_serving(target, serving):
        new.run()
        return
    app = target.app
    silent = answers.silent(app, serving)
    for words in silent:
        say(f"new replicas take over: {words}")
    if not silent and is_complete(app, target.project, serving):
        say(f"release {target.id} of {app.name} serves already")
    elif silent or not pulls.has_images(record) or needs_replacement(app, serving):
        new.run()
    else:
        Repair(target, record, serving, new.lease).run()


def rollback(app: Application, wanted: str, *, by: str) -> None:
    """
    An earlier release takes over, and the code of the one that served counts as withdrawn.

    A named release that was withdrawn takes over without that: it undoes a rollback.
    """
    with lease(app, by, "rollback") as held:
        restore_serving_state(app)
        serving = Serving.load(app)
        if not serving:
            raise Failed(f"{app.name} has no release yet")
        kept = [one for one in known_releases(app)
                if fits_description(app, one) and pulls.has_images(one)]  # fmt: skip
        named = [one for one in kept if wanted and one.id.startswith(wanted)]
        if any(one.id == serving.release for one in named):
            say(f"release {serving.release} of {app.name} serves already")
            return
        choice = named if wanted else earlier_releases(app, serving, kept)
        if not choice:
            others = ", ".join(one.id for one in kept if one.id != serving.release)
            name_one = (
                f"; name one with `--data rollback={app.name}:RELEASE`, or with "
                f"`terrafirma rollback {app.name} RELEASE` on the host"
            )
            raise Failed(
                f"there is no such release to go back to; kept besides {serving.release}, which "
                f"serves: {others + name_one if others else 'none'}.{unfit_releases(app)} "
                "(A rollback keeps the current settings and secrets: change those in your "
                "settings, and deploy.)"
            )
        earlier = choice[0]
        since = f"{earlier.revision[:12] or 'no revision'}, of {earlier.at[:19]}"
        say(f"going back to release {earlier.id} of {app.name} ({since})")
        target = Target.of_release(app, earlier)
        takeover(target, replace(earlier, id=target.id, at=now()), serving, held).run()
        cron.agree(app)


def earlier_releases(app: Application, serving: Serving, kept: Sequence[Release]) -> list[Release]:
    """The releases of other code before the one that serves, newest first, but no withdrawn one."""
    current = Release.load(app, serving.release)
    return [
        one
        for one in kept
        if one.id != serving.release
        and not one.withdrawn
        # A release of the same code differs in settings and secrets only, which a rollback keeps.
        and (not current or (one.at <= current.at and one.code != current.code))
    ]


def restart(app: Application, *, by: str) -> None:
    """New containers of the release that serves take over, and no request fails."""
    with lease(app, by, "restart") as held:
        restore_serving_state(app)
        serving, current = serving_release(app)
        target = Target.of_release(app, current)
        takeover(target, replace(current, id=target.id), serving, held).run()
        cron.agree(app)


def refresh(app: Application, *, by: str) -> None:
    """Give the code that serves the current settings and secrets, and repair its replicas."""
    with lease(app, by, "refresh") as held:
        restore_serving_state(app)
        serving, current = serving_release(app)
        target = Target.of_release(app, current)
        bring_up(takeover(target, replace(current, id=target.id, at=now()), serving, held))
        cron.agree(app)


def recover(app: Application, *, by: str) -> None:
    """After a killed release: make Caddy and the containers agree with serving.json."""
    with lease(app, by, "recovery") as held:
        held.step("settle")
        restore_serving_state(app)


def restore_serving_state(app: Application) -> None:
    """Caddy sends requests to the slot in serving.json, and the other slot has no containers."""
    serving = Serving.load(app)
    if serving:
        stop_first.recover(app, serving)
    if serving and proxy.slot_of(app) != serving.slot:
        say(f"pointing Caddy at release {serving.release}")
        proxy.point(app, serving.slot)
    holders.settle(app)
    for slot in app.slots:
        if serving and slot == serving.slot:
            continue
        ports = [port for one in app.fronts for port in one.ports(
            slot, len(engine.containers(app.project(slot), one.service)))]  # fmt: skip
        if serving and ports:
            proxy.drain(ports, app.drain_seconds)
        slots.clear(app, slot)
    proxy.let_through(app)
    stop_first.forget(app)
    # A rollback that was killed may have marked the code that still serves as withdrawn.
    with suppress(*BROKEN, TypeError):
        if serving and (current := Release.load(app, serving.release)):
            set_withdrawn(app, current.code, withdrawn=False)


def remove(app: Application, *, by: str) -> None:
    """
    An application no longer runs, and its code is gone.

    Volumes, secrets and the database stay: they cannot be made again.
    """
    with lease(app, by, "removal"):
        if proxy.has_site(app):
            raise Failed(f"Caddy serves {app.name}: take it out of apps, and run deploy.py")
        cron.forget(app)
        for project in ("blue", "green", "run", "build", "state"):
            slots.clear(app, project)
        ours = ["--filter", f"label=terrafirma.app={app.name}"]
        if networks := run("docker", "network", "ls", "--quiet", *ours).split():
            run("docker", "network", "rm", *networks)
        pulled = {image for one in known_releases(app) for image in one.pulled}
        pulls.remove_images([*pulls.our_images(app), *(pulled | pulls.fetched(app))])
        proxy.forget(app)
        shutil.rmtree(app.slot_secrets(""), ignore_errors=True)
        shutil.rmtree(app.directory)
        # The description goes last: after a kill, the same command can still complete the removal.
        (SPECS / f"{app.name}.json").unlink()
    volumes = run("docker", "volume", "ls", "--quiet", *ours).split()
    secrets = SECRETS / app.name
    left = [*volumes, str(secrets)] if secrets.exists() else volumes
    say(f"{app.name} is removed; left alone: {', '.join(left) or 'nothing'}")


def status(app: Application) -> dict[str, object]:
    """The release that serves, the one that should, whether they agree, and whether it answers."""
    serving = Serving.load(app)
    wanted, withdrawn, current, trouble = "", False, False, ""
    found = answers.Found()
    try:
        app = with_serving_code(app)
        target = Target.described(app)
        wanted, withdrawn = target.id, is_withdrawn(app, target.code)
        if withdrawn:
            # Its predecessor serves instead, and needs the current settings and secrets.
            target = Target.of_release(app, serving_release(app)[1])
        if (
            serving
            and serving.release == target.id
            and is_complete(target.app, target.project, serving)
        ):
            found = answers.look(target.app, serving)
            current = not found.silent and cron.agrees(app)
            found.notes += cron.failures(app)
    except Failed as error:
        trouble = str(error)
    return {
        "serving": serving.release if serving else "",
        "wanted": wanted,
        "withdrawn": withdrawn,
        "current": current,
        "trouble": trouble,
        "cron": cron.results(app),
        **vars(found),
    }
