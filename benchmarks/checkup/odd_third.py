"""Sound scripts that look odd, of a third blind set: the nearest neighbours of the faults in `third`, and others.

They were written without having read the checks.
"""

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from benchmarks.checkup import changes, data
from benchmarks.checkup import odd_third_models as models
from benchmarks.checkup import odd_third_trainings as odd
from benchmarks.checkup import third_attentions as attend
from benchmarks.checkup.architectures import EVERY_ARCHITECTURE
from benchmarks.checkup.attentions import by_hand
from benchmarks.checkup.edits import batchwise, optimized, prepared, replace_batches, sgd
from benchmarks.checkup.faults import CAUSAL, CLASSIFIERS
from benchmarks.checkup.odd_trainings import fine_tuned
from benchmarks.checkup.scripts import Case, Change
from benchmarks.checkup.second_flow import ATTENDED, deep
from benchmarks.checkup.third import absolute_penalised, assign_weights, grouped, with_adapters
from benchmarks.checkup.third_flow import OF_BERT

_DECODERS = (*CAUSAL, "qwen2")
_MOST = ("own causal", "llama", "bert classifier", "vit")


def _head_of(model: nn.Module) -> nn.Module:
    return next(changes.named(model, r"head|classifier"))


ODDITIES: tuple[tuple[str, Mapping[tuple[str, ...], Change]], ...] = (
    # What trains
    (
        "weights assigned before the optimizer is made",
        {("own causal", "torch encoder", "llama", "vit"): prepared(assign_weights)},
    ),
    (
        "layer made by a forward before the optimizer is made",
        {("own causal", "own encoder", "llama", "vit"): prepared(models.lazy_layer_made)},
    ),
    ("table of segments frozen", {(*OF_BERT, "sentence encoder"): prepared(odd.freeze_segments)}),
    (
        "own adapters, the second matrix zero",
        {("own causal", "llama", "t5", "vit"): fine_tuned(prepared(with_adapters(starts_at_zero=False)))},
    ),
    (
        "flags of training set module by module",
        {
            ("own causal", "torch encoder", "gpt2", "bert"): lambda script: replace(
                prepared(lambda model: model.eval())(script), mode=lambda step: None, before_step=odd.flags_by_hand
            )
        },
    ),
    (
        "bias of the head set to logarithms of shares",
        {
            ("own causal", "own encoder", "torch encoder", "vit"): prepared(
                lambda model: models.logarithms_of_shares(_head_of(model))
            )
        },
    ),
    (
        "learned scale of a tenth on each branch of 12 layers",
        {("own causal", "llama", "vit"): deep(prepared(models.scale_branches))},
    ),
    ("noise on embeddings", {("own causal", "llama", "bert", "gpt2"): prepared(models.noisy_embeddings)}),
    ("squares of ReLUs", {("own causal", "own encoder"): prepared(models.squared_relu)}),
    # Masks and mixing
    ("softmax of logarithms of weights", {ATTENDED: prepared(by_hand(attend.softmax_of_logarithms))}),
    (
        "gates of the largest values so far",
        {_DECODERS: prepared(changes.on_outputs(changes.LAYER, models.gated_by_earlier, first_only=True))},
    ),
    (
        "norm over tokens and width of images",
        {("vit",): prepared(changes.on_outputs(changes.LAYER, models.normed_over_image, first_only=True))},
    ),
    ("norm of each feature over real tokens", {("own encoder",): prepared(models.normed_over_real)}),
    (
        "mask over queries and keys",
        {
            ("own encoder",): prepared(models.own_queries_and_keys_masked),
            OF_BERT: batchwise(models.queries_and_keys_masked),
        },
    ),
    ("mask of four axes that is true where seen", {OF_BERT: batchwise(models.true_where_seen)}),
    (
        "minus infinity in masked rows, whose weights are zero",
        {
            ("llama", "gpt2", "qwen2"): lambda script: prepared(by_hand(attend.infinite_rows_zeroed))(
                replace(script, batches=data.language(side="left"))
            )
        },
    ),
    ("keys and values shared by heads", {ATTENDED: prepared(by_hand(attend.keys_of_one_head))}),
    (
        "first state with tokens first",
        {
            ("own encoder",): prepared(models.own_first_of_transposed),
            ("torch encoder",): lambda script: replace(script, build=models.FirstOfTransposed),
        },
    ),
    ("documents counted at each begin", {_DECODERS: batchwise(models.two_documents)}),
    ("positions counted from the end", {("bert", "bert classifier", "gpt2"): batchwise(models.positions_from_the_end)}),
    ("scores multiplied by the logarithm of the length", {ATTENDED: prepared(by_hand(attend.by_length))}),
    ("norms of queries and keys with gains of 1", {ATTENDED: prepared(by_hand(attend.with_gains_of_one))}),
    # Losses and labels
    ("padded by the last word, not labelled", {_DECODERS: batchwise(models.padded_by_last_word)}),
    (
        "words of the prompt weighed by a tenth",
        {_DECODERS: lambda script: replace(script, loss=odd.prompts_weighed_by_a_tenth)},
    ),
    ("loss of a decoder by the script", {("t5", "bart"): lambda script: replace(script, loss=odd.by_script)}),
    (
        "sums of the softmax kept small",
        {("own causal", "llama", "gpt2", "bert classifier"): lambda script: replace(script, loss=odd.with_small_sums)},
    ),
    ("margins of classes", {("own encoder", "torch encoder", "vit"): lambda script: replace(script, loss=odd.margins)}),
    ("absolute weights penalised by 1e-5", {_MOST: lambda script: absolute_penalised(script, 1e-5)}),
    # Optimization
    ("linear decay to a tenth", {_MOST: lambda script: replace(script, schedule=odd.to_a_tenth)}),
    (
        "small rate of SGD with a momentum of 0.99",
        {("own causal", "gpt2"): optimized(sgd(0.01, momentum=0.99))},
    ),
    ("rate that doubles until its peak", {_MOST: lambda script: replace(script, schedule=odd.growing)}),
    ("bfloat16 weights with what rounding left out", {("own causal", "llama", "vit"): odd.compensated}),
    ("gradients cleared by hand", {("own causal", "llama", "t5", "vit"): odd.cleared_by_hand}),
    ("two groups, both cleared", {("own encoder", "gpt2", "bert"): optimized(grouped)}),
    ("gradients clipped number by number", {("own causal", "llama", "t5", "vit"): odd.clipped_by_value}),
    ("steps by shares of norms", {("own causal", "llama", "vit"): optimized(odd.trusted)}),
    # Data
    ("four batches with other noise, epochs told", {(*CLASSIFIERS, "own causal", "llama"): models.few_with_noise}),
    (
        "as many of each class in each batch",
        {(*CLASSIFIERS, "roberta classifier"): lambda script: replace_batches(script, models.all_classes_alike)},
    ),
    ("half of the texts without labels", {(*_DECODERS, "bert", "t5"): batchwise(models.half_without_labels)}),
    ("texts read backwards", {_DECODERS: batchwise(models.backwards)}),
    ("words read hidden, and predicted", {_DECODERS: batchwise(models.some_words_hidden)}),
)

ODD_THIRD = [
    Case(name, architecture, change(EVERY_ARCHITECTURE[architecture]), part="blind-3")
    for name, of in ODDITIES
    for architectures_of, change in of.items()
    for architecture in architectures_of
]
