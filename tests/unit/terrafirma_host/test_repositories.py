"""A vendor's repository is checked with this machine's own apt, in directories of the test."""

import base64
import gzip
import hashlib
import http.server
import io
import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from email.utils import formatdate
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from terrafirma_host import openpgp, repositories
from terrafirma_host.shell import Failed

from terrafirma.apt.vendors import Repository, repository

pytestmark = pytest.mark.skipif(
    not (shutil.which("apt-get") and shutil.which("gpg")), reason="no apt or no gpg here"
)
PACKAGES = """\
Package: libpq5
Version: 17.5-1.pgdg130+1
Architecture: amd64
Maintainer: nobody <nobody@example.com>
Filename: pool/libpq5_17.5-1.pgdg130+1_amd64.deb
Size: 1
SHA256: 0000000000000000000000000000000000000000000000000000000000000000
Description: a test
"""
SUITE = "trixie-pgdg"


class Vendor:
    """A repository and its keys, served on this machine."""

    def __init__(self, place: Path) -> None:
        self.home, self.www = place / "gnupg", place / "www"
        self.home.mkdir(mode=0o700)
        self.dists = self.www / "dists" / SUITE
        self.index = self.dists / "main/binary-amd64"
        self.index.mkdir(parents=True)
        self.url = ""
        self.keys = {}
        for name, more in (("vendor", ()), ("stranger", ()), ("expired", OLD), ("revoked", ())):
            until = "1y" if more else "never"
            self.gpg(*more, "--passphrase", "", "--quick-gen-key", name, "ed25519", "sign", until)
            self.keys[name] = self.gpg("--armor", "--export", name)
        (mark,) = (
            path
            for path in self.home.glob("openpgp-revocs.d/*.rev")
            if path.stem == self.fingerprint("revoked")
        )
        mark.write_text(mark.read_text().replace(":---", "---"))
        self.gpg("--import", str(mark))
        self.keys["revoked"] = self.gpg("--armor", "--export", "revoked")
        self.keys["both"] = self.gpg("--armor", "--export", "vendor", "stranger")
        self.sign()

    def gpg(self, *words: str) -> bytes:
        return subprocess.run(
            ["gpg", "--homedir", self.home, "--batch", "--quiet", "--yes", *words],
            check=True, capture_output=True,
        ).stdout  # fmt: skip

    def fingerprint(self, name: str) -> str:
        return openpgp.keys(openpgp.binary(self.keys[name]))[0].fingerprint

    def sign(self, by: str = "vendor", *more: str, says: str = SUITE, fields: str = "") -> None:
        text = PACKAGES.encode()
        (self.index / "Packages").write_bytes(text)
        (self.index / "Packages.gz").write_bytes(gzip.compress(text))
        digests = "".join(
            f" {hashlib.sha256(one.read_bytes()).hexdigest()} {one.stat().st_size}"
            f" {one.relative_to(self.dists)}\n"
            for one in sorted(self.index.iterdir())
        )
        release = self.dists / "Release"
        release.write_text(
            f"Origin: apt.postgresql.org\nSuite: {says}\nCodename: {says}\nDate: {formatdate()}\n"
            f"{fields}Architectures: amd64\nComponents: main\nSHA256:\n{digests}"
        )
        (self.dists / "InRelease").unlink(missing_ok=True)
        if by:
            self.gpg(*more, "--local-user", f"={by}", "--output", str(self.dists / "InRelease"),
                     "--clear-sign", str(release))  # fmt: skip


OLD = ("--faked-system-time", "20200101T000000")


class Handler(http.server.SimpleHTTPRequestHandler):
    status: dict[str, int] = {}  # noqa: RUF012  # errors, by a part of the path; set by tests
    cut = ""  # a part of the path of files that are cut in half

    def do_GET(self) -> None:
        for text, status in self.status.items():
            if text in self.path:
                self.send_error(status)
                return
        if self.cut and self.cut in self.path:
            data = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            return
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def vendor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vendor]:
    one = Vendor(tmp_path_factory.mktemp("vendor"))
    handler = partial(Handler, directory=str(one.www))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        one.url = f"http://127.0.0.1:{server.server_port}"
        yield one
        server.shutdown()


class Host:
    """A host whose apt uses directories of the test."""

    def __init__(self, place: Path, vendor: Vendor, patch: pytest.MonkeyPatch) -> None:
        self.place, self.vendor, self.patch = place, vendor, patch
        self.sources = place / "etc/apt/sources.list.d"
        for name in ("apt.conf.d", "preferences.d", "trusted.gpg.d", "sources.list.d"):
            (place / "etc/apt" / name).mkdir(parents=True)
        for name in ("lists/partial", "cache/archives/partial"):
            (place / name).mkdir(parents=True)
        (place / "status").touch()
        config = place / "apt.conf"
        config.write_text(
            f'Dir::Etc "{place}/etc/apt"; Dir::State::Lists "{place}/lists";'
            f'Dir::State::status "{place}/status"; Dir::Cache "{place}/cache";'
            'APT::Architecture "amd64"; APT::Sandbox::User "root";'
            'Acquire::Retries::Delay "false";\n'
        )
        patch.setenv("APT_CONFIG", str(config))
        patch.setenv("LC_ALL", "C.UTF-8")
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            patch.delenv(name, raising=False)
        patch.setattr(Handler, "status", {})
        patch.setattr(Handler, "cut", "")

    @property
    def source(self) -> Path:
        return self.sources / "terrafirma-pgdg.sources"

    @property
    def record(self) -> Path:
        return self.place / "record/pgdg"

    def described(self, pinned: str = "vendor", key: str = "vendor", **but: Any) -> dict[str, Any]:
        one: Repository = repository(
            "pgdg", distribution="debian", codename="trixie", architecture="amd64",
            urls={"pgdg": self.vendor.url},
        )  # fmt: skip
        (self.vendor.www / "key").write_bytes(self.vendor.keys.get(key, key.encode()))
        return {
            "title": "PGDG", "url": one.url, "suite": one.suite, "architecture": "amd64",
            "path": str(self.source), "head": one.head,
            "fingerprints": [self.vendor.fingerprint(pinned)],
            "key_urls": [f"{self.vendor.url}/key"], "key": None, "probe": ["libpq5"],
            "record": "what was asked for\n", "record_path": str(self.record), "wait_seconds": 1,
        } | but  # fmt: skip

    def put(self, **but: Any) -> None:
        described = io.StringIO(json.dumps(self.described(**but)))
        self.patch.setattr("sys.stdin", described)
        repositories.main(["set"])

    def refused(self, **but: Any) -> str:
        """The error of a refused repository, after checking that the host is unchanged."""
        before = self.state()
        with pytest.raises(Failed) as error:
            self.put(**but)
        assert self.state() == before
        assert self.updates() == 0
        message = str(error.value)
        assert "\n" not in message
        assert message.startswith("PGDG: http://127.0.0.1:")
        return message

    def state(self) -> dict[str, bytes]:
        return {
            str(path): path.read_bytes()
            for path in [*self.place.glob("etc/**/*"), self.record]
            if path.is_file()
        }

    def updates(self) -> int:
        command = ["apt-get", "-q", "-o", "APT::Update::Error-Mode=any", "update"]
        return subprocess.run(command, check=False, capture_output=True).returncode


@pytest.fixture
def host(tmp_path: Path, vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> Host:
    vendor.sign()
    return Host(tmp_path, vendor, monkeypatch)


def test_a_valid_repository_becomes_a_source(
    host: Host, vendor: Vendor, capsys: pytest.CaptureFixture[str]
) -> None:
    host.put()
    assert "is now a source of packages" in capsys.readouterr().out
    text = host.source.read_text()
    assert f"URIs: {vendor.url}\nSuites: trixie-pgdg\nComponents: main\n" in text
    assert f"Signed-By:\n {openpgp.BEGIN}\n .\n " in text
    assert text.endswith(f"\n {openpgp.END}\n")
    assert host.source.stat().st_mode & 0o777 == 0o644
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert host.record.read_text() == f"what was asked for\nsha256 {digest}\n"
    # Its lists are installed, and apt reads the file.
    said = subprocess.run(["apt-cache", "madison", "libpq5"], capture_output=True, text=True,
                          check=True).stdout  # fmt: skip
    assert f"17.5-1.pgdg130+1 | {vendor.url} trixie-pgdg/main amd64 Packages" in said
    assert host.updates() == 0
    # A second run writes the same, and so does one with a given key, which fetches nothing.
    host.put()
    assert host.source.read_text() == text
    given = base64.b64encode(vendor.keys["vendor"]).decode()
    host.patch.setattr(repositories, "fetched", None)
    described = host.described() | {"key": given}
    host.patch.setattr("sys.stdin", io.StringIO(json.dumps(described)))
    repositories.main(["set"])
    assert host.source.read_text() == text


Change = Callable[[Vendor], None]


def letter(vendor: Vendor) -> None:
    path = vendor.dists / "InRelease"
    path.write_text(path.read_text().replace("Origin: apt", "Origin: bpt"))


def portal(vendor: Vendor) -> None:
    (vendor.dists / "InRelease").write_text("<html>log in</html>")


def spoiled(vendor: Vendor) -> None:
    for path in vendor.index.iterdir():
        path.write_bytes(path.read_bytes()[:-4] + b"abcd")


def status(number: int, part: str) -> Change:
    return lambda _: setattr(Handler, "status", {part: number})


def cut(part: str) -> Change:
    return lambda _: setattr(Handler, "cut", part)


def nothing(_: Vendor) -> None:
    pass


FAILURES: dict[str, tuple[Change, dict[str, Any], str]] = {
    "another key": (nothing, {"pinned": "stranger"}, "is pinned in terrafirma/apt/vendors.py"),
    "a key beside it": (nothing, {"key": "both"}, "has, beside the vendor's, the fingerprint"),
    "an expired key": (nothing, {"pinned": "expired", "key": "expired"}, "expired on 2020-12-31"),
    "a revoked key": (nothing, {"pinned": "revoked", "key": "revoked"}, "revoked by its owner"),
    "no key": (nothing, {"key": "<html>"}, "key is not the vendor's key: it is not a public"),
    "no key there": (status(404, "/key"), {}, "/key: answers 404); or name a file in apt_keys"),
    "no server": (nothing, {"key_urls": ["http://127.0.0.1:1/k"]}, "k: Connection refused"),
    "no such name": (nothing, {"key_urls": ["http://x.invalid/k"]}, "its name does not resolve"),
    "no suite": (status(404, "/dists/"), {}, "no such suite, or no index in it (404)"),
    "down": (status(503, "/dists/"), {}, "it answers 503"),
    "unsigned": (lambda vendor: vendor.sign(""), {}, "it is not signed"),
    "signed by another": (
        lambda vendor: vendor.sign("stranger"),
        *({}, "which is not the vendor's pinned one"),
    ),
    "tampered": (letter, {}, "its signature is wrong"),
    "a login page": (portal, {}, "the answer is not a repository"),
    "another suite": (lambda vendor: vendor.sign(says="sid-pgdg"), {}, "it is the suite sid-pgdg"),
    "an old copy": (
        lambda vendor: vendor.sign(fields=f"Valid-Until: {formatdate(1)}\n"),
        *({}, "no longer valid"),
    ),
    "half an index": (cut("Packages"), {}, "an index is incomplete"),
    "another index": (spoiled, {}, "is not the one that was signed"),
    "another architecture": (
        nothing,
        {"architecture": "arm64"},
        "offers no libpq5 for arm64",
    ),
    "no such package": (nothing, {"probe": ["libpq5", "nginx"]}, "offers no nginx for amd64"),
}


@pytest.mark.parametrize("what", FAILURES)
def test_a_failure_changes_nothing(host: Host, vendor: Vendor, what: str) -> None:
    change, but, words = FAILURES[what]
    change(vendor)
    if "architecture" in but:
        but = but | {"head": host.described()["head"].replace("amd64", "arm64")}
    message = host.refused(**but)
    assert words in message
    assert message.endswith("; nothing was changed")


def test_the_message_has_both_fingerprints(host: Host, vendor: Vendor) -> None:
    message = host.refused(pinned="stranger")
    for name in ("vendor", "stranger"):
        assert vendor.fingerprint(name) in message


def test_an_installed_source_survives_a_failure(host: Host, vendor: Vendor) -> None:
    host.put()
    text = host.source.read_text()
    vendor.sign("stranger")
    with pytest.raises(Failed, match="not the vendor's pinned one"):
        host.put(record="something else\n")
    assert host.source.read_text() == text
    vendor.sign()
    assert host.updates() == 0


def test_a_source_whose_lists_cannot_be_fetched_is_removed_again(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    apt = repositories.apt

    def fails(program: str, config: Path, *words: str) -> tuple[int, str]:
        if config.name == "real.conf":
            return 100, "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 1"
        return apt(program, config, *words)

    monkeypatch.setattr(repositories, "apt", fails)
    monkeypatch.setattr("time.sleep", lambda _: None)
    assert "another program holds /var/lib/apt/lists/lock" in host.refused(wait_seconds=0)
    assert not host.source.exists()


def test_another_source_of_the_same_repository_is_named(host: Host, vendor: Vendor) -> None:
    old = host.sources / "docker.list"
    old.write_text(f"deb [trusted=yes] {vendor.url} {SUITE} main\n")
    message = host.refused()
    assert (
        f"{old} on the host has the same repository with another key; remove that file" in message
    )


def test_already_broken_sources_are_named(host: Host) -> None:
    (host.sources / "odd.list").write_text("deb\n")
    with pytest.raises(Failed, match=r"already broken: Malformed line 1 in .*sources.list.d/odd"):
        host.put()
    assert not host.source.exists()


def test_the_key_is_fetched_through_apts_own_proxy(host: Host) -> None:
    config = host.place / "etc/apt/apt.conf.d/proxy"
    config.write_text('Acquire::http::Proxy "http://u:s3cret@127.0.0.1:1";')
    assert repositories.proxies("http://x.acme.com/k")["http"] == "http://u:s3cret@127.0.0.1:1"
    assert repositories.proxies("https://x.acme.com/k")["https"] == "http://u:s3cret@127.0.0.1:1"
    with pytest.raises(Failed, match="Connection refused") as error:
        host.put()
    assert "s3cret" not in str(error.value)
    config.write_text(
        'Acquire::http::Proxy "http://127.0.0.1:1"; Acquire::https::Proxy "http://127.0.0.1:2";'
        'Acquire::http::Proxy::127.0.0.1 "DIRECT";'
    )
    assert repositories.proxies("https://x.acme.com/k")["https"] == "http://127.0.0.1:2"
    assert "http" not in repositories.proxies("http://127.0.0.1/k")
    host.put()


# Output of Debian 13's sqv, and other output that this machine's apt does not produce.
SAID = [
    (
        "Signing key on 0123 is not bound: because: SHA1 is not considered secure since 2026-02-01",
        "too weak for the apt of this host",
    ),
    ("Sub-process /usr/bin/sqv returned an error code (1), error message is: Missing key "
     "B97B0AFC, which is needed to verify signature.", "signed by the key B97B0AFC, which is not"),
    ("Sub-process /usr/bin/sqv returned an error code (1), error message is: Verifying signature: "
     "certificate is expired, expired on 2024-01-01T00:00:00Z", "a key that has expired"),
    ("error message is: Verifying signature: The primary key is not live because: Expired on "
     "2024-01-01T00:00:00Z", "a key that has expired"),
    ("OpenPGP signature verification failed: x: Message has been manipulated",
     "its signature is wrong"),
    ("The following signatures were invalid: EXPKEYSIG 7FCC7D46ACCC4CF8 PostgreSQL", "has expired"),
    ("The following signatures were invalid: REVKEYSIG 7FCC7D46ACCC4CF8 x", "has revoked"),
    ("Temporary failure resolving 'x.acme.com'", "the name x.acme.com does not resolve"),
    ("Certificate verification failed: The certificate is NOT trusted. The certificate issuer is "
     "unknown.  Could not handshake: Error in the certificate verification.", "not trusted here"),
    ("Could not handshake: An unexpected TLS packet was received.", "TLS fails (An unexpected"),
    ("E: Release file for x is not valid yet (invalid for another 3d)", "clock of the host"),
    ("Err:1 x\n  Invalid response from proxy: HTTP/1.1 407 Proxy Authentication Required",
     "the proxy requires a login"),
    # A server that closes the connection early; over TLS either library may say so.
    ("Err:1 x Packages\n  OpenSSL error: error:0A000126:SSL routines::unexpected eof while reading "
     " [IP: 192.0.2.4 443]", "an index is incomplete"),
    ("Err:1 x Packages\n  Error reading from server. Remote end closed connection "
     "[IP: 192.0.2.4 443]", "an index is incomplete"),
    ("Err:1 x InRelease\n  Something new\nE: Some index files failed", "Something new"),
    ("", "apt does not say why"),
]  # fmt: skip


@pytest.mark.parametrize(("said", "words"), SAID)
def test_the_cause_of_apts_failure_is_one_line(said: str, words: str) -> None:
    assert words in repositories.cause(said)
