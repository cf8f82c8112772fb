"""The fact about logins: sshd's answers, and the copy of its configuration for the question."""

from pathlib import Path

import pytest

from terrafirma.sshd.facts import Logins
from tests.unit.facts import shell, text
from tests.unit.programs import Program


@pytest.mark.parametrize(
    ("keys", "absent"),
    [
        ("ssh-ed25519 AAAA+/b= me", False),
        ('command="echo #" ssh-ed25519 AAAA+/b=', False),
        ("ssh-ed25519 AAAA+/c=\n  ssh-ed25519 AAAA+/b=", False),
        ("# ssh-ed25519 AAAA+/b=", True),
        ("ssh-ed25519 AAAA+/c=", True),
        ("", True),
        (None, True),
    ],
)
def test_where_the_key_in_use_is(
    program: Program, tmp_path: Path, keys: str | None, absent: bool
) -> None:
    programs = program("getent", f"echo me:x:0:0::{tmp_path}:/bin/sh")
    if keys is not None:
        (tmp_path / ".ssh").mkdir()
        (tmp_path / ".ssh/authorized_keys").write_text(f"{keys}\n")
    said = {"path": "", "content": "", "users": {}, "connection": "", "me": "me"}
    for key, answer in (("AAAA+/b=", absent), ("", False)):
        output = shell(text(Logins, key=key, **said), programs)
        assert Logins().process(output)["absent"] is answer


INCLUDES = {
    "Include /etc/ssh/sshd_config.d/*.conf": "Include COPY/d/*.conf",
    "include=sshd_config.d/*.conf": "include=COPY/d/*.conf",
    ' Include "/etc/ssh/sshd_config.d/*.conf"': ' Include "COPY/d/*.conf"',
    "Include /etc/ssh/a.conf /etc/ssh/sshd_config.d/*.conf":
        "Include /etc/ssh/a.conf COPY/d/*.conf",
    "Include sshd_config.d/0*.conf /etc/ssh/sshd_config.d/*.conf":
        "Include COPY/d/0*.conf COPY/d/*.conf",
    "# Include /etc/ssh/sshd_config.d/*.conf": None,
    "Include /srv/sshd_config.d/*.conf": None,
    "Include /etc/ssh/a.conf": None,
}  # fmt: skip


@pytest.mark.parametrize(("line", "copied"), INCLUDES.items())
def test_lines_that_include_our_file(tmp_path: Path, line: str, copied: str | None) -> None:
    config = tmp_path / "config"
    config.write_text(f"{line}\n")
    said = {"path": "", "content": "", "users": {}, "connection": "", "me": "", "key": ""}
    command = text(Logins, **said)
    part = command[command.index('sed -E "/^') : command.index("cp /etc/passwd")]
    part = part.replace("    /etc/ssh/sshd_config >", f"    {config} >")
    output = shell(f"mkdir {tmp_path}/copy; copy={tmp_path}/copy; {part}")
    result = (tmp_path / "copy/sshd_config").read_text().strip("\n")
    assert result.replace(f"{tmp_path}/copy", "COPY") == (copied or line)
    assert output == (["unread|"] if copied is None else [])


# SSHD_OPTS in /etc/default/ssh; the unit's command line, the options for sshd, and their places.
STARTS = {
    "": ("-D $SSHD_OPTS", [], []),
    "SSHD_OPTS=": ("-D $SSHD_OPTS", [], []),
    'SSHD_OPTS="-o PasswordAuthentication=yes"':
        ("-D $SSHD_OPTS", ["PasswordAuthentication=yes"], ["PasswordAuthentication|DEFAULT"]),
    "SSHD_OPTS=-4 -oUsePAM=no -p 22": ("-D ${SSHD_OPTS}", ["UsePAM=no"], ["UsePAM|DEFAULT"]),
    "SSHD_OPTS=\"-o 'AllowUsers bob eve'\"":
        ("-D $SSHD_OPTS", ["AllowUsers bob eve"], ["AllowUsers|DEFAULT"]),
    "#SSHD_OPTS=-o UsePAM=no\nSSHD_OPTS=-u0":
        ("-D -o DenyUsers=dev $SSHD_OPTS", ["DenyUsers=dev"], ["DenyUsers|ssh.service"]),
    # The unit does not use SSHD_OPTS.
    "SSHD_OPTS=-oUsePAM=no": ("-D", [], []),
}  # fmt: skip


def started(program: Program, tmp_path: Path, default: str, unit: str) -> list[str]:
    (tmp_path / "default").write_text(f"{default}\n")
    shown = f"{{ path=/usr/sbin/sshd ; argv[]=/usr/sbin/sshd {unit} ; ignore_errors=no ; pid=0 }}"
    programs = program("systemctl", f"echo '{shown}'")
    said = {"path": "", "content": "", "users": {}, "connection": "", "me": "", "key": ""}
    command = text(Logins, **said)
    part = command[command.index("given=$(sed") : command.index("cp /etc/passwd")]
    part = part.replace("/etc/default/ssh 2>", f"{tmp_path}/default 2>")
    return shell(f"copy={tmp_path}; export copy given; {part}", programs)


@pytest.mark.parametrize(("default", "rest"), STARTS.items())
def test_the_options_that_sshd_is_started_with(
    program: Program, tmp_path: Path, default: str, rest: tuple[str, list[str], list[str]]
) -> None:
    unit, options, places = rest
    output = started(program, tmp_path, default, unit)
    words = (tmp_path / "options").read_text().split("\0")[:-1]
    assert words == [word for option in options for word in ("-o", option)]
    places = [place.replace("DEFAULT", "/etc/default/ssh") for place in places]
    assert output == [f"place|{place}" for place in places]


def test_another_configuration_that_sshd_is_started_with(program: Program, tmp_path: Path) -> None:
    (line,) = started(program, tmp_path, "SSHD_OPTS=-f /srv/sshd", "-D $SSHD_OPTS")
    assert line.startswith("error|it is started with -f /srv/sshd (/etc/default/ssh)")
    assert started(program, tmp_path, "", "-D -f /etc/ssh/sshd_config") == []


def test_the_groups_that_accounts_are_going_to_have(tmp_path: Path) -> None:
    """An account that changes groups, a new one, one that is left alone; and a new group."""
    (tmp_path / "passwd").write_text(
        "root:x:0:0::/root:/bin/sh\ndev:x:1002:990::/d:/bin/sh\nops:x:1003:1003::/o:/bin/sh\n"
    )
    (tmp_path / "group").write_text(
        "root:x:0:\ndocker:x:990:ops,dev\nadm:x:4:devs,dev,ops\nsftp:x:995:ops\ndev:x:1002:\n"
    )
    users = {"dev": ["dev", "sftp", "team"], "new": ["new", "team"], "ops": []}
    said = {"path": "", "content": "", "connection": "", "me": "", "key": ""}
    command = text(Logins, users=users, **said)
    words = command[command.index("; set --") + 2 : command.index(" ;", command.index("set --"))]
    part = command[command.index("cp /etc/passwd") : command.index('chmod 644 "$copy')]
    part = part.replace("/etc/passwd /etc/group", f"{tmp_path}/passwd {tmp_path}/group")
    shell(f"{words}; copy={tmp_path}/copy; mkdir $copy; {part}")
    lines = (tmp_path / "copy/group").read_text().splitlines()
    groups = {name: (gid, members) for name, _, gid, members in (line.split(":") for line in lines)}
    assert len({gid for gid, _ in groups.values()}) == len(lines)
    assert {name: members for name, (_, members) in groups.items()} == {
        "root": "",
        "docker": "ops",
        "adm": "devs,ops",
        "sftp": "dev,ops",
        "dev": "dev",
        "team": "new,dev",
        "new": "new",
    }
    accounts = (tmp_path / "copy/passwd").read_text().splitlines()
    assert [line.split(":")[0] for line in accounts] == ["root", "ops", "dev", "new"]
    assert accounts[2].split(":")[3] == "1002"
    assert accounts[3].split(":")[3] == groups["new"][0]


def test_what_sshd_says_of_logins() -> None:
    state = Logins().process(
        [
            "unread|",
            "user|dev|dev adm",
            "rule|dev|usepam yes",
            "rule|dev|allowusers dev",
            "rule|dev|allowusers root",
            "rule|dev|forcecommand echo a|b",
            "user|nobody-yet|",
            "place|AllowUsers|/etc/ssh/sshd_config.d/50-x.conf:3",
            "error|/etc/ssh/sshd_config.d/50-x.conf: line 2: Bad | option",
        ]
    )
    assert state["logins"]["dev"]["groups"] == ["dev", "adm"]
    assert state["logins"]["dev"]["rules"] == {
        "usepam": ["yes"],
        "allowusers": ["dev", "root"],
        "forcecommand": ["echo a|b"],
    }
    assert state["logins"]["nobody-yet"] == {"rules": {}, "groups": []}
    assert state["places"] == [("allowusers", "/etc/ssh/sshd_config.d/50-x.conf:3")]
    assert state["unread"] is True
    assert state["error"] == "/etc/ssh/sshd_config.d/50-x.conf: line 2: Bad | option"
