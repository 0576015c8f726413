"""Log-likelihoods of texts under a language model, and texts that it generates."""

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from attnwatch.explain.batches import Batch
from attnwatch.explain.evaluated_model import EvaluatedModel
from attnwatch.explain.multiple_choice.tokenization import Continuation, QuestionTokenizer

# Attributes of a model that `generate` and PEFT change while a text is generated.
_CHANGED_BY_GENERATE = {"generation_config", "prepare_inputs_for_generation"}


def log_likelihoods(
    model: EvaluatedModel, groups: Sequence[Sequence[Continuation]], *, batch_size: int, pad_id: int
) -> list[list[float]]:
    """Return Σ_t log p(token t | tokens before t) over the tokens of each continuation, in nats, in the same groups.

    Continuations that are the same but for their last token share one row of a forward.
    """
    continuations = [each for group in groups for each in group]
    by_context: dict[tuple[int, ...], list[Continuation]] = {}
    for each in continuations:
        by_context.setdefault(each.ids[:-1], []).append(each)
    sums: dict[Continuation, Tensor] = {}
    for batch in _batched(_contexts(continuations), batch_size):
        given = _padded(batch, pad_id, model.device, side="right")
        length = given["input_ids"].shape[1]
        first = min(each.start for context in batch for each in by_context[context])
        logits = model.logits(given, **_only_last(model, length - first + 1))
        offset = logits.shape[1] - length  # below 0 if only the last were computed, above 0 with virtual tokens
        for context, row in zip(batch, logits, strict=True):
            for each in by_context[context]:
                tokens = torch.tensor(each.ids[each.start :], device=row.device)
                predictions = row[each.start - 1 + offset : len(context) + offset].log_softmax(-1)
                sums[each] = predictions.gather(1, tokens[:, None]).sum()
    values = dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True))
    return [[values[each] for each in group] for group in groups]


def num_contexts(continuations: Iterable[Continuation]) -> int:
    """Return the number of rows that `log_likelihoods` computes."""
    return len(_contexts(continuations))


def generate_greedily(
    model: EvaluatedModel,
    prompts: Sequence[tuple[int, ...]],
    tokenizer: QuestionTokenizer,
    *,
    max_new_tokens: int,
    batch_size: int,
) -> list[str]:
    """Return the text that the model writes behind each prompt, always its likeliest token."""
    written = []
    for batch in _batched(prompts, batch_size):
        given = _padded(batch, tokenizer.pad_id, model.device, side="left")
        length = given["input_ids"].shape[1]
        with _own_generation_config(model.model, tokenizer, max_new_tokens) as config, warnings.catch_warnings():
            # PEFT's prompt tuning warns of arguments that `generate` itself hands over.
            warnings.filterwarnings("ignore", message="Position ids are not supported")
            ids = model.model.generate(**given, generation_config=config, synced_gpus=model.is_sharded)
        model.num_forwards += ids.shape[1] - length
        written += [tokenizer.decode(row).strip() for row in ids[:, length:].tolist()]
    return written


def _only_last(model: EvaluatedModel, number: int) -> dict[str, int]:
    """Return the argument for logits at the last tokens only: a vocabulary is most of what a small model computes."""
    return {"logits_to_keep": number} if not model.has_custom_forward and model.accepts("logits_to_keep") else {}


def _batched(rows: Sequence[tuple[int, ...]], size: int) -> Iterator[Sequence[tuple[int, ...]]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _contexts(continuations: Iterable[Continuation]) -> list[tuple[int, ...]]:
    """Return the distinct contexts, those of like length side by side."""
    return sorted({each.ids[:-1] for each in continuations}, key=lambda ids: (len(ids), ids))


def _padded(
    rows: Sequence[Sequence[int]], pad_id: int, device: torch.device, *, side: Literal["left", "right"]
) -> Batch:
    ids = list(map(torch.tensor, rows))
    padded = pad_sequence(ids, batch_first=True, padding_value=pad_id, padding_side=side)
    mask = pad_sequence(list(map(torch.ones_like, ids)), batch_first=True, padding_side=side)
    return {"input_ids": padded.to(device), "attention_mask": mask.to(device)}


@contextlib.contextmanager
def _own_generation_config(model: nn.Module, tokenizer: QuestionTokenizer, max_new_tokens: int) -> Iterator[Any]:
    """Yield a configuration for greedy texts, and put it in the place of the model's own while this is open.

    transformers fills what a configuration leaves open from the model's own, and PEFT hands its own down.
    """
    config = type(model.generation_config)(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_id,
        eos_token_id=tokenizer.end_id,
    )
    kept = [
        (module, {name: vars(module)[name] for name in _CHANGED_BY_GENERATE & vars(module).keys()})
        for module in _with_adapted(model)
    ]
    try:
        for module, attributes in kept:
            if "generation_config" in attributes:
                module.generation_config = config
        yield config
    finally:
        for module, attributes in kept:
            for name in _CHANGED_BY_GENERATE & vars(module).keys():
                delattr(module, name)
            vars(module).update(attributes)


def _with_adapted(model: nn.Module) -> list[nn.Module]:
    """Return the model and the modules that PEFT's adapters around it adapt."""
    base = getattr(model, "base_model", None)
    modules = (model, base, getattr(base, "model", None))
    return list({id(module): module for module in modules if isinstance(module, nn.Module)}.values())
