"""Why sshd's rules would admit too few or too many: pure functions of sshd's own answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from terrafirma.host.keys import Key
from terrafirma.sshd.facts import LoginsState, LoginState

_NAMES = {"pubkeyacceptedalgorithms": ("pubkeyacceptedalgorithms", "pubkeyacceptedkeytypes")}
# The values with which the keys of a declared account open a session.
_OURS = {
    "usepam": "yes",
    "pubkeyauthentication": "yes",
    "authorizedkeysfile": ".ssh/authorized_keys",
    "forcecommand": "none",
    "chrootdirectory": "none",
}
_PASSWORDS = ("passwordauthentication", "kbdinteractiveauthentication")
# The values with which only a key of the account opens a session.
_CLOSED = {
    **dict.fromkeys(_PASSWORDS, "no"),
    "permitemptypasswords": "no",
    "hostbasedauthentication": "no",
    "gssapiauthentication": "no",
    "kerberosauthentication": "no",
    "authorizedkeyscommand": "none",
    "trustedusercakeys": "none",
}
_ROOT = ("yes", "without-password", "prohibit-password")


def misconfigured(known: LoginsState) -> Iterator[str]:
    """Why sshd's configuration as a whole is unusable."""
    error = known["error"]
    if known["unread"]:
        yield (
            "/etc/ssh/sshd_config does not read what is in /etc/ssh/sshd_config.d; add the line "
            "`Include /etc/ssh/sshd_config.d/*.conf` at its beginning"
        )
    elif error:
        # For values that contradict each other, sshd names no line.
        named = sorted({keyword for keyword, _ in known["places"] if keyword in error.lower()})
        where = places(named[-1], of=known) if named and " line " not in error else ""
        yield f"sshd rejects its configuration: {error}{where}"


def obstacles(
    name: str, known: LoginsState, *, keys: Sequence[Key], groups: Sequence[str] | None
) -> Iterator[str]:
    """
    Why sshd would not let `name` in.

    `groups` are the groups that the account is going to have. None means an account that is not
    declared: then only the rules about who may log in are checked, not how.
    """
    state = known["logins"].get(name)
    if state is None or not state["rules"]:
        return
    mine = state["groups"] if groups is None else groups
    for keyword, value in (*_who(name, state, mine), *_how(state, keys, ours=groups is not None)):
        yield f"sshd would not let {name} in: {keyword} {value}{places(keyword, of=known)}"


def elsewhere(name: str, known: LoginsState) -> Iterator[str]:
    """Why `name` could no longer log in with the key that it uses now."""
    if known["absent"] and name in known["logins"]:
        where = places("authorizedkeysfile", "authorizedkeyscommand", "trustedusercakeys", of=known)
        yield (
            f"sshd would not let {name} in: the key or certificate that you are connected with is "
            "not in its ~/.ssh/authorized_keys, the only file that sshd is going to read"
            f"{where}; add the key there, or connect with a key that is"
        )


def strangers(users: Sequence[str], known: LoginsState) -> Iterator[str]:
    """Others than `users` whom sshd would let in."""
    more = {
        pattern
        for login in known["logins"].values()
        for value in login["rules"].get("allowusers", [])
        for pattern in value.split()
    } - {*users}
    if more:
        named = " ".join(sorted(more))
        yield f"sshd would let others in: allowusers {named}{places('allowusers', of=known)}"


def keyless(name: str, known: LoginsState, *, passwords: bool) -> Iterator[str]:
    """Ways to log in as `name` without one of its keys; a password is fine if `passwords`."""
    rules = known["logins"][name]["rules"] if name in known["logins"] else {}
    for keyword, wanted in _CLOSED.items():
        value = " ".join(rules.get(keyword, [wanted]))
        if value != wanted and not (passwords and keyword in _PASSWORDS):
            where = places(keyword, of=known)
            yield f"sshd would let {name} in without one of its keys: {keyword} {value}{where}"


def _who(name: str, state: LoginState, groups: Sequence[str]) -> Iterator[tuple[str, str]]:
    def patterns(keyword: str) -> list[str]:
        return [word for value in state["rules"].get(keyword, []) for word in value.split()]

    users = [pattern.partition("@")[0] for pattern in patterns("allowusers")]
    if users and not any(fnmatchcase(name, pattern) for pattern in users):
        yield "allowusers", " ".join(users)
    allowed = patterns("allowgroups")
    if allowed and not any(fnmatchcase(group, one) for one in allowed for group in groups):
        yield "allowgroups", " ".join(allowed)
    for pattern in patterns("denyusers"):
        if fnmatchcase(name, pattern.partition("@")[0]):
            yield "denyusers", pattern
    for pattern in patterns("denygroups"):
        if any(fnmatchcase(group, pattern) for group in groups):
            yield "denygroups", pattern
    if state["rules"].get("refuseconnection", ["no"]) != ["no"]:
        yield "refuseconnection", "yes"
    root = state["rules"].get("permitrootlogin", ["yes"])[0]
    if name == "root" and root not in _ROOT:
        yield "permitrootlogin", root


def _how(state: LoginState, keys: Sequence[Key], *, ours: bool) -> Iterator[tuple[str, str]]:
    rules = {keyword: " ".join(values) for keyword, values in state["rules"].items()}
    if ours:
        for keyword, wanted in _OURS.items():
            if rules.get(keyword, wanted) != wanted:
                yield keyword, rules[keyword]
    methods = rules.get("authenticationmethods", "any").split()
    if not {"any", "publickey"} & set(methods):
        yield "authenticationmethods", " ".join(methods)
    accepted = rules.get("pubkeyacceptedalgorithms", rules.get("pubkeyacceptedkeytypes", ""))
    least = int(rules.get("requiredrsasize") or 0)
    for kind in sorted({key.kind for key in keys if accepted}):
        if not any(key.algorithms & set(accepted.split(",")) for key in keys if key.kind == kind):
            yield "pubkeyacceptedalgorithms", f"without {kind}, which is one of its keys"
    for bits in sorted({key.bits for key in keys if key.bits and key.bits < least}):
        yield "requiredrsasize", f"{least}, and one of its keys has {bits}"


def places(*keywords: str, of: LoginsState) -> str:
    """Where files of sshd have these keywords, in brackets; empty if nowhere."""
    names = [name for keyword in keywords for name in _NAMES.get(keyword, (keyword,))]
    found = [place for name, place in of["places"] if name in names]
    return f" ({', '.join(found)})" if found else ""
