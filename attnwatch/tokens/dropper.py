"""Drops tokens between two layers of a stack while a model trains."""

import contextlib
import inspect
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attnwatch.capture import TensorParallelGroup, in_backward
from attnwatch.errors import ConfigurationError
from attnwatch.tokens.batch import TokenBatch
from attnwatch.tokens.call import ModelCall
from attnwatch.tokens.choice import choose, register
from attnwatch.tokens.criteria import Criterion, make_criterion
from attnwatch.tokens.interception import Run, intercept, is_intercepted
from attnwatch.tokens.options import check_choice, check_for_good
from attnwatch.tokens.route import Route
from attnwatch.tokens.schedule import require_keep_ratio
from attnwatch.tokens.selection import choose_tokens, num_kept
from attnwatch.tokens.stacks import Stack, choose_stack, inner, layer_range, why_not
from attnwatch.utils.messages import WarnOnce
from attnwatch.utils.states import check_format, with_format

_STATE_FORMAT = 1


class _Forward(threading.local):
    """The forward that a thread is in: another one may run the same model meanwhile."""

    def __init__(self, stack: Stack):
        self.model_call = ModelCall(stack)
        self.route: Route | None = None


class TokenDropper:
    """Between two layers only some of the tokens are computed, in training.

    ```python
    with TokenDropper(model, keep_ratio=0.5):
        ...  # train
    ```

    The kept tokens go through the layers `first_layer` to `last_layer` in their order, with their true positions and
    with what of the mask belongs to them; behind these the others rejoin with the states that they had (random-LTD,
    Yao et al. 2022, arXiv 2211.11586). Loss and labels see all tokens. Each sequence has its own choice. Nothing is
    dropped in evaluation, without gradients (as in `generate`), or where a key-value cache is given.

    Args:
        model: with a stack of layers that are known; others are described by `register_token_layout`.
        keep_ratio: share of the tokens that is kept, above 0 and up to 1. May be set at any time.
        first_layer, last_layer: inclusive; negative ones count from the end. The last layer sees all tokens by default.
        criterion: `"random"`; `"attention"`: what receives little attention in the layer before goes first;
            `"loss"`: what is predicted well goes first (Hou et al. 2022, arXiv 2203.13240); or a function of a
            `TokenBatch` that returns scores [batch, tokens], the higher the sooner kept.
        stack: name of the container of the layers, where the model has several.
        min_tokens: a sequence keeps at least so many.
        multiple_of: the number of kept tokens is rounded up to a multiple.
        protect_first: the first tokens of each sequence, and of each document in a packed one, always stay ([CLS], the
            attention sink, an image's class token). A sequence keeps at least so many.
        protected_ids: vocabulary ids of tokens that always stay. Of more tokens than are kept, only some stay; a
            warning says so.
        for_good: the tokens do not rejoin: everything behind sees the kept ones only, in evaluation too (PoWER-BERT,
            Goyal et al. 2020, arXiv 2001.08950). For models that read their result off the first token.
        seed: of the choice; each process of a group has one of its own.

    Attributes:
        layer_range: the first and the last layer in which tokens are dropped, counted from 0.
        layer_tokens: how many tokens the layers of the stack have computed in training, summed over layers.
        all_layer_tokens: how many they would have without dropping.

    Raises:
        ConfigurationError: an argument is wrong, or tokens can't be dropped in these layers; says why.
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
        for_good: bool = False,
        seed: int = 0,
    ):
        self.keep_ratio = keep_ratio
        check_choice(
            min_tokens=min_tokens,
            multiple_of=multiple_of,
            protect_first=protect_first,
            protected_ids=protected_ids,
            seed=seed,
        )
        if not isinstance(model, nn.Module):
            raise ConfigurationError(f"`model` must be a torch.nn.Module, got {type(model).__name__}.")
        self._stack = choose_stack(model, stack)
        if for_good:
            check_for_good(self._stack, protect_first, last_layer)
            last_layer = -1
        first, last = layer_range(self._stack, first_layer, last_layer)
        self.layer_range = (first, last)
        self._layers = self._stack.layers[first : last + 1]
        reason = why_not(self._stack, self._layers, has_starts=protect_first > 0)
        if reason:
            raise ConfigurationError(f"`model`: tokens can't be dropped in {self._stack.name!r}: {reason}.")
        self._names = [list(inspect.signature(inner(layer).forward).parameters) for layer in self._layers]
        self._criterion = make_criterion(criterion, self._stack.layers[first - 1] if first else None)
        self._min_tokens, self._multiple_of = min_tokens, multiple_of
        self._protect_first, self._protected_ids = protect_first, tuple(protected_ids)
        self._for_good = for_good
        self._seed = seed
        self._forwards = 0
        self._as_chooser = register(self)
        self.layer_tokens = self.all_layer_tokens = 0
        self._now = _Forward(self._stack)
        self._peers: TensorParallelGroup | None = None
        self._warn_once = WarnOnce()
        self._attached = contextlib.ExitStack()

    @property
    def keep_ratio(self) -> float:
        return self._keep_ratio

    @keep_ratio.setter
    def keep_ratio(self, value: float) -> None:
        require_keep_ratio("keep_ratio", value)
        self._keep_ratio = float(value)

    @property
    def num_layers(self) -> int:
        """In which tokens are dropped."""
        return len(self._layers)

    def speedup_ceiling(self, keep_ratio: float) -> float:
        """How much faster a step can get where its cost is linear in tokens: 1 / (1 - g · (1 - keep_ratio)).

        g is the share of the layers. Attention's own cost is quadratic: of many tokens, more than this is saved.
        """
        return 1 / (1 - self.num_layers / len(self._stack.layers) * (1 - keep_ratio))

    def attach(self) -> None:
        """Start to drop tokens; `detach` puts everything back. `with dropper:` does both."""
        if any(map(is_intercepted, self._stack.layers)):
            raise ConfigurationError(
                f"`model`: another TokenDropper is attached to {self._stack.name!r}; detach it first."
            )
        with contextlib.ExitStack() as attached:
            for index, layer in enumerate(self._layers):
                attached.callback(intercept(layer, partial(self._call, index)))
            for module in self._stack.entries:
                attached.callback(intercept(module, partial(self._forward, module)))
            attached.enter_context(self._criterion.attached(self._is_dropping, self._generator))
            self._attached = attached.pop_all()

    def detach(self) -> None:
        """Put everything back as it was. May be called twice."""
        self._attached.close()

    def __enter__(self) -> "TokenDropper":
        self.attach()
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def synchronize(self) -> None:
        """Share between processes what the criterion has learned; all must call it. Only "loss" learns something."""
        device = next(self._layers[0].parameters()).device
        self._criterion.synchronize(self._known_peers().size, device)

    def state_dict(self) -> dict[str, Any]:
        """What the choices to come depend on; the same on all processes after `synchronize`."""
        state = {
            "forwards": self._forwards,
            "layer_tokens": [self.layer_tokens, self.all_layer_tokens],
            "criterion": self._criterion.state_dict(),
        }
        return with_format(_STATE_FORMAT, state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ConfigurationError: it is no such state, or of another version.
        """
        check_format(state, _STATE_FORMAT, "TokenDropper")
        self._forwards = state["forwards"]
        self.layer_tokens, self.all_layer_tokens = state["layer_tokens"]
        self._criterion.load_state_dict(state["criterion"])

    # One forward of the model.

    def _forward(self, module: nn.Module, run: Run, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The outermost of the models that is called says what is known of the tokens."""
        is_outermost = self._now.model_call.arguments is None
        if not is_outermost and kwargs.get("output_hidden_states"):
            self._now.model_call.reads_between = True
        if not is_outermost or not self._is_on(module):
            return run(*args, **kwargs)
        names = inspect.signature(inner(module).forward).parameters
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        self._now.model_call, self._now.route = ModelCall(self._stack, given), None
        try:
            output = run(*args, **kwargs)
            self._check_route_has_ended()
            if module.training and not torch.compiler.is_compiling():
                self._learn(module, given, output)
            return output
        finally:
            self._now.model_call, self._now.route = ModelCall(self._stack), None

    def _check_route_has_ended(self) -> None:
        if self._now.route is not None:
            raise ConfigurationError(
                "`model`: a layer in which tokens are dropped was left out, so that the others never came back; switch "
                "off what skips layers (layerdrop), or choose `first_layer` and `last_layer` beside it."
            )

    def _learn(self, module: nn.Module, given: Mapping[str, Any], output: Any) -> None:
        try:
            self._criterion.learn(module, given, output, self._generator())
        except Exception as error:  # the training is worth more
            self._warn_once(f"the criterion does not learn from this model: {type(error).__name__}: {error}")

    def _is_on(self, module: nn.Module) -> bool:
        return self._for_good or (module.training and torch.is_grad_enabled())

    def _is_dropping(self) -> bool:
        return self.keep_ratio < 1 and (self._for_good or self._layers[0].training)

    def _call(self, index: int, run: Run, args: tuple, kwargs: dict[str, Any]) -> Any:
        layer, names = self._layers[index], self._names[index]
        if not torch.compiler.is_compiling() and in_backward() and self.keep_ratio < 1 and self._is_on(layer):
            raise ConfigurationError(
                "the layers are run again in the backward by a checkpoint around their calls, where the same tokens "
                "can't be chosen; use the activation checkpointing of transformers, or torch's checkpoint_wrapper."
            )
        if index == 0 and self._now.route is None:
            self._now.route = self._begin(layer, {**dict(zip(names, args, strict=False)), **kwargs})
        route = self._now.route
        if route is None:
            return run(*args, **kwargs)
        if route.num_layers != index:
            self._now.route = None
            raise ConfigurationError(
                "`model`: one of the layers in which tokens are dropped was left out or runs twice; they must run one "
                "after the other."
            )
        try:
            output = route.through(layer, names, run, args, kwargs)
        except Exception:  # the forward may be tried again
            self._now.route = None
            raise
        if index < self.num_layers - 1:
            return output
        self._now.route = None
        return output if self._for_good else route.rejoin(output, batch_first=self._stack.layout.is_batch_first(layer))

    def choose(self, states: Tensor, number: int, known: Mapping[str, Tensor]) -> Tensor:
        """The tokens of one forward that are computed: int64 [batch, number], ascending. Counts them."""
        is_training = self._layers[0].training
        if is_training:
            self._count(states, number)
        if number == states.shape[1]:
            return torch.arange(number, device=states.device).expand(len(states), -1).clone()
        batch, generator = TokenBatch.of(states, known), self._generator()
        self._forwards += is_training
        try:
            scores = self._criterion.scores(batch, generator)
        except Exception as error:  # the training is worth more
            self._warn_once(f"tokens are chosen at random where the criterion fails: {type(error).__name__}: {error}")
            scores = torch.rand(states.shape[:2], generator=generator)
        scores = self._known_peers().mean(scores.to(states.device, torch.float32))
        if self._forwards == 1 and scores.isnan().all():  # once: on a GPU it waits
            self._warn_once("the criterion says nan for all tokens; the choice means nothing.")
        protected = batch.protected(self._protect_first, self._protected_ids)
        self._check_protection(batch, protected, number)
        return choose_tokens(scores, number, protected=protected, padding=batch.padding)

    def _check_protection(self, batch: TokenBatch, protected: Tensor, number: int) -> None:
        """Warn once where tokens that are to stay can't, or are not known."""
        if self._protected_ids and batch.input_ids is None:
            self._warn_once(
                "`protected_ids` protect nothing: the model was given no `input_ids` [batch, tokens] to find them in."
            )
        if not protected.is_cpu and self._forwards > 1:  # asking a GPU waits for it
            return
        most = int(protected.sum(1).max()) if protected.numel() else 0
        if most > number:
            self._warn_once(
                "`protect_first` and `protected_ids` protect more tokens of a sequence than are kept, so that some of "
                "them are dropped; raise `keep_ratio` or `min_tokens`, or protect fewer",
                f" (first seen: {most} are protected, {number} of {batch.states.shape[1]} are kept).",
            )

    def _begin(self, layer: nn.Module, to_layer: Mapping[str, Any]) -> Route | None:
        """The route of a forward; None where all tokens are computed."""
        if not self._is_on(layer):
            return None
        layout = self._stack.layout
        states = to_layer[layout.states]
        if states.is_nested or states.ndim != 3:
            self._warn_once("all tokens are computed where the hidden states are no tensor [batch, tokens, features].")
            return None
        if not layout.is_batch_first(layer):
            states = states.transpose(0, 1)
        number = self._number(states, to_layer)
        kept = choose(self._as_chooser, states, number, self._now.model_call.known(to_layer))
        return None if number == states.shape[1] else Route(layout, kept, states)

    def _number(self, states: Tensor, to_layer: Mapping[str, Any]) -> int:
        num_tokens = states.shape[1]
        if self.keep_ratio == 1:
            return num_tokens
        reason = self._now.model_call.why_all(to_layer, num_tokens)
        if not reason and num_tokens <= self._min_tokens:
            reason = f"a batch has no more than the {self._min_tokens} tokens a sequence of `min_tokens`"
        if reason:
            self._warn_once(f"all tokens are computed where {reason}.")
            return num_tokens
        options = {"min_tokens": self._min_tokens, "multiple_of": self._multiple_of}
        number = num_kept(num_tokens, self.keep_ratio, **options)
        if self._protect_first > number:
            self._warn_once(
                f"`protect_first` ({self._protect_first}) is above the number of tokens that are kept, so that a "
                "sequence keeps its first tokens and the criterion chooses few or none; lower it or raise `keep_ratio`",
                f" (first seen: {number} of {num_tokens} tokens would be kept).",
            )
            number = num_kept(num_tokens, self.keep_ratio, **(options | {"min_tokens": self._protect_first}))
        if number == num_tokens:
            self._warn_once(
                f"all tokens are computed where `min_tokens` ({self._min_tokens}), `multiple_of` "
                f"({self._multiple_of}) and `protect_first` ({self._protect_first}) leave none to drop."
            )
        return number

    def _count(self, states: Tensor, number: int) -> None:
        batch_size, num_tokens = states.shape[:2]
        depth = len(self._stack.layers)
        self.all_layer_tokens += batch_size * num_tokens * depth
        self.layer_tokens += batch_size * (num_tokens * (depth - self.num_layers) + number * self.num_layers)

    def _generator(self) -> torch.Generator:
        """On the CPU; another one for each forward, and process with other tokens; in evaluation always the same."""
        generator = torch.Generator()
        number = self._forwards if self._layers[0].training else -1
        generator.manual_seed(hash((self._seed, self._known_peers().leader, number)) % 2**63)
        return generator

    def _known_peers(self) -> TensorParallelGroup:
        """Looked up in a forward, when the model has been split over the processes."""
        if self._peers is None:
            self._peers = TensorParallelGroup(self._stack.model, self._layers[0])
        return self._peers
