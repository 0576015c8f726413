"""Sound scripts that look odd, of a fourth blind set: the nearest neighbours of the faults in `fourth`, and others.

They were written without having read the checks.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor, nn

from benchmarks.checkup import changes
from benchmarks.checkup import fourth_attentions as attend
from benchmarks.checkup import odd_fourth_losses as losses
from benchmarks.checkup import odd_fourth_models as models
from benchmarks.checkup import odd_fourth_trainings as odd
from benchmarks.checkup.architectures import EVERY_ARCHITECTURE
from benchmarks.checkup.attentions import by_hand
from benchmarks.checkup.data import Batch
from benchmarks.checkup.edits import batchwise, optimized, prepared, replace_batches
from benchmarks.checkup.faults import CAUSAL, CLASSIFIERS
from benchmarks.checkup.fourth import sharpness_aware, untie
from benchmarks.checkup.fourth_data import OF_TEXTS, in_order_of_length, weighed_by_counts
from benchmarks.checkup.fourth_flow import (
    as_bytes,
    by_blocks,
    prefix_seen,
    replaced,
    with_epsilon,
    with_fourier,
)
from benchmarks.checkup.odd_trainings import fine_tuned
from benchmarks.checkup.optimizers import moved_by
from benchmarks.checkup.scripts import Case, Change
from benchmarks.checkup.second_flow import deep

_MOST = ("own causal", "llama", "bert classifier", "vit")
_SOME = ("own causal", "llama", "vit")
_FOURIER = prepared(changes.on_outputs(changes.LAYER, with_fourier, first_only=True))
_EXPERTS_PER_TEXT = prepared(replaced(r".*\.mlp", models.ExpertsPerText))


def _with_loss(loss: Callable[[nn.Module, Batch], Tensor]) -> Change:
    """Return the change of scripts that have another loss."""
    return lambda script: replace(script, loss=loss)


ODDITIES: tuple[tuple[str, Mapping[tuple[str, ...], Change]], ...] = (
    # What trains
    ("parameters kept by their whole names", {("own causal", "bert", "vit"): optimized(odd.by_whole_names)}),
    ("head untied before the optimizer was made", {("gpt2", "bert", "t5"): prepared(untie)}),
    ("tensors of two axes or more decay", {("torch encoder", "vit"): optimized(odd.of_all_axes)}),
    ("head's weight a parameter times a number, told to PyTorch", {_SOME: prepared(models.scaled_head)}),
    (
        "weights frozen for a look at gradients, and thawed",
        {("own causal", "own encoder", "llama", "vit"): losses.looked_at},
    ),
    (
        "experts with a loss for their balance",
        {
            ("own causal", "llama", "gpt2", "vit"): lambda script: models.with_balance(
                prepared(replaced(r".*\.mlp", models.BalancedExperts))(script)
            )
        },
    ),
    (
        "two losses with scales that are learned",
        {
            ("own encoder", "torch encoder", "vit"): lambda script: replace(
                prepared(losses.with_two_scales)(script), loss=losses.scaled_by_learning
            )
        },
    ),
    (
        "probe of states without a gradient",
        {("own encoder", "vit"): lambda script: losses.probed(prepared(losses.with_probe)(script))},
    ),
    (
        "dropout that acts in evaluations too",
        {("own causal", "own encoder", "torch encoder"): prepared(models.dropout_by_function)},
    ),
    ("deep copy evaluated after each step", {("own causal", "bert", "t5"): odd.copy_evaluated}),
    ("a tenth of the paths dropped", {("own causal", "llama", "vit"): prepared(models.paths_dropped)}),
    ("half of the patches dropped", {("vit",): prepared(models.half_of_patches)}),
    # Masks, mixing and depth
    ("prefix of the mask shorter than that without labels", {CAUSAL: batchwise(prefix_seen(3))}),
    (
        "blocks of four that predict the next block",
        {CAUSAL: lambda script: replace(batchwise(changes.with_mask(by_blocks))(script), loss=losses.four_ahead)},
    ),
    (
        "Fourier transform over tokens, no padding",
        {("vit",): _FOURIER, ("own encoder",): lambda script: _FOURIER(models.without_padding(script))},
    ),
    (
        "experts that choose tokens of each text or image",
        {
            ("vit",): _EXPERTS_PER_TEXT,
            ("own encoder",): lambda script: _EXPERTS_PER_TEXT(models.without_padding(script)),
        },
    ),
    ("texts, masks and labels sorted by length", {OF_TEXTS: batchwise(models.sorted_by_length)}),
    (
        "convolution over real tokens",
        {("own encoder", "bert", "bert classifier", "roberta classifier"): prepared(models.convolved_real)},
    ),
    ("mask given to encoder and decoder by the script", {("t5", "bart"): _with_loss(losses.by_the_script)}),
    (
        "scores filled where the added mask is negative",
        {("own encoder", "bert", "roberta classifier"): prepared(by_hand(attend.filled_where_negative))},
    ),
    (
        "texts and heads flattened, and taken apart again",
        {("own causal", "llama", "bert", "vit"): prepared(by_hand(attend.heads_after_texts))},
    ),
    ("window and the first token", {CAUSAL: batchwise(changes.with_mask(models.first_and_near))}),
    (
        "positions added again in each layer",
        {("own causal", "bert classifier", "roberta classifier"): prepared(models.positions_in_each_layer)},
    ),
    ("scores capped at fifty", {("own causal", "gpt2", "bert", "vit"): prepared(by_hand(attend.capped))}),
    ("norms with an epsilon of 1e-3", {("torch encoder", "bert", "bart", "vit"): prepared(with_epsilon(1e-3))}),
    ("weights loaded from 8 bits with their scales", {_MOST: prepared(as_bytes(with_scale=True))}),
    (
        "Kaiming's weights in 12 layers with norms",
        {("own causal", "own encoder", "llama", "vit"): deep(prepared(models.kaiming_in_layers))},
    ),
    # Losses and labels
    ("entropy of predictions rewarded", {(*CAUSAL, "qwen2"): _with_loss(losses.with_entropy)}),
    ("repeats made unlikely", {CAUSAL: _with_loss(losses.unlikely_repeats)}),
    ("clipped ratios of drawn words", {CAUSAL: fine_tuned(_with_loss(losses.clipped_ratios))}),
    (
        "outputs put back by the inverse order",
        {OF_TEXTS: lambda script: in_order_of_length(script, inverse=True)},
    ),
    ("classes weighed by one over their number, at least one", {CLASSIFIERS: _with_loss(weighed_by_counts(1))}),
    ("squared distance of probabilities", {CLASSIFIERS: _with_loss(losses.squares_of_shares)}),
    ("cross entropy and one less the probability", {CLASSIFIERS: _with_loss(losses.with_polynomial)}),
    ("hard half of the samples", {("own encoder", "bert classifier", "vit"): _with_loss(losses.hard_half)}),
    ("logits adjusted by shares", {("own encoder", "torch encoder", "vit"): _with_loss(losses.adjusted_by_shares)}),
    ("higher scores than those of random texts", {OF_TEXTS: _with_loss(losses.better_than_random)}),
    ("loss divided by its own value", {_MOST: losses.over_own_value}),
    ("loss averaged over three passes", {("own causal", "bert", "t5"): losses.over_passes}),
    ("embeddings moved against the model", {OF_TEXTS: losses.adversarial}),
    # Optimization
    (
        "sharpness-aware descent",
        {("own causal", "own encoder", "vit"): lambda script: sharpness_aware(script, 0.05, comes_back=True)},
    ),
    ("fast and slow means of gradients", {_SOME: optimized(moved_by(5e-4, odd.two_means))}),
    ("descent without a schedule, by means of weights", {CAUSAL: optimized(moved_by(0.3, odd.without_schedule))}),
    ("Adamax", {("own causal", "bert", "t5"): optimized(odd.adamax)}),
    ("gradients clipped after they are unscaled", {_SOME: odd.unscaled_then_clipped}),
    ("bfloat16 weights rounded at random", {_SOME: odd.stochastic_rounding}),
    ("gradients of validation kept aside", {("own causal", "bert", "vit"): odd.gradients_of_validation_aside}),
    ("hooks of a small decay, added once", {_SOME: prepared(odd.hooks_of_decay)}),
    (
        "optimizer's state cleared now and then",
        {_MOST: lambda script: replace(script, after_step=odd.optimizer_restarted)},
    ),
    ("one cycle of the rate", {_MOST: lambda script: replace(script, schedule=odd.one_cycle)}),
    # Data
    ("another length in each batch", {(*CAUSAL, "bert"): models.lengths_in_turns}),
    ("texts that grow by a word at each step", {CAUSAL: lambda script: replace_batches(script, models.growing_texts)}),
    ("end of each text before its start", {(*CAUSAL, "qwen2"): batchwise(models.end_first)}),
    (
        "one word hidden in each text",
        {("bert",): batchwise(models.one_word_hidden), ("own encoder",): models.own_one_word_hidden},
    ),
    (
        "other shares hidden in each text, and weighed",
        {("bert",): models.masked_diffusion, ("own encoder",): models.own_masked_diffusion},
    ),
    ("some words read as the model predicts them", {CAUSAL: models.partly_predicted}),
)

ODD_FOURTH = [
    Case(name, architecture, change(EVERY_ARCHITECTURE[architecture]), part="blind-4")
    for name, of in ODDITIES
    for architectures_of, change in of.items()
    for architecture in architectures_of
]
