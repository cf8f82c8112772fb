# Managed by Terrafirma: tasks/borg.py
"""The repository on the backup host: whether it can be used, and whether it is still the same."""

import json
import os
import posixpath
import pwd
import re
import shlex
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from backup_causes import REPOSITORY_GONE, cause

CONFIG = Path("/etc/borgmatic/config.yaml")
STATE = Path("/var/lib/terrafirma/backup")
KEY = Path("/etc/terrafirma/secrets/borg/id_ed25519.pub")
KNOWN_HOSTS = "/etc/borgmatic/known_hosts"
PROC = Path("/proc")
# Our own settings are in a comment of borgmatic's file, so that one file has all settings.
OURS = re.compile(r"^# For the program that runs borgmatic: (.*)$", re.MULTILINE)
WAIT = "600"  # seconds to wait for another borg's lock, as in borgmatic's settings

Settings = dict[str, Any]  # what `read` returns


class Failed(Exception):
    """A failure, explained in one line."""


class Nothing(Failed):
    """The failure that no repository exists."""


def read(path: Path | str) -> Settings:
    text = Path(path).read_text()
    found = OURS.search(text)
    if not found:
        raise Failed(f"{path} is older than this program: run the deploy")
    cluster = re.search(r"--cluster (\d+)/main", text)
    ours: Settings = json.loads(found[1])
    return ours | {
        "version": cluster[1] if cluster else "", "path": str(path),
        "place": normal(ours["repository"]),
    }  # fmt: skip


def normal(url: str) -> str:
    """A repository's URL in normal form: `ssh://box@host/./a//b/` is `ssh://box@host/./a/b`."""
    host, _, path = url.removeprefix("ssh://").partition("/")
    relative = "/." if path.startswith("./") else ""
    return f"ssh://{host}{relative}{posixpath.normpath('/' + path.lstrip('/'))}"


def address(settings: Settings) -> tuple[str, int]:
    url = urlsplit(settings["repository"])
    return url.hostname or "", url.port or 22


def environment(settings: Settings, **more: str) -> dict[str, str]:
    """The environment for borg, with nothing from the caller's environment."""
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        # borg keeps its knowledge of repositories there, so it must not depend on the caller.
        "HOME": pwd.getpwuid(os.getuid()).pw_dir,
        "BORG_REPO": settings["repository"],
        "BORG_RSH": settings["ssh_command"],
        "BORG_PASSCOMMAND": settings["passcommand"],
        "BORG_REMOTE_PATH": settings["remote_path"] or "borg",
        "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "no",
        "BORG_RELOCATED_REPO_ACCESS_IS_OK": "no",
        **more,
    }


def borg(settings: Settings, *words: str, **more: str) -> str:
    """borg's output; raises Failed with the cause if it fails. Warnings are not failures."""
    result = subprocess.run(
        ["borg", "--lock-wait", WAIT, *words],
        env=environment(settings, **more), cwd="/",
        capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if result.returncode not in (0, 1):
        raise failure(settings, result.stderr + result.stdout)
    return result.stdout


def rename(settings: Settings, archive: str, name: str) -> None:
    """
    Give `archive` another name.

    `borg rename` before 1.2.5 leaves the signature of the old name behind: a newer borg refuses to
    read such an archive, and `borg check --repair` removes it. `recreate` signs what it makes.
    """
    version = [int(number) for number in re.findall(r"\d+", borg(settings, "--version"))]
    if version >= [1, 2, 5]:
        borg(settings, "rename", f"::{archive}", name)
        return
    borg(settings, "recreate", "--target", name, f"::{archive}")
    borg(settings, "delete", f"::{archive}")


def failure(settings: Settings, said: str) -> Failed:
    if "Connection closed by remote host" in said:
        # borg may have missed the error message of ssh.
        said += asked(settings)
    host, port = address(settings)
    words = cause(
        said,
        host=host,
        key=KEY.read_text().strip() if KEY.exists() else "there is none",
        borg=settings["remote_path"] or "borg",
        shown=shown(host, port) if "ost key" in said else "",
        locker=locker() if "acquire the lock" in said else "",
        said=said.strip().splitlines()[-1] if said.strip() else "",
    )
    empty = REPOSITORY_GONE in words or "is not a valid repository" in said
    return (Nothing if empty else Failed)(words)


def asked(settings: Settings) -> str:
    """The errors of ssh when it runs `borg --version` on the host, in the form of borg's output."""
    url = urlsplit(settings["repository"])
    command = [
        *shlex.split(settings["ssh_command"]), *(("-p", str(url.port)) if url.port else ()),
        f"{url.username}@{url.hostname}", f"{settings['remote_path'] or 'borg'} --version",
    ]  # fmt: skip
    with suppress(OSError, subprocess.TimeoutExpired):
        result = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=150,
            stdin=subprocess.DEVNULL, env=environment(settings),
        )  # fmt: skip
        return "".join(f"\nRemote: {line}" for line in result.stderr.splitlines())
    return ""


def shown(host: str, port: int) -> str:
    """Fingerprints of the host keys that the host shows."""
    with suppress(OSError, subprocess.TimeoutExpired):
        keys = subprocess.run(
            ["ssh-keyscan", "-T", "10", "-p", str(port), host],
            capture_output=True, text=True, timeout=60,
        ).stdout  # fmt: skip
        prints = subprocess.run(
            ["ssh-keygen", "-lf", "-"], input=keys, capture_output=True, text=True
        ).stdout
        found = [
            f"{line.split()[-1].strip('()')} {line.split()[1]}" for line in prints.splitlines()
        ]
        return ", ".join(found) or "none"
    return "none"


def locker() -> str:
    """The process on this server that may hold the lock, which the backup host does not tell."""
    for entry in PROC.glob("[0-9]*"):
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if (
                any(word.endswith(b"/borg") for word in words[:2])
                and int(entry.name) != os.getpid()
            ):
                since = time.strftime("%F %T", time.localtime(entry.stat().st_mtime))
                return f"process {entry.name} of this server works on it since {since}"
    return (
        "no borg runs on this server: another host holds the lock, or a borg that died. If no borg "
        "runs elsewhere either: borgmatic break-lock"
    )


def look(settings: Settings, *words: str) -> tuple[str, list[str]]:
    """
    Id and archives of the repository, including archives that do not count.

    borg runs with an empty directory in place of its memory of repositories: with that memory it
    would ask about a moved repository, and refuse an unencrypted one, before it tells the id. It
    takes no lock, which reading does not need. Key files are still found in their usual directory.
    """
    with tempfile.TemporaryDirectory(prefix="terrafirma-") as nothing:
        said = borg(
            settings, "list", "--json", "--bypass-lock", "--consider-checkpoints", *words,
            BORG_BASE_DIR=nothing, BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK="yes",
            BORG_KEYS_DIR=f"{pwd.getpwuid(os.getuid()).pw_dir}/.config/borg/keys",
        )  # fmt: skip
    answer = json.loads(said)
    return answer["repository"]["id"], [archive["archive"] for archive in answer["archives"]]


# --- which repository it is -----------------------------------------------------------------------


def remembered() -> dict[str, str]:
    """The repository's id for each place (URL) that this server has used, the latest last."""
    with suppress(OSError, ValueError, AttributeError, TypeError):
        known = json.loads((STATE / "repositories.json").read_text())
        return {normal(place): bytes.fromhex(one).hex() for place, one in known.items()}
    # Without a readable file, use borg's own memory.
    with suppress(OSError):
        text = CONFIG.read_text()
        places = Path(pwd.getpwuid(os.getuid()).pw_dir, ".config/borg/security").glob("*/location")
        known = {normal(place.read_text()): place.parent.name for place in places}
        configured = {normal(place) for place in re.findall(r'"(ssh://[^"]+)"', text)}
        return {place: one for place, one in known.items() if place in configured}
    return {}


def remember(known: dict[str, str], place: str, identity: str) -> None:
    known = {at: one for at, one in known.items() if at != place} | {place: identity}
    new = STATE / "repositories.json.new"
    new.write_text(json.dumps(known, indent=1) + "\n")
    new.replace(STATE / "repositories.json")


def judge(known: dict[str, str], settings: Settings, found: str | None) -> None:
    """
    Refuse to start over, or to go on with another repository, unless the settings allow it.

    `found` is the id of the repository at borg_repository; None if there is none.
    """
    place, wanted = settings["place"], settings["repository_id"]
    old = known.get(place) or (list(known.values())[-1] if known else "")
    at = next((where for where, one in reversed(known.items()) if one == old), "")
    if found is None:
        if wanted:
            raise Failed(
                f"borg_repository_id: {wanted} should be at {place}, but {REPOSITORY_GONE}"
            )
        if old and settings["repository_replaces"] != old:
            raise Failed(
                f"{REPOSITORY_GONE}: {place}; this server's repository is {old} at {at}. If it was "
                "moved, the path is wrong; if it is lost or given up, create a new one with "
                f'borg_repository_replaces = "{old}"'
            )
        return
    if wanted and wanted != found:
        raise Failed(f"borg_repository_id: {wanted} should be at {place}, but {found} is there")
    if not old or wanted or known.get(place) == found:
        return
    if found in known.values():
        at = next(where for where, one in reversed(known.items()) if one == found)
        raise Failed(
            f"borg_repository: the repository {found} was at {at}, and is at {place} now. If you "
            f'moved it, set borg_repository_id = "{found}"'
        )
    raise Failed(
        f"borg_repository: this is another repository, {found}: this server's is {old}, at {at}. "
        f'To go on with {found}, set borg_repository_id = "{found}"'
    )


def prove(path: str) -> None:
    settings = read(path)
    known, place = remembered(), settings["place"]
    with tempfile.TemporaryDirectory(prefix="terrafirma-") as scratch:
        hosts = Path(scratch, "known_hosts")
        hosts.write_text("".join(f"{line}\n" for line in settings["known_hosts"]))
        settings["ssh_command"] = settings["ssh_command"].replace(KNOWN_HOSTS, str(hosts))
        found: str | None = None
        with suppress(Nothing):
            found = look(settings, "--last", "1")[0]
        judge(known, settings, found)
        if found is None:
            borg(settings, "init", "--encryption", "repokey-blake2", "--make-parent-dirs")
            found = look(settings, "--last", "1")[0]
            print(f"created the repository {found} at {place}")
        # The id has been checked, so borg need not ask about a repository that it knows elsewhere.
        borg(settings, "list", "--last", "1", BORG_RELOCATED_REPO_ACCESS_IS_OK="yes")
        remember(known, place, found)
