"""
A process that has imported what each run of pyinfra imports first, and forks for every run that it
is asked for. tests/conftest.py starts it, and asks.
"""

import gc
import json
import os
import pkgutil
import runpy
import signal
import sys
from functools import cache
from importlib import import_module
from typing import Any, TypedDict

import terrafirma

# From before pyinfra has gevent replace them: gevent's loop begins with the run, not here.
_fork, _wait = os.fork, os.waitpid


class Run(TypedDict):
    arguments: list[str]
    environment: dict[str, str]
    stdout: str
    stderr: str
    seconds: int


def _import() -> None:
    """All of pyinfra and Terrafirma; each run reads its tasks, data and inventory for itself."""
    import_module("pyinfra_cli.main")
    # pyinfra reads what is installed six times in a run, and a file of data once for each key.
    connectors: Any = import_module("pyinfra.api.connectors")
    connectors.entry_points = cache(connectors.entry_points)
    inventory: Any = import_module("pyinfra_cli.inventory")
    inventory._get_imported_names = cache(inventory._get_imported_names)
    connectors.get_all_connectors()
    for module in pkgutil.walk_packages(terrafirma.__path__, "terrafirma."):
        import_module(module.name)
    # Else each run copies the pages of all these objects, only to find that they are no garbage.
    gc.collect()
    gc.freeze()


def _become(run: Run) -> None:
    for number, path in enumerate((os.devnull, run["stdout"], run["stderr"])):
        file = os.open(path, os.O_WRONLY if number else os.O_RDONLY)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(run["environment"])
    sys.argv[1:] = run["arguments"]
    signal.alarm(run["seconds"])


def _serve() -> None:
    """For each line a run, and its exit code; returns in the process of a run only."""
    for line in sys.stdin:
        if (process := _fork()) == 0:
            _become(json.loads(line))
            return
        print(os.waitstatus_to_exitcode(_wait(process, 0)[1]), flush=True)
    sys.exit()


if __name__ == "__main__":
    _import()
    _serve()
    runpy.run_module("pyinfra", run_name="__main__", alter_sys=True)
