"""Which keys of daemon.json may be set, which values they take, and why others are refused."""

from typing import Any

import pytest

from terrafirma.docker import daemon
from terrafirma.docker.daemon import ALLOWED, REFUSED
from terrafirma.docker.settings import Docker
from terrafirma.settings import Refused
from tests.unit.settings import of

# A valid value of each key; Docker 26.1 started with those that it knows.
GOOD: dict[str, Any] = {
    "builder": {"gc": {"enabled": True, "defaultKeepStorage": "10GB"}},
    "cdi-spec-dirs": ["/etc/cdi"],
    "debug": True,
    "default-cgroupns-mode": "private",
    "default-ipc-mode": "shareable",
    "default-runtime": "runc",
    "default-shm-size": "64M",
    "default-ulimits": {"nofile": {"Name": "nofile", "Hard": 64000, "Soft": 1024}},
    "dns": ["192.0.2.53", "2001:db8::53"],
    "dns-opts": ["ndots:1", "rotate"],
    "dns-search": ["example.com", "."],
    "experimental": True,
    "features": {"buildkit": True, "cdi": True},
    "fixed-cidr-v6": "fd00:1::/64",
    "init": True,
    "insecure-registries": ["registry.example.com:5000", "10.1.0.0/16", "[2001:db8::1]:5000"],
    "ipv6": True,
    "log-format": "json",
    "log-level": "warn",
    "max-concurrent-downloads": 3,
    "max-concurrent-uploads": 3,
    "max-download-attempts": 3,
    "metrics-addr": "127.0.0.1:9323",
    "min-api-version": "1.24",
    "mtu": 1400,
    "network-control-plane-mtu": 1400,
    "no-new-privileges": True,
    "proxies": {"http-proxy": "http://proxy.example.com:3128", "no-proxy": "localhost,.test"},
    "registry-mirrors": ["https://mirror.example.com", "http://192.0.2.7:5000/path"],
    "runtimes": {"crun": {"path": "/usr/bin/crun", "runtimeArgs": ["--debug"]}},
    "seccomp-profile": "builtin",
    "shutdown-timeout": 15,
}


@pytest.mark.parametrize("key", ALLOWED)
def test_a_value_that_an_engine_takes(key: str) -> None:
    assert list(daemon.refuse({key: GOOD[key]})) == []
    assert of(Docker, docker_daemon={key: GOOD[key]}).daemon == {key: GOOD[key]}


def test_several_of_them_together() -> None:
    assert list(daemon.refuse(GOOD | {"default-runtime": "crun"})) == []


# For each refused key: words of the reason, and of the other way to the same end.
REASONS: dict[str, tuple[str, str]] = {
    "allow-direct-routing": ("open to anyone", "let Caddy serve them (apps)"),
    "authorization-plugins": ("does nothing at all", "users_accounts"),
    "bip": ("PostgreSQL listens on docker0", "docker_address_pool"),
    "bip6": ("docker0", "fixed-cidr-v6"),
    "bridge": ("no docker0", "docker_address_pool"),
    "bridge-accept-fwmark": ("rules", "DOCKER-USER"),
    "cgroup-parent": ("systemd", "`memory_mb`"),
    "containerd": ("the unit", "containerd.service"),
    "containerd-namespace": ("lose sight of", "the unit"),
    "containerd-plugins-namespace": ("lose sight of", "the unit"),
    "cpu-rt-period": ("no kernel", "`cpus` of the application"),
    "cpu-rt-runtime": ("no kernel", "`cpus` of the application"),
    "data-root": ("out of sight", "/var/lib/docker"),
    "default-address-pools": ("docker_address_pool", "docker_subnet_size"),
    "default-gateway": ("through the host", "gateway"),
    "default-gateway-v6": ("through the host", "gateway"),
    "default-network-opts": ("rules other than", "driver_opts"),
    "exec-opts": ("native.cgroupdriver", "systemd manages"),
    "exec-root": ("lose sight of", "the unit"),
    "firewall-backend": ("iptables", "DOCKER-USER"),
    "fixed-cidr": ("whole subnet", "docker_address_pool"),
    "group": ("root by another name", "users_accounts"),
    "host-gateway-ip": ("docker0", "PostgreSQL"),
    "host-gateway-ips": ("docker0", "PostgreSQL"),
    "hosts": ("-H fd://", "docker -H ssh://"),
    "http-proxy": ("proxies", "http-proxy"),
    "https-proxy": ("proxies", "https-proxy"),
    "icc": ("not reach each other", "docker_networks"),
    "init-path": ("package", "`init`"),
    "ip": ("127.0.0.1", "name the address"),
    "ip-forward": ("forward", "DOCKER-USER"),
    "ip-forward-no-drop": ("for anyone", "DOCKER-USER"),
    "ip-masq": ("no way out", "enable_ip_masquerade"),
    "ip6tables": ("IPv6", "version"),
    "iptables": ("rules that Docker makes", "DOCKER-USER"),
    "labels": ("marks the file", "compose file"),
    "live-restore": ("outlive", "by hand"),
    "log-driver": ("docker_log_max_size", "docker logs"),
    "log-opts": ("bounded", "docker_log_max_files"),
    "no-proxy": ("proxies", "no-proxy"),
    "node-generic-resources": ("swarm", "live-restore"),
    "nri-opts": ("plug-in", "containers"),
    "oom-score-adjust": ("dropped this key", "OOMScoreAdjust"),
    "pidfile": ("systemd", "the unit"),
    "raw-logs": ("log-format", "journal"),
    "rootless": ("namespace", "`user` of the application"),
    "selinux-enabled": ("AppArmor", "leave that"),
    "storage-driver": ("out of sight", "/var/lib/docker"),
    "storage-opts": ("out of sight", "/var/lib/docker"),
    "swarm-default-advertise-addr": ("swarm", "live-restore"),
    "tls": ("`hosts`", "ssh://"),
    "tlscacert": ("`hosts`", "ssh://"),
    "tlscert": ("`hosts`", "ssh://"),
    "tlskey": ("`hosts`", "ssh://"),
    "tlsverify": ("`hosts`", "ssh://"),
    "userland-proxy": ("dies with the engine", "rules of the kernel"),
    "userland-proxy-path": ("no proxies", "rules of the kernel"),
    "userns-remap": ("out of sight", "`user` of the application"),
    **dict.fromkeys(
        (
            "allow-nondistributable-artifacts", "api-cors-header", "cluster-advertise",
            "cluster-store", "cluster-store-opts", "deprecated-key-path",
            "disable-legacy-registry", "graph", "trust-key-path",
        ),
        ("dropped this key", "would not start"),
    ),
    "config-file": ("a flag", "this is the file"),
}  # fmt: skip


def test_no_reason_is_forgotten() -> None:
    assert REASONS.keys() == REFUSED.keys()
    assert not REFUSED.keys() & ALLOWED.keys()


def refusal(**settings: Any) -> str:
    with pytest.raises(Refused) as refused:
        of(Docker, docker_daemon=settings)
    return str(refused.value)


@pytest.mark.parametrize("key", REFUSED)
def test_a_refused_key_has_a_reason_and_another_way(key: str) -> None:
    """Its value does not matter, because the platform sets the right one."""
    reason, way = REASONS[key]
    values: tuple[Any, ...] = (True, False, "x", [], {}, None)
    for value in values:
        words = refusal(**{key: value})
        assert words.startswith(f"docker_daemon: {key} cannot be set: ")
        assert reason in words
        assert way in words
        assert "\n" not in words


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"debug": "true"}, "debug: Input should be a valid boolean"),
    ({"debug": 1}, "debug: Input should be a valid boolean"),
    ({"mtu": "1400"}, "mtu: Input should be a valid integer"),
    ({"mtu": 68}, "mtu: Input should be greater than or equal to 576"),
    ({"mtu": 1400.5}, "mtu: "),
    ({"mtu": True}, "mtu: "),
    ({"dns": "192.0.2.53"}, "dns: Input should be a valid list"),
    ({"dns": ["ns.example.com"]}, "dns.0: 'ns.example.com' is no IP address"),
    ({"dns": ["192.0.2.53:53"]}, "no IP address"),
    ({"dns": ["127.0.0.53"]}, "the container itself"),
    ({"dns": ["::1"]}, "the container itself"),
    ({"dns-opts": ["ndots 1"]}, "not like ndots:1"),
    ({"dns-search": ["exa mple"]}, "not like example.com"),
    ({"registry-mirrors": ["mirror.example.com"]}, "no address like https://"),
    ({"registry-mirrors": ["https://me:pw@mirror.example.com"]}, "takes no login"),
    ({"registry-mirrors": ["https://mirror.example.com/?a=b"]}, "more than a host and a path"),
    ({"registry-mirrors": "https://mirror.example.com"}, "valid list"),
    ({"insecure-registries": ["http://registry.example.com"]}, "neither a host"),
    ({"insecure-registries": ["registry.example.com/path"]}, "neither a host"),
    ({"insecure-registries": ["registry.example.com:99999"]}, "neither a host"),
    ({"log-level": "trace"}, "log-level: Input should be 'debug'"),
    ({"log-format": "xml"}, "log-format: "),
    ({"default-shm-size": "64 M"}, "not like 64m"),
    ({"default-shm-size": 64}, "default-shm-size: "),
    ({"default-ulimits": {"nofile": 1024}}, "default-ulimits.nofile: "),
    ({"default-ulimits": {"files": {"Name": "files", "Hard": 1, "Soft": 1}}}, "none of core"),
    (
        {"default-ulimits": {"nofile": {"Name": "nproc", "Hard": 1, "Soft": 1}}},
        "none of core",
    ),
    (
        {"default-ulimits": {"nofile": {"Name": "nofile", "Hard": 1, "Soft": 2}}},
        "Soft is above Hard",
    ),
    ({"default-ulimits": {"nofile": {"name": "nofile", "Hard": 2, "Soft": 1}}}, "Name"),
    ({"fixed-cidr-v6": "10.0.0.0/24"}, "no IPv6 network"),
    ({"fixed-cidr-v6": "fd00:1::1/64"}, "no IPv6 network"),
    ({"ipv6": False, "fixed-cidr-v6": "fd00:1::/64"}, "only has an effect with ipv6"),
    ({"metrics-addr": "0.0.0.0:9323"}, "anyone could read it"),
    ({"metrics-addr": ":9323"}, "anyone could read it"),
    ({"metrics-addr": "127.0.0.1"}, "not like 127.0.0.1:9323"),
    ({"default-runtime": "crun"}, "none of runtimes"),
    ({"runtimes": {"runc": {"path": "/usr/bin/crun"}}}, "not like crun"),
    ({"runtimes": {"crun": {"path": "crun"}}}, "runtimes.crun.path"),
    ({"runtimes": {"crun": {"binary": "/usr/bin/crun"}}}, "runtimes.crun.binary"),
    ({"seccomp-profile": "unconfined"}, "not like /etc/docker/seccomp.json"),
    ({"seccomp-profile": ""}, "not like /etc/docker/seccomp.json"),
    ({"features": {"containerd-snapshotter": True}}, "out of sight"),
    ({"features": {"buildkit": "yes"}}, "features.buildkit"),
    ({"proxies": {"http": "http://proxy"}}, "proxies.http: "),
    ({"proxies": {"http-proxy": "proxy:3128"}}, "no address like https://"),
    ({"proxies": "http://proxy:3128"}, "proxies: "),
    ({"shutdown-timeout": 0}, "shutdown-timeout: "),
    ({"max-concurrent-downloads": "3"}, "max-concurrent-downloads: "),
    ({"builder": {"gb": {}}}, "builder.gb"),
    ({"default-ipc-mode": "host"}, "default-ipc-mode: "),
    ({"cdi-spec-dirs": ["etc/cdi"]}, "cdi-spec-dirs.0: "),
    ({"init": None}, "init: "),
    ({"registry-mirror": []}, "Docker has no key registry-mirror, did you mean registry-mirrors?"),
    ({"log_level": "info"}, "did you mean log-level?"),
    # A suggestion is never a refused key.
    ({"data_root": "/srv"}, "Docker has no key data_root, there are builder, "),
    ({"containerd-snapshotter": True}, "no key containerd-snapshotter, there are builder, "),
    ({"Debug": True}, "did you mean debug?"),
    ({"xyzzy": 1}, "Docker has no key xyzzy, there are builder, "),
]


@pytest.mark.parametrize(("settings", "words"), WRONG)
def test_a_wrong_value_is_refused(settings: dict[str, Any], words: str) -> None:
    line = refusal(**settings)
    assert line.startswith("docker_daemon: ")
    assert words in line
    assert "\n" not in line


def test_a_message_has_the_value_once() -> None:
    line = refusal(**{"default-shm-size": "1.5g"})
    assert line.endswith("default-shm-size: '1.5g' is not like 64m")


def test_no_password_of_a_proxy_is_repeated() -> None:
    """A password is refused as well, because every account can read the file."""
    for settings in (
        {"proxies": {"http-proxy": "ftp://me:s3cret@proxy"}},
        {"proxies": {"https-proxy": "http://me:s3cret@proxy:3128"}},
        {"proxies": {"http": "http://me:s3cret@proxy:3128"}},
        {"proxies": "http://me:s3cret@proxy:3128/"},
        {"registry-mirrors": ["https://me:s3cret@mirror.example.com"]},
        {"http-proxy": "http://me:s3cret@proxy:3128"},
        {"insecure-registries": ["me:s3cret@registry.example.com"]},
    ):
        words = refusal(**settings)
        assert "s3cret" not in words, words


@pytest.mark.parametrize(
    ("version", "unknown"),
    [
        ((20, 10), {"proxies", "log-format", "cdi-spec-dirs", "min-api-version"}),
        ((26, 1), {"min-api-version"}),
        ((29, 0), set()),
    ],
)
def test_an_older_engine_does_not_know_newer_keys(
    version: tuple[int, int], unknown: set[str]
) -> None:
    said = list(daemon.unknown(GOOD, version))
    assert {one.partition(" ")[0] for one in said} == unknown
    assert all(f"the host's has {version[0]}.{version[1]}" in one for one in said)
