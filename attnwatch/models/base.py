"""Base class of the model families."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

from torch import Tensor, nn

from attnwatch.errors import AttnwatchError, ConfigurationError
from attnwatch.plugins import Plugin, Registry
from attnwatch.utils.interception import original_class

if TYPE_CHECKING:
    from attnwatch.attention import AttentionInputs
    from attnwatch.heads.layout import HeadLayout
    from attnwatch.tokens.layouts import TokenLayout
    from attnwatch.tokens.stacks import Stack

Answer = TypeVar("Answer")

CHOOSES_KEYS = "which keys a token sees depends on their content, so padding can't be distinguished from hidden keys"
"""Reason why calls of families that choose keys are refused: a token whose own key is hidden counts as padding."""


class TokenPredictions(NamedTuple):
    """Predictions of a language model for the tokens of one forward pass.

    Attributes:
        logits: logits [batch, tokens, vocabulary].
        labels: int [batch, tokens], negative at tokens without a label.
        is_shifted: True if the logits at a token predict the label of the next token.
    """

    logits: Tensor
    labels: Tensor
    is_shifted: bool


class Refused(Exception):
    """Exception raised if heads or tokens of a module can't be removed. The message is the reason."""


class ModelFamily(Plugin):
    """Family of models, with its head and token layouts and the peculiarities of its attention calls.

    An instance of this class declares the layouts of some module classes. A subclass can override all methods. Families
    are asked in turn, user families first, and the first answer is used.

    Args:
        name: see `Plugin`.
        heads: head layouts by class of the attention module. `attnwatch.check_layout` tests whether a layout fits.
        tokens: token layouts, which name the arguments with a token axis, by class of the layer.

    Attributes:
        heads, tokens: see above; subclasses of the classes are not included. A subclass of `ModelFamily` may declare
            them in its body.
        is_fallback: True if the family recognises modules by common names, and is asked after other built-in families.
        eager_attributes: attributes of a module that the family's eager function reads and that `adjust_call`
            accounts for. Only transformers before version 5 has such functions.

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
    eager_attributes: ClassVar[frozenset[str]] = frozenset()
    heads: Mapping[type[nn.Module], "HeadLayout"] = MappingProxyType({})
    tokens: Mapping[type[nn.Module], "TokenLayout"] = MappingProxyType({})

    def __init__(
        self,
        name: str | None = None,
        *,
        heads: Mapping[type[nn.Module], "HeadLayout"] | None = None,
        tokens: Mapping[type[nn.Module], "TokenLayout"] | None = None,
    ):
        if name is not None:
            self.name = name
        if heads is not None:
            self.heads = dict(heads)
        if tokens is not None:
            self.tokens = dict(tokens)

    def __eq__(self, other: object) -> bool:
        """Return whether both declare the same classes under the same name, as when a notebook cell is rerun."""
        return isinstance(other, ModelFamily) and self._declared == other._declared

    def __hash__(self) -> int:
        return hash(self._declared)

    @property
    def _declared(self) -> tuple[type, str, frozenset[str]]:
        classes = frozenset(f"{each.__module__}.{each.__qualname__}" for each in (*self.heads, *self.tokens))
        return type(self), self.name, classes

    @classmethod
    def check(cls, plugin: "ModelFamily") -> None:
        """Raise a `ConfigurationError` if a layout does not fit the class that it is declared for."""
        for argument, layouts in (("heads", plugin.heads), ("tokens", plugin.tokens)):
            for module_class in layouts:
                if not (isinstance(module_class, type) and issubclass(module_class, nn.Module)):
                    raise ConfigurationError(
                        f"`{argument}` must map classes of modules to layouts, got {module_class!r}."
                    )
        for module_class, heads in plugin.heads.items():
            require_head_layout(plugin, module_class, heads)
        for layer_class, tokens in plugin.tokens.items():
            require_token_layout(plugin, layer_class, tokens)
            tokens.check_arguments(layer_class)

    # Heads

    def head_layout(self, module: nn.Module) -> "HeadLayout | None":
        """Return the head layout of an attention module; None if the module does not belong to this family.

        Raises:
            Refused: heads can't be removed from the module; the message is the reason.
        """
        return self.heads.get(type(module))

    # Tokens

    def token_layout(self, layer: nn.Module) -> "TokenLayout | None":
        """Return the token layout of a layer; None if the layer does not belong to this family.

        Raises:
            Refused: tokens can't be dropped in such layers; the message completes "its layers …".
        """
        return self.tokens.get(original_class(layer))

    def check_tokens(
        self, stack: "Stack", layers: tuple[nn.Module, ...], *, protect_first: int, drop_in_evaluation: bool
    ) -> None:
        """Check that tokens can be dropped in some layers of a stack. All families are asked about every stack.

        Args:
            stack: stack of layers, with the model around it.
            layers: layers in which tokens are to be dropped.
            protect_first, drop_in_evaluation: see `attnwatch.TokenDropper`.

        Raises:
            Refused: tokens can't be dropped; the message completes "tokens can't be dropped: …".
        """

    def is_model(self, module: nn.Module) -> bool:
        """Return whether a call of the module is a model's forward pass, with arguments that describe its tokens."""
        return False

    def argument_prefix(self, model: nn.Module, stack: str) -> str:
        """Return the prefix of the model's arguments about the tokens of a stack, such as "decoder_"."""
        return ""

    def token_predictions(self, model: nn.Module, given: Mapping[str, Any], output: Any) -> TokenPredictions | None:
        """Return a forward pass's predictions for its tokens; None if they are unknown or do not exist.

        Args:
            model: outermost model.
            given: arguments of its call, by name.
            output: result of its call.
        """
        return None

    # Attention calls

    def has_own_calls(self, module: nn.Module) -> bool:
        """Return whether the attention calls of a module differ from what their arguments say."""
        return False

    def refuses_call(self, module: nn.Module) -> str:
        """Return why calls of a module with its own calls can't be read; empty if they can."""
        return ""

    def adjust_call(self, module: nn.Module, inputs: "AttentionInputs") -> "AttentionInputs":
        """Return the inputs that a module with its own calls effectively uses when it receives `inputs`."""
        return inputs


def first_answer(ask: Callable[[ModelFamily], Answer | None]) -> Answer | None:
    """Return the first nonempty answer of the families, asking user families first; None if there is none.

    Raises:
        Refused: a family raised it.
        ConfigurationError: a family failed; the message names it.
    """
    registry = ModelFamily.registry
    for family in sorted(registry.values(), key=lambda each: (registry.is_built_in(each), each.is_fallback)):
        try:
            answer = ask(family)
        except (Refused, AttnwatchError):
            raise
        except Exception as error:
            described = registry.describe(family)
            raise ConfigurationError(f"{described} failed with {type(error).__name__}: {error}") from error
        if answer:
            return answer
    return None


def require_head_layout(family: ModelFamily, module_class: type, layout: object) -> None:
    """Raise a `ConfigurationError` unless a family declares a `HeadLayout` for a class."""
    from attnwatch.heads.layout import HeadLayout

    _require_layout(family, module_class, layout, HeadLayout, "head")


def require_token_layout(family: ModelFamily, layer_class: type, layout: object) -> None:
    """Raise a `ConfigurationError` unless a family declares a `TokenLayout` for a class."""
    from attnwatch.tokens.layouts import TokenLayout

    _require_layout(family, layer_class, layout, TokenLayout, "token")


def _require_layout(family: ModelFamily, module_class: type, layout: object, kind: type, what: str) -> None:
    if not isinstance(layout, kind):
        raise ConfigurationError(
            f"{ModelFamily.registry.describe(family)}: the {what} layout of {module_class.__name__} must be a "
            f"{kind.__name__}, got {layout!r}."
        )
