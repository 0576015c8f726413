"""A model that is asked something beside its training: nothing of it, nor of the random state, is changed by it."""

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from attnwatch.capture import has_processes, is_split, unwatched, whole
from attnwatch.errors import ConfigurationError

Batch = Mapping[str, Any]
"""What the model's forward takes by name; `input_ids` and, where there is padding, `attention_mask` [batch, tokens]."""

Forward = Callable[[nn.Module, Batch], Any]
"""Calls a model with a batch; returns logits [batch, classes] or [batch, tokens, vocabulary], or what has `.logits`."""

_LABELS = ("labels", "label")


class Subject:
    """A model and the way to call it.

    Args:
        model: a transformers model, or a module around one (a LightningModule, say), which is then looked up in it;
            with `forward` any module.
        forward: how it is called; None means by name with everything in the batch but the labels.

    Attributes:
        model: that is called.
        num_forwards: how many forwards it took so far.

    Raises:
        ConfigurationError: there is no transformers model in `model`, or more than one, and no `forward`.
    """

    def __init__(self, model: nn.Module, forward: Forward | None = None):
        if forward is not None and not callable(forward):
            raise ConfigurationError(f"`forward` must be a function of (model, batch), got {forward!r}.")
        self.model = model if forward is not None else _transformers_model(model)
        self._forward = forward
        self.num_forwards = 0

    @contextlib.contextmanager
    def asked(self, *, gradients: bool = False) -> Iterator[None]:
        """While it is open the model is in eval mode, not compiled, unwatched and without autocast; then as it was."""
        states = [(module, *_state_of(module)) for module in self.model.modules()]
        device = self.device
        with contextlib.ExitStack() as stack:
            stack.callback(_restore, states)
            stack.enter_context(unwatched())
            stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
            stack.enter_context(torch.set_grad_enabled(gradients))
            stack.enter_context(torch.autocast(device.type, enabled=False))
            if "torch._dynamo" in sys.modules:  # batches of other shapes must not make a training compile anew
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            self.model.eval()
            yield

    def output(self, batch: Batch, **changes: Any) -> Any:
        """What the model returns for the batch with these changes, its labels left out."""
        self.num_forwards += 1
        given = {name: value for name, value in {**batch, **changes}.items() if name not in _LABELS}
        return self.model(**given) if self._forward is None else self._forward(self.model, given)

    def logits(self, batch: Batch, **changes: Any) -> Tensor:
        """float32 [batch, classes] or [batch, tokens, vocabulary].

        Raises:
            ConfigurationError: what the model returns has no logits.
        """
        output = self.output(batch, **changes)
        logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
        if not isinstance(logits, Tensor) or logits.ndim not in (2, 3) or not logits.is_floating_point():
            raise ConfigurationError(
                f"`forward`: {type(self.model).__name__} returns no logits [batch, classes] or [batch, tokens, "
                f"vocabulary], but {described(output)}; give a function of (model, batch) that does, or a model with "
                "a head."
            )
        return whole(logits).float()

    def agreed(self, value: Any) -> Any:
        """What decides which forwards follow: the first process's, where the model is split over several.

        Each forward of such a model is one of all processes. Rounding may tell them apart.
        """
        if not self.is_split:
            return value
        values = [value]
        dist.broadcast_object_list(values, device=self.device)
        return values[0]

    @property
    def is_split(self) -> bool:
        """Over processes that must all call it alike."""
        return has_processes() and is_split(self.model)

    def takes(self, name: str) -> bool:
        """Whether the model's forward has an argument of this name; a `forward` of the user takes whatever comes.

        What falls to `**kwargs` doesn't count: nobody knows whether it is looked at.
        """
        if self.has_own_forward:
            return True
        return name in inspect.signature(self._base.forward).parameters

    @property
    def head(self) -> str:
        """Name of the model's class, without adapters of PEFT around it."""
        return type(self._base).__name__

    @property
    def loss_type(self) -> str | None:
        """What a transformers model says it is trained for."""
        return getattr(self._base, "loss_type", None)

    @property
    def problem_type(self) -> str | None:
        """Of a transformers classifier, where its configuration says: "multi_label_classification" and others."""
        return None if self.has_own_forward else getattr(getattr(self._base, "config", None), "problem_type", None)

    @property
    def _base(self) -> nn.Module:
        base = getattr(self.model, "get_base_model", None)  # adapters of PEFT hand arguments through
        return base() if callable(base) else self.model

    @property
    def has_own_forward(self) -> bool:
        """Whether the user's function calls the model."""
        return self._forward is not None

    @property
    def device(self) -> torch.device:
        return next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))


def token_mask(batch: Batch) -> Tensor:
    """bool [batch, tokens], False at padding.

    Raises:
        ConfigurationError: the batch has no `input_ids`, or an `attention_mask` of another shape.
    """
    ids = batch.get("input_ids")
    if not isinstance(ids, Tensor) or ids.ndim != 2:
        raise ConfigurationError(
            f"`batches`: `input_ids` [batch, tokens] expected in each batch, got {described(batch)}."
        )
    mask = batch.get("attention_mask")
    if mask is None:
        return torch.ones_like(ids, dtype=torch.bool)
    if not isinstance(mask, Tensor) or mask.shape != ids.shape:
        got = list(mask.shape) if isinstance(mask, Tensor) else described(mask)
        raise ConfigurationError(f"`batches`: `attention_mask` must be {list(ids.shape)} as `input_ids`, got {got}.")
    return mask.bool()


def labels_of(batch: Batch) -> Tensor | None:
    """Of a batch, whatever they are called."""
    return next((batch[name] for name in _LABELS if batch.get(name) is not None), None)


def as_batch(given: Any) -> Batch:
    """A copy of the batch of a data loader.

    Raises:
        ConfigurationError: it does not say by name what is in it.
    """
    if isinstance(given, Mapping):
        return dict(given)
    raise ConfigurationError(
        f"`batches`: a mapping with `input_ids` expected, as transformers models take it by name; got "
        f"{described(given)}. Give `batches` of your own."
    )


def _transformers_model(model: nn.Module) -> nn.Module:
    """The outermost one in a module."""
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        is_inside = any(outer == "" or path.startswith(f"{outer}.") for outer in found)
        if not is_inside and hasattr(module, "config") and callable(getattr(module, "get_input_embeddings", None)):
            found[path] = module
    if len(found) == 1:
        return next(iter(found.values()))
    there_are = f"{len(found)} transformers models ({', '.join(found)})" if found else "no transformers model"
    raise ConfigurationError(
        f"`model` ({type(model).__name__}) has {there_are} in it: give `forward`, a function of (model, batch) that "
        "returns logits."
    )


def _state_of(module: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor | None]]:
    """Its mode and other plain attributes, and its buffers: rotary embeddings, for one, replace theirs in a forward."""
    plain = bool | int | float | str | Tensor | None
    return {name: value for name, value in vars(module).items() if isinstance(value, plain)}, dict(module._buffers)


def _restore(states: list[tuple[nn.Module, dict[str, Any], dict[str, Tensor | None]]]) -> None:
    for module, attributes, buffers in states:
        vars(module).update(attributes)
        module._buffers.update(buffers)


def described(thing: Any) -> str:
    if isinstance(thing, Tensor):
        return f"a {thing.dtype} tensor of shape {list(thing.shape)}"
    if isinstance(thing, Mapping):
        return f"a {type(thing).__name__} with {', '.join(map(repr, thing)) or 'nothing'} in it"
    return f"a {type(thing).__name__}"
