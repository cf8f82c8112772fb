"""
Managed by Terrafirma. Questions to registries of images: one for each image, and none for a digest.

A question is a HEAD request, which counts for no limit of pulls. The answers to a run of a deploy
are kept for that run, so that its plan and its release do not ask twice.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, HTTPSHandler, Request, build_opener

from terrafirma_host import spec
from terrafirma_host.image_names import HUB, Image
from terrafirma_host.shell import Failed, write

# Where Docker Hub answers, and where it gives tokens.
HUB_HOST = "registry-1.docker.io"
HUB_CHALLENGE = {"realm": "https://auth.docker.io/token", "service": "registry.docker.io"}

CERTIFICATES = Path("/etc/docker/certs.d")
SECONDS = 20
"""How long a registry may take to answer."""
AT_ONCE = 8
KEPT = 24 * 3600
"""Seconds for which the answers of a run are kept."""
LARGEST = 4 * 2**20
"""Bytes of a manifest."""

KINDS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
DIGEST = r"sha256:[0-9a-f]{64}"
# What the engine and the builder say where a registry has had enough.
TOO_MANY = re.compile(r"toomanyrequests|429 Too Many Requests|rate limit", re.IGNORECASE)


@dataclass
class Registries:
    """The registries of an application, with its logins."""

    logins: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """User and password by host."""
    insecure: Callable[[], set[str]] = set
    """Returns the hosts whose certificates the engine does not check."""
    challenges: dict[str, dict[str, str]] = field(default_factory=dict)
    """How each host gives tokens; empty for one that gives none."""

    def __post_init__(self) -> None:
        self.challenges.setdefault(HUB, dict(HUB_CHALLENGE))
        self._lock = threading.Lock()
        self._plain: set[str] | None = None

    def digests(self, names: Iterable[str]) -> dict[str, str]:
        """The digest that the tag of each image has now; raises Failed."""
        images = [Image.of(name) for name in dict.fromkeys(names)]
        first = {image.host: image for image in reversed(images)}
        # The first answer of a host tells how it wants the others to be asked.
        found = {image.name: self.digest(image) for image in first.values()}
        rest = [image for image in images if image.name not in found]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            answers = pool.map(self.digest, rest)
            found |= {image.name: answer for image, answer in zip(rest, answers, strict=True)}
        return found

    def digest(self, image: Image) -> str:
        headers, _ = self._ask(image, "HEAD")
        digest = headers.get("Docker-Content-Digest", "")
        if not re.fullmatch(DIGEST, digest):
            # Few registries leave it out; then it is that of the manifest's text.
            _, body = self._ask(image, "GET")
            digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        return digest

    def limit(self, name: str) -> str:
        """Whose limit of requests is reached, and when it ends, as the registry says it."""
        image = Image.of(name)
        try:
            headers, _ = self._ask(image, "HEAD")
        except Failed as error:
            return str(error)
        return f"{image.host} allows {self._who(image.host)} no more for now{_until(headers)}"

    def _who(self, host: str) -> str:
        return (
            repr(self.logins[host][0]) if host in self.logins else "this address (without a login)"
        )

    def _ask(self, image: Image, method: str) -> tuple[HTTPMessage, bytes]:
        """The answer of a registry about a manifest; raises Failed, in words about the image."""
        path = f"/v2/{quote(image.path)}/manifests/{quote(image.tag)}"
        headers = {"Accept": ", ".join(KINDS)}
        try:
            for last in (False, True):
                given = headers | self._authorization(image)
                try:
                    return self._open(image.host, path, method, given)
                except HTTPError as error:
                    if error.code != 401 or last or not self._learn(image.host, error.headers):
                        raise
        except HTTPError as error:
            raise Failed(f"{image.name}: {self._refusal(image, error)}") from None
        except (OSError, HTTPException, ValueError) as error:
            reason = error.reason if isinstance(error, URLError) else error
            raise Failed(f"{image.name}: {image.host} does not answer: {reason}") from None
        raise AssertionError

    def _refusal(self, image: Image, error: HTTPError) -> str:
        host, login = image.host, self._who(image.host)
        setting = f'registries = {{"{host}": {{"user": "…", "password": "env:…"}}}}'
        if error.code == 429:
            more = "" if host in self.logins else f"; a login may have another limit: {setting}"
            return f"{host} allows {login} no more requests{_until(error.headers)}{more}"
        if error.code in (401, 403):
            right = "is the password right, and may that user read it?"
            words = right if host in self.logins else setting
            return f"{host} does not show it to {login} (HTTP {error.code}): {words}"
        if error.code == 404:
            return f"{host} has no such image, or does not show it to {login}"
        return f"{host} answers {error.code} {error.reason}"

    # --- logins -----------------------------------------------------------------------------------

    def _authorization(self, image: Image) -> dict[str, str]:
        if challenge := self.challenges.get(image.host):
            return {"Authorization": f"Bearer {self._token(image, challenge)}"}
        return self._basic(image.host)

    def _basic(self, host: str) -> dict[str, str]:
        if host not in self.logins:
            return {}
        words = base64.b64encode(":".join(self.logins[host]).encode()).decode()
        return {"Authorization": f"Basic {words}"}

    def _learn(self, host: str, headers: Message) -> bool:
        """Whether a host says where it gives tokens, which was not known yet."""
        for header in headers.get_all("WWW-Authenticate") or []:
            scheme, _, rest = header.partition(" ")
            if scheme.lower() == "bearer" and not self.challenges.get(host):
                self.challenges[host] = dict(re.findall(r'(\w+)="([^"]*)"', rest))
                return bool(self.challenges[host].get("realm"))
        return False

    def _token(self, image: Image, challenge: Mapping[str, str]) -> str:
        asked = {"service": challenge.get("service", ""), "scope": f"repository:{image.path}:pull"}
        realm = urlsplit(challenge["realm"])
        if realm.scheme != "https" and not self._is_insecure(image.host):
            raise ValueError(f"it gives tokens without TLS, at {challenge['realm']}")
        where = f"{realm.path}?{urlencode({key: one for key, one in asked.items() if one})}"
        _, body = self._open(realm.netloc, where, "GET", self._basic(image.host), realm.scheme)
        answer = json.loads(body)
        return str(answer.get("token") or answer["access_token"])

    # --- connections ------------------------------------------------------------------------------

    def _is_insecure(self, host: str) -> bool:
        with self._lock:
            if self._plain is None:
                self._plain = self.insecure()
        return host in self._plain or re.match(r"(localhost|127\.[\d.]+)(:|$)", host) is not None

    def _open(
        self, host: str, path: str, method: str, headers: Mapping[str, str], scheme: str = ""
    ) -> tuple[HTTPMessage, bytes]:
        at = HUB_HOST if host == HUB else host
        refused: Exception = ValueError(f"{scheme}: no scheme of a registry")
        for one, check in (("https", True), ("https", False), ("http", False)):
            if scheme not in ("", one) or not (check or self._is_insecure(at)):
                continue
            request = Request(f"{one}://{at}{path}", headers=dict(headers), method=method)  # noqa: S310
            request.add_header("User-Agent", "terrafirma")
            opener = build_opener(HTTPSHandler(context=_context(at, check=check)), _Redirect())
            try:
                with opener.open(request, timeout=SECONDS) as answer:
                    return answer.headers, answer.read(LARGEST)
            except HTTPError:
                raise
            except (OSError, HTTPException) as error:
                # Like the engine: without TLS only where the settings allow it.
                if not self._is_insecure(at) or one == "http":
                    raise
                refused = error
        raise refused


class _Redirect(HTTPRedirectHandler):
    """Passwords and tokens are for the host that was asked, and for a connection like that."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new and urlsplit(newurl)[:2] != urlsplit(req.full_url)[:2]:
            new.remove_header("Authorization")
        return new


def _context(host: str, *, check: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not check:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    # The engine does not insist on all of X.509 either: a registry may have made its certificate.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    # The engine trusts these, too, and shows itself with such a certificate.
    for path in sorted((CERTIFICATES / host).glob("*.crt")):
        context.load_verify_locations(path)
    for path in sorted((CERTIFICATES / host).glob("*.cert")):
        context.load_cert_chain(path, path.with_suffix(".key"))
    return context


def _until(headers: Message) -> str:
    """What headers say about a limit: how much, and when it ends."""
    words = ""
    if found := re.match(r"(\d+);w=(\d+)", headers.get("ratelimit-limit", "")):
        words = f": at most {found[1]} in {_duration(int(found[2]))}"
    for name in ("Retry-After", "X-Retry-After", "X-RateLimit-Reset", "RateLimit-Reset"):
        if at := _moment(headers.get(name, "")):
            until = time.strftime("until %Y-%m-%d %H:%M:%S UTC", time.gmtime(at))
            return f"{words}, {until}" if words else f" {until}"
    return words


def _moment(text: str) -> float:
    """A time, as registries write it: in seconds from now or since the epoch, or as a date."""
    if re.fullmatch(r"\d{1,11}", text):
        return int(text) if int(text) > 10**9 else time.time() + int(text)
    with suppress(ValueError, TypeError):
        return parsedate_to_datetime(text).timestamp()
    return 0


def _duration(seconds: int) -> str:
    for name, length in (("hour", 3600), ("minute", 60)):
        if seconds % length == 0 and seconds >= length:
            return f"{seconds // length} {name}{'s' if seconds > length else ''}"
    return f"{seconds} seconds"


# --- the answers of a run -------------------------------------------------------------------------


@dataclass
class _Run:
    """The run of a deploy that this process belongs to."""

    name: str = ""
    known: dict[str, str] = field(default_factory=dict)


RUN = _Run()


def begin(run: str) -> None:
    """Share answers with the other processes of that run."""
    RUN.name, RUN.known = run, {}
    with suppress(OSError, ValueError, LookupError, TypeError):
        RUN.known = {str(name): str(one) for name, one in _runs()[run]["digests"].items()}


def known(registries: Registries, names: Iterable[str]) -> dict[str, str]:
    """The digests of images, asked for once in a run."""
    missing = [name for name in dict.fromkeys(names) if name not in RUN.known]
    if missing:
        RUN.known |= registries.digests(missing)
        if RUN.name:
            _keep()
    return RUN.known


def _file() -> Path:
    return spec.RUNTIME / "digests.json"


def _runs() -> dict[str, dict[str, dict[str, str]]]:
    found: dict[str, dict[str, dict[str, str]]] = json.loads(_file().read_text())
    return found


def _keep() -> None:
    runs = {}
    with suppress(OSError, ValueError, LookupError, TypeError):
        runs = {
            name: run for name, run in _runs().items()
            if time.time() - float(str(run["at"])) < KEPT
        }  # fmt: skip
    runs[RUN.name] = {"at": time.time(), "digests": RUN.known}  # type: ignore[dict-item]
    # Without it, a later process asks again.
    with suppress(OSError):
        write(_file(), json.dumps(runs), 0o600)


def explained(registries: Registries, error: object, name: str = "") -> str:
    """
    An error of the engine or the builder; where a registry has had enough, with whose limit it is.

    + name: the image, unless the error names it
    """
    text = str(error)
    if not TOO_MANY.search(text):
        return text
    # The names in a message have the registry's host, and mostly a tag or a digest.
    named = re.search(r"\b[\w-]+(?:\.[\w-]+)+(?::\d+)?/[\w./-]+(?::[\w.-]+)?", text)
    return f"{text}\n{registries.limit(name or (named[0] if named else 'alpine'))}"
