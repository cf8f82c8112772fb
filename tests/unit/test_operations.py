"""Every operation has a docstring, and no parameter hides an argument of pyinfra."""

import inspect
import pkgutil
from importlib import import_module

import pytest
from pyinfra.api.arguments import all_argument_meta

import terrafirma

OPERATIONS = {
    f"{module.name}.{name}": value._inner
    for module in pkgutil.walk_packages(terrafirma.__path__, "terrafirma.")
    for name, value in vars(import_module(module.name)).items()
    if getattr(value, "_inner", None) and value._inner.__module__ == module.name
}


def test_the_operations_are_found() -> None:
    assert "terrafirma.host.files.put" in OPERATIONS
    assert len(OPERATIONS) > 10


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_parameter_hides_one_of_pyinfras_own(name: str) -> None:
    parameters = set(inspect.signature(OPERATIONS[name]).parameters)
    assert not parameters & {"name", *all_argument_meta}
    assert not [parameter for parameter in parameters if parameter.startswith("_")]


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_says_what_is_true_after_it_ran(name: str) -> None:
    assert OPERATIONS[name].__doc__
