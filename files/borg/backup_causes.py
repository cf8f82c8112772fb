# Managed by Terrafirma: tasks/borg.py
"""Explain the errors of ssh, borg and PostgreSQL when a backup fails, in one line."""

import re

REPOSITORY_GONE = "there is no repository at borg_repository"
# The first pattern that matches counts. Its groups are filled into the explanation, and so are
# {host}, {key} (our public key), {shown} (the keys that the host shows), {borg} (the program on the
# host), {locker} (the holder of the lock) and {said} (the last line of the error).
CAUSES = [
    # ssh cannot connect.
    (r"Could not resolve hostname (\S+):", r"borg_repository: the name \1 does not resolve"),
    (
        r"connect to host (\S+) port (\d+): Connection refused",
        r"borg_repository: \1 refuses connections to port \2: no SSH server listens there",
    ),
    (
        r"connect to host (\S+) port (\d+): (.*)",
        r"borg_repository: \1 does not answer on port \2 (\3)",
    ),
    # ssh reaches a host other than the intended one.
    (
        r"fingerprint for the (\S+) key sent by the remote host is\s+(?:Remote: )?"
        r"(SHA256:[\w+/]+)",
        r"borg_known_hosts: {host} shows another key than the one that is declared: \1 \2; "
        "compare it with what its provider publishes",
    ),
    (
        r"No (\S+) host key is known for (\S+)",
        r"borg_known_hosts: no \1 key is declared for \2; it shows {shown}; compare that with what "
        "its provider publishes",
    ),
    (
        r"no matching host key type found. Their offer: (.*)",
        r"borg_known_hosts: {host} has no key of a kind that this server takes; it offers \1",
    ),
    (
        r"Host key verification failed|REVOKED HOST KEY",
        "borg_known_hosts: the key of {host} is not one that is declared; it shows {shown}",
    ),
    # The account on the backup host.
    (
        r"account is (?:currently )?not available|[Aa]ccount has expired|nologin",
        "borg_repository: the account on {host} runs no commands: its shell is nologin, or it "
        "expired",
    ),
    (
        r"Permission denied \([a-z,-]*(?:publickey|password|keyboard)|Too many authentication",
        "borg_repository: {host} does not let this key in; add it to the authorized_keys of the "
        "account there: {key}",
    ),
    (
        r"Repository path not allowed: (.*)",
        r"borg_repository: the key may not use \1 on {host}: its line in authorized_keys restricts "
        "it to another path",
    ),
    (
        r"Remote: .*\b(?:not found|Unknown command|[Cc]ommand not allowed)\b"
        r"|Remote: \S*sh: .*(?:No such file or directory|Permission denied|not executable)",
        "borg_remote_path: {host} has no program {borg} for this account: install borg there, or "
        "name its path, like /usr/local/bin/borg or borg-1.4",
    ),
    # No space left.
    (
        r"storage quota.*exceeded.*|Insufficient free space to complete.*",
        r"{host} has no room for the backup: \g<0>",
    ),
    (
        r"No space left on device|Disk quota exceeded",
        r"no room for the backup, on {host} or on this server: \g<0>",
    ),
    (
        r"Errno 30\] Read-only file system: '(.*?)'",
        r"{host} cannot write: \1 is on a file system that is read-only",
    ),
    (r"(\S+) is in append-only mode", r"{host} refuses to delete: \1 is in append-only mode"),
    # A repository that is locked, moved, restored, or of another program.
    (
        r"Failed to create/acquire the lock (\S+) \((.*?)\)",
        r"the repository is locked: \1 (\2); {locker}",
    ),
    (
        r"previously located at (\S+)",
        r"borg_repository: this repository was at \1; if it was moved, set borg_repository_id",
    ),
    (
        r"newer than repository - this is either an attack|replay attack",
        "the repository is older than what this server remembers: it was restored from a copy, or "
        "tampered with; what to do: docs/tasks/borg.md, A repository that is older",
    ),
    (
        r"[Pp]assphrase supplied in .* is incorrect",
        "the passphrase in /etc/terrafirma/secrets/borg/passphrase is not the repository's: put "
        "the right one there, or take another path",
    ),
    (
        r"passcommand supplied in BORG_PASSCOMMAND failed",
        "/etc/terrafirma/secrets/borg/passphrase cannot be read",
    ),
    (
        r"No key file for repository .* found in (\S+?)\.?$",
        r"borg_repository: the key of the repository is a file on the machine that created it: "
        r"copy the file to \1, or take another path",
    ),
    (
        r"No key entry .*found|Unsupported payload type|unknown unencrypted repository"
        r"|Encryption method changed",
        "borg_repository: the repository there is not encrypted, or not as it was: another program "
        "created it, or its creation was interrupted; take another path",
    ),
    (
        r"repository version \S+ is not supported|Unsupported manifest (?:envelope|feature)\S*"
        r"|Unsupported repository feature\S*|Manifest authentication failed",
        r"borg_repository: another version of borg created the repository there: \g<0>",
    ),
    (
        r"unexpected RPC data format|unsupported protocol|unrecognized arguments",
        "borg_remote_path: {borg} on {host} does not understand this server's borg: name a program "
        "of version 1.2 or 1.4 there",
    ),
    # The path holds no repository, or cannot be used.
    (
        r"There is already something at|is not a valid repository"
        r"|does not have a valid configuration|MissingSectionHeaderError",
        "borg_repository: what is there on {host} is not a repository of borg: take a path where "
        "nothing is, or remove what is there",
    ),
    (
        r"NotADirectoryError: .*'(.*?)'|parent path of the repo directory \[(.*?)\]",
        r"borg_repository: the directories above \1\2 cannot be made on {host}",
    ),
    (
        r"(?:PermissionError: .*Permission denied: '|Permission denied to )(/[^'\n]*?)'?\.?$",
        r"borg_repository: the account on {host} may not use \1",
    ),
    (r"Repository (\S+) does not exist", rf"{REPOSITORY_GONE}: \1"),
    (
        r"Inconsistency detected|IntegrityError|[Dd]ata integrity error|ObjectNotFound"
        r"|Object with key .* not found",
        "the repository is damaged: run `borg check` on {host} before anything else",
    ),
    (
        r"Connection closed by|client_loop: send disconnect|Broken pipe|Connection reset"
        r"|Timeout, server .* not responding",
        "the connection to {host} ended: either {host} went away, or {borg} does not run there "
        "({said})",
    ),
]


def cause(text: str, /, **filled: str) -> str:
    """The explanation of an error text, in one line; if unknown, the most telling line of it."""
    for pattern, meaning in CAUSES:
        found = re.search(pattern, text, re.MULTILINE)
        if found:
            names = "|".join(map(re.escape, filled))
            meaning = re.sub(
                rf"\{{({names})\}}", lambda name: filled[name[1]].replace("\\", r"\\"), meaning
            )
            words = found.expand(meaning)
            return " ".join(words.split())
    return last(text)


def last(text: str) -> str:
    """The line of a program's output that says why it failed: an error, or else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("Need some help?")]
    for mark in (r"(FATAL|PANIC|ERROR): ", r"\b(error|fatal): "):
        said = [line for line in lines if re.search(mark, line)]
        if said:
            return said[0]
    return lines[-1] if lines else "it ended without a message"
