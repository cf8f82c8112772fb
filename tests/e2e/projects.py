"""Compose projects that are accepted, and that are refused in one line, read by Compose itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """A compose file, its settings, and a part of the refusal; without one, it is accepted."""

    compose: str
    refused: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)  # content by path; "-> PATH": a link


WEB = "services:\n  web: {build: .}\n"


def service(text: str, more: str = "") -> str:
    """A project with another service beside `web`, which serves."""
    return f"{WEB}  {text}\n{more}"


def web(text: str, more: str = "") -> str:
    return f"services:\n  web: {{build: ., {text}}}\n{more}"


PG = "volumes: {pg: }\n"
ONCE = {"stateful": ["db"]}
TWICE = "two releases run at once: stateful = ["
WEB_TWICE = "two releases of it run at once: strategy = "

STORES = {
    "a database with a volume, undeclared": Case(
        service('db: {build: db, volumes: ["pg:/data"]}', PG),
        "stateful: db writes the volume pg (at /data), and two releases run at once: "
        'stateful = ["db"] for what runs once, or shared = ["pg"] for what several',
    ),
    "… declared": Case(service('db: {build: db, volumes: ["pg:/data"]}', PG), settings=ONCE),
    "… by a known image": Case(
        service('db: {image: "postgres:17", volumes: ["pg:/var/lib/postgresql/data"]}', PG)
    ),
    "… shared by mistake": Case(
        service('db: {image: "postgres:17", volumes: ["pg:/var/lib/postgresql/data"]}', PG),
        "shared: db writes the volume pg as postgres:17, which no second process may write",
        {"shared": ["pg"]},
    ),
    "… that runs once and is shared": Case(
        service('db: {image: "postgres:17", volumes: ["pg:/var/lib/postgresql/data"]}', PG),
        "take pg out of shared",
        {"shared": ["pg"], **ONCE},
    ),
    "a known image without a volume": Case(
        service('queue: {image: "registry.example.com/mirror/rabbitmq:4@sha256:' + "a" * 64 + '"}')
    ),
    "… of which each release may have its own": Case(
        service('queue: {image: "redis:7"}'), settings={"scratch": ["queue"]}
    ),
    "a client of a database": Case(
        service('seed: {image: "postgres:17", restart: "no", command: [psql, -c, select 1]}')
    ),
    "what prepares the volume of another, and ends before that starts": Case(
        service('db: {build: db, volumes: ["pg:/d"], depends_on: {init: {condition: '
                'service_completed_successfully}}}\n  init: {build: db, restart: "no", volumes: '
                '["pg:/d"]}', PG),
        settings={"stateful": ["db", "init"]},
    ),
    "two that run once on one volume": Case(
        service('db: {build: db, volumes: ["pg:/data"]}\n  old: {build: db, volumes: ["pg:/d"]}',
                PG),
        "shared: db writes the volume pg, and old writes there too: mount it `:ro` in one",
        {"stateful": ["db", "old"]},
    ),
    "a sidecar that writes what runs once": Case(
        service('db: {build: db, volumes: ["pg:/data"]}\n  save: {build: db, volumes: ["pg:/d"]}',
                PG),
        "shared: db writes the volume pg, and save writes there too",
        ONCE,
    ),
    "… and only reads": Case(
        service('db: {build: db, volumes: ["pg:/d"]}\n  save: {build: db, volumes: ["pg:/d:ro"]}',
                PG),
        settings=ONCE,
    ),
    "one that runs once, three times": Case(
        service('db: {build: db, deploy: {replicas: 3}, volumes: ["pg:/data"]}', PG),
        "stateful: db writes the volume pg, and runs 3 times",
        ONCE,
    ),
    "… by `scale`": Case(
        service('db: {build: db, scale: 2, volumes: ["pg:/data"]}', PG), "and runs 2 times", ONCE
    ),
    "a web service with a file of its own": Case(
        web('volumes: ["data:/data"]', "volumes: {data: }\n"),
        "shared: web writes the volume data (at /data), and two releases of it run at once: "
        'strategy = "stop-first" if only one process may write there, as with SQLite, or shared = '
        '["data"] if several processes may write there; else keep it in PostgreSQL',
    ),
    "… that several may write": Case(
        web('volumes: ["data:/data"]', "volumes: {data: }\n"), settings={"shared": ["data"]}
    ),
    "an external volume": Case(
        web('volumes: ["data:/data"]', "volumes: {data: {external: true, name: theirs}}\n"),
        WEB_TWICE,
    ),
    "a volume that is a directory": Case(
        web('volumes: ["data:/data"]', "volumes: {data: {driver_opts: {type: none, o: bind, "
            "device: /srv/data}}}\n"), WEB_TWICE
    ),
    "a volume that is an export": Case(
        service('save: {build: ., volumes: ["data:/data"]}', "volumes: {data: {driver_opts: "
                '{type: nfs, o: "addr=10.0.0.1,rw", device: ":/export"}}}\n'), TWICE
    ),
    "a directory of the host": Case(
        web('volumes: ["/srv/uploads:/uploads"]'), "web writes the directory /srv/uploads"
    ),
    "… that several may write, by its parent": Case(
        web('volumes: ["/srv/uploads:/uploads"]'), settings={"shared": ["/srv"]}
    ),
    "long words for a volume": Case(
        web("volumes: [{type: volume, source: data, target: /data}]", "volumes: {data: }\n"),
        WEB_TWICE,
    ),
    "long words for a volume that is read": Case(
        web("volumes: [{type: volume, source: data, target: /data, read_only: true}]",
            "volumes: {data: }\n")
    ),
    "memory, and the engine's socket": Case(
        web('tmpfs: [/tmp], volumes: [{type: tmpfs, target: /run}, '
            '"/var/run/docker.sock:/var/run/docker.sock", "/etc/localtime:/etc/localtime"]'),
        settings={"docker_socket": ["web"]},
    ),
    "the volumes of another service": Case(
        service('db: {build: db, volumes: ["pg:/data"]}\n  save: {build: db, volumes_from: [db]}',
                PG),
        "shared: db writes the volume pg, and save writes there too",
        ONCE,
    ),
    "… of some container": Case(
        web('volumes_from: ["container:theirs"]'), "web: volumes_from takes over what the container"
    ),
    "a volume without a name": Case(
        web("volumes: [/data]"),
        "scratch: web has a volume without a name at /data, which is new and empty with each",
    ),
    "… that may be lost": Case(web("volumes: [/data]"), settings={"scratch": ["web"]}),
    "a store of a service that never starts": Case(
        service('db: {image: "mysql:8", profiles: [tools], volumes: ["pg:/d", "./x:/y"]}', PG)
    ),
    "two names of one directory": Case(
        service('db: {build: db, volumes: ["/srv/pg:/data"]}\n'
                '  old: {build: db, volumes: ["/srv/pg/14:/data"]}'),
        "db writes the directory /srv/pg, and old writes there too",
        {"stateful": ["db", "old"]},
    ),
    "a migration with a store": Case(
        service('move: {build: ., volumes: ["pg:/data"]}', PG),
        "shared: move writes the volume pg (at /data) and ends",
        {"migrate": ["move"]},
    ),
    "a part that two services have": Case(
        'x-all: &all {build: ., volumes: ["media:/media"]}\n'
        "services: {web: *all, jobs: *all}\nvolumes: {media: }\n",
        "shared: web writes the volume media (at /media)",
    ),
    "… that several services may write": Case(
        'x-all: &all {build: ., volumes: ["media:/media"]}\n'
        "services: {web: *all, jobs: *all}\nvolumes: {media: }\n",
        settings={"shared": ["media"]},
    ),
    "a volume in memory that has a name": Case(
        service('jobs: {build: ., volumes: ["fast:/fast"]}',
                "volumes: {fast: {driver_opts: {type: tmpfs, device: tmpfs}}}\n"), TWICE
    ),
    "a letter and a colon, which is no drive": Case(
        service('jobs: {build: ., volumes: ["e:/x"]}', "volumes: {e: }\n"),
        "jobs: volumes: e:/x is a path of Windows for Compose, because the name e has one letter",
    ),
    "shared, of nothing": Case(
        WEB, "shared: the compose files mount no 'uploads' (none)", {"shared": ["uploads"]}
    ),
    "scratch, of nothing": Case(
        WEB, "scratch: the compose files have no service 'cache' (web)", {"scratch": ["cache"]}
    ),
}  # fmt: skip

VARIABLES = {
    "… in an argument of a build": Case(
        service('jobs: {build: {context: ., args: {TOKEN: "${TOKEN}"}}}'),
        "${TOKEN} (compose.yaml, line 3, jobs) is not set",
    ),
    "… in a file that another reads": Case(
        web("extends: {file: base/base.yaml, service: all}"),
        "${DEEP} (base/base.yaml, line 2, web) is not set",
        files={"base/base.yaml": 'services:\n  all: {command: "$DEEP"}\n'},
    ),
    "a blank variable": Case(
        web('volumes: ["${DATA_FOLDER}/files:/data"]'),
        "env: ${DATA_FOLDER} (compose.yaml, line 2, web) is not set: name what is to stand",
    ),
    "… in a password": Case(
        web('environment: {PASSWORD: "${PASSWORD}"}'), "${PASSWORD} (compose.yaml, line 2, web)"
    ),
    "several": Case(
        service('jobs: {build: ., command: "$ONE"}\n  more: {build: ., command: "${TWO}"}'),
        "env: ${ONE} (compose.yaml, line 3, jobs), ${TWO} (compose.yaml, line 4, more) are",
    ),
    "one that is given": Case(web('environment: {A: "${A}"}'), settings={"env": {"A": "1"}}),
    "one that is given, and empty": Case(web('command: "${A}"'), settings={"env": {"A": ""}}),
    "defaults": Case(web('environment: {A: "${A:-}", B: "${B-}", C: "${C:-c}", D: "${D:+d}"}')),
    "a default of a default": Case(web('command: "${A:-${B}}"'), "${B} (compose.yaml, line 2,"),
    "of a service that never starts": Case(service('x: {image: "x:${TAG}", profiles: [tools]}')),
    "of a volume": Case(
        web('volumes: ["data:/d:ro"]',
            'volumes: {data: {driver_opts: {type: none, o: bind, device: "${DEVICE}"}}}\n'),
        "${DEVICE} (compose.yaml, line 3, volumes.data) is not set",
    ),
    "of a part that nobody uses": Case(f'x-more: {{a: "${{NOBODY}}"}}\n{WEB}'),
    "of a part that is merged": Case(
        'x-more: &more {command: "$LATER"}\nservices: {web: {build: ., <<: *more}}\n',
        "${LATER} (compose.yaml, line 1, web) is not set",
    ),
    "a dollar sign in a file of variables": Case(
        web("env_file: [web.env]"), "${word} (web.env, line 2) is not set",
        files={"web.env": "A=1\nPASSWORD=pass$word\n"},
    ),
    "a dollar sign that is none": Case(web('command: "echo $$HOME $${A}"')),
    "a variable that has to be there": Case(
        web('image: "x:${TAG:?which}"'), "required variable TAG is missing a value: which"
    ),
    "a name that Docker reads": Case(
        web('environment: {A: "${DOCKER_HOST:-x}"}'),
        "env: DOCKER_HOST is a name that Docker reads itself, so ${DOCKER_HOST} "
        "(compose.yaml, line 2, web) is not filled in",
        {"env": {"DOCKER_HOST": "1"}},
    ),
    "… for the containers alone": Case(WEB, settings={"env": {"DOCKER_HOST": "1"}}),
    "… that Compose reads": Case(
        web('command: "$COMPOSE_FILE"'), "env: COMPOSE_FILE is a name",
        {"env": {"COMPOSE_FILE": "1"}},
    ),
    "root's home": Case(web('volumes: ["$HOME/data:/data:ro"]'), "$HOME (compose.yaml, line"),
    "… as a shell has it": Case(web('volumes: ["~/data:/data:ro"]'), "~/data is below /root on"),
    "… in files whose words Compose cannot say": Case(
        web("ulimits: {nofile: '${N:-9}'}, volumes: ['$HOME/d:/d:ro']"), "$HOME (compose.yaml, line"
    ),
    "… as a shell has it, there": Case(
        web("ulimits: {nofile: '${N:-9}'}, volumes: ['~/d:/d:ro']"), "~/d is below /root on"
    ),
    "a blank variable there": Case(
        web("ulimits: {nofile: '${N:-9}'}, command: $Q"), "${Q} (compose.yaml, line 2) is not set"
    ),
    "the directory of a shell": Case(
        web('volumes: ["${PWD}/data:/data:ro"]'), "$PWD (compose.yaml, line 2, web) is not set on"
    ),
    "a default that is not needed": Case(
        web('volumes: ["${DATA_DIR:-$HOME/data}:/a:ro", "${DATA_DIR:-${PWD}/data}:/b:ro"]'),
        settings={"env": {"DATA_DIR": "/srv/data"}},
    ),
    "… there, in files whose words Compose cannot say": Case(
        web("ulimits: {nofile: '${N:-9}'}, volumes: ['${DATA_DIR:-${PWD}/data}:/b:ro']"),
        settings={"env": {"DATA_DIR": "/srv/data"}},
    ),
    "a default that is needed": Case(
        web('volumes: ["${DATA_DIR:-$HOME/data}:/a:ro"]'), "$HOME (compose.yaml, line 2"
    ),
    "a file of variables that must be there": Case(
        web("env_file: .env"), "the compose files: env file .env not found"
    ),
    "a file of variables that may be missing": Case(
        web("env_file: [{path: .env, required: false}]")
    ),
    "a secret of a variable": Case(
        web("secrets: [key]", "secrets: {key: {environment: KEY}}\n"),
        "secrets: key is taken from $KEY, which is not set: name it in env, or the secret in",
    ),
    "a secret that is somewhere else": Case(
        web("secrets: [key]", "secrets: {key: {external: true}}\n"), "secrets: key is external"
    ),
    "a secret whose file is missing": Case(
        web("secrets: [key]", "secrets: {key: {file: key.txt}}\n"),
        "secrets: key is the file key.txt, which is not on the host",
    ),
    "a configuration whose file is missing": Case(
        web("configs: [conf]", "configs: {conf: {file: ./conf.toml}}\n"),
        "configs: conf is the file conf.toml, which is not on the host",
    ),
    "secrets that nobody uses": Case(
        WEB + "secrets: {a: {file: a}, b: {environment: B}, c: {external: true}}\n"
    ),
    "a secret that is not described": Case(
        web("secrets: [key]"), 'the compose files: service "web" refers to undefined secret key'
    ),
    "`version`": Case(f'version: "3.8"\n{WEB}'),
}  # fmt: skip

PATHS = {
    "a directory beside the source": Case(
        web('volumes: ["../uploads:/uploads"]'),
        "web: volumes: ../uploads is outside of the source, which alone is on the host: "
        'volumes = {"uploads": "/uploads"} in the settings lasts, or an absolute path of the host',
    ),
    "… only read": Case(web('volumes: ["../conf:/conf:ro"]'), "web: volumes: ../conf is outside"),
    "… by long words": Case(
        web("volumes: [{type: bind, source: ./a/../../up, target: /up}]"), "../up is outside of"
    ),
    "… by a variable": Case(
        web('volumes: ["${UP}:/up:ro"]'), "../up is outside", {"env": {"UP": "../up"}}
    ),
    "… far away": Case(web('volumes: ["../../../../../../srv:/srv:ro"]'), "srv is outside of"),
    "a file of variables beside the source": Case(
        web("env_file: [{path: ../web.env, required: false}]"), "web: env_file: ../web.env is"
    ),
    "a context beside the source": Case(
        service("jobs: {build: ../jobs}"), "jobs: build: context: ../jobs is outside of the source"
    ),
    "a Dockerfile beside the source": Case(
        service("jobs: {build: {context: ., dockerfile: ../Dockerfile}}"),
        "jobs: build: dockerfile: ../Dockerfile is outside of the source",
    ),
    "another Dockerfile inside": Case(
        service("jobs: {build: {context: jobs, dockerfile: ../docker/Dockerfile}}"),
        files={"jobs/x": "", "docker/Dockerfile": ""},
    ),
    "a further context": Case(
        service("jobs: {build: {context: ., additional_contexts: {lib: ../lib}}}"),
        "jobs: build: additional_contexts: lib: ../lib is outside",
    ),
    "a further context in short words": Case(
        service('jobs: {build: {context: ., additional_contexts: ["lib=../lib"]}}'),
        "jobs: build: additional_contexts: lib: ../lib is outside",
    ),
    "a further context that is an image": Case(
        service('jobs: {build: {context: ., additional_contexts: {lib: "docker-image://x"}}}')
    ),
    "a secret beside the source": Case(
        web("secrets: [key]", "secrets: {key: {file: ../key}}\n"), "secrets: key: ../key is outside"
    ),
    "a configuration beside the source": Case(
        web("configs: [c]", "configs: {c: {file: ../c}}\n"), "configs: c: ../c is outside"
    ),
    "another compose file beside the source": Case(
        web("extends: {file: ../base.yaml, service: web}"),
        "../base.yaml is outside of the source, which alone is on the host",
    ),
    "… included": Case(f"include: [../more.yaml]\n{WEB}", "../more.yaml is outside of the source"),
    "a link out of the source": Case(
        web('volumes: ["./conf:/conf:ro"]'),
        "web: volumes: conf is a link to /etc, outside of the source",
        files={"conf": "-> /etc"},
    ),
    "a link in the source": Case(
        web('volumes: ["./conf:/conf:ro"]'), files={"conf": "-> real", "real/a": ""}
    ),
    "the directory above": Case(
        service("jobs: {build: ..}"), "jobs: build: context: .. is outside of the source"
    ),
    "a context of a repository": Case(
        service('jobs: {build: "https://git.example.com/team/jobs.git#main"}')
    ),
    "a secret in root's home": Case(
        web("secrets: [key]", "secrets: {key: {file: ~/key}}\n"),
        "secrets: key: ~/key is below /root on the host",
    ),
    "a file of variables that is a link": Case(
        web("env_file: [web.env]"), "web: env_file: web.env is a link to /etc/hostname, outside",
        files={"web.env": "-> /etc/hostname"},
    ),
    "a Dockerfile that is a link": Case(
        service("jobs: {build: {context: .}}"), "dockerfile: Dockerfile is a link to /etc/hosts",
        files={"Dockerfile": "-> /etc/hosts"},
    ),
    "a volume of a relative directory": Case(
        web('volumes: ["data:/d:ro"]',
            "volumes: {data: {driver_opts: {type: none, o: bind, device: ./data}}}\n"),
        "volumes: data: the device './data' is no place on the host",
    ),
    "what a container writes into the source": Case(
        web('volumes: ["./data:/data"]'), "shared: web writes the volume data (at /data), and two"
    ),
    "configuration that is read": Case(web('volumes: ["./conf:/conf:ro"]')),
}  # fmt: skip

TOGETHER = {
    "what joins one that runs once": Case(
        service('db: {build: db}\n  jobs: {build: ., network_mode: "service:db"}'),
        "jobs: network_mode joins db, which is not started with it",
        ONCE,
    ),
    "… by its volumes, to read": Case(
        service('db: {build: db, volumes: ["pg:/d"]}\n  jobs: {build: ., volumes_from: ["db:ro"]}',
                PG),
        settings=ONCE,
    ),
    "a secret whose file is in the source": Case(
        web("secrets: [key]", "secrets: {key: {file: ./key.txt}}\n"), files={"key.txt": "k"}
    ),
}  # fmt: skip

SOCKET = "/var/run/docker.sock:/var/run/docker.sock"
SHAPES = {
    "a web service in the network of another one": Case(
        service("vpn: {image: vpn}").replace("build: .", 'build: ., network_mode: "service:vpn"'),
        "service: web has the network of vpn (network_mode: service:vpn), which alone can publish "
        'its port: service = "vpn", and replicas = 1',
    ),
    "… which is the service": Case(
        service("vpn: {image: vpn}").replace("build: .", 'build: ., network_mode: "service:vpn"'),
        settings={"service": "vpn", "replicas": 1},
    ),
    "a public service in the network of another one": Case(
        service("api: {build: ., network_mode: 'service:vpn'}\n  vpn: {image: vpn}"),
        "services: api has the network of vpn (network_mode: service:vpn), which alone can publish "
        "its port: let vpn be the public service",
        {"services": {"api": {"path": "/api/*"}}},
    ),
    "a public service in the host's network": Case(
        service("api: {build: ., network_mode: host}"),
        "services: api has the host's network (network_mode: host), and two releases of it would "
        "listen on the same ports: leave network_mode out",
        {"services": {"api": {"path": "/api/*"}}},
    ),
    "a stateful service in the network of one that is not": Case(
        service("db: {image: 'postgres:17', network_mode: 'service:vpn'}\n  vpn: {image: vpn}"),
        "db: network_mode joins vpn, which each release starts anew: name vpn in stateful, too",
    ),
    "… which is stateful, too": Case(
        service("db: {image: 'postgres:17', network_mode: 'service:vpn'}\n  vpn: {image: vpn}"),
        settings={"stateful": ["vpn"]},
    ),
    "too many containers": Case(
        service("jobs: {build: ., deploy: {replicas: 100000000}}"),
        "jobs: replicas: 100000000 containers, and a service has at most 64: write 1 to 64",
    ),
    "… by the older key": Case(
        service("jobs: {build: ., scale: 65}"), "jobs: scale: 65 containers, and a service has at"
    ),
    "… where the settings have fewer": Case(
        service("jobs: {build: ., scale: 65}"), settings={"services": {"jobs": {"replicas": 64}}}
    ),
    "a volume with a name of one letter": Case(
        web('volumes: ["d:/data"]', "volumes: {d: }\n"),
        "web: volumes: d:/data is a path of Windows for Compose, because the name d has one "
        "letter: take a longer name",
        {"shared": ["d"]},
    ),
    "… read-only": Case(
        web('volumes: ["d:/data:ro"]', "volumes: {d: }\n"),
        "web: volumes: d:/data is a path of Windows for Compose",
    ),
    "… in the long form": Case(
        web("volumes: [{type: volume, source: d, target: /data}]", "volumes: {d: }\n"),
        settings={"shared": ["d"]},
    ),
    "… on the host": Case(
        web('volumes: ["data:/data"]', "volumes: {data: {name: d}}\n"),
        "volumes: data: Docker takes names of two letters and more, not 'd': take a longer one",
        {"shared": ["data"]},
    ),
    "replicas of a stateful service": Case(
        service('db: {image: "postgres:17", volumes: ["pg:/var/lib/postgresql/data"]}', PG),
        "services: db is stateful, and one container of it runs: leave its replicas (2) out",
        {"services": {"db": {"replicas": 2}}},
    ),
    "… in the files": Case(
        service('db: {image: "postgres:17", scale: 2, volumes: ["pg:/var/lib/postgresql/data"]}',
                PG),
        "stateful: db writes the volume pg, and runs 2 times: `replicas: 1` in its file",
    ),
    "a public service with a store": Case(
        service('g: {image: grafana/grafana, volumes: ["pg:/var/lib/grafana"]}', PG),
        "shared: g writes the volume pg (at /var/lib/grafana), and two releases of it run at once: "
        'strategy = "stop-first" and services = {"g": {"replicas": 1}} if only one process may '
        'write there, as with SQLite, or shared = ["pg"] if several processes may write there',
        {"services": {"g": {"path": "/g/*"}}},
    ),
    "… of which two run": Case(
        service('g: {image: grafana/grafana, volumes: ["pg:/var/lib/grafana"]}', PG),
        'shared: g writes the volume pg, and runs 2 times: services = {"g": {"replicas": 1}}, or '
        'shared = ["pg"] if several may write at once',
        {"services": {"g": {"path": "/g/*"}}, "strategy": "stop-first"},
    ),
    "… of which one runs": Case(
        service('g: {image: grafana/grafana, volumes: ["pg:/var/lib/grafana"]}', PG),
        settings={"services": {"g": {"path": "/g/*", "replicas": 1}}, "strategy": "stop-first"},
    ),
    "a directory of a home": Case(
        web('volumes: ["~/.app:/app/data"]'),
        'web: volumes: ~/.app is below /root on the host: volumes = {"app": "/app/data"} in the '
        "settings lasts, or an absolute path of the host",
    ),
    "… of which the service only reads": Case(
        web('volumes: ["~/.app:/app/data:ro"]'),
        "web: volumes: ~/.app is below /root on the host: a volume with a name, or an absolute",
    ),
    "a web service without a network": Case(
        web("network_mode: none"), "service: web has no network of its own (network_mode: none)"
    ),
    "limits in the older form": Case(
        web("mem_limit: 1g, cpus: 1.5, pids_limit: 200"), settings={"memory_mb": 512}
    ),
    "… of which the settings have another": Case(
        web("mem_limit: 1g, cpus: 1.5, pids_limit: 200"), settings={"cpus": 2}
    ),
    "a directory outside of the source that a volume replaces": Case(
        web('volumes: ["../uploads:/app/uploads", "~/.app:/app/data"]'),
        settings={"volumes": {"uploads": "/app/uploads", "data": "/app/data"}},
    ),
    "… only one of them": Case(
        web('volumes: ["../uploads:/app/uploads", "~/.app:/app/data"]'),
        "web: volumes: ~/.app is below /root on the host", {"volumes": {"up": "/app/uploads"}},
    ),
    "the engine's socket": Case(
        service(f'traefik: {{image: traefik, volumes: ["{SOCKET}:ro"]}}'),
        "docker_socket: traefik mounts /var/run/docker.sock and could do anything on the host as "
        'root: docker_socket = ["traefik"] if it may, or leave_out = ["traefik"] if it is not',
    ),
    "… allowed": Case(
        service(f'traefik: {{image: traefik, volumes: ["{SOCKET}"]}}'),
        settings={"docker_socket": ["traefik"]},
    ),
    "… of a service that is left out": Case(
        service(f'traefik: {{image: traefik, volumes: ["{SOCKET}"]}}'),
        settings={"leave_out": ["traefik"]},
    ),
    "the directory of the socket": Case(
        service('top: {image: top, volumes: ["/run:/run:ro"]}'),
        "docker_socket: top mounts /run, where Docker's socket is, and could",
    ),
    "the whole host": Case(
        service('top: {image: top, volumes: ["/:/rootfs:ro"]}'), "docker_socket: top mounts /, whe"
    ),
    "leave_out, of nothing": Case(
        WEB, "leave_out: the compose files have no service 'nginx' (web)", {"leave_out": ["nginx"]}
    ),
    "leave_out, of the web service": Case(
        WEB, "leave_out: web serves HTTP: name another one in service", {"leave_out": ["web"]}
    ),
    "docker_socket, of nothing": Case(
        WEB, "docker_socket: the compose files have no service 'x' (web)", {"docker_socket": ["x"]}
    ),
    "services, of nothing": Case(
        WEB, "services: the compose files have no service 'jobs' (web)",
        {"services": {"jobs": {"memory_mb": 64}}},
    ),
    "profiles, of nothing": Case(
        service("jobs: {build: ., profiles: [prod]}"),
        "profiles: the compose files have no profile 'prd' (prod)", {"profiles": ["prd"]},
    ),
    "a profile that is chosen": Case(
        service('jobs: {build: ., volumes: ["pg:/j"], profiles: [prod]}', PG),
        "stateful: jobs writes the volume pg (at /j)", {"profiles": ["prod"]},
    ),
    "… of the web service": Case(web("profiles: [app]")),
    "a service that is left out, with all that it wants": Case(
        service('x: {build: ../x, volumes: ["../a:/a", "v:/v"], depends_on: [web]}\n'
                "  jobs: {build: ., depends_on: [x]}", "volumes: {v: }\n"),
        settings={"leave_out": ["x"]},
    ),
    "one that joins a service that is left out": Case(
        service('vpn: {image: vpn}\n  jobs: {build: ., network_mode: "service:vpn"}'),
        "jobs: network_mode joins vpn, which is not started with it", {"leave_out": ["vpn"]},
    ),
    "a file of configuration": Case(
        web('volumes: ["./settings.json:/app/settings.json"]'), files={"settings.json": "{}"}
    ),
    "… that is missing": Case(
        web('volumes: ["./settings.json:/app/settings.json"]'),
        "web: volumes: ./settings.json is not in the source, so /app/settings.json would be an em",
    ),
    "a file that is written": Case(
        web('volumes: ["./app.sqlite3:/app/app.sqlite3"]'),
        "web: volumes: ./app.sqlite3 is a file that is written at /app/app.sqlite3, and would go",
        files={"app.sqlite3": ""},
    ),
    "a directory of configuration": Case(
        service('n: {image: nginx, volumes: ["./nginx:/etc/nginx/conf.d"]}'),
        files={"nginx/default.conf": ""},
    ),
    "a directory with data": Case(
        service('n: {image: n, volumes: ["./uploads:/app/uploads"]}\n'
                '  m: {image: m, volumes: ["./uploads:/uploads"]}'),
        "stateful: m writes the volume uploads (at /uploads) and n writes the volume uploads (at",
    ),
    "… of a database": Case(
        service('db: {image: "postgres:17", volumes: ["./data/db:/var/lib/postgresql/data", '
                '"./init.sql:/docker-entrypoint-initdb.d/init.sql"]}'), files={"init.sql": ""}
    ),
    "the code, which the image has": Case(
        web('volumes: [".:/app", "/app/node_modules"]'), files={"Dockerfile": "COPY . /app\n"}
    ),
    "the code, which the image has not": Case(
        web('volumes: ["./src:/app/src"]'), files={"src/a.py": ""}
    ),
    "the host's network": Case(
        service("top: {image: top, network_mode: host}"),
        "stateful: top has the host's network (network_mode: host), and two releases would listen",
    ),
    "… of a service that runs once": Case(
        service("top: {image: top, network_mode: host}"), settings={"stateful": ["top"]}
    ),
    "… of the service that serves": Case(
        web("network_mode: host"), "service: web has the host's network (network_mode: host), and"
    ),
    "addresses of a network": Case(
        web("networks: {n: {ipv4_address: 10.9.0.5}}",
            "networks: {n: {ipam: {config: [{subnet: 10.9.0.0/24}]}}}\n")
    ),
    "an address that another one names": Case(
        service("api: {build: ., networks: {n: {ipv4_address: 10.9.0.5}}}\n"
                "  jobs: {build: ., networks: [n], environment: {API: 'http://10.9.0.5:80'}}",
                "networks: {n: {ipam: {config: [{subnet: 10.9.0.0/24}]}}}\n"),
        "jobs: 10.9.0.5 is the address of api in the files, which two releases cannot both have",
    ),
    "a network that is nowhere": Case(
        web("networks: [proxy]", "networks: {proxy: {external: true}}\n")
    ),
    "the name of a container": Case(
        web("container_name: my-web, networks: [a, b]", "networks: {a: , b: }\n")
    ),
    "the volumes of a service that runs once, without a name": Case(
        service("db: {build: db, volumes: [/data]}\n  jobs: {build: ., volumes_from: [db]}"),
        "jobs: volumes_from takes over /data of db, a volume without a name", ONCE,
    ),
    "what one service alone writes": Case(
        service('g: {image: grafana/grafana, volumes: ["pg:/var/lib/grafana"]}', PG)
    ),
    "an image that a sibling builds": Case(
        "services:\n  web: {build: ., image: shop}\n  jobs: {image: shop, command: jobs}\n"
    ),
}  # fmt: skip

CASES = STORES | VARIABLES | PATHS | TOGETHER | SHAPES
