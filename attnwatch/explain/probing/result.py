"""Results of the probes."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from attnwatch.utils.labels import evenly_spaced

_MOST_COLUMNS = 12


@dataclass
class LayerProbes:
    """Accuracy of linear probes on the states of each layer, on sequences that they were not trained on.

    Attributes:
        targets: names, in the order of the first axis of what follows.
        layers: names, in the order of the second: `"embeddings"`, `"layer 1"`, …
        accuracy: float64 [targets, layers], mean over the splits, 0 to 1; nan where a layer was not probed.
        stderr: of accuracy, [targets, layers], from its variance s² over J splits: sqrt((1/J + test/train) s²), as
            splits share examples (Nadeau and Bengio 2003).
        baseline: [targets], accuracy of always predicting the most frequent class of the test part.
        control: [targets, layers], accuracy of the same probes for random labels, see `selectivity`.
        num_classes, num_examples: of each target.
        strength: [targets, layers], the median of the ridge strengths that were chosen, relative to the examples.
        num_forwards: number of forwards that it took, one for each batch.
        skipped: why targets or layers have no numbers, by name.
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
        """Accuracy minus control, [targets, layers]: beyond that of a probe that learns words by heart."""
        return self.accuracy - self.control

    def __str__(self) -> str:
        """Return a table; of many layers, some evenly spaced ones."""
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
        accuracy: [targets, layers, splits].
        test_per_train: [targets], number of test examples for each training example.
    """
    if not len(accuracy):
        return accuracy.new_empty(accuracy.shape[:-1])
    return torch.sqrt((1 / accuracy.shape[-1] + test_per_train[:, None]) * accuracy.var(-1))
