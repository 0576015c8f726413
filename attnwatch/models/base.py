"""What attnwatch knows of a family of models."""

from typing import TYPE_CHECKING, ClassVar

from torch import nn

from attnwatch.plugins import Plugin, Registry

if TYPE_CHECKING:
    from attnwatch.attention import AttentionInputs
    from attnwatch.heads.layouts import HeadLayout
    from attnwatch.tokens.layouts import TokenLayout


CHOOSES_KEYS = "which keys a token sees depends on their content, so that padding can't be told from what was left out"
"""Reason why the calls of a family that chooses keys are refused: a token whose own key is hidden counts as padding."""


class ModelFamily(Plugin):
    """Base class of what is known of a family of models: everything about it in one file.

    The families are asked in turn, those of users first, and the first that knows a module is believed.
    """

    registry: ClassVar[Registry["ModelFamily"]] = Registry("model family", "attnwatch.models", as_instances=True)

    eager_attributes: frozenset[str] = frozenset()
    """Attributes that the family's own eager function reads of its module, which `adjust_call` accounts for.

    transformers before version 5 only."""

    def head_layout(self, module: nn.Module) -> "HeadLayout | None":
        """Return where the heads of an attention module lie; None if the module is not of this family.

        Raises:
            Refused: heads can't be removed from the module, and why.
        """
        return None

    def token_layout(self, layer: nn.Module) -> "TokenLayout | None":
        """Return which arguments of a layer have a token axis; None if the layer is not of this family."""
        return None

    def has_own_calls(self, module: nn.Module) -> bool:
        """Return whether the attention calls of a module mean something else than their arguments tell."""
        return False

    def refuses_call(self, module: nn.Module) -> str:
        """Return why no call of a module with calls of its own can be read; empty if they can."""
        return ""

    def adjust_call(self, module: nn.Module, inputs: "AttentionInputs") -> "AttentionInputs":
        """Return what a module with calls of its own computes when it is given `inputs`."""
        return inputs
