"""Who may log in, and what they may do as root, according to the system itself."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypedDict

from pyinfra.api import FactBase, FactProcessError, QuoteString, StringCommand
from typing_extensions import override


class Place(TypedDict):
    """A directory, or something else in its place."""

    kind: str  # as stat says: "directory", "symbolic link" …
    user: str
    uid: int
    mode: int


class Rule(TypedDict):
    """A sudo rule that applies to an account."""

    source: str  # its file, or another source of sudo, as LDAP; empty before sudo 1.9.15
    options: list[str]  # "!authenticate" is NOPASSWD
    commands: list[str]


class AccountState(TypedDict):
    uid: int | None  # None: there is no such account
    gid: int
    group: str  # the account's own
    groups: list[str]  # without the account's own, sorted
    home: str
    shell: str
    local: bool  # it is in /etc/passwd, not in a directory service
    twins: list[str]  # other accounts with the same uid
    password: str  # "none", "set" or "empty"
    last_change: str  # of the password, in days since 1970; "0": it must be changed at a login
    max_days: str
    inactive: str
    expires: str
    group_gid: int | None  # of the group with the account's name
    directory: Place | None  # the declared home
    old: Place | None  # the present home
    ssh: Place | None  # `.ssh` in the declared home
    keys: str  # the path of authorized_keys if it is a directory; else empty
    rules: list[Rule]
    own: list[str]  # the commands in our sudo file for the account
    lines: list[tuple[str, str]]  # lines of sudo's files that may mean the account, and the word


class AccountsState(TypedDict):
    accounts: dict[str, AccountState]  # the accounts that were asked for
    others: dict[str, str]  # accounts that were not asked for, and how they log in
    unread: bool  # /etc/sudoers exists, and does not include /etc/sudoers.d
    files: list[str]  # our own files in /etc/sudoers.d


# "|" separates the fields. No name can contain it; a field that may contain it comes last.
_PROBE = r"""
passwd=$(getent passwd)
entry_of() { printf '%s\n' "$passwd" | awk -F: -v name="$1" '$1 == name { print; exit }'; }
field() { printf '%s\n' "$entry" | cut -d: -f "$1"; }
rules() { command -v sudo > /dev/null && sudo -ll -U "$1" 2>&1; }
place() {
    # For a dangling link, describe the link itself.
    if test -e "$2"; then echo "$1|$name|$(stat -Lc '%u|%a|%U|%F' "$2")"
    elif test -L "$2"; then echo "$1|$name|$(stat -c '%u|%a|%U|%F' "$2")"
    fi
}
named() {
    for file in /etc/sudoers /etc/sudoers.d/*; do
        case ${file##*/} in *.* | *~) continue ;; esac
        test -f "$file" || continue
        awk -v name="$1" -v uid="$2" -v groups=" $3 " -v file="$file" '
            /^[ \t]*(#([^0-9]|$)|@|Defaults|[A-Za-z]+_Alias)/ { next }
            { where = $0; sub(/=.*/, "", where); count = split(where, words, /[ \t,]+/)
              for (word = 1; word < count; word++) {
                  who = words[word]
                  if (who == name || who == "#" uid || who ~ /^[+A-Z]/ ||
                      who ~ /^%/ && index(groups, " " substr(who, 2) " "))
                      print "line|" name "|" file ":" FNR "|" who } }' "$file"
    done
}
test ! -f /etc/sudoers ||
    grep -Eqs '^[@#]includedir[[:space:]]+"?/etc/sudoers\.d/?"?[[:space:]]*$' /etc/sudoers ||
    echo 'unread|'
for file in /etc/sudoers.d/90-terrafirma-*; do test ! -e "$file" || echo "file|$file"; done
while test $# -gt 0; do
    name=$1 home=$2; shift 2
    known="$known $name "
    echo "asked|$name"
    getent group "$name" | awk -F: '{ print "group|" $1 "|" $3; exit }'
    place directory "$home"
    ssh=$home/.ssh
    test ! -e "$ssh" -a ! -L "$ssh" || echo "ssh|$name|$(stat -c '%u|%a|%U|%F' "$ssh")"
    test ! -d "$ssh/authorized_keys" || echo "keys|$name|$ssh/authorized_keys"
    entry=$(getent passwd "$name") || { named "$name" none ''; continue; }
    uid=$(field 3) groups=$(id -Gn "$name")
    # If several groups share a number, `id` names only one of them.
    members=$(getent group | awk -F: -v name="$name" '
        { count = split($4, list, ",")
          for (i = 1; i <= count; i++) if (list[i] == name) { print $1; next } }')
    echo "account|$(id -gn "$name")|$(echo $members)|$entry"
    place old "$(field 6)"
    ! grep -q "^$name:" /etc/passwd || echo "local|$name"
    printf '%s\n' "$passwd" | awk -F: -v name="$name" -v uid="$uid" '
        $1 != name && $3 == uid { print "twin|" name "|" $1 }'
    getent shadow "$name" | awk -F: -v name="$name" '{
        kind = $2 == "" ? "empty" : $2 ~ /^[!*]/ ? "none" : "set"
        print "shadow|" name "|" kind "|" $3 "|" $5 "|" $7 "|" $8 }'
    sed -n "s/^$name ALL=.* NOPASSWD: /own|$name|/p" \
        "/etc/sudoers.d/90-terrafirma-$name" 2> /dev/null
    rules "$name" | sed "s/^/sudo|$name|/"
    named "$name" "$uid" "$(echo $groups $members)"
done
printf '%s\n' "$passwd" | awk -F: '$3 >= 1000 && $3 < 60000 && $7 !~ /(nologin|false)$/' |
    while IFS=: read -r name _ uid gid _ home shell; do
        case $known in *" $name "*) continue ;; esac
        how=
        test ! -s "$home/.ssh/authorized_keys" || how="$how, keys"
        shadow=$(getent shadow "$name" | cut -d: -f2)
        case $shadow in '!'* | '*'*) ;; *) how="$how, a password" ;; esac
        case $(rules "$name") in *"Sudoers entry:"* | *" Role: "*) how="$how, sudo" ;; esac
        test -z "$how" || echo "other|$name|${how#, }"
    done
"""
_FIELDS = {
    "asked": 2, "account": 4, "local": 2, "twin": 3, "shadow": 7, "directory": 6, "ssh": 6,
    "old": 6, "group": 3, "sudo": 3, "line": 4, "other": 3, "unread": 2, "file": 2,
    "own": 3, "keys": 3,
}  # fmt: skip


class Accounts(FactBase[AccountsState]):
    """
    The state of accounts: `homes` has their names, each with its declared home.

    pyinfra's server.Users starts eight processes for every account of the host, and prints all
    password hashes at -vvv. Here no hash leaves the host.
    """

    @staticmethod
    @override
    def default() -> AccountsState:
        return AccountsState(accounts={}, others={}, unread=False, files=[])

    @override
    def command(self, homes: Mapping[str, str]) -> StringCommand:
        words = [QuoteString(word) for pair in homes.items() for word in pair]
        return StringCommand("set --", *words, ";", _PROBE)

    @override
    def process(self, output: list[str]) -> AccountsState:
        state = self.default()
        for line in output:
            kind = line.partition("|")[0]
            parts = line.split("|", _FIELDS.get(kind, 1) - 1)
            try:
                if len(parts) != _FIELDS[kind]:
                    raise ValueError(kind)
                _take(state, kind, parts[1:])
            except (KeyError, ValueError, IndexError) as error:
                raise FactProcessError(f"not an answer about accounts: {line!r}") from error
        return state


def _take(state: AccountsState, kind: str, parts: Sequence[str]) -> None:
    if kind == "unread":
        state["unread"] = True
    elif kind == "file":
        state["files"].append(parts[0])
    elif kind == "other":
        state["others"][parts[0]] = parts[1]
    elif kind == "asked":
        state["accounts"][parts[0]] = _nobody()
    elif kind == "account":
        own, groups, entry = parts
        name, _, uid, gid, _, home, shell = entry.split(":")
        account = state["accounts"][name]
        account["uid"], account["gid"] = int(uid), int(gid)
        # Another group may share the number of the account's own group.
        own = name if account["group_gid"] == account["gid"] else own
        account["group"], account["home"], account["shell"] = own, home, shell
        account["groups"] = sorted(set(groups.split()) - {own})
    else:
        _add(state["accounts"][parts[0]], kind, parts[1:])


def _add(account: AccountState, kind: str, parts: Sequence[str]) -> None:
    if kind == "local":
        account["local"] = True
    elif kind == "twin":
        account["twins"].append(parts[0])
    elif kind == "shadow":
        account["password"], account["last_change"], account["max_days"] = parts[:3]
        account["inactive"], account["expires"] = parts[3:]
    elif kind == "group":
        account["group_gid"] = int(parts[0])
    elif kind == "line":
        account["lines"].append((parts[0], parts[1]))
    elif kind == "keys":
        account["keys"] = parts[0]
    elif kind == "own":
        account["own"] = parts[0].split(", ")
    elif kind == "sudo":
        _rule(account["rules"], parts[0])
    else:
        uid, mode, user, what = parts
        place = Place(kind=what, user=user, uid=int(uid), mode=int(mode, 8))
        if kind == "ssh":
            account["ssh"] = place
        elif kind == "old":
            account["old"] = place
        else:
            account["directory"] = place


def _rule(rules: list[Rule], line: str) -> None:
    """Parse one line of `sudo -ll`; each entry begins with its file, or with its role in LDAP."""
    head, _, value = line.strip().partition(":")
    value = value.strip()
    if re.match(r"Sudoers entry:|\w+ Role:", line):
        source = value if head == "Sudoers entry" else f"{head.replace('Role', 'role')} {value}"
        rules.append(Rule(source=source, options=[], commands=[]))
    elif not rules or not line or line.startswith("sudo: "):
        return
    elif line.startswith("\t"):
        rules[-1]["commands"].append(line.strip())
    elif not re.match(r" {4}\w+:", line):
        raise ValueError(line)
    elif head == "Options":
        rules[-1]["options"] = value.split(", ")


def _nobody() -> AccountState:
    return AccountState(
        uid=None, gid=0, group="", groups=[], home="", shell="", local=False, twins=[],
        password="none", last_change="", max_days="", inactive="", expires="",
        group_gid=None, directory=None, old=None, ssh=None, keys="", rules=[], own=[], lines=[],
    )  # fmt: skip
