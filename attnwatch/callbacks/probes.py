"""Linear probes of the layers while a model trains: a thin layer over `probe_layers`."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from attnwatch.callbacks.audit import MOST_LAYER_CURVES, Audit
from attnwatch.explain.batches import Batch
from attnwatch.explain.evaluated_model import EvaluatedModel, Forward
from attnwatch.explain.probing.examples import label_batches
from attnwatch.explain.probing.options import ProbeOptions
from attnwatch.explain.probing.probes import LayerProbes, probe, single_function
from attnwatch.explain.probing.states import HiddenStates, ReadStates, states_reader
from attnwatch.explain.probing.targets import OwnLabels
from attnwatch.trainers.base import TrainerRun
from attnwatch.utils.labels import evenly_spaced


class LayerProbe(Audit[LayerProbes]):
    """Train linear probes on the hidden states of all layers while a model trains.

    For each layer (0: the embeddings; 12 evenly spaced layers if there are more), the callback logs the accuracy above
    the baseline as `probe_<target>/layer_<n>` and the selectivity as `probe_<target>_selectivity/layer_<n>`. The
    picture `probes/<target>` shows the accuracy above the baseline by layer and step. An audit costs `num_batches`
    forwards without gradients, and about as long again for the probes. Training does not change: see
    `attnwatch.explain.EvaluatedModel`.

    Args:
        every_n_steps: interval in optimizer steps: probing follows the first step at or after each multiple of it, and
            the end. None means at the end only.
        batches: batches to probe, each with the model's arguments by name; None means the first validation batches.
        num_batches: maximum number of batches; together they must have 8 sequences or more.
        targets, labels, tokenizer, forward, hidden_states, max_tokens, test_share, num_splits, seed: see
            `attnwatch.explain.probe_layers`.

    Attributes:
        results: (global step, `LayerProbes`) of each audit in this training.

    Raises:
        ConfigurationError: an argument is invalid, or there is nothing to probe (raised when training starts).
    """

    example = "LayerProbe(every_n_steps=500, tokenizer=tokenizer)"
    _Result = LayerProbes

    def __init__(
        self,
        *,
        every_n_steps: int | None = 500,
        batches: Iterable[Batch] | None = None,
        num_batches: int = 16,
        targets: Sequence[str] | None = None,
        labels: Mapping[str, OwnLabels] | None = None,
        tokenizer: Any | None = None,
        forward: Forward | None = None,
        hidden_states: HiddenStates | None = None,
        max_tokens: int = 8192,
        test_share: float = 0.3,
        num_splits: int = 5,
        seed: int = 0,
    ):
        super().__init__(every_n_steps, batches, num_batches, single_function(forward, hidden_states), tokenizer)
        self._options = ProbeOptions(targets, labels, tokenizer, max_tokens, test_share, num_splits, seed)
        self._returns_states = hidden_states is not None
        self._read: ReadStates | None = None

    def start(self, run: TrainerRun) -> None:
        super().start(run)
        self._read = states_reader(self._subject, returns_states=self._returns_states)
        self._options = dataclasses.replace(self._options, tokenizer=self._tokenizer)
        if self._given is not None:
            label_batches(self._given, self._options)  # raises an error if they do not fit

    def detach(self) -> None:
        super().detach()
        self._read = None

    def _audit(self, run: TrainerRun, subject: EvaluatedModel, batches: list[Batch]) -> LayerProbes:
        read = self._read or states_reader(subject, returns_states=self._returns_states)
        return probe(subject, read, batches, self._options)

    def _numbers(self, result: LayerProbes) -> dict[str, float]:
        numbers = {}
        for index, name in enumerate(result.targets):
            for layer in evenly_spaced(len(result.layers), MOST_LAYER_CURVES):
                numbers[f"probe_{name}/layer_{layer}"] = float(result.above_baseline[index, layer])
                numbers[f"probe_{name}_selectivity/layer_{layer}"] = float(result.selectivity[index, layer])
        return {tag: number for tag, number in numbers.items() if not math.isnan(number)}

    def _draw(self) -> dict[str, np.ndarray]:
        from attnwatch.dashboard.heatmaps import layers_over_steps, pixels

        pictures = {}
        for name in dict.fromkeys(name for _, found in self.results for name in found.targets):
            by_step = [
                (step, found.above_baseline[found.targets.index(name)].numpy())
                for step, found in self.results
                if name in found.targets
            ]
            steps, values = zip(*by_step, strict=True)
            title = f"{name.replace('_', ' ')}: accuracy above the baseline"
            pictures[f"probes/{name}"] = pixels(layers_over_steps(np.stack(values), steps, title))
        return pictures
