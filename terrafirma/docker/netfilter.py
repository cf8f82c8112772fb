"""
What the kernel's rules, as `iptables-save` lists them, do to a packet.

The packet is walked through the chains. A comparison with the rules that Docker makes would need
another list for each of its versions, and would miss a rule of somebody else that stands before.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network


@dataclass(frozen=True)
class Packet:
    """The first packet of a connection, or one of an answer; None: it may be anything."""

    dst: str | None = None
    port: int | None = None
    src: str | None = None
    into: str | None = ""
    """The interface it comes in by; empty: the host itself sends it."""
    out: str | None = ""
    """The interface it leaves by; empty: the host itself takes it."""
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
    policy: str  # "-": not one of the kernel's own
    rules: list[Rule]


@dataclass(frozen=True)
class End:
    """What becomes of a packet, and which rule says so."""

    verdict: str  # "ACCEPT", "DROP", "MASQUERADE", "DNAT 10.210.1.2:8000" …
    chain: str  # the first that a chain of the kernel's own leads to, or that itself
    rule: str


Table = Mapping[str, Chain]

# What ends the walk; any other target that is no chain lets the packet go on (LOG, MARK …).
_LAST = frozenset("ACCEPT DROP REJECT DNAT SNAT MASQUERADE REDIRECT NETMAP TPROXY".split())
# Programs decide there: it may become of the packet what it likes.
_ANYTHING = frozenset({"NFQUEUE", "QUEUE"})
_DEEPEST = 32


def tables(lines: Sequence[str]) -> dict[str, dict[str, Chain]]:
    """The output of `iptables-save`; raises ValueError where it is none."""
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
    # Without a target it only counts.
    return chain, Rule(tuple(matches), "", False, (), line)


def ends(table: Table, chain: str, packet: Packet) -> list[End]:
    """All that may become of a packet which enters one of the kernel's own chains."""
    if chain not in table:
        return [End("ACCEPT", chain, f"-P {chain} ACCEPT")]
    found, falls = _walk(table, chain, packet, 0)
    if falls:
        policy = table[chain].policy
        found.append(End(policy, chain, f"-P {chain} {policy}"))
    return found


def _walk(table: Table, chain: str, packet: Packet, depth: int) -> tuple[list[End], bool]:
    """The ends that it may come to here, and whether it may come out of the chain again."""
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
    """None: that depends on what is not known of the packet, or of the rule."""
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
        # A mask with holes in it: iptables takes one.
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
