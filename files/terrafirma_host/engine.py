"""Managed by Terrafirma. Questions and orders to the Docker engine and to Compose."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from terrafirma_host import (
    directories,
    images,
    jobs,
    layers,
    references,
    registries,
    shape,
    stores,
    values,
)
from terrafirma_host.shell import Failed, conceal, ends, last, run, say, succeeds, write
from terrafirma_host.spec import RUNTIME, Application, Release

if TYPE_CHECKING:
    from typing_extensions import Self

# Seconds that the engine may take for a quick command, and for one that fetches or builds.
PROMPT = 120
PATIENT = 3600

# Seconds that `up` may take, beside the time that services wait for one another.
CREATING = 30

# Bytes of a container's log that show how it begins.
FIRST = 64 * 1024

# Docker waits longer before each restart of a container, until the container has run for so many
# seconds. One that ends sooner is in a restart loop.
STRETCH = 10
# A container with more restarts than this does not stay up.
RESTARTS = 2

# A file in the directory of an application, with a line for each image from a registry.
FETCHED = "fetched"
# Another one, with a line for each volume of the settings that has yet to be filled.
FILLING = "filling"

# Host, path, tag and digest, as in terrafirma/app/settings.py.
IMAGE = r"[a-z0-9][a-z0-9._:-]*(/[a-z0-9._-]+)*(:[\w.-]{1,128})?(@sha256:[0-9a-f]{64})?"

# Variables that Docker, Compose and the Go runtime read themselves.
OWN = frozenset(
    {"PATH", "HOME", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR"}
    | {"GODEBUG", "GOGC", "GOMAXPROCS", "GOMEMLIMIT", "GOTRACEBACK"}
)
OWN_PREFIXES = (
    *("COMPOSE_", "BUILDKIT_", "BUILDX_", "XDG_", "TERRAFIRMA_"),
    # Many projects have names of their own that begin with DOCKER_ or LD_.
    *(
        f"DOCKER_{word}"
        for word in (
            "API_",
            "AUTH_",
            "BUILDKIT",
            "CERT_",
            "CLI_",
            "CONFIG",
            "CONTENT_",
            "CONTEXT",
            "CUSTOM_",
            "DEFAULT_",
            "HIDE_",
            "HOST",
            "INSECURE_",
            "MACHINE_",
            "SCAN_",
            "SCOUT_",
            "TLS",
            "TMPDIR",
        )
    ),
    *(
        f"LD_{word}"
        for word in (
            "AUDIT",
            "BIND_",
            "DEBUG",
            "DYNAMIC_",
            "HWCAP_",
            "LIBRARY_",
            "ORIGIN_",
            "POINTER_",
            "PREFER_",
            "PRELOAD",
            "PROFILE",
            "SHOW_",
            "TRACE_",
            "USE_",
            "VERBOSE",
            "WARN",
        )
    ),
)


class Read(NamedTuple):
    """What Compose answers about the files of a project."""

    project: dict[str, Any]  # resolved
    raw: references.Raw
    said: str  # its standard error


class Compose:
    """The compose project of an application: its files, and a layer of ours over them."""

    def __init__(self, app: Application, program: Sequence[str] = ("docker", "compose")) -> None:
        self.app = app
        self.program = program
        self.work = app.directory / "layers"
        # Read once: the release's ID and its containers have these values, whatever changes later.
        self.secrets = app.values()
        # Variables of the containers that only Compose's own environment has, never a file.
        own = values.secret_variables(app.env, self.secrets, every=app.secrets_env)
        self.variables = app.further_variables() if app.env_file else {}
        self.hidden = self.variables | own
        # Not all that refers to a secret: messages need the host of a database.
        conceal([*self.secrets.values(), *values.confidential(self.variables)])
        self._files: list[str] = []
        # Lines for the output of a release, about keys of the files that have no effect.
        self.notes: list[str] = []

    def files(self) -> list[str]:
        if not self._files:
            self._files = self._all_files()
        return self._files

    def _all_files(self) -> list[str]:
        app = self.app
        if not app.compose:
            return [self._written(layers.own_project(app), "yaml")]
        found = [f"{app.compose_in or app.source}/{name}" for name in app.compose]
        if app.env_files:
            further = self._written(layers.variables(app), "env")
            found.append(self._written(layers.env_files(app, further), "yaml"))
        return found

    def _written(self, text: str, kind: str) -> str:
        # In /run, so that a dry run leaves nothing that lasts. Named after its content: another
        # process may need another one at the same moment.
        directory = Path(self.app.root) if self.app.root else RUNTIME
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        path = directory / f"{self.app.name}-{digest}.{kind}"
        write(path, text, 0o600)
        return str(path)

    def command(self, project: str, layer: str = "") -> list[str]:
        words = [*self.program, "--project-name", project, "--progress", "plain"]
        # No `.env`: a deploy uploads none, and one that a deploy key sends would set variables.
        words += ["--env-file", "/dev/null"]
        where = self.app.project_directory or str(self.app.directory)
        words += ["--project-directory", where]
        for file in (*self.files(), *([layer] if layer else [])):
            words += ["--file", file]
        return words

    def environment(self) -> dict[str, str]:
        """
        The variables for `${…}` in the files and in a layer.

        None come from the caller's environment: a release is the same for every caller.
        """
        return {
            # Variables that Docker reads itself would change what it does as root.
            **{
                name: value
                for name, value in {**self.hidden, **values.shown(self.app.env)}.items()
                if name not in OWN and not name.startswith(OWN_PREFIXES)
            },
            **{layers.hidden(name): value for name, value in self.hidden.items()},
            **self._of_services(),
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
        }

    def _of_services(self) -> dict[str, str]:
        """The variables with secret values of single services, under names of ours."""
        return {
            layers.hidden(name, service): values.fill(text, self.secrets)
            for service, own in self.app.services.items()
            for name, text in values.hidden(own.get("env") or {}).items()
        }

    def decided(self) -> Self:
        """Itself, with the values of variables that follow from the files."""
        if self.app.database_replaces:
            self.project()
        return self

    def project(self) -> layers.Project:
        """The merged compose files; raises Failed, in one line, where they cannot be run."""
        read = self.read()
        for rule in self.rules(read):
            rule()
        return read.project

    def faults(self) -> tuple[layers.Project, list[Failed]]:
        """The merged compose files, and all reasons why `project` would refuse them."""
        read = self.read()
        found = []
        for rule in self.rules(read):
            try:
                rule()
            except Failed as error:
                found.append(error)
        return read.project, found

    def read(self) -> Read:
        """The answers of Compose about the files; raises Failed where it cannot read them."""
        # Written before two questions need them.
        self.files()
        with ThreadPoolExecutor(1) as beside:
            # Each question takes a moment, so ask both at once.
            written = beside.submit(self.as_written if self.app.compose else dict)
            text, said = self.config("--format", "json")
        try:
            project: dict[str, Any] = json.loads(text)
            project.setdefault("services", {})
            return Read(project, written.result(), said)
        except RecursionError:
            raise Failed("the compose files: lists lie too deep in each other") from None

    def rules(self, read: Read) -> Iterator[Callable[[], None]]:
        """Each rule of a project; it raises Failed, in one line, where the project breaks it."""
        project, lines = read.project, []
        yield lambda: shape.refuse_unknown(self.app, project)
        if not shape.named(self.app) <= project["services"].keys():
            # The further rules are about services that exist.
            return
        if self.app.compose:
            lines = shape.absent_networks(project, self._absent(project))
            decided = shape.decide(self.app, project)
            self.app = decided.app
            yield from (partial(shape.refuse, line) for line in decided.refusals)
            files = self.look(read._replace(raw=_without(read.raw, decided.rewritten)))
            yield from (partial(rule, files) for rule in references.RULES)
            self.notes = [*lines, *decided.lines, *files.notes]
        app = self.app
        yield lambda: directories.add(app, project)
        yield lambda: jobs.refuse_unknown_services(app, project)
        yield lambda: stores.refuse(app, project)
        yield lambda: references.refuse_joined(app, project)

    def _absent(self, project: layers.Project) -> list[str]:
        """The external networks of the files that are not on the host, by their keys."""
        if self.app.root:
            # On the machine that deploys.
            return []
        named = {
            key: network.get("name", key)
            for key, network in (project.get("networks") or {}).items()
            if (network or {}).get("external")
        }
        there = {one["Name"] for one in inspect("network", sorted({*named.values()}))}
        return [key for key, name in named.items() if name not in there]

    def config(self, *options: str) -> tuple[str, str]:
        """The standard output and error of `docker compose config` for all services."""
        try:
            result = subprocess.run(
                [*self.command(self.app.name), "--profile", "*", "config", *options],
                executable=shutil.which(self.program[0]),
                stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                env=self.environment(), timeout=PROMPT, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise Failed(f"the compose files: Compose has not read them within {PROMPT} s: are "
                         "they very large, or do their anchors multiply?") from None  # fmt: skip
        if result.returncode:
            error = f"the compose files: {references.errors(self.app, result.stderr)}"
            # The cause may be a variable that is not set and leaves a field blank.
            references.refuse_blank(self.as_read({}, {}, result.stderr), error)
            raise Failed(error)
        return result.stdout, result.stderr

    def as_written(self) -> references.Raw:
        """
        The merged files with their variables not filled in.

        Empty where Compose cannot print that, as with a variable in `ulimits`.
        """
        words = ("--no-interpolate", "--no-path-resolution", "--no-normalize", "--no-consistency")
        try:
            return dict(json.loads(self.config("--format", "json", *words)[0]))
        except Failed:
            return {}

    def look(self, read: Read) -> references.Files:
        """The files with all that they refer to."""
        app, project, raw = self.app, read.project, read.raw
        for name in {*app.secrets} & {*(raw.get("secrets") or {})}:
            # Compose leaves out a secret that no service names, yet it still collides with ours.
            project.setdefault("secrets", {}).setdefault(name, raw["secrets"][name])
        return self.as_read(project, raw, read.said)

    def as_read(self, project: layers.Project, raw: references.Raw, said: str) -> references.Files:
        app, given = self.app, self.environment()
        names = {*app.variables, *app.env}
        names |= {name.upper() for name in app.secrets if app.secrets_env}
        return references.Files(
            app, self.files(), {"services": {}, **project}, raw, references.warnings(said),
            given=given, kept=frozenset(names - given.keys() | names & OWN),
        )  # fmt: skip

    def agree(self, project: layers.Project) -> None:
        """Raise Failed where Compose cannot merge our layers over the files."""
        app = self.app
        images = {name: layers.image_name(app, name, "none") for name in project["services"]}
        slot = layers.slot_layer(
            app, project, slot="blue", release="none", replicas=app.replicas, images=images,
            owner=app.owner(),
        )  # fmt: skip
        texts = [layers.build_layer(app, project, "none"), slot]
        texts += [layers.state_layer(app, project)] if app.stateful else []
        for text in texts if app.compose else []:
            try:
                self.run(app.name, self.layer("check", text), "config", "--quiet")
            except Failed as error:
                words = references.errors(app, str(error))
                raise Failed(f"the compose files with our layer over them: {words}") from None

    def layer(self, name: str, text: str) -> str:
        path = self.work / f"{name}.yaml"
        if self.app.variables:
            write(Path(layers.variables_file(self.app)), layers.variables(self.app), 0o600)
        write(path, text, 0o600)
        return str(path)

    def lacks(self, layer: Path) -> list[str]:
        """The variables with secret values in a layer of before that have none now."""
        text = ""
        # Compose itself says what is not there.
        with suppress(FileNotFoundError):
            text = layer.read_text()
            for path in re.findall(r'"([^"]+/variables-[0-9a-f]{12}\.env)"', text):
                text += Path(path).read_text()
        return layers.lacking(text, self.environment())

    def run(
        self, project: str, layer: str, *words: str, timeout: float = PROMPT,
        login: Mapping[str, str] | None = None,
    ) -> str:  # fmt: skip
        command = [*self.command(project, layer), *words]
        env = self.environment() | dict(login or {})
        return run(*command, env=env, inherit=False, timeout=timeout, lines=20)

    def fetch(self, project: str, layer: str, *words: str) -> str:
        """`run` with the registry's login: for the base of a build, or a stateful service."""
        try:
            with registry(self.app) as login:
                return self.run(project, layer, *words, timeout=PATIENT, login=login)
        except Failed as error:
            raise Failed(registries.explained(ask(self.app), error)) from None

    def become(self, project: str, layer: str, *words: str) -> NoReturn:
        """Replace this process with that command, so that it has the terminal."""
        command = [*self.command(project, layer), *words]
        terminal = {"TERM": os.environ.get("TERM", "dumb")}
        os.execve(shutil.which("docker") or "docker", command, self.environment() | terminal)


def _without(raw: references.Raw, rewritten: Mapping[str, Sequence[str]]) -> references.Raw:
    """The files as they are written, without variables that have other values here."""
    services = {**(raw.get("services") or {})}
    for name, variables in rewritten.items():
        service = services.get(name) or {}
        env = service.get("environment") or {}
        kept: object = (
            {key: value for key, value in env.items() if key not in variables}
            if isinstance(env, Mapping)
            else [one for one in env if one.partition("=")[0] not in variables]
        )
        services[name] = {**service, "environment": kept}
    return {**raw, "services": services} if raw else raw


@dataclass(frozen=True)
class Container:
    id: str
    name: str
    service: str
    release: str
    state: str  # "running", "exited", "restarting" …
    health: str  # "healthy", "starting", "unhealthy" or ""
    restarts: int
    done: bool  # it was allowed to end, and has ended with success
    hosts: str  # path of its /etc/hosts
    mounts: tuple[str, ...]  # paths of the host
    code: int = 0  # its last exit code
    memory: bool = False  # it was killed for lack of memory
    retried: bool = False  # restarted only when it fails
    started: float = 0  # when it last started, in seconds since the epoch
    pid: int = 0
    port: int = 0  # the host's port that leads to it
    inner: int = 0  # its own port, to which that one leads

    @property
    def lasts(self) -> bool:
        """It has run for longer than a container in a restart loop can."""
        # A start in the future was before a correction of the clock.
        return self.state == "running" and not -1 <= self.age < STRETCH

    @property
    def age(self) -> float:
        return time.time() - self.started

    @property
    def up(self) -> bool:
        """It runs, and was not restarted just now."""
        return self.state == "running" and (not self.restarts or self.lasts)


def asked(app: Application, one: Container | None) -> Application:
    """The application with the port on which this replica is asked."""
    inner = one.inner if one else 0
    return replace(app, container_port=inner or app.container_port or images.USUAL)


def containers(project: str, service: str = "") -> list[Container]:
    """The containers of a compose project in any state, without those of `docker compose run`."""
    words = ["docker", "ps", "--all", "--quiet", "--no-trunc"]
    words += ["--filter", f"label=com.docker.compose.project={project}"]
    words += [
        "--filter",
        "label=terrafirma.app",
        "--filter",
        "label=com.docker.compose.oneoff=False",
    ]
    if service:
        words += ["--filter", f"label=com.docker.compose.service={service}"]
    ids = run(*words, timeout=PROMPT).split()
    return inspected(ids)


def inspected(ids: Sequence[str]) -> list[Container]:
    """The containers with these ids that exist."""
    return [_container(one) for one in inspect("container", ids)]


def stable_containers(project: str) -> list[Container]:
    """
    The containers of a compose project, after a just restarted one had time to fail again.

    A container that ends each minute by design counts as up; one in a restart loop does not.
    """
    there = containers(project)
    fresh = [STRETCH - one.age for one in there if one.state == "running" and not one.up]
    if fresh:
        time.sleep(min(STRETCH, max(fresh)))
        there = containers(project)
    return there


def _container(one: Mapping[str, Any]) -> Container:
    labels, state = one["Config"]["Labels"], one["State"]
    policy = one.get("HostConfig", {}).get("RestartPolicy", {}).get("Name", "")
    published = one.get("NetworkSettings", {}).get("Ports") or {}
    # In a routed network a container has no port of the host.
    ports = [(int(two["HostPort"]), int(one.partition("/")[0])) for one, both in published.items()
             for two in both or () if two["HostPort"]]  # fmt: skip
    return Container(
        id=one["Id"],
        name=one["Name"].lstrip("/"),
        service=labels.get("com.docker.compose.service", ""),
        release=labels.get("terrafirma.release", ""),
        state=state["Status"],
        health=(state.get("Health") or {}).get("Status", ""),
        restarts=one["RestartCount"],
        done=state["Status"] == "exited"
        and state.get("ExitCode") == 0
        and policy in ("no", "", "on-failure"),
        hosts=one["HostsPath"],
        mounts=tuple(mount.get("Source", "") for mount in one.get("Mounts", [])),
        code=state.get("ExitCode", 0),
        memory=state.get("OOMKilled", False),
        retried=policy == "on-failure",
        started=_time(state.get("StartedAt", "")),
        pid=state.get("Pid", 0),
        port=ports[0][0] if ports else 0,
        inner=ports[0][1] if ports else 0,
    )


def _time(text: str) -> float:
    """A time as Docker writes it, in seconds since the epoch; 0: never."""
    try:
        # In UTC, with nine digits after the point.
        return datetime.fromisoformat(f"{text[:19]}+00:00").timestamp()
    except ValueError:
        return 0


def stop(app: Application, ids: Sequence[str]) -> None:
    """Ask containers to stop; each has the time that its release gave it (stop_grace_period)."""
    if ids:
        own = [one.get("Config", {}).get("StopTimeout") or 0 for one in inspect("container", ids)]
        run("docker", "stop", *ids, timeout=max([app.stop_seconds, *own]) + PROMPT)


def lost_host(container: Container) -> bool:
    """Whether its host.docker.internal is no longer an address of this host: docker0 has moved."""
    try:
        lines = Path(container.hosts).read_text().splitlines()
    except OSError:
        return False
    known = [line.split()[0] for line in lines if "host.docker.internal" in line.split()[1:]]
    here = run("ip", "-brief", "address").split()
    return any("." in one and not any(it.startswith(f"{one}/") for it in here) for one in known)


def inspect(kind: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """`docker inspect` of those objects that exist."""
    if not names:
        return []
    result = subprocess.run(
        ["docker", kind, "inspect", *names],
        capture_output=True, text=True, errors="replace", timeout=PROMPT, check=False,
    )  # fmt: skip
    absent = "no such", "not found"
    if result.returncode and not any(words in result.stderr.lower() for words in absent):
        raise Failed(f"docker {kind} inspect: {last(result.stderr)}")
    found: list[dict[str, Any]] = json.loads(result.stdout or "[]")
    return found


def image_config(image: str) -> dict[str, Any]:
    """What an image on this host says about its containers; empty where it is not here."""
    found = inspect("image", [image])
    config: dict[str, Any] = (found[0].get("Config") or {}) if found else {}
    return config


def unit_runs(unit: str) -> bool:
    state = run("systemctl", "show", "--property", "ActiveState", "--value", unit)
    return state.strip() in ("active", "activating", "deactivating")


def logs(container: Container) -> str:
    """
    The first and the last log lines of a container since its last start, from both streams.

    A container that has just restarted has no lines yet: then the lines are from before that.
    """
    since = ["--since", str(int(container.started))] if container.started > 0 else []
    return _logs(container, since) or _logs(container, ["--tail", "20"]) or "(none)"


def _logs(container: Container, part: list[str]) -> str:
    words = ["docker", "logs", *part]
    with subprocess.Popen(
        [*words, container.id], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout
        # The log may have gigabytes.
        said = process.stdout.read(FIRST)
        process.kill()
    if len(said) == FIRST:
        result = subprocess.run(
            [*words, "--tail", "20", container.id],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PROMPT, check=False,
        )  # fmt: skip
        said += b"\n" + result.stdout
    return ends(said.decode(errors="replace"))


def make_networks(app: Application, project: layers.Project, slot: str) -> None:
    for key, name in layers.network_names(app, project, slot).items():
        if not inspect("network", [name]):
            network = project["networks"][key]
            options = [f"--opt={k}={v}" for k, v in (network.get("driver_opts") or {}).items()]
            options += ["--internal"] if network.get("internal") else []
            options += ["--ipv6"] if network.get("enable_ipv6") else []
            run("docker", "network", "create", "--label", f"terrafirma.app={app.name}", *options,
                name)  # fmt: skip


def make_volumes(app: Application, project: layers.Project) -> None:
    for key, name in layers.volume_names(app, project).items():
        if not inspect("volume", [name]):
            volume = project["volumes"][key] or {}
            if key in app.volumes:
                # Noted before: after a kill, the next release still knows that it is new.
                with (app.directory / FILLING).open("a") as note:
                    note.write(f"{name}\n")
            options = [f"--opt={k}={v}" for k, v in (volume.get("driver_opts") or {}).items()]
            options += [f"--driver={volume['driver']}"] if volume.get("driver") else []
            run("docker", "volume", "create", "--label", f"terrafirma.app={app.name}", *options,
                name)  # fmt: skip


def start_state(compose: Compose, project: layers.Project) -> None:
    """Start the stateful services that do not run; running ones are left as they are."""
    app = compose.app
    if not app.stateful:
        return
    before = containers(app.project("state"))
    there = {one.service for one in before if one.up or one.done}
    # Only these: a service that has done its work would do it again beside the running ones.
    missing = [name for name in app.stateful if name not in there]
    try:
        if missing:
            _start_missing(compose, project, missing, {one.service for one in before})
        _await_state(app, {one.id: one.restarts for one in before})
    except BaseException:
        # A container that was never up has no data to keep: the next release makes a new one.
        ids = {one.id for one in before}
        for one in containers(app.project("state")):
            if one.id not in ids:
                succeeds("docker", "rm", "--force", one.id)
        raise


def _start_missing(
    compose: Compose, project: layers.Project, missing: Sequence[str], known: set[str]
) -> None:
    app = compose.app
    layer = compose.layer("state", layers.state_layer(app, project))
    # Fetching and building may take long; waiting for one another may not.
    new = [one for one in missing if one not in known and layers.built(project, [one])]
    if new:
        compose.fetch(app.project("state"), layer, "build", *new)
    compose.fetch(app.project("state"), layer, "up", "--no-start", "--no-recreate", *missing)
    compose.run(app.project("state"), layer, "up", "--detach", "--no-recreate", *missing,
                timeout=app.start_seconds + CREATING)  # fmt: skip


def _await_state(app: Application, restarts: Mapping[str, int]) -> None:
    # Compose's own `--wait` fails where a file takes away an image's health check.
    deadline = time.monotonic() + app.start_seconds
    while waiting := [
        one for one in containers(app.project("state"))
        if not one.done and not (one.health == "healthy" or (not one.health and one.lasts))
    ]:  # fmt: skip
        one = waiting[0]
        if one.restarts > restarts.get(one.id, 0) + RESTARTS:
            raise Failed(f"{one.name} does not stay up (it ended, the last time with code "
                         f"{one.code}, and was started {one.restarts + 1} times); its log:\n"
                         f"{logs(one)}")  # fmt: skip
        # A container without a health check has to run for a while to show that it stays up.
        if time.monotonic() > deadline and not (one.up and not one.health):
            raise Failed(f"{one.name} is not healthy within {app.start_seconds} s "
                         f"(start_seconds); its log:\n{logs(one)}")  # fmt: skip
        time.sleep(0.2)


def join_state(app: Application, project: layers.Project, slot: str) -> None:
    """Connect the stateful services to a slot's networks, under their names."""
    named = layers.network_names(app, project, slot)
    for container in containers(app.project("state")) if app.stateful else []:
        service = project["services"].get(container.service)
        if service is None:
            say(f"{container.name} is no longer in a compose file; it is left alone")
            continue
        connected = inspect("container", [container.id])[0]["NetworkSettings"]["Networks"]
        for key in service.get("networks", {"default": None}):
            if key in named and named[key] not in connected:
                known = layers.aliases(project, container.service, key)
                words = [f"--alias={alias}" for alias in known]
                run("docker", "network", "connect", *words, named[key], container.id)


# --- images ---------------------------------------------------------------------------------------


@contextmanager
def registry(app: Application) -> Iterator[dict[str, str]]:
    """The environment in which Docker knows the passwords of registries, within the block."""
    if not app.registries:
        yield {}
        return
    RUNTIME.mkdir(parents=True, exist_ok=True)
    # In memory, for root only. It is removed with the block; after a kill, with the release's unit.
    parent = os.environ.get("RUNTIME_DIRECTORY", str(RUNTIME))
    directory = Path(tempfile.mkdtemp(prefix="registry-", dir=parent))
    try:
        auths = {
            registry_of(f"{host}/"): {"auth": base64.b64encode(":".join(login).encode()).decode()}
            for host, login in logins(app).items()
        }
        write(directory / "config.json", json.dumps({"auths": auths}), 0o600)
        yield {"DOCKER_CONFIG": str(directory)}
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def logins(app: Application) -> dict[str, tuple[str, str]]:
    """User and password by the host of a registry."""
    try:
        return {
            host: (login["user"], Path(login["password"]).read_text().rstrip("\n"))
            for host, login in app.registries.items()
        }
    except FileNotFoundError as error:
        raise Failed(f"{error.filename} is missing; run deploy.py") from None


def registry_of(image: str) -> str:
    """The host of an image's registry; Docker Hub where the name has none."""
    host, slash, _ = image.partition("/")
    named = slash and ("." in host or ":" in host or host == "localhost")
    own = not named or host in ("docker.io", "index.docker.io")
    return "https://index.docker.io/v1/" if own else host


def repository(image: str) -> str:
    """An image without its tag and digest."""
    path = image.partition("@")[0]
    head, slash, name = path.rpartition("/")
    return head + slash + name.partition(":")[0]


def resolve(app: Application, images: Iterable[str]) -> dict[str, str]:
    """Each image with the digest that its tag has in the registry now; each is asked for once."""
    named = [image for image in images if "@sha256:" not in image]
    known = registries.known(ask(app), named) if named else {}
    return {
        image: f"{repository(image)}@{known.get(image) or image.partition('@')[2]}"
        for image in images
    }


def ask(app: Application) -> registries.Registries:
    return registries.Registries(logins(app), _insecure)


def _insecure() -> set[str]:
    text = run("docker", "info", "--format", "{{json .RegistryConfig.IndexConfigs}}")
    return {host for host, config in json.loads(text).items() if not config["Secure"]}


def pull(app: Application, image: str) -> bool:
    """Pull an image that is not here yet, named by its digest. Returns whether it was pulled."""
    if inspect("image", [image]):
        return False
    say(f"pulling {image}")
    # Noted before the pull: after a kill, the next release still knows whose image it is.
    with (app.directory / FETCHED).open("a") as note:
        note.write(f"{image}\n")
    try:
        with registry(app) as env:
            run("docker", "pull", "--quiet", image, env=env, timeout=PATIENT)
    except Failed as error:
        if "no matching manifest" in str(error):
            raise Failed(f"{image}: the registry has none for {os.uname().machine}") from None
        raise Failed(registries.explained(ask(app), error, image)) from None
    return True


def fetched(app: Application) -> set[str]:
    """The images that were pulled for an application, and may still be here."""
    try:
        return set((app.directory / FETCHED).read_text().splitlines())
    except FileNotFoundError:
        return set()


def remove_images(images: Sequence[str]) -> None:
    for image in images:
        # An image that is in use, or has another name as well, stays.
        succeeds("docker", "image", "rm", image)


def our_images(app: Application) -> list[str]:
    """All images named after an application, of any release."""
    words = ["docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}"]
    for pattern in (f"terrafirma/{app.name}", f"terrafirma/{app.name}/*"):
        words += ["--filter", f"reference={pattern}"]
    return run(*words, timeout=PROMPT).split()


def has_images(release: Release) -> bool:
    """Whether a release can be run again: it was prepared, and its images are still here."""
    return bool(release.images) and all(
        inspect("image", [image]) for image in release.images.values()
    )
