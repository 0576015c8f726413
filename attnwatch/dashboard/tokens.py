"""Picture of a text with its tokens coloured by importance. Needs matplotlib."""

from collections.abc import Sequence

import numpy as np

from attnwatch.dashboard.heatmaps import NOT_OBSERVED, Figure

_MOST_TOKENS = 160
_CHARACTERS_PER_LINE = 60


def token_figure(tokens: Sequence[str], importance: np.ndarray, step: int) -> Figure:
    """Draw a text with each token coloured by importance: red where hiding it hurts, blue where hiding it helps.

    Args:
        tokens: tokens of one sequence; only the first 160 are drawn.
        importance: importance of each token in nats, [tokens]; nan is grey.
        step: training step.
    """
    from matplotlib import colormaps

    tokens = [_readable(each) for each in tokens[:_MOST_TOKENS]]
    known = importance[np.isfinite(importance)]
    largest = float(np.abs(known).max()) if known.size else 0.0
    lines = _lines(tokens)
    figure = Figure(figsize=(8.0, 0.9 + 0.34 * (1 + lines[-1][0] if lines else 1)), dpi=120)
    axes = figure.add_axes((0.02, 0.02, 0.96, 0.96))
    axes.set_axis_off()
    axes.set_xlim(0, _CHARACTERS_PER_LINE)
    axes.set_ylim(2 + (lines[-1][0] if lines else 0), -1.2)
    axes.text(
        0, -0.8, f"importance by hiding, step {step}; darkest ±{largest:.3g} nats", fontsize=12, verticalalignment="top"
    )
    for token, (line, column), value in zip(tokens, lines, importance, strict=False):
        shade: str | tuple[float, float, float, float] = NOT_OBSERVED
        if np.isfinite(value):
            shade = colormaps["RdBu_r"](0.5 + 0.4 * float(value) / (largest or 1.0))
        axes.text(
            column,
            line + 0.7,
            token,
            family="monospace",
            fontsize=11,
            verticalalignment="top",
            parse_math=False,
            bbox={"facecolor": shade, "edgecolor": "none", "pad": 1.5},
        )
    return figure


def _readable(token: str) -> str:
    """Return the token without tokenizer-specific space markers and without characters that fonts can't show."""
    token = token.replace("Ġ", " ").replace("▁", " ").replace("Ċ", "⏎").replace("\n", "⏎")
    return "".join(each if ord(each) < 0x2500 else "?" for each in token) or " "


def _lines(tokens: Sequence[str]) -> list[tuple[int, int]]:
    """Return (line, first column) of each token."""
    places, line, column = [], 0, 0
    for token in tokens:
        width = len(token) + 1
        if column and column + width > _CHARACTERS_PER_LINE:
            line, column = line + 1, 0
        places.append((line, column))
        column += width
    return places
