"""A model of a directory and a text, as batches."""

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attnwatch.errors import ConfigurationError
from attnwatch.explain.subject import Batch
from attnwatch.heads.checkpoints import load_pruned
from attnwatch.heads.folders import model_folder
from attnwatch.utils.files import UnreadableFileError, read_text

_SEQUENCES_PER_BATCH = 8
# Shorter ends of a text say little.
_FEWEST_TOKENS = 4
# Some classifiers have thousands.
_SHOWN_LABELS = 20


@dataclass(frozen=True)
class Reading:
    """What a report is about.

    Attributes:
        model: in eval mode, on the CPU.
        tokenizer: of transformers.
        batches: the text as the model takes it, with `labels` where the text has some.
        is_classifier, is_language_model: of sequences, into classes; causal.
        num_left_out: sequences of the text beyond those that were asked for.
    """

    model: nn.Module
    tokenizer: Any
    batches: list[Batch]
    is_classifier: bool
    is_language_model: bool
    num_left_out: int

    @property
    def has_labels(self) -> bool:
        return "labels" in self.batches[0]


def read(directory: Path, text: Path, *, num_sequences: int, num_tokens: int) -> Reading:
    """Load a transformers model and cut the text up for it.

    For a language model the text is one, in stretches of `num_tokens`; for any other model each line that is not empty
    is a sequence. A classifier's lines may end in a tab and a label, by number or by name: all of them, or none.

    Raises:
        ConfigurationError: there is no such model, no tokenizer, one of another model, nothing in the text, or a line
            without a label among others that have one.
    """
    model = load_pruned(directory)
    if hasattr(model, "merge_and_unload"):  # adapters of PEFT
        model = model.merge_and_unload()
    _refuse_other_inputs(model)
    tokenizer = _tokenizer(directory)
    content = _content(text)
    has_head_for_sequences = type(model).__name__.endswith("ForSequenceClassification")
    is_classifier = has_head_for_sequences and model.config.num_labels > 1
    is_language_model = not has_head_for_sequences and bool(getattr(model, "can_generate", bool)())
    most = getattr(model.config, "max_position_embeddings", None) or num_tokens
    num_tokens = min(num_tokens, most - 2) if isinstance(most, int) else num_tokens  # RoBERTa's positions begin at 2
    num_tokens = max(num_tokens, 0)
    fewest = _FEWEST_TOKENS + 1 if is_language_model else 1  # beside the one that many texts begin with
    if num_tokens < fewest:
        raise ConfigurationError(
            f"`--tokens`: {num_tokens} tokens of a sequence (at most 2 less than the {most} positions of the model) "
            f"are too few for a {type(model).__name__}; at least {fewest} are needed."
        )
    if not content.strip():
        rows, labels = [], None
    elif is_language_model:
        rows, labels = _stretches(content, tokenizer, num_tokens), None
    else:
        numbered = {number: line for number, line in enumerate(content.splitlines(), 1) if line.strip()}
        lines, labels = _labelled(numbered, model.config) if has_head_for_sequences else (list(numbered.values()), None)
        rows = [tokenizer(line, truncation=True, max_length=num_tokens)["input_ids"] for line in map(str.strip, lines)]
    if not rows:
        raise ConfigurationError(f"`--text`: {str(text)!r} has nothing in it to read.")
    chosen = _evenly(len(rows), num_sequences)
    known = None if labels is None else [labels[index] for index in chosen]
    batches = _batches([rows[index] for index in chosen], known, tokenizer)
    _refuse_unknown_ids(batches, tokenizer, model)
    return Reading(model, tokenizer, batches, is_classifier, is_language_model, len(rows) - len(chosen))


def _refuse_other_inputs(model: nn.Module) -> None:
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise ConfigurationError(f"`run`: {name} has an encoder and a decoder; a report is of models with one stack.")
    takes_ids = "input_ids" in inspect.signature(model.forward).parameters
    if not takes_ids or name.endswith("ForMultipleChoice"):  # whose input_ids are [batch, choices, tokens]
        raise ConfigurationError(
            f"`run`: a model that takes `input_ids` [batch, tokens] expected, got {name}, which does not; give a "
            "language model, a sequence classifier or an encoder of text."
        )


def _tokenizer(directory: Path) -> Any:
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder(directory), trust_remote_code=False)
    except Exception as error:
        raise _no_tokenizer(directory, f"that transformers can load ({error})") from error
    if not isinstance(tokenizer, transformers.PreTrainedTokenizerBase):  # whatever class the folder has named
        raise _no_tokenizer(directory, f"that transformers can load (it has a {type(tokenizer).__name__})")
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):  # transformers 5 makes one of no files
        raise _no_tokenizer(directory, "with a vocabulary")
    return tokenizer


def _no_tokenizer(directory: Path, lacking: str) -> ConfigurationError:
    return ConfigurationError(f"`run`: {str(directory)!r} has no tokenizer {lacking}; save the model's there.")


def _content(text: Path) -> str:
    try:
        return read_text(text)
    except UnreadableFileError as error:
        raise ConfigurationError(f"`--text`: {str(text)!r} {error}; give some pages of UTF-8 text.") from error


def _stretches(content: str, tokenizer: Any, num_tokens: int) -> list[list[int]]:
    """Each begins as the tokenizer lets a text begin."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the text is longer than the model's context
        ids = tokenizer(content, verbose=False)["input_ids"]
    start = ids[:1] if ids and ids[0] == tokenizer.bos_token_id else []
    ids, length = ids[len(start) :], num_tokens - len(start)
    stretches = [start + ids[begin : begin + length] for begin in range(0, len(ids), length)]
    return [stretch for stretch in stretches if len(stretch) >= _FEWEST_TOKENS]


def _labelled(lines: Mapping[int, str], config: Any) -> tuple[list[str], list[int] | None]:
    """The lines, by their number in the text, without their labels, and these; None where no line has one."""
    parts = {number: _parted(line) for number, line in lines.items()}
    if config.num_labels == 1:  # a regression: nothing is measured by its numbers, but they are not its text
        return [text if _is_number(label) else lines[number] for number, (text, label) in parts.items()], None
    known = _label_numbers(config)
    known |= {str(index): index for index in range(config.num_labels)}
    # An indented line is text, not an empty sentence with a label.
    if not any(label and (text or label in known) for text, label in parts.values()):
        return list(lines.values()), None
    for number, (text, label) in parts.items():
        if label not in known or not text:
            raise _badly_labelled(number, text, label, config)
    return [text for text, _ in parts.values()], [known[label] for _, label in parts.values()]


def _label_numbers(config: Any) -> dict[str, int]:
    """As config.json has them.

    Raises:
        ConfigurationError: its `label2id` does not map names to numbers of classes.
    """
    names = config.label2id or {}
    is_map = isinstance(names, Mapping) and all(
        isinstance(index, int) and 0 <= index < config.num_labels for index in names.values()
    )
    if not is_map:
        raise ConfigurationError(
            f"`run`: `label2id` in the model's config.json must map names to numbers of its {config.num_labels} "
            f"classes, got {names!r:.80}."
        )
    return {str(name): index for name, index in names.items()}


def _parted(line: str) -> tuple[str, str]:
    """Before its last tab, and behind it."""
    text, tab, label = line.rstrip().rpartition("\t")
    return (text.strip(), label.strip()) if tab else (line.strip(), "")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _badly_labelled(number: int, text: str, label: str, config: Any) -> ConfigurationError:
    got = "no label" if not label else f"the label {label!r}"
    got = got if text else f"nothing before {got}"
    names = list(config.label2id or {})
    shown = ", ".join(map(repr, names[:_SHOWN_LABELS])) + (", …" if len(names) > _SHOWN_LABELS else "")
    return ConfigurationError(
        f"`--text`: line {number} must be a sentence, a tab and a label, since the text has labels; got {got}. Known "
        f"are {shown}{', and ' if shown else ''}0 to {config.num_labels - 1}; label all lines, or none, without tabs."
    )


def _evenly(number: int, most: int) -> list[int]:
    return list(range(number)) if number <= most else [index * number // most for index in range(most)]


def _batches(rows: list[list[int]], labels: list[int] | None, tokenizer: Any) -> list[Batch]:
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    batches = []
    for begin in range(0, len(rows), _SEQUENCES_PER_BATCH):
        part = rows[begin : begin + _SEQUENCES_PER_BATCH]
        longest = max(map(len, part))
        batch: dict[str, Tensor] = {
            "input_ids": torch.tensor([row + [padding] * (longest - len(row)) for row in part]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in part]),
        }
        if labels is not None:
            batch["labels"] = torch.tensor(labels[begin : begin + _SEQUENCES_PER_BATCH])
        batches.append(batch)
    return batches


def _refuse_unknown_ids(batches: list[Batch], tokenizer: Any, model: nn.Module) -> None:
    """Only those that the text needs: many tokenizers have a token or two more than their model, which nobody uses."""
    size = getattr(model.config.get_text_config(), "vocab_size", None)  # CANINE has none: it hashes
    largest = max(int(batch["input_ids"].max()) for batch in batches)
    if size is not None and largest >= size:
        raise ConfigurationError(
            f"`run`: the tokenizer ({len(tokenizer)} tokens) must be the model's, with ids below its vocabulary of "
            f"{size}, got id {largest} in the text; save the right one there, or resize the model's embeddings."
        )
