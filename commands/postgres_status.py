"""Show how PostgreSQL is doing, alarms first; changes nothing. Not a part of `deploy.py`."""

from pyinfra import host, state
from pyinfra.api.output import echo, format_text

from terrafirma.postgres.status import refusal, report
from terrafirma.postgres.status_facts import SECONDS, PostgresStatus
from terrafirma.postgres.version import postgres_version
from terrafirma.site import begin

server, machine = begin(host)
version = postgres_version(host, server.postgres, machine)
status = host.get_fact(PostgresStatus, version=version, _timeout=2 * SECONDS)

# If the fact itself failed, pyinfra has printed why.
if host not in state.failed_hosts:
    if nothing := refusal(version, status):
        host.log_styled(f"{host.name}: {nothing}", fg="red", bold=True)
        # This sets the exit code. An exception would end the run before the other hosts' reports.
        state.failed_hosts.add(host)
    else:
        text = "\n".join(
            format_text(line, fg="red", bold=True) if line.startswith("  !") else line
            for line in report(host.name, version, status).splitlines()
        )
        # One call for the whole text, so that the tables of two hosts do not mix.
        echo(f"\n{text}\n", err=True)
