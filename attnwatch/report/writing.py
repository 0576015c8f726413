"""The page about a model."""

import datetime
from pathlib import Path

from attnwatch.errors import ConfigurationError
from attnwatch.explain.asking.questions import load_questions
from attnwatch.report import sections
from attnwatch.report.html import Markup, element, page
from attnwatch.report.reading import Reading, read
from attnwatch.utils.files import replaced_file


def write_report(
    directory: Path,
    text: Path,
    out: Path,
    *,
    questions: Path | None = None,
    num_sequences: int = 32,
    num_tokens: int = 96,
) -> None:
    """Load the transformers model of a directory, look at it with a text, and write an HTML page that loads nothing.

    Args:
        directory: of the model and its tokenizer, as `save_pretrained` or `attnwatch.save_pruned` writes it.
        text: UTF-8; for language models a text, for others a sequence a line, for classifiers with a tab and a label
            behind it where calibration is asked for.
        out: the page; what is there is replaced.
        questions: JSONL for a language model, see `attnwatch.explain.load_questions`.
        num_sequences, num_tokens: how much of the text is looked at, evenly spread.

    Raises:
        ConfigurationError: there is no such model, a file can't be read, or the page can't be written there.
    """
    if out.is_dir() or not out.absolute().parent.is_dir():
        what = "is a folder" if out.is_dir() else "lies in a folder that is not there"
        raise ConfigurationError(f"`--out`: {str(out)!r} {what}; give the path of a file to write.")
    asked = None if questions is None else load_questions(questions)
    reading = read(directory, text, num_sequences=num_sequences, num_tokens=num_tokens)
    parts = [
        sections.section(
            "What it attends to",
            "Statistics of the attention weights on this text, per layer and head.",
            lambda: sections.attention(reading),
        ),
        sections.section(
            "What it relies on",
            "Each token was hidden in turn from all others, in every layer, and the change of the output measured.",
            lambda: sections.inputs(reading),
        ),
        sections.section(
            "What each layer knows",
            "Linear classifiers, trained on the states of each layer, tested on sequences that they were not trained "
            "on. Selectivity is the accuracy beyond that of the same classifiers for random labels of words. It "
            "is small where a word alone says the target, and far below 0 where nothing is known of the context.",
            lambda: sections.layers(reading),
        ),
        sections.section(
            "How sure it is",
            "Of answers that it gives with 80%, 80% should be right: on the dashed line.",
            lambda: sections.confidence(reading, asked),
        ),
    ]
    name = type(reading.model).__name__
    document = page(f"{name}: what it relies on", _heading(directory, text, reading), *parts)
    with replaced_file(out) as stream:
        stream.write(document.encode())


def _heading(directory: Path, text: Path, reading: Reading) -> Markup:
    model = reading.model
    parameters = sum(parameter.numel() for parameter in model.parameters())
    tokens = sum(int(batch["attention_mask"].sum()) for batch in reading.batches)
    sequences = sum(len(batch["input_ids"]) for batch in reading.batches)
    left_out = f" of {sequences + reading.num_left_out}" if reading.num_left_out else ""
    words = (
        f"{directory.resolve().name}, {parameters / 1e6:.1f} million parameters; {sequences}{left_out} sequences, "
        f"{tokens:,} tokens, of {text.name}. Written by attnwatch on {datetime.date.today().isoformat()}."
    )
    return element("header", element("h1", type(model).__name__), element("p", words, class_="soft"))
