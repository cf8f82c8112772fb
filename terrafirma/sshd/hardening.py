"""What sshd is told beyond who may log in; the same values are written and compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from terrafirma.host.files import Absent, File
from terrafirma.paths import SSHD_SOCKET
from terrafirma.sshd.facts import LoginsState
from terrafirma.sshd.logins import places

Version = tuple[int, int]

# The first ones resist quantum computers. pyinfra's own client (paramiko) speaks none of these, so
# the classic X25519 stays.
_EXCHANGES: tuple[tuple[str, Version], ...] = (
    ("mlkem768x25519-sha256", (9, 9)),
    ("sntrup761x25519-sha512", (9, 9)),
    ("sntrup761x25519-sha512@openssh.com", (8, 5)),
    ("curve25519-sha256", (7, 4)),
    ("curve25519-sha256@libssh.org", (6, 5)),
)
_CIPHERS = (
    "aes256-gcm@openssh.com", "aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com",
    "aes256-ctr", "aes192-ctr", "aes128-ctr",
)  # fmt: skip
_MACS = (
    "hmac-sha2-512-etm@openssh.com", "hmac-sha2-256-etm@openssh.com", "umac-128-etm@openssh.com",
)  # fmt: skip
_RSA_BITS = 3072
# By the version of sshd that knows the keyword first; Debian and Ubuntu build with Kerberos.
_REST: tuple[tuple[str, str, Version], ...] = (
    ("StrictModes", "yes", (0, 0)),
    ("LoginGraceTime", "30", (0, 0)),
    ("MaxSessions", "10", (0, 0)),
    ("MaxStartups", "10:30:60", (0, 0)),
    ("PerSourcePenalties", "yes", (9, 8)),
    ("RequiredRSASize", "2048", (9, 1)),
    ("ClientAliveInterval", "300", (0, 0)),
    ("ClientAliveCountMax", "3", (0, 0)),
    ("TCPKeepAlive", "no", (0, 0)),
    ("Compression", "no", (0, 0)),
    ("UseDNS", "no", (0, 0)),
    ("SyslogFacility", "AUTH", (0, 0)),
    ("LogLevel", "VERBOSE", (0, 0)),
    ("IgnoreRhosts", "yes", (0, 0)),
    ("IgnoreUserKnownHosts", "yes", (0, 0)),
    ("KerberosOrLocalPasswd", "no", (0, 0)),
    ("KerberosTicketCleanup", "yes", (0, 0)),
    ("GSSAPICleanupCredentials", "yes", (0, 0)),
    ("PermitUserEnvironment", "no", (0, 0)),
    ("PermitUserRC", "no", (0, 0)),
    ("PermitTunnel", "no", (0, 0)),
    ("GatewayPorts", "no", (0, 0)),
    ("AllowTcpForwarding", "no", (0, 0)),
    ("AllowStreamLocalForwarding", "no", (0, 0)),
    ("AllowAgentForwarding", "no", (0, 0)),
    ("X11Forwarding", "no", (0, 0)),
    ("X11UseLocalhost", "yes", (0, 0)),
    ("PrintMotd", "no", (0, 0)),
    ("PrintLastLog", "no", (0, 0)),
    ("Banner", "none", (0, 0)),
    ("DebianBanner", "no", (0, 0)),
)
# What `sshd -T` prints in another form than it reads.
_UNSHOWN = frozenset({"persourcepenalties"})


def hardening(
    version: Version, host_keys: Mapping[str, int], max_auth_tries: int
) -> dict[str, str]:
    """
    Keywords of sshd of this version, and their values.

    + version: of OpenSSH; (0, 0) where it is not installed yet
    + host_keys: the kinds of keys that the host has, and the bits of each
    """
    known = version if version > (0, 0) else (8, 9)
    algorithms = _host_key_algorithms(host_keys)
    return {
        "KexAlgorithms": ",".join(name for name, since in _EXCHANGES if since <= known),
        "Ciphers": ",".join(_CIPHERS),
        "MACs": ",".join(_MACS),
        **({"HostKeyAlgorithms": ",".join(algorithms)} if algorithms else {}),
        "MaxAuthTries": str(max_auth_tries),
        **{keyword: value for keyword, value, since in _REST if since <= known},
    }


def _host_key_algorithms(host_keys: Mapping[str, int]) -> Sequence[str]:
    """A client that knows the host by an older kind of key has to learn one of these."""
    modern = "ED25519" in host_keys
    found = ["ssh-ed25519"] if modern else []
    # A short key is better than none.
    if host_keys.get("RSA", 0) >= (_RSA_BITS if modern else 1):
        found += ["rsa-sha2-512", "rsa-sha2-256"]
    return found


def forwarding(forwards: Sequence[str]) -> dict[str, str]:
    """The keywords with which an account reaches these addresses through the host."""
    return {"AllowTcpForwarding": "local", "PermitOpen": " ".join(forwards)} if forwards else {}


def listening(ports: Sequence[int]) -> File | Absent:
    """The file with which systemd listens on `ports` for sshd, where it does."""
    if not ports:
        return Absent(SSHD_SOCKET)
    lines = [f"ListenStream={address}:{port}" for port in ports for address in ("0.0.0.0", "[::]")]
    text = ["# Managed by Terrafirma: tasks/sshd.py", "[Socket]", "ListenStream=", *lines]
    return File(SSHD_SOCKET, "\n".join([*text, "BindIPv6Only=ipv6-only", ""]))


def softer(
    known: LoginsState, hard: Mapping[str, str], accounts: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """
    Where other files of sshd keep the values of `hard` from one of `accounts`.

    + accounts: the addresses to which each may forward
    """
    said = set()
    for name, forwards in accounts.items():
        rules = known["logins"][name]["rules"] if name in known["logins"] else {}
        for keyword, value in {**hard, **forwarding(forwards)}.items():
            word = keyword.lower()
            now = " ".join(rules.get(word, [value]))
            if word not in _UNSHOWN and now.lower() != value.lower() and (word, now) not in said:
                said.add((word, now))
                yield (
                    f"sshd would treat {name} otherwise than declared: {word} {now}"
                    f"{places(word, of=known)}"
                )
