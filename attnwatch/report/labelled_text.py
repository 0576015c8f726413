"""Labels at the ends of the lines of a text."""

from collections.abc import Mapping
from typing import Any

from attnwatch.errors import ConfigurationError
from attnwatch.utils.messages import listed

# Some classifiers have thousands.
_SHOWN_LABELS = 20


def split_labels(lines: Mapping[int, str], config: Any) -> tuple[list[str], list[int] | None]:
    """Return the lines without their labels, and the labels; None if no line has one.

    Args:
        lines: lines by their number in the text, each of which may end in a tab and a label.
        config: configuration of a sequence classifier.

    Raises:
        ConfigurationError: only some lines have a label, or a label is unknown.
    """
    parts = {number: _split(line) for number, line in lines.items()}
    if config.num_labels == 1:  # a regression: nothing is measured by its numbers, but they are not part of the text
        return [text if _is_number(label) else lines[number] for number, (text, label) in parts.items()], None
    known = _label_numbers(config) | {str(index): index for index in range(config.num_labels)}
    # An indented line is text, not an empty sentence with a label.
    if not any(label and (text or label in known) for text, label in parts.values()):
        return list(lines.values()), None
    for number, (text, label) in parts.items():
        if label not in known or not text:
            raise _bad_label(number, text, label, config)
    return [text for text, _ in parts.values()], [known[label] for _, label in parts.values()]


def _label_numbers(config: Any) -> dict[str, int]:
    """Return the numbers of the labels in a config.json by name.

    Raises:
        ConfigurationError: its `label2id` does not map names to numbers of classes.
    """
    names = config.label2id or {}
    is_map = isinstance(names, Mapping) and all(
        isinstance(index, int) and 0 <= index < config.num_labels for index in names.values()
    )
    if not is_map:
        raise ConfigurationError(
            f"`MODEL_DIR`: `label2id` in the model's config.json must map names to numbers of its {config.num_labels} "
            f"classes, got {names!r:.80}."
        )
    return {str(name): index for name, index in names.items()}


def _split(line: str) -> tuple[str, str]:
    """Return the text before the last tab of a line and the text after it."""
    text, tab, label = line.rstrip().rpartition("\t")
    return (text.strip(), label.strip()) if tab else (line.strip(), "")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _bad_label(number: int, text: str, label: str, config: Any) -> ConfigurationError:
    got = "no label" if not label else f"the label {label!r}"
    got = got if text else f"nothing before {got}"
    names = list(config.label2id or {})
    shown = listed(list(map(repr, names)), most=_SHOWN_LABELS)
    return ConfigurationError(
        f"`--text`: line {number} must be a sentence, a tab and a label, since the text has labels; got {got}. Known "
        f"are {shown}{', and ' if shown else ''}0 to {config.num_labels - 1}; label all lines, or none, without tabs."
    )
