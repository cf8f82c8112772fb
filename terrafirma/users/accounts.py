"""How an account on the host differs from its settings, what fixes that, and what prevents it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from shlex import quote
from string import ascii_uppercase

from terrafirma.paths import SUDOERS
from terrafirma.users.facts import AccountsState, AccountState
from terrafirma.users.settings import Account

# The first characters of netgroups and of aliases in sudo's files.
_ALIAS = f"+{ascii_uppercase}"


def homes(accounts: Sequence[Account]) -> dict[str, str]:
    """The argument of the fact Accounts."""
    return {account.name: account.directory for account in accounts}


def refusals(accounts: Sequence[Account], known: AccountsState) -> Iterator[str]:
    """Obstacles that a person must remove before the accounts can become what is declared."""
    for account in accounts:
        now = known["accounts"].get(account.name)
        if now is not None:
            for wrong in (*_identity(account, now), *_places(account, now), *surplus(account, now)):
                yield f"users_accounts: {account.name!r}: {wrong}"
    if known["unread"] and any(account.sudo or account.releases for account in accounts):
        yield (
            "users_accounts: /etc/sudoers there does not read /etc/sudoers.d, where what sudo "
            "allows is written; add the line `@includedir /etc/sudoers.d` at its end"
        )


def _identity(account: Account, now: AccountState) -> Iterator[str]:
    if now["uid"] is not None and now["uid"] < 1000:
        yield f"is a system account (uid {now['uid']}); take another name"
    elif now["group_gid"] is not None and now["group_gid"] < 1000:
        yield (
            f"the group of that name is a system group (gid {now['group_gid']}), and the "
            "account would be in it; take another name"
        )
    if now["uid"] is not None and not now["local"]:
        yield "is not in /etc/passwd but in a directory service; manage it there"
    if now["twins"]:
        twins = ", ".join(now["twins"])
        yield f"{twins} has the same uid {now['uid']}; give it another (usermod -u)"


def _places(account: Account, now: AccountState) -> Iterator[str]:
    home, old, ssh = now["directory"], now["old"], now["ssh"]
    if home is None:
        # A run would move the old home to the new place.
        if old and old["uid"] != now["uid"] and now["home"] != account.directory:
            yield (
                f"has the home {now['home']}, which belongs to {_owner(old['user'], old['uid'])} "
                f"and would be moved to {account.directory}; leave it where it is "
                f"(usermod --home {account.directory} {account.name})"
            )
        return
    if now["uid"] is None:
        owner = _owner(home["user"], home["uid"])
        yield f"its home {account.directory} is there already and belongs to {owner}; move it away"
        return
    if home["kind"] != "directory":
        yield f"its home {account.directory} is no directory ({home['kind']}); move it away"
    elif home["uid"] != now["uid"]:
        yield (
            f"its home {account.directory} belongs to {_owner(home['user'], home['uid'])}; move it "
            f"away, or make it its own (chown {account.name}: {account.directory})"
        )
    elif ssh is not None and (ssh["kind"], ssh["uid"]) != ("directory", now["uid"]):
        yield (
            f"its home's .ssh, {account.directory}/.ssh, is a {ssh['kind']} of "
            f"{_owner(ssh['user'], ssh['uid'])}; make it a directory of its own, or remove it"
        )
    elif now["keys"]:
        yield f"{now['keys']} is a directory; move it away"


def _owner(user: str, uid: int) -> str:
    return f"uid {uid}, which no account has" if user == "UNKNOWN" else f"{user} (uid {uid})"


def surplus(account: Account, now: AccountState) -> Iterator[str]:
    """
    Foreign sudo rules that give the account other rights than declared.

    Rules for its groups are fine, because the settings name the groups.
    """
    own = f"{SUDOERS}{account.name}"
    groups = {f"%{group}" for group in (*now["groups"], now["group"]) if group != account.name}
    places = [(place, who) for place, who in now["lines"] if place.rpartition(":")[0] != own]
    rules = _theirs(account, now)
    found = dict.fromkeys(_by_rules(rules, places, groups))
    if nameless := [denies for source, denies in rules if not source]:
        found |= dict.fromkeys(_by_lines(nameless, places, groups))
    if now["uid"] is None:
        # sudo lists no rules for an account that does not exist yet.
        found |= dict.fromkeys(
            place for place, who in now["lines"] if who == account.name and own not in place
        )
    if found:
        declared = ", ".join(account.sudo) or ("its one command" if account.releases else "nothing")
        yield (
            f"sudo gives it other rights than declared ({declared}), by {' and '.join(found)}; "
            "remove them there, or declare them"
        )


def _theirs(account: Account, now: AccountState) -> list[tuple[str, bool]]:
    """The foreign rules: the source of each, and whether it takes a declared right away."""
    own, every = f"{SUDOERS}{account.name}", "ALL" in account.sudo
    found = []
    after = False
    for rule in now["rules"]:
        source, asks = rule["source"], "!authenticate" not in rule["options"]
        # An older sudo names no source: a rule like ours does no harm.
        if source == own or (not source and not asks and rule["commands"] == now["own"]):
            after = True
            continue
        # The last matching rule wins, so a rule after ours can take a declared right away.
        denies = every and asks and (after or _sorts_after(source, own))
        # With ALL declared, a foreign rule matters only if it takes commands away.
        if denies or not every or any(one.startswith("!") for one in rule["commands"]):
            found.append((source, denies))
    return found


def _by_rules(
    rules: Sequence[tuple[str, bool]], places: Sequence[tuple[str, str]], groups: set[str]
) -> Iterator[str]:
    """The places of the rules for which sudo names a file."""
    for source, denies in rules:
        lines = [(place, who) for place, who in places if place.rpartition(":")[0] == source]
        blamed = [place for place, who in lines if denies or who not in groups]
        if source and (blamed or not lines):
            yield from blamed or [source]


def _by_lines(
    denies: Sequence[bool], places: Sequence[tuple[str, str]], groups: set[str]
) -> Iterator[str]:
    """
    The likely places of rules for which sudo names no file.

    A line may not apply on this host, so a line for a group does not excuse one that names the
    account. An alias or a netgroup may mean others, so it counts only if a rule is unexplained.
    """
    blamed = [(place, who) for place, who in places if any(denies) or who not in groups]
    if len(denies) > len(places) - len(blamed):
        yield from [place for place, _ in blamed] or ["a rule that names no file"]
    else:
        yield from (place for place, who in blamed if who == "ALL" or who[0] not in _ALIAS)


def _sorts_after(source: str, own: str) -> bool:
    directory = own.rpartition("/")[0]
    return source.rpartition("/")[0] == directory and source > own


def differences(account: Account, now: AccountState) -> list[str]:
    """The changes that a run makes to an existing account, as before → after."""
    pairs: list[tuple[str, str | list[str], str | list[str]]] = [
        ("shell", now["shell"], account.login_shell),
        ("home", now["home"], account.directory),
        ("own group", now["group"], account.name),
        ("groups", now["groups"], sorted(account.groups)),
        ("password", now["password"], "none" if now["password"] == "empty" else now["password"]),
    ]
    said = [f"{what} {_said(old)} → {_said(new)}" for what, old, new in pairs if old != new]
    if now["directory"] is None:
        # Otherwise the account moves, and its old home with it.
        if now["home"] == account.directory:
            said.append(f"home {account.directory} is missing → created")
    elif now["directory"]["mode"] & 0o022:
        # sshd ignores the keys in a home that others can write.
        said.append(f"home {now['directory']['mode']:o} → not writable for others")
    if ageing := aged(now):
        said.append(f"{', '.join(ageing)} → never")
    return said


def _said(value: str | list[str]) -> str:
    return value if isinstance(value, str) and value else ", ".join(value) or "none"


def aged(now: AccountState) -> list[str]:
    """The settings that would end all logins of the account some day, even those with a key."""
    found = []
    if now["last_change"] == "0":
        found.append("a new password at the next login")
    if now["max_days"] not in ("", "-1") and int(now["max_days"]) < 99999:
        found.append(f"a new password each {now['max_days']} days")
    if now["inactive"] not in ("", "-1"):
        found.append(f"inactive {now['inactive']} days later")
    if now["expires"] not in ("", "-1"):
        found.append(f"expires on day {now['expires']} since 1970")
    return found


# Removes every date after which a login with a key would fail: of the password and the account.
UNAGED = "--maxdays -1 --inactive -1 --expiredate -1"


def creation(account: Account, names: Sequence[str]) -> str:
    """The command that creates the account; its names need no quotes, as settings.py checks."""
    return (
        f"{_make_groups(account, names)}{_shell(account)}"
        f"useradd --create-home --shell {account.login_shell} "
        # The group may exist already, for example for another account.
        f"$(getent group {account.name} > /dev/null && echo --gid {account.name} "
        "|| echo --user-group) "
        f"--home-dir {account.directory} --groups '{','.join(sorted(account.groups))}' "
        f"{account.name} && chage {UNAGED} {account.name}"
    )


def repair(account: Account, now: AccountState, names: Sequence[str]) -> str:
    """The command that makes the account what is declared; empty if it is already."""
    options = []
    if now["shell"] != account.login_shell:
        options.append(f"--shell {account.login_shell}")
    if now["home"] != account.directory:
        # A directory at the new place already belongs to the account, so do not move the old home.
        move = "" if now["directory"] else "--move-home "
        options.append(f"{move}--home {account.directory}")
    if now["group"] != account.name:
        options.append(f"--gid {account.name}")
    if now["groups"] != sorted(account.groups) or now["group"] != account.name:
        options.append(f"--groups '{','.join(sorted(account.groups))}'")
    if now["password"] == "empty":
        options.append("--lock")
    steps = []
    if options:
        shell = _shell(account) if now["shell"] != account.login_shell else ""
        own = f"groupadd --force {account.name} && " if now["group"] != account.name else ""
        steps.append(
            f"{_make_groups(account, names)}{own}{shell}usermod {' '.join(options)} {account.name}"
        )
    if aged(now):
        today = '--lastday "$(date +%F)" ' if now["last_change"] == "0" else ""
        steps.append(f"chage {today}{UNAGED} {account.name}")
    path = account.directory
    if now["directory"] is None:
        steps.append(
            f"{{ test -e {path} || install -d -m 755 -o {account.name} -g {account.name} {path}; }}"
        )
    elif now["directory"]["mode"] & 0o022:
        steps.append(f"chmod go-w {path}")
    return " && ".join(steps)


def undoing(account: Account, now: AccountState) -> str:
    """The command that gives an account back what `repair` takes from it; empty if nothing."""
    if now["uid"] is None or not differences(account, now):
        return ""
    # The old home has moved to the new place, and its keys with it.
    move = "--move-home " if now["home"] != account.directory and not now["directory"] else ""
    return (
        f"usermod --shell {quote(now['shell'])} --gid {now['gid']} {move}--home "
        f"{quote(now['home'])} --groups '{','.join(now['groups'])}' {account.name}"
    )


def _make_groups(account: Account, names: Sequence[str]) -> str:
    # A group named like a declared account will be that account's own: no system group.
    return "".join(
        f"groupadd --force {'' if group in names else '--system '}{group} && "
        for group in account.groups
    )


def _shell(account: Account) -> str:
    shell = account.login_shell
    return (
        f"{{ test -x {shell} || {{ echo 'users_accounts: {account.name}: shell: {shell} is not "
        "there, so sshd would refuse the account; add its package to apt_packages' >&2; "
        "exit 1; }; } && "
    )
