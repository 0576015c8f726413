"""Pictures and words for a TensorBoard `SummaryWriter`."""

from attnwatch.diagnosis import Diagnosis
from attnwatch.recorder import AttentionHistory


def write_figures(writer, history: AttentionHistory) -> None:
    """The heatmaps of the latest observation and the layers over time, under Images.

    Raises:
        ImportError: matplotlib is missing; the message says how to install it.
    """
    try:
        from attnwatch.dashboard.figures import figures, pixels
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'attnwatch[tensorboard]'") from error

    for tag, figure in figures(history).items():
        writer.add_image(tag, pixels(figure), int(history.steps[-1]), dataformats="HWC")


def write_diagnosis(writer, diagnosis: Diagnosis) -> None:
    """The verdict as markdown, under Text."""
    lines = [f"**{diagnosis.status.value.replace('_', ' ')}** · risk {diagnosis.risk:.2f} · step {diagnosis.step}"]
    for finding in diagnosis.findings:
        evidence = ", ".join(f"{name} = {value:.4g}" for name, value in finding.evidence.items())
        lines.append(
            f"- **{finding.kind.value.replace('_', ' ')}** since step {finding.step}, severity "
            f"{finding.severity:.2f}: {finding.message}\n\n  {evidence}"
        )
    writer.add_text("attention/diagnosis", "\n\n".join(lines), diagnosis.step)
