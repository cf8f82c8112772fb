"""
What the design promises about speed, measured side by side in one run; `make bench` prints it.

Nothing here is a test: figures from one machine compare with each other, and with nothing else.
"""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from http.client import HTTPSConnection
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEY, KNOWN_HOSTS = ".target/id_ed25519", ".target/known_hosts"
TASKS = (
    *("preflight", "apt", "users", "sshd", "docker", "postgres", "pgbouncer"),
    *("app", "caddy", "borg"),
)
FLOOR, OURS = ("tf-bench-floor", 2421, 8421), ("tf-bench-ours", 2422, 8422)


def run(*command: str, stdin: bytes = b"") -> str:
    result = subprocess.run(command, cwd=ROOT, input=stdin, capture_output=True, check=False)
    if result.returncode != 0:
        sys.exit(f"bench: {' '.join(command)[:200]}\n{result.stderr.decode()[-2000:]}")
    return (result.stdout + result.stderr).decode()


def timed(action: Callable[[], object]) -> float:
    started = time.monotonic()
    action()
    return time.monotonic() - started


def ssh(port: int, command: str, stdin: bytes = b"") -> str:
    return run(
        "ssh", "-F", "/dev/null", "-i", KEY, "-o", f"UserKnownHostsFile={KNOWN_HOSTS}",
        "-o", "BatchMode=yes", "-p", str(port), "root@127.0.0.1", command, stdin=stdin,
    )  # fmt: skip


def pyinfra(port: int, *arguments: str) -> str:
    return run(
        sys.executable, "-m", "pyinfra", "--user", "root", "--key", KEY, "--port", str(port),
        "--data", f"ssh_known_hosts_file={KNOWN_HOSTS}", "127.0.0.1", *arguments,
    )  # fmt: skip


def serves(port: int) -> None:
    """Until the first 200 over HTTPS: only then a server is one."""
    context = ssl.create_default_context()
    # The promise here is speed; tests/e2e verifies the certificate.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    for _ in range(300):
        try:
            connection = HTTPSConnection("127.0.0.1", port, timeout=2, context=context)
            # The name that Caddy serves, over the port that this machine publishes.
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


def main() -> None:
    with ExitStack() as stack:
        for name, port, https in (FLOOR, OURS):
            run("testbed/untarget.sh", name)
            stack.callback(run, "testbed/untarget.sh", name)
            run("testbed/target.sh", name, str(port), "debian13", str(https))
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


if __name__ == "__main__":
    main()
