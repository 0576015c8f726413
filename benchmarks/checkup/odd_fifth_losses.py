"""Oddities of sound losses of a fifth blind set, for `odd_fifth`."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.checkup.blind_data import logits_of
from benchmarks.checkup.data import Batch
from benchmarks.checkup.fifth_losses import aligned
from benchmarks.checkup.nets import CLASSES, FIRST_WORD, VOCABULARY
from benchmarks.checkup.odd_trainings import name_of, pretrained_model, with_teacher
from benchmarks.checkup.scripts import Script
from benchmarks.checkup.second_data import next_tokens

_MARGIN, _WORDS = 0.5, 4


def hinge(model: nn.Module, batch: Batch) -> Tensor:
    """Ask that the right class be ahead by one."""
    return F.multi_margin_loss(*aligned(model, batch))


def ordered(model: nn.Module, batch: Batch) -> Tensor:
    """Take classes as an order, and ask of each border whether it is passed."""
    logits, labels = aligned(model, batch)
    passed = (labels[:, None] > torch.arange(CLASSES - 1)).float()
    return F.binary_cross_entropy_with_logits(logits[:, : CLASSES - 1], passed)


def gaussian(model: nn.Module, batch: Batch) -> Tensor:
    """Predict a number and its variance."""
    outputs, labels = aligned(model, batch)
    return F.gaussian_nll_loss(outputs[:, 0], labels.float(), F.softplus(outputs[:, 1]) + 0.01)


def quantiles(model: nn.Module, batch: Batch) -> Tensor:
    """Predict four quantiles of a number."""
    outputs, labels = aligned(model, batch)
    shares = torch.tensor([0.1, 0.4, 0.6, 0.9])
    differences = labels[:, None] - outputs
    return torch.maximum(shares * differences, (shares - 1) * differences).mean()


def huber(model: nn.Module, batch: Batch) -> Tensor:
    """Predict a number by a loss that is linear far away."""
    outputs, labels = aligned(model, batch)
    return F.huber_loss(outputs[:, 0], labels.float())


def dice(model: nn.Module, batch: Batch) -> Tensor:
    """Return one less the overlap of probabilities and classes."""
    logits, labels = aligned(model, batch)
    shares, right = logits.softmax(-1), F.one_hot(labels, CLASSES)
    return 1 - ((2 * (shares * right).sum(0) + 1) / ((shares + right).sum(0) + 1)).mean()


def asymmetric(model: nn.Module, batch: Batch) -> Tensor:
    """Weigh wrong classes by the fourth power of their probabilities."""
    logits, labels = aligned(model, batch)
    right, shares = F.one_hot(labels, CLASSES), logits.sigmoid()
    return -(right * F.logsigmoid(logits) + (1 - right) * shares**4 * F.logsigmoid(-logits)).sum(-1).mean()


def robust(model: nn.Module, batch: Batch) -> Tensor:
    """Return the loss between cross entropy and absolute error."""
    logits, labels = aligned(model, batch)
    return ((1 - logits.softmax(-1).gather(-1, labels[:, None]).clamp(min=1e-6) ** 0.7) / 0.7).mean()


def symmetric(model: nn.Module, batch: Batch) -> Tensor:
    """Add the cross entropy of the labels by the predictions, with a bound for what is wrong."""
    logits, labels = aligned(model, batch)
    wrong = 4 * (1 - logits.softmax(-1).gather(-1, labels[:, None]))
    return F.cross_entropy(logits, labels) + wrong.mean()


def with_contrast_of_classes(model: nn.Module, batch: Batch) -> Tensor:
    """Ask that samples of one class lie near one another, too."""
    logits, labels = aligned(model, batch)
    vectors = F.normalize(logits, dim=-1)
    is_self = torch.eye(len(labels), dtype=torch.bool)
    shares = (vectors @ vectors.T / 0.5).masked_fill(is_self, -1e9).log_softmax(-1)
    is_same = (labels[:, None] == labels) & ~is_self
    near = -(shares * is_same).sum(1) / is_same.sum(1).clamp(min=1)
    return F.cross_entropy(logits, labels) + 0.1 * near.mean()


def pairs_by_sigmoid(model: nn.Module, batch: Batch) -> Tensor:
    """Judge each pair of a first and a second half by a sigmoid."""
    first, second = F.normalize(model(batch["input_ids"], batch["attention_mask"]), dim=-1).chunk(2)
    scores = 10 * first @ second.T - 5
    return -F.logsigmoid(scores * (2 * torch.eye(len(first)) - 1)).sum(-1).mean()


def pairs_by_correlation(model: nn.Module, batch: Batch) -> Tensor:
    """Ask that features of both halves be correlated with themselves and with no other."""
    halves = model(batch["input_ids"], batch["attention_mask"]).chunk(2)
    first, second = ((half - half.mean(0)) / (half.std(0) + 1e-3) for half in halves)
    difference = first.T @ second / len(first) - torch.eye(first.shape[1])
    return difference.diagonal().square().sum() + 0.01 * difference.square().sum()


def pairs_by_variance(model: nn.Module, batch: Batch) -> Tensor:
    """Ask that halves be near, and features vary and not covary."""
    first, second = model(batch["input_ids"], batch["attention_mask"]).chunk(2)
    loss = 25 * F.mse_loss(first, second)
    for half in (first, second):
        centred = half - half.mean(0)
        covariances = centred.T @ centred / (len(half) - 1)
        loss = loss + 25 * F.relu(1 - (centred.var(0) + 1e-4).sqrt()).mean()
        loss = loss + (covariances.square().sum() - covariances.diagonal().square().sum()) / half.shape[1]
    return loss


def _of_words(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return the losses of the next words, where these are real, and the words."""
    logits, labels = next_tokens(model, batch)
    return F.cross_entropy(logits.mT, labels, reduction="none"), batch["attention_mask"][:, 1:], labels


def mean_of_means(model: nn.Module, batch: Batch) -> Tensor:
    """Average each text, and then the texts."""
    losses, real, _ = _of_words(model, batch)
    return ((losses * real).sum(1) / real.sum(1)).mean()


def sum_over_constant(model: nn.Module, batch: Batch) -> Tensor:
    """Divide the sum of all losses by a constant length."""
    losses, real, _ = _of_words(model, batch)
    return (losses * real).sum() / 100


def weighed_by_rank(model: nn.Module, batch: Batch) -> Tensor:
    """Weigh words by the place in the vocabulary, as if the last ones were rare."""
    losses, real, labels = _of_words(model, batch)
    weights = real * (0.5 + labels / VOCABULARY)
    return (losses * weights).sum() / weights.sum()


def without_easy_words(model: nn.Module, batch: Batch) -> Tensor:
    """Leave out the fifth of the words that the model knows best."""
    losses, real, _ = _of_words(model, batch)
    known = losses[real == 1]
    return known.topk(max(1, len(known) * 4 // 5)).values.mean()


def growing_weights(model: nn.Module, batch: Batch) -> Tensor:
    """Weigh later words more."""
    losses, real, _ = _of_words(model, batch)
    weights = real * torch.linspace(0.2, 1.0, real.shape[1])
    return (losses * weights).sum() / weights.sum()


def _means_of_texts_and_random_words(model: nn.Module, batch: Batch) -> list[Tensor]:
    """Return the mean log-probabilities of the words of each text, and of random words in their place."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    random = torch.where(ids >= FIRST_WORD, torch.randint_like(ids, FIRST_WORD, VOCABULARY), ids)
    means = []
    for each in (ids, random):
        losses, real, _ = _of_words(model, {"input_ids": each, "attention_mask": mask})
        means.append(-(losses * real).sum(1) / real.sum(1))
    return means


def odds_of_preferences(model: nn.Module, batch: Batch) -> Tensor:
    """Add the odds of a text against one of random words to its loss."""
    means = _means_of_texts_and_random_words(model, batch)
    odds = [mean - torch.log1p(-mean.exp().clamp(max=0.999)) for mean in means]
    return -means[0].mean() - 0.1 * F.logsigmoid(odds[0] - odds[1]).mean()


def margin_of_preferences(model: nn.Module, batch: Batch) -> Tensor:
    """Ask that the mean of a text be above that of random words by a margin."""
    means = _means_of_texts_and_random_words(model, batch)
    return -F.logsigmoid(2.0 * (means[0] - means[1]) - _MARGIN).mean()


def of_words_at_all(model: nn.Module, batch: Batch) -> Tensor:
    """Predict from each token all words that follow, in any order, beside the next one."""
    logits, labels = next_tokens(model, batch)
    is_real = batch["attention_mask"][:, 1:]
    following = F.one_hot(labels, VOCABULARY) * is_real[..., None]
    counts = following.flip(1).cumsum(1).flip(1).clamp(max=1).float()
    aside = F.binary_cross_entropy_with_logits(logits[is_real == 1], counts[is_real == 1])
    return F.cross_entropy(logits[is_real == 1], labels[is_real == 1]) + 0.2 * aside


def in_any_alignment(model: nn.Module, batch: Batch) -> Tensor:
    """Write the first words of each text down, wherever (CTC)."""
    shares = logits_of(model, {name: batch[name] for name in ("input_ids", "attention_mask")}).log_softmax(-1)
    targets, lengths = batch["input_ids"][:, 1 : 1 + _WORDS], batch["attention_mask"].sum(1)
    return F.ctc_loss(shares.transpose(0, 1), targets, lengths, torch.full_like(lengths, _WORDS), zero_infinity=True)


def from_teacher_backwards(script: Script) -> Script:
    """Learn a teacher's outputs by the divergence the other way round."""
    name = name_of(script)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        with torch.no_grad():
            targets = aligned(pretrained_model(name), batch)[0].log_softmax(-1)
        shares = aligned(model, batch)[0].log_softmax(-1)
        return (shares.exp() * (shares - targets)).sum(-1).mean()

    return replace(with_teacher(script), loss=loss)
