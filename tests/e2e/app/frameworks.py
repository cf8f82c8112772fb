"""
Whole applications of several frameworks, from the archive's packages.

Each has pages as its framework has them: `/` with the content of the file VERSION, a health page,
and, if it keeps something, `/rows`, to which a POST adds its body as a row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Framework:
    """An application: its files, its entry in `apps`, and which pages it has."""

    files: dict[str, str]
    data: dict[str, Any] = field(default_factory=dict)
    keeps: bool = True  # whether it has /rows


def image(*packages: str, more: str = "") -> str:
    return (
        "FROM debian:trixie\n"
        "RUN apt-get -q update && apt-get -qy install --no-install-recommends "
        f"{' '.join(packages)} && rm -rf /var/lib/apt/lists/*\n{more}"
    )


# --- a static site: nginx as root on port 80, of which only the image knows -----------------------

STATIC = Framework(
    files={
        "Dockerfile": image("nginx-light", more=(
            "RUN rm /etc/nginx/sites-enabled/default\n"
            "COPY site.conf /etc/nginx/conf.d/\n"
            "COPY VERSION /srv/site/index.html\n"
            "EXPOSE 80\nSTOPSIGNAL SIGQUIT\n"
            'CMD ["nginx", "-g", "daemon off;"]\n'
        )),
        "site.conf": "server { listen 80; root /srv/site; }\n",
        ".dockerignore": "*.log\n",
    },
    data={"health_path": "/"},
    keeps=False,
)  # fmt: skip

# --- Flask: a user of its own, rows in files of a lasting directory -------------------------------

FLASK = Framework(
    files={
        "Dockerfile": image("gunicorn", "python3-flask", more=(
            "RUN useradd --create-home app && install -d -o app /srv/rows\n"
            "WORKDIR /srv/app\nCOPY . .\nUSER app\nEXPOSE 5000\n"
            'CMD ["gunicorn", "--bind", "0.0.0.0:5000", "--threads", "8", "app:app"]\n'
        )),
        "app.py": """
import pathlib, uuid
from flask import Flask, jsonify, request
app = Flask(__name__)
rows = pathlib.Path("/srv/rows")
@app.get("/")
def version():
    return pathlib.Path("VERSION").read_text()
@app.get("/ping")
def ping():
    return "pong"
@app.route("/rows", methods=["GET", "POST"])
def all_rows():
    if request.method == "POST":
        (rows / uuid.uuid4().hex).write_bytes(request.data)
    return jsonify(sorted(one.read_text() for one in rows.iterdir()))
""",
    },
    data={"health_path": "/ping", "volumes": {"rows": "/srv/rows"}},
)  # fmt: skip

# --- SQLite: the same image, one process on its file, stopped before the next one starts ----------

SQLITE = Framework(
    files={
        "Dockerfile": image("gunicorn", "python3-flask", more=(
            "WORKDIR /srv/app\nCOPY . .\nVOLUME /data\nEXPOSE 5000\n"
            'CMD ["gunicorn", "--bind", "0.0.0.0:5000", "--threads", "4", "app:app"]\n'
        )),
        "app.py": """
import pathlib, sqlite3
from flask import Flask, jsonify, request
app = Flask(__name__)
def connected():
    one = sqlite3.connect("/data/rows.db")
    one.execute("CREATE TABLE IF NOT EXISTS rows (text)")
    return one
@app.get("/")
def version():
    return pathlib.Path("VERSION").read_text()
@app.get("/ping")
def ping():
    connected()
    return "pong"
@app.route("/rows", methods=["GET", "POST"])
def all_rows():
    with connected() as one:
        if request.method == "POST":
            one.execute("INSERT INTO rows VALUES (?)", [request.data.decode()])
        return jsonify([text for text, in one.execute("SELECT text FROM rows ORDER BY 1")])
""",
    },
    data={
        "health_path": "/ping", "volumes": {"data": "/data"},
        "strategy": "stop-first", "replicas": 1,
    },
)  # fmt: skip

# --- Django: Celery, a bundled Redis, and the host's PostgreSQL in place of the bundled one -------

DJANGO = Framework(
    files={
        "docker-compose.yml": """
version: "3.9"
x-app: &app
  build: .
  env_file: [.env]
  environment: {DB_HOST: db, DB_PORT: "5432", DB_NAME: shop, DB_USER: shop, DB_PASSWORD: secret}
  depends_on:
    db: {condition: service_healthy}
    cache: {condition: service_started}
services:
  db:
    image: postgres:17
    restart: always
    environment: {POSTGRES_USER: shop, POSTGRES_PASSWORD: secret, POSTGRES_DB: shop}
    volumes: ["pg:/var/lib/postgresql/data"]
    healthcheck: {test: [CMD, pg_isready], interval: 5s}
  cache:
    build: {context: ., dockerfile: redis.Dockerfile}
    container_name: shop-cache
    volumes: ["cache:/var/lib/redis"]
  migrate: {<<: *app, command: python3 manage.py migrate}
  web:
    <<: *app
    ports: ["8000:8000"]
    depends_on:
      migrate: {condition: service_completed_successfully}
  worker: {<<: *app, command: celery -A shop worker --concurrency 1, stop_grace_period: 5s}
volumes: {pg: , cache: }
""",
        "Dockerfile": image(
            *("gunicorn", "python3-celery", "python3-django", "python3-psycopg", "python3-redis"),
            *("celery",), more=(
                "WORKDIR /app\nCOPY . .\nEXPOSE 8000\n"
                'CMD ["gunicorn", "--bind", "0.0.0.0:8000", "--threads", "4", "shop.wsgi"]\n'
            ),
        ),
        "redis.Dockerfile": image("redis-server", more=(
            'CMD ["redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--dir",'
            ' "/var/lib/redis", "--appendonly", "yes"]\n'
        )),
        "manage.py": """
import os, sys
from django.core.management import execute_from_command_line
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
execute_from_command_line(sys.argv)
""",
        "shop/__init__.py": "from shop.celery import app as celery_app\n",
        "shop/settings.py": """
import os
SECRET_KEY = os.environ["SECRET_KEY"]
ALLOWED_HOSTS = os.environ["ALLOWED_HOSTS"].split(",")
INSTALLED_APPS = ["shop"]
ROOT_URLCONF = "shop.urls"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {"default": {
    "ENGINE": "django.db.backends.postgresql", "HOST": os.environ["DB_HOST"],
    "PORT": os.environ["DB_PORT"], "NAME": os.environ["DB_NAME"],
    "USER": os.environ["DB_USER"], "PASSWORD": os.environ["DB_PASSWORD"],
}}
""",
        "shop/wsgi.py": """
import os
from django.core.wsgi import get_wsgi_application
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
application = get_wsgi_application()
""",
        "shop/celery.py": """
import os
from celery import Celery
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
app = Celery("shop", broker=os.environ["BROKER_URL"])
app.conf.task_ignore_result = True
app.autodiscover_tasks(["shop"])
""",
        "shop/models.py": """
from django.db import models
class Row(models.Model):
    text = models.TextField()
""",
        "shop/migrations/__init__.py": "",
        "shop/migrations/0001_initial.py": """
from django.db import migrations, models
class Migration(migrations.Migration):
    initial = True
    operations = [migrations.CreateModel("Row", [
        ("id", models.BigAutoField(primary_key=True)), ("text", models.TextField())])]
""",
        "shop/tasks.py": """
from celery import shared_task
@shared_task
def keep(text):
    from shop.models import Row
    Row.objects.create(text=text)
""",
        "shop/urls.py": """
import pathlib
from django.http import HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from shop.models import Row
from shop.tasks import keep
def version(request):
    return HttpResponse(pathlib.Path("VERSION").read_text())
def up(request):
    Row.objects.exists()
    return HttpResponse("up")
@csrf_exempt
def rows(request):
    if request.method == "POST":
        keep.delay(request.body.decode())
    texts = Row.objects.order_by("text").values_list("text", flat=True)
    return JsonResponse(list(texts), safe=False)
urlpatterns = [path("", version), path("up/", up), path("rows", rows)]
""",
        ".env.example": "SECRET_KEY=\nALLOWED_HOSTS=\nBROKER_URL=redis://shop-cache:6379/0\n",
        ".env.production": (
            "SECRET_KEY=a-long-random-string\nALLOWED_HOSTS=django.terrafirma.test\n"
            "BROKER_URL=redis://shop-cache:6379/0\n"
        ),
    },
    data={
        "service": "web", "migrate": ["migrate"], "stateful": ["cache"],
        "database": "its own", "leave_out": ["db"], "health_path": "/up/",
        "env": {
            f"DB_{part.upper()}": f"{{database.{part}}}"
            for part in ("host", "port", "name", "user", "password")
        },
    },
)  # fmt: skip

# --- FastAPI: PostgreSQL by a URL with a scheme of its own ----------------------------------------

FASTAPI = Framework(
    files={
        "Dockerfile": image(
            *("python3-fastapi", "python3-psycopg", "python3-sqlalchemy", "uvicorn"), more=(
                "RUN useradd app\nWORKDIR /app\nCOPY . .\nUSER app\n"
                'CMD ["uvicorn", "main:app", "--host", "0.0.0.0", "--port", "8000"]\n'
            ),
        ),
        "migrate.py": """
import os, sqlalchemy
engine = sqlalchemy.create_engine(os.environ["SQLALCHEMY_URL"])
with engine.begin() as connection:
    connection.execute(sqlalchemy.text("CREATE TABLE IF NOT EXISTS rows (text text)"))
""",
        "main.py": """
import os, pathlib, sqlalchemy
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse
from starlette.concurrency import run_in_threadpool
app = FastAPI()
engine = sqlalchemy.create_engine(os.environ["SQLALCHEMY_URL"], pool_size=2)
def texts(*more):
    with engine.begin() as connection:
        for text in more:
            connection.execute(sqlalchemy.text("INSERT INTO rows VALUES (:t)"), {"t": text})
        found = connection.execute(sqlalchemy.text("SELECT * FROM rows ORDER BY 1"))
        return [one for one, in found]
@app.get("/", response_class=PlainTextResponse)
def version():
    return pathlib.Path("VERSION").read_text()
@app.get("/rows")
def rows():
    return texts()
@app.post("/rows")
async def add(request: Request):
    return await run_in_threadpool(texts, (await request.body()).decode())
""",
    },
    data={
        "database": "its own", "env": {"SQLALCHEMY_URL": "{database.url:postgresql+psycopg}"},
        "migrate": ["python3", "migrate.py"], "health_path": "/rows",
    },
)  # fmt: skip

# --- Express, in a compose file without more than it needs ----------------------------------------

EXPRESS = Framework(
    files={
        "compose.yaml": """
services:
  web:
    build: .
    init: true
    ports: ["3000:3000"]
    volumes: ["uploads:/uploads"]
volumes: {uploads: }
""",
        "Dockerfile": image("node-express", "nodejs", more=(
            "ENV NODE_PATH=/usr/share/nodejs\nWORKDIR /app\nCOPY . .\nEXPOSE 3000\n"
            'CMD ["node", "server.js"]\n'
        )),
        "package.json": '{"dependencies": {"express": "^4"}}',
        "server.js": """
const express = require('express'), fs = require('fs'), crypto = require('crypto')
const app = express()
app.use(express.text({ type: '*/*' }))
const read = name => fs.readFileSync("/uploads/" + name, "utf8")
const rows = () => fs.readdirSync("/uploads").map(read).sort()
app.get('/', (asked, answer) => answer.type('text').send(fs.readFileSync('VERSION', 'utf8')))
app.get('/rows', (asked, answer) => answer.json(rows()))
app.post('/rows', (asked, answer) => {
  fs.writeFileSync('/uploads/' + crypto.randomUUID(), asked.body)
  answer.json(rows())
})
const server = app.listen(3000, '0.0.0.0')
process.on('SIGTERM', () => server.close(() => process.exit(0)))
""",
    },
    data={
        "service": "web", "container_port": 3000, "shared": ["uploads"], "health_path": "/rows",
    },
)  # fmt: skip

# --- Go: a single file in an empty image, as a numeric user ---------------------------------------

GO = Framework(
    files={
        "Dockerfile": image("golang-go", more=(
            "WORKDIR /src\nCOPY . .\nRUN CGO_ENABLED=0 go build -o /server .\n"
            "FROM scratch\nCOPY --from=0 /server /server\nCOPY VERSION /VERSION\n"
            'USER 65532:65532\nEXPOSE 8080\nENTRYPOINT ["/server"]\n'
        )).replace("debian:trixie", "debian:trixie AS build"),
        "go.mod": "module example.com/server\n\ngo 1.19\n",
        "main.go": """
package main
import ("context"; "net/http"; "os/signal"; "syscall")
func main() {
    http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
        http.ServeFile(w, r, "/VERSION")
    })
    server := &http.Server{Addr: ":8080"}
    stop, _ := signal.NotifyContext(context.Background(), syscall.SIGTERM)
    go server.ListenAndServe()
    <-stop.Done()
    server.Shutdown(context.Background())
}
""",
    },
    data={"health_path": "/"},
    keeps=False,
)  # fmt: skip

# --- PHP: nginx in front of PHP-FPM, its configuration mounted from the source --------------------

PHP = Framework(
    files={
        "docker-compose.yml": """
services:
  nginx:
    build: {context: ., dockerfile: docker/nginx.Dockerfile}
    ports: ["8080:80"]
    volumes: ["./docker/site.conf:/etc/nginx/conf.d/site.conf"]
    depends_on: [fpm]
  fpm:
    build: {context: ., dockerfile: docker/fpm.Dockerfile}
    volumes: ["storage:/var/www/storage"]
volumes: {storage: }
""",
        "docker/nginx.Dockerfile": image("nginx-light", more=(
            "RUN rm /etc/nginx/sites-enabled/default\nCOPY public /var/www/public\n"
            'STOPSIGNAL SIGQUIT\nCMD ["nginx", "-g", "daemon off;"]\n'
        )),
        "docker/fpm.Dockerfile": image("php-fpm", more=(
            "RUN ln -s /usr/sbin/php-fpm* /usr/local/sbin/php-fpm && install -d -o www-data"
            " /var/www/storage && mkdir -p /run/php"
            " && sed -i 's|^listen = .*|listen = 9000|; s|^;process_control.*||'"
            " /etc/php/*/fpm/pool.d/www.conf\n"
            "COPY . /var/www\nSTOPSIGNAL SIGQUIT\n"
            'CMD ["php-fpm", "--nodaemonize", "--fpm-config", "/var/www/docker/fpm.conf"]\n'
        )),
        "docker/fpm.conf": (
            "[global]\nerror_log = /dev/stderr\nprocess_control_timeout = 5s\n"
            "[www]\nuser = www-data\ngroup = www-data\nlisten = 9000\n"
            "pm = static\npm.max_children = 8\n"
        ),
        "docker/site.conf": """
server {
    listen 80;
    root /var/www/public;
    location / {
        include fastcgi_params;
        fastcgi_pass fpm:9000;
        fastcgi_param SCRIPT_FILENAME /var/www/public/index.php;
    }
}
""",
        "public/index.php": """<?php
$rows = '/var/www/storage';
if ($_SERVER['REQUEST_URI'] != '/rows') { readfile('/var/www/VERSION'); exit; }
if ($_SERVER['REQUEST_METHOD'] == 'POST')
    file_put_contents("$rows/" . bin2hex(random_bytes(16)), file_get_contents('php://input'));
$all = array_map('file_get_contents', glob("$rows/*"));
sort($all);
header('Content-Type: application/json');
echo json_encode($all);
""",
    },
    data={"service": "nginx", "container_port": 80, "shared": ["storage"], "health_path": "/rows"},
)  # fmt: skip

# --- Rails in one file, with SQLite's opposite: rows in PostgreSQL --------------------------------

RAILS = Framework(
    files={
        "Dockerfile": image(
            *("puma", "ruby-activerecord", "ruby-pg", "ruby-railties"), more=(
                "RUN useradd --create-home rails\nWORKDIR /rails\nCOPY . .\nUSER rails\n"
                "EXPOSE 3000\n"
                'CMD ["puma", "--port", "3000", "--threads", "4:4", "config.ru"]\n'
            ),
        ),
        "Gemfile": "gem 'rails'\n",
        "migrate.rb": """
require 'active_record'
ActiveRecord::Base.establish_connection(ENV['DATABASE_URL'])
ActiveRecord::Base.connection.create_table(:rows, if_not_exists: true) { |t| t.text :text }
""",
        "config.ru": """
require 'logger'
require 'rails'
require 'active_record/railtie'
require 'action_controller/railtie'
class Site < Rails::Application
  config.load_defaults Rails::VERSION::STRING.to_f
  config.eager_load = false
  config.hosts << 'rails.terrafirma.test'
  config.secret_key_base = ENV.fetch('SECRET_KEY_BASE')
  config.logger = Logger.new($stdout)
  routes.append do
    root to: 'pages#version'
    get '/up', to: 'rails/health#show' if defined?(Rails::HealthController)
    get '/rows', to: 'pages#rows'
    post '/rows', to: 'pages#add'
  end
end
class Row < ActiveRecord::Base; end
class PagesController < ActionController::API
  def version = render(plain: File.read('VERSION'))
  def rows = render(json: Row.order(:text).pluck(:text))
  def add
    Row.create!(text: request.raw_post)
    rows
  end
end
Site.initialize!
run Site
""",
    },
    data={
        "database": "its own", "secrets": {"secret_key_base": "generated"}, "secrets_env": True,
        "env": {"RAILS_ENV": "production"}, "migrate": ["ruby", "migrate.rb"],
        "health_path": "/rows",
    },
)  # fmt: skip

ALL = {
    "static": STATIC, "flask": FLASK, "sqlite": SQLITE,
    "django": DJANGO, "fastapi": FASTAPI, "express": EXPRESS, "go": GO, "php": PHP,
    "rails": RAILS,
}  # fmt: skip
CHEAP = ("flask", "sqlite")
"""Those that `make check` runs."""
