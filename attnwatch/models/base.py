"""Base class of what attnwatch knows of a family of models."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

from torch import Tensor, nn

from attnwatch.errors import AttnwatchError, ConfigurationError
from attnwatch.plugins import Plugin, Registry
from attnwatch.utils.interception import original_class

if TYPE_CHECKING:
    from attnwatch.heads.layouts import HeadLayout
    from attnwatch.tokens.layouts import TokenLayout
    from attnwatch.tokens.stacks import Stack

Answer = TypeVar("Answer")


class Refused(Exception):
    """Heads or tokens of a module can't be removed. The message is the reason."""


class TokenPredictions(NamedTuple):
    """Predictions of a language model for the tokens of one forward.

    Attributes:
        logits: [batch, tokens, vocabulary].
        labels: int [batch, tokens], negative where there is none.
        is_shifted: flag that the logits at a token predict the label of the next one.
    """

    logits: Tensor
    labels: Tensor
    is_shifted: bool


class ModelFamily(Plugin):
    """What is known of a family of models: where heads and tokens lie, and what is special about their calls.

    An instance of this class declares the layouts of some classes; a subclass can override every method. The families
    are asked in turn, those of users first, and the first answer counts.

    Args:
        name: see `Plugin`.
        tokens: which arguments of a layer have a token axis, by class of the layer; its subclasses are not included.

    Attributes:
        tokens: as above; a subclass may declare it in its body.

    Example:
        >>> import attnwatch
        >>> from torch import Tensor, nn
        >>> class Block(nn.Module):
        ...     def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        ...         return x
        >>> layout = attnwatch.TokenLayout("x", routed={"mask": "batch heads tokens tokens"})
        >>> family = attnwatch.register(attnwatch.ModelFamily("my_model", tokens={Block: layout}))
        >>> family.token_layout(Block()) is layout
        True
        >>> attnwatch.unregister(family)
    """

    registry: ClassVar[Registry["ModelFamily"]] = Registry("model family", "attnwatch.models", as_instances=True)
    tokens: Mapping[type[nn.Module], "TokenLayout"] = MappingProxyType({})

    def __init__(self, name: str | None = None, *, tokens: Mapping[type[nn.Module], "TokenLayout"] | None = None):
        if name is not None:
            self.name = name
        if tokens is not None:
            self.tokens = dict(tokens)

    def __eq__(self, other: object) -> bool:
        """Return whether both declare the same classes under one name: a notebook's cell that runs again does."""
        return isinstance(other, ModelFamily) and self._declared == other._declared

    def __hash__(self) -> int:
        return hash(self._declared)

    @property
    def _declared(self) -> tuple[type, str, frozenset[str]]:
        classes = frozenset(f"{each.__module__}.{each.__qualname__}" for each in self.tokens)
        return type(self), self.name, classes

    @classmethod
    def check(cls, plugin: "ModelFamily") -> None:
        """Raise a `ConfigurationError` if a layout does not fit the class that it is declared for."""
        for layer_class, layout in plugin.tokens.items():
            if not (isinstance(layer_class, type) and issubclass(layer_class, nn.Module)):
                raise ConfigurationError(f"`tokens` must map classes of modules to layouts, got {layer_class!r}.")
            require_token_layout(plugin, layer_class, layout)
            layout.check_arguments(layer_class)

    def head_layout(self, module: nn.Module) -> "HeadLayout | None":
        """Return where the heads of an attention module lie; None if the module is not of this family.

        Raises:
            Refused: heads can't be removed from the module, and why.
        """
        return None

    def token_layout(self, layer: nn.Module) -> "TokenLayout | None":
        """Return which arguments of a layer have a token axis; None if the layer is not of this family.

        Raises:
            Refused: tokens can't be dropped in such layers; the message completes "its layers …".
        """
        return self.tokens.get(original_class(layer))

    def check_tokens(
        self, stack: "Stack", layers: tuple[nn.Module, ...], *, protect_first: int, drop_in_evaluation: bool
    ) -> None:
        """Check that tokens can be dropped in some layers of a stack. All families are asked, of every stack.

        Args:
            stack: with the model around it.
            layers: in which tokens are to be dropped.
            protect_first, drop_in_evaluation: see `attnwatch.TokenDropper`.

        Raises:
            Refused: they can't be dropped; the message completes "tokens can't be dropped: …".
        """

    def is_model(self, module: nn.Module) -> bool:
        """Return whether a call of the module is one forward of a model, with arguments that tell about its tokens."""
        return False

    def argument_prefix(self, model: nn.Module, stack: str) -> str:
        """Return the prefix of the model's arguments about the tokens of a stack, such as "decoder_"."""
        return ""

    def token_predictions(self, model: nn.Module, given: Mapping[str, Any], output: Any) -> TokenPredictions | None:
        """Return what a forward predicted for its tokens; None if that is unknown, or not its job.

        Args:
            model: outermost model.
            given: arguments of its call, by name.
            output: of its call.
        """
        return None


def first_answer(ask: Callable[[ModelFamily], Answer]) -> Answer | None:
    """Return the first answer of the families that is not empty, those of users asked first; None if there is none.

    Raises:
        Refused: by the family that was asked.
        ConfigurationError: a family failed; the message names it.
    """
    for family in sorted(ModelFamily.registry.values(), key=_is_built_in):
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


def require_token_layout(family: ModelFamily, layer_class: type, layout: object) -> None:
    """Raise a `ConfigurationError` if what a family declares for a class of layers is no `TokenLayout`."""
    from attnwatch.tokens.layouts import TokenLayout

    if not isinstance(layout, TokenLayout):
        described = ModelFamily.registry.describe(family)
        raise ConfigurationError(
            f"{described}: the token layout of {layer_class.__name__} must be a TokenLayout, got {layout!r}."
        )


def _is_built_in(family: ModelFamily) -> bool:
    return type(family) is not ModelFamily and type(family).__module__.startswith(f"{__package__}.")
