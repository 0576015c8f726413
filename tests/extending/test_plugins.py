"""Registries, whatever they are of."""

import sys

import pytest

from attnwatch import ConfigurationError
from attnwatch.plugins import Plugin, Registry


@pytest.fixture
def kind(tmp_path, monkeypatch):
    """A kind of plugins with one of its own, which lies in a folder that is not loaded yet."""
    folder = tmp_path / "colours"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "red.py").write_text("from colours import base\nbase.registry.add(type('Red', (base,), {'name': 'red'}))")
    monkeypatch.syspath_prepend(tmp_path)
    base = type("Colour", (Plugin,), {"registry": Registry("colour", "colours", as_instances=True)})
    yield base
    for name in [name for name in sys.modules if name.startswith("colours")]:
        del sys.modules[name]


def test_name_of_a_plugin_that_is_not_loaded_yet_is_taken(kind, monkeypatch):
    import colours

    monkeypatch.setattr(colours, "base", kind, raising=False)
    with pytest.raises(ConfigurationError, match=r"'red' .*Mine\) has the name of the colour 'red'"):
        kind.registry.add(type("Mine", (kind,), {"name": "red"}))
    kind.registry.add(type("Mine", (kind,), {"name": "blue"}))
    assert list(kind.registry) == ["red", "blue"]
