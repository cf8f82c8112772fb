"""
Follow a packet through the kernel's rules, as `iptables-save` lists them.

Comparing the rules with those that Docker makes would need a list for each version of Docker, and
would miss another program's rule in front of them.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network


@dataclass(frozen=True)
class Packet:
    """The first packet of a connection, or a packet of an answer; None stands for any value."""

    dst: str | None = None
    port: int | None = None
    src: str | None = None
    into: str | None = ""
    """The interface on which the packet arrives; empty: the host itself sends it."""
    out: str | None = ""
    """The interface on which the packet leaves; empty: the host itself receives it."""
    state: str = "NEW"
    proto: str = "tcp"
    from_host: bool = False
    to_host: bool = False


@dataclass(frozen=True)
class Match:
    option: str
    values: tuple[str, ...]
    negated: bool


@dataclass(frozen=True)
class Rule:
    matches: tuple[Match, ...]
    target: str
    goto: bool
    arguments: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Chain:
    policy: str  # "-": not one of the kernel's built-in chains
    rules: list[Rule]


@dataclass(frozen=True)
class End:
    """The fate of a packet, and the rule that decides it."""

    verdict: str  # "ACCEPT", "DROP", "MASQUERADE", "DNAT 10.210.1.2:8000" …
    chain: str  # the chain to which a built-in chain jumps, or the built-in chain itself
    rule: str


Table = Mapping[str, Chain]

# Targets that end the walk. Other targets (LOG, MARK …), unless chains, let the packet go on.
_LAST = frozenset("ACCEPT DROP REJECT DNAT SNAT MASQUERADE REDIRECT NETMAP TPROXY".split())
# Targets where a program decides, so that every end is possible.
_ANYTHING = frozenset({"NFQUEUE", "QUEUE"})
_DEEPEST = 32


def tables(lines: Sequence[str]) -> dict[str, dict[str, Chain]]:
    """Parse the output of `iptables-save`; raises ValueError if it is something else."""
    found: dict[str, dict[str, Chain]] = {}
    table: dict[str, Chain] = {}
    for line in lines:
        if line.startswith("*"):
            table = found.setdefault(line[1:].strip(), {})
        elif line.startswith(":"):
            name, policy, *_ = line[1:].split()
            table[name] = Chain(policy, [])
        elif line.startswith("-A "):
            name, rule = _rule(line)
            table.setdefault(name, Chain("-", [])).rules.append(rule)
    return found


def _rule(line: str) -> tuple[str, Rule]:
    _, chain, *words = shlex.split(line)
    matches: list[Match] = []
    negated = False
    while words:
        option, *words = words
        if option == "!":
            negated = True
            continue
        if option in ("-j", "-g"):
            target, *arguments = words
            return chain, Rule(tuple(matches), target, option == "-g", tuple(arguments), line)
        values = []
        while words and words[0] != "!" and not words[0].startswith("-"):
            values.append(words.pop(0))
        matches.append(Match(option, tuple(values), negated))
        negated = False
    # A rule without a target only counts packets.
    return chain, Rule(tuple(matches), "", False, (), line)


def ends(table: Table, chain: str, packet: Packet) -> list[End]:
    """All possible ends of a packet that enters one of the kernel's built-in chains."""
    if chain not in table:
        return [End("ACCEPT", chain, f"-P {chain} ACCEPT")]
    found, falls = _walk(table, chain, packet, 0)
    if falls:
        policy = table[chain].policy
        found.append(End(policy, chain, f"-P {chain} {policy}"))
    return found


def _walk(table: Table, chain: str, packet: Packet, depth: int) -> tuple[list[End], bool]:
    """The possible ends of the packet in this chain, and whether it may leave the chain again."""
    found: list[End] = []
    returns = False
    for rule in table[chain].rules:
        if (sure := _matches(rule, packet)) is False:
            continue
        if rule.target in table and depth < _DEEPEST:
            inner, falls = _walk(table, rule.target, packet, depth + 1)
            found += [replace(one, chain=rule.target) for one in inner]
            returns = returns or (rule.goto and falls)
            ended = rule.goto or not falls
        elif rule.target in _LAST:
            found.append(End(_verdict(rule), chain, rule.text))
            ended = True
        elif rule.target in _ANYTHING:
            found += [End("ACCEPT", chain, rule.text), End("DROP", chain, rule.text)]
            ended = True
        else:
            returns = returns or rule.target == "RETURN"
            ended = rule.target == "RETURN"
        if ended and sure:
            return found, returns
    return found, True


def _verdict(rule: Rule) -> str:
    where = next(
        (
            value
            for option, value in zip(rule.arguments, rule.arguments[1:], strict=False)
            if option in ("--to-destination", "--to-ports")
        ),
        "",
    )
    return f"{'DROP' if rule.target == 'REJECT' else rule.target} {where}".strip()


def _matches(rule: Rule, packet: Packet) -> bool | None:
    """Whether the rule matches; None if that depends on something unknown of packet or rule."""
    answers = [_holds(match, packet) for match in rule.matches]
    return False if False in answers else None if None in answers else True


def _holds(match: Match, packet: Packet) -> bool | None:
    holds = _asked(match.option, match.values, packet)
    return holds if holds is None else holds is not match.negated


def _asked(option: str, values: Sequence[str], packet: Packet) -> bool | None:
    words = values[0].split(",") if values else []
    match option:
        case "-i":
            return _interface(values[0], packet.into)
        case "-o":
            return _interface(values[0], packet.out)
        case "-s":
            return _within(packet.src, values[0])
        case "-d":
            return _within(packet.dst, values[0])
        case "-p":
            return values[0] in (packet.proto, "all")
        case "--dport" | "--dports":
            return _port(packet.port, words)
        case "--ctstate" | "--state":
            return packet.state in words
        case "--dst-type":
            return _type(packet.to_host, words)
        case "--src-type":
            return _type(packet.from_host, words)
        case "--icmp-type":
            return False
        case "-m" | "--comment":
            return True
        case _:
            return None


def _interface(pattern: str, name: str | None) -> bool | None:
    if name is None:
        return None
    return name.startswith(pattern[:-1]) if pattern.endswith("+") else name == pattern


def _within(address: str | None, network: str) -> bool | None:
    try:
        wanted = IPv4Network(network, strict=False)
    except ValueError:
        # iptables accepts masks with holes, such as 255.0.255.0; Python does not.
        return None
    if wanted.prefixlen == 0:
        return True
    return None if address is None else IPv4Address(address) in wanted


def _port(port: int | None, words: Sequence[str]) -> bool | None:
    if port is None:
        return None
    for word in words:
        first, is_range, last = word.partition(":")
        low = int(first or 0)
        if low <= port <= (int(last or 65535) if is_range else low):
            return True
    return False


def _type(local: bool, words: Sequence[str]) -> bool:
    return ("LOCAL" if local else "UNICAST") in words
