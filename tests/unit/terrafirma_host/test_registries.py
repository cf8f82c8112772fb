"""Questions to registries of images: as few as possible, and answers that say what is wrong."""

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from urllib.request import Request

import pytest
from terrafirma_host import registries
from terrafirma_host.registries import Registries
from terrafirma_host.shell import Failed

from tests.unit.terrafirma_host.docker import DIGEST

LOGIN = "ci", "s3cret:s3cret"
BASIC = f"Basic {base64.b64encode(b'ci:s3cret:s3cret').decode()}"


@dataclass
class Fake:
    """A registry on this machine, which notes what it was asked."""

    login: str = ""  # "", "basic" or "bearer"
    digest: str | None = DIGEST
    code: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append(f"{request.command} {request.path}")
        path, given = urlsplit(request.path), request.headers.get("Authorization", "")
        if path.path == "/token":
            scope = parse_qs(path.query)["scope"][0]
            right = given == BASIC or not given
            self._send(request, 200 if right else 401, {}, json.dumps({"token": scope}).encode())
            return
        name = path.path.removeprefix("/v2/").partition("/manifests/")[0]
        wanted = {"basic": BASIC, "bearer": f"Bearer repository:{name}:pull"}.get(self.login, "")
        if wanted and given != wanted:
            where = f'realm="http://{self.host}/token",service="it"'
            ways = {"basic": 'Basic realm="it"', "bearer": f"Bearer {where}"}
            self._send(request, 401, {"WWW-Authenticate": ways[self.login]})
            return
        headers = {"Docker-Content-Digest": self.digest} if self.digest else {}
        self._send(request, self.code, headers | self.headers, b"{}")

    @staticmethod
    def _send(
        request: BaseHTTPRequestHandler, code: int, headers: dict[str, str], body: bytes = b""
    ) -> None:
        request.send_response(code)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)


@pytest.fixture
def fake() -> Iterator[Fake]:
    one = Fake()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            one.answer(self)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        one.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield one
        server.shutdown()


def asking(fake: Fake, **logins: tuple[str, str]) -> Registries:
    return Registries({fake.host: LOGIN} if logins.get("login") else {})


def test_each_image_is_asked_for_once(fake: Fake) -> None:
    names = [f"{fake.host}/team/api{number % 30}:1" for number in range(90)]
    found = asking(fake).digests(names)
    assert found == dict.fromkeys(names, DIGEST)
    assert sorted(fake.asked) == sorted(f"HEAD /v2/team/api{n}/manifests/1" for n in range(30))


def test_a_password_is_sent_at_once(fake: Fake) -> None:
    fake.login = "basic"
    assert asking(fake, login=LOGIN).digests([f"{fake.host}/api"]) == {f"{fake.host}/api": DIGEST}
    assert fake.asked == ["HEAD /v2/api/manifests/latest"]


def test_a_token_is_asked_for_as_the_registry_says(fake: Fake) -> None:
    fake.login = "bearer"
    names = [f"{fake.host}/api{number}" for number in range(3)]
    assert {*asking(fake, login=LOGIN).digests(names).values()} == {DIGEST}
    heads = [one for one in fake.asked if one.startswith("HEAD")]
    # Only the first question finds out how the registry gives tokens.
    assert len(heads) == 4
    assert "GET /token?service=it&scope=repository%3Aapi0%3Apull" in fake.asked


def test_a_registry_that_names_no_digest(fake: Fake) -> None:
    fake.digest = None
    found = asking(fake).digests([f"{fake.host}/api"])
    assert [*found.values()] == [f"sha256:{hashlib.sha256(b'{}').hexdigest()}"]


WHO = "this address (without a login)"
REFUSED: dict[str, tuple[str, int, dict[str, str], bool, str]] = {
    "no such image": ("", 404, {}, False, f"has no such image, or does not show it to {WHO}"),
    "without a login": (
        "basic", 200, {}, False,
        f'does not show it to {WHO} (HTTP 401): registries = {{"HOST": {{"user": "…", '
        '"password": "env:…"}}',
    ),
    "without rights": (
        "", 403, {}, True,
        "does not show it to 'ci' (HTTP 403): is the password right, and may that user read it?",
    ),
    "an error": ("", 500, {}, False, "answers 500 Internal Server Error"),
    "a redirect to nowhere": ("", 307, {}, False, "answers 307"),
    "a limit": (
        "", 429, {"ratelimit-limit": "100;w=21600", "Retry-After": "1767225600"}, False,
        f"allows {WHO} no more requests: at most 100 in 6 hours, until 2026-01-01 00:00:00 UTC; a "
        'login may have another limit: registries = {"HOST":',
    ),
    "a limit of a user": (
        "", 429, {"Retry-After": "Thu, 01 Jan 2026 00:00:00 GMT"}, True,
        "allows 'ci' no more requests until 2026-01-01 00:00:00 UTC",
    ),
    "a limit without an end": ("", 429, {"Retry-After": "soon"}, True, "allows 'ci' no more"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_an_answer_that_is_none_is_one_line(fake: Fake, what: str) -> None:
    fake.login, fake.code, fake.headers, login, words = REFUSED[what]
    with pytest.raises(Failed) as failed:
        (asking(fake, login=LOGIN) if login else asking(fake)).digests([f"{fake.host}/api:1"])
    said = str(failed.value)
    assert said.startswith(f"{fake.host}/api:1: {fake.host} {words.replace('HOST', fake.host)}")
    assert "\n" not in said
    assert "s3cret" not in said


@pytest.mark.parametrize(
    ("to", "kept"),
    [
        ("https://a.example/other", True),
        ("https://b.example/v2", False),
        ("https://a.example:5000/v2", False),
        ("http://a.example/v2", False),
    ],
)
def test_a_redirect_takes_a_login_nowhere_else(to: str, kept: bool) -> None:
    asked = Request("https://a.example/v2", headers={"Authorization": "Basic eA=="})
    new = registries._Redirect().redirect_request(asked, BytesIO(), 307, "", HTTPMessage(), to)
    assert new
    assert new.has_header("Authorization") is kept


def test_a_limit_in_seconds_ends_that_much_later(fake: Fake) -> None:
    fake.code, fake.headers = 429, {"Retry-After": "90"}
    with pytest.raises(Failed) as failed:
        asking(fake).digests([f"{fake.host}/api:1"])
    until = str(failed.value).partition("until ")[2][:19]
    moment = time.mktime(time.strptime(until, "%Y-%m-%d %H:%M:%S")) - time.timezone
    assert 80 < moment - time.time() < 100


def test_a_registry_that_does_not_answer() -> None:
    with pytest.raises(Failed, match=r"^127.0.0.1:1/api: 127.0.0.1:1 does not answer: "):
        Registries().digests(["127.0.0.1:1/api"])


def test_tls_is_needed_where_the_engine_needs_it(fake: Fake) -> None:
    host = f"localhost.localdomain:{fake.port}"
    with pytest.raises(Failed, match=f"{host} does not answer: "):
        Registries().digests([f"{host}/api"])
    assert fake.asked == []


def test_an_error_of_the_engine_says_whose_limit_it_is(fake: Fake) -> None:
    error = f"toomanyrequests: You have reached your limit ({fake.host}/team/api:1)"
    fake.headers = {"ratelimit-limit": "200;w=3600", "RateLimit-Reset": "1767225600"}
    assert registries.explained(asking(fake), error, f"{fake.host}/team/api:1") == (
        f"{error}\n{fake.host} allows {WHO} no more for now: at most 200 in 1 hour, until "
        "2026-01-01 00:00:00 UTC"
    )
    assert registries.explained(asking(fake), "no space left") == "no space left"
    assert len(fake.asked) == 1


def test_a_run_asks_once(fake: Fake, roots: Path) -> None:
    name = f"{fake.host}/api:1"
    for run in ("one", "one", "two"):
        # Each is a process of its own.
        registries.begin(run)
        assert registries.known(asking(fake), [name, name])[name] == DIGEST
    assert len(fake.asked) == 2
    assert (roots / "run" / "digests.json").stat().st_mode & 0o777 == 0o600
    # Without a run, as by hand, nothing is kept.
    registries.begin("")
    assert registries.known(asking(fake), [name])[name] == DIGEST
    assert len(fake.asked) == 3
    # The file counts for nothing if it is damaged.
    (roots / "run" / "digests.json").write_text("[")
    registries.begin("one")
    assert registries.known(asking(fake), [name])[name] == DIGEST
    registries.begin("")
