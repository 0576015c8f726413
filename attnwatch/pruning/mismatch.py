"""Names the remedy where the state of a pruned model meets a model with other heads."""

from collections.abc import Mapping
from functools import partial
from itertools import accumulate
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from attnwatch.capture import KEPT_HEADS
from attnwatch.errors import ConfigurationError

_SHOWN = 3


def name_other_heads(model: nn.Module) -> list[RemovableHandle]:
    """Let `model.load_state_dict` say what to do where a state has other heads than the model.

    Without it, PyTorch lists the sizes that differ. A model that takes such states (`accept_pruned_state`) has their
    heads by the time that this looks.

    Returns:
        Handles whose `remove()` ends it.
    """
    in_state: dict[str, int | None] = {}
    return [
        model.register_load_state_dict_pre_hook(partial(_note, in_state)),
        model.register_load_state_dict_post_hook(partial(_compare, in_state)),
    ]


def _note(in_state: dict[str, int | None], model: nn.Module, state: Mapping[str, Any], prefix: str, *_: object) -> None:
    """Of each module in a state how many heads it has there; None where it says nothing of heads."""
    in_state.clear()
    for name, value in state.items():
        path, _, leaf = name.removeprefix(prefix).rpartition(".")
        if leaf == KEPT_HEADS:
            in_state[path] = len(value)
        for owner in accumulate(path.split("."), "{}.{}".format):
            in_state.setdefault(owner, None)


def _compare(in_state: dict[str, int | None], model: nn.Module, _: object) -> None:
    pruned = {path: len(module._buffers[KEPT_HEADS]) for path, module in model.named_modules() if _is_pruned(module)}
    of_state = {path: number for path, number in in_state.items() if number is not None or path in pruned}
    in_state.clear()
    other = [path for path, number in of_state.items() if number != pruned.get(path)]
    if other:
        places = ", ".join(other[:_SHOWN]) + (", …" if len(other) > _SHOWN else "")
        raise ConfigurationError(
            f"the checkpoint has other attention heads than the model, at {len(other)} modules ({places}): heads were "
            "removed from one of them. Put HeadPruning among the callbacks, or call "
            "attnwatch.accept_pruned_state(model) before optimizers are made (accept_pruned_state(self) in the "
            "__init__ of a LightningModule); then the model gets the checkpoint's heads."
        )


def _is_pruned(module: nn.Module) -> bool:
    return module._buffers.get(KEPT_HEADS) is not None
