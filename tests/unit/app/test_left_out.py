"""Files that compose files read but that stay on the machine that deploys."""

from pathlib import Path
from typing import Any

import pytest

from terrafirma.app.left_out import files_left_out
from tests.unit.settings import application

OPTIONAL = "services: {web: {env_file: [{path: .env, required: false}]}}"
WORDS = (
    'env_file reads .env, which is not uploaded: env_file = ["{source}/.env"] sends its variables '
    "(PASSWORD, TOKEN) as secrets, if they are those for the server; otherwise name them in env"
)
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "by itself": ("services: {web: {env_file: .env}}", WORDS, {}),
    "in a list": ("services: {web: {env_file: [web.env, ./.env]}}", "reads ./.env, which", {}),
    "optional": (OPTIONAL, WORDS, {}),
    "half given": (OPTIONAL, "(TOKEN)", {"env": {"PASSWORD": "x"}}),
    "given": (
        OPTIONAL,
        "",
        {"env": {"PASSWORD": "x"}, "secrets": {"token": "generated"}, "secrets_env": True},
    ),
    "a secret that is no variable": (
        OPTIONAL,
        "(TOKEN)",
        {"env": {"PASSWORD": "x"}, "secrets": {"token": "generated"}},
    ),
    "needed, though given": (
        "services: {web: {env_file: .env}}",
        "",
        {"env": {"PASSWORD": "x", "TOKEN": "y"}},
    ),
    "merged": ("x-a: &a {env_file: .env}\nservices: {web: {<<: *a}}", WORDS, {}),
    "another of the kind": ("services: {web: {env_file: .env.production}}", "(KEY)", {}),
    "in a directory that stays": ("services: {web: {env_file: .venv/a.env}}", "(A)", {}),
    "a developer's, that may be missing": (OPTIONAL.replace(".env", ".env.local"), "", {}),
    "… of development": (OPTIONAL.replace(".env", ".env.development"), "", {}),
    "… in a directory": (OPTIONAL.replace(".env", ".venv/a.env"), "", {}),
    "… of a name of their own": (OPTIONAL.replace(".env", ".env.anna"), "", {}),
    "a developer's, that has to be there": (
        "services: {web: {env_file: .env.local}}",
        'env_file = ["{source}/.env.local"] sends its variables (LEVEL)',
        {},
    ),
    "production's, that may be missing": (
        OPTIONAL.replace(".env", ".env.production"),
        'env_file = ["{source}/.env.production"] sends its variables (KEY)',
        {},
    ),
    "… as it is called elsewhere": (OPTIONAL.replace(".env", ".venv/prod.env"), "(HOST)", {}),
    "uploaded": ("services: {web: {env_file: web.env}}", "", {}),
    "nowhere": ("services: {web: {env_file: [{path: no.env, required: false}]}}", "", {}),
    "by a variable": ('services: {web: {env_file: "${STAGE}.env"}}', "", {}),
    "of the host": ("services: {web: {env_file: /etc/shop.env}}", "", {}),
    "nowhere, and needed": (
        "services: {web: {env_file: [web.env, no.env]}}",
        "reads no.env, which is not there: write {source}/no.env, and name it in env_file",
        {},
    ),
    "beside": (
        "services: {web: {env_file: ../a.env}}",
        "reads ../a.env, which is not there: write {above}/a.env, and name it in env_file",
        {},
    ),
    "sent": ("services: {web: {env_file: [.env, ../a.env]}}", "", {"env_file": ["x/.env"]}),
    "extends": (
        "services: {web: {extends: {file: ../b.yaml, service: b}}}",
        "extends reads ../b.yaml, which is outside of",
        {},
    ),
    "include": ("include: [../c.yaml]", "include reads ../c.yaml, which is outside of", {}),
    "include, in long words": ("include: [{path: [a.yaml, ../c.yaml]}]", "../c.yaml, which", {}),
    "extends inside": ("services: {web: {extends: {file: b.yaml, service: b}}}", "", {}),
    "no YAML": ("services: {", "", {}),
    "nothing": ("", "", {}),
}


def test_the_example_of_a_file_is_named_where_the_file_is_missing(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text("services: {web: {build: ., env_file: [.env]}}")
    (tmp_path / ".env.example").write_text("A=\n")
    app = application("shop", source=str(tmp_path), compose=["compose.yaml"])
    (line,) = files_left_out(app)
    assert line == (
        f"compose.yaml: env_file reads .env, which is not there: copy .env.example to "
        f"{tmp_path}/.env, fill it in, and name it in env_file"
    )


@pytest.mark.parametrize("what", CASES)
def test_files_that_are_not_uploaded(tmp_path: Path, what: str) -> None:
    text, words, settings = CASES[what]
    source = tmp_path / "source"
    (source / ".venv").mkdir(parents=True)
    for name, content in {
        "compose.yaml": text,
        ".env": "# PASSED=1\nPASSWORD=s3cret\nexport TOKEN='s3cret'\n",
        ".env.production": "KEY=s3cret\n",
        ".venv/a.env": "A=s3cret\n",
        ".venv/prod.env": "HOST=s3cret\n",
        ".env.local": "\n \t\n\n  export LEVEL=s3cret\n",
        ".env.development": "LEVEL=s3cret\n",
        ".env.anna": "LEVEL=s3cret\n",
        "web.env": "B=s3cret\n",
        "b.yaml": "",
    }.items():
        (source / name).write_text(content)
    app = application("web", source=str(source), compose=["compose.yaml"], **settings)
    said = list(files_left_out(app))
    assert len(said) == bool(words)
    for line in said:
        assert line.startswith("compose.yaml: ")
        assert words.format(source=source, above=tmp_path) in line
        assert "\n" not in line
        # The message has the names of the variables, but no value.
        assert "s3cret" not in line
