"""
Managed by Terrafirma. What services write that outlives a container, and who else may write it.

Pure functions of what `docker compose config` says and of the VOLUMEs of images. Two releases run
at once while one takes over: a service that each release starts anew is there twice.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from terrafirma_host import layers
from terrafirma_host.layers import Project
from terrafirma_host.shell import Failed
from terrafirma_host.spec import Application

# Files and directories of a host that containers are often given, and that hold no data.
SYSTEM = tuple(
    "/dev /proc /sys /run /var/run /tmp/.X11-unix /lib/modules /usr/share/zoneinfo /etc/localtime"
    " /etc/timezone /etc/machine-id /etc/hostname /etc/hosts /etc/resolv.conf /etc/passwd"
    " /etc/group /etc/os-release".split()
)

# Images of databases, queues and search engines, by the words in the last part of their names.
DATABASES = frozenset(
    # SQL
    "postgres postgresql postgis timescaledb pgvector pgvecto vchord spilo paradedb mysql mysqld"
    " mariadb mariadbd percona galera mssql cockroach cockroachdb yugabyte yugabytedb tidb tikv"
    " crate cratedb firebird db2 hsqldb h2 singlestore vitess vertica voltdb greenplum immudb dolt"
    " rqlite libsql sqld ferretdb vectorchord edgedb starrocks doris pocketbase"
    # documents, keys, graphs
    " mongo mongod mongodb couchdb couchbase rethinkdb surrealdb arangodb ravendb orientdb neo4j"
    " memgraph dgraph janusgraph falkordb redis redismod redisearch redisgraph rejson valkey keydb"
    " dragonfly dragonflydb kvrocks garnet ssdb tarantool aerospike cassandra scylla scylladb hbase"
    " riak foundationdb dynamodb azuresqledge etcd consul vault openbao zookeeper ignite"
    " hazelcast ledis"
    # queues
    " rabbitmq nats kafka redpanda pulsar bookkeeper activemq artemis rocketmq nsq nsqd emqx"
    " mosquitto vernemq hivemq beanstalkd gearmand pravega cpserver elasticmq eventstore kurrentdb"
    # search
    " elasticsearch opensearch solr meilisearch typesense qdrant weaviate milvus chroma chromadb"
    " zinc vespa marqo manticore manticoresearch quickwit zincsearch sonic lancedb"
    # time series, objects
    " clickhouse influxdb influxdb2 influxdb3 victoriametrics questdb tdengine druid prometheus"
    " graphite whisper loki tempo mimir victorialogs minio seaweedfs garage cloudserver azurite"
    " rustfs openldap iotdb greptimedb vmstorage openobserve".split()
)
# Their clients, exporters and pages: programs beside a database that hold nothing.
BESIDE = frozenset(
    "exporter backup backups restore admin ui gui web console dashboard dashboards commander"
    " express insight client cli tools tool utils proxy pooler router connect connector rest"
    " operator template agent box meta manager browser viewer init setup migrate migrations"
    " curator adapter bridge mirrormaker cruise control mcp api sdk alertmanager"
    " gateway reaper keeper".split()
)


@dataclass(frozen=True)
class Store:
    """What a service can write that outlives its container."""

    service: str
    target: str  # where the service has it
    key: str  # what the compose files call it: the key of a volume, a path; "": it has no name
    place: str  # the same for two that are one: a path of the host, the name of a volume

    def __str__(self) -> str:
        what = "the directory" if self.key.startswith("/") else "the volume"
        return f"{self.service} writes {what} {self.key}"


def started(app: Application, project: Project) -> list[str]:
    """What each release starts, the migration among it."""
    once = list(app.migrate) if layers.migrates_by_service(app, project) else []
    return [*layers.slot_services(app, project), *once]


def of_services(app: Application, project: Project, names: Iterable[str]) -> list[Store]:
    """What these services write, without what has no name."""
    return [
        store for name in names for store in of_service(app, project, name) if store.key
    ]  # fmt: skip


def of_service(
    app: Application, project: Project, name: str, seen: frozenset[str] = frozenset()
) -> list[Store]:
    """What a service writes, that of the services whose volumes it takes over among it."""
    service = project["services"].get(name) or {}
    found = []
    for mount in service.get("volumes") or []:
        source = mount.get("source") or ""
        read_only = mount.get("read_only") or mount["type"] in ("tmpfs", "npipe", "image")
        if read_only or (mount["type"] == "bind" and is_system(source)):
            continue
        place = source
        if mount["type"] == "bind":
            place = place_of_path(source)
        elif source:
            volume = (project.get("volumes") or {}).get(source) or {}
            real = layers.volume_names(app, project).get(source) or volume.get("name", source)
            place = place_of_volume(real, volume.get("driver_opts") or {})
        found.append(Store(name, mount["target"], source, place))
    for words in service.get("volumes_from") or []:
        other, _, mode = words.removeprefix("container:").partition(":")
        if mode.split(",")[0] == "ro" or other in seen:
            continue
        if words.startswith("container:"):
            raise Failed(f"{name}: volumes_from takes over what the container {other} writes: "
                         "mount the volume by its name")  # fmt: skip
        taken = of_service(app, project, other, seen | {name})
        found += [Store(name, one.target, one.key, one.place) for one in taken]
    return found


def place_of_path(path: str) -> str:
    """What a path of the host is, whatever links lead there."""
    real = os.path.realpath(path)
    volume = re.search(r"/volumes/([^/]+)/_data(/|$)", real)
    return volume[1] if volume else real


def place_of_volume(name: str, options: Mapping[str, Any]) -> str:
    """What a volume is: several may stand for one directory, or one export."""
    device, words = str(options.get("device") or ""), str(options.get("o") or "").split(",")
    kind = str(options.get("type") or "")
    if device.startswith("/") and kind != "tmpfs":
        return os.path.realpath(device)
    if device and kind != "tmpfs":
        server = next((word for word in words if word.startswith("addr=")), "")
        return f"{kind.rstrip('4')} {server} {device}"
    return name


def is_system(path: str) -> bool:
    """Whether a path of the host is a socket, a device or a setting: nothing that lasts."""
    return path.endswith(".sock") or any(PurePosixPath(path).is_relative_to(one) for one in SYSTEM)


def overlap(first: str, second: str) -> bool:
    """Whether two places are one, or one lies in the other."""
    one, other = PurePosixPath(first), PurePosixPath(second)
    return one == other or (
        first.startswith("/")
        and second.startswith("/")
        and (one.is_relative_to(other) or other.is_relative_to(one))
    )


def shared(app: Application, store: Store) -> bool:
    """Whether several containers may write there at once, as the settings say."""
    return any(
        store.key == entry
        or (entry.startswith("/") and PurePosixPath(store.key).is_relative_to(entry))
        for entry in app.shared
    )


def is_database(image: str) -> bool:
    """Whether an image is, by its name, that of a database, a queue or a search engine."""
    path = image.partition("@")[0]
    head, _, last = path.rpartition("/")
    last = last.partition(":")[0].lower()
    # Some are called after their maker alone.
    makers = {"mssql": ("server",), "database": ("express", "enterprise", "free")}
    if last in makers.get(head.rpartition("/")[2], ()):
        return True
    words = {word.rstrip("0123456789") or word for word in re.split(r"[-_.]", last)}
    words |= {last, *re.split(r"[-_.]", last), last.replace("-", "")}
    return bool(words & DATABASES) and not words & BESIDE


def database(project: Project, name: str) -> str:
    """The image of a service, where that is a database's; what is built is known by its VOLUMEs."""
    service = project["services"][name]
    image: str = service.get("image") or ""
    return image if "build" not in service and is_database(image) else ""


def uncovered(service: Mapping[str, Any], volumes: Iterable[str]) -> list[str]:
    """The VOLUMEs of an image that no mount of a service covers: new and empty in a container."""
    mounts = [mount["target"] for mount in service.get("volumes") or []]
    tmpfs = service.get("tmpfs") or []
    mounts += [one.partition(":")[0] for one in ([tmpfs] if isinstance(tmpfs, str) else tmpfs)]
    covered = {posixpath.normpath(one) for one in mounts}
    return sorted(one for one in volumes if posixpath.normpath(one) not in covered)


# --- what is refused ------------------------------------------------------------------------------


def refuse(app: Application, project: Project) -> None:
    """Raise Failed, in one line, where two containers would write what is one's alone."""
    _refuse_unknown(app, project)
    names = started(app, project)
    lasting = of_services(app, project, app.stateful)
    written = of_services(app, project, names)
    _refuse_writes_into_source(app, [*lasting, *written])
    _refuse_shared_databases(app, project, [*lasting, *written])
    _refuse_databases(app, project, names)
    _refuse_two_services(app, lasting, written)
    _refuse_several(app, project, lasting)
    own = [store for store in written if not shared(app, store)]
    if web := [store for store in own if store.service == app.service]:
        keys = _list(store.key for store in web)
        raise Failed(
            f"app_shared: {_said(web)}, and two releases of it run at once: app_shared = {keys} "
            "if several processes may write there at once; else keep it in PostgreSQL, or in a "
            "service of its own that app_stateful names"
        )
    if own:
        raise Failed(
            f"app_stateful: {_said(own)}, and two releases run at once: "
            f"app_stateful = {_list(store.service for store in own)} for what runs once, or "
            f"app_shared = {_list(store.key for store in own)} for what several containers may "
            "write at once"
        )
    for name in names:
        paths = [one.target for one in of_service(app, project, name) if not one.key]
        refuse_nameless(app, name, paths)


def refuse_nameless(app: Application, name: str, paths: Sequence[str]) -> None:
    """Raise Failed where each release of a service would begin with an empty directory."""
    if not paths or name in app.scratch:
        return
    ways = f'app_scratch = ["{name}"] if what is written there may be lost'
    if not app.compose:
        ways = f"keep the data in PostgreSQL; {ways}"
    elif name == app.service:
        ways = f"mount a volume with a name there, and app_shared; {ways}"
    else:
        ways = f"mount a volume with a name there, and app_stateful or app_shared; {ways}"
    raise Failed(
        f"app_scratch: {name} has a volume without a name at {' and '.join(paths)}, which is new "
        f"and empty with each release: {ways}"
    )


def _refuse_unknown(app: Application, project: Project) -> None:
    binds = [
        mount.get("source", "")
        for service in project["services"].values()
        for mount in service.get("volumes") or []
        if mount["type"] == "bind"
    ]
    volumes = list(project.get("volumes") or {})
    for entry in app.shared:
        below = [one for one in binds if PurePosixPath(one).is_relative_to(entry)]
        if entry not in volumes and not (entry.startswith("/") and below):
            known = ", ".join(sorted({*volumes, *binds})) or "none"
            raise Failed(f"app_shared: the compose files mount no {entry!r} ({known})")
    for name in app.scratch:
        if name not in project["services"]:
            known = ", ".join(project["services"])
            raise Failed(f"app_scratch: the compose files have no service {name!r} ({known})")


def _refuse_writes_into_source(app: Application, stores: Sequence[Store]) -> None:
    for store in stores:
        if app.source and PurePosixPath(store.key).is_relative_to(app.source):
            raise Failed(
                f"{store.service}: what it writes into {store.target} would go with its source: "
                "use a volume, an absolute path, or `:ro`"
            )


def _refuse_shared_databases(app: Application, project: Project, stores: Sequence[Store]) -> None:
    for store in stores:
        image = database(project, store.service)
        if image and shared(app, store) and not _is_client(app, project, store.service):
            raise Failed(
                f"app_shared: {store} as {image}, which no second process may write: take "
                f"{store.key} out of app_shared, and name {store.service} in app_stateful"
            )


def _refuse_databases(app: Application, project: Project, names: Sequence[str]) -> None:
    found = []
    for name in names:
        image = database(project, name)
        if not image or name in app.scratch or _is_client(app, project, name):
            continue
        keys = [store.key for store in of_service(app, project, name) if store.key]
        volume = f" on the volume {', '.join(keys)}" if keys else ""
        if name == app.service:
            raise Failed(
                f"app_service: {name} runs {image}{volume}, and two releases of it run at once: "
                f'app_scratch = ["{name}"] if each may have its own, empty store'
            )
        found.append((name, f"{name} runs {image}{volume}", bool(keys)))
    if found:
        ways = f"app_stateful = {_list(name for name, *_ in found)} for what lasts"
        if empty := [name for name, _, named in found if not named]:
            ways += f", or app_scratch = {_list(empty)} where each release may have its "
            ways += "own, empty store"
        said = " and ".join(words for _, words, _ in found)
        raise Failed(f"app_stateful: {said}, and two releases run at once: {ways}")


def _refuse_two_services(
    app: Application, lasting: Sequence[Store], written: Sequence[Store]
) -> None:
    for number, one in enumerate(lasting):
        for other in (*lasting[number + 1 :], *written):
            apart = one.service == other.service or not overlap(one.place, other.place)
            if apart or shared(app, one) or shared(app, other):
                continue
            raise Failed(
                f"app_shared: {one}, and {other.service} writes there too: mount it `:ro` in one "
                f"of them, or app_shared = {_list([one.key])} if several may write at once"
            )


def _refuse_several(app: Application, project: Project, lasting: Sequence[Store]) -> None:
    for store in lasting:
        times = layers.times(project["services"][store.service])
        if times > 1 and not shared(app, store):
            raise Failed(
                f"app_stateful: {store}, and runs {times} times: `replicas: 1`, or app_shared = "
                f"{_list([store.key])} if several may write at once"
            )


def _is_client(app: Application, project: Project, name: str) -> bool:
    """Whether a service ends by itself, with a command of its own: it asks a database, say."""
    service = project["services"][name]
    ends = name in layers.once(app, project) or name in app.migrate
    return ends and bool(service.get("command") or service.get("entrypoint"))


def _said(stores: Sequence[Store]) -> str:
    return " and ".join(f"{store} (at {store.target})" for store in stores)


def _list(words: Iterable[str]) -> str:
    """As it is written in the settings."""
    return json.dumps(list(dict.fromkeys(words)))
