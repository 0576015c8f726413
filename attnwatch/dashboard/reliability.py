"""Reliability diagrams. Needs matplotlib."""

from typing import TYPE_CHECKING

from attnwatch.dashboard.heatmaps import Figure

if TYPE_CHECKING:
    from attnwatch.explain.calibration import Calibration

_RIGHT, _COUNT, _IDEAL = "tab:blue", "0.6", "0.4"


def reliability_figure(calibration: "Calibration", title: str) -> Figure:
    """Draw the accuracy of each bin against its confidence, above a histogram of the confidence."""
    figure = Figure(figsize=(5.6, 5.6), layout="constrained", dpi=120)
    above, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1]})
    left, width = calibration.bin_lower.numpy(), (calibration.bin_upper - calibration.bin_lower).numpy()
    confidence, accuracy = calibration.bin_confidence.numpy(), calibration.bin_accuracy.numpy()
    bars = above.bar(left, accuracy, width, align="edge", color=_RIGHT, alpha=0.5, edgecolor="white")
    for bar, count, sure, right in zip(bars, calibration.bin_count, confidence, accuracy, strict=True):
        if count:  # a tooltip in SVG
            bar.set_gid(f"{count:.0f} predictions, confidence {sure:.2f}, accuracy {right:.2f}")
    above.plot(confidence, accuracy, "o", color=_RIGHT)
    above.plot([0, 1], [0, 1], "--", color=_IDEAL)
    above.set_ylim(0, 1.02)
    above.set_ylabel("accuracy", fontsize=13)
    above.set_title(
        f"{title}\nexpected calibration error {calibration.expected_calibration_error:.3f} "
        f"({calibration.expected_if_calibrated:.3f} by chance)",
        fontsize=13,
    )
    below.bar(left, calibration.bin_count.numpy(), width, align="edge", color=_COUNT, edgecolor="white")
    below.set_xlim(0, 1)
    below.set_xlabel("confidence", fontsize=13)
    below.set_ylabel("examples", fontsize=13)
    for axes in (above, below):
        axes.tick_params(labelsize=12)
    return figure
