"""What test_secrets.py applies to its target: the secrets of each application, and nothing else."""

from pyinfra import host

from terrafirma import given
from terrafirma.machine import ready
from terrafirma.operations.files import Directory, put, source
from terrafirma.operations.secrets import app_secrets
from terrafirma.paths import SECRETS, SECRETS_PROGRAM
from terrafirma.settings import App

ready(host)

put(
    name="Prepare the host",
    entries=[
        Directory(SECRETS, "700"),
        source("app/app-secrets", SECRETS_PROGRAM, mode="755"),
    ],
)

for app in host.loop(App.of(host).applications):
    app_secrets(
        name=f"Give {app.name} its secrets",
        directory=app.secrets_directory,
        secrets=list(app.secrets),
        given=given.secrets(host, app),
        user=app.user,
        registry_password=given.registry_password(host, app),
    )
