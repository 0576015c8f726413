"""A verdict in words, for dashboards."""

from attnwatch.diagnosis import Diagnosis


def diagnosis_markdown(diagnosis: Diagnosis) -> str:
    lines = [f"**{diagnosis.status.value.replace('_', ' ')}** · risk {diagnosis.risk:.2f} · step {diagnosis.step}"]
    for finding in diagnosis.findings:
        evidence = ", ".join(f"{name} = {value:.4g}" for name, value in finding.evidence.items())
        lines.append(
            f"- **{finding.kind.value.replace('_', ' ')}** since step {finding.step}, severity "
            f"{finding.severity:.2f}: {finding.message}\n\n  {evidence}"
        )
    return "\n\n".join(lines)
