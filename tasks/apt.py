"""Package sources and the packages that every host gets."""

from pyinfra import host
from pyinfra.api import DeployError

from terrafirma.host.files import put, template
from terrafirma.host.packages import packages
from terrafirma.site import begin

server, _ = begin(host)
settings = server.apt

# The vendors' repositories belong here: their keys, pinned by fingerprint, and deb822 sources.
if settings.source == "upstream":
    raise DeployError(f"{host.name}: apt_source: 'upstream' is not built yet; use 'distro'")

put(
    name="Make apt wait for its lock",
    entries=[
        template(
            "apt/60terrafirma.j2",
            "/etc/apt/apt.conf.d/60terrafirma",
            data={"wait_seconds": server.preflight.wait_seconds},
        )
    ],
)

packages(name="Install the base packages", packages=settings.packages)
