"""Code that the task files share: typed settings, and facts and operations that pyinfra lacks."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

# The host's program has the rules of compose projects. Its package is loaded by its path: with
# `files` in sys.path, the directory `docker` in there would be importable, too.
if "terrafirma_host" not in sys.modules:
    _package = Path(__file__).parent.parent / "files" / "terrafirma_host"
    _spec = spec_from_file_location("terrafirma_host", _package / "__init__.py")
    assert _spec
    assert _spec.loader
    sys.modules["terrafirma_host"] = module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["terrafirma_host"])
