"""
A process that has already imported the modules that each run of pyinfra needs. It forks for every
run; tests/conftest.py starts it and sends it the runs.
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

# The originals, before gevent patches them: gevent's loop must begin in the run, not here.
_fork, _wait = os.fork, os.waitpid


class Run(TypedDict):
    arguments: list[str]
    environment: dict[str, str]
    stdout: str
    stderr: str
    seconds: int


def _import() -> None:
    """Import all of pyinfra and Terrafirma; each run reads tasks, data and inventory itself."""
    import_module("pyinfra_cli.main")
    # pyinfra lists the installed packages six times in a run, and reads a data file for each key.
    connectors: Any = import_module("pyinfra.api.connectors")
    connectors.entry_points = cache(connectors.entry_points)
    inventory: Any = import_module("pyinfra_cli.inventory")
    inventory._get_imported_names = cache(inventory._get_imported_names)
    connectors.get_all_connectors()
    for module in pkgutil.walk_packages(terrafirma.__path__, "terrafirma."):
        import_module(module.name)
    # Freeze all objects: otherwise the garbage collector of each run would copy their pages.
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
    """Fork a run for each line, and print its exit code; returns only in the process of a run."""
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
