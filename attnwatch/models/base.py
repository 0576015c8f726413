"""What attnwatch knows of a family of models."""

from typing import TYPE_CHECKING, ClassVar

from torch import nn

from attnwatch.plugins import Plugin, Registry

if TYPE_CHECKING:
    from attnwatch.heads.layouts import HeadLayout
    from attnwatch.tokens.layouts import TokenLayout


class ModelFamily(Plugin):
    """Base class of what is known of a family of models: everything about it in one file.

    The families are asked in turn, those of users first, and the first that knows a module is believed.
    """

    registry: ClassVar[Registry["ModelFamily"]] = Registry("model family", "attnwatch.models", as_instances=True)

    def head_layout(self, module: nn.Module) -> "HeadLayout | None":
        """Return where the heads of an attention module lie; None if the module is not of this family.

        Raises:
            Refused: heads can't be removed from the module, and why.
        """
        return None

    def token_layout(self, layer: nn.Module) -> "TokenLayout | None":
        """Return which arguments of a layer have a token axis; None if the layer is not of this family."""
        return None
