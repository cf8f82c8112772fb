"""The hosts, by group; `group_data/<group>.py` has the settings of a group."""

from pathlib import Path

# The target of `make demo`: a container on this machine. Write your own server in its place:
#     servers = ["203.0.113.10"]
KEYS = Path(__file__).parent / ".target"
servers = [
    (
        "demo",
        {
            "ssh_hostname": "127.0.0.1",
            "ssh_port": 2222,
            "ssh_user": "root",
            "ssh_key": str(KEYS / "id_ed25519"),
            "ssh_known_hosts_file": str(KEYS / "known_hosts"),
        },
    )
]
