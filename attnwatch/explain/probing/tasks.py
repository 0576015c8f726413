"""Tasks of the probes: classes, control labels, and splits into training and test sequences."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attnwatch.explain.probing.examples import Examples
from attnwatch.explain.probing.options import ProbeOptions
from attnwatch.explain.probing.targets import IGNORED, POSITION, TOKEN_TARGETS

MOST_CLASSES = 50
"""Number of classes to keep, the most frequent ones. The 50 most frequent tokens are about half of a text, and the
cost of a probe grows with its number of classes."""

FEWEST_SEQUENCES = 8
"""Number of sequences in which a class of a built-in target must occur, so that the training part has some. Rarer
classes are ignored, and fewer sequences are not probed."""

NUM_POSITION_BINS = 8


@dataclass(frozen=True)
class Task:
    """Classes of one target.

    Attributes:
        labels: class of each example, 0 to num_classes - 1, or IGNORED, int64 [examples].
    """

    name: str
    labels: Tensor
    num_classes: int


@dataclass(frozen=True)
class Fit:
    """Tasks of one split with the same labelled examples, which share a decomposition.

    Attributes:
        split: number of the split.
        train, test: indices of examples, int64; no sequence is in both.
        controls: labels for each task from `control_labels`, int64 [examples].
    """

    split: int
    train: Tensor
    test: Tensor
    tasks: list[Task]
    controls: list[Tensor]


def prepare_fits(examples: Examples, options: ProbeOptions) -> tuple[list[Task], list[Fit], dict[str, str]]:
    """Return the tasks, their fits in all splits, and the reasons why other targets are skipped."""
    num_sequences = len(examples.sequences.unique())
    if num_sequences < FEWEST_SEQUENCES:
        reason = f"{num_sequences} sequences are too few: at least {FEWEST_SEQUENCES} are needed"
        return [], [], dict.fromkeys(examples.labels, reason)
    tasks, skipped = [], {}
    for name, labels in examples.labels.items():
        task = _task(name, labels, examples)
        if task.num_classes < 2:
            skipped[name] = _too_few_classes(task)
        else:
            tasks.append(task)
    tests = [_test_examples(examples, tasks, options, split) for split in range(options.num_splits)]
    for task in list(tasks):
        reason = next(filter(None, (_why_not(task, test, split) for split, test in enumerate(tests))), "")
        if reason:
            tasks.remove(task)
            skipped[task.name] = reason
    fits = [fit for split, test in enumerate(tests) for fit in _fits(tasks, test, examples, options, split)]
    return tasks, fits, skipped


def control_labels(task: Task, examples: Examples, generator: torch.Generator) -> Tensor:
    """Return random labels that depend only on the word and have the task's distribution, int64 [examples].

    Each word type gets a label drawn at random from all labels of the task (Hewitt and Liang 2019, arXiv 1909.03368).
    Labels of sequences are shuffled.
    """
    has_label = task.labels >= 0
    labels = task.labels[has_label]
    if examples.are_of_tokens:
        types, type_of_each = examples.types.unique(return_inverse=True)
        drawn = labels[torch.randint(len(labels), (len(types),), generator=generator)][type_of_each]
        return drawn.where(has_label, IGNORED)
    shuffled = task.labels.clone()
    shuffled[has_label] = labels[torch.randperm(len(labels), generator=generator)]
    return shuffled


def position_bins(positions: Tensor) -> Tensor:
    """Return the bin of each position, with about equally many examples in each bin; IGNORED is kept."""
    known = positions[positions >= 0].sort().values
    if not len(known):
        return positions
    edges = known[[len(known) * each // NUM_POSITION_BINS for each in range(1, NUM_POSITION_BINS)]].unique()
    return torch.where(positions >= 0, torch.bucketize(positions, edges, right=True), IGNORED)


def _task(name: str, labels: Tensor, examples: Examples) -> Task:
    if name == POSITION:
        labels = position_bins(labels)
    classes, counts = labels[labels >= 0].unique(return_counts=True)
    if name in TOKEN_TARGETS:
        present = torch.stack([labels, examples.sequences], 1)[labels >= 0].unique(dim=0)[:, 0]
        kept = present.unique(return_counts=True)[1] >= FEWEST_SEQUENCES
        classes, counts = classes[kept], counts[kept]
    most_frequent = counts.argsort(descending=True, stable=True)[:MOST_CLASSES]
    classes = classes[most_frequent].sort().values
    numbers = torch.searchsorted(classes, labels).where(torch.isin(labels, classes), IGNORED)
    return Task(name, numbers, len(classes))


def _too_few_classes(task: Task) -> str:
    number = "one class" if task.num_classes else "no class"
    if task.name in TOKEN_TARGETS:
        return f"{number} is in {FEWEST_SEQUENCES} sequences or more, and classes in fewer are ignored"
    return f"its examples are of {number}"


def _test_examples(examples: Examples, tasks: list[Task], options: ProbeOptions, split: int) -> Tensor:
    """Return a mask of randomly chosen test sequences, bool [examples], stratified by labels of sequences."""
    generator = _generator(options, split, "sequences")
    if not examples.are_of_tokens and tasks:
        (task,) = tasks
        strata = [(task.labels == each).nonzero()[:, 0] for each in range(task.num_classes)]
    else:
        strata = [examples.sequences.unique()]
    test = torch.cat([_draw(stratum, options.test_share, generator) for stratum in strata])
    return torch.isin(examples.sequences, test)


def _draw(sequences: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Return a share of the sequences, at least one if there are several, and never all."""
    number = min(max(round(share * len(sequences)), int(len(sequences) > 1)), max(len(sequences) - 1, 0))
    return sequences[torch.randperm(len(sequences), generator=generator)[:number]]


def _why_not(task: Task, is_test: Tensor, split: int) -> str:
    """Return the reason why a target can't be probed in this split; "" if it can."""
    has_label = task.labels >= 0
    counts = task.labels[has_label & ~is_test].bincount(minlength=task.num_classes)
    missing = int((counts == 0).sum())
    if missing:
        return f"{missing} of its {task.num_classes} classes have no example in the training part of split {split}"
    if not (has_label & is_test).any():
        return f"it has no example in the test part of split {split}"
    return ""


def _fits(tasks: list[Task], is_test: Tensor, examples: Examples, options: ProbeOptions, split: int) -> Iterator[Fit]:
    groups: dict[bytes, list[Task]] = {}
    for task in tasks:
        groups.setdefault((task.labels >= 0).numpy().tobytes(), []).append(task)
    for group in groups.values():
        has_label = group[0].labels >= 0
        controls = [control_labels(task, examples, _generator(options, split, task.name)) for task in group]
        train, test = (has_label & ~is_test).nonzero()[:, 0], (has_label & is_test).nonzero()[:, 0]
        yield Fit(split, train, test, group, controls)


def _generator(options: ProbeOptions, split: int, purpose: str) -> torch.Generator:
    """Return a generator whose draws for a target do not depend on the other targets."""
    return torch.Generator().manual_seed(zlib.crc32(f"{options.seed} {split} {purpose}".encode()))
