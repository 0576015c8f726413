"""Plugins that are registered for one test."""

import pytest

import attnwatch


@pytest.fixture
def registered():
    """Register plugins, and forget them after the test."""
    plugins = []

    def register(plugin):
        attnwatch.register(plugin)
        plugins.append(plugin)
        return plugin

    yield register
    for plugin in plugins:
        attnwatch.unregister(plugin)
