"""What an account on the host differs in from the declared one, and what stands against it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from string import ascii_uppercase

from terrafirma.paths import SUDOERS
from terrafirma.users.facts import AccountsState, AccountState
from terrafirma.users.settings import Account

# What the name of a netgroup, or of an alias, begins with.
_ALIAS = f"+{ascii_uppercase}"


def homes(accounts: Sequence[Account]) -> dict[str, str]:
    """What the fact about accounts is asked."""
    return {account.name: account.directory for account in accounts}


def refusals(accounts: Sequence[Account], known: AccountsState) -> Iterator[str]:
    """What must be put right by hand before these accounts can be what is declared."""
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
        yield f"is an account of the system (uid {now['uid']}); take another name"
    elif now["group_gid"] is not None and now["group_gid"] < 1000:
        yield (
            f"the group of that name is one of the system (gid {now['group_gid']}), and the "
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
        # A run takes the old one along to where the new one is to be.
        if old and old["uid"] != now["uid"] and now["home"] != account.directory:
            yield (
                f"has the home {now['home']}, which belongs to {_owner(old['user'], old['uid'])} "
                f"and would be moved to {account.directory}; let it stay where it is "
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
    return f"uid {uid}, whom nobody is" if user == "UNKNOWN" else f"{user} (uid {uid})"


def surplus(account: Account, now: AccountState) -> Iterator[str]:
    """
    Rules of sudo that are not ours, and let the account do other than what is declared.

    Not those of groups that it is in: which groups, is declared.
    """
    own = f"{SUDOERS}{account.name}"
    groups = {f"%{group}" for group in (*now["groups"], now["group"]) if group != account.name}
    places = [(place, who) for place, who in now["lines"] if place.rpartition(":")[0] != own]
    rules = _theirs(account, now)
    found = dict.fromkeys(_by_rules(rules, places, groups))
    if nameless := [denies for source, denies in rules if not source]:
        found |= dict.fromkeys(_by_lines(nameless, places, groups))
    if now["uid"] is None:
        # sudo does not speak of whom it does not know.
        found |= dict.fromkeys(
            place for place, who in now["lines"] if who == account.name and own not in place
        )
    if found:
        declared = ", ".join(account.sudo) or ("its one command" if account.releases else "nothing")
        yield (
            f"sudo lets it do other than what is declared ({declared}), by {' and '.join(found)}; "
            "remove that there, or declare it"
        )


def _theirs(account: Account, now: AccountState) -> list[tuple[str, bool]]:
    """The rules that are not ours: where each is from, and whether it takes away what we give."""
    own, every = f"{SUDOERS}{account.name}", "ALL" in account.sudo
    found = []
    after = False
    for rule in now["rules"]:
        source, asks = rule["source"], "!authenticate" not in rule["options"]
        # An older sudo does not say where a rule is from: one like ours does no harm.
        if source == own or (not source and not asks and rule["commands"] == now["own"]):
            after = True
            continue
        # The last rule that fits counts, so one after ours can take away what is declared.
        denies = every and asks and (after or _sorts_after(source, own))
        # Who may do all may do each single command, but for those that a rule takes away.
        if denies or not every or any(one.startswith("!") for one in rule["commands"]):
            found.append((source, denies))
    return found


def _by_rules(
    rules: Sequence[tuple[str, bool]], places: Sequence[tuple[str, str]], groups: set[str]
) -> Iterator[str]:
    """Where those rules are that sudo names the file of."""
    for source, denies in rules:
        lines = [(place, who) for place, who in places if place.rpartition(":")[0] == source]
        blamed = [place for place, who in lines if denies or who not in groups]
        if source and (blamed or not lines):
            yield from blamed or [source]


def _by_lines(
    denies: Sequence[bool], places: Sequence[tuple[str, str]], groups: set[str]
) -> Iterator[str]:
    """
    Where rules may be that sudo names no file of.

    Whether a line applies on this host is not known, so none that is for a group excuses one that
    names the account. An alias or a netgroup may mean others: it counts for rules that are left.
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
    """What a run changes in an account that is there, before → after."""
    pairs: list[tuple[str, str | list[str], str | list[str]]] = [
        ("shell", now["shell"], account.login_shell),
        ("home", now["home"], account.directory),
        ("own group", now["group"], account.name),
        ("groups", now["groups"], sorted(account.groups)),
        ("password", now["password"], "none" if now["password"] == "empty" else now["password"]),
    ]
    said = [f"{what} {_said(old)} → {_said(new)}" for what, old, new in pairs if old != new]
    if now["directory"] is None:
        # An account that moves takes its old home along.
        if now["home"] == account.directory:
            said.append(f"home {account.directory} is missing → made")
    elif now["directory"]["mode"] & 0o022:
        # With such a home sshd takes no key from it.
        said.append(f"home {now['directory']['mode']:o} → not writable for others")
    if ageing := aged(now):
        said.append(f"{', '.join(ageing)} → never")
    return said


def _said(value: str | list[str]) -> str:
    return value if isinstance(value, str) and value else ", ".join(value) or "none"


def aged(now: AccountState) -> list[str]:
    """What ends its logins one day, those with a key too."""
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


# All by which a login with a key could end one day: the password's age, and the account's.
UNAGED = "--maxdays -1 --inactive -1 --expiredate -1"


def creation(account: Account, names: Sequence[str]) -> str:
    """The command that makes it; nothing needs quotes: settings.py admits only plain names."""
    return (
        f"{_make_groups(account, names)}{_shell(account)}"
        f"useradd --create-home --shell {account.login_shell} "
        # A group of that name may be there, as one that another account is in.
        f"$(getent group {account.name} > /dev/null && echo --gid {account.name} "
        "|| echo --user-group) "
        f"--home-dir {account.directory} --groups '{','.join(sorted(account.groups))}' "
        f"{account.name} && chage {UNAGED} {account.name}"
    )


def repair(account: Account, now: AccountState, names: Sequence[str]) -> str:
    """The command that makes it what is declared; empty: it is."""
    options = []
    if now["shell"] != account.login_shell:
        options.append(f"--shell {account.login_shell}")
    if now["home"] != account.directory:
        # What is there already is its own.
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


def _make_groups(account: Account, names: Sequence[str]) -> str:
    # That of an account which is declared, too, is going to be its own.
    return "".join(
        f"groupadd --force {'' if group in names else '--system '}{group} && "
        for group in account.groups
    )


def _shell(account: Account) -> str:
    shell = account.login_shell
    return (
        f"{{ test -x {shell} || {{ echo 'users_accounts: {account.name}: shell: {shell} is not "
        "there, so sshd lets nobody in; add its package to apt_packages' >&2; exit 1; }; } && "
    )
