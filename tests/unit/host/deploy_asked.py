"""A deploy with a fact that counts how often it is asked; see test_asking.py."""

from collections.abc import Generator

from pyinfra import host
from pyinfra.api import FactBase, StringCommand
from pyinfra.operations import server
from typing_extensions import override

from terrafirma.host.asking import ask
from terrafirma.host.operation import operation


class Asked(FactBase[int]):
    @override
    def command(self, path: str) -> str:
        return f"echo >> {path}; wc -l < {path}"

    @override
    def process(self, output: list[str]) -> int:
        return int(output[0])


@operation
def look(*, change: bool = False) -> Generator[StringCommand]:
    seen = [ask(host, Asked, path=host.data.x_path)]
    if change:
        yield StringCommand("true")
        seen.append(ask(host, Asked, path=host.data.x_path))
    host.noop("")
    host.log(f"seen: {seen}")


look(name="The first")
look(name="As long as nothing changes")
look(name="In the middle of a change", change=True)
look(name="After a change")
server.shell(name="Somebody else's change", commands="true")
look(name="After that one")
look(name="And once more")
