"""Linear probes on the hidden states of all layers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attnwatch.errors import ConfigurationError
from attnwatch.explain.batches import Batch, as_batches
from attnwatch.explain.evaluated_model import EvaluatedModel, Forward
from attnwatch.explain.probing.examples import Examples, gather_examples, label_batches
from attnwatch.explain.probing.options import ProbeOptions
from attnwatch.explain.probing.result import LayerProbes, corrected_stderr
from attnwatch.explain.probing.ridge import LEAVE_ONE_OUT_EXAMPLES, Ridge, full_precision
from attnwatch.explain.probing.states import HiddenStates, ReadStates, states_reader
from attnwatch.explain.probing.targets import OwnLabels
from attnwatch.explain.probing.tasks import Fit, Task, prepare_fits
from attnwatch.utils.arguments import require_function


def probe_layers(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    targets: Sequence[str] | None = None,
    labels: Mapping[str, OwnLabels] | None = None,
    tokenizer: Any | None = None,
    forward: Forward | None = None,
    hidden_states: HiddenStates | None = None,
    max_tokens: int = 8192,
    test_share: float = 0.3,
    num_splits: int = 5,
    seed: int = 0,
) -> LayerProbes:
    """Measure how well a linear classifier reads each target off the hidden states of each layer.

    Ridge regressions onto one-hot labels, on standardized states, with a strength that is chosen by leaving one out;
    all layers are probed from one forward of each batch. `docs/explanation/attributions.md`
    says what the numbers mean, and when they mislead.

    Targets, of tokens but for the first two:

    - `label`, `label_at_first`: the labels in the batches, off the mean of a sequence's states and off its first
      token's; `label` of tokens off their states.
    - `token`, `previous_token`, `next_token`: its id, or its neighbour's, of the 50 most frequent.
    - `position`: in the sequence, in 8 bins that hold about equally many.
    - `character_class`: letters, digits, punctuation, space, or several of these. `case`: of its letters, lower, upper,
      capitalized or mixed. `word_start`: whether it has the first letter, digit or underscore of a word.
    - `in_string`, `in_comment`, `keyword`, `nesting_depth`: of Python code; brackets deeper than 3 count as 3.
    - the names in `labels`.

    Args:
        model: a transformers model, or a module with one in it; with `forward` or `hidden_states` any module.
        batches: arguments of the model by name, each with `input_ids` [batch, tokens], `attention_mask` if there is
            padding, and `labels` if the task has them.
        targets: names; None means the labels that there are, the ids and the position, and with a tokenizer
            `character_class` and `word_start`.
        labels: your own, by name: a function of the batch, or a list with a tensor for each batch. int [batch, tokens]
            or [batch]; negative ones are ignored.
        tokenizer: of transformers, for targets in the text. With it special tokens are ignored.
        forward: see `EvaluatedModel`; the layers are then found in the model's stack.
        hidden_states: a function of (model, batch) that returns the states of the embeddings and of each layer, each
            [batch, tokens, features], for models whose layers are not found.
        max_tokens: number of tokens that are probed, a random choice of more.
        test_share: share of the sequences, 0 to 1, that probes are not trained on; whole sequences, as the tokens of
            one are alike. Labels of sequences are stratified.
        num_splits: number of random splits, for the standard error; at least 2.
        seed: of the splits, the choice of tokens and the control labels. No other random state is changed.

    Returns:
        Accuracy, baseline and control by target and layer; `print` shows a table.

    Raises:
        ConfigurationError: an argument is wrong, or the model's layers are not found.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(vocab_size=9, hidden_size=16, num_hidden_layers=2, num_attention_heads=2))
        >>> probes = probe_layers(model, [{"input_ids": torch.randint(9, (32, 12))}], targets=["token", "position"])
        >>> probes.layers, probes.accuracy.shape
        (['embeddings', 'layer 1', 'layer 2'], torch.Size([2, 3]))
    """
    options = ProbeOptions(targets, labels, tokenizer, max_tokens, test_share, num_splits, seed)
    given = as_batches(batches)
    evaluated = EvaluatedModel(model, single_function(forward, hidden_states))
    return probe(evaluated, states_reader(evaluated, returns_states=hidden_states is not None), given, options)


def single_function(forward: Forward | None, hidden_states: HiddenStates | None) -> Forward | None:
    """Return the user's function that calls the model, if there is one.

    Raises:
        ConfigurationError: both are given, or the one that is given is not a function.
    """
    if forward is not None and hidden_states is not None:
        raise ConfigurationError("`forward` is not called where `hidden_states` is given: give one of them.")
    require_function("hidden_states", hidden_states, "(model, batch)", optional=True)
    return forward if hidden_states is None else hidden_states


@torch.no_grad()
def probe(model: EvaluatedModel, read: ReadStates, batches: Sequence[Batch], options: ProbeOptions) -> LayerProbes:
    """Probe the states that `read` returns. See `probe_layers`."""
    forwards_before = model.num_forwards
    labels, skipped = label_batches(batches, options)
    device = model.device if model.device.type != "mps" else torch.device("cpu")  # mps has no float64
    layers: list[str] = []
    found: list[_Measured] = []
    with model.evaluating(), full_precision():
        for examples in gather_examples(batches, labels, options, read, device) if labels else ():
            layers = ["embeddings", *(f"layer {number}" for number in range(1, len(examples.states)))]
            tasks, fits, reasons = prepare_fits(examples, options)
            is_finite = [bool(torch.isfinite(states).all()) for states in examples.states]
            unreadable = [name for name, finite in zip(layers, is_finite, strict=True) if not finite]
            skipped |= reasons | dict.fromkeys(unreadable, "its states are not all finite")
            found += _measure_layers(examples, tasks, fits, is_finite)
    order = options.chosen_targets()
    found.sort(key=lambda each: order.index(each.task.name))
    return _result(found, layers, model.num_forwards - forwards_before, skipped)


@dataclass(frozen=True)
class _Measured:
    """Numbers of one task: float64 [layers, splits]; the baseline [splits]."""

    task: Task
    accuracy: Tensor
    control: Tensor
    strength: Tensor
    baseline: Tensor
    test_per_train: float


def _measure_layers(
    examples: Examples, tasks: list[Task], fits: list[Fit], is_finite: Sequence[bool]
) -> list[_Measured]:
    num_splits = 1 + max((fit.split for fit in fits), default=0)
    shape = (3, len(examples.states), num_splits)
    numbers = {task.name: torch.full(shape, torch.nan, dtype=torch.float64) for task in tasks}
    for layer, states in enumerate(examples.states):
        for fit in fits if is_finite[layer] else ():
            for task, measured in zip(fit.tasks, measure(states, fit), strict=True):
                numbers[task.name][:, layer, fit.split] = torch.tensor(measured, dtype=torch.float64)
    found = []
    for task in tasks:
        own = [fit for fit in fits if any(each is task for each in fit.tasks)]
        baseline = [task.labels[fit.test].bincount().max().double() / len(fit.test) for fit in own]
        ratio = sum(len(fit.test) for fit in own) / sum(len(fit.train) for fit in own)
        found.append(_Measured(task, *numbers[task.name], torch.stack(baseline), ratio))
    return found


def measure(states: Tensor, fit: Fit) -> list[tuple[float, float, float]]:
    """Return for each task the accuracy of its probe and of the control's, and the strength of its ridge."""
    device, sizes = states.device, [task.num_classes for task in fit.tasks]
    labels = [*(task.labels for task in fit.tasks), *fit.controls]
    every = -(-len(fit.train) // LEAVE_ONE_OUT_EXAMPLES)
    ridge = Ridge(states[fit.train.to(device)], torch.arange(0, len(fit.train), every, device=device))
    probes = ridge.fit([each[fit.train].to(device) for each in labels], sizes * 2)
    test = ridge.standardize(states[fit.test.to(device)])
    scores = test @ torch.cat([each.weight for each in probes], 1) + torch.cat([each.bias for each in probes])
    predicted = torch.stack([each.argmax(1) for each in scores.split(sizes * 2, 1)])
    right = torch.stack([each[fit.test] for each in labels]).to(device)
    accuracies = (predicted == right).double().mean(1).tolist()
    half = len(fit.tasks)
    return list(zip(accuracies[:half], accuracies[half:], [each.strength for each in probes[:half]], strict=True))


def _result(found: list[_Measured], layers: list[str], num_forwards: int, skipped: dict[str, str]) -> LayerProbes:
    def stack(numbers: Iterable[Tensor], *shape: int) -> Tensor:
        numbers = list(numbers)
        return torch.stack(numbers) if numbers else torch.empty(0, *shape, dtype=torch.float64)

    accuracy = stack((each.accuracy for each in found), len(layers), 2)
    test_per_train = torch.tensor([each.test_per_train for each in found], dtype=torch.float64)
    return LayerProbes(
        targets=[each.task.name for each in found],
        layers=layers,
        accuracy=accuracy.mean(-1),
        stderr=corrected_stderr(accuracy, test_per_train),
        baseline=stack(each.baseline.mean() for each in found),
        control=stack((each.control.mean(-1) for each in found), len(layers)),
        num_classes=[each.task.num_classes for each in found],
        num_examples=[int((each.task.labels >= 0).sum()) for each in found],
        strength=stack((each.strength.median(-1).values for each in found), len(layers)),
        num_forwards=num_forwards,
        skipped=skipped,
    )
