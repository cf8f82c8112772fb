"""Which stages a Dockerfile has."""

import time

import pytest

from terrafirma.app.container import refuse_unknown_stage

DOCKERFILE = """\
# syntax=docker/dockerfile:1
ARG VERSION=3
FROM --platform=$BUILDPLATFORM golang:1.23 AS build
RUN go build
from scratch as Release
COPY --from=build /server /
"""


@pytest.mark.parametrize("target", ["", "build", "release", "RELEASE", "0", "1"])
def test_a_stage_that_is_there(target: str) -> None:
    refuse_unknown_stage(DOCKERFILE, target)


@pytest.mark.parametrize(
    "text",
    [
        "FROM --platform=linux/amd64 \\\n  golang:1.23 \\\n  AS build\n",
        # A comment or an empty line does not end the instruction.
        "FROM golang:1.23 \\ \n# which one\n\n  AS build\n",
        "# syntax=docker/dockerfile:1\n# escape=`\nFROM golang:1.23 `\n AS build\n",
        "FROM golang:1.23 AS \\\nbuild",
    ],
)
def test_an_instruction_over_several_lines(text: str) -> None:
    refuse_unknown_stage(text, "build")
    with pytest.raises(ValueError, match=r"no stage 'other' \(build\)"):
        refuse_unknown_stage(text, "other")


@pytest.mark.parametrize("line", ["\\", "#", " ", "FROM \\", "# escape="])
def test_a_long_dockerfile_takes_no_longer(line: str) -> None:
    start = time.process_time()
    refuse_unknown_stage(f"{line}\n" * 50_000 + "FROM a AS build", "")
    refuse_unknown_stage(line * 50_000, "")
    assert time.process_time() - start < 5


@pytest.mark.parametrize("target", ["production", "golang", "2"])
def test_a_stage_that_is_not_there(target: str) -> None:
    with pytest.raises(ValueError, match=f"no stage '{target}' \\(build, Release\\)"):
        refuse_unknown_stage(DOCKERFILE, target)


def test_a_file_without_stages_is_for_the_builder_to_judge() -> None:
    refuse_unknown_stage("", "release")
