"""Linear probes on the hidden states of all layers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from attnwatch.errors import ConfigurationError
from attnwatch.explain.batches import Batch, as_batches
from attnwatch.explain.evaluated_model import EvaluatedModel, Forward
from attnwatch.explain.probing.examples import Examples, gather_examples, label_batches
from attnwatch.explain.probing.options import ProbeOptions
from attnwatch.explain.probing.ridge import LEAVE_ONE_OUT_EXAMPLES, Ridge, full_precision
from attnwatch.explain.probing.states import HiddenStates, ReadStates, states_reader
from attnwatch.explain.probing.targets import OwnLabels
from attnwatch.explain.probing.tasks import Fit, Task, prepare_fits
from attnwatch.utils.arguments import require_function
from attnwatch.utils.labels import evenly_spaced

_MOST_COLUMNS = 12


@dataclass
class LayerProbes:
    """Accuracy of linear probes on the states of each layer, on held-out sequences.

    Attributes:
        targets: names of the targets, the first axis of the tensors.
        layers: names of the layers, the second axis: `"embeddings"`, `"layer 1"`, …
        accuracy: mean accuracy over the splits, 0 to 1, float64 [targets, layers]; nan if a layer was not probed.
        stderr: standard error of the accuracy, [targets, layers]: sqrt((1/J + test/train) s²) with the variance s² over
            J splits, because splits share examples (Nadeau and Bengio 2003).
        baseline: accuracy of always predicting the most frequent class of the test part, [targets].
        control: accuracy of the same probes for random labels, [targets, layers]; see `selectivity`.
        num_classes, num_examples: number of classes and of labelled examples of each target.
        strength: median of the chosen ridge strengths, per example, [targets, layers].
        num_forwards: number of forwards, one for each batch.
        skipped: reasons why targets or layers have no numbers, by name.
    """

    targets: list[str]
    layers: list[str]
    accuracy: Tensor
    stderr: Tensor
    baseline: Tensor
    control: Tensor
    num_classes: list[int]
    num_examples: list[int]
    strength: Tensor
    num_forwards: int
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def above_baseline(self) -> Tensor:
        """Accuracy minus baseline, [targets, layers]."""
        return self.accuracy - self.baseline[:, None]

    @property
    def selectivity(self) -> Tensor:
        """Accuracy minus control, [targets, layers]: the part that memorized words do not explain."""
        return self.accuracy - self.control

    def __str__(self) -> str:
        """Return a table of all targets and up to 12 evenly spaced layers."""
        columns = evenly_spaced(len(self.layers), _MOST_COLUMNS)
        rows = [["accuracy (standard error)", "baseline", *(self.layers[at].removeprefix("layer ") for at in columns)]]
        for index, name in enumerate(self.targets):
            accuracy, stderr, selectivity = self.accuracy[index], self.stderr[index], self.selectivity[index]
            cells = [f"{accuracy[at]:.3f} ({stderr[at]:.3f})" for at in columns]
            rows.append([f"{name} ({self.num_classes[index]} classes)", f"{self.baseline[index]:.3f}", *cells])
            rows.append(["  selectivity", "", *(f"{selectivity[at]:+.3f}" for at in columns)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, *(f"{name}: skipped, {reason}" for name, reason in self.skipped.items())])


def corrected_stderr(accuracy: Tensor, test_per_train: Tensor) -> Tensor:
    """Return the standard errors [targets, layers], see `LayerProbes.stderr`.

    Args:
        accuracy: accuracy of each split, [targets, layers, splits].
        test_per_train: number of test examples per training example, [targets].
    """
    if not len(accuracy):  # torch warns about empty tensors
        return accuracy.new_empty(accuracy.shape[:-1])
    return torch.sqrt((1 / accuracy.shape[-1] + test_per_train[:, None]) * accuracy.var(-1))


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
    """Measure how well linear classifiers predict each target from the hidden states of each layer.

    The classifiers are ridge regressions of one-hot labels on standardized states, with a strength chosen by
    leave-one-out errors. All layers are probed from one forward per batch. `docs/explanation/attributions.md`
    describes what the numbers mean, and when they mislead.

    Targets, all per token except the first two:

    - `label`, `label_at_first`: labels in the batches, predicted from the mean of a sequence's states and from the
      states of its first token. If the labels are per token, `label` is predicted from the token's states.
    - `token`, `previous_token`, `next_token`: id of the token or its neighbour, one of the 50 most frequent.
    - `position`: position in the sequence, in 8 bins with about equally many tokens.
    - `character_class`: letters, digits, punctuation, space, or a mixture. `case`: lower, upper, capitalized or mixed.
      `word_start`: whether the token has the first letter, digit or underscore of a word.
    - `in_string`, `in_comment`, `keyword`, `nesting_depth`: properties of Python code; depths above 3 count as 3.
    - the names in `labels`.

    Args:
        model: a transformers model, or a module that contains one; with `forward` or `hidden_states`, any module.
        batches: arguments of the model by name, each with `input_ids` [batch, tokens], `attention_mask` if there is
            padding, and `labels` if the task has them.
        targets: names of targets; None means available labels, token ids and the position, and with a tokenizer also
            `character_class` and `word_start`.
        labels: your own labels by name, int [batch, tokens] or [batch]: a function of the batch, or a list with a
            tensor for each batch. Negative labels are ignored.
        tokenizer: transformers tokenizer, for targets from the text. With it, special tokens are ignored.
        forward: see `EvaluatedModel`; the layers are then found in the model's stack.
        hidden_states: function of (model, batch) that returns the states of the embeddings and each layer, each
            [batch, tokens, features], for models whose layers are not found.
        max_tokens: maximum number of tokens to probe; if there are more, a random sample is drawn.
        test_share: fraction of the sequences, 0 to 1, to hold out for the test. Whole sequences are held out, because
            their tokens are similar, and stratified by their labels if they have any.
        num_splits: number of random splits for the standard error, at least 2.
        seed: seed of the splits, the sample of tokens and the control labels. No other random state is changed.

    Returns:
        Accuracy, baseline and control by target and layer; `print` shows a table.

    Raises:
        ConfigurationError: an argument is invalid, or the model's layers are not found.

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
        ConfigurationError: both are given, or one is not a function.
    """
    if forward is not None and hidden_states is not None:
        raise ConfigurationError("`forward` is not called if `hidden_states` is given: pass only one of them.")
    require_function("hidden_states", hidden_states, "(model, batch)", optional=True)
    return forward if hidden_states is None else hidden_states


@torch.no_grad()
def probe(model: EvaluatedModel, read: ReadStates, batches: Sequence[Batch], options: ProbeOptions) -> LayerProbes:
    """Probe the states that `read` returns. See `probe_layers`."""
    forwards_before = model.num_forwards
    names = options.chosen_targets()
    labels, skipped = label_batches(batches, options)
    device = model.device if model.device.type != "mps" else torch.device("cpu")  # mps has no float64
    tasks: dict[str, Task] = {}
    with model.evaluating(), full_precision():
        groups = gather_examples(batches, labels, options, read, device) if labels else []
        layers = _layer_names(groups)
        numbers = torch.full((3, len(names), len(layers), options.num_splits), torch.nan, dtype=torch.float64)
        counts = torch.zeros(3, len(names), options.num_splits, dtype=torch.float64)
        for examples in groups:
            found, fits, reasons = prepare_fits(examples, options)
            tasks |= {task.name: task for task in found}
            skipped |= reasons
            for fit in fits:
                for task in fit.tasks:
                    of_task = (len(fit.test), len(fit.train), task.labels[fit.test].bincount().max())
                    counts[:, names.index(task.name), fit.split] = torch.tensor(of_task, dtype=torch.float64)
            for layer, states in enumerate(examples.states):
                if not torch.isfinite(states).all():
                    skipped[layers[layer]] = "its states are not all finite"
                    continue
                for fit in fits:
                    rows = [names.index(task.name) for task in fit.tasks]
                    numbers[:, rows, layer, fit.split] = torch.tensor(measure(states, fit), dtype=torch.float64).T
    targets = [name for name in names if name in tasks]
    probed = list(map(names.index, targets))
    accuracy, control, strength = numbers[:, probed]
    num_test, num_train, num_most_frequent = counts[:, probed]
    return LayerProbes(
        targets=targets,
        layers=layers,
        accuracy=accuracy.mean(-1),
        stderr=corrected_stderr(accuracy, num_test.sum(-1) / num_train.sum(-1)),
        baseline=(num_most_frequent / num_test).mean(-1),
        control=control.mean(-1),
        num_classes=[tasks[name].num_classes for name in targets],
        num_examples=[int((tasks[name].labels >= 0).sum()) for name in targets],
        strength=strength.median(-1).values,
        num_forwards=model.num_forwards - forwards_before,
        skipped=skipped,
    )


def _layer_names(groups: Sequence[Examples]) -> list[str]:
    return ["embeddings", *(f"layer {number}" for number in range(1, len(groups[0].states)))] if groups else []


def measure(states: Tensor, fit: Fit) -> list[tuple[float, float, float]]:
    """Return the accuracy of each task's probe and of its control, and its ridge strength."""
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
