"""Modules that no test runs must import all the same."""

import importlib
import pkgutil

import pytest

import benchmarks
import tools

MODULES = [
    module.name
    for package in (benchmarks, tools)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("module", MODULES)
def test_benchmarks_and_tools_import(module):
    assert importlib.import_module(module).__doc__
