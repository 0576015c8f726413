"""Oddities of losses of a fifth blind set, each with the architectures that learn by it, for `odd_fifth`."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor, nn

from benchmarks.checkup import data
from benchmarks.checkup import odd_fifth_losses as losses
from benchmarks.checkup import odd_fifth_trainings as trainings
from benchmarks.checkup.data import Batch
from benchmarks.checkup.edits import prepared
from benchmarks.checkup.faults import CAUSAL, CLASSIFIERS
from benchmarks.checkup.fifth_data import encoder_of_tokens, hidden
from benchmarks.checkup.fifth_flow import several_targets
from benchmarks.checkup.fifth_losses import of_two_heads, preferring, taught, two_views, with_second_head
from benchmarks.checkup.fifth_wiring import OF_CLASSES
from benchmarks.checkup.nets import VOCABULARY
from benchmarks.checkup.scripts import Change

_MOST = ("own causal", "llama", "bert classifier", "vit")


def _with_loss(loss: Callable[[nn.Module, Batch], Tensor]) -> Change:
    """Return the change of scripts that have another loss."""
    return lambda script: replace(script, loss=loss)


OF_LOSSES: tuple[tuple[str, Mapping[tuple[str, ...], Change]], ...] = (
    (
        "two heads with a loss each",
        {CLASSIFIERS: lambda script: replace(prepared(with_second_head)(script), loss=of_two_heads(uses_both=True))},
    ),
    ("two views, labels in their order", {OF_CLASSES: _with_loss(two_views(in_same_order=True))}),
    ("several targets of each text", {("t5", "bart"): _with_loss(several_targets(in_same_order=True))}),
    ("teacher's probabilities in the cross entropy", {(*CAUSAL, "qwen2"): taught(of_logits=True)}),
    (
        "divergence from a teacher the other way round",
        {CAUSAL: losses.from_teacher_backwards},
    ),
    ("preferences by sums over real words", {(*CAUSAL, "qwen2"): _with_loss(preferring(over_padding=False))}),
    ("odds of preferences", {CAUSAL: _with_loss(losses.odds_of_preferences)}),
    ("means of preferences with a margin", {CAUSAL: _with_loss(losses.margin_of_preferences)}),
    ("classes ahead by a margin", {CLASSIFIERS: _with_loss(losses.hinge)}),
    ("classes in an order", {CLASSIFIERS: _with_loss(losses.ordered)}),
    ("number and its variance", {("own encoder", "bert classifier", "vit"): _with_loss(losses.gaussian)}),
    ("quantiles of a number", {("own encoder", "torch encoder", "vit"): _with_loss(losses.quantiles)}),
    ("Huber's loss of a number", {("own encoder", "vit"): _with_loss(losses.huber)}),
    ("overlap of probabilities and classes", {("own encoder", "vit"): _with_loss(losses.dice)}),
    ("asymmetric loss of each class", {("own encoder", "bert classifier", "vit"): _with_loss(losses.asymmetric)}),
    ("loss that bears wrong labels", {("own encoder", "torch encoder", "vit"): _with_loss(losses.robust)}),
    ("cross entropy both ways", {("own encoder", "bert classifier", "vit"): _with_loss(losses.symmetric)}),
    (
        "classes and a contrast of classes",
        {("own encoder", "torch encoder", "vit"): _with_loss(losses.with_contrast_of_classes)},
    ),
    ("pairs judged by sigmoids", {("sentence encoder",): _with_loss(losses.pairs_by_sigmoid)}),
    ("correlations of features", {("sentence encoder",): _with_loss(losses.pairs_by_correlation)}),
    ("variances of features", {("sentence encoder",): _with_loss(losses.pairs_by_variance)}),
    ("mean of each text, then of the texts", {CAUSAL: _with_loss(losses.mean_of_means)}),
    ("sum of losses over a constant", {CAUSAL: _with_loss(losses.sum_over_constant)}),
    ("words weighed by their rank", {CAUSAL: _with_loss(losses.weighed_by_rank)}),
    ("easy words left out", {CAUSAL: _with_loss(losses.without_easy_words)}),
    ("later words weighed more", {(*CAUSAL, "opt"): _with_loss(losses.growing_weights)}),
    ("words that follow at all, too", {CAUSAL: _with_loss(losses.of_words_at_all)}),
    (
        "first words in any alignment",
        {
            ("own encoder",): lambda script: replace(
                encoder_of_tokens(hidden, "ForMaskedLM", VOCABULARY)[("own encoder",)](script),
                batches=data.classified_texts(shortest=10),
                loss=losses.in_any_alignment,
            ),
            ("bert",): lambda script: replace(
                script, batches=data.classified_texts(shortest=10), loss=losses.in_any_alignment
            ),
        },
    ),
    ("loss times a thousand", {_MOST: trainings.thousandfold}),
    ("loss in bits", {("own causal", "gpt2", "t5"): trainings.in_bits}),
    ("two losses sent back one after the other", {("own encoder", "torch encoder", "vit"): trainings.two_backwards}),
)
