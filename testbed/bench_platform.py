"""The whole platform: deploy.py beside a shell script of the same work."""

from __future__ import annotations

import socket
import ssl
import sys
import time
from functools import partial
from http.client import HTTPSConnection

from testbed.bench_lib import ROOT, pyinfra, run, ssh, target, timed

TASKS = ("preflight", "apt", "users", "sshd", "docker", "postgres", "pgbouncer", "caddy", "app",
         "updates", "borg")  # fmt: skip
FLOOR, OURS = ("tf-bench-floor", 2421, 8421), ("tf-bench-ours", 2422, 8422)


def serves(port: int) -> None:
    """Wait for the first 200 over HTTPS: only then the server serves."""
    context = ssl.create_default_context()
    # The promise here is speed; tests/e2e verifies the certificate.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    for _ in range(300):
        try:
            connection = HTTPSConnection("127.0.0.1", port, timeout=2, context=context)
            # Ask for the name that Caddy serves, through the port that this machine publishes.
            connection.sock = context.wrap_socket(
                socket.create_connection(("127.0.0.1", port), 2),
                server_hostname="api.terrafirma.test",
            )
            connection.request("GET", "/", headers={"Host": "api.terrafirma.test"})
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    sys.exit(f"bench: nothing serves on port {port}")


def floor() -> None:
    _, port, https = FLOOR
    api = run("tar", "-cf", "-", "-C", "examples", "api")
    ssh(port, "tar -xf - -C /root", api.encode())
    ssh(port, "sh -s", (ROOT / "testbed/floor.sh").read_bytes())
    serves(https)


def ours() -> None:
    _, port, https = OURS
    pyinfra(port, "-y", "deploy.py")
    serves(https)


def bench() -> None:
    with target(*FLOOR), target(*OURS):
        base = timed(floor)
        print(f"{'shell script, fresh host':38} {base:6.1f} s", flush=True)
        fresh = timed(ours)
        print(f"{'deploy.py, fresh host':38} {fresh:6.1f} s   {fresh / base:.2f} of the script")
        port = OURS[1]
        print(
            f"{'deploy.py, converged':38} {timed(lambda: pyinfra(port, '-y', 'deploy.py')):6.1f} s"
        )
        print(f"{'deploy.py, converged, --dry':38} "
              f"{timed(lambda: pyinfra(port, '--dry', 'deploy.py')):6.1f} s")  # fmt: skip
        commands = pyinfra(port, "-y", "-vv", "deploy.py").count(">>> ")
        print(f"{'SSH commands of a converged run':38} {commands:6}")
        for task in TASKS:
            seconds = timed(partial(pyinfra, port, "-y", f"tasks/{task}.py"))
            print(f"{f'tasks/{task}.py, converged':38} {seconds:6.1f} s", flush=True)
