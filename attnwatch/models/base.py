"""Base class of the model families."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, TypeVar

from torch import nn

from attnwatch.errors import AttnwatchError, ConfigurationError
from attnwatch.plugins import Plugin, Registry

if TYPE_CHECKING:
    from attnwatch.heads.layout import HeadLayout
    from attnwatch.tokens.layouts import TokenLayout

Answer = TypeVar("Answer")


class Refused(Exception):
    """Heads or tokens of a module can't be removed. The message is the reason."""


class ModelFamily(Plugin):
    """Knowledge of a family of models: where heads and tokens lie, and what is special about their calls.

    An instance of this class declares the layouts of some classes; a subclass can override every method. The families
    are asked in turn, those of users first, and the first answer counts.

    Args:
        name: see `Plugin`.
        heads: where the heads lie, by class of the attention module; its subclasses are not included.
            `attnwatch.check_layout` tries whether a layout fits.

    Attributes:
        heads: as above; a subclass may declare it in its body.
        is_fallback: the family is asked after the other built-in ones, as it goes by names that many modules have.

    Example:
        >>> import attnwatch
        >>> class MyAttention(nn.Module): ...
        >>> layout = attnwatch.HeadLayout({"qkv": "q|k|v"}, output="proj", head_dim=64, returns="output")
        >>> family = attnwatch.register(attnwatch.ModelFamily("my_model", heads={MyAttention: layout}))
        >>> family.head_layout(MyAttention()) is layout
        True
        >>> attnwatch.unregister(family)
    """

    registry: ClassVar[Registry["ModelFamily"]] = Registry("model family", "attnwatch.models", as_instances=True)
    is_fallback: ClassVar[bool] = False
    heads: Mapping[type[nn.Module], "HeadLayout"] = MappingProxyType({})

    def __init__(self, name: str | None = None, *, heads: Mapping[type[nn.Module], "HeadLayout"] | None = None):
        if name is not None:
            self.name = name
        if heads is not None:
            self.heads = dict(heads)

    def __eq__(self, other: object) -> bool:
        """Return whether both declare the same classes under one name: a notebook's cell that runs again does."""
        return isinstance(other, ModelFamily) and self._declared == other._declared

    def __hash__(self) -> int:
        return hash(self._declared)

    @property
    def _declared(self) -> tuple[type, str, frozenset[str]]:
        classes = frozenset(f"{each.__module__}.{each.__qualname__}" for each in self.heads)
        return type(self), self.name, classes

    @classmethod
    def check(cls, plugin: "ModelFamily") -> None:
        """Raise a `ConfigurationError` if a layout does not fit the class that it is declared for."""
        for module_class, layout in plugin.heads.items():
            if not (isinstance(module_class, type) and issubclass(module_class, nn.Module)):
                raise ConfigurationError(f"`heads` must map classes of modules to layouts, got {module_class!r}.")
            require_head_layout(plugin, module_class, layout)

    def head_layout(self, module: nn.Module) -> "HeadLayout | None":
        """Return where the heads of an attention module lie; None if the module is not of this family.

        Raises:
            Refused: heads can't be removed from the module, and why.
        """
        return self.heads.get(type(module))

    def token_layout(self, layer: nn.Module) -> "TokenLayout | None":
        """Return which arguments of a layer have a token axis; None if the layer is not of this family."""
        return None


def first_answer(ask: Callable[[ModelFamily], Answer | None]) -> Answer | None:
    """Return the first answer of the families that is not empty, those of users asked first; None if there is none.

    Raises:
        Refused: by the family that was asked.
        ConfigurationError: a family failed; the message names it.
    """
    for family in sorted(ModelFamily.registry.values(), key=lambda each: (_is_built_in(each), each.is_fallback)):
        try:
            answer = ask(family)
        except (Refused, AttnwatchError):
            raise
        except Exception as error:
            described = ModelFamily.registry.describe(family)
            raise ConfigurationError(f"{described} failed with {type(error).__name__}: {error}") from error
        if answer:
            return answer
    return None


def require_head_layout(family: ModelFamily, module_class: type, layout: object) -> None:
    """Raise a `ConfigurationError` if what a family says of a class of attention modules is no `HeadLayout`."""
    from attnwatch.heads.layout import HeadLayout

    if not isinstance(layout, HeadLayout):
        described = ModelFamily.registry.describe(family)
        raise ConfigurationError(
            f"{described}: the head layout of {module_class.__name__} must be a HeadLayout, got {layout!r}."
        )


def _is_built_in(family: ModelFamily) -> bool:
    return type(family) is not ModelFamily and type(family).__module__.startswith(f"{__package__}.")
