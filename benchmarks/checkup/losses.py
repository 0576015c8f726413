"""Losses of other kinds, with faults and sound."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.checkup.blind_data import logits_of
from benchmarks.checkup.data import Batch
from benchmarks.checkup.faults import CLASSIFIERS, Fault
from benchmarks.checkup.scripts import Change
from benchmarks.checkup.second_data import next_tokens
from benchmarks.checkup.second_flow import DECODERS

_OF_CLASSES = (*CLASSIFIERS, "roberta classifier")
Loss = Callable[[nn.Module, Batch], Tensor]


def _with(loss: Loss) -> Change:
    return lambda script: replace(script, loss=loss)


def _classes(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return logits and classes of sequences, or of tokens in rows."""
    return logits_of(model, batch).flatten(0, -2), batch["labels"].flatten()


def _tokens(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    logits, labels = next_tokens(model, batch)
    is_real = batch["attention_mask"][:, 1:].bool()
    return logits[is_real], labels[is_real]


def _of_probabilities(of: Callable[..., tuple[Tensor, Tensor]]) -> Loss:
    """Apply softmax before the loss that applies it."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        logits, labels = of(model, batch)
        return F.cross_entropy(logits.softmax(-1), labels)

    return loss


def _of_log_probabilities(of: Callable[..., tuple[Tensor, Tensor]]) -> Loss:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        logits, labels = of(model, batch)
        return F.nll_loss(logits.log_softmax(-1), labels)

    return loss


def _of_each_class(activation: Callable[[Tensor], Tensor]) -> Loss:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        logits, labels = _classes(model, batch)
        return F.binary_cross_entropy_with_logits(activation(logits), F.one_hot(labels, logits.shape[1]).float())

    return loss


def _of_score(compare: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """Take the first output as a score that should be the number of the class."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        logits, labels = _classes(model, batch)
        return compare(logits[:, :1], labels.float())

    return loss


def _square(score: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(score, target)


def _mean_square(score: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(score[:, 0], target)


FAULTS_OF_LOSSES = (
    Fault(
        "softmax before the cross-entropy",
        ("double_softmax",),
        {_OF_CLASSES: _with(_of_probabilities(_classes)), DECODERS: _with(_of_probabilities(_tokens))},
    ),
    Fault("sigmoid before a loss of logits", ("double_softmax",), {_OF_CLASSES: _with(_of_each_class(Tensor.sigmoid))}),
    Fault("squared error of a column and a row", ("labels_unrelated",), {_OF_CLASSES: _with(_of_score(_square))}),
    Fault(
        "squared error maximised",
        ("loss_rises",),
        {_OF_CLASSES: _with(_of_score(lambda score, target: -_mean_square(score, target)))},
    ),
)
ODD_LOSSES: tuple[tuple[str, dict[tuple[str, ...], Change]], ...] = (
    (
        "loss of log-probabilities",
        {
            CLASSIFIERS: _with(_of_log_probabilities(_classes)),
            ("own causal", "llama", "gpt2"): _with(_of_log_probabilities(_tokens)),
        },
    ),
    ("loss of logits of each class", {CLASSIFIERS: _with(_of_each_class(lambda logits: logits))}),
    ("squared error of a score", {CLASSIFIERS: _with(_of_score(_mean_square))}),
)
