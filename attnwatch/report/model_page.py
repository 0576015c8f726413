"""The model page: one HTML file about a saved model, which loads nothing."""

import datetime
from pathlib import Path

from attnwatch.errors import ConfigurationError
from attnwatch.explain import load_questions
from attnwatch.report.analysis import ModelAnalysis, load_analysis
from attnwatch.report.rendering import render
from attnwatch.report.sections import (
    attention_content,
    confidence_content,
    inputs_content,
    layers_content,
    make_section,
)
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
    """Load the transformers model of a directory, analyse it with a text, and write an HTML page that loads nothing.

    Args:
        directory: of the model and its tokenizer, as `save_pretrained` or `attnwatch.save_pruned` writes it.
        text: UTF-8; for language models a text, for others a sequence per line, for classifiers followed by a tab and a
            label if calibration is wanted.
        out: path of the page; a file that is there is replaced.
        questions: JSONL for a language model, see `attnwatch.explain.load_questions`.
        num_sequences, num_tokens: how much of the text is used, evenly spread.

    Raises:
        ConfigurationError: there is no such model, a file can't be read, or the page can't be written there.
    """
    if out.is_dir() or not out.absolute().parent.is_dir():
        what = "is a folder" if out.is_dir() else "lies in a folder that is not there"
        raise ConfigurationError(f"`--out`: {str(out)!r} {what}; give the path of a file to write.")
    given = None if questions is None else load_questions(questions)
    analysis = load_analysis(directory, text, num_sequences=num_sequences, num_tokens=num_tokens)
    sections = [
        make_section("attention", lambda: attention_content(analysis)),
        make_section("inputs", lambda: inputs_content(analysis)),
        make_section("layers", lambda: layers_content(analysis)),
        make_section("confidence", lambda: confidence_content(analysis, given)),
    ]
    name = type(analysis.model).__name__
    page = render("model_page.html.jinja", name=name, summary=_summary(directory, text, analysis), sections=sections)
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
