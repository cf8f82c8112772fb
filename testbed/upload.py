"""Upload the sources of the applications as tasks/app.py does, and release nothing."""

from pyinfra import host

from terrafirma.app.description import description, refuse_further_files, source_in
from terrafirma.app.preflight import refuse_project
from terrafirma.app.selection import refuse_unreadable, selection
from terrafirma.app.source import upload_source
from terrafirma.host import program
from terrafirma.host.files import put
from terrafirma.site import site

server = site(host.inventory)[host.name]
put(name="Install the command terrafirma", entries=[*program.entries()])
for app in server.apps:
    refuse_unreadable(host, app)
    refuse_further_files(host, app, server.users)
    described = description(app, server.users)
    refuse_project(host, app, described)
    upload_source(
        name=f"Upload the source of {app.name}",
        directory=app.source_directory,
        selection=selection(app),
        dest=source_in(described),
    )
