"""Who can log in, according to sshd itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from pyinfra.api import FactBase, FactProcessError, QuoteString, StringCommand
from typing_extensions import override


class LoginState(TypedDict):
    rules: dict[str, list[str]]  # sshd's keywords, in lower case, and their values
    groups: list[str]  # the account's groups; empty if there is no such account


class LoginsState(TypedDict):
    logins: dict[str, LoginState]
    absent: bool  # the key in use is not in the connected account's ~/.ssh/authorized_keys
    unread: bool  # sshd_config does not include the directory of our file
    error: str  # why sshd rejects its configuration; else empty
    places: list[tuple[str, str]]  # each keyword, in lower case, and its "FILE:LINE" or "FILE"


# Asks sshd about a copy of its whole configuration, with our new file in it. All files are needed:
# a Match block ends with its file, and of several values the first counts.
_PROBE = r"""
home=$(getent passwd "$me" | cut -d: -f6)
test -z "$key" ||
    grep -v '^[[:space:]]*#' "$home/.ssh/authorized_keys" 2> /dev/null | grep -Fq -e "$key" ||
    echo 'absent|'
command -v sshd > /dev/null && test -f /etc/ssh/sshd_config || exit 0
copy=$(mktemp -d) || exit 1
export copy from given
trap 'rm -rf "$copy"' EXIT
mkdir -p /run/sshd "$copy/d"
cp /etc/ssh/sshd_config.d/*.conf "$copy/d/" 2> /dev/null
printf '%s\n' "$content" > "$copy/d/${path##*/}"
sed -E "/^[[:space:]]*Include[[:space:]=]/I \
    s#([[:space:]=\"])(/etc/ssh/)?sshd_config\.d/#\1$copy/d/#g" \
    /etc/ssh/sshd_config > "$copy/sshd_config"
grep -Fq "$copy/d/" "$copy/sshd_config" || echo 'unread|'
# Options on sshd's command line win over all files.
given=$(sed -n 's/^[[:space:]]*SSHD_OPTS=//p' /etc/default/ssh 2> /dev/null | tail -n 1 | xargs)
: > "$copy/options"
systemctl show ssh.service -p ExecStart --value 2> /dev/null |
    sed -E 's/.*argv\[\]=[^ ]+ ?//; s/ ; ignore_errors=.*//' |
    awk -v given="$given" '{ gsub(/\$(SSHD_OPTS|\{SSHD_OPTS\})/, given); print }' |
    xargs sh -c '
        while getopts C:E:b:c:f:g:h:k:o:p:u:46DGQRTdeiqrtV flag 2> /dev/null; do
            place=ssh.service
            case $given in *"$OPTARG"*) place=/etc/default/ssh ;; esac
            case $flag in
            o) printf "%s\0" -o "$OPTARG" >> "$copy/options"
               echo "$OPTARG" | sed -E "s#^[[:space:]]*([A-Za-z]+).*#place|\1|$place#" ;;
            f) test "$OPTARG" = /etc/ssh/sshd_config ||
                   echo "error|it is started with -f $OPTARG ($place), and never reads ours" ;;
            esac
        done' sh
cp /etc/passwd /etc/group "$copy/"
# Give each account that comes with groups exactly these groups.
for word; do
    user=${word%%:*} wanted=${word#*:}
    test "$word" != "$user" || continue
    awk -F: -v OFS=: -v user="$user" -v wanted="$wanted" '
        BEGIN { split(wanted, names, ","); for (i in names) missing[names[i]] }
        { count = split($4, members, ","); $4 = $1 in missing ? user : ""
          for (i = 1; i <= count; i++)
              if (members[i] != user) $4 = $4 ($4 == "" ? "" : ",") members[i]
          delete missing[$1]; print }
        END { for (name in missing) print name, "x", 2000000000 + ++NR, user }
    ' "$copy/group" > "$copy/new" && mv "$copy/new" "$copy/group"
    gid=$(awk -F: -v name="$user" '$1 == name { print $3; exit }' "$copy/group")
    sed -i "/^$user:/d" "$copy/passwd"
    echo "$user:x:2000000000:$gid::/:/bin/sh" >> "$copy/passwd"
done
chmod 644 "$copy/passwd" "$copy/group"
cat > "$copy/ask" << 'END'
for word; do
    user=${word%%:*}
    echo "user|$user|$(id -Gn "$user" 2> /dev/null)"
    effective=$(xargs -0 -a "$copy/options" sshd -T -f "$copy/sshd_config" \
        -C "user=$user,$from" 2>&1) || {
        said=$(printf '%s\n' "$effective" |
            sed "s#$copy/d/#/etc/ssh/sshd_config.d/#g; s#$copy/#/etc/ssh/#g
                s#^command-line: #options in /etc/default/ssh or ssh.service: #")
        where=$(printf '%s\n' "$said" | grep -m 1 ' line [0-9]')
        echo "error|${where:-$(printf '%s\n' "$said" | head -n 1)}"
        break
    }
    printf '%s\n' "$effective" | sed "s/^/rule|$user|/"
done
exit 0
END
# sshd takes groups from the system, so bind the copies over its files in a mount namespace. Without
# permission for a namespace, the present groups count.
unshare -m sh -c '
    mount --bind "$copy/passwd" /etc/passwd && mount --bind "$copy/group" /etc/group &&
    exec sh "$copy/ask" "$@"' sh "$@" 2> /dev/null || sh "$copy/ask" "$@"
grep -nHE '^[[:space:]]*[A-Za-z]' /etc/ssh/sshd_config /etc/ssh/sshd_config.d/*.conf 2> /dev/null |
    grep -v "^$path:" | sed -E 's/^([^:]*:[0-9]+):[[:space:]]*([A-Za-z]+).*/place|\2|\1/'
exit 0
"""


class Logins(FactBase[LoginsState]):
    """
    sshd's rules for each of `users`, as they would be if the file `path` had `content`.

    `users` has the groups that each user is going to have; an empty list means the present ones.
    Files of other packages, images and people count too, and may concern single users, groups or
    addresses. `connection` is the address and port of the client and of the server. `key` is the
    key, in base64, with which the account `me` is connected; empty if it uses none.
    """

    @staticmethod
    @override
    def default() -> LoginsState:
        return LoginsState(logins={}, absent=False, unread=False, error="", places=[])

    @override
    def command(
        self,
        path: str,
        content: str,
        users: Mapping[str, Sequence[str]],
        connection: str,
        me: str,
        key: str,
    ) -> StringCommand:
        client, _, server, port = (connection.split() + [""] * 4)[:4]
        origin = f"host={client or 'localhost'},addr={client or '127.0.0.1'}"
        if port:
            origin += f",laddr={server},lport={port}"
        words = [f"{name}:{','.join(groups)}" if groups else name for name, groups in users.items()]
        given = {"path": path, "content": content, "from": origin, "me": me, "key": key}
        return StringCommand(
            *(StringCommand(f"{key}=", QuoteString(value), _separator="")
              for key, value in given.items()),
            "; set --", *map(QuoteString, words), ";", _PROBE,
        )  # fmt: skip

    @override
    def process(self, output: list[str]) -> LoginsState:
        state = self.default()
        for line in output:
            try:
                kind, name, *rest = line.split("|", 2)
                if kind == "user":
                    state["logins"][name] = LoginState(rules={}, groups=rest[0].split())
                elif kind == "rule":
                    keyword, _, value = rest[0].partition(" ")
                    state["logins"][name]["rules"].setdefault(keyword, []).append(value)
                elif kind == "place":
                    state["places"].append((name.lower(), rest[0]))
                elif kind == "error":
                    state["error"] = "|".join([name, *rest])
                elif kind == "absent":
                    state["absent"] = True
                elif kind == "unread":
                    state["unread"] = True
                else:
                    raise ValueError(kind)
            except (ValueError, KeyError, IndexError) as error:
                raise FactProcessError(f"not an answer of sshd: {line!r}") from error
        return state
