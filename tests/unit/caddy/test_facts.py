"""What facts read of Caddy: its version, names and certificates."""

import pytest

from terrafirma.caddy.facts import CaddyVersion, Certificates, Names, reason
from tests.unit.facts import ask
from tests.unit.programs import Program


@pytest.mark.parametrize(
    ("printed", "version"),
    [
        ("2.6.2", (2, 6)),
        ("v2.11.7 h1:yj0Y4fYZGPkSvibBJ1sTWE33xC0fxztVyXEW5iIdUT4=", (2, 11)),
        ("v2.7.0-beta.1", (2, 7)),
    ],
)
def test_the_version_of_caddy(program: Program, printed: str, version: tuple[int, int]) -> None:
    assert ask(CaddyVersion, program("caddy", f"echo '{printed}'")) == version


def test_names_are_looked_up_as_the_host_does(program: Program) -> None:
    script = """
case $* in
    "ahosts -- acme.com") printf '%s\\n' '203.0.113.5 STREAM' '203.0.113.5 RAW' '2001:db8::5' ;;
    *) exit 2 ;;
esac"""
    program("getent", script)
    path = program(
        "ip",
        "echo '2: eth0    inet 203.0.113.5/24 scope global eth0'; "
        "echo '2: eth0    inet6 2001:db8::5/64 scope global'",
    )
    assert ask(Names, path, domains=["acme.com", "none.acme.com"]) == {
        "own": ["203.0.113.5", "2001:db8::5"],
        "names": {"acme.com": ["203.0.113.5", "2001:db8::5"]},
    }


OBTAIN = (
    '{"level":"error","logger":"tls.obtain","msg":"will retry","error":"[acme.com] Obtain: '
    "[acme.com] solving challenge: acme.com: [acme.com] authorization failed: HTTP 400 "
    "urn:ietf:params:acme:error:dns - DNS problem: NXDOMAIN looking up A for acme.com "
    '(ca=https://ca.acme.com/directory)","attempt":1}'
)
NOTHING_LEFT = (
    '{"level":"error","logger":"tls.obtain","msg":"will retry","error":"[acme.com] Obtain: '
    'acme.com: no solvers available for remaining challenges (configured=[http-01])"}'
)
STAPLING = (
    '{"level":"warn","logger":"tls","msg":"stapling OCSP",'
    '"error":"no OCSP stapling for [acme.com]: no OCSP server","identifiers":["acme.com"]}'
)


def test_certificates_that_are_missing_and_why() -> None:
    lines = ["missing acme.com", "missing www.acme.com", OBTAIN, NOTHING_LEFT, STAPLING, '{"broken']
    assert Certificates().process(lines) == {
        "missing": ["acme.com", "www.acme.com"],
        "reasons": {"acme.com": "DNS problem: NXDOMAIN looking up A for acme.com (dns)"},
    }
    # An old error of a name that has its certificate now is left out.
    assert Certificates().process(lines[1:3])["reasons"] == {}


@pytest.mark.parametrize("valid", [True, False])
def test_caddy_is_asked_for_the_certificates_that_it_uses(program: Program, valid: bool) -> None:
    program("openssl", f"test $1 = s_client || exit {int(not valid)}")
    program("systemctl", "echo 1234")
    path = program("journalctl", f"printf '%s\\n' '{OBTAIN}' '{STAPLING}' 'a line that is no JSON'")
    known = ask(Certificates, path, domains=["acme.com"])
    assert known["missing"] == ([] if valid else ["acme.com"])
    assert list(known["reasons"]) == ([] if valid else ["acme.com"])


@pytest.mark.parametrize(
    ("error", "why"),
    [
        ("[a.com] Obtain: [a.com] creating order: timed out", "creating order: timed out"),
        ("subject does not qualify for a certificate: a_b", "subject does not qualify for a"),
        ("HTTP 429 urn:ietf:params:acme:error:rateLimited - too many", "too many (rateLimited)"),
    ],
)
def test_the_reason_of_an_error(error: str, why: str) -> None:
    assert reason(error).startswith(why)
