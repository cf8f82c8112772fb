"""Whether sshd lets an account in follows from sshd's own answer, with file and line."""

from typing import Any

import pytest

from terrafirma.host.keys import parse
from terrafirma.sshd.facts import LoginsState
from terrafirma.sshd.logins import elsewhere, keyless, misconfigured, obstacles, strangers
from tests.unit.settings import KEY, SECURITY_KEY

ALGORITHMS = "ssh-ed25519,sk-ssh-ed25519@openssh.com,rsa-sha2-512,rsa-sha2-256"
# Output of `sshd -T` on Debian 13, for an account that may log in.
EFFECTIVE = {
    "usepam": ["yes"],
    "pubkeyauthentication": ["yes"],
    "passwordauthentication": ["no"],
    "kbdinteractiveauthentication": ["no"],
    "authorizedkeysfile": [".ssh/authorized_keys"],
    "authenticationmethods": ["any"],
    "forcecommand": ["none"],
    "chrootdirectory": ["none"],
    "refuseconnection": ["no"],
    "permitrootlogin": ["without-password"],
    "pubkeyacceptedalgorithms": [ALGORITHMS],
    "requiredrsasize": ["1024"],
    "allowusers": ["dev", "root"],
}
PLACE = "/etc/ssh/sshd_config.d/50-x.conf:3"


def sshd(name: str = "dev", /, *groups: str, **but: list[str]) -> LoginsState:
    rules = EFFECTIVE | but
    places = [(keyword, PLACE) for keyword in but]
    logins: Any = {name: {"rules": rules, "groups": list(groups)}}
    return LoginsState(logins=logins, absent=False, unread=False, error="", places=places)


def against(state: LoginsState, name: str = "dev", key: str = KEY) -> list[str]:
    return list(obstacles(name, state, keys=[parse(key)], groups=[name, "adm"]))


def test_accounts_that_may_log_in() -> None:
    assert against(sshd()) == []
    assert against(sshd("root"), "root") == []
    assert against(sshd(), key=SECURITY_KEY) == []
    assert against(LoginsState(logins={}, absent=False, unread=False, error="", places=[])) == []
    # Admitted by a pattern, by a future group, or with an address.
    assert against(sshd(allowusers=["d?v@*"])) == []
    assert against(sshd(allowgroups=["x", "ad*"])) == []
    assert against(sshd(authenticationmethods=["publickey,password publickey"])) == []


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"allowusers": ["bob", "root"]}, "allowusers bob root"),
        ({"denyusers": ["bob", "d*"]}, "denyusers d*"),
        ({"denyusers": ["dev@10.0.0.0/8"]}, "denyusers dev@10.0.0.0/8"),
        ({"allowgroups": ["ssh-users"]}, "allowgroups ssh-users"),
        ({"denygroups": ["adm"]}, "denygroups adm"),
        ({"pubkeyauthentication": ["no"]}, "pubkeyauthentication no"),
        ({"authorizedkeysfile": ["/etc/ssh/keys/%u"]}, "authorizedkeysfile /etc/ssh/keys/%u"),
        ({"authorizedkeysfile": ["none"]}, "authorizedkeysfile none"),
        ({"authenticationmethods": ["publickey,password"]}, "authenticationmethods publickey,p"),
        ({"forcecommand": ["internal-sftp"]}, "forcecommand internal-sftp"),
        ({"chrootdirectory": ["/srv/sftp"]}, "chrootdirectory /srv/sftp"),
        ({"usepam": ["no"]}, "usepam no"),
        ({"refuseconnection": ["yes"]}, "refuseconnection yes"),
        (
            {"pubkeyacceptedalgorithms": ["rsa-sha2-512"]},
            "pubkeyacceptedalgorithms without ssh-ed25519, which is one of its keys",
        ),
    ],
)
def test_accounts_that_may_not_log_in(rules: Any, said: str) -> None:
    (line,) = against(sshd(**rules))
    assert line.startswith(f"sshd would not let dev in: {said}")
    assert line.endswith(f"({PLACE})")


def test_permitrootlogin_keeps_root_out() -> None:
    for value in ("no", "forced-commands-only"):
        (line,) = against(sshd("root", permitrootlogin=[value]), "root")
        assert f"permitrootlogin {value} ({PLACE})" in line


def test_an_undeclared_account_may_log_in_in_another_way() -> None:
    state = sshd("bob", "ops", forcecommand=["x"], allowusers=["bob"])
    assert list(obstacles("bob", state, keys=[], groups=None)) == []
    state = sshd("bob", "ops", allowusers=["bob"], denygroups=["op?"])
    (line,) = obstacles("bob", state, keys=[], groups=None)
    assert "denygroups op?" in line


@pytest.mark.parametrize(
    ("keyword", "value", "password"),
    [
        ("passwordauthentication", "yes", True),
        ("kbdinteractiveauthentication", "yes", True),
        ("permitemptypasswords", "yes", False),
        ("hostbasedauthentication", "yes", False),
        ("gssapiauthentication", "yes", False),
        ("kerberosauthentication", "yes", False),
        ("trustedusercakeys", "/etc/ssh/ca.pub", False),
        ("authorizedkeyscommand", "/bin/keys %u", False),
    ],
)
def test_ways_in_without_a_key_are_named(keyword: str, value: str, password: bool) -> None:
    assert list(keyless("dev", sshd(), passwords=False)) == []
    state = sshd(**{keyword: [value]})
    (line,) = keyless("dev", state, passwords=False)
    assert line == f"sshd would let dev in without one of its keys: {keyword} {value} ({PLACE})"
    assert list(keyless("dev", state, passwords=True)) == ([] if password else [line])
    assert list(keyless("bob", state, passwords=False)) == []


def test_a_key_that_is_somewhere_else() -> None:
    places = {"authorizedkeysfile": [".ssh/authorized_keys"]}
    assert list(elsewhere("root", sshd("root", **places))) == []
    # The setting that admitted the key is named.
    for keyword in ("authorizedkeysfile", "authorizedkeyscommand", "trustedusercakeys"):
        state = sshd("root", **{keyword: ["none"]}) | {"absent": True}
        (line,) = elsewhere("root", state)
        assert "not let root in: the key or certificate that you are connected with is not" in line
        assert PLACE in line
    assert list(elsewhere("bob", state)) == []


def test_undeclared_users_are_named() -> None:
    assert list(strangers(["dev", "root"], sshd())) == []
    (line,) = strangers(["dev", "root"], sshd(allowusers=["dev", "root", "bob", "*"]))
    assert f"allowusers * bob ({PLACE})" in line


@pytest.mark.parametrize(
    ("unread", "error", "said"),
    [
        (False, "", None),
        (True, "", "add the line `Include /etc/ssh/sshd_config.d/*.conf`"),
        (False, f"{PLACE[:-2]}: line 3: Bad configuration option: Foo", "option: Foo"),
        # For a contradiction, sshd names no line.
        (
            False,
            'Disabled method "password" in AuthenticationMethods list "publickey,password"',
            f'"publickey,password" ({PLACE})',
        ),
        (False, "no hostkeys available", "no hostkeys available"),
    ],
)
def test_an_unusable_configuration_is_refused(unread: bool, error: str, said: str | None) -> None:
    state = LoginsState(
        logins={},
        absent=False,
        unread=unread,
        error=error,
        places=[("authenticationmethods", PLACE)],
    )
    lines = list(misconfigured(state))
    assert len(lines) == (said is not None)
    assert all(line.endswith(said) or said in line for line in lines if said)
