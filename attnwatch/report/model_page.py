"""Model page: one self-contained HTML file about a saved model."""

import datetime
from pathlib import Path

from attnwatch.errors import ConfigurationError
from attnwatch.explain import load_questions
from attnwatch.report.analysis import ModelAnalysis, load_analysis
from attnwatch.report.rendering import render
from attnwatch.report.replacing import require_no_other_file
from attnwatch.report.sections import make_sections
from attnwatch.utils.files import replaced_file


def write_model_page(
    directory: Path,
    text: Path,
    out: Path,
    *,
    questions: Path | None = None,
    num_sequences: int = 32,
    num_tokens: int = 96,
) -> None:
    """Load the transformers model of a directory, analyse it with a text, and write a self-contained HTML page.

    Args:
        directory: directory of the model and its tokenizer, written by `save_pretrained` or `attnwatch.save_pruned`.
        text: file in UTF-8 with a text for a language model, or with one sequence per line for other models. For the
            calibration of a classifier, each line must end in a tab and a label.
        out: path of the page; an existing page is replaced.
        questions: JSONL file for a language model, see `attnwatch.explain.load_questions`.
        num_sequences, num_tokens: number of sequences that are used, evenly spread over the text, and tokens of each.

    Raises:
        ConfigurationError: the model or a file can't be read, or the page can't be written to `out`.
    """
    if out.is_dir() or not out.absolute().parent.is_dir():
        what = "is a folder" if out.is_dir() else "lies in a folder that is not there"
        raise ConfigurationError(f"`--out`: {str(out)!r} {what}; give the path of a file to write.")
    require_no_other_file(out, argument="--out")
    given = None if questions is None else load_questions(questions)
    analysis = load_analysis(directory, text, num_sequences=num_sequences, num_tokens=num_tokens)
    name, summary = type(analysis.model).__name__, _summary(directory, text, analysis)
    page = render("model_page.html.jinja", name=name, summary=summary, sections=make_sections(analysis, given))
    with replaced_file(out) as stream:
        stream.write(page.encode())


def _summary(directory: Path, text: Path, analysis: ModelAnalysis) -> str:
    parameters = sum(parameter.numel() for parameter in analysis.model.parameters())
    tokens = sum(int(batch["attention_mask"].sum()) for batch in analysis.batches)
    sequences = sum(len(batch["input_ids"]) for batch in analysis.batches)
    left_out = f" of {sequences + analysis.num_left_out}" if analysis.num_left_out else ""
    return (
        f"{directory.resolve().name}, {parameters / 1e6:.1f} million parameters; {sequences}{left_out} sequences, "
        f"{tokens:,} tokens, of {text.name}. Written by attnwatch on {datetime.date.today().isoformat()}."
    )
