"""Draw the pictures of docs/images/verdicts from stored runs of the benchmark, and from its newest result.

    python -m tools.draw_verdicts

They are committed; draw them anew when the runs or the result change.
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from attnwatch.dashboard.scalars import over_heads
from attnwatch.statistics import Statistic
from benchmarks.verdicts.runs import STORED
from tools.results import ROOT, newest

_SOUND, _FAILING = "tab:blue", "tab:red"


@dataclass(frozen=True)
class Picture:
    """A failing run beside a sound one of the same model.

    Attributes:
        name: of the file.
        failing, sound: names of stored runs.
        statistic: what tells them apart.
        words: what the failing run is.
        until: share of the budget that is shown.
    """

    name: str
    failing: str
    sound: str
    statistic: str
    words: str
    until: float = 1.0


PICTURES = (
    Picture(
        "same_loss",
        "bytes/llama-plain-queries_and_keys_left_out-106",
        "bytes/llama-slow-sound-15",
        "normalized_entropy",
        "queries and keys left out of the optimizer",
        until=0.4,
    ),
    Picture(
        "uniform_attention",
        "copy/opt-plain-labels_shuffled-120",
        "copy/opt-plain-sound-14",
        "normalized_entropy",
        "labels of other sequences",
    ),
    Picture(
        "exploding_logits",
        "images/vit-plain-rate_too_high-100",
        "images/vit-plain-sound-0",
        "max_logit",
        "learning rate 50 times too high",
    ),
    Picture(
        "entropy_collapse",
        "bytes/llama-plain-rate_too_high-100",
        "bytes/llama-plain-sound-0",
        "normalized_entropy",
        "learning rate 50 times too high",
    ),
    Picture(
        "unpromising",
        "text/minilm-plain-rate_too_low-102",
        "text/minilm-plain-sound-0",
        "normalized_entropy",
        "learning rate 30 times too low",
    ),
)


def draw(picture: Picture, path: Path) -> None:
    figure, (loss, attention) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for name, color, words in ((picture.sound, _SOUND, "sound run"), (picture.failing, _FAILING, picture.words)):
        run = STORED[name].until(picture.until)
        loss.plot(_smooth(run.losses), color=color, label=words)
        curves = over_heads(run.history, Statistic.registry[picture.statistic])
        for site in range(curves.shape[1]):
            attention.plot(run.history.steps, curves[:, site], color=color, alpha=0.4 + 0.6 * site / curves.shape[1])
    loss.set(title="loss", xlabel="step")
    attention.set(title=f"{picture.statistic.replace('_', ' ')} of each layer", xlabel="step")
    if picture.statistic == "max_logit":
        attention.set_yscale("symlog", linthresh=1.0)
    loss.legend(frameon=False)
    for axes in (loss, attention):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_reliability(path: Path) -> None:
    bins = newest("verdicts")["reliability"]
    figure, axes = plt.subplots(figsize=(3.6, 3.4), layout="constrained")
    axes.plot([0, 1], [0, 1], color="lightgray")
    told, happened = ([each[name] for each in bins] for name in ("told", "happened"))
    error = [np.sqrt(each["happened"] * (1 - each["happened"]) / each["runs"]) for each in bins]
    axes.errorbar(told, happened, error, marker="o", color=_SOUND)
    axes.set(xlabel="risk told", ylabel="share of runs that failed", xlim=(0, 1), ylim=(0, 1))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _smooth(values: np.ndarray) -> np.ndarray:
    width = max(len(values) // 25, 1)
    padded = np.concatenate([np.full(width - 1, values[0]), values])
    return np.convolve(padded, np.ones(width) / width, mode="valid")


def main() -> None:
    directory = ROOT / "docs" / "images" / "verdicts"
    directory.mkdir(exist_ok=True)
    for picture in PICTURES:
        draw(picture, directory / f"{picture.name}.png")
    draw_reliability(directory / "reliability.png")


if __name__ == "__main__":
    main()
