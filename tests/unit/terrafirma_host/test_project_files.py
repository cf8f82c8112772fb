"""What Compose says of files; in `tests/e2e/projects.py` Compose itself reads such files."""

from terrafirma_host.project_files import errors, unknown, warnings

from tests.unit.terrafirma_host.projects import SHOP

# As Compose 2.26 writes them.
SAID = r"""time="2026-11-27T21:47:53Z" level=warning msg="The \"PW\" variable is not set. Defaulting to a blank string."
time="2026-11-27T21:47:53Z" level=warning msg="The \"PW\" variable is not set. Defaulting to a blank string."
time="2026-11-27T21:47:53Z" level=warning msg="/src/compose.yaml: the attribute `version` is obsolete, it will be ignored, please remove it to avoid potential confusion"
time="2026-11-27T21:57:04Z" level=warning msg="volumes.f: external.name is deprecated. Please set name and external: true"
time="2026-11-27T21:57:05Z" level=warning msg="\"yes\" for boolean is not supported by YAML 1.2, please use `true`"
time="2026-11-27T21:57:05Z" level=warning msg=mystery
service "web" depends on undefined service "db": invalid compose project
"""  # noqa: E501


def test_warnings_of_compose_are_told_from_its_errors() -> None:
    said = warnings(SAID)
    assert said[0] == 'The "PW" variable is not set. Defaulting to a blank string.'
    assert len(said) == 5
    assert errors(SHOP, SAID) == (
        'service "web" depends on undefined service "db": invalid compose project'
    )
    # Unknown warnings are shown.
    assert unknown(said) == [
        '"yes" for boolean is not supported by YAML 1.2, please use `true`',
        "mystery",
    ]
