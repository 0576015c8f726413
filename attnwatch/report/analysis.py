"""Loading of a saved model and of the text to analyse it with."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from attnwatch.errors import ConfigurationError
from attnwatch.explain.batches import LABEL_NAMES, Batch, padded_batch
from attnwatch.heads.checkpoints import load_pruned
from attnwatch.heads.folders import model_folder
from attnwatch.report.labelled_text import split_labels
from attnwatch.utils.files import UnreadableFileError, read_text
from attnwatch.utils.forwards import parameters_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SEQUENCES_PER_BATCH = 8
# Shorter remainders of a text are left out.
_FEWEST_TOKENS = 4


@dataclass(frozen=True)
class ModelAnalysis:
    """Model with the text to analyse it with.

    Attributes:
        model: model in eval mode, on the CPU.
        tokenizer: tokenizer of the model.
        batches: batches of the text, with `labels` if the text has some.
        is_classifier: True if the model classifies sequences.
        is_language_model: True if the model is causal and predicts the next token.
        num_left_out: number of sequences of the text that are not in `batches`.
    """

    model: "PreTrainedModel"
    tokenizer: Any
    batches: list[Batch]
    is_classifier: bool
    is_language_model: bool
    num_left_out: int

    @property
    def has_labels(self) -> bool:
        return "labels" in self.batches[0]

    @torch.no_grad()
    def output(self, batch: Batch) -> Any:
        """Return the model's output for a batch."""
        return self.model(**{name: value for name, value in batch.items() if name not in LABEL_NAMES})


def load_analysis(directory: Path, text: Path, *, num_sequences: int, num_tokens: int) -> ModelAnalysis:
    """Load a transformers model and split a text for it.

    The text for a language model is split into passages of `num_tokens`. For any other model, each line that is not
    empty is a sequence. All lines for a classifier, or none, may end in a tab and a label, by number or by name.

    Raises:
        ConfigurationError: the model or its tokenizer can't be loaded, they don't fit together, the text is empty, or
            only some lines have a label.
    """
    model = load_pruned(directory)
    merge = getattr(model, "merge_and_unload", None)  # adapters of PEFT
    model = model if merge is None else merge()
    _refuse_other_inputs(model)
    tokenizer = _load_tokenizer(directory)
    content = _read(text)
    classifies_sequences = type(model).__name__.endswith("ForSequenceClassification")
    is_language_model = not classifies_sequences and bool(getattr(model, "can_generate", bool)())
    num_tokens = _checked_length(model, num_tokens, fewest=_FEWEST_TOKENS + 1 if is_language_model else 1)
    labels = None
    if is_language_model:
        rows = _stretches(content, tokenizer, num_tokens) if content.strip() else []
    else:
        lines = {number: line for number, line in enumerate(content.splitlines(), 1) if line.strip()}
        sentences = list(lines.values())
        if classifies_sequences and lines:
            sentences, labels = split_labels(lines, model.config)
        options = {"truncation": True, "max_length": num_tokens}
        rows = [tokenizer(sentence.strip(), **options)["input_ids"] for sentence in sentences]
    if not rows:
        raise ConfigurationError(f"`--text`: {str(text)!r} has no text in it.")
    number = min(len(rows), num_sequences)
    chosen = [index * len(rows) // number for index in range(number)]
    batches = _batches([rows[at] for at in chosen], labels and [labels[at] for at in chosen], tokenizer)
    _refuse_unknown_ids(batches, tokenizer, model)
    is_classifier = classifies_sequences and (model.config.num_labels or 0) > 1
    return ModelAnalysis(model, tokenizer, batches, is_classifier, is_language_model, len(rows) - number)


def _checked_length(model: nn.Module, num_tokens: int, *, fewest: int) -> int:
    """Return the number of tokens of a sequence, limited by the positions of the model."""
    positions = getattr(model.config, "max_position_embeddings", None) or num_tokens
    if isinstance(positions, int):
        num_tokens = max(min(num_tokens, positions - 2), 0)  # RoBERTa's positions begin at 2
    if num_tokens < fewest:
        raise ConfigurationError(
            f"`--tokens`: {num_tokens} tokens of a sequence (at most 2 less than the {positions} positions of the "
            f"model) are too few for a {type(model).__name__}; at least {fewest} are needed."
        )
    return num_tokens


def _refuse_other_inputs(model: nn.Module) -> None:
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise ConfigurationError(
            f"`MODEL_DIR`: {name} is an encoder-decoder model; the model page supports decoder-only and encoder-only "
            "models of text."
        )
    takes_ids = "input_ids" in parameters_of(model.forward)
    if not takes_ids or name.endswith("ForMultipleChoice"):  # whose input_ids are [batch, choices, tokens]
        raise ConfigurationError(
            f"`MODEL_DIR`: the model must take `input_ids` [batch, tokens], got {name}; give a language model, a "
            "sequence classifier or an encoder of text."
        )


def _load_tokenizer(directory: Path) -> Any:
    import transformers

    def lacking(what: str) -> ConfigurationError:
        return ConfigurationError(f"`MODEL_DIR`: {str(directory)!r} has no tokenizer {what}; save the model's there.")

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder(directory), trust_remote_code=False)
    except Exception as error:
        raise lacking(f"that transformers can load ({error})") from error
    if not isinstance(tokenizer, transformers.PreTrainedTokenizerBase):  # whatever class the folder has named
        raise lacking(f"that transformers can load (it has a {type(tokenizer).__name__})")
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):  # transformers 5 makes one of no files
        raise lacking("with a vocabulary")
    return tokenizer


def _read(text: Path) -> str:
    try:
        return read_text(text)
    except UnreadableFileError as error:
        raise ConfigurationError(f"`--text`: {str(text)!r} {error}; give some pages of UTF-8 text.") from error


def _stretches(content: str, tokenizer: Any, num_tokens: int) -> list[list[int]]:
    """Return passages of the text, each with the tokenizer's token for the beginning of a text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the text is longer than the model's context
        ids = tokenizer(content, verbose=False)["input_ids"]
    start = ids[:1] if ids and ids[0] == tokenizer.bos_token_id else []
    ids, length = ids[len(start) :], num_tokens - len(start)
    stretches = [start + ids[begin : begin + length] for begin in range(0, len(ids), length)]
    return [stretch for stretch in stretches if len(stretch) >= _FEWEST_TOKENS]


def _batches(rows: list[list[int]], labels: list[int] | None, tokenizer: Any) -> list[Batch]:
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    batches: list[Batch] = []
    for begin in range(0, len(rows), _SEQUENCES_PER_BATCH):
        here = slice(begin, begin + _SEQUENCES_PER_BATCH)
        batch = padded_batch(rows[here], padding, side="right")
        if labels is not None:
            batch["labels"] = torch.tensor(labels[here])
        batches.append(batch)
    return batches


def _refuse_unknown_ids(batches: list[Batch], tokenizer: Any, model: "PreTrainedModel") -> None:
    """Check the ids of the text only, because many tokenizers have a few unused tokens more than their model."""
    size = getattr(model.config.get_text_config(), "vocab_size", None)  # CANINE has none: it hashes
    largest = max(int(batch["input_ids"].max()) for batch in batches)
    if size is not None and largest >= size:
        raise ConfigurationError(
            f"`MODEL_DIR`: the tokenizer ({len(tokenizer)} tokens) must be the model's, with ids below its vocabulary "
            f"of {size}, got id {largest} in the text; save the right one there, or resize the model's embeddings."
        )
