"""
Managed by Terrafirma. Adds a vendor's repository to the sources of apt.

    terrafirma repositories set       add the repository that standard input describes

Standard input is JSON, see Repository. The key is recognised by its fingerprint, and apt first
reads the repository apart from the host's sources. Only a repository that passes every check
becomes a source. On any failure the sources stay unchanged, and `apt-get update` works as before.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import shlex
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from terrafirma_host import openpgp
from terrafirma_host.shell import Failed, plain, run, say, write

# Bytes of a key: real ones have a few kilobytes.
LARGEST = 1 << 20
# Seconds for the answer with the key, and for one command of apt.
ANSWER, REFRESH = 30, 600
PINNED_IN = "terrafirma/apt/vendors.py"


@dataclass(frozen=True)
class Repository:
    """A repository as the deploy describes it: see terrafirma/apt/operations.py."""

    title: str
    url: str
    suite: str
    architecture: str
    path: str
    """The file of the source, one of those that apt reads."""
    head: str
    """The content of the source, up to the key."""
    fingerprints: list[str]
    """The fingerprints of the keys that may sign the repository."""
    key_urls: list[str]
    """Where to fetch the key; the first address that answers is used."""
    key: str | None
    """The key itself in Base64, instead of fetching it."""
    probe: list[str]
    """Packages that the repository must offer."""
    record: str
    """The request, recorded with the digest of the source: by it the deploy recognises the file."""
    record_path: str
    wait_seconds: int

    def failed(self, what: str) -> Failed:
        return Failed(f"{self.title}: {self.url}: {without_logins(what)}; nothing was changed")


def main(words: Sequence[str]) -> None:
    if list(words) != ["set"]:
        sys.exit(__doc__)
    put(Repository(**json.load(sys.stdin)))


def put(one: Repository) -> None:
    source = f"{one.head}{embedded(key_of(one))}"
    with scratch() as place:
        try_out(one, source, place)
        install(one, source, place)
    digest = hashlib.sha256(source.encode()).hexdigest()
    write(Path(one.record_path), f"{one.record}sha256 {digest}\n")
    say(f"{one.title}: {one.url} {one.suite} is now a source of packages")


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="terrafirma-", ignore_cleanup_errors=True) as name:
        place = Path(name)
        # apt fetches as an account of its own, which must read this. Nothing here is secret.
        place.chmod(0o755)
        for part in ("parts", "all", "lists"):
            (place / part).mkdir()
            (place / part).chmod(0o755)
        yield place


# --- the key --------------------------------------------------------------------------------------


def key_of(one: Repository) -> bytes:
    """The packets of the vendor's key; raises Failed for any other key."""
    if one.key is not None:
        text, where = base64.b64decode(one.key, validate=True), "the file in apt_keys"
    else:
        text, where = fetched(one)
    try:
        packets = openpgp.binary(text)
        found = openpgp.keys(packets)
    except Failed as error:
        raise one.failed(f"{where} is not the vendor's key: {error}") from None
    refuse_strangers(one, found, where)
    return packets


def refuse_strangers(one: Repository, found: Sequence[openpgp.Key], where: str) -> None:
    pinned = " or ".join(one.fingerprints)
    for key in found:
        if key.fingerprint not in one.fingerprints:
            beside = ", beside the vendor's," if len(found) > 1 else ""
            raise one.failed(
                f"the key at {where} has{beside} the fingerprint {key.fingerprint}, and {pinned} "
                f"is pinned in {PINNED_IN}"
            )
        if key.revoked:
            raise one.failed(f"the key {key.fingerprint} at {where} is revoked by its owner")
        if key.expires is not None and key.expires <= time.time():
            day = time.strftime("%Y-%m-%d", time.gmtime(key.expires))
            raise one.failed(
                f"the key {key.fingerprint} at {where} expired on {day}; a newer copy is needed, "
                "or the clock of the host is wrong"
            )


def fetched(one: Repository) -> tuple[bytes, str]:
    """The key, and the address that it came from."""
    wrong = []
    for url in one.key_urls:
        try:
            return fetch(url), url
        except (OSError, http.client.HTTPException, ValueError) as error:
            wrong.append(f"{url}: {why(error)}")
    raise one.failed(f"its key cannot be fetched ({'; '.join(wrong)}); or name a file in apt_keys")


def fetch(url: str) -> bytes:
    # Fetch through the same proxy as apt.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies(url)))
    # terrafirma/apt/settings.py admits only https and http.
    request = urllib.request.Request(url, headers={"User-Agent": "terrafirma"})  # noqa: S310
    with opener.open(request, timeout=ANSWER) as answer:
        data: bytes = answer.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"more than {LARGEST} bytes, so it is not a key")
    return data


def proxies(url: str) -> dict[str, str]:
    """The proxies of apt's configuration, which come before those of the environment."""
    parts = urlsplit(url)
    found = urllib.request.getproxies()
    # As in apt: https uses http's proxy unless it has its own, and so may each server.
    options = [f"Acquire::{one}::Proxy" for one in dict.fromkeys(("http", parts.scheme))]
    options += [f"{option}::{parts.hostname}" for option in options]
    words = [word for number, one in enumerate(options) for word in (f"P{number}", one)]
    for line in run("apt-config", "shell", *words).splitlines():
        value = shlex.split(line)[0].partition("=")[2]
        if value == "DIRECT":
            found.pop(parts.scheme, None)
        elif value:
            found[parts.scheme] = value
    return found


def why(error: Exception) -> str:
    """Why a fetch failed, in words."""
    if isinstance(error, urllib.error.HTTPError):
        proxy = ", the proxy's answer: see apt_proxy" if error.code == 407 else ""
        return f"answers {error.code}{proxy}"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted here ({reason.verify_message})"
    if isinstance(reason, ssl.SSLError):
        return f"TLS fails ({reason.reason or 'the answer is not TLS'})"
    if isinstance(reason, socket.gaierror):
        return "its name does not resolve"
    if isinstance(reason, TimeoutError):
        return f"no answer within {ANSWER} s"
    if isinstance(reason, OSError):
        words = reason.strerror or str(reason)
        proxy = (
            "; that is the proxy's answer: see apt_proxy" if re.search(r"\b407\b", words) else ""
        )
        return f"{words}{proxy}"
    return str(reason) or type(reason).__name__


def embedded(packets: bytes) -> str:
    """The key as a field of a source, where a dot stands for an empty line."""
    return "".join(f" {line or '.'}\n" for line in openpgp.armored(packets).splitlines())


# --- the repository -------------------------------------------------------------------------------


def try_out(one: Repository, source: str, place: Path) -> None:
    """Raise Failed unless apt accepts the repository, read apart from the host's sources."""
    name = Path(one.path).name
    write(place / "parts" / name, source)
    config = configuration(place / "alone.conf", place / "parts", lists=place / "lists")
    status, said = apt("apt-get", config, "update")
    if status or re.search(r"^W: Conflicting distribution", said, re.MULTILINE):
        raise one.failed(cause(said))
    for package in one.probe:
        status, listed = apt("apt-cache", config, "madison", package)
        if status or " Packages" not in listed:
            raise one.failed(
                f"its suite {one.suite} offers no {package} for {one.architecture} (another "
                "architecture, another component, or an empty index)"
            )
    refuse_conflicts(one, source, place)


def refuse_conflicts(one: Repository, source: str, place: Path) -> None:
    """
    Raise Failed if another source of the host has this repository with another key.

    Every call of apt fails on such a pair of sources.
    """
    path = Path(one.path)
    for other in path.parent.glob("*") if path.parent.is_dir() else ():
        if other != path:
            (place / "all" / other.name).symlink_to(other)
    config = configuration(place / "others.conf", place / "all", alone=False)
    status, said = apt("apt-get", config, "indextargets")
    # Show the paths of the host, not those of the scratch directory.
    said = said.replace(str(place / "all"), str(path.parent))
    if status:
        raise one.failed(f"the sources of the host are already broken: {cause(said)}")
    write(place / "all" / path.name, source)
    status, said = apt("apt-get", config, "indextargets")
    if status:
        address = re.sub(r"^\w+://", "", one.url)
        files = [
            str(other)
            for other in (path.parent.parent / "sources.list", *sorted(path.parent.glob("*")))
            if other != path and other.is_file() and address in other.read_text(errors="replace")
        ]
        raise one.failed(
            f"{', '.join(files) or 'another source'} on the host has the same repository with "
            f"another key; remove that file ({cause(said)})"
        )


def install(one: Repository, source: str, place: Path) -> None:
    """Install the source and fetch its lists; restore the previous source if that fails."""
    path = Path(one.path)
    before = path.read_bytes() if path.is_file() else None
    write(path, source)
    try:
        config = configuration(place / "real.conf", place / "parts")
        deadline = time.monotonic() + one.wait_seconds
        while True:
            status, said = apt("apt-get", config, "update")
            if not status:
                return
            if "Could not get lock" not in said or time.monotonic() > deadline:
                raise one.failed(cause(said))
            time.sleep(2)
    except BaseException:
        if before is None:
            path.unlink(missing_ok=True)
        else:
            write(path, before)
        raise


def configuration(
    path: Path, parts: Path, *, lists: Path | None = None, alone: bool = True
) -> Path:
    """
    Write options for apt that add to the host's configuration, which has the proxies and logins.

    + parts: the directory with the sources
    + lists: where the lists go, if not where the host has them
    + alone: False to read the host's sources.list, too
    """
    lines = [
        # Skip the host's programs that run at every refresh.
        *(f"#clear APT::Update::{one};" for one in ("Pre-Invoke", "Post-Invoke")),
        "#clear APT::Update::Post-Invoke-Success;",
        f'Dir::Etc::SourceParts "{parts}";',
        *(['Dir::Etc::SourceList "/dev/null";'] if alone else []),
        *([f'Dir::State::Lists "{lists}";'] if lists else []),
        *([f'Dir::Cache::{one} "";' for one in ("pkgcache", "srcpkgcache")]),
        # Treat warnings as failures, and accept nothing that is unsigned.
        'APT::Update::Error-Mode "any";',
        *(
            f'Acquire::{one} "false";'
            for one in (
                "AllowInsecureRepositories",
                "AllowWeakRepositories",
                "AllowDowngradeToInsecureRepositories",
            )
        ),
        # Keep the lists of all other sources.
        'APT::Get::List-Cleanup "false";',
        'Acquire::Retries "3";',
        'Acquire::Languages "none";',
    ]
    path.write_text("\n".join([*lines, ""]))
    return path


def apt(program: str, config: Path, *words: str) -> tuple[int, str]:
    """The exit code and the output of a command of apt."""
    try:
        done = subprocess.run(
            [program, "-q", "-c", str(config), *words],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", timeout=REFRESH, check=False, umask=0o022,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 1, f"E: not done within {REFRESH} s"
    return done.returncode, done.stdout


# Output of apt and its two verifiers (gpgv, and sqv since Debian 13), with its meaning. The first
# pattern that matches is the cause.
CAUSES = (
    (r"Could not resolve '([^']*)'|Temporary failure resolving '([^']*)'",
     "the name {0} does not resolve"),
    (r"HTTP/1\.\d 407|\b407 +Proxy|Proxy Authentication Required",
     "the proxy requires a login: see apt_proxy"),
    (r"[Cc]ertificate verification failed:[^\n]*?(?:issuer is unknown|chain uses[^.\n]*)",
     "its certificate is not trusted here"),
    (r"[Cc]ertificate verification failed: ([^\n]*)", "its certificate is not trusted here ({0})"),
    (r"Could not handshake: ([^\n]*)", "TLS fails ({0})"),
    (r"Release file for [^\n]* is expired[^\n]*",
     "its index is no longer valid (an old copy, or the clock of the host is wrong)"),
    (r"Release file for [^\n]* is not valid yet",
     "its index is dated in the future: the clock of the host is wrong"),
    (r"SHA1 is not considered secure|[Pp]olicy rejected|uses weak",
     "its key or signature is too weak for the apt of this host (SHA-1); a newer one is needed"),
    (r"REVKEYSIG (\w+)", "it is signed by the key {0}, which its owner has revoked"),
    (r"EXPKEYSIG (\w+)", "it is signed by the key {0}, which has expired"),
    (r"EXPSIG (\w+)", "its signature by {0} has expired"),
    (r"BADSIG (\w+)", "its signature is wrong: the index was changed after {0} signed it"),
    (r"NO_PUBKEY (\w+)|Missing key (\w+)",
     "it is signed by the key {0}, which is not the vendor's pinned one"),
    (r"[Rr]evoked|hard revocation", "it is signed by a key that its owner has revoked"),
    (r"(?i)(?:key|certificate)[^\n]*(?:not a?live|expired)",
     "it is signed by a key that has expired"),
    (r"(?:Message has been manipulated|[Bb]ad signature|Verification of [^\n]* failed)",
     "its signature is wrong: the index was changed after it was signed"),
    (r"Clearsigned file isn't valid|NODATA|isn't signed|does the network require authentication",
     "the answer is not a repository (a login page, or a damaged file)"),
    (r"Conflicting distribution: [^(]*\(expected ([^ ]+) but got ([^ )]*)\)",
     "it is the suite {1}, and {0} is asked for"),
    # Without an answer apt reports the index as unsigned or missing, so this comes before those.
    (r"(?m)^Err:[^\n]*\n +(?!404)([45]\d\d) +[A-Z]", "it answers {0}"),
    (r"does not have a Release file|InRelease[^\n]*\n[^\n]* 404 |404 +Not Found",
     "there is no such suite, or no index in it (404)"),
    (r"is not signed|is no longer signed|certain unsigned", "it is not signed"),
    (r"Hash Sum mismatch|unexpected size|Error reading from server|closed connection|"
     r"Connection (?:closed|reset)|short read|unexpected eof|Failed to decompress|corrupt|"
     r"Undetermined Error",
     "an index is incomplete, or is not the one that was signed; a mirror that is being updated "
     "needs a while"),
    (r"Connection refused|Could not connect to|Unable to connect|Network is unreachable|"
     r"No route to host", "no server answers there"),
    (r"[Tt]imed out|timeout", "no answer in time"),
    (r"Could not get lock ([^ ]+)", "another program holds {0}"),
)  # fmt: skip


def cause(said: str) -> str:
    """Why apt failed, in one line."""
    for pattern, words in CAUSES:
        if found := re.search(pattern, said):
            return words.format(*(one for one in found.groups() if one is not None))
    lines = plain(said).splitlines()
    # The first error causes those that follow.
    for start in ("Err:", "E: ", "W: "):
        for number, line in enumerate(lines):
            if line.startswith(start):
                # The reason is on the line below the file's name.
                return (lines[number + 1] if start == "Err:" else line.removeprefix(start)).strip()
    return "apt does not say why"


def without_logins(text: str) -> str:
    return re.sub(r"://[^/@\s]*@", "://", text)
