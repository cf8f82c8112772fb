"""The whole platform, in order: `pyinfra inventory.py deploy.py`."""

from pyinfra import local

for task in (
    *("preflight", "apt", "users", "sshd", "docker", "postgres", "pgbouncer"),
    *("caddy", "app", "borg", "updates"),
):
    local.include(f"tasks/{task}.py")
