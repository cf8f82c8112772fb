"""
Rules that compare several sections of a server's settings, or several of its applications.

Each rule is a function of a server that yields one line for each mistake; no rule asks a host.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

from terrafirma.app.settings import Application
from terrafirma.borg.settings import LOST_WITH_IT, repository_host
from terrafirma.firewall.settings import overlaps
from terrafirma.host.facts import HardwareState
from terrafirma.pgbouncer.pooler import pool_sizes
from terrafirma.postgres.settings import Database, Role
from terrafirma.server import ROLES, Server

RESERVED = 10
"""Connections kept free for a backup, a deploy, an administrator, and the superuser."""


def one_port_each(server: Server) -> Iterator[str]:
    """Two programs cannot listen on one port."""
    for (before, theirs), (key, own) in combinations(server.reserved.items(), 2):
        if both := {*theirs} & {*own}:
            whole = f" ({theirs[0]} to {theirs[-1]})" if len(theirs) > 1 else ""
            other = "take another, or leave it out" if key.startswith("apps.") else "take another"
            yield f"{key}: {min(both)} is taken by {before}{whole}; {other}"


def one_name_each(server: Server) -> Iterator[str]:
    """A domain leads to one application."""
    owners: dict[str, Application] = {}
    for app in server.apps:
        names = [("domain", app.domain), *(("redirects", name) for name in app.redirects)]
        names += [(f"services.{service}.domain", one.domain)
                  for service, one in app.public.items() if one.domain]  # fmt: skip
        for field, name in names:
            if (owner := owners.setdefault(name, app)) is not app:
                yield f"{app.key(field)}: {name!r} is a name of {owner.name} already; take another"


def known_names(server: Server) -> Iterator[str]:
    """Everything that an application or an account refers to is declared."""
    roles = server.postgres.visitors
    accounts = {account.name for account in server.users.accounts}
    for app in server.apps:
        databases = [("databases", name) for name in app.databases]
        for field, value, known, where in (
            *(
                (field, name, server.postgres.owners, "postgres_databases")
                for field, name in (("database", app.database), *databases)
            ),
            (
                "role",
                app.database and server.roles_of(app)[app.database],
                [role for database, role in roles if database == app.database],
                f"the roles that log in to {app.database}",
            ),
            ("user", app.user, accounts, "users_accounts"),
            ("network", app.network, server.docker.networks, "docker_networks"),
        ):
            if value and value not in known:
                listed = ", ".join(sorted(known)) or "empty"
                remedy = _declaration(server, app, value) if field.startswith("database") else ""
                yield f"{app.key(field)}: {value!r} is not in {where} ({listed}){remedy}"
    apps = [app.name for app in server.apps]
    for account in server.users.accounts:
        for name in account.releases:
            if name not in apps:
                yield (
                    f"users_accounts: {account.name} releases {name!r}, which is not an "
                    f"application (apps: {', '.join(apps) or 'none'})"
                )


def _declaration(server: Server, app: Application, database: str) -> str:
    """What to add to the settings, so that a database of `app` is declared."""
    owner = app.role or database
    role = f', and {{"name": "{owner}"}} to postgres_roles'
    declared = owner in {role.name for role in server.postgres.roles}
    return f'; add {{"name": "{database}", "owner": "{owner}"}} there{"" if declared else role}'


def pooled(server: Server) -> Iterator[str]:
    """PgBouncer is enabled if an application uses it, and no database is named like its console."""
    if not server.pgbouncer.enabled:
        for app in server.apps:
            if app.pgbouncer:
                yield (
                    f"{app.key('pgbouncer')}: pgbouncer_enabled is False; set that to True, or "
                    "this to False"
                )
    elif any(database == "pgbouncer" for database, _ in server.postgres.visitors):
        yield (
            "postgres_databases: 'pgbouncer' is the name of PgBouncer's console; take another, or "
            "set pgbouncer_enabled to False"
        )


def enough_connections(server: Server) -> Iterator[str]:
    """Every connection limit covers the connections that the applications may open."""
    postgres, applications = server.postgres, server.apps
    direct = [app for app in applications if app.database_urls and not app.pgbouncer]
    pools = pool_sizes(server.pgbouncer, postgres)
    sums = [
        f"{app.name} {app.containers} replicas x {app.connections} x {app.overlap} releases"
        f"{f' x {len(app.database_urls)} databases' if len(app.database_urls) > 1 else ''} = "
        f"{connections(app)}"
        for app in direct
    ]
    needed = sum(map(connections, direct)) + RESERVED
    if pools:
        of_roles: Counter[str] = Counter()
        for (_, role), size in pools.items():
            of_roles[role] += size
        # While the password of a role is renewed, the role has two logins, each with its own pool.
        spare = max(of_roles.values())
        sums.append(f"{len(pools)} pools of PgBouncer = {sum(pools.values())}")
        sums.append(f"{spare} while a password is renewed")
        needed += sum(pools.values()) + spare
    if needed > postgres.max_connections:
        lower = " and ".join(
            [
                *(["apps.*.connections"] if direct else []),
                *(["pgbouncer_pool_size"] if pools else []),
            ]
        )
        yield (
            f"postgres_max_connections: {postgres.max_connections} is too few: "
            f"{', '.join(sums)}, reserved {RESERVED}; set it to {needed} or more, or lower {lower}"
        )
    uses = [(app, *pair) for app in applications for pair in server.roles_of(app).items()]
    through = {(name, role) for app, name, role in uses if app.pgbouncer}
    for database in postgres.databases:
        users = [app for app, name, _ in uses if name == database.name]
        needed = sum(connections(app, 1) for app in users if not app.pgbouncer)
        needed += sum(pools.get(pair, 0) for pair in through if pair[0] == database.name)
        yield from _low("postgres_databases", database, users, needed)
    for one in postgres.roles:
        connecting = [app for app, _, role in uses if role == one.name]
        users = [app for app in applications if app in connecting]
        needed = sum(connections(app, 1) for app in connecting if not app.pgbouncer)
        if needed:
            # PgBouncer respects the role's limit, but does not count direct connections.
            needed += sum(pools.get(pair, 0) for pair in through if pair[1] == one.name)
        yield from _low("postgres_roles", one, users, needed)


def _low(
    key: str, one: Database | Role, users: Sequence[Application], needed: int
) -> Iterator[str]:
    if 0 <= one.connection_limit < needed:
        yield (
            f"{key}: {one.name}: connection_limit {one.connection_limit} is too low for "
            f"{', '.join(app.name for app in users)}: set it to {needed} or more"
        )


def connections(app: Application, databases: int | None = None) -> int:
    """How many connections `app` opens at most: to so many databases, or to all of its own."""
    number = len(app.database_urls) if databases is None else databases
    return app.containers * app.connections * app.overlap * number


def backed_up_elsewhere(server: Server) -> Iterator[str]:
    """Backups go to another host: a backup on the server itself is lost with the server."""
    name = repository_host(server.borg.repository)
    if name and name in (server.name.lower(), server.address.lower()):
        yield f"borg_repository: {name} {LOST_WITH_IT}"


def opened_once(server: Server) -> Iterator[str]:
    """`firewall_open` adds to the platform's ports, and opens none that only the host may use."""
    declared = server.openings(())[: -len(server.firewall.open) or None]
    for one in server.firewall.open:
        name = f"firewall_open: {one.port}/{one.protocol}"
        if other := next((other for other in declared if overlaps(one, other)), None):
            yield f"{name}: {other.port} is open already, for {other.comment}; leave it out"
        elif one.protocol == "tcp" and not one.destinations:
            for key, ports in server.reserved.items():
                mine = [port for port in ports if port in one.range]
                if mine and ("internet" in one.audience or key.startswith("apps.")):
                    if key in ("HTTP", "HTTPS"):
                        continue
                    yield (
                        f"{name}: {mine[0]} ({key}) is not for clients from elsewhere: its program "
                        "listens for this host alone; leave it out"
                    )
                    break


def whole_platform(server: Server) -> Iterator[str]:
    """Each host runs the whole platform: no task looks at the roles yet."""
    if server.roles != ROLES:
        yield (
            f"inventory: the host is in the group {', '.join(server.roles)}, and a host for one "
            "part alone is not built yet; put it into a group of another name, like servers"
        )


RULES: tuple[Callable[[Server], Iterator[str]], ...] = (
    whole_platform,
    one_port_each,
    one_name_each,
    known_names,
    pooled,
    enough_connections,
    backed_up_elsewhere,
    opened_once,
)


# --- rules that also need a fact of the host ------------------------------------------------------


def enough_hardware(server: Server, known: HardwareState) -> Iterator[str]:
    """
    The host has the memory and processors that the applications may take.

    An application without a limit counts as zero, because its use is unknown.
    """
    limited = [app for app in server.apps if app.memory_mb]
    for app in server.apps:
        if app.cpus > known["cores"]:
            yield (
                f"{app.key('cpus')}: a container may take {app.cpus:g}, but the host has "
                f"{known['cores']}; set it to {known['cores']} or less"
            )
    total = known["memory"] // 1024
    percent = server.postgres.memory_percent
    share = total * percent // 100
    needed = sum(map(memory_mb, limited))
    if not limited or needed + share <= total:
        return
    sums = [
        f"{app.name} {app.containers} replicas x {app.memory_mb} MB x {app.overlap} releases = "
        f"{memory_mb(app)} MB"
        for app in limited
    ]
    fits = (total - needed) * 100 // total
    # 5 is the lowest value of postgres_memory_percent.
    right = f", or postgres_memory_percent to {fits}" if fits >= 5 else ""
    yield (
        f"{limited[0].key('memory_mb')}: {total} MB of memory are too few: {', '.join(sums)}, "
        f"PostgreSQL {percent} % = {share} MB; lower memory_mb or replicas until the applications "
        f"take {total - share} MB{right}"
    )


def limits_hardware(server: Server) -> bool:
    """Whether an application has a memory or CPU limit, which the host must be able to provide."""
    return any(app.memory_mb or app.cpus for app in server.apps)


def memory_mb(app: Application) -> int:
    """How much memory the containers of `app` take at most, in MB."""
    return app.containers * app.memory_mb * app.overlap
