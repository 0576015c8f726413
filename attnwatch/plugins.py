"""Registration of plugins: statistics, findings, criteria and everything else that users add.

Each kind of plugin is a base class with a `Registry`. Built-in plugins are in one folder per kind, one file each. Users
call `attnwatch.register`; packages declare their plugins in the entry-point group `attnwatch.plugins`.
"""

import contextlib
import functools
import importlib
import pkgutil
import re
from collections.abc import Iterator, Mapping
from importlib import metadata
from types import ModuleType
from typing import Any, ClassVar, Generic, TypeVar

from attnwatch.errors import ConfigurationError
from attnwatch.utils.messages import warn

ENTRY_POINT_GROUP = "attnwatch.plugins"

PluginT = TypeVar("PluginT", bound="Plugin | type[Plugin]")
_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Plugin:
    """Base class of the kinds of plugins: `attnwatch.Statistic`, `attnwatch.FindingRule`, and so on.

    Attributes:
        name: identifier in lower case, unique among the plugins of its kind.
        registry: plugins of the same kind.
    """

    name: str
    registry: ClassVar["Registry[Any]"]

    @classmethod
    def check(cls, plugin: Any) -> None:
        """Raise a `ConfigurationError` if a plugin, class or instance, does not declare what its kind needs."""


class Registry(Mapping[str, PluginT], Generic[PluginT]):
    """Plugins of one kind by name, built-in ones first.

    Args:
        kind: name of the kind in messages, such as "statistic".
        folder: package of the built-in plugins, imported when a plugin is looked up for the first time.
        as_instances: True to instantiate each registered class once, without arguments.
    """

    def __init__(self, kind: str, folder: str, *, as_instances: bool = False):
        self.kind = kind
        self._folder = folder
        self._as_instances = as_instances
        self._plugins: dict[str, PluginT] = {}

    def __getitem__(self, name: str) -> PluginT:
        return self._loaded()[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names: built-in plugins by file, then the others in order of registration."""
        return iter(sorted(self._loaded(), key=self._place))

    def __len__(self) -> int:
        return len(self._loaded())

    def choose(self, argument: str, name: object, *, otherwise: str = "") -> PluginT:
        """Return the plugin with this name.

        Args:
            argument: name of the user's argument, for the message.
            name: value of that argument.
            otherwise: description of other valid values, such as "a function of the model".

        Raises:
            ConfigurationError: no plugin has this name; the message lists the names.
        """
        plugins = self._loaded()
        if not isinstance(name, str) or name not in plugins:
            choices = ", ".join(map(repr, self)) + (f", or {otherwise}" if otherwise else "")
            raise ConfigurationError(f"`{argument}` must be one of {choices}; got {name!r}.")
        return plugins[name]

    def add(self, plugin: Any) -> None:
        """Register a class or an instance. A plugin that is defined again, as in a notebook, replaces its predecessor.

        Raises:
            ConfigurationError: the plugin lacks a part of its declaration, or its name is taken.
        """
        kind = _class_of(plugin)
        if not self.is_built_in(plugin):
            _load_folder(self._folder)  # so that the names of built-in plugins are taken
        if self._as_instances and isinstance(plugin, type):
            try:
                plugin = plugin()
            except Exception as error:
                raise ConfigurationError(
                    f"{self.describe(kind)} can't be instantiated without arguments: {type(error).__name__}: {error}"
                ) from error
        name = getattr(plugin, "name", None)
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigurationError(
                f"{self.describe(kind)} must have a `name` of lower-case letters, digits and underscores that begins "
                f"with a letter; got {name!r}."
            )
        kind.check(plugin)
        known = self._plugins.get(name)
        if known is not None and not _is_same(known, plugin):
            raise ConfigurationError(
                f"{self.describe(plugin)} has the name of {self.describe(known)}: give it another `name`, or call "
                "attnwatch.unregister on the other one first."
            )
        self._plugins[name] = plugin

    def remove(self, plugin: Any) -> None:
        """Remove a plugin.

        Raises:
            ConfigurationError: the plugin is not registered.
        """
        name = getattr(plugin, "name", None)
        if name not in self._plugins or not _is_same(self._plugins[name], plugin):
            raise ConfigurationError(f"{self.describe(plugin)} is not registered.")
        del self._plugins[name]

    def require_texts(self, plugin: Any, *attributes: str) -> None:
        """Raise a `ConfigurationError` unless these attributes of a plugin are strings."""
        for attribute in attributes:
            value = getattr(plugin, attribute, None)
            if not isinstance(value, str):
                raise ConfigurationError(f"{self.describe(plugin)} must have a string `{attribute}`, got {value!r}.")

    def describe(self, plugin: Any) -> str:
        """Return the kind, name and class of a plugin, for messages."""
        name = getattr(plugin, "name", None)
        named = f" {name!r}" if isinstance(name, str) else ""
        return f"the {self.kind}{named} ({'.'.join(_origin(plugin))})"

    def is_built_in(self, plugin: Any) -> bool:
        """Return whether a plugin ships with attnwatch."""
        kind = _class_of(plugin)
        return kind not in Plugin.__subclasses__() and kind.__module__.startswith(f"{self._folder}.")

    def _place(self, name: str) -> tuple[bool, str]:
        """Return the key by which names are sorted, so that their order depends on no import."""
        plugin = self._plugins[name]
        return (False, _origin(plugin)[0]) if self.is_built_in(plugin) else (True, "")

    def _loaded(self) -> dict[str, PluginT]:
        _load_folder(self._folder)
        _load_entry_points()
        return self._plugins


def register(plugin: PluginT) -> PluginT:
    """Register a plugin: a statistic, a finding, a criterion, a schedule, a model family, a logger, and so on.

    From then on it works like a built-in one. The base class of each kind documents what a plugin has to declare.
    Installed packages register their plugins through the entry-point group `attnwatch.plugins` instead.

    Args:
        plugin: a subclass of one of the base classes, or an instance of one.

    Returns:
        `plugin`, so that `register` can be used as a class decorator.

    Raises:
        ConfigurationError: `plugin` is not a plugin, lacks a part of its declaration, or its name is taken.
    """
    _registry_of(plugin).add(plugin)
    return plugin


def unregister(plugin: Plugin | type[Plugin]) -> None:
    """Remove a plugin that was registered.

    Args:
        plugin: a registered class or instance.

    Raises:
        ConfigurationError: the plugin is not registered.
    """
    _registry_of(plugin).remove(plugin)


@contextlib.contextmanager
def named_errors(plugin: Plugin) -> Iterator[None]:
    """Turn an error in the code of a plugin into a `ConfigurationError` that names the plugin."""
    try:
        yield
    except Exception as error:
        described = plugin.registry.describe(plugin)
        raise ConfigurationError(f"{described} failed with {type(error).__name__}: {error}") from error


def _registry_of(plugin: Any) -> Registry[Any]:
    kind = _class_of(plugin)
    if not (issubclass(kind, Plugin) and hasattr(kind, "registry")):
        kinds = ", ".join(sorted(each.__name__ for each in Plugin.__subclasses__()))
        raise ConfigurationError(f"`plugin` must be a subclass or an instance of one of {kinds}; got {plugin!r}.")
    return kind.registry


def _class_of(plugin: Any) -> type[Any]:
    return plugin if isinstance(plugin, type) else type(plugin)


def _origin(plugin: Any) -> tuple[str, str]:
    kind = _class_of(plugin)
    return kind.__module__, kind.__qualname__


def _is_same(known: Any, plugin: Any) -> bool:
    """Return whether two plugins are the same, perhaps defined again; instances of a base class must be equal."""
    if type(plugin) in Plugin.__subclasses__():
        return known == plugin
    return _origin(known) == _origin(plugin)


@functools.cache
def _load_folder(package: str) -> None:
    folder = importlib.import_module(package)
    for module in sorted(each.name for each in pkgutil.iter_modules(folder.__path__)):
        importlib.import_module(f"{package}.{module}")


@functools.cache
def _load_entry_points() -> None:
    """Register the plugins of installed packages; those that can't be loaded are left out with a warning."""
    for entry in metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            loaded = entry.load()
            if not isinstance(loaded, ModuleType):  # a module has registered its plugins when it was imported
                register(loaded)
        except Exception as error:
            package = entry.dist.name if entry.dist else "an installed package"
            warn(
                f"the plugin {entry.name!r} of {package} ({entry.value}) can't be used: {type(error).__name__}: "
                f"{error}. Everything else works; update or uninstall the package."
            )
