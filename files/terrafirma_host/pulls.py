"""Managed by Terrafirma. The images of an application on this host: pulled, kept, removed."""

from __future__ import annotations

import base64
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from terrafirma_host import engine, registries
from terrafirma_host.engine import PATIENT, PROMPT
from terrafirma_host.image_names import HUB, Image
from terrafirma_host.shell import Failed, run, say, succeeds, write
from terrafirma_host.spec import RUNTIME, Application, Release

# A file in the directory of an application, with a line for each image from a registry.
FETCHED = "fetched"


@contextmanager
def login(app: Application) -> Iterator[dict[str, str]]:
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
            _key(host): {"auth": base64.b64encode(":".join(known).encode()).decode()}
            for host, known in logins(app).items()
        }
        write(directory / "config.json", json.dumps({"auths": auths}), 0o600)
        yield {"DOCKER_CONFIG": str(directory)}
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _key(host: str) -> str:
    """How Docker's file names a registry: its own has this one name."""
    own = Image.of(f"{host}/").host == HUB
    return "https://index.docker.io/v1/" if own else host


def logins(app: Application) -> dict[str, tuple[str, str]]:
    """User and password by the host of a registry."""
    try:
        return {
            host: (login["user"], Path(login["password"]).read_text().rstrip("\n"))
            for host, login in app.registries.items()
        }
    except FileNotFoundError as error:
        raise Failed(f"{error.filename} is missing; run deploy.py") from None


def resolve(app: Application, images: Iterable[str]) -> dict[str, str]:
    """Each image with the digest that its tag has in the registry now; each is asked for once."""
    named = [image for image in images if "@sha256:" not in image]
    known = registries.known(ask(app), named) if named else {}
    return {
        image: f"{Image.of(image).repository}@{known.get(image) or image.partition('@')[2]}"
        for image in images
    }


def ask(app: Application) -> registries.Registries:
    return registries.Registries(logins(app), _insecure)


def _insecure() -> set[str]:
    text = run("docker", "info", "--format", "{{json .RegistryConfig.IndexConfigs}}")
    return {host for host, config in json.loads(text).items() if not config["Secure"]}


def pull(app: Application, image: str) -> bool:
    """Pull an image that is not here yet, named by its digest. Returns whether it was pulled."""
    if engine.inspect("image", [image]):
        return False
    say(f"pulling {image}")
    # Noted before the pull: after a kill, the next release still knows whose image it is.
    with (app.directory / FETCHED).open("a") as note:
        note.write(f"{image}\n")
    try:
        with login(app) as env:
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
        engine.inspect("image", [image]) for image in release.images.values()
    )
