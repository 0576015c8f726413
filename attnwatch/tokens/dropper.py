"""Token dropper: layers in the middle of a stack compute only some of the tokens during training."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from attnwatch.tokens.chooser import TokenChooser
from attnwatch.tokens.forwards import RoutedForwards
from attnwatch.tokens.options import ChoiceOptions, check_drop_in_evaluation
from attnwatch.tokens.schedule import require_keep_ratio
from attnwatch.tokens.scoring import Criterion, Scoring
from attnwatch.tokens.stacks import check_layers, choose_stack, layer_range
from attnwatch.utils.arguments import require_module
from attnwatch.utils.states import check_format, with_format

_STATE_FORMAT = 2


class TokenDropper:
    """Compute only some of the tokens between two layers while a model trains.

    The kept tokens go through the layers `first_layer` to `last_layer` in order, with their true positions and their
    part of the mask; after these layers, the other tokens rejoin with their earlier states (random-LTD, Yao et al.
    2022, arXiv 2211.11586). Loss and labels see all tokens. Tokens are chosen per sequence. Nothing is dropped in
    evaluation, without gradients (as in `generate`), or with a key-value cache.

    Args:
        model: model with a stack of layers that a model family knows; describe others in an `attnwatch.ModelFamily`.
        keep_ratio: share of the tokens to keep, above 0 and up to 1. May be set at any time.
        first_layer, last_layer: range of layers that drop tokens, inclusive; negative numbers count from the end. By
            default, the last layer of the stack sees all tokens.
        criterion: criterion for the tokens to keep: the name of a `TokenCriterion`, such a class or instance, or a
            function of a `TokenBatch` that returns scores [batch, tokens]; the highest are kept.
        stack: name of the container of the layers, if the model has several.
        min_tokens: minimum number of tokens that a sequence keeps.
        multiple_of: the number of kept tokens is rounded up to a multiple of this.
        protect_first: number of first tokens of each sequence, and of each document in a packed one, that always stay
            ([CLS], the attention sink, an image's class token). A sequence keeps at least this many.
        protected_ids: vocabulary ids of tokens that always stay. If there are more of them than can be kept, only
            some stay, with a warning.
        drop_in_evaluation: also drop tokens in evaluation, and never let them rejoin, so that later layers see only the
            kept tokens (PoWER-BERT, Goyal et al. 2020, arXiv 2001.08950). It is meant for models that read their result
            from the first token.
        seed: seed of the choice; each process of a group derives its own.

    Attributes:
        layer_range: the first and the last layer in which tokens are dropped, counted from 0.
        chooser: chooser of the tokens to keep in each forward pass.

    Raises:
        ConfigurationError: an argument is invalid, or tokens can't be dropped in these layers.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from attnwatch import TokenDropper
        >>> layer = nn.TransformerEncoderLayer(8, 2, batch_first=True)
        >>> model = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        >>> with TokenDropper(model, keep_ratio=0.5, min_tokens=1) as dropper:
        ...     loss = model(torch.randn(2, 10, 8)).square().mean()
        >>> dropper.layer_tokens, dropper.all_layer_tokens  # two of four layers see half of the 2 · 10 tokens
        (60, 80)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        keep_ratio: float = 0.5,
        first_layer: int = 1,
        last_layer: int | None = None,
        criterion: Criterion = "random",
        stack: str | None = None,
        min_tokens: int = 16,
        multiple_of: int = 1,
        protect_first: int = 1,
        protected_ids: Sequence[int] = (),
        drop_in_evaluation: bool = False,
        seed: int = 0,
    ):
        require_keep_ratio("keep_ratio", keep_ratio)
        options = ChoiceOptions(min_tokens, multiple_of, protect_first, protected_ids, seed)
        require_module("model", model)
        if drop_in_evaluation:
            check_drop_in_evaluation(protect_first, last_layer)
            last_layer = -1
        self._stack = choose_stack(model, stack)
        first, last = self.layer_range = layer_range(self._stack, first_layer, last_layer)
        layers = self._stack.layers[first : last + 1]
        check_layers(self._stack, layers, protect_first=protect_first, drop_in_evaluation=drop_in_evaluation)
        scoring = Scoring(criterion, self._stack.layers[first - 1] if first else None)
        self.chooser = TokenChooser(self._stack, layers, scoring, options, float(keep_ratio))
        self._forwards = RoutedForwards(self._stack, layers, self.chooser, drop_in_evaluation=drop_in_evaluation)

    @property
    def keep_ratio(self) -> float:
        """Requested share of tokens to keep; a sequence keeps more if other options require it."""
        return self.chooser.keep_ratio

    @keep_ratio.setter
    def keep_ratio(self, value: float) -> None:
        require_keep_ratio("keep_ratio", value)
        self.chooser.keep_ratio = float(value)

    @property
    def layer_tokens(self) -> int:
        """Number of tokens that the layers of the stack computed in training, summed over layers."""
        return self.chooser.layer_tokens

    @property
    def all_layer_tokens(self) -> int:
        """Number of tokens that the layers would have computed without dropping."""
        return self.chooser.all_layer_tokens

    @property
    def num_layers(self) -> int:
        """Number of layers in which tokens are dropped."""
        first, last = self.layer_range
        return last - first + 1

    def kept_share(self, layer_tokens: float, all_layer_tokens: float) -> float:
        """Return the share of tokens computed in the layers that drop tokens.

        Args:
            layer_tokens, all_layer_tokens: the attributes with these names, or their increase over some steps.
        """
        if not all_layer_tokens:
            return 1.0
        return 1 - (1 - layer_tokens / all_layer_tokens) * len(self._stack.layers) / self.num_layers

    def speedup_ceiling(self, keep_ratio: float) -> float:
        """Return the largest possible speedup of a step at cost linear in tokens: 1 / (1 - g · (1 - keep_ratio)).

        g is the share of the layers that drop tokens. Attention itself has quadratic cost, so long sequences save more.
        """
        return 1 / (1 - self.num_layers / len(self._stack.layers) * (1 - keep_ratio))

    def attach(self) -> None:
        """Start dropping tokens; `detach` stops it. `with dropper:` does both."""
        self._forwards.attach()

    def detach(self) -> None:
        """Restore the original state. May be called twice."""
        self._forwards.detach()

    def __enter__(self) -> "TokenDropper":
        self.attach()
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def synchronize(self) -> None:
        """Share the losses that the criterion learned between processes; all must call it."""
        self.chooser.synchronize()

    def state_dict(self) -> dict[str, Any]:
        """Return the state that later choices depend on; the same on all processes after `synchronize`."""
        return with_format(_STATE_FORMAT, self.chooser.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned.

        Raises:
            ConfigurationError: `state` is not such a state, or has another version.
        """
        check_format(state, _STATE_FORMAT, "TokenDropper")
        self.chooser.load_state_dict(state)
