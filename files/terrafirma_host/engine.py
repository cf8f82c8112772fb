"""Managed by Terrafirma. What is asked of the Docker engine and of Compose."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from terrafirma_host import layers, references, stores
from terrafirma_host.shell import Failed, ends, last, run, say, succeeds, write
from terrafirma_host.spec import RUNTIME, Application, Release

# How long an engine may take for what it does at once, and for what has to be fetched or built.
PROMPT = 120
PATIENT = 3600

# What `up` may take by itself, beside the time that services wait for one another.
CREATING = 30

# Of what a container says, to see how it begins.
FIRST = 64 * 1024

# Docker waits longer and longer before it starts a container again, until one has run so long: one
# that ends sooner ends again and again.
STRETCH = 10
# One that has been started again more often does not stay up.
RESTARTS = 2

# In the directory of an application: a line for each image that a registry gave us.
FETCHED = "fetched"

# Host, path, tag and digest, as in terrafirma/settings.py.
IMAGE = r"[a-z0-9][a-z0-9._:-]*(/[a-z0-9._-]+)*(:[\w.-]{1,128})?(@sha256:[0-9a-f]{64})?"

# Variables that Docker, Compose and what they are written in read themselves.
OWN = frozenset(
    {"PATH", "HOME", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR"}
    | {"GODEBUG", "GOGC", "GOMAXPROCS", "GOMEMLIMIT", "GOTRACEBACK"}
)
OWN_PREFIXES = ("DOCKER_", "COMPOSE_", "BUILDKIT_", "BUILDX_", "LD_", "XDG_", "TERRAFIRMA_")


class Compose:
    """The compose project of an application: its files, and a layer of ours over them."""

    def __init__(self, app: Application) -> None:
        self.app = app
        self.work = app.directory / "layers"
        # A release is named after these, and has these, whatever is put there meanwhile.
        self.secrets = app.values()
        # For whoever releases: what the files say that has no effect.
        self.notes: list[str] = []

    def files(self) -> list[str]:
        app = self.app
        if app.compose:
            return [f"{app.compose_in or app.source}/{name}" for name in app.compose]
        # Made anew for each question, and nothing that a dry run leaves behind.
        # Called after its content: somebody else may ask at the same moment.
        text = layers.own_project(app)
        own = RUNTIME / f"{app.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.yaml"
        write(own, text, 0o600)
        return [str(own)]

    def command(self, project: str, layer: str = "") -> list[str]:
        words = ["docker", "compose", "--project-name", project, "--progress", "plain"]
        # No `.env`: a deploy uploads none, and with a key it would say what else is filled in.
        words += ["--env-file", "/dev/null"]
        words += ["--project-directory", self.app.source or str(self.app.directory)]
        for file in (*self.files(), *([layer] if layer else [])):
            words += ["--file", file]
        return words

    def environment(self) -> dict[str, str]:
        """
        What `${…}` in the files stands for, and what a layer leaves for it to fill in.

        Nothing of whoever called us: a release is the same whoever makes it.
        """
        app = self.app
        hidden = {}
        if app.secrets_env:
            hidden = {name.upper(): text.rstrip("\n") for name, text in self.secrets.items()}
        return {
            # Those that are Docker's own would lead root elsewhere.
            **{
                name: str(value)
                for name, value in {**app.env, **hidden}.items()
                if name not in OWN and not name.startswith(OWN_PREFIXES)
            },
            **{layers.hidden(name): value for name, value in hidden.items()},
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
        }

    def project(self) -> layers.Project:
        """What the files say, together; raises Failed, in one line, where that cannot be run."""
        with ThreadPoolExecutor(1) as beside:
            # Each takes a moment, and so both are asked at once.
            written = beside.submit(self.as_written if self.app.compose else dict)
            text, said = self.config("--format", "json")
        project: dict[str, Any] = json.loads(text)
        services = project.setdefault("services", {})
        known = ", ".join(services) or "none"
        for key, wanted in (
            ("service", [self.app.service]),
            ("stateful", self.app.stateful),
        ):
            for name in wanted:
                if name not in services:
                    raise Failed(f"{key}: the compose files have no service {name!r} ({known})")
        if self.app.service in self.app.stateful:
            raise Failed(f"stateful: {self.app.service} serves HTTP: a release recreates it")
        if self.app.compose:
            self.look(project, written.result(), said)
        stores.refuse(self.app, project)
        references.refuse_joined(self.app, project)
        for key, network in (project.get("networks") or {}).items():
            if (network.get("ipam") or {}).get("config") and not network.get("external"):
                raise Failed(f"the network {key} has addresses of its own, and two releases run "
                             "at once: leave `ipam` out")  # fmt: skip
        return project

    def config(self, *options: str) -> tuple[str, str]:
        """What `docker compose config` says on its two outputs, of all services."""
        result = subprocess.run(
            [*self.command(self.app.name), "--profile", "*", "config", *options],
            executable=shutil.which("docker"),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            env=self.environment(), timeout=PROMPT, check=False,
        )  # fmt: skip
        if result.returncode:
            error = f"the compose files: {references.errors(self.app, result.stderr)}"
            # A variable that leaves a field blank may be why.
            references.refuse_blank(self.as_read({}, {}, result.stderr), error)
            raise Failed(error)
        return result.stdout, result.stderr

    def as_written(self) -> references.Raw:
        """The files' own words, where Compose can say them: `ulimits` by a variable it cannot."""
        words = ("--no-interpolate", "--no-path-resolution", "--no-normalize", "--no-consistency")
        try:
            return dict(json.loads(self.config("--format", "json", *words)[0]))
        except Failed:
            return {}

    def look(self, project: dict[str, Any], raw: references.Raw, said: str) -> None:
        """Raise Failed where the files refer to what is not there; `notes` has what is lost."""
        app = self.app
        for name in {*app.secrets} & {*(raw.get("secrets") or {})}:
            # Compose leaves out what no service names; it collides with ours all the same.
            project.setdefault("secrets", {}).setdefault(name, raw["secrets"][name])
        files = self.as_read(project, raw, said)
        references.check(files)
        self.notes = files.notes

    def as_read(self, project: layers.Project, raw: references.Raw, said: str) -> references.Files:
        app, given = self.app, self.environment()
        names = {*app.env, *(name.upper() for name in app.secrets if app.secrets_env)}
        return references.Files(
            app, self.files(), {"services": {}, **project}, raw, references.warnings(said),
            given=given, kept=frozenset(names - given.keys() | names & OWN),
        )  # fmt: skip

    def agree(self, project: layers.Project) -> None:
        """Raise Failed where the files and what is laid over them do not go together."""
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
                raise Failed(f"the compose files and what is laid over them: {words}") from None

    def layer(self, name: str, text: str) -> str:
        path = self.work / f"{name}.yaml"
        write(path, text, 0o600)
        return str(path)

    def run(
        self, project: str, layer: str, *words: str, timeout: float = PROMPT,
        login: Mapping[str, str] | None = None,
    ) -> str:  # fmt: skip
        command = [*self.command(project, layer), *words]
        env = self.environment() | dict(login or {})
        return run(*command, env=env, inherit=False, timeout=timeout, lines=20)

    def fetch(self, project: str, layer: str, *words: str) -> str:
        """`run`, for what may need a registry: the base of a build, a stateful service."""
        with registry(self.app) as login:
            return self.run(project, layer, *words, timeout=PATIENT, login=login)

    def become(self, project: str, layer: str, *words: str) -> NoReturn:
        """Become that command, for a terminal."""
        command = [*self.command(project, layer), *words]
        terminal = {"TERM": os.environ.get("TERM", "dumb")}
        os.execve(shutil.which("docker") or "docker", command, self.environment() | terminal)


@dataclass(frozen=True)
class Container:
    id: str
    name: str
    service: str
    release: str
    state: str  # "running", "exited", "restarting" …
    health: str  # "healthy", "starting", "unhealthy" or ""
    restarts: int
    done: bool  # it may end, and has, with success
    hosts: str  # path of its /etc/hosts
    mounts: tuple[str, ...]  # of the host
    code: int = 0  # with which it ended
    memory: bool = False  # it was ended for want of memory
    retried: bool = False  # started again where it fails, and only then
    started: float = 0  # when it last began, in seconds of the epoch
    pid: int = 0
    port: int = 0  # of the host, that leads to it

    @property
    def lasts(self) -> bool:
        """It has run for a stretch in which one that ends again and again would have ended."""
        # One that began in the future did so before somebody put the clock right.
        return self.state == "running" and not -1 <= self.age < STRETCH

    @property
    def age(self) -> float:
        return time.time() - self.started

    @property
    def up(self) -> bool:
        """It runs, and has not just been started again."""
        return self.state == "running" and (not self.restarts or self.lasts)


def containers(project: str, service: str = "") -> list[Container]:
    """Those of a compose project, whatever their state; one-off ones are not among them."""
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
    return [_container(one) for one in inspect("container", ids)]


def stable_containers(project: str) -> list[Container]:
    """
    The containers of a compose project, once each that was just restarted had time to fail again.

    One that ends each minute by design counts as up; one that ends again and again does not.
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
    # Where a network is routed, there is none of the host.
    ports = [int(two["HostPort"]) for both in published.values() for two in both or ()
             if two["HostPort"]]  # fmt: skip
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
        port=ports[0] if ports else 0,
    )


def _time(text: str) -> float:
    """A moment as Docker writes it, in seconds of the epoch; 0: never."""
    try:
        # In UTC, with nine digits after the point.
        return datetime.fromisoformat(f"{text[:19]}+00:00").timestamp()
    except ValueError:
        return 0


def lost_host(container: Container) -> bool:
    """Whether its host.docker.internal is no address of this host any more: docker0 has moved."""
    try:
        lines = Path(container.hosts).read_text().splitlines()
    except OSError:
        return False
    known = [line.split()[0] for line in lines if "host.docker.internal" in line.split()[1:]]
    here = run("ip", "-brief", "address").split()
    return any("." in one and not any(it.startswith(f"{one}/") for it in here) for one in known)


def inspect(kind: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """What the engine says of those that are there."""
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


def unit_runs(unit: str) -> bool:
    state = run("systemctl", "show", "--property", "ActiveState", "--value", unit)
    return state.strip() in ("active", "activating", "deactivating")


def logs(container: Container) -> str:
    """
    The first and the last words of a container since it last began, by either stream.

    One that has just begun again has said nothing yet: the words are those of the time before.
    """
    since = ["--since", str(int(container.started))] if container.started > 0 else []
    return _logs(container, since) or _logs(container, ["--tail", "20"]) or "(none)"


def _logs(container: Container, part: list[str]) -> str:
    words = ["docker", "logs", *part]
    with subprocess.Popen(
        [*words, container.id], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout
        # It may have said gigabytes.
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
            options = [f"--opt={k}={v}" for k, v in (volume.get("driver_opts") or {}).items()]
            options += [f"--driver={volume['driver']}"] if volume.get("driver") else []
            run("docker", "volume", "create", "--label", f"terrafirma.app={app.name}", *options,
                name)  # fmt: skip


def start_state(compose: Compose, project: layers.Project) -> None:
    """The services that no release recreates run; those that run are left as they are."""
    app = compose.app
    if not app.stateful:
        return
    before = containers(app.project("state"))
    there = {one.service for one in before if one.up or one.done}
    # None but these: what has done its work would do it again beside those that run.
    missing = [name for name in app.stateful if name not in there]
    try:
        if missing:
            _start_missing(compose, project, missing, {one.service for one in before})
        _await_state(app, {one.id: one.restarts for one in before})
    except BaseException:
        # One that has never been up has nothing to keep: the next release makes it anew.
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
    # To fetch and to build may take long; to wait for one another may not.
    new = [one for one in missing if one not in known and "build" in project["services"][one]]
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
                         f"{one.code}, and was started {one.restarts + 1} times); its last words:\n"
                         f"{logs(one)}")  # fmt: skip
        # One that runs and has no health check needs a little time to show that it goes on to.
        if time.monotonic() > deadline and not (one.up and not one.health):
            raise Failed(f"{one.name} is not healthy within {app.start_seconds} s "
                         f"(start_seconds); its last words:\n{logs(one)}")  # fmt: skip
        time.sleep(0.2)


def join_state(app: Application, project: layers.Project, slot: str) -> None:
    """The services that no release recreates answer in a slot's networks, by their names."""
    named = layers.network_names(app, project, slot)
    for container in containers(app.project("state")) if app.stateful else []:
        service = project["services"].get(container.service)
        if service is None:
            say(f"{container.name} is in no compose file any more; it is left alone")
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
    """The environment in which Docker knows the password of the registry, for as long as needed."""
    if not app.registry_user:
        yield {}
        return
    RUNTIME.mkdir(parents=True, exist_ok=True)
    # In memory, for root alone, and gone with the block; after a kill, with the release's unit.
    parent = os.environ.get("RUNTIME_DIRECTORY", str(RUNTIME))
    directory = Path(tempfile.mkdtemp(prefix="registry-", dir=parent))
    try:
        password = Path(app.registry_password).read_text().rstrip("\n")
        secret = base64.b64encode(f"{app.registry_user}:{password}".encode()).decode()
        auths = {"auths": {registry_of(app.image or f"{app.registry}/"): {"auth": secret}}}
        write(directory / "config.json", json.dumps(auths), 0o600)
        yield {"DOCKER_CONFIG": str(directory)}
    except FileNotFoundError:
        raise Failed(f"{app.registry_password} is missing; run deploy.py") from None
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def registry_of(image: str) -> str:
    """The host that keeps an image; without one in its name it is Docker's own."""
    host, slash, _ = image.partition("/")
    named = slash and ("." in host or ":" in host or host == "localhost")
    own = not named or host in ("docker.io", "index.docker.io")
    return "https://index.docker.io/v1/" if own else host


def repository(image: str) -> str:
    """An image without its tag and digest."""
    path = image.partition("@")[0]
    head, slash, name = path.rpartition("/")
    return head + slash + name.partition(":")[0]


def resolve(app: Application, image: str) -> str:
    """`image` by its digest, as the registry has it now: a tag may move."""
    if "@sha256:" in image:
        return f"{repository(image)}@{image.partition('@')[2]}"
    with registry(app) as env:
        host = registry_of(image)
        insecure = ["--insecure"] if host in _insecure() else []
        text = run("docker", "manifest", "inspect", "--verbose", *insecure, image, env=env,
                   timeout=60)  # fmt: skip
    answer = json.loads(text)
    if isinstance(answer, list):
        architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, "")
        fitting = [
            one for one in answer
            if (one["Descriptor"].get("platform") or {}).get("architecture") == architecture
        ]  # fmt: skip
        if not fitting:
            raise Failed(f"{image}: there is none for {os.uname().machine}")
        answer = fitting[0]
    return f"{repository(image)}@{answer['Descriptor']['digest']}"


def _insecure() -> set[str]:
    text = run("docker", "info", "--format", "{{json .RegistryConfig.IndexConfigs}}")
    return {host for host, config in json.loads(text).items() if not config["Secure"]}


def pull(app: Application, image: str) -> bool:
    """Whether the registry was needed: an image that is here by its digest is what it says."""
    if inspect("image", [image]):
        return False
    say(f"pulling {image}")
    # Noted before it is there: whatever ends this release, the next one knows whose it is.
    with (app.directory / FETCHED).open("a") as note:
        note.write(f"{image}\n")
    with registry(app) as env:
        run("docker", "pull", "--quiet", image, env=env, timeout=PATIENT)
    return True


def fetched(app: Application) -> set[str]:
    """What a registry gave us for an application, and may still be here."""
    try:
        return set((app.directory / FETCHED).read_text().splitlines())
    except FileNotFoundError:
        return set()


def remove_images(images: Sequence[str]) -> None:
    for image in images:
        # One that is in use, or has another name as well, stays.
        succeeds("docker", "image", "rm", image)


def our_images(app: Application) -> list[str]:
    """The images that are called after an application, whichever release made them."""
    words = ["docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}"]
    for pattern in (f"terrafirma/{app.name}", f"terrafirma/{app.name}/*"):
        words += ["--filter", f"reference={pattern}"]
    return run(*words, timeout=PROMPT).split()


def has_images(release: Release) -> bool:
    """Whether a release can be run again: it has been prepared, and its images are still here."""
    return bool(release.images) and all(
        inspect("image", [image]) for image in release.images.values()
    )
