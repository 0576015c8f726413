"""How likely a language model finds texts, and what it would write itself."""

import contextlib
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attnwatch.explain.asking.encoding import Continuation, Encoder
from attnwatch.explain.subject import Batch, Subject


def log_likelihoods(
    subject: Subject, continuations: Sequence[Continuation], *, batch_size: int, pad_id: int
) -> list[float]:
    """Σ_t log p(token t | tokens before t) over the tokens of each continuation, in nats.

    Tokens that are the same but for the last take one row of one forward together.
    """
    behind: dict[tuple[int, ...], list[Continuation]] = {}
    for each in continuations:
        behind.setdefault(each.ids[:-1], []).append(each)
    sums: dict[Continuation, Tensor] = {}
    for batch in _batched(_contexts(continuations), batch_size):
        given = _padded(batch, pad_id, subject.device, side="right")
        length, first = given["input_ids"].shape[1], min(each.start for context in batch for each in behind[context])
        logits = subject.logits(given, **_last_only(subject, length - first + 1))
        before = logits.shape[1] - length  # below 0 where only the last were computed, above 0 with virtual tokens
        for context, row in zip(batch, logits, strict=True):
            for each in behind[context]:
                tokens = torch.tensor(each.ids[each.start :], device=row.device)
                read = row[each.start - 1 + before : len(context) + before].log_softmax(-1)
                sums[each] = read.gather(1, tokens[:, None]).sum()
    return torch.stack([sums[each] for each in continuations]).tolist() if continuations else []


def num_contexts(continuations: Iterable[Continuation]) -> int:
    """Rows that `log_likelihoods` computes."""
    return len(_contexts(continuations))


def greedy(
    subject: Subject, prompts: Sequence[tuple[int, ...]], encoder: Encoder, *, max_new_tokens: int, batch_size: int
) -> list[str]:
    """What the model writes behind each prompt, always its likeliest token, until it ends the text or is stopped."""
    written = []
    for batch in _batched(prompts, batch_size):
        given = _padded(batch, encoder.pad_id, subject.device, side="left")
        length = given["input_ids"].shape[1]
        with _own_generation_config(subject.model, encoder, max_new_tokens) as config, warnings.catch_warnings():
            # PEFT's prompt tuning, of what generate itself hands over.
            warnings.filterwarnings("ignore", message="Position ids are not supported")
            ids = subject.model.generate(**given, generation_config=config, synced_gpus=subject.is_split)
        subject.num_forwards += ids.shape[1] - length
        written += [encoder.decode(row).strip() for row in ids[:, length:].tolist()]
    return written


def most_greedy_forwards(number: int, *, max_new_tokens: int, batch_size: int) -> int:
    """That `greedy` takes for so many prompts: one a token, fewer where all texts of a batch end early."""
    return math.ceil(number / batch_size) * max_new_tokens


def _last_only(subject: Subject, number: int) -> dict[str, int]:
    """Logits over the whole vocabulary are most of what a small model computes."""
    return {"logits_to_keep": number} if not subject.has_own_forward and subject.takes("logits_to_keep") else {}


def _batched(rows: Sequence[tuple[int, ...]], size: int) -> Iterator[Sequence[tuple[int, ...]]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _contexts(continuations: Iterable[Continuation]) -> list[tuple[int, ...]]:
    """What has to be read, of like lengths side by side."""
    return sorted({each.ids[:-1] for each in continuations}, key=lambda ids: (len(ids), ids))


def _padded(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device, *, side: str) -> Batch:
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), pad_id, device=device)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        at = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
        ids[index, at] = torch.tensor(row, device=device)
        mask[index, at] = 1
    return {"input_ids": ids, "attention_mask": mask}


@contextlib.contextmanager
def _own_generation_config(model: nn.Module, encoder: Encoder, max_new_tokens: int) -> Iterator[Any]:
    """Transformers fills in from the model's own what a configuration leaves open; PEFT hands its own down."""
    config = type(model.generation_config)(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        pad_token_id=encoder.pad_id,
        eos_token_id=encoder.end_id,
    )
    kept = [
        (module, {name: vars(module)[name] for name in _TOUCHED & vars(module).keys()}) for module in _within(model)
    ]
    try:
        for module, attributes in kept:
            if "generation_config" in attributes:
                module.generation_config = config
        yield config
    finally:
        for module, attributes in kept:
            for name in _TOUCHED & vars(module).keys():
                delattr(module, name)
            vars(module).update(attributes)


_TOUCHED = {"generation_config", "prepare_inputs_for_generation"}


def _within(model: nn.Module) -> list[nn.Module]:
    """The model and, under adapters, what they adapt."""
    base = getattr(model, "base_model", None)
    modules = (model, base, getattr(base, "model", None))
    return list({id(module): module for module in modules if isinstance(module, nn.Module)}.values())
