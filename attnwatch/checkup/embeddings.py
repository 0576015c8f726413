"""Replacement of the embeddings of some tokens by those of others."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from attnwatch.checkup.forward import POSITIONS


@contextlib.contextmanager
def changed_embeddings(module: nn.Module, ids: Tensor, where: Tensor) -> Iterator[list[str]]:
    """Embed some tokens as other tokens of the batch while the context is open.

    Args:
        module: model whose `torch.nn.Embedding` modules are changed when they are called with these ids.
        ids: int [batch, tokens].
        where: tokens to embed as others, bool [batch, tokens].

    Yields:
        Names of the modules whose outputs have been changed so far.
    """
    changed: list[str] = []

    def change(name: str, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if not args or not isinstance(args[0], Tensor) or not torch.equal(args[0].flatten(), ids.flatten()):
            return None
        changed.append(name)
        chosen = where.reshape(args[0].shape)  # models flatten the texts of several choices
        others = output[~chosen]
        replaced = output.clone()
        replaced[chosen] = others[torch.arange(int(chosen.sum()), device=output.device) % len(others)]
        return replaced

    with contextlib.ExitStack() as stack:
        for name, part in module.named_modules():
            if isinstance(part, nn.Embedding) and not POSITIONS.search(name):
                handle = part.register_forward_hook(lambda part, args, output, name=name: change(name, args, output))
                stack.callback(handle.remove)
        yield changed
