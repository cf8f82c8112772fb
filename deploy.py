"""The whole platform, in order: `pyinfra inventory.py deploy.py`."""

from pyinfra import local

# A line for each task: pyinfra tells operations apart, and orders them, by the lines that lead to
# them. In a loop, line 77 of one task would be the same operation as line 77 of another.
local.include("tasks/preflight.py")
local.include("tasks/apt.py")
local.include("tasks/users.py")
local.include("tasks/sshd.py")
local.include("tasks/docker.py")
local.include("tasks/firewall.py")
local.include("tasks/postgres.py")
local.include("tasks/pgbouncer.py")
local.include("tasks/caddy.py")
local.include("tasks/app.py")
local.include("tasks/updates.py")
local.include("tasks/borg.py")
local.include("tasks/exposure.py")
