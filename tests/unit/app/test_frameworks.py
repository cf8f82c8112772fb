"""Frameworks are recognised by their files, and the usual lines are proposed."""

from pathlib import Path
from typing import Any

import pytest

from terrafirma.app.check import check
from terrafirma.app.frameworks import exposed, framework_of, health_paths, listens
from terrafirma.app.guess import examples, settings_of, value_of, web_service

KEY = {"secrets": {"secret_key_base": "generated"}, "secrets_env": True}
# The files; the framework; the fields that are proposed.
PROJECTS: dict[str, tuple[dict[str, str], str, dict[str, Any]]] = {
    "Django": (
        {
            "manage.py": "os.environ['DJANGO_SETTINGS_MODULE']",
            "shop/urls.py": 'urlpatterns = [path("healthz/", ok), path("admin/", admin)]',
            "Dockerfile": "FROM python\nCMD gunicorn --bind 0.0.0.0:9000 shop.wsgi",
        },
        "Django",
        {
            "container_port": 9000,
            "health_path": "/healthz/",
            "migrate": ["python", "manage.py", "migrate", "--no-input"],
        },
    ),
    "Django that migrates when it starts": (
        {
            "manage.py": "django",
            "start.sh": "python manage.py migrate && exec gunicorn shop.wsgi",
        },
        "Django",
        {},
    ),
    "FastAPI": (
        {
            "pyproject.toml": '[project]\ndependencies = ["fastapi>=0.110", "uvicorn"]',
            "main.py": '@app.get("/health")',
            "test_main.py": 'client.get("/healthz")',
        },
        "FastAPI",
        {"health_path": "/health"},
    ),
    "FastAPI, with Poetry": (
        {"pyproject.toml": "[tool.poetry.dependencies]\nfastapi = '^0.110'"},
        "FastAPI",
        {},
    ),
    "Flask": (
        {"requirements.txt": "Flask==3.0\n", "app.py": "@app.route('/status')"},
        "Flask",
        {"container_port": 5000, "health_path": "/status"},
    ),
    "Rails": (
        {
            "Gemfile": 'gem "rails", "~> 8.0"',
            "config/routes.rb": 'get "up" => "rails/health#show", as: :rails_health_check',
            "Dockerfile": "FROM ruby\nENV RAILS_ENV=production\nEXPOSE 80\nCMD bin/thrust",
        },
        "Rails",
        {
            "health_path": "/up",
            "migrate": ["bin/rails", "db:migrate"],
            **KEY,
        },
    ),
    "Laravel": (
        {"composer.json": '{"require": {"laravel/framework": "^11"}}'},
        "Laravel",
        {
            "health_path": "/up",
            "migrate": ["php", "artisan", "migrate", "--force"],
            "env": {"APP_ENV": "production"},
        },
    ),
    "Next.js": (
        {
            "package.json": '{"dependencies": {"next": "15", "express": "4"}}',
            "app/api/health/route.ts": "export const GET = () => new Response()",
        },
        "Next.js",
        {"container_port": 3000, "health_path": "/api/health", "env": {"HOSTNAME": "0.0.0.0"}},
    ),
    "Next.js that chooses where it listens": (
        {
            "package.json": '{"dependencies": {"next": "^16", "pg": "^8"}}',
            "src/app/(site)/page.tsx": "",
            "src/app/(checks)/healthz/route.ts": "export const GET = () => new Response()",
            "Dockerfile": "FROM node AS build\nRUN npm ci && npm run build\nFROM node\n"
            'ENV HOSTNAME=0.0.0.0\nUSER node\nEXPOSE 3000\nCMD ["node", "server.js"]',
        },
        "Next.js",
        {},
    ),
    "Next.js with pages, that npm starts": (
        {
            "package.json": '{"dependencies": {"next": "14"}, "scripts": {"start": "next start"}}',
            "pages/index.js": "",
            "pages/api/ping.js": "export default (asked, answer) => answer.end()",
            "Dockerfile": 'FROM node\nRUN npm ci && npm run build\nCMD ["npm", "start"]',
        },
        "Next.js",
        {"container_port": 3000, "health_path": "/api/ping", "env": {"HOSTNAME": "0.0.0.0"}},
    ),
    "Express": (
        {"package.json": '{"dependencies": {"express": "4"}}', "index.js": "app.get('/ping', ok)"},
        "Express",
        {"container_port": 3000, "health_path": "/ping"},
    ),
    "Phoenix": (
        {"mix.exs": 'defp deps, do: [{:phoenix, "~> 1.7"}]'},
        "Phoenix",
        {
            "container_port": 4000,
            "migrate": ["/app/bin/migrate"],
            "env": {"PHX_SERVER": "true"},
            **KEY,
        },
    ),
    "Spring": (
        {
            "build.gradle.kts": 'id("org.springframework.boot") version "3.3"',
            "src/main/java/A.java": '@GetMapping("/actuator/health")',
        },
        "Spring Boot",
        {
            "container_port": 8080,
            "health_path": "/actuator/health",
            "env": {"SERVER_FORWARD_HEADERS_STRATEGY": "framework"},
        },
    ),
    "Go": (
        {
            "go.mod": "module acme.com/api",
            "main.go": 'http.HandleFunc("/readyz", ok); http.HandleFunc("/livez", ok)',
            "Dockerfile": "FROM golang AS build\nEXPOSE 1\nFROM scratch\nEXPOSE 9090/tcp\n",
        },
        "Go",
        {"health_path": "/livez"},
    ),
    "Rust that listens inside its container": (
        {
            "Cargo.toml": "[package]",
            "src/main.rs": 'TcpListener::bind("127.0.0.1:3000"); route("/health_check", get(ok))',
            "tests/api.rs": 'TcpListener::bind("127.0.0.1:9999")',
        },
        "Rust",
        {"container_port": 3000, "health_path": "/health_check"},
    ),
    "Spring with its own port and Actuator": (
        {
            "pom.xml": "org.springframework.boot spring-boot-starter-actuator",
            "src/main/resources/application.properties": "server.port=8081\n",
        },
        "Spring Boot",
        {
            "container_port": 8081,
            "health_path": "/actuator/health",
            "env": {"SERVER_FORWARD_HEADERS_STRATEGY": "framework"},
        },
    ),
    "a HEALTHCHECK": (
        {
            "main.zig": "",
            "Dockerfile": "FROM a\nHEALTHCHECK --interval=5s \\\n  CMD curl -f http://localhost/api/up",
        },
        "",
        {"health_path": "/api/up"},
    ),
    "a static site": ({"index.html": ""}, "a static site", {"container_port": 80}),
    "ASP.NET": (
        {"Shop/Shop.csproj": ""},
        "ASP.NET",
        {"container_port": 8080, "env": {"ASPNETCORE_FORWARDEDHEADERS_ENABLED": "true"}},
    ),
    "none": ({"main.zig": ""}, "", {}),
}  # fmt: skip


def write(directory: Path, files: dict[str, str]) -> Path:
    for name, text in ({"Dockerfile": "FROM scratch\n"} | files).items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    return directory


@pytest.mark.parametrize("what", PROJECTS)
def test_the_usual_lines(tmp_path: Path, what: str) -> None:
    files, name, fields = PROJECTS[what]
    source = write(tmp_path / "shop", files)
    framework = framework_of(source)
    assert (framework.name if framework else "") == name
    report = check({"source": str(source), "domain": "shop.acme.com"})
    assert report.served
    assert report.proposed == fields
    if name:
        assert any(line.strip().startswith(f"looks like {name}") for line in report.lines)
    # What the settings have stays as it is, and nothing is left to propose.
    again = check({"source": str(source), "domain": "shop.acme.com", **report.proposed})
    assert again.proposed == {}


def test_the_service_of_a_project_that_has_the_code(tmp_path: Path) -> None:
    files = {name: text for name, text in PROJECTS["Rails"][0].items() if name != "Dockerfile"}
    write(tmp_path / "shop" / "backend", files)
    (tmp_path / "shop" / "compose.yaml").write_text("""\
services:
  db: {image: "postgres:17", volumes: ["pg:/var/lib/postgresql/data"]}
  backend:
    build: backend
    ports: ["80:3000"]
    environment: {RAILS_ENV: production, DB_PASSWORD: "${DB_PASSWORD}", LEVEL: "${LEVEL}"}
volumes: {pg: }
""")
    (tmp_path / "shop" / ".env.example").write_text(
        "# words\nDB_PASSWORD=change\nLEVEL='info' # x\n"
    )
    report = check(settings_of(str(tmp_path / "shop")))
    assert report.left == []
    assert report.proposed == {
        "domain": "app.example.com",
        "service": "backend",
        "env": {"LEVEL": "info"},
        "secrets": {"db_password": "generated"},
        "secrets_env": True,
        "health_path": "/up",
        "migrate": ["bin/rails", "db:migrate"],
        "services": {"db": {"backup_command": report.proposed["services"]["db"]["backup_command"]}},
    }


def test_a_repository_of_several_applications(tmp_path: Path) -> None:
    """Each Dockerfile is beside its application, and the context is the root: Turborepo."""
    code = {
        "compose.yaml": """\
services:
  web: {build: {context: ., dockerfile: ./apps/web/Dockerfile}, ports: ["3000:3000"]}
  api: {build: {context: ., dockerfile: ./apps/api/Dockerfile}, ports: ["3001:3001"]}
""",
        "package.json": '{"workspaces": ["apps/*"]}',
        "apps/web/package.json": '{"dependencies": {"next": "15"}}',
        "apps/web/Dockerfile": "FROM node\n",
        "apps/api/package.json": '{"dependencies": {"express": "5"}}',
        "apps/api/Dockerfile": "FROM node\n",
        "apps/api/src/server.ts": "app.get('/status', ok)",
    }
    source = write(tmp_path / "shop", code)
    report = check(settings_of(str(source)) | {"service": "web"})
    assert "health_path" not in report.proposed
    assert "  looks like Next.js" in "\n".join(report.lines)
    report = check(settings_of(str(source)) | {"service": "api"})
    assert report.proposed["health_path"] == "/status"


def test_the_health_check_of_a_compose_file(tmp_path: Path) -> None:
    source = write(tmp_path / "shop", {"compose.yaml": """\
services:
  web:
    image: acme/web
    ports: ["3000:3000"]
    healthcheck: {test: ["CMD-SHELL", "curl http://localhost:3000/api/heartbeat?full=1 || exit 1"]}
  db: {image: "postgres:17"}
"""})  # fmt: skip
    report = check(settings_of(str(source)) | {"service": "web"})
    assert report.proposed == {"domain": "app.example.com", "health_path": "/api/heartbeat"}
    # The database has no volume: nothing of it would last.
    assert "db: its data lasts only as long as its container" in "\n".join(report.lines)


def test_a_secret_that_another_service_issues(tmp_path: Path) -> None:
    names = ("STRIPE_SECRET_KEY", "RUNNER_TOKEN", "S3_SECRET_ACCESS_KEY", "JWT_SECRET")
    env = "".join(f"      {name}: ${{{name}}}\n" for name in names)
    text = f"services:\n  web:\n    image: acme/web\n    environment:\n{env}"
    source = write(tmp_path / "shop", {"compose.yaml": text})
    report = check(settings_of(str(source)) | {"service": "web"})
    assert report.proposed["secrets"] == {
        "jwt_secret": "generated",
        "runner_token": "env:RUNNER_TOKEN",
        "s3_secret_access_key": "env:S3_SECRET_ACCESS_KEY",
        "stripe_secret_key": "env:STRIPE_SECRET_KEY",
    }
    assert report.left == []


def test_the_service_that_serves() -> None:
    ports = [{"target": 5432}]
    cases: dict[str, dict[str, Any]] = {
        "": {},
        "web": {"db": {"image": "postgres", "ports": ports}, "web": {"build": {}}},
        "backend": {"web": {"profiles": ["x"]}, "backend": {"build": {}}, "db": {}},
        "site": {"a": {"build": {}, "ports": ports}, "site": {"build": {}, "ports": ports}},
        "b": {"a": {"build": {}, "ports": ports}, "b": {"build": {}, "ports": [{"target": 80}]}},
    }
    for name, services in cases.items():
        assert web_service(services) == name


@pytest.mark.parametrize(
    ("text", "ports", "port"),
    [
        ("FROM a\nEXPOSE 80 443/tcp\nEXPOSE 53/udp $PORT", [80, 443], 0),
        ('FROM a AS b\nEXPOSE 1\nfrom c\ncmd ["run", "--port", "3000"]', [], 3000),
        ("FROM a\nENV PORT=5000\nCMD run", [], 5000),
        ("FROM a\nENV PORT=5000\nCMD run -b 0.0.0.0:7000", [], 7000),
        ("FROM a\nCMD run", [], 0),
        ("", [], 0),
    ],
)
def test_the_ports_of_a_dockerfile(text: str, ports: list[int], port: int) -> None:
    assert exposed(text) == ports
    assert listens(text) == port


def test_paths_of_health_checks(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "a.py": 'x = "health"; path("up/", ok); get("/api/ping"); "/healthzz"',
            "pages/api/healthz.ts": "",
            "tests/a.py": '"/livez"',
            "vendor/a.go": '"/livez"',
        },
    )
    assert health_paths(tmp_path) == ["/api/healthz", "/up/", "/api/ping"]


def test_the_example_of_an_env_file(tmp_path: Path) -> None:
    (tmp_path / ".env.example").write_text("A=1\nexport B = 'two' # x\n# C=3\nD=\n")
    assert examples(tmp_path) == {"A": "1", "B": "two", "D": ""}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LEVEL", "info"),
        ("APP_UID", "1000"),
        ("HTTP_PORT", "8000"),
        ("APP_VERSION", "latest"),
        ("WORKERS", "1"),
        ("PUBLIC_HOST", "shop.acme.com"),
        ("BASE_URL", "https://shop.acme.com"),
        ("MEDIA", "/srv/media"),
        ("PHOTOS", "/srv/photos"),
        ("NAME", "…"),
    ],
)
def test_what_stands_for_a_value_that_only_you_know(tmp_path: Path, name: str, value: str) -> None:
    (tmp_path / ".env.example").write_text("LEVEL=info\nNAME=\n")
    (tmp_path / "compose.yaml").write_text("""\
services:
  web:
    image: acme/web:${NAME}
    volumes: ["${MEDIA}:/media"]
  more:
    volumes:
      - ${PHOTOS}/small:/photos
""")
    assert value_of(name, {"source": str(tmp_path), "domain": "shop.acme.com"}) == value


def test_a_file_of_variables_that_is_there(tmp_path: Path) -> None:
    source = write(tmp_path / "shop", {"compose.yaml": """\
services:
  web: {build: ., environment: {LEVEL: "${LEVEL}", TOKEN: "${TOKEN:?}"}}
"""})  # fmt: skip
    data = {"source": str(source), "compose": ["compose.yaml"], "service": "web"}
    assert {"env", "secrets"} <= check(data).proposed.keys()
    (source / ".env").write_text("LEVEL=info\nTOKEN=s3cret\n")
    report = check(data)
    assert report.proposed["env_file"] == [f"{source}/.env"]
    assert report.proposed.keys() == {"domain", "env_file"}
    assert report.left == []
    assert "s3cret" not in repr(report)


def test_a_proxy_that_caddy_replaces(tmp_path: Path) -> None:
    source = write(tmp_path / "shop", {"compose.yaml": """\
services:
  proxy:
    image: traefik:3
    ports: ["80:80", "443:443"]
    volumes: ["/var/run/docker.sock:/var/run/docker.sock:ro"]
  backend:
    build: .
    labels: ["traefik.http.routers.shop.rule=Host(`shop.acme.com`)"]
"""})  # fmt: skip
    report = check({"source": str(source), "compose": ["compose.yaml"]})
    assert report.left == []
    assert report.proposed == {
        "domain": "app.example.com",
        "service": "backend",
        "leave_out": ["proxy"],
    }
    page = "\n".join(report.lines)
    assert "proxy    left out (traefik:3)" in page
