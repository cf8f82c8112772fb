"""Which stages a Dockerfile has."""

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


@pytest.mark.parametrize("target", ["production", "golang", "2"])
def test_a_stage_that_is_not_there(target: str) -> None:
    with pytest.raises(ValueError, match=f"no stage '{target}' \\(build, Release\\)"):
        refuse_unknown_stage(DOCKERFILE, target)


def test_a_file_without_stages_is_for_the_builder_to_judge() -> None:
    refuse_unknown_stage("", "release")
