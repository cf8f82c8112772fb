"""
The keys of Docker's daemon.json: those that may be set, and why others may not.

tasks/docker.py sets the keys that the platform rests on: containers outlive the engine, kernel
rules forward their ports, and containers reach PostgreSQL at one address. A key that breaks this
could let a run succeed and yet leave the engine down, or the sites dead after the next boot. The
types are checked here, because a host without Docker cannot check them yet.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from ipaddress import IPv6Network, ip_address, ip_network
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    TypeAdapter,
    ValidationError,
)

Version = tuple[int, int]


def _like(pattern: str, example: str) -> AfterValidator:
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"{text!r} is not like {example}")
        return text

    return AfterValidator(check)


def _address(text: str) -> str:
    try:
        ip_address(text)
    except ValueError:
        raise ValueError(f"{text!r} is no IP address, like 192.0.2.53") from None
    return text


def _ipv6_subnet(text: str) -> str:
    try:
        IPv6Network(text)
    except ValueError:
        raise ValueError(f"{text!r} is no IPv6 network, like fd00:1::/64") from None
    return text


def _host(text: str) -> bool:
    name, _, port = text.rpartition(":") if re.search(r":\d+$", text) else (text, "", "")
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        label = r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)"
        if not re.fullmatch(rf"{label}(\.{label})*", name):
            return False
    return not port or 0 < int(port) < 65536


def _registry(text: str) -> str:
    if "@" in text:
        raise ValueError("Docker takes no login there")
    try:
        ip_network(text)
    except ValueError:
        if not _host(text):
            raise ValueError(
                f"{text!r} is neither a host, like registry.example.com:5000, nor a network"
            ) from None
    return text


def _url(text: str) -> str:
    try:
        url = urlsplit(text)
        good = url.scheme in ("http", "https") and _host(url.netloc)
    except ValueError:
        good = False
    if not good or re.search(r"\s", text):
        raise ValueError(f"{text!r} is no address like https://mirror.example.com")
    return text


def _proxy(text: str) -> str:
    if "@" in text:
        raise ValueError(
            "every account on the host could read a login there: put it into a drop-in of "
            "docker.service that only root can read (Environment=HTTPS_PROXY=…)"
        )
    return _url(text)


def _mirror(text: str) -> str:
    if "@" in text:
        raise ValueError("Docker takes no login at a mirror")
    url = urlsplit(_url(text))
    if url.query or url.fragment:
        raise ValueError(f"{text!r} has more than a host and a path")
    return text


def _at_home(text: str) -> str:
    address, _, port = text.rpartition(":")
    try:
        home = ip_address(address.strip("[]")).is_loopback and 0 < int(port) < 65536
    except ValueError:
        home = False
    if not home:
        raise ValueError(
            f"{text!r} is not like 127.0.0.1:9323: at another address, anyone could read it; "
            "reach it over SSH (ssh -L)"
        )
    return text


def _namespace(text: str) -> str:
    _address(text)
    if ip_address(text).is_loopback:
        raise ValueError(f"{text} means, in a container, the container itself")
    return text


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Ulimit(_Closed):
    Name: StrictStr
    Hard: StrictInt = Field(ge=-1)
    Soft: StrictInt = Field(ge=-1)


class Proxies(_Closed):
    http: Annotated[StrictStr, AfterValidator(_proxy)] = Field("", alias="http-proxy")
    https: Annotated[StrictStr, AfterValidator(_proxy)] = Field("", alias="https-proxy")
    no: StrictStr = Field("", alias="no-proxy")


class Runtime(_Closed):
    path: Annotated[StrictStr, Field(pattern="^/")] = "/"
    runtimeArgs: list[StrictStr] = []
    runtimeType: StrictStr = ""
    options: dict[str, Any] = {}


_RESOURCES = frozenset(
    "core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending "
    "stack".split()
)


def _ulimits(limits: dict[str, Ulimit]) -> dict[str, Ulimit]:
    for name, limit in limits.items():
        if name not in _RESOURCES or limit.Name != name:
            raise ValueError(
                f"{name!r} is none of {', '.join(sorted(_RESOURCES))}, or differs from its Name"
            )
        if limit.Hard != -1 and not -1 < limit.Soft <= limit.Hard:
            raise ValueError(f"{name}: Soft is above Hard")
    return limits


_Size = Annotated[StrictStr, _like(r"(?i)[1-9][0-9]*([kmgt]i?b?|b)?", "64m")]
_Path = Annotated[StrictStr, _like(r"/[^\x00-\x1f]*", "/etc/docker/seccomp.json")]
_Profile = Annotated[StrictStr, _like(r"builtin|/[^\x00-\x1f]*", "/etc/docker/seccomp.json")]
_Word = Annotated[StrictStr, _like(r"[A-Za-z0-9_.-]+", "crun")]
_Name = Annotated[StrictStr, _like(r"(?!runc$|io\.)[a-z0-9][a-z0-9_.-]*", "crun")]
_Option = Annotated[StrictStr, _like(r"[a-z0-9-]+(:[0-9]+)?", "ndots:1")]
_Domain = Annotated[StrictStr, _like(r"\.|[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", "example.com")]
_Api = Annotated[StrictStr, _like(r"1\.[0-9]{2}", "1.24")]
_Addresses = list[Annotated[StrictStr, AfterValidator(_namespace)]]
_Mtu = Annotated[StrictInt, Field(ge=576, le=65535)]
_Count = Annotated[StrictInt, Field(ge=1, le=1000)]

# The type of each key, and the first version of Docker that knows it; (19, 3) is the oldest here.
ALLOWED: Mapping[str, tuple[Any, Version]] = {
    "builder": (dict[Literal["gc", "entitlements"], dict[str, Any]], (19, 3)),
    "cdi-spec-dirs": (list[_Path], (25, 0)),
    "debug": (StrictBool, (19, 3)),
    "default-cgroupns-mode": (Literal["private", "host"], (20, 10)),
    "default-ipc-mode": (Literal["private", "shareable"], (19, 3)),
    "default-runtime": (_Word, (19, 3)),
    "default-shm-size": (_Size, (19, 3)),
    "default-ulimits": (
        Annotated[dict[str, Ulimit], AfterValidator(_ulimits)],
        (19, 3),
    ),
    "dns": (_Addresses, (19, 3)),
    "dns-opts": (list[_Option], (19, 3)),
    "dns-search": (list[_Domain], (19, 3)),
    "experimental": (StrictBool, (19, 3)),
    "features": (dict[Literal["buildkit", "cdi"], StrictBool], (19, 3)),
    "fixed-cidr-v6": (Annotated[StrictStr, AfterValidator(_ipv6_subnet)], (19, 3)),
    "init": (StrictBool, (19, 3)),
    "insecure-registries": (list[Annotated[StrictStr, AfterValidator(_registry)]], (19, 3)),
    "ipv6": (StrictBool, (19, 3)),
    "log-format": (Literal["text", "json"], (25, 0)),
    "log-level": (Literal["debug", "info", "warn", "error", "fatal"], (19, 3)),
    "max-concurrent-downloads": (_Count, (19, 3)),
    "max-concurrent-uploads": (_Count, (19, 3)),
    "max-download-attempts": (_Count, (20, 10)),
    "metrics-addr": (Annotated[StrictStr, AfterValidator(_at_home)], (19, 3)),
    "min-api-version": (_Api, (29, 0)),
    "mtu": (_Mtu, (19, 3)),
    "network-control-plane-mtu": (_Mtu, (19, 3)),
    "no-new-privileges": (StrictBool, (19, 3)),
    "proxies": (Proxies, (23, 0)),
    "registry-mirrors": (list[Annotated[StrictStr, AfterValidator(_mirror)]], (19, 3)),
    "runtimes": (
        dict[_Name, Runtime],
        (19, 3),
    ),
    "seccomp-profile": (_Profile, (19, 3)),
    "shutdown-timeout": (Annotated[StrictInt, Field(ge=1, le=600)], (19, 3)),
}

_SSH = "reach the engine over SSH instead: docker -H ssh://root@SERVER"
_RULES = "clients reach the sites, and containers the internet, through the rules that Docker makes"
_DOCKER0 = (
    "PostgreSQL listens on docker0's address; docker0 has the first free subnet of "
    "docker_address_pool, and keeps it (to move it: change `bip` in /etc/docker/daemon.json on the "
    "host, run, and reboot)"
)
_GATEWAY = "containers reach the internet through the host, and Docker gives each network a gateway"
_STORE = (
    "all existing images, containers and volumes would be out of sight; to have them on another "
    "disk, mount the disk at /var/lib/docker before the first run"
)
_UNIT = "systemd and the commands of this platform look for it where the unit says"
_SWARM = (
    "swarm does not work with live-restore, which lets containers outlive the engine; here, each "
    "host is a platform of its own"
)
_LOGS = "logs of containers are bounded: set docker_log_max_size and docker_log_max_files"
_TLS = f"it only has an effect with `hosts`; {_SSH}"
_GONE = "Docker has dropped this key, and would not start with it"
_PRIVILEGES = (
    "set `user` of the application, or `user` in the compose file: containers run as that account"
)
_LIMITS = "set `memory_mb` and `cpus` of the application, or limits in the compose file"
_EXPOSED = "every container's ports would be open to anyone who can send packets to the host"
_CGROUPS = "systemd manages the control groups here, and must go on to do so"

# The reason for each key, and another way to the same end.
REFUSED: Mapping[str, str] = {
    "allow-direct-routing": f"{_EXPOSED}; let Caddy serve them (apps)",
    "allow-nondistributable-artifacts": _GONE,
    "api-cors-header": _GONE,
    "authorization-plugins": f"an engine whose plug-in is down does nothing at all; {_SSH}, and "
    "grant accounts commands with `sudo` in users_accounts",
    "bip": _DOCKER0,
    "bip6": "set ipv6 and fixed-cidr-v6: docker0 gets the first address of that subnet",
    "bridge": f"with another bridge there is no docker0: {_DOCKER0}",
    "bridge-accept-fwmark": f"{_RULES}: put rules of your own into the chain DOCKER-USER",
    "cgroup-parent": f"{_CGROUPS}; {_LIMITS}",
    "cluster-advertise": _GONE,
    "cluster-store": _GONE,
    "cluster-store-opts": _GONE,
    "config-file": "it is a flag, and this is the file",
    "containerd": f"{_UNIT}: it is containerd.service of the package",
    "containerd-namespace": f"the engine would lose sight of running containers: {_UNIT}",
    "containerd-plugins-namespace": f"the engine would lose sight of running plug-ins: {_UNIT}",
    "cpu-rt-period": f"no kernel of Debian or Ubuntu supports it; {_LIMITS}",
    "cpu-rt-runtime": f"no kernel of Debian or Ubuntu supports it; {_LIMITS}",
    "data-root": _STORE,
    "default-address-pools": "set docker_address_pool and docker_subnet_size",
    "default-gateway": _GATEWAY,
    "default-gateway-v6": _GATEWAY,
    "default-network-opts": "networks would get rules other than those that runs check; give "
    "options to a single network in a compose file (driver_opts), and the MTU with `mtu`",
    "deprecated-key-path": _GONE,
    "disable-legacy-registry": _GONE,
    "exec-opts": f"{_CGROUPS} (native.cgroupdriver); the other options are for Windows only",
    "exec-root": f"the engine would lose sight of running containers: {_UNIT}",
    "firewall-backend": f"{_RULES}; runs check the iptables rules, and keep them over a restart; "
    "put rules of your own into the chain DOCKER-USER",
    "fixed-cidr": f"docker0's containers use its whole subnet: {_DOCKER0}",
    "graph": _GONE,
    "group": "the group of Docker's socket is root by another name, so it has no members; grant "
    "accounts commands with `sudo` in users_accounts",
    "host-gateway-ip": "host.docker.internal is docker0's address, where PostgreSQL listens",
    "host-gateway-ips": "host.docker.internal is docker0's address, where PostgreSQL listens",
    "hosts": "the unit sets where the engine listens (-H fd://), and the engine does not start "
    f"with both; anyone who reaches a port of the engine is root; {_SSH}",
    "http-proxy": "write it as {'proxies': {'http-proxy': …}}",
    "https-proxy": "write it as {'proxies': {'https-proxy': …}}",
    "icc": "replicas, workers and their services would not reach each other; put services that "
    "must not meet into networks of their own (compose file, docker_networks)",
    "init-path": "only the package's init is installed: set `init` to switch it on",
    "ip": "it is the address of published ports that name none, and this platform publishes all "
    "its ports at 127.0.0.1; name the address together with the port",
    "ip-forward": f"{_RULES}: the host has to forward; against other traffic, put rules of your "
    "own into the chain DOCKER-USER",
    "ip-forward-no-drop": "the host would forward packets for anyone; allow what you need in the "
    "chain DOCKER-USER",
    "ip-masq": f"containers would have no way out: {_RULES}; for one network, set the option "
    "com.docker.network.bridge.enable_ip_masquerade in the compose file",
    "ip6tables": "IPv6 of containers would be open, or without a way out; Docker chooses the right "
    "value for its version",
    "iptables": f"{_RULES}; put rules of your own into the chain DOCKER-USER",
    "labels": "labels is derived; it cannot be set here: a label marks the file as ours; give "
    "labels to containers (compose file)",
    "live-restore": "it lets containers outlive the engine; to stop an application, use `docker` "
    "by hand",
    "log-driver": f"{_LOGS}; to ship logs, read them from `docker logs`",
    "log-opts": _LOGS,
    "no-proxy": "write it as {'proxies': {'no-proxy': …}}",
    "node-generic-resources": _SWARM,
    "nri-opts": "a plug-in would change containers as they start, after releases have checked them",
    "oom-score-adjust": "Docker has dropped this key; set OOMScoreAdjust= in a drop-in of "
    "docker.service",
    "pidfile": _UNIT,
    "raw-logs": "set log-format to json, or leave the journal as it is",
    "rootless": "ports and addresses of containers would be in another network namespace; "
    + _PRIVILEGES,
    "selinux-enabled": "the kernels of Debian and Ubuntu use AppArmor, which confines containers; "
    "leave that as it is",
    "storage-driver": _STORE,
    "storage-opts": f"{_STORE}; Docker refuses to start when they do not fit the driver",
    "swarm-default-advertise-addr": _SWARM,
    "tls": _TLS,
    "tlscacert": _TLS,
    "tlscert": _TLS,
    "tlskey": _TLS,
    "tlsverify": _TLS,
    "trust-key-path": _GONE,
    "userland-proxy": "a proxy dies with the engine, and its connections with it; here, rules of "
    "the kernel forward the ports: they are faster, and runs check them",
    "userland-proxy-path": "there are no proxies here: rules of the kernel forward the ports",
    "userns-remap": "all existing images, containers and volumes would be out of sight, and files "
    f"in volumes would belong to another account; {_PRIVILEGES}",
}


def refuse(daemon: Mapping[str, Any]) -> Iterator[str]:
    """A message for each wrong key or value, whatever the version of the engine."""
    for key, value in daemon.items():
        if key in REFUSED:
            yield f"{key} cannot be set: {REFUSED[key]}"
        elif key not in ALLOWED:
            close = get_close_matches(key, ALLOWED, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(ALLOWED)}"
            yield f"Docker has no key {key}, {hint}"
        else:
            yield from _value(key, value)
    if "containerd-snapshotter" in str(daemon.get("features")):
        yield f"features.containerd-snapshotter cannot be set: {_STORE}"
    if daemon.get("ipv6") is False and "fixed-cidr-v6" in daemon:
        yield "fixed-cidr-v6 only has an effect with ipv6: set ipv6 to true, or leave both out"
    runtime = daemon.get("default-runtime", "runc")
    runtimes = daemon.get("runtimes", {})
    if isinstance(runtimes, Mapping) and runtime not in {
        "runc",
        "io.containerd.runc.v2",
        *runtimes,
    }:
        yield f"default-runtime: {runtime!r} is none of runtimes: describe it there"


def _value(key: str, value: Any) -> Iterator[str]:
    try:
        TypeAdapter(ALLOWED[key][0]).validate_python(value)
    except ValidationError as error:
        for one in error.errors():
            where = ".".join(str(part) for part in one["loc"] if part != "[key]")
            said = one["msg"].removeprefix("Value error, ")
            # A nested value is not repeated, because it may contain a password.
            short = not one["loc"] and re.fullmatch(r"[\w.:-]{1,40}", str(value))
            given = f", not {value!r}" if short and repr(value) not in said else ""
            yield f"{key}{where and '.' + where}: {said}{given}"


def unknown(daemon: Mapping[str, Any], version: Version) -> Iterator[str]:
    """A message for each key that an engine of this version does not know, and refuses."""
    for key in daemon:
        since = ALLOWED[key][1]
        if since > version:
            yield (
                f"{key} is known to Docker {since[0]}.{since[1]} and newer; the host's has "
                f"{version[0]}.{version[1]}"
            )


def runtime_paths(daemon: Mapping[str, Any]) -> list[str]:
    """Paths of the programs on the host that start containers."""
    return [one["path"] for one in daemon.get("runtimes", {}).values() if "path" in one]


def is_json(lines: Sequence[str] | None) -> bool:
    """Whether the lines of a file are a JSON object."""
    try:
        return isinstance(json.loads("\n".join(lines or [])), dict)
    except ValueError:
        return False
