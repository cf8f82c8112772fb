"""The check of a file of settings: how the scratch server starts, and what is refused."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from terrafirma_host import cli
from terrafirma_host import postgres_check as program

from tests.unit.programs import terrafirma

OLD, NEW = "shared_buffers = 1MB\nold_line = 1\n", "work_mem = 4MB\nshared_buffers = 2MB\n"

# Stands in for PostgreSQL: `-C name` prints the test's value, all else is a start.
POSTGRES = """#!/bin/sh
case "$*" in
*"-C ssl") echo $SSL; exit ;;
*"-C ssl_cert_file") echo server.crt; exit ;;
*"-C ssl_key_file") echo /etc/ssl/key; exit ;;
*"-C "*) exit ;;
esac
printf '%s\\n' "$@" > "$SAID/arguments"
for one in "$@"; do case $one in
    data_directory=*) data=${one#*=} ;;
    config_file=*) config=${one#*=} ;;
esac; done
cat "$data/postgresql.auto.conf" > "$SAID/auto"
cat "${config%/*}/conf.d/terrafirma.conf" > "$SAID/new"
cat "${config%/*}/../../shared.conf" > "$SAID/shared"
if test -n "$WORDS"; then printf "$WORDS" "${config%/*}" >&2; exit 1; fi
if test -n "$KILLED"; then kill -9 $$; fi
printf '1\\n2\\n3\\n4\\n5\\n6\\n7\\nready   \\n' > "$data/postmaster.pid"
trap 'echo stopped > "$SAID/stopped"; exit 0' QUIT
while :; do sleep 0.05; done
"""
INITDB = """#!/bin/sh
echo "$*" > "$SAID/initdb"
test -z "$NO_ROOM" || { echo 'initdb: error: no room' >&2; exit 1; }
mkdir "$2"
"""
CONTROL = "#!/bin/sh\necho 'Bytes per WAL segment:                67108864'\n"
CONFTOOL = '#!/bin/sh\necho "$DATA"\n'


class Host:
    def __init__(self, place: Path, patch: pytest.MonkeyPatch, capsys: Any) -> None:
        self.patch = patch
        self.capsys = capsys
        self.said = place / "said"
        self.etc, self.data = place / "etc", place / "data"
        self.proc, self.pages, self.scratch = place / "proc", place / "pages", place / "scratch"
        programs = place / "lib" / "17" / "bin"
        for directory in (
            self.said, self.data, self.proc / "sys" / "vm", self.proc / "self", programs,
            self.scratch, self.etc / "17" / "main" / "conf.d", self.pages / "hugepages-2048kB",
        ):  # fmt: skip
            directory.mkdir(parents=True)
        for name, text in (
            ("postgres", POSTGRES), ("initdb", INITDB), ("pg_controldata", CONTROL),
            ("pg_conftool", CONFTOOL),
        ):  # fmt: skip
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        self.live = self.etc / "17" / "main" / "conf.d" / "terrafirma.conf"
        self.live.write_text(OLD)
        (self.etc / "17" / "main" / "postgresql.conf").write_text("include_dir = 'conf.d'\n")
        (self.etc / "shared.conf").write_text("of two clusters\n")
        self.new = self.live.with_name("terrafirma.conf.terrafirma-new")
        self.new.write_text(NEW)
        (self.data / "postgresql.auto.conf").write_text("")
        (self.proc / "sys" / "vm" / "overcommit_memory").write_text("0\n")
        for name, value in (
            ("ETC", self.etc), ("LIB", place / "lib"), ("PAGES", self.pages), ("PROC", self.proc),
        ):  # fmt: skip
            patch.setattr(program, name, value)
        # The check is not for root only; it changes to /, and the test changes back.
        patch.setattr(os, "geteuid", lambda: 1000)
        patch.setattr(os, "umask", lambda _: 0)
        patch.chdir(place)
        patch.setattr("tempfile.tempdir", str(self.scratch))
        patch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        for name, value in (("SAID", self.said), ("DATA", self.data)):
            patch.setenv(name, str(value))
        self.are(SSL="off", WORDS="", KILLED="", NO_ROOM="")

    def are(self, **environment: str) -> None:
        for name, value in environment.items():
            self.patch.setenv(name, value)

    def refusal(self) -> str:
        """The reason why the new file is refused; empty if it is accepted."""
        status = cli.main(["postgres-check", "17", str(self.new), str(self.live)])
        # Nothing is left, and the live server's files are unchanged.
        assert list(self.scratch.iterdir()) == []
        assert self.live.read_text() == OLD
        said: str = self.capsys.readouterr().err
        assert bool(said) is bool(status)
        return said.removeprefix("terrafirma: ").removesuffix("\n")

    def arguments(self) -> set[str]:
        return set((self.said / "arguments").read_text().splitlines())


@pytest.fixture
def on_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Host:
    return Host(tmp_path, monkeypatch, capsys)


def test_runs_without_any_package_of_ours() -> None:
    result = terrafirma("postgres-check")
    assert result.returncode == 1
    assert "terrafirma postgres-check VERSION NEW PATH" in result.stderr


def test_a_server_that_starts_is_stopped(on_host: Host) -> None:
    assert on_host.refusal() == ""
    assert (on_host.said / "stopped").exists()


def test_it_is_the_whole_configuration_with_the_new_file(on_host: Host) -> None:
    on_host.refusal()
    assert (on_host.said / "new").read_text() == NEW
    assert (on_host.said / "shared").read_text() == "of two clusters\n"
    assert "--wal-segsize 64" in (on_host.said / "initdb").read_text()


def test_the_scratch_server_is_isolated(on_host: Host) -> None:
    on_host.refusal()
    arguments = on_host.arguments()
    assert {
        "listen_addresses=", "external_pid_file=", "archive_command=", "archive_library=",
        "logging_collector=off", "min_dynamic_shared_memory=0",
    } <= arguments  # fmt: skip
    for name in ("data_directory", "hba_file", "ident_file", "unix_socket_directories"):
        (value,) = (one for one in arguments if one.startswith(f"{name}="))
        assert value.startswith(f"{name}={on_host.scratch}/"), value
    assert (on_host.proc / "self" / "oom_score_adj").read_text() == "1000"


def test_alter_system_counts_unless_our_file_sets_the_same(on_host: Host) -> None:
    (on_host.data / "postgresql.auto.conf").write_text(
        "# Do not edit\nmax_wal_senders = '0'\nWork_Mem = '1MB'\nshared_buffers = '500GB'\n"
    )
    on_host.refusal()
    assert (on_host.said / "auto").read_text() == "# Do not edit\nmax_wal_senders = '0'\n"


REFUSED = {
    "a FATAL": (
        'FATAL:  WAL streaming ("max_wal_senders" > 0) requires "wal_level"\\n',
        'WAL streaming ("max_wal_senders" > 0) requires "wal_level"',
    ),
    "with what helps": (
        "LOG:  starting\\nFATAL:  could not map anonymous shared memory\\nHINT:  Take less.\\n"
        "LOG:  database system is shut down\\n",
        "could not map anonymous shared memory: Take less.",
    ),
    "the errors of the file": (
        'LOG:  invalid value: "lots"\\nLOG:  unrecognized in "%s/conf.d/terrafirma.conf" line 2\\n'
        'FATAL:  configuration file "x" contains errors\\n',
        'invalid value: "lots"; unrecognized in "{}/conf.d/terrafirma.conf" line 2',
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_the_reason_is_postgresqls_own_in_one_line(on_host: Host, what: str) -> None:
    words, expected = REFUSED[what]
    on_host.are(WORDS=words)
    expected = expected.format(on_host.live.parent.parent)
    assert on_host.refusal() == f"postgres_settings: PostgreSQL would not start: {expected}"


@pytest.mark.parametrize(
    "how", [{"KILLED": "yes"}, {"WORDS": "LOG:  something\\n"}], ids=["killed", "for no reason"]
)
def test_an_end_without_a_reason_is_accepted(on_host: Host, how: dict[str, str]) -> None:
    on_host.are(**how)
    assert on_host.refusal() == ""


def test_a_slow_start_is_accepted(on_host: Host) -> None:
    on_host.patch.setattr(program, "PATIENCE", 0)
    assert on_host.refusal() == ""


def test_without_a_scratch_server_the_file_is_refused(on_host: Host) -> None:
    on_host.are(NO_ROOM="yes")
    assert "no scratch server to check with could be made" in on_host.refusal()


@pytest.mark.parametrize(
    ("overcommit", "pages", "expected"),
    [
        ("0", ["0", "0"], set()),
        ("0", [], set()),
        ("1", ["0"], {"shared_buffers=16MB"}),
        ("2", ["0"], {"shared_buffers=16MB"}),
        ("0", ["512", "0"], {"huge_pages=off"}),
        ("0", ["0", "512"], {"huge_pages=off"}),
    ],
)
def test_memory_that_the_live_server_has_is_not_asked_for(
    on_host: Host, overcommit: str, pages: list[str], expected: set[str]
) -> None:
    (on_host.proc / "sys" / "vm" / "overcommit_memory").write_text(f"{overcommit}\n")
    for name, number in zip(("nr_hugepages", "nr_overcommit_hugepages"), pages, strict=False):
        (on_host.pages / "hugepages-2048kB" / name).write_text(f"{number}\n")
    on_host.refusal()
    about_memory = {"shared_buffers=16MB", "huge_pages=off"}
    assert on_host.arguments() & about_memory == expected


def test_certificates_are_those_of_the_live_server(on_host: Host) -> None:
    on_host.are(SSL="on")
    on_host.refusal()
    found = {one for one in on_host.arguments() if one.startswith("ssl_")}
    assert found == {f"ssl_cert_file={on_host.data}/server.crt"}


def test_a_file_that_it_may_not_read_does_not_stop_it(on_host: Host) -> None:
    (on_host.etc / "17" / "main" / "gone").symlink_to("nowhere")
    shutil.copyfile(on_host.live, on_host.live.with_name("other.conf"))
    on_host.live.with_name("other.conf").chmod(0)
    assert on_host.refusal() == ""
