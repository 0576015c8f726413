"""Hiding inputs: correctness, speed compared with one forward a token, and the score that finds what matters.

On stories15M (a language model of 15M parameters; stories that it has generated) and on all-MiniLM-L6-v2, fine-tuned
on SST-2 for a few steps (held-out sentences).
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from attnwatch.explain import EvaluatedModel, HidingOptions, MeanOverSequences, compare, occlude
from attnwatch.explain.faithfulness import FaithfulnessPlan
from attnwatch.explain.masked_forwards import MaskedForwards
from benchmarks.common import minilm_directory, progress, show, time_paired
from benchmarks.pruning_quality import MAX_TOKENS, Way, correct, fine_tune
from benchmarks.texts import Sentences, read_tsv

_STORY_TOKENS = 112
_SENTENCES_PER_BATCH = 32


def measure(data: Path, quick: bool) -> dict[str, Any]:
    """Measure, show and return everything about hiding inputs.

    Args:
        data: directory with text/sst2_train.tsv, text/sst2_dev.tsv and models/stories15M.
        quick: measure little of it.
    """
    return {
        "stories15M": _of_stories(data / "models" / "stories15M", quick),
        "MiniLM on SST-2": _of_sentences(data / "text", quick),
    }


def _of_stories(directory: Path, quick: bool) -> dict[str, Any]:
    model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    number, tokens = (1, 32) if quick else (6, _STORY_TOKENS)
    batch = {"input_ids": stories(model, number, tokens)}
    few = {"input_ids": batch["input_ids"][:1]}
    show(f"stories15M, {number} stories of {tokens} tokens")
    measured = _speed(model, few, tokenizer, _one_by_one_losses, quick)
    return measured | _compare_scores(model, [batch], tokenizer, quick)


def _of_sentences(directory: Path, quick: bool) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(minilm_directory(), trust_remote_code=False)
    training, held_out = (
        Sentences.tokenize(read_tsv(directory / f"sst2_{part}.tsv"), MAX_TOKENS) for part in ("train", "dev")
    )
    steps = 4 if quick else 120
    model, _ = fine_tune(Way(), 0, training, steps=steps, batch_size=16)
    accuracy = float(100 * correct(model, held_out.first(400)).mean())
    number = 8 if quick else 2 * _SENTENCES_PER_BATCH
    batches = [
        held_out.batch(list(range(first, min(first + _SENTENCES_PER_BATCH, number))))
        for first in range(0, number, _SENTENCES_PER_BATCH)
    ]
    show(f"\nMiniLM on SST-2, {steps} steps, accuracy {accuracy:.1f} % of 400; {number} held-out sentences")
    few = {name: each[:16] for name, each in batches[0].items()}
    measured = _speed(model, few, tokenizer, _one_by_one_labels, quick)
    return {"accuracy": accuracy} | measured | _compare_scores(model, batches, tokenizer, quick)


@torch.no_grad()
def stories(model: nn.Module, number: int, tokens: int) -> Tensor:
    """Return stories that a language model generates: token ids [number, tokens]."""
    torch.manual_seed(0)
    begin = torch.full((number, 1), model.config.bos_token_id)
    length = {"max_new_tokens": tokens - 1, "min_new_tokens": tokens - 1}
    return model.generate(begin, attention_mask=torch.ones_like(begin), do_sample=True, **length)


@torch.no_grad()
def _one_by_one_losses(model: nn.Module, batch: dict[str, Tensor], hidden: Tensor) -> Tensor:
    """Return the rise of the mean loss: one forward for each sequence and hidden token."""
    importance = torch.full(hidden.shape, torch.nan)
    for sequence, ids in enumerate(batch["input_ids"].split(1)):
        positions = torch.arange(ids.shape[1])[None]

        def losses(mask: Tensor, ids: Tensor = ids, positions: Tensor = positions) -> Tensor:
            logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
            return F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none")

        base = losses(torch.ones_like(ids))
        for token in hidden[sequence].nonzero()[:, 0].tolist():
            mask = torch.ones_like(ids)
            mask[0, token] = 0
            rise = losses(mask) - base
            rise[token] = 0.0  # its own prediction
            importance[sequence, token] = rise.mean()
    return importance


@torch.no_grad()
def _one_by_one_labels(model: nn.Module, batch: dict[str, Tensor], hidden: Tensor) -> Tensor:
    """Return the drop of the label's log-probability: one forward for each sequence and token, without padding."""
    importance = torch.full(hidden.shape, torch.nan)
    for sequence, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        ids, label = batch["input_ids"][sequence : sequence + 1, :length], batch["labels"][sequence]
        base = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.log_softmax(-1)[0, label]
        for token in hidden[sequence].nonzero()[:, 0].tolist():
            mask = torch.ones_like(ids)
            mask[0, token] = 0
            importance[sequence, token] = (
                base - model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)[0, label]
            )
    return importance


def _speed(
    model: nn.Module,
    batch: dict[str, Tensor],
    tokenizer: Any,
    one_by_one: Callable[[nn.Module, dict[str, Tensor], Tensor], Tensor],
    quick: bool,
) -> dict[str, Any]:
    found = occlude(model, batch, tokenizer=tokenizer, show_progress=False)
    hidden = ~found.importance.isnan()
    difference = float((found.importance - one_by_one(model, batch, hidden)).abs().nan_to_num().max())
    timing = time_paired(
        lambda: one_by_one(model, batch, hidden),
        lambda: occlude(model, batch, tokenizer=tokenizer, show_progress=False),
        label="one forward for each token",
        seconds=1.0 if quick else 60.0,
        min_pairs=1 if quick else 7,
        num_warmups=1,
    )
    said = found.num_forwards
    largest = float(found.importance.abs().nan_to_num().max())
    show(
        f"  {int(hidden.sum())} tokens hidden in {said} forwards ({found.route}); largest importance {largest:.3g} "
        f"nats, largest difference from one forward each {difference:.2g}\n"
        f"  one forward each takes {timing.ratio} times as long"
    )
    return {
        "tokens_hidden": int(hidden.sum()),
        "forwards": said,
        "route": found.route,
        "max_difference": difference,
        "largest_importance": largest,
        "speed_up": asdict(timing.ratio),
    }


def _compare_scores(model: nn.Module, batches: list[dict[str, Tensor]], tokenizer: Any, quick: bool) -> dict[str, Any]:
    """Return rank correlations with the importance by hiding, and areas of the curves."""
    agreement: dict[str, list[Tensor]] = {"attention": [], "rollout": [], "gradient": []}
    areas: dict[str, dict[str, list[Tensor]]] = {"deletion": {}, "insertion": {}}
    evaluated = EvaluatedModel(model)
    for batch in progress(batches, "scores and deletion curves"):
        occlusion = occlude(evaluated, batch, tokenizer=tokenizer, show_progress=False)
        comparison = compare(evaluated, batch, occlusion)
        for name, each in agreement.items():
            each.append(getattr(comparison, name))
        scores = {"occlusion": occlusion.importance, **comparison.scores()}
        with evaluated.evaluating():
            forwards = MaskedForwards(evaluated, batch, HidingOptions(tokenizer=tokenizer))
            for kind, found in areas.items():
                fractions = (0.0, 0.5, 1.0) if quick else tuple(tenth / 10 for tenth in range(11))
                options = {"fractions": fractions, "num_random": 2 if quick else 3}
                curves = FaithfulnessPlan(forwards, scores, is_deletion=kind == "deletion", **options).run()
                for name, curve in curves.items():
                    found.setdefault(name, []).append(curve.areas)
                found.setdefault("random", []).append(curve.random_areas.mean(0))
    return _summarize(
        {name: torch.cat(each, -1) for name, each in agreement.items()},
        {kind: {name: torch.cat(each) for name, each in found.items()} for kind, found in areas.items()},
    )


def _summarize(agreement: dict[str, Tensor], areas: dict[str, dict[str, Tensor]]) -> dict[str, Any]:
    measured: dict[str, Any] = {"agreement": {}, "agreement_by_layer": {}, "areas": {}}
    show("  rank correlation with |importance| by hiding, mean ± standard error over sequences")
    for name, values in agreement.items():
        mean = MeanOverSequences.of(values)
        measured["agreement"][name] = asdict(mean)
        line = f"    {name:<10} {_with_error(mean)}"
        if values.ndim == 2:
            layers = [MeanOverSequences.of(layer).mean for layer in values]
            measured["agreement_by_layer"][name] = layers
            line += "   by layer " + " ".join(f"{each:.2f}" for each in layers)
        show(line)
    show("  mean effect over the curve, nats; and minus that of random orders")
    show(f"    {'':<10} {'deletion':<36} insertion")
    for name in areas["deletion"]:
        row = {}
        for kind, found in areas.items():
            row[kind] = asdict(MeanOverSequences.of(found[name]))
            row[f"{kind}_minus_random"] = asdict(MeanOverSequences.of(found[name] - found["random"]))
        measured["areas"][name] = row
        means = {kind: _with_error(MeanOverSequences(**mean)) for kind, mean in row.items()}
        columns = [f"{means[kind]} ({means[f'{kind}_minus_random']})" for kind in areas]
        show(f"    {name:<10} {columns[0]:<36} {columns[1]}")
    return measured


def _with_error(mean: MeanOverSequences) -> str:
    return f"{mean.mean:.3f} ± {mean.stderr:.3f}"
