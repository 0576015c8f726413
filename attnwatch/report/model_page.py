"""The model page: one HTML file about a saved model, which loads nothing."""

import datetime
from pathlib import Path

from attnwatch.errors import ConfigurationError
from attnwatch.explain import load_questions
from attnwatch.report import sections
from attnwatch.report.analysis import ModelAnalysis, load_analysis
from attnwatch.report.rendering import render
from attnwatch.report.sections import make_section
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
    made = [
        make_section(
            "What it attends to",
            "Statistics of the attention weights on this text, per layer and head.",
            "attention.html.jinja",
            lambda: sections.attention_content(analysis),
        ),
        make_section(
            "What it relies on",
            "Each token was hidden in turn from all others, in every layer, and the change of the output measured.",
            "inputs.html.jinja",
            lambda: sections.inputs_content(analysis),
        ),
        make_section(
            "What each layer knows",
            "Linear classifiers, trained on the states of each layer, tested on sequences that they were not trained "
            "on. Selectivity is the accuracy beyond that of the same classifiers for random labels of words. It is "
            "small if a word alone says the target, and far below 0 if nothing is known of the context.",
            "layers.html.jinja",
            lambda: sections.layers_content(analysis),
        ),
        make_section(
            "How sure it is",
            "Of answers with a confidence of 80%, 80% should be right: on the dashed line.",
            "confidence.html.jinja",
            lambda: sections.confidence_content(analysis, given),
        ),
    ]
    name = type(analysis.model).__name__
    page = render("model_page.html.jinja", name=name, summary=_summary(directory, text, analysis), sections=made)
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
