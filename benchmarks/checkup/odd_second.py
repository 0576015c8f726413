"""Sound scripts that look odd, of the second blind set: the nearest neighbours of the faults in `second`, and others.

They were written without having read the checks.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor, nn
from torch.optim import ASGD, AdamW, RAdam

from benchmarks.checkup import changes
from benchmarks.checkup import odd_second_data as odd_data
from benchmarks.checkup import odd_second_models as models
from benchmarks.checkup import odd_second_trainings as odd
from benchmarks.checkup.architectures import EVERY_ARCHITECTURE
from benchmarks.checkup.attentions import by_hand
from benchmarks.checkup.data import Batch
from benchmarks.checkup.edits import batchwise, optimized, prepared, prepared_late, replace_batches
from benchmarks.checkup.faults import CAUSAL
from benchmarks.checkup.optimizers import descend, moved_by
from benchmarks.checkup.scripts import Case, Change, adamw

_MOST = ("own causal", "llama", "bert classifier", "vit")
_ATTENDED = ("own causal", "own encoder", "llama", "bert", "vit")
_DECODERS = (*CAUSAL, "qwen2")
_ENCODERS = ("own encoder", "torch encoder", "bert", "bert classifier")
_OF_CLASSES = ("own encoder", "bert classifier", "vit")


def _with_loss(loss: Callable[[nn.Module, Batch], Tensor]) -> Change:
    return lambda script: replace(script, loss=loss)


ODDITIES: tuple[tuple[str, Mapping[tuple[str, ...], Change]], ...] = (
    # What trains
    (
        "weight norm before the optimizer is made",
        {
            ("torch encoder", "llama", "bert", "vit"): prepared(
                changes.on_modules(models.FEED_FORWARD, models.weight_norm)
            )
        },
    ),
    ("head tied after the optimizer was made", {("own causal", "llama"): prepared_late(odd.tie_late)}),
    ("old head still in the optimizer", {_MOST: optimized(odd.with_stale_group)}),
    (
        "upper layer copied from a frozen teacher",
        {("own causal", "llama", "gpt2", "bert classifier", "vit"): prepared(odd.upper_from_lower)},
    ),
    (
        "sinusoids in a frozen table",
        {("own causal", "own encoder", "torch encoder", "bert"): prepared(models.frozen_sinusoids)},
    ),
    (
        "a tenth of the gradient reaches the embeddings",
        {("own causal", "llama", "bert"): prepared(changes.on_outputs(changes.EMBEDDING, models.mostly_detached))},
    ),
    (
        "8-bit weights with a straight-through gradient",
        {("own causal", "llama", "bert", "vit"): prepared(changes.on_modules(models.FEED_FORWARD, models.quantised))},
    ),
    (
        "states rounded with a straight-through gradient",
        {
            ("own causal", "gpt2", "vit"): prepared(
                changes.on_outputs(changes.LAYER, models.rounded_straight_through, first_only=True)
            )
        },
    ),
    ("losses of every layer", {("own causal",): _with_loss(odd.every_layer)}),
    ("dropout of attention alone", {("torch encoder", "gpt2", "bert", "t5"): odd.dropout_of_attention}),
    ("gradients centred", {_MOST: prepared(odd.centred_gradients)}),
    # Masks and mixing
    (
        "convolution over tokens that looks back",
        {_DECODERS: prepared(changes.on_outputs(changes.LAYER, models.looking_back, first_only=True))},
    ),
    (
        "shift of tokens with nothing in front",
        {
            ("own causal", "llama", "gpt2", "own encoder", "bert", "vit"): prepared(
                changes.on_outputs(changes.EMBEDDING, models.shifted)
            )
        },
    ),
    (
        "norm of groups within each token",
        {
            ("own causal", "gpt2", "own encoder", "bert"): prepared(
                changes.on_outputs(changes.LAYER, models.grouped_norm, first_only=True)
            )
        },
    ),
    (
        "masks repeated over heads",
        {
            ("own encoder",): prepared(models.own_masks_of_heads),
            ("bert", "bert classifier"): batchwise(models.masks_of_heads),
        },
    ),
    (
        "mask of booleans",
        {
            ("own encoder",): prepared(models.own_bool_mask),
            ("bert", "bert classifier", "llama", "t5"): batchwise(models.bool_mask),
        },
    ),
    ("mask of floats", {("own encoder", "torch encoder", "bert", "gpt2"): batchwise(models.float_mask)}),
    ("mask added by the script", {("bert", "bert classifier", "roberta classifier"): batchwise(models.added_mask)}),
    ("first token hidden from all", {("own encoder", "torch encoder", "bert"): batchwise(models.not_the_first)}),
    ("no token sees itself", {("bert",): batchwise(changes.with_mask(models.all_but_itself))}),
    ("tokens first, by transposes", {("torch encoder",): lambda script: replace(script, build=models.TokensFirst)}),
    ("positions that start anywhere", {("llama", "gpt2", "qwen2"): batchwise(models.offset_positions)}),
    ("largest values over real tokens", {("own encoder",): models.max_pooled}),
    # Attention and weights
    ("linear attention", {_ATTENDED: prepared(by_hand(models.linear))}),
    ("attention by sigmoids", {_ATTENDED: prepared(by_hand(models.sigmoid))}),
    ("softmax with one more in the sum", {_ATTENDED: prepared(by_hand(models.with_one_more))}),
    (
        "mask after the softmax, then normalised",
        {("own encoder", "bert", "bert classifier"): prepared(by_hand(models.masked_then_renormalised))},
    ),
    ("queries and keys normalised", {_ATTENDED: prepared(by_hand(models.of_normed))}),
    ("orthogonal weights", {("own causal", "own encoder", "vit"): prepared(changes.on_matrices(nn.init.orthogonal_))}),
    ("uniform weights of Xavier", {_MOST: prepared(changes.on_matrices(nn.init.xavier_uniform_))}),
    ("embeddings times the root of the width", {("own causal", "llama"): prepared(models.widened)}),
    ("logits divided by four", {("own causal", "llama", "vit"): prepared(models.small_logits)}),
    ("norms after the sums", {("own causal",): prepared(models.post_norm)}),
    ("one layer four times", {("own causal", "own encoder"): prepared(models.shared_layer)}),
    # Losses and labels
    ("all tokens labelled, padding weighed by zero", {_DECODERS: _with_loss(odd.weighed_by_labels)}),
    ("padding labelled by its id, which is ignored", {_DECODERS: _with_loss(odd.padding_ignored)}),
    ("labels smoothed by hand over real tokens", {_DECODERS: _with_loss(odd.smoothed_by_hand)}),
    (
        "labels shifted by the data set alone",
        {_DECODERS: lambda script: replace(batchwise(odd_data.shifted_once)(script), loss=odd.without_shift)},
    ),
    (
        "two words ahead by a further layer",
        {("own causal",): lambda script: prepared(odd.with_further_layer)(replace(script, loss=odd.two_ahead))},
    ),
    ("decoder's inputs made by the script", {("t5", "bart"): batchwise(odd_data.own_decoder_inputs)}),
    ("loss below zero", {("own causal", "own encoder", "gpt2", "t5"): odd.below_zero}),
    ("perplexity of the mean loss", {("own causal", "gpt2", "bert"): odd.perplexity}),
    ("one output with a sigmoid", {_OF_CLASSES: _with_loss(odd.of_sigmoid)}),
    ("squares of weights penalised by 1e-4", {("own causal", "llama", "vit"): odd.lightly_penalised}),
    # Optimization
    (
        "descent by hand",
        {("own encoder", "gpt2", "t5"): optimized(moved_by(0.3, descend))},
    ),
    ("momentum by hand in the gradients", {("own causal", "gpt2"): optimized(odd.momentum_by_hand)}),
    ("loss summed, rate of SGD to match", {("own causal", "llama", "bert"): odd.summed}),
    ("cosine with restarts", {("own causal", "llama", "vit"): lambda script: replace(script, schedule=odd.restarts)}),
    ("Adam's epsilon of 1e-3", {("own causal", "llama", "vit"): optimized(adamw(3e-3, eps=1e-3))}),
    (
        "AMSGrad with a slow second mean",
        {
            ("own encoder", "bert"): optimized(
                lambda model: [AdamW(model.parameters(), 1e-3, (0.5, 0.9999), amsgrad=True)]
            )
        },
    ),
    ("RAdam", {("own causal", "vit"): optimized(lambda model: [RAdam(model.parameters(), 3e-3)])}),
    ("ASGD", {("own encoder", "gpt2"): optimized(lambda model: [ASGD(model.parameters(), 0.3)])}),
    ("half of the way back to slow weights", {("own causal", "bert classifier", "vit"): odd.looking_ahead}),
    ("average swapped in for an evaluation", {("own causal", "llama", "t5"): odd.averaged_aside}),
    (
        "weights kept within bounds",
        {("own encoder", "llama", "vit"): lambda script: replace(script, after_step=odd.bounded)},
    ),
    # Data
    (
        "the same prompt before each text",
        {("own encoder", "torch encoder"): batchwise(odd_data.prompted)},
    ),
    ("images taken twice, with other noise", {("vit",): batchwise(odd_data.seen_twice)}),
    ("drawn with replacement", {("own causal", "own encoder", "bert", "vit"): odd_data.with_replacement}),
    (
        "two old samples in each batch",
        {("own causal", "own encoder", "t5", "vit"): lambda script: replace_batches(script, odd_data.with_old_samples)},
    ),
    ("two of the classes in each batch", {_OF_CLASSES: lambda script: replace_batches(script, odd_data.two_classes)}),
    (
        "texts grouped by length",
        {("own encoder", "llama", "bert", "t5"): lambda script: replace_batches(script, odd_data.of_similar_length)},
    ),
)

ODD_SECOND = [
    Case(name, architecture, change(EVERY_ARCHITECTURE[architecture]), part="blind-2")
    for name, of in ODDITIES
    for architectures_of, change in of.items()
    for architecture in architectures_of
]
