# Managed by Terrafirma: tasks/borg.py
"""What the words of ssh, borg and PostgreSQL mean when a backup fails, in a line."""

import re

# What ssh, sshd and borg say, and what it means; the first that fits. `{key}`, `{host}`, `{shown}`,
# `{borg}` and `{locker}` are filled in, as are the groups.
REPOSITORY_GONE = "there is no repository at borg_repository"
CAUSES = [
    (r"(pg_dump of .*)", r"\1"),
    (r"(pg_dumpall.*)", r"\1"),
    (r"Could not resolve hostname (\S+):", r"borg_repository: the name \1 does not resolve"),
    (
        r"connect to host (\S+) port (\d+): Connection refused",
        r"borg_repository: \1 refuses connections to port \2: no SSH server listens there",
    ),
    (
        r"connect to host (\S+) port (\d+): (.*)",
        r"borg_repository: \1 does not answer on port \2 (\3)",
    ),
    (
        r"fingerprint for the (\S+) key sent by the remote host is\s+(?:Remote: )?(SHA256:[\w+/]+)",
        r"borg_known_hosts: {host} shows another key than the one that is declared: \1 \2; compare it "
        "with what its provider publishes",
    ),
    (
        r"No (\S+) host key is known for (\S+)",
        r"borg_known_hosts: no \1 key is declared for \2; it shows {shown}; compare that with what its "
        "provider publishes",
    ),
    (
        r"no matching host key type found. Their offer: (.*)",
        r"borg_known_hosts: {host} has no key of a kind that this server takes; it offers \1",
    ),
    (
        r"Host key verification failed|REVOKED HOST KEY",
        "borg_known_hosts: the key of {host} is not one that is declared; it shows {shown}",
    ),
    (
        r"account is (?:currently )?not available|(?i:account has expired|nologin)",
        "borg_repository: the account on {host} runs no commands (its shell is nologin, or it expired)",
    ),
    (
        r"Permission denied \([a-z,-]*(?:publickey|password|keyboard)|Too many authentication failures",
        "borg_repository: {host} does not let this key in; add it to the authorized_keys of the account "
        "there: {key}",
    ),
    (
        r"Repository path not allowed: (.*)",
        r"borg_repository: the key may not use \1 on {host}: its line in authorized_keys restricts it to "
        "another path",
    ),
    (
        r"Remote: .*\b(?:not found|command not found|Unknown command|[Cc]ommand not allowed)\b"
        r"|Remote: \S*sh: .*(?:No such file or directory|Permission denied|not executable)",
        "borg_remote_path: {host} has no program {borg} for this account: install borg there, or name "
        "its path, like /usr/local/bin/borg or borg-1.4",
    ),
    (
        r"(?:storage quota \((.*?)\) has been exceeded|Insufficient free space to complete)(.*)",
        r"{host} has no room for the backup: \g<0>",
    ),
    (
        r"Errno 28\] No space left on device(?:: '?(.*?)'?$)?|Disk quota exceeded|Errno 122",
        "no space is left on the disk of {host} or of this server: No space left on device",
    ),
    (
        r"Errno 30\] Read-only file system: '(.*?)'",
        r"{host} cannot write: \1 is on a file system that is read-only",
    ),
    (r"(\S+ is in append-only mode)", r"{host} refuses to delete: \1"),
    (
        r"Failed to create/acquire the lock (\S+) \((.*?)\)",
        r"the repository is locked: \1 (\2); {locker}",
    ),
    (
        r"previously located at (\S+)",
        r"borg_repository: this repository was at \1; if it was moved, set borg_repository_id",
    ),
    (
        r"(?:newer than repository - this is either an attack|replay attack)",
        "the repository is older than this server remembers: it was put back from a copy, or tampered "
        "with. When you know why: docs/tasks/borg.md",
    ),
    (
        r"[Pp]assphrase supplied in .* is incorrect",
        "the passphrase in /etc/terrafirma/secrets/borg/passphrase is not that of the repository, which "
        "somebody else made, or this server before it was made anew: give it the old passphrase",
    ),
    (
        r"passcommand supplied in BORG_PASSCOMMAND failed",
        "/etc/terrafirma/secrets/borg/passphrase cannot be read",
    ),
    (
        r"No key (?:file|entry) .*found|Unsupported payload type|unknown unencrypted repository"
        r"|key is (?:not|in)valid|Encryption method changed",
        "borg_repository: the repository there is encrypted in another way than ours (repokey-blake2): "
        "somebody else made it. Take another path",
    ),
    (
        r"repository version (\S+) is not supported|[Uu]nsupported repository version"
        r"|Unsupported manifest (?:envelope|feature)|need(?:s)? to upgrade your borg|Borg .* is too old"
        r"|Manifest authentication",
        r"borg_repository: the repository there was made by another version of borg: \g<0>",
    ),
    (
        r"unsupported protocol|RPC|unexpected RPC data format|unrecognized arguments",
        "borg_remote_path: {borg} on {host} does not understand this server's borg: name one of version "
        "1.2 or 1.4 there",
    ),
    (
        r"There is already something at (\S+?)\.$|(\S+) is not a valid repository"
        r"|(\S+) does not have a valid configuration|MissingSectionHeaderError",
        "borg_repository: what is there on {host} is not a repository of borg: take a path where "
        "nothing is, or remove what is there",
    ),
    (
        r"(?:The parent path of the repo directory|NotADirectoryError)(.*)",
        "borg_repository: the directory above cannot be made on {host}: \\1",
    ),
    (
        r"(?:PermissionError.*|Permission denied to |Permission denied: )'?(/[^'\n]*?)'?\.?$",
        r"borg_repository: the account on {host} may not use \1",
    ),
    (r"Repository (\S+) does not exist", rf"{REPOSITORY_GONE}: \1"),
    (
        r"Inconsistency detected|IntegrityError|Data integrity error|Object with key .* not found"
        r"|ObjectNotFound",
        "the repository is damaged: look at `borg check` on the backup host before anything else",
    ),
    (
        r"Connection closed by|client_loop: send disconnect|Broken pipe|server \S+ not responding"
        r"|Connection reset|Timeout, server",
        "the connection to {host} ended: is borg there ({borg}), and did {host} stay up? ({said})",
    ),
]


def cause(text, /, **filled):
    """What those words of ssh and borg mean, in a line; their own last line when we do not know."""
    for pattern, meaning in CAUSES:
        found = re.search(pattern, text, re.M)
        if found:
            words = found.expand(meaning.replace("{", "\0"))
            for name, value in filled.items():
                words = words.replace(f"\0{name}}}", value)
            return " ".join(words.replace("\0", "{").split())
    return last(text)


def last(text):
    """The line of a program's words that says why: an error before what follows it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for mark in (r"(FATAL|PANIC|ERROR): ", r"\b(error|fatal): "):
        said = [line for line in lines if re.search(mark, line)]
        if said:
            return said[0]
    return lines[-1] if lines else "it ended without a word"
