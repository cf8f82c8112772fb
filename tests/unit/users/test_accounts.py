"""An account on the host is compared with the declared one: refused, or repaired and reported."""

from typing import Any, cast

import pytest

from terrafirma.users.accounts import aged, creation, differences, refusals, repair, undoing
from terrafirma.users.facts import AccountsState, AccountState, Place, _nobody
from terrafirma.users.settings import Account
from tests.unit.settings import KEY

OWN = "/etc/sudoers.d/90-terrafirma-dev"
CLOUD = "/etc/sudoers.d/90-cloud-init-users"


def place(**but: Any) -> Place:
    made: Any = {"kind": "directory", "user": "dev", "uid": 1002, "mode": 0o755} | but
    return cast("Place", made)


def known(**but: Any) -> AccountState:
    """The account `dev`, as a run makes it."""
    made: dict[str, Any] = {
        "uid": 1002,
        "gid": 1002,
        "group": "dev",
        "group_gid": 1002,
        "local": True,
        "home": "/home/dev",
        "shell": "/bin/bash",
        "max_days": "99999",
        "last_change": "20784",
        "directory": place(),
        "ssh": place(mode=0o700),
    }
    return cast("AccountState", {**_nobody(), **made, **but})


def rule(source: str, *commands: str, options: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"source": source, "options": list(options), "commands": list(commands)}


FREE = ("!authenticate",)


def all_of(source: str) -> dict[str, Any]:
    return rule(source, "ALL", options=FREE)


def refused(now: AccountState, *, unread: bool = False, **declared: Any) -> list[str]:
    state = AccountsState(accounts={"dev": now}, others={}, unread=unread, files=[])
    return list(refusals([Account(**{"name": "dev"} | declared)], state))


ONE = {"sudo": ("/usr/bin/ls",)}
EVERY = {"sudo": ("ALL",)}


@pytest.mark.parametrize(
    ("now", "declared", "parts"),
    [
        (known(uid=998, directory=None), {}, ("system account (uid 998)", "another name")),
        # The package docker.io makes this group, before or after the account.
        (known(group_gid=997), {}, ("is a system group (gid 997)",)),
        (_nobody() | {"group_gid": 101}, {}, ("is a system group (gid 101)",)),
        (known(local=False), {}, ("directory service",)),
        (known(twins=["ops"]), {}, ("ops has the same uid 1002",)),
        # A home of another user.
        (
            known(directory=place(user="bob", uid=1005)),
            {},
            ("/home/dev belongs to bob (uid 1005)", "chown dev: /home/dev"),
        ),
        (
            known(directory=place(user="UNKNOWN", uid=1005)),
            {},
            ("belongs to uid 1005, which no account has",),
        ),
        (_nobody() | {"directory": place(user="root", uid=0)}, {}, ("is there already", "root")),
        # The present home belongs to another user, and stays.
        (
            known(home="/var/www", directory=None, old=place(user="root", uid=0)),
            {},
            ("/var/www, which belongs to root (uid 0)", "usermod --home /home/dev dev"),
        ),
        # A dangling link.
        (
            _nobody() | {"directory": place(kind="symbolic link", user="root", uid=0)},
            {},
            ("/home/dev is there already",),
        ),
        (
            known(directory=place(kind="symbolic link", user="root", uid=0)),
            {},
            ("/home/dev is no directory (symbolic link)",),
        ),
        (known(directory=place(kind="regular file")), {}, ("no directory (regular file)",)),
        (known(ssh=place(kind="symbolic link")), {}, ("/home/dev/.ssh, is a symbolic link",)),
        (known(ssh=place(user="root", uid=0)), {}, ("/home/dev/.ssh, is a directory of root",)),
        (known(keys="/home/dev/.ssh/authorized_keys"), {}, ("authorized_keys is a directory; mo",)),
        # sudo, by other rules than ours.
        (
            known(rules=[all_of(CLOUD)], lines=[(f"{CLOUD}:3", "dev")]),
            ONE,
            ("rights than declared (/usr/bin/ls)", f"{CLOUD}:3", "declare them"),
        ),
        (known(rules=[all_of(CLOUD)], lines=[(f"{CLOUD}:3", "dev")]), {}, ("(nothing)",)),
        (
            known(rules=[all_of(CLOUD)], lines=[(f"{CLOUD}:3", "#1002"), (f"{CLOUD}:4", "ALL")]),
            {},
            (f"{CLOUD}:3 and {CLOUD}:4",),
        ),
        (
            known(rules=[rule("/etc/sudoers", "/bin/x")], lines=[("/etc/sudoers:9", "OPS")]),
            ONE,
            ("/etc/sudoers:9",),
        ),
        # A rule from a directory service, in no file.
        (known(rules=[all_of("LDAP")]), ONE, ("by LDAP",)),
        # A rule for the group with the account's name means the account.
        (
            known(rules=[all_of(CLOUD)], lines=[(f"{CLOUD}:3", "%dev")]),
            ONE,
            (f"{CLOUD}:3",),
        ),
        # A rule after ours asks for a password, and the account has none.
        (
            known(
                rules=[all_of(OWN), rule("/etc/sudoers.d/99-x", "ALL")],
                lines=[(f"{OWN}:2", "dev"), ("/etc/sudoers.d/99-x:1", "dev")],
            ),
            EVERY,
            ("/etc/sudoers.d/99-x:1",),
        ),
        (
            known(
                rules=[rule("/etc/sudoers.d/99-x", "ALL")],
                lines=[("/etc/sudoers.d/99-x:1", "%adm")],
                groups=["adm"],
            ),
            EVERY | {"groups": ("adm",)},
            ("/etc/sudoers.d/99-x:1",),
        ),
        (
            known(rules=[rule(CLOUD, "ALL", "!/bin/su")], lines=[(f"{CLOUD}:1", "dev")]),
            EVERY,
            (f"{CLOUD}:1",),
        ),
        # One of its commands asks for a password, or is taken away.
        *(
            (
                known(rules=[all_of(OWN), one], lines=[("/etc/sudoers.d/99-x:1", "ALL")]),
                EVERY,
                ("/etc/sudoers.d/99-x:1",),
            )
            for one in (
                rule("/etc/sudoers.d/99-x", "/bin/cat"),
                rule("/etc/sudoers.d/99-x", "/bin/a", "!/bin/su", options=FREE),
            )
        ),
        # sudo before 1.9.15 does not name the source of a rule.
        (
            known(rules=[all_of("")], lines=[(f"{CLOUD}:3", "dev"), (f"{OWN}:2", "dev")]),
            ONE,
            (f"by {CLOUD}:3;",),
        ),
        (
            known(
                groups=["adm"],
                rules=[rule("", "/bin/x"), rule("", "/bin/y"), all_of("")],
                own=["ALL"],
                lines=[("/etc/sudoers:7", "%adm"), (f"{CLOUD}:3", "dev"), (f"{OWN}:2", "dev")],
            ),
            ONE,
            (f"by {CLOUD}:3;",),
        ),
        (known(rules=[all_of("")]), ONE, ("by a rule that names no file;",)),
        # A line for a group that does not apply to this host does not excuse one that applies.
        *(
            (
                known(
                    groups=["users"],
                    rules=[all_of("")],
                    lines=[("/etc/sudoers:48", "%users"), (f"{CLOUD}:4", who)],
                ),
                ONE | {"groups": ("users",)},
                (f"by {CLOUD}:4;",),
            )
            for who in ("dev", "#1002", "%dev", "ALL")
        ),
        (
            known(
                groups=["users"],
                rules=[all_of(""), all_of("")],
                lines=[("/etc/sudoers:48", "%users"), ("/etc/sudoers:9", "OPS")],
            ),
            ONE | {"groups": ("users",)},
            ("by /etc/sudoers:9;",),
        ),
        # The last matching rule asks for a password, and the account has none.
        (
            known(
                rules=[all_of(""), rule("", "ALL")],
                own=["ALL"],
                lines=[(f"{OWN}:2", "dev"), ("/etc/sudoers.d/99-x:1", "dev")],
            ),
            EVERY,
            ("by /etc/sudoers.d/99-x:1;",),
        ),
        # An account that releases may run its one command only.
        (
            known(rules=[rule(CLOUD, "/bin/x")], lines=[(f"{CLOUD}:1", "dev")]),
            {"releases": ("api",), "keys": (KEY,)},
            ("its one command", f"{CLOUD}:1"),
        ),
        # The account does not exist yet, but rules for it do.
        (_nobody() | {"lines": [(f"{CLOUD}:3", "dev")]}, ONE, (f"{CLOUD}:3",)),
    ],
)  # fmt: skip
def test_obstacles_are_refused(
    now: AccountState, declared: dict[str, Any], parts: tuple[str, ...]
) -> None:
    (line,) = refused(now, **declared)
    assert line.startswith("users_accounts: 'dev': ")
    assert "\n" not in line
    for part in parts:
        assert part in line


@pytest.mark.parametrize(
    ("now", "declared"),
    [
        (known(), {}),
        (_nobody(), {}),
        (_nobody(), ONE),
        (known(directory=None, ssh=None), ONE),
        (known(home="/srv/dev", directory=None, old=place()), {}),
        (known(home="/var/www", old=place(user="root", uid=0)), {}),
        (known(rules=[rule(OWN, "/bin/anything")], lines=[(f"{OWN}:2", "dev")]), ONE),
        # The same, with a sudo that does not name the source of a rule.
        (
            known(
                rules=[rule("", "/bin/old", options=("!authenticate",))],
                own=["/bin/old"],
                lines=[(f"{OWN}:2", "dev")],
            ),
            ONE,
        ),
        (
            known(
                groups=["sudo"],
                rules=[rule("", "ALL"), all_of("")],
                own=["ALL"],
                lines=[("/etc/sudoers:50", "%sudo"), (f"{OWN}:2", "dev"), ("/etc/sudoers:9", "A")],
            ),
            {"groups": ("sudo",)},
        ),
        (known(rules=[all_of("")], own=["ALL"], lines=[(f"{OWN}:2", "dev")]), EVERY),
        # Rules for a declared group are declared.
        (
            known(
                groups=["sudo"],
                rules=[rule("/etc/sudoers", "ALL")],
                lines=[("/etc/sudoers:50", "%sudo")],
            ),
            {"groups": ("sudo",)},
        ),
        # This run removes the account from a group, and so from the group's rules.
        (
            known(
                groups=["sudo"],
                rules=[rule("/etc/sudoers", "ALL")],
                lines=[("/etc/sudoers:50", "%sudo")],
            ),
            ONE,
        ),
        # Our rule allows everything too.
        (known(rules=[all_of(CLOUD), all_of(OWN)], lines=[(f"{CLOUD}:3", "dev")]), EVERY),
        (known(rules=[all_of(CLOUD)], lines=[(f"{CLOUD}:3", "dev")]), EVERY),
        # A part of what our rule allows.
        *(
            (
                known(
                    rules=[all_of(OWN), rule("/etc/sudoers.d/70-all", *one, options=FREE)],
                    lines=[(f"{OWN}:2", "dev"), ("/etc/sudoers.d/70-all:1", who)],
                ),
                EVERY,
            )
            for who, one in (("ALL", ["/usr/bin/cat"]), ("dev", ["/bin/a", "/bin/b !x"]))
        ),
        (known(rules=[rule("", "/bin/a", options=FREE)], lines=[("/etc/sudoers:9", "ALL")]), EVERY),
        (_nobody() | {"lines": [(f"{OWN}:2", "dev"), ("/etc/sudoers:50", "ALL")]}, ONE),
    ],
)
def test_harmless_rules_are_accepted(now: AccountState, declared: dict[str, Any]) -> None:
    assert refused(now, **declared) == []


def test_rules_that_nobody_reads_are_none() -> None:
    assert refused(known(), unread=True) == []
    (line,) = refused(known(), unread=True, **EVERY)
    assert "@includedir /etc/sudoers.d" in line
    assert refused(known(), unread=True, releases=("api",), keys=(KEY,))


@pytest.mark.parametrize(
    ("now", "declared", "said", "commands"),
    [
        (
            known(shell="/bin/sh"),
            {},
            "shell /bin/sh → /bin/bash",
            ["usermod --shell /bin/bash dev"],
        ),
        (
            known(home="/srv/dev", directory=None),
            {},
            "home /srv/dev → /home/dev",
            ["usermod --move-home --home /home/dev dev"],
        ),
        # The new home exists already, and belongs to the account.
        (known(home="/"), {}, "home / → /home/dev", ["usermod --home /home/dev dev"]),
        (known(groups=["docker"]), {}, "groups docker → none", ["usermod --groups '' dev"]),
        (
            known(),
            {"groups": ("adm", "team")},
            "groups none → adm, team",
            ["groupadd --force --system adm", "usermod --groups 'adm,team' dev"],
        ),
        # The account's own group is `users`, as with `useradd -N`; it may be a declared group, too.
        (
            known(group="users", gid=100),
            {"groups": ("users",)},
            "own group users → dev",
            ["groupadd --force dev", "usermod --gid dev --groups 'users' dev"],
        ),
        (
            known(group="docker", gid=990),
            {},
            "own group docker → dev",
            ["groupadd --force dev", "usermod --gid dev --groups '' dev"],
        ),
        (known(password="empty"), {}, "password empty → none", ["usermod --lock dev"]),
        # A hardened image, an account that expires, and one whose password must be changed.
        (
            known(max_days="90"),
            {},
            "a new password each 90 days → never",
            ["chage --maxdays -1 --inactive -1 --expiredate -1 dev"],
        ),
        (known(expires="1"), {}, "expires on day 1 since 1970", ["--expiredate -1"]),
        (known(inactive="30"), {}, "inactive 30 days later", ["--inactive -1"]),
        (
            known(last_change="0"),
            {},
            "a new password at the next login",
            ['chage --lastday "$(date +%F)" --maxdays -1'],
        ),
        (
            known(directory=None, ssh=None),
            {},
            "home /home/dev is missing → created",
            ["install -d -m 755 -o dev -g dev /home/dev"],
        ),
        # sshd ignores the keys in a home that others may write.
        (
            known(directory=place(mode=0o777)),
            {},
            "home 777 → not writable for others",
            ["chmod go-w /home/dev"],
        ),
        (known(directory=place(mode=0o775)), {}, "home 775", ["chmod go-w /home/dev"]),
    ],
)
def test_a_run_repairs_differences(
    now: AccountState, declared: dict[str, Any], said: str, commands: list[str]
) -> None:
    account = Account(name="dev", **declared)
    assert said in "; ".join(differences(account, now))
    command = repair(account, now, ["dev"])
    for one in commands:
        assert one in command
    # The report and the commands agree.
    assert len(differences(account, now)) == 1 or now["group"] != "dev"


@pytest.mark.parametrize(
    "now",
    [known(), known(max_days=""), known(max_days="-1", inactive="-1", expires="-1"),
     known(password="set"), known(directory=place(mode=0o700))],
)  # fmt: skip
def test_an_account_as_it_should_be_is_left_alone(now: AccountState) -> None:
    account = Account(name="dev")
    assert (repair(account, now, ["dev"]), differences(account, now), aged(now)) == ("", [], [])


def test_the_group_of_another_account_is_no_system_group() -> None:
    command = creation(Account(name="dev", groups=("team", "adm")), ["dev", "team"])
    assert "groupadd --force team && groupadd --force --system adm && " in command
    assert command.endswith("dev && chage --maxdays -1 --inactive -1 --expiredate -1 dev")


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (_nobody(), ""),
        (known(), ""),
        (known(groups=["sudo", "x"]), "--gid 1002 --home /home/dev --groups 'sudo,x' dev"),
        (known(shell="/bin/dash"), "usermod --shell /bin/dash "),
        # The home has moved, with the keys in it, or stays where it is.
        (known(home="/srv/dev", directory=None), "--move-home --home /srv/dev"),
        (known(home="/srv/dev"), "--gid 1002 --home /srv/dev"),
    ],
)
def test_a_repair_is_undone(now: AccountState, said: str) -> None:
    done = undoing(Account(name="dev"), now)
    assert said in done
    assert bool(said) == bool(done)
