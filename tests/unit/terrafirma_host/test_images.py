"""What an image says about its containers, and what is guessed where it says nothing."""

from dataclasses import replace
from typing import Any

import pytest
from terrafirma_host import images

from tests.unit.terrafirma_host.applications import described

APP = described()


def exposing(*ports: str, **but: Any) -> dict[str, Any]:
    return {"ExposedPorts": {port: {} for port in ports}, **but}


PORTS: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any], int, str]] = [
    # settings, service, image; the port, and why where it is a guess
    ({"container_port": 3000}, {}, exposing("80/tcp"), 3000, ""),
    ({}, {}, exposing("80/tcp"), 80, ""),
    ({}, {}, exposing("3000/tcp", "53/udp"), 3000, ""),
    ({}, {}, exposing("80/tcp", "443/tcp"), 80, "the image EXPOSEs 80 and 443"),
    ({}, {}, exposing("9000/tcp", "80/tcp"), 80, "the image EXPOSEs 80 and 9000"),
    ({}, {}, exposing("9229/tcp", "3000/tcp"), 3000, "the image EXPOSEs 3000 and 9229"),
    ({}, {}, exposing("7001/tcp", "7000/tcp"), 7000, "the image EXPOSEs 7000 and 7001"),
    ({}, {}, exposing("8080/tcp", "8000/tcp"), 8000, "the image EXPOSEs 8000 and 8080"),
    ({}, {}, exposing("53/udp"), 8000, "the image EXPOSEs none"),
    ({}, {}, {}, 8000, "the image EXPOSEs none"),
    ({}, {}, {"Env": ["PORT=4000", "X"]}, 4000, "PORT says so, and the image EXPOSEs none"),
    ({"env": {"PORT": 5000}}, {}, {"Env": ["PORT=4000"]}, 5000, "PORT says so, and the"),
    ({"env": {"PORT": "{database.port}"}}, {}, {}, 8000, "the image EXPOSEs none"),
    ({}, {}, exposing("80/tcp", "7000/tcp", Env=["PORT=7000"]), 7000, "the image EXPOSEs 80 and"),
    # The files know better than the image.
    ({}, {"ports": [{"target": 8080, "protocol": "tcp"}]}, exposing("80/tcp"), 8080, ""),
    ({}, {"ports": [{"target": 53, "protocol": "udp"}]}, exposing("80/tcp"), 80, ""),
    ({}, {"expose": ["3000"]}, exposing("80/tcp"), 3000, ""),
    ({}, {"expose": ["3000-3001/tcp"]}, {}, 3000, "the compose files name 3000 and 3001"),
    ({}, {"environment": {"PORT": "4000"}}, {}, 4000, "PORT says so"),
]


@pytest.mark.parametrize(("settings", "service", "config", "port", "why"), PORTS)
def test_the_port_of_an_application(
    settings: dict[str, Any], service: dict[str, Any], config: dict[str, Any], port: int, why: str
) -> None:
    app = replace(APP, **settings)
    found, said = images.port(app, service, config)
    assert found == port
    assert said.startswith(why) if why else not said
    lines = images.said(app, service, config)
    assert len(lines) == bool(why)
    assert images.as_built(app, service, config).container_port == port


def test_a_server_that_asks_for_its_port_is_told_a_guess() -> None:
    assert images.as_built(APP, {}, {}).env["PORT"] == "8000"
    for app, config in (
        (APP, exposing("3000/tcp")),
        (replace(APP, container_port=3000), {}),
        (replace(APP, env={"PORT": "x"}), {}),
        (replace(APP, compose=("compose.yaml",)), {}),
    ):
        assert images.as_built(app, {}, config).env == app.env


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"Entrypoint": ["/init"]}, True),
        ({"Entrypoint": ["/usr/bin/tini", "--", "/entrypoint.sh"]}, True),
        ({"Cmd": ["dumb-init", "node", "server.js"]}, True),
        ({"Entrypoint": ["/entrypoint.sh"], "Cmd": ["/init"]}, False),
        ({"Cmd": ["node", "server.js"]}, False),
        ({"Entrypoint": None, "Cmd": None}, False),
        ({}, False),
    ],
)
def test_an_init_in_the_image(config: dict[str, Any], found: bool) -> None:
    assert images.has_init(config) is found
    assert images.as_built(APP, {}, config).own_init is found
