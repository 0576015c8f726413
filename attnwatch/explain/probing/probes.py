"""What each layer knows: linear probes on the hidden states of all layers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attnwatch.errors import ConfigurationError
from attnwatch.explain.probing.examples import Examples, gather, label_all
from attnwatch.explain.probing.options import ProbeOptions
from attnwatch.explain.probing.result import LayerProbes, corrected_stderr
from attnwatch.explain.probing.ridge import LEAVE_ONE_OUT_EXAMPLES, Ridge, full_precision
from attnwatch.explain.probing.states import HiddenStates, Read, reader
from attnwatch.explain.probing.targets import OwnLabels
from attnwatch.explain.probing.tasks import Fit, Task, prepare
from attnwatch.explain.subject import Batch, Forward, Subject, as_batch


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
    """How well a linear classifier reads each target off the hidden states of each layer.

    Ridge regressions onto one-hot labels, on standardized states, their strength chosen by leaving one out; all layers
    are probed from one forward of each batch. See `Ridge` for the formulas, and docs/explain.md for what the numbers
    mean and when they mislead.

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
        batches: each as the model takes it by name, with `input_ids` [batch, tokens], where there is padding an
            `attention_mask`, where the task has them `labels`.
        targets: names; None means the labels that there are, the ids and the position, and with a tokenizer
            `character_class` and `word_start`.
        labels: your own, by name: a function of the batch, or a list with a tensor for each batch. int [batch, tokens]
            or [batch]; negative ones are ignored.
        tokenizer: of transformers, for what is read off the text. With it special tokens are ignored.
        forward: see `Subject`; the layers are then found in the model's stack.
        hidden_states: a function of (model, batch) that returns the states of the embeddings and of each layer, each
            [batch, tokens, features], where they are not found.
        max_tokens: of more than so many tokens a random choice is probed.
        test_share: of the sequences, 0 to 1, that probes are not trained on; whole sequences, as the tokens of one are
            alike. Labels of sequences are stratified.
        num_splits: random splits, for the standard error; at least 2.
        seed: of the splits, the choice of tokens and the control labels. No other random state is touched.

    Returns:
        Accuracy, baseline and control by target and layer; `print` shows a table.

    Raises:
        ConfigurationError: an argument is wrong, or the model's layers are not found.
    """
    options = ProbeOptions(targets, labels, tokenizer, max_tokens, test_share, num_splits, seed)
    if isinstance(batches, Mapping) or not isinstance(batches, Iterable):
        raise ConfigurationError(f"`batches` must be a list of batches, got a {type(batches).__name__}.")
    given = [as_batch(batch) for batch in batches]
    if not given:
        raise ConfigurationError("`batches` is empty: give at least one.")
    subject = Subject(model, single_call(forward, hidden_states))
    return probe(subject, reader(subject, is_given=hidden_states is not None), given, options)


def single_call(forward: Forward | None, hidden_states: HiddenStates | None) -> Forward | None:
    """The user's function that calls the model, if there is one.

    Raises:
        ConfigurationError: both are given, or what is given is not a function.
    """
    if forward is not None and hidden_states is not None:
        raise ConfigurationError("`forward` is not called where `hidden_states` is given: give one of them.")
    if hidden_states is not None and not callable(hidden_states):
        raise ConfigurationError(f"`hidden_states` must be a function of (model, batch), got {hidden_states!r}.")
    return forward if hidden_states is None else hidden_states


@torch.no_grad()
def probe(subject: Subject, read: Read, batches: Sequence[Batch], options: ProbeOptions) -> LayerProbes:
    """See `probe_layers`."""
    forwards_before = subject.num_forwards
    labels, skipped = label_all(batches, options)
    device = subject.device if subject.device.type != "mps" else torch.device("cpu")  # mps has no float64
    with subject.asked(), full_precision():
        kinds = gather(batches, labels, options, read, device) if labels else []
        found = []
        for examples in kinds:
            tasks, fits, reasons = prepare(examples, options)
            skipped |= reasons | _unreadable_layers(examples)
            found += _found(examples, tasks, fits)
    names = _layer_names(kinds[0]) if kinds else []
    order = options.chosen()
    found.sort(key=lambda each: order.index(each.task.name))
    return _result(found, names, subject.num_forwards - forwards_before, skipped)


@dataclass(frozen=True)
class _Found:
    """Of one task: numbers by layer and split, float64 [layers, splits], and by split."""

    task: Task
    accuracy: Tensor
    control: Tensor
    strength: Tensor
    baseline: Tensor
    test_per_train: float


def _found(examples: Examples, tasks: list[Task], fits: list[Fit]) -> list[_Found]:
    num_layers, num_splits = len(examples.states), 1 + max((fit.split for fit in fits), default=0)
    numbers = {task.name: torch.full((3, num_layers, num_splits), torch.nan, dtype=torch.float64) for task in tasks}
    for layer, states in enumerate(examples.states):
        if not torch.isfinite(states).all():
            continue
        for fit in fits:
            for task, measured in zip(fit.tasks, measure(states, fit), strict=True):
                numbers[task.name][:, layer, fit.split] = torch.tensor(measured, dtype=torch.float64)
    found = []
    for task in tasks:
        own = [fit for fit in fits if any(each is task for each in fit.tasks)]
        baseline = [task.labels[fit.test].bincount().max().double() / len(fit.test) for fit in own]
        ratio = sum(len(fit.test) for fit in own) / sum(len(fit.train) for fit in own)
        found.append(_Found(task, *numbers[task.name], torch.stack(baseline), ratio))
    return found


def measure(states: Tensor, fit: Fit) -> list[tuple[float, float, float]]:
    """Of each task: accuracy of its probe, of the control's, and the strength of its ridge."""
    device, sizes = states.device, [task.num_classes for task in fit.tasks]
    labels = [*(task.labels for task in fit.tasks), *fit.controls]
    every = -(-len(fit.train) // LEAVE_ONE_OUT_EXAMPLES)
    ridge = Ridge(states[fit.train.to(device)], torch.arange(0, len(fit.train), every, device=device))
    probes = ridge.fit([each[fit.train].to(device) for each in labels], sizes * 2)
    test = ridge.standardized(states[fit.test.to(device)])
    scores = test @ torch.cat([each.weight for each in probes], 1) + torch.cat([each.bias for each in probes])
    said = torch.stack([each.argmax(1) for each in scores.split(sizes * 2, 1)])
    right = torch.stack([each[fit.test] for each in labels]).to(device)
    accuracies = (said == right).double().mean(1).tolist()
    half = len(fit.tasks)
    return list(zip(accuracies[:half], accuracies[half:], [each.strength for each in probes[:half]], strict=True))


def _unreadable_layers(examples: Examples) -> dict[str, str]:
    pairs = zip(_layer_names(examples), examples.states, strict=True)
    return {name: "its states are not all finite" for name, states in pairs if not torch.isfinite(states).all()}


def _layer_names(examples: Examples) -> list[str]:
    return ["embeddings", *(f"layer {number}" for number in range(1, len(examples.states)))]


def _result(found: list[_Found], layers: list[str], num_forwards: int, skipped: dict[str, str]) -> LayerProbes:
    splits = torch.stack([each.accuracy for each in found]) if found else torch.empty(0, len(layers), 2).double()
    none = splits.new_empty(0, len(layers))
    return LayerProbes(
        targets=[each.task.name for each in found],
        layers=layers,
        accuracy=splits.mean(-1),
        stderr=corrected_stderr(splits, torch.tensor([each.test_per_train for each in found], dtype=torch.float64)),
        baseline=torch.tensor([each.baseline.mean() for each in found], dtype=torch.float64),
        control=torch.stack([each.control.mean(-1) for each in found]) if found else none,
        num_classes=[each.task.num_classes for each in found],
        num_examples=[int((each.task.labels >= 0).sum()) for each in found],
        strength=torch.stack([each.strength.median(-1).values for each in found]) if found else none,
        num_forwards=num_forwards,
        skipped=skipped,
    )
