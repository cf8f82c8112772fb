"""Managed by Terrafirma. The parts of an image's name: registry, path, tag and digest."""

from __future__ import annotations

from dataclasses import dataclass

HUB = "docker.io"

NAME = r"[a-z0-9][a-z0-9._:-]*(/[a-z0-9._-]+)*(:[\w.-]{1,128})?(@sha256:[0-9a-f]{64})?"
"""Host, path, tag and digest."""


@dataclass(frozen=True)
class Image:
    """The parts of an image's name."""

    name: str
    host: str  # as settings name it: "docker.io" where the name has none
    path: str
    tag: str

    @classmethod
    def of(cls, name: str) -> Image:
        bare = name.partition("@")[0]
        first, slash, rest = bare.partition("/")
        named = slash and ("." in first or ":" in first or first == "localhost")
        host, path = (first, rest) if named else (HUB, bare)
        host = HUB if host == f"index.{HUB}" else host
        head, colon, tag = path.rpartition(":")
        path, tag = (head, tag) if colon else (path, "latest")
        official = host == HUB and "/" not in path
        return cls(name, host, f"library/{path}" if official else path, tag)

    @property
    def repository(self) -> str:
        """The name as it is written, without its tag and digest."""
        head, slash, last = self.name.partition("@")[0].rpartition("/")
        return head + slash + last.partition(":")[0]

    @property
    def last(self) -> str:
        """The last part of the path, like `postgres`."""
        return self.path.rpartition("/")[2]

    @property
    def publisher(self) -> str:
        """The part of the path before the last one; "library" for Docker's own images."""
        return self.path.rpartition("/")[0].rpartition("/")[2]
