"""Checkup of one training step without a loop."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from attnwatch.capture import undisturbed
from attnwatch.checkup.checkup import TrainingCheckup
from attnwatch.errors import ConfigurationError
from attnwatch.utils.arguments import require_function, require_module


def check_training(
    model: nn.Module,
    batch: Any,
    *,
    optimizers: Optimizer | Sequence[Optimizer] = (),
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> TrainingCheckup:
    """Check one training step without a loop, as in a test: `assert not check_training(model, batch).findings`.

    The model, its gradients and all random states are restored afterwards.

    Args:
        model: model to be trained, in the mode in which it will be trained.
        batch: one batch. A mapping is passed to the model by name, a tuple or list by position.
        optimizers: one optimizer or several; they do not step.
        forward: function of (model, batch) that returns the loss; None means the `loss` of the model's output.

    Returns:
        The checkup, with its `findings` and `skipped`.

    Raises:
        ConfigurationError: an argument is invalid.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(4, 2)
        >>> loss = lambda model, batch: torch.nn.functional.cross_entropy(model(batch["x"]), batch["y"])
        >>> batch = {"x": torch.randn(3, 4), "y": torch.tensor([0, 1, 0])}
        >>> check_training(layer, batch, optimizers=torch.optim.SGD(layer.parameters()), forward=loss).findings
        []
    """
    require_module("model", model)
    require_function("forward", forward, "(model, batch)", optional=True)
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    with (
        TrainingCheckup(model, optimizers=optimizers) as checkup,
        undisturbed(model, gradients=True, as_in_training=True),
    ):
        for parameter in gradients:
            parameter.grad = None
        try:
            with checkup.step(0):
                loss = _loss_of(model, batch) if forward is None else forward(model, batch)
                if not isinstance(loss, Tensor):
                    raise ConfigurationError(f"`forward` must return the loss as a tensor, got {type(loss).__name__}.")
                if loss.requires_grad:
                    loss.sum().backward()
        finally:
            for parameter, gradient in gradients.items():
                parameter.grad = gradient
    return checkup


def _loss_of(model: nn.Module, batch: Any) -> Tensor:
    if type(model).forward is nn.Module.forward:
        raise ConfigurationError(
            f"`model` ({type(model).__name__}) has no own forward: pass the model inside it, or `forward`, a "
            "function of (model, batch) that returns the loss."
        )
    if isinstance(batch, Mapping):
        output = model(**batch)
    elif isinstance(batch, tuple | list):
        output = model(*batch)
    else:
        output = model(batch)
    loss = getattr(output, "loss", None)
    if not isinstance(loss, Tensor):
        raise ConfigurationError(
            f"`batch`: {type(model).__name__} returns no `loss` for it. Add labels to the batch, or pass `forward`, "
            "a function of (model, batch) that returns the loss."
        )
    return loss
