"""Evaluation of a model during training without changing the model or any random state."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from attnwatch.capture import is_split, undisturbed, whole
from attnwatch.errors import ConfigurationError
from attnwatch.explain.batches import LABEL_NAMES, Batch, describe
from attnwatch.utils.arguments import require_function
from attnwatch.utils.forwards import parameters_of
from attnwatch.utils.processes import has_other_processes

Forward = Callable[[nn.Module, Batch], Any]
"""Function that calls a model with a batch and returns logits [batch, classes] or [batch, tokens, vocabulary], or an
object with `.logits`."""


class EvaluatedModel:
    """Model and the function that calls it.

    Args:
        model: a transformers model, or a module that contains one (a LightningModule); with `forward`, any module.
        forward: function that calls the model; None means a call with everything in the batch except labels.

    Attributes:
        model: called module.
        num_forwards: number of calls so far.

    Raises:
        ConfigurationError: without `forward`, there is not exactly one transformers model in `model`.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> evaluated = EvaluatedModel(layer, forward=lambda model, batch: model(batch["x"]))
        >>> with evaluated.evaluating():
        ...     evaluated.logits({"x": torch.zeros(3, 4)}).shape
        torch.Size([3, 2])
        >>> layer.training
        True
    """

    def __init__(self, model: nn.Module, forward: Forward | None = None):
        require_function("forward", forward, "(model, batch)", optional=True)
        self.model = model if forward is not None else _transformers_model(model)
        self._forward = forward
        self.num_forwards = 0

    @classmethod
    def of(cls, model: "nn.Module | EvaluatedModel", forward: Forward | None = None) -> "EvaluatedModel":
        """Return `model` if it is already an `EvaluatedModel`, otherwise a new one."""
        return model if isinstance(model, EvaluatedModel) else cls(model, forward)

    @contextlib.contextmanager
    def evaluating(self, *, gradients: bool = False) -> Iterator[None]:
        """Put the model in eval mode, without compilation, observation and autocast, and restore it afterwards.

        Args:
            gradients: True to record operations for a backward.
        """
        with undisturbed(self.model, gradients=gradients):
            yield

    def output(self, batch: Batch, **changes: Any) -> Any:
        """Return the model's output for a batch with these changes and without its labels."""
        self.num_forwards += 1
        given = {name: value for name, value in {**batch, **changes}.items() if name not in LABEL_NAMES}
        return self.model(**given) if self._forward is None else self._forward(self.model, given)

    def logits(self, batch: Batch, **changes: Any) -> Tensor:
        """Return the model's logits, float32 [batch, classes] or [batch, tokens, vocabulary].

        Raises:
            ConfigurationError: the model's output has no logits.
        """
        output = self.output(batch, **changes)
        logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
        if not isinstance(logits, Tensor) or logits.ndim not in (2, 3) or not logits.is_floating_point():
            raise ConfigurationError(
                f"`forward`: {self.name} must return logits [batch, classes] or [batch, tokens, vocabulary], got "
                f"{describe(output)}; pass a function of (model, batch) that does, or a model with a head."
            )
        return whole(logits).float()

    def broadcast(self, value: Any) -> Any:
        """Return the first process's value if the model is sharded over processes, otherwise `value`.

        All processes take part in every forward of a sharded model. Rounding may differ between processes, so a value
        that decides which forwards follow must be broadcast.
        """
        if not self.is_sharded:
            return value
        values = [value]
        dist.broadcast_object_list(values, device=self.device)
        return values[0]

    def accepts(self, argument: str) -> bool:
        """Return whether the model's forward has an argument with this name; a custom `forward` accepts all.

        `**kwargs` do not count, because the model may ignore them.
        """
        if self.has_custom_forward:
            return True
        return argument in parameters_of(self.base.forward)

    @property
    def is_sharded(self) -> bool:
        """True if the model is split across processes, all of which must make the same calls."""
        return has_other_processes() and is_split(self.model)

    @property
    def has_custom_forward(self) -> bool:
        """True if a user function calls the model."""
        return self._forward is not None

    @property
    def base(self) -> nn.Module:
        """Model without PEFT's adapters around it."""
        find = getattr(self.model, "get_base_model", None)
        return find() if callable(find) else self.model

    @property
    def name(self) -> str:
        """Name of the model's class."""
        return type(self.model).__name__

    @property
    def config(self) -> Any:
        """Config of a transformers model; None if there is none."""
        return getattr(self.model, "config", None)

    @property
    def problem_type(self) -> str | None:
        """`problem_type` in a transformers classifier's config, such as "multi_label_classification"."""
        return None if self.has_custom_forward else getattr(getattr(self.base, "config", None), "problem_type", None)

    @property
    def is_sequence_classifier(self) -> bool:
        """True if the model is a transformers sequence classifier."""
        name = type(self.base).__name__
        return "Classification" in name and "TokenClassification" not in name

    @property
    def device(self) -> torch.device:
        """Device of the first parameter."""
        return next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))

    @property
    def input_embeddings(self) -> nn.Module | None:
        """Module that embeds `input_ids`; None if the model has no `get_input_embeddings()`."""
        find = getattr(self.model, "get_input_embeddings", None)
        embeddings = find() if callable(find) else None
        return embeddings if isinstance(getattr(embeddings, "weight", None), Tensor) else None

    def require_input_embeddings(self, needed_by: str) -> nn.Module:
        """Return `input_embeddings`.

        Args:
            needed_by: beginning of the error message.

        Raises:
            ConfigurationError: the model has no such module.
        """
        embeddings = self.input_embeddings
        if embeddings is None:
            raise ConfigurationError(
                f"{needed_by} needs the module that embeds `input_ids`: {self.name} must have it as "
                "`get_input_embeddings()`."
            )
        return embeddings


def _transformers_model(model: nn.Module) -> nn.Module:
    """Return the outermost transformers model in a module."""
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        is_inside = any(outer == "" or path.startswith(f"{outer}.") for outer in found)
        if not is_inside and hasattr(module, "config") and callable(getattr(module, "get_input_embeddings", None)):
            found[path] = module
    if len(found) == 1:
        return next(iter(found.values()))
    there_are = f"{len(found)} transformers models ({', '.join(found)})" if found else "no transformers model"
    raise ConfigurationError(
        f"`model` ({type(model).__name__}) contains {there_are}: pass `forward`, a function of (model, batch) that "
        "returns logits."
    )
