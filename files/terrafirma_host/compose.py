"""Managed by Terrafirma. The compose project of an application, and orders to Compose."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from terrafirma_host import (
    builds,
    directories,
    dumps,
    engine,
    idle,
    jobs,
    joins,
    layer_variables,
    layers,
    pulls,
    references,
    registries,
    shape,
    stores,
    values,
    variables,
)
from terrafirma_host.engine import PATIENT, PROMPT
from terrafirma_host.project_files import Files, Raw, errors, warnings
from terrafirma_host.shell import Failed, conceal, run, write
from terrafirma_host.spec import RUNTIME, Application

if TYPE_CHECKING:
    from typing_extensions import Self

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
    raw: Raw
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
            further = self._written(layer_variables.variables(app), "env")
            found.append(self._written(layer_variables.env_files(app, further), "yaml"))
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
            **{layer_variables.hidden(name): value for name, value in self.hidden.items()},
            **self._of_services(),
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
        }

    def _of_services(self) -> dict[str, str]:
        """The variables with secret values of single services, under names of ours."""
        return {
            layer_variables.hidden(name, service): values.fill(text, self.secrets)
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
        project = read.project
        yield lambda: shape.refuse_unknown(self.app, project)
        if not shape.named(self.app) <= project["services"].keys():
            # The further rules are about services that exist.
            return
        self.notes = [*idle.lines(self.app, project)]
        if self.app.compose:
            self.notes += shape.absent_networks(project, self._absent(project))
            decided = shape.decide(self.app, project)
            self.app = decided.app
            yield from (partial(shape.refuse, line) for line in decided.refusals)
            files = self.look(read._replace(raw=_without(read.raw, decided.rewritten)))
            yield from (partial(rule, files) for rule in references.RULES)
            self.notes += [*decided.lines, *files.notes]
        app = self.app
        yield lambda: directories.add(app, project)
        yield lambda: jobs.refuse_unknown_services(app, project)
        yield lambda: dumps.refuse(app, project)
        yield lambda: stores.refuse(app, project)
        yield lambda: joins.refuse(app, project)

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
        there = {one["Name"] for one in engine.inspect("network", sorted({*named.values()}))}
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
            error = f"the compose files: {errors(self.app, result.stderr)}"
            # The cause may be a variable that is not set and leaves a field blank.
            variables.refuse_blank(self.as_read({}, {}, result.stderr), error)
            raise Failed(error)
        return result.stdout, result.stderr

    def as_written(self) -> Raw:
        """
        The merged files with their variables not filled in.

        Empty where Compose cannot print that, as with a variable in `ulimits`.
        """
        words = ("--no-interpolate", "--no-path-resolution", "--no-normalize", "--no-consistency")
        try:
            return dict(json.loads(self.config("--format", "json", *words)[0]))
        except Failed:
            return {}

    def look(self, read: Read) -> Files:
        """The files with all that they refer to."""
        app, project, raw = self.app, read.project, read.raw
        for name in {*app.secrets} & {*(raw.get("secrets") or {})}:
            # Compose leaves out a secret that no service names, yet it still collides with ours.
            project.setdefault("secrets", {}).setdefault(name, raw["secrets"][name])
        return self.as_read(project, raw, read.said)

    def as_read(self, project: layers.Project, raw: Raw, said: str) -> Files:
        app, given = self.app, self.environment()
        names = {*app.variables, *app.env}
        names |= {name.upper() for name in app.secrets if app.secrets_env}
        return Files(
            app, self.files(), {"services": {}, **project}, raw, warnings(said),
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
        texts = [builds.layer(app, project, "none"), slot]
        texts += [layers.state_layer(app, project)] if app.stateful else []
        for text in texts if app.compose else []:
            try:
                self.run(app.name, self.layer("check", text), "config", "--quiet")
            except Failed as error:
                words = errors(app, str(error))
                raise Failed(f"the compose files with our layer over them: {words}") from None

    def layer(self, name: str, text: str) -> str:
        path = self.work / f"{name}.yaml"
        if self.app.variables:
            write(
                Path(layer_variables.variables_file(self.app)),
                layer_variables.variables(self.app),
                0o600,
            )
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
        return layer_variables.lacking(text, self.environment())

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
            with pulls.login(self.app) as login:
                return self.run(project, layer, *words, timeout=PATIENT, login=login)
        except Failed as error:
            raise Failed(registries.explained(pulls.ask(self.app), error)) from None

    def become(self, project: str, layer: str, *words: str) -> NoReturn:
        """Replace this process with that command, so that it has the terminal."""
        command = [*self.command(project, layer), *words]
        terminal = {"TERM": os.environ.get("TERM", "dumb")}
        os.execve(shutil.which("docker") or "docker", command, self.environment() | terminal)


def _without(raw: Raw, rewritten: Mapping[str, Sequence[str]]) -> Raw:
    """The files as they are written, without variables that have other values here."""
    services = {**(raw.get("services") or {})}
    for name, changed in rewritten.items():
        service = services.get(name) or {}
        env = service.get("environment") or {}
        kept: object = (
            {key: value for key, value in env.items() if key not in changed}
            if isinstance(env, Mapping)
            else [one for one in env if one.partition("=")[0] not in changed]
        )
        services[name] = {**service, "environment": kept}
    return {**raw, "services": services} if raw else raw
