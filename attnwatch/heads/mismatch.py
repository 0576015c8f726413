"""Errors with a remedy for state dicts whose attention heads differ from the model's."""

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from attnwatch.capture import KEPT_HEADS
from attnwatch.errors import ConfigurationError
from attnwatch.utils.messages import listed


def name_other_heads(model: nn.Module) -> list[RemovableHandle]:
    """Let `model.load_state_dict` name the remedy if a state dict has different heads than the model.

    Without it, PyTorch only lists the sizes that differ. A model that accepts such states (`accept_pruned_state`)
    already has their heads when this check runs.

    Returns:
        Handles whose `remove()` method undoes this.
    """
    seen: dict[str, int | None] = {}
    return [
        model.register_load_state_dict_pre_hook(partial(_note, seen)),
        model.register_load_state_dict_post_hook(partial(_compare, seen)),
    ]


def _note(seen: dict[str, int | None], model: nn.Module, state: Mapping[str, Any], prefix: str, *_: object) -> None:
    """Record the names in a state dict, and the number of heads of its modules."""
    seen.clear()
    for name, value in state.items():
        is_of_heads = name.rpartition(".")[2] == KEPT_HEADS
        seen[name.removeprefix(prefix)] = len(value) if is_of_heads else None


def _compare(seen: dict[str, int | None], model: nn.Module, _: object) -> None:
    """Raise a `ConfigurationError` if the state dict had different heads than the model."""
    modules = dict(model.named_modules())
    pruned = {path: len(module._buffers[KEPT_HEADS]) for path, module in modules.items() if _is_pruned(module)}
    in_state = {
        name.removesuffix(KEPT_HEADS).rstrip("."): number for name, number in seen.items() if number is not None
    }
    # A state dict with adapters only does not name heads, and need not.
    whole = [path for path in pruned if path not in in_state and _has_all(seen, path, modules[path])]
    other = [*whole, *(path for path, number in in_state.items() if number != pruned.get(path))]
    seen.clear()
    if other:
        places = listed(other)
        raise ConfigurationError(
            f"the checkpoint has other attention heads than the model in {len(other)} modules ({places}): heads were "
            "removed from one of the two. Add HeadPruning to the callbacks, or call "
            "attnwatch.accept_pruned_state(model) before optimizers are created (accept_pruned_state(self) in the "
            "__init__ of a LightningModule); the model then gets the checkpoint's heads."
        )


def _has_all(names: Collection[str], path: str, module: nn.Module) -> bool:
    """Return whether all parameters of the module at this path are among the names."""
    return all(f"{path}.{name}".removeprefix(".") in names for name, _ in module.named_parameters())


def _is_pruned(module: nn.Module) -> bool:
    return module._buffers.get(KEPT_HEADS) is not None
