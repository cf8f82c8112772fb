"""How PostgreSQL is doing is shown, what is alarming first; nothing changes. Not in `deploy.py`."""

from pyinfra import host, state
from pyinfra.api.output import echo, format_text

from terrafirma.postgres.status import refusal, report
from terrafirma.postgres.status_facts import SECONDS, PostgresStatus
from terrafirma.postgres.version import postgres_version
from terrafirma.site import begin

server, machine = begin(host)
version = postgres_version(host, server.postgres, machine)
status = host.get_fact(PostgresStatus, version=version, _timeout=2 * SECONDS)

# Where the fact itself failed, pyinfra has said why.
if host not in state.failed_hosts:
    if nothing := refusal(version, status):
        host.log_styled(f"{host.name}: {nothing}", fg="red", bold=True)
        # The exit code. An exception would keep back what the other hosts have to say.
        state.failed_hosts.add(host)
    else:
        text = "\n".join(
            format_text(line, fg="red", bold=True) if line.startswith("  !") else line
            for line in report(host.name, version, status).splitlines()
        )
        # At once, so that the tables of two hosts do not mix.
        echo(f"\n{text}\n", err=True)
