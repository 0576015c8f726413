"""Log-likelihoods of texts under a language model, and text generation."""

import contextlib
import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from attnwatch.explain.batches import padded_batch
from attnwatch.explain.evaluated_model import EvaluatedModel
from attnwatch.explain.multiple_choice.tokenization import Continuation, QuestionTokenizer

# Attributes of a model that `generate` and PEFT change while a text is generated.
_CHANGED_BY_GENERATE = {"generation_config", "prepare_inputs_for_generation"}


def log_likelihoods(
    model: EvaluatedModel, groups: Sequence[Sequence[Continuation]], *, batch_size: int, pad_id: int
) -> list[list[float]]:
    """Return Σ_t log p(token t | tokens before t) over the tokens of each continuation, in nats, in the same groups.

    Continuations that differ only in their last token share a row of a forward.
    """
    by_context: dict[tuple[int, ...], list[Continuation]] = {}
    for each in itertools.chain.from_iterable(groups):
        by_context.setdefault(each.ids[:-1], []).append(each)
    # The logits dominate the computation of a small model.
    takes_logits_to_keep = not model.has_custom_forward and model.accepts("logits_to_keep")
    sums: dict[Continuation, Tensor] = {}
    for batch in _batched(sorted(by_context, key=lambda ids: (len(ids), ids)), batch_size):
        given = padded_batch(batch, pad_id, device=model.device, side="right")
        length = given["input_ids"].shape[1]
        first = min(each.start for context in batch for each in by_context[context])
        logits = model.logits(given, **({"logits_to_keep": length - first + 1} if takes_logits_to_keep else {}))
        offset = logits.shape[1] - length  # negative if only the last ones were computed, positive with virtual tokens
        for context, row in zip(batch, logits, strict=True):
            for each in by_context[context]:
                tokens = torch.tensor(each.ids[each.start :], device=row.device)
                predictions = row[each.start - 1 + offset : len(context) + offset].log_softmax(-1)
                sums[each] = predictions.gather(1, tokens[:, None]).sum()
    values = dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True))
    return [[values[each] for each in group] for group in groups]


def num_contexts(continuations: Iterable[Continuation]) -> int:
    """Return the number of rows that `log_likelihoods` computes."""
    return len({each.ids[:-1] for each in continuations})


def generate_greedily(
    model: EvaluatedModel,
    tokenizer: QuestionTokenizer,
    prompts: Sequence[tuple[int, ...]],
    *,
    max_new_tokens: int,
    batch_size: int,
) -> list[str]:
    """Return the text that the model generates after each prompt by greedy decoding."""
    written = []
    for batch in _batched(prompts, batch_size):
        given = padded_batch(batch, tokenizer.pad_id, device=model.device, side="left")
        length = given["input_ids"].shape[1]
        with _own_generation_config(model.model, tokenizer, max_new_tokens) as config, warnings.catch_warnings():
            # PEFT's prompt tuning warns about arguments that `generate` itself passes.
            warnings.filterwarnings("ignore", message="Position ids are not supported")
            ids = cast(Any, model.model).generate(**given, generation_config=config, synced_gpus=model.is_sharded)
        model.num_forwards += ids.shape[1] - length
        written += [tokenizer.decode(row).strip() for row in ids[:, length:].tolist()]
    return written


def _batched(rows: Sequence[tuple[int, ...]], size: int) -> Iterator[Sequence[tuple[int, ...]]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


@contextlib.contextmanager
def _own_generation_config(model: nn.Module, tokenizer: QuestionTokenizer, max_new_tokens: int) -> Iterator[Any]:
    """Yield a config for greedy decoding that replaces the model's own inside the context.

    transformers fills in a passed config from the model's own, and PEFT passes on its own.
    """
    config = type(cast(Any, model).generation_config)(
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
    """Return the model and the modules adapted by PEFT's adapters around it."""
    base = getattr(model, "base_model", None)
    modules = (model, base, getattr(base, "model", None))
    return list({id(module): module for module in modules if isinstance(module, nn.Module)}.values())
