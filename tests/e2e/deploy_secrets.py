"""The deploy that app/test_secrets.py applies: only the secrets of each application."""

from pyinfra import host

from terrafirma.app.given import private, secrets
from terrafirma.app.operations import app_secrets
from terrafirma.host import program
from terrafirma.host.files import Directory, put
from terrafirma.paths import SECRETS
from terrafirma.site import begin

server, _ = begin(host)

put(
    name="Prepare the host",
    entries=[Directory(SECRETS, "700"), *program.entries()],
)

for app in host.loop(server.apps):
    app_secrets(
        name=f"Give {app.name} its secrets",
        directory=app.secrets_directory,
        secrets=list(app.secrets),
        given=secrets(host, app),
        user=app.user,
        private=private(host, app),
    )
