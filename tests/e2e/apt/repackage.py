"""
Makes the packages that the vendors' stand-in offers, and the keys and certificates that it uses.

Runs in a container of Debian 13 (`repackage.py CADDY DIRECTORY`). The engines are real: those of
Debian's archive, in packages that have the vendors' names, versions, relations, paths and
maintainer scripts. A program that Debian has in one version only is offered as further versions,
with the same content.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CADDY, ALL = Path(sys.argv[1]), Path(sys.argv[2])
WORK = Path("/var/tmp/repackage")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
RELEASES = {"trixie": "13", "bookworm": "12"}
HOSTS = ("download.docker.com", "apt.postgresql.org", "www.postgresql.org", "dl.cloudsmith.io")

Control = dict[str, str]


def run(*command: str | Path, **more: Any) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, **more)
    return str(done.stdout).strip()


# --- Debian's packages ----------------------------------------------------------------------------


class Archive:
    """The archive of one release of Debian, from the mirror that this machine uses."""

    def __init__(self, codename: str) -> None:
        self.directory = WORK / codename
        lists = self.directory / "lists"
        (lists / "partial").mkdir(parents=True)
        source = self.directory / "sources.list"
        source.write_text(f"deb [signed-by={KEYRING}] {self.uri()} {codename} main\n")
        self.options = [
            word
            for option in (
                f"Dir::Etc::SourceList={source}",
                "Dir::Etc::SourceParts=/dev/null",
                f"Dir::State::Lists={lists}",
                # The packages installed here must not influence the choice.
                "Dir::State::status=/dev/null",
                "Dir::Cache::pkgcache=",
                "Dir::Cache::srcpkgcache=",
                "Acquire::Languages=none",
                # An outdated mirror is good enough.
                "Acquire::Check-Valid-Until=no",
                "APT::Sandbox::User=root",
            )
            for word in ("-o", option)
        ]
        run("apt-get", "-q", *self.options, "update")

    @staticmethod
    def uri() -> str:
        wanted = ("Created-By: Packages", "Codename: trixie", "Component: main")
        return run("apt-get", "indextargets", "--format", "$(REPO_URI)", *wanted).split()[0]

    def fetch(self, name: str) -> Taken:
        place = self.directory / name
        place.mkdir()
        run("apt-get", "-q", *self.options, "download", name, cwd=place)
        (deb,) = place.glob("*.deb")
        run("dpkg-deb", "-x", deb, place / "tree")
        run("dpkg-deb", "-e", deb, place / "control")
        return Taken(place / "tree", place / "control")


@dataclass(frozen=True)
class Taken:
    """An unpacked package of Debian."""

    tree: Path
    scripts: Path

    @property
    def control(self) -> Control:
        lines = (self.scripts / "control").read_text().splitlines()
        return {
            key: value.strip()
            for key, found, value in (line.partition(":") for line in lines)
            if found and not key.startswith(" ")
        }

    @property
    def version(self) -> str:
        """The upstream version: "28.5.2" of "28.5.2+dfsg4-5"."""
        match = re.match(r"(?:\d+:)?(\d[\d.]*\d|\d)", self.control["Version"])
        assert match
        return match[1]


# --- the vendors' packages ------------------------------------------------------------------------


@dataclass
class Package:
    """A package that is built once, and offered as several versions and for several releases."""

    name: str
    tree: Path
    control: Control
    scripts: Mapping[str, str] = field(default_factory=dict)
    _built: Path | None = None

    def build(self) -> Path:
        if self._built is None:
            admin = self.tree / "DEBIAN"
            admin.mkdir()
            fields = {"Package": self.name, "Version": "0", **self.control}
            fields.setdefault("Maintainer", "Terrafirma's tests <nobody@terrafirma.test>")
            fields.setdefault("Description", "stand-in for the vendor's package")
            (admin / "control").write_text(_fields(fields))
            for name, text in self.scripts.items():
                (admin / name).write_text(text)
                (admin / name).chmod(0o644 if name in ("conffiles", "triggers") else 0o755)
            self._built = WORK / f"{len(list(WORK.iterdir()))}-{self.name}.deb"
            run("dpkg-deb", "--root-owner-group", "-Zzstd", "-z1", "-b", self.tree, self._built)
            shutil.rmtree(self.tree)
        return self._built

    def offer(self, vendor: str, codename: str, version: str, **fields: str) -> None:
        """Add it to the pool as this version: only its control archive differs."""
        built = self.build()
        parts = WORK / "parts"
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir()
        run("ar", "x", built, cwd=parts)
        control = parts / "control"
        run("dpkg-deb", "-e", built, control)
        changed = {**_read(control / "control"), "Version": version, **fields}
        (control / "control").write_text(_fields(changed))
        run("tar", "--owner=0", "--group=0", "--numeric-owner", "-czf", "control.tar.gz",
            "-C", "control", ".", cwd=parts)  # fmt: skip
        pool = ALL / "pool" / vendor / codename
        pool.mkdir(parents=True, exist_ok=True)
        plain = version.partition(":")[2] or version
        deb = pool / f"{self.name}_{plain}_{changed['Architecture']}.deb"
        (data,) = parts.glob("data.tar*")
        run("ar", "rcD", deb, "debian-binary", "control.tar.gz", data.name, cwd=parts)
        print(f"{vendor} {codename}: {deb.name}", flush=True)


def _read(path: Path) -> Control:
    found: Control = {}
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if not line.startswith(" "):
            found[key] = value.strip()
    return found


def _fields(fields: Mapping[str, str]) -> str:
    return "".join(f"{key}: {value}\n" for key, value in fields.items() if value)


def tree(name: str, files: Mapping[str, Path | str] = {}) -> Path:
    """A new tree with these files: copies or text; text below a `bin` directory is executable."""
    root = WORK / "trees" / f"{name}-{os.urandom(4).hex()}"
    root.mkdir(parents=True)
    root.chmod(0o755)
    for path, content in files.items():
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copy2(content, target)
        else:
            target.write_text(content)
            target.chmod(0o755 if "bin/" in path else 0o644)
    return root


# Versions that do not start; a test must ask for one to have it offered.
broken: list[str] = []
BROKEN = "#!/bin/sh\necho 'this build does not start' >&2\nexit 1\n"


def starting(unit: str, *before: str) -> dict[str, str]:
    """Maintainer scripts of a vendor's package: an upgrade restarts its units."""
    start = (
        'if [ -n "$2" ]; then action=restart; else action=start; fi\n'
        f"deb-systemd-invoke $action {unit} > /dev/null || true\n"
    )
    units = unit.split()
    enable = "".join(
        f"deb-systemd-helper unmask {one} > /dev/null || true\n"
        f"if deb-systemd-helper --quiet was-enabled {one}; then\n"
        f"deb-systemd-helper enable {one} > /dev/null || true\nelse\n"
        f"deb-systemd-helper update-state {one} > /dev/null || true\nfi\n"
        for one in units
    )
    reload = "if [ -d /run/systemd/system ]; then systemctl --system daemon-reload; fi\n"
    return {
        "postinst": '#!/bin/sh\nset -e\n[ "$1" = configure ] || exit 0\n'
        + "".join(f"{line}\n" for line in before) + enable + reload + start,
        "prerm": '#!/bin/sh\nset -e\n[ "$1" != remove ] ||'
        f" deb-systemd-invoke stop {unit} > /dev/null || true\n",
        "postrm": f'#!/bin/sh\nset -e\n[ "$1" != remove ] || {reload}'
        f'[ "$1" != purge ] || deb-systemd-helper purge {unit} > /dev/null || true\n',
    }  # fmt: skip


@dataclass(frozen=True)
class Docker:
    """Docker's packages, with the programs of one release of Debian."""

    archive: Archive
    runc: Mapping[str, Path]  # by the codename of the release that it runs on
    tini: Path

    def offer(self, further: Iterable[str] = (), *, fails: str = "") -> None:
        """Offer the real version, `further` ones with its content, and one that `fails`."""
        engine, cli = self.archive.fetch("docker.io"), self.archive.fetch("docker-cli")
        containerd = self.archive.fetch("containerd")
        buildx, compose = self.archive.fetch("docker-buildx"), self.archive.fetch("docker-compose")
        architecture = {"Architecture": engine.control["Architecture"]}
        plugins = "/usr/libexec/docker/cli-plugins"
        old = "docker (<< 1.5~), docker-engine, docker.io"
        of_engine = {
            **architecture,
            "Pre-Depends": "init-system-helpers (>= 1.54~)",
            "Depends": "containerd.io (>= 1.7.24), docker-ce-cli, iptables, nftables,"
            " libc6 (>= 2.34), libsystemd0",
            "Recommends": "apparmor, ca-certificates, git, pigz, procps, xz-utils",
            "Conflicts": old,
            "Replaces": "docker-engine, docker-ce-cli (<< 5:28.0.0)",
        }
        group = "getent group docker > /dev/null || groupadd --system docker"
        scripts = starting("docker.service docker.socket", group) | {
            "conffiles": "/etc/default/docker\n/etc/init.d/docker\n"
        }
        files: dict[str, Path | str] = {
            "/usr/bin/docker-proxy": _program(engine, "docker-proxy"),
            "/usr/bin/docker-init": self.tini,
            "/etc/default/docker": engine.tree / "etc/default/docker",
            "/etc/init.d/docker": engine.tree / "etc/init.d/docker",
            "/usr/lib/systemd/system/docker.socket": _unit(engine, "docker.socket"),
            "/usr/lib/systemd/system/docker.service": re.sub(
                "ExecStart=.*",
                "ExecStart=/usr/bin/dockerd -H fd:// --containerd=/run/containerd/containerd.sock",
                _unit(engine, "docker.service").read_text(),
            ),
        }
        starts: dict[str, Path | str] = {"/usr/bin/dockerd": _program(engine, "dockerd")}
        docker_ce = Package("docker-ce", tree("docker-ce", files | starts), of_engine, scripts)
        no_engine = tree("docker-ce", files | {"/usr/bin/dockerd": BROKEN})
        docker_fails = Package("docker-ce", no_engine, of_engine, scripts)
        docker_cli = Package(
            "docker-ce-cli",
            tree("docker-ce-cli", {"/usr/bin/docker": cli.tree / "usr/bin/docker"}),
            {
                **architecture,
                "Depends": "libc6 (>= 2.34)",
                "Recommends": "docker-buildx-plugin, docker-compose-plugin",
                "Conflicts": old,
                "Replaces": "docker-ce (<< 5:0)",
                "Breaks": "docker-ce (<< 5:0)",
            },
        )
        for codename, number in RELEASES.items():
            mark = f"debian.{number}~{codename}"
            for one, version in (
                (docker_ce, engine.version),
                *((docker_ce, version) for version in further),
                (docker_fails, fails),
            ):
                if version:
                    one.offer("docker", codename, f"5:{version}-1~{mark}")
                    docker_cli.offer("docker", codename, f"5:{version}-1~{mark}")
            if fails:
                broken.append(f"5:{fails}-1~{mark}")
            self._containerd(containerd, codename, architecture).offer(
                "docker", codename, f"{containerd.version}-1~{mark}"
            )
        plugin = {**architecture, "Depends": "libc6 (>= 2.34)", "Enhances": "docker-ce-cli"}
        plugin_compose = plugin | {
            "Conflicts": "docker-compose",
            "Replaces": "docker-compose",
            "Breaks": "docker-compose",
        }
        for name, taken, fields in (
            ("buildx", buildx, plugin), ("compose", compose, plugin_compose),
        ):  # fmt: skip
            path = f"{plugins}/docker-{name}"
            files = {path: taken.tree / path.lstrip("/")}
            one = Package(f"docker-{name}-plugin", tree(name, files), fields)
            for codename, number in RELEASES.items():
                version = f"{taken.version}-1~debian.{number}~{codename}"
                one.offer("docker", codename, version)

    def _containerd(self, taken: Taken, codename: str, architecture: Control) -> Package:
        programs = (taken.tree / "usr/bin").glob("*")
        files: dict[str, Path | str] = {
            **{f"/usr/bin/{one.name}": one for one in programs},
            "/usr/bin/runc": self.runc[codename],
            "/etc/containerd/config.toml": 'disabled_plugins = ["cri"]\n',
            "/usr/lib/systemd/system/containerd.service": _unit(taken, "containerd.service"),
        }
        return Package(
            "containerd.io",
            tree("containerd.io", files),
            {
                **architecture,
                "Depends": "libc6 (>= 2.34), libseccomp2 (>= 2.5.0)",
                "Provides": "containerd, runc",
                "Conflicts": "containerd, runc",
                "Replaces": "containerd, runc",
            },
            starting("containerd.service") | {"conffiles": "/etc/containerd/config.toml\n"},
        )


def _program(taken: Taken, name: str) -> Path:
    (path,) = (one for one in taken.tree.rglob(name) if one.is_file() and "bin" in one.parent.name)
    return path


def _unit(taken: Taken, name: str) -> Path:
    (path,) = (one for one in taken.tree.rglob(name) if "systemd" in one.parts)
    return path


def offer_postgres(archive: Archive, codename: str, major: str) -> None:
    """Offer two minor releases, and one that does not start, of Debian's major version."""
    mark = f"pgdg{RELEASES[codename]}+1"
    common = f"293.{mark}"
    names = ["postgresql-common", "postgresql-client-common", "libpq5"]
    if codename == "trixie":
        names.append("postgresql-common-dev")
    minors = [f"{major}.{minor}-1.{mark}" for minor in (91, 92)]
    for name in (*names, f"postgresql-{major}", f"postgresql-client-{major}"):
        taken = archive.fetch(name)
        one = _same(name, taken, common)
        if name in names:
            # At the vendor's, libpq5 comes from the newest major version.
            one.offer("pgdg", codename, f"18.6-1.{mark}" if name == "libpq5" else common)
            continue
        for version in minors:
            one.offer("pgdg", codename, version)
        last = f"{major}.93-1.{mark}"
        if name == f"postgresql-{major}":
            fails = taken.tree / f"usr/lib/postgresql/{major}/bin/postgres"
            fails.write_text(BROKEN)
            _same(name, taken, common).offer("pgdg", codename, last)
            broken.append(last)
        else:
            one.offer("pgdg", codename, last)
    # PGDG has PgBouncer, too, but it must come from the distribution.
    stranger = {"Architecture": "all", "Description": "must not be installed"}
    Package("pgbouncer", tree("pgbouncer"), stranger).offer("pgdg", codename, f"1.99.0-1.{mark}")


def _same(name: str, taken: Taken, common: str) -> Package:
    """Debian's package, unchanged except for the versions of its relations."""
    control = taken.control
    for relation in ("Depends", "Breaks", "Replaces"):
        if relation in control:
            control[relation] = re.sub(r"\(= [^)]*deb1\du\d\)", f"(= {common})", control[relation])
    scripts = {
        one.name: one.read_text()
        for one in taken.scripts.iterdir()
        if one.name not in ("control", "md5sums")
    }
    copy = WORK / "trees" / f"{name}-{os.urandom(4).hex()}"
    shutil.copytree(taken.tree, copy, symlinks=True)
    return Package(name, copy, control, scripts)


def offer_caddy(archive: Archive) -> None:
    """Offer the vendor's newest version, Debian's older one, and one that does not start."""
    taken = archive.fetch("caddy")
    newest = run(CADDY, "version").split()[0].lstrip("v")
    files: dict[str, Path | str] = {
        "/etc/caddy/Caddyfile": taken.tree / "etc/caddy/Caddyfile",
        "/usr/share/caddy/index.html": taken.tree / "usr/share/caddy/index.html",
        "/usr/lib/systemd/system/caddy.service": _unit(taken, "caddy.service"),
        "/usr/lib/systemd/system/caddy-api.service": _unit(taken, "caddy-api.service"),
    }
    account = (
        "getent group caddy > /dev/null || groupadd --system caddy",
        "getent passwd caddy > /dev/null || useradd --system --gid caddy --create-home"
        " --home-dir /var/lib/caddy --shell /usr/sbin/nologin --comment 'Caddy web server' caddy",
        "install -d -o caddy -g caddy /var/log/caddy",
    )
    scripts = starting("caddy.service", *account) | {"conffiles": "/etc/caddy/Caddyfile\n"}
    control = {
        "Architecture": taken.control["Architecture"],
        "Recommends": "ca-certificates, libnss3-tools",
    }
    major, minor, patch = newest.split(".")
    last = f"{major}.{minor}.{int(patch) + 1}"
    broken.append(last)
    for version, binary in (
        (taken.version, taken.tree / "usr/bin/caddy"),
        (newest, CADDY),
        (last, BROKEN),
    ):
        one = tree("caddy", files | {"/usr/bin/caddy": binary})
        if binary == CADDY:
            (one / "usr/bin/caddy").chmod(0o755)
        Package("caddy", one, control, scripts).offer("caddy", "any-version", version)


# --- keys and certificates ------------------------------------------------------------------------

# Like those of the vendors, the keys are some years old, and do not expire.
BEFORE = "20240101T000000!"


def gpg(*words: str | Path, home: Path, stdin: str | None = None) -> str:
    return run("gpg", "--homedir", home, "--batch", "--quiet", "--no-tty", *words, input=stdin)


def fingerprint(home: Path, name: str) -> str:
    lines = gpg("--with-colons", "--list-keys", f"={name}", home=home).splitlines()
    return next(line.split(":")[9] for line in lines if line.startswith("fpr"))


def make_keys() -> dict[str, str]:
    """Make the vendors' keys and a stranger's; returns their fingerprints."""
    home = ALL / "gnupg"
    home.mkdir(mode=0o700)
    found = {}
    for name in ("docker", "pgdg", "caddy", "stranger"):
        gpg("--faked-system-time", BEFORE, "--passphrase", "",
            "--quick-gen-key", name, "rsa3072", "cert,sign", "never", home=home)  # fmt: skip
        found[name] = fingerprint(home, name)
    gpg("--faked-system-time", BEFORE, "--passphrase", "",
        "--quick-add-key", found["docker"], "rsa3072", "sign", "never", home=home)  # fmt: skip
    keys = ALL / "keys"
    keys.mkdir()
    for name, one in found.items():
        (keys / f"{name}.asc").write_text(export(home, one))
    for name in ("docker", "pgdg", "caddy"):
        other = _home_of(home, f"{name}-expired")
        gpg("--faked-system-time", "20240102T000000!", "--quick-set-expire", found[name],
            "20250102T000000", home=other)  # fmt: skip
        (keys / f"{name}-expired.asc").write_text(export(other, found[name]))
        other = _home_of(home, f"{name}-revoked")
        revocation = (home / f"openpgp-revocs.d/{found[name]}.rev").read_text()
        gpg("--import", home=other, stdin=revocation.replace(":-----BEGIN", "-----BEGIN"))
        (keys / f"{name}-revoked.asc").write_text(export(other, found[name]))
        # The stranger's key beside the expected one.
        (keys / f"{name}-and-stranger.asc").write_text(export(home, found[name], found["stranger"]))
    (keys / "page.asc").write_text("<!DOCTYPE html>\n<title>Sign in to go on</title>\n")
    (keys / "half.asc").write_text(export(home, found["docker"])[:900])
    for directory in (home, *WORK.glob("home-*")):
        subprocess.run(["gpgconf", "--homedir", directory, "--kill", "all"], check=True)
    return found


def export(home: Path, *fingerprints: str) -> str:
    return gpg("--armor", "--export", *fingerprints, home=home) + "\n"


def _home_of(home: Path, name: str) -> Path:
    other = WORK / f"home-{name}"
    shutil.copytree(home, other, ignore=shutil.ignore_patterns("S.*"))
    other.chmod(0o700)
    return other


def make_certificates() -> None:
    """Make a certificate signed by an authority, and a self-signed one, each for all names."""
    directory = ALL / "tls"
    directory.mkdir()
    names = "subjectAltName=" + ",".join(f"DNS:{name}" for name in (*HOSTS, "mirror.test"))
    new = ("openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt",
           "ec_paramgen_curve:prime256v1", "-days", "3650")  # fmt: skip
    certify = ("-addext", "basicConstraints=critical,CA:false", "-addext", names)
    quiet = {"stderr": subprocess.DEVNULL, "cwd": directory}
    run(*new, "-subj", "/CN=Authority of the tests", "-keyout", "authority.key", "-out",
        "authority.crt", "-addext", "keyUsage=critical,keyCertSign,cRLSign", **quiet)  # fmt: skip
    run(*new, "-subj", "/CN=vendors", "-CA", "authority.crt", "-CAkey", "authority.key",
        "-keyout", "server.key", "-out", "server.crt", *certify, **quiet)  # fmt: skip
    run(*new, "-subj", "/CN=vendors", "-keyout", "stranger.key", "-out", "stranger.crt",
        *certify, **quiet)  # fmt: skip


# --- the indexes ----------------------------------------------------------------------------------


def index() -> None:
    """Write the stanza of each package; publish.py fills in the path at which it is served."""
    for pool in sorted((ALL / "pool").glob("*/*")):
        for stanza in run("dpkg-scanpackages", "--multiversion", ".", cwd=pool,
                          stderr=subprocess.DEVNULL).split("\n\n"):  # fmt: skip
            match = re.search(r"^Filename: (.*)$", stanza, re.MULTILINE)
            assert match, stanza
            Path(pool / f"{match[1]}.stanza").write_text(stanza.strip() + "\n")


def main() -> None:
    shutil.rmtree(WORK, ignore_errors=True)
    (WORK / "trees").mkdir(parents=True)
    fingerprints = make_keys()
    make_certificates()
    run("apt-get", "-q", "update")
    trixie, bookworm, forky = (Archive(name) for name in ("trixie", "bookworm", "forky"))
    runc = {
        "trixie": trixie.fetch("runc").tree / "usr/sbin/runc",
        "bookworm": bookworm.fetch("runc").tree / "usr/sbin/runc",
    }
    tini = trixie.fetch("tini").tree / "usr/bin/tini-static"
    Docker(trixie, runc, tini).offer()
    newer = Docker(forky, runc, tini)
    newest = Archive.fetch(forky, "docker-doc").version
    major, minor, patch = map(int, newest.split("."))
    newer.offer([f"{major}.{minor}.{patch - 1}"], fails=f"{major}.{minor}.{patch + 1}")
    offer_postgres(trixie, "trixie", "17")
    offer_postgres(bookworm, "bookworm", "15")
    offer_caddy(forky)
    index()
    (ALL / "broken.json").write_text(json.dumps(broken))
    (ALL / "fingerprints.json").write_text(json.dumps(fingerprints))
    shutil.rmtree(WORK)


if __name__ == "__main__":
    main()
