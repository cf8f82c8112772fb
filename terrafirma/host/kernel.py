"""Settings of the kernel."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

from pyinfra import host
from pyinfra.api import FactBase, FactProcessError, StringCommand
from typing_extensions import override

from terrafirma.host.operation import operation


class KernelSettings(FactBase[dict[str, str]]):
    """The values of the sysctl `names`, of those that this kernel has."""

    default = dict

    @override
    def command(self, names: Sequence[str]) -> str:
        paths = " ".join("/proc/sys/" + name.replace(".", "/") for name in names)
        return f'for path in {paths}; do test ! -e $path || echo "$path=$(cat $path)"; done'

    @override
    def process(self, output: list[str]) -> dict[str, str]:
        try:
            pairs = [line.removeprefix("/proc/sys/").split("=", 1) for line in output]
            return {path.replace("/", "."): value for path, value in pairs}
        except ValueError as error:
            raise FactProcessError(f"/proc/sys answered {output[:3]!r}") from error


@operation
def sysctl(values: Mapping[str, int]) -> Generator[StringCommand]:
    """
    Set kernel settings for now; a file below /etc/sysctl.d sets them at the next boot.

    pyinfra's server.sysctl fails if the kernel lacks a setting (a host without IPv6), and costs a
    round trip for each.
    """
    known = host.get_fact(KernelSettings, names=sorted(values))
    wrong = [f"{name}={value}" for name, value in values.items()
             if known.get(name, str(value)) != str(value)]  # fmt: skip
    if wrong:
        yield StringCommand("sysctl --quiet --write", *wrong)
    else:
        host.noop(f"{', '.join(values)}: as wanted")
