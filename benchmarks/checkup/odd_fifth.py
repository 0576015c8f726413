"""Sound scripts that look odd, of a fifth blind set: the nearest neighbours of the faults in `fifth`, and others.

They were written without having read the checks.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from peft import LoHaConfig

from benchmarks.checkup import changes, data
from benchmarks.checkup import fifth_attentions as attend
from benchmarks.checkup import odd_fifth_data as batches
from benchmarks.checkup import odd_fifth_models as models
from benchmarks.checkup import odd_fifth_trainings as odd
from benchmarks.checkup.architectures import EVERY_ARCHITECTURE
from benchmarks.checkup.attentions import by_hand
from benchmarks.checkup.edits import batchwise, optimized, prepared, replace_batches
from benchmarks.checkup.faults import CAUSAL
from benchmarks.checkup.fifth_data import encoder_of_tokens, flipped, hidden, unit
from benchmarks.checkup.fifth_flow import new_words, rotated, swapped
from benchmarks.checkup.fifth_pooling import POOLED, by_attention, last_word, with_pooling
from benchmarks.checkup.fifth_wiring import cosine_head
from benchmarks.checkup.fourth_flow import replaced
from benchmarks.checkup.nets import VOCABULARY
from benchmarks.checkup.odd_fifth_families import FAMILIES
from benchmarks.checkup.odd_fifth_objectives import OF_LOSSES
from benchmarks.checkup.odd_trainings import fine_tuned, of_all, with_adapters
from benchmarks.checkup.optimizers import moved_by
from benchmarks.checkup.scripts import Case, Change
from benchmarks.checkup.second_flow import DECODERS, deep

_MOST = ("own causal", "llama", "bert classifier", "vit")
_SOME = ("own causal", "llama", "vit")
_OWN = ("own causal", "own encoder")
_ATTENDED = ("own causal", "llama", "bert", "vit")
_OF_TEXTS = ("own encoder", "torch encoder", "bert classifier", "roberta classifier")


def _scheduled(schedule: Callable[[int], float]) -> Change:
    """Return the change of scripts that have a schedule."""
    return lambda script: replace(script, schedule=schedule)


ODDITIES: tuple[tuple[str, Mapping[tuple[str, ...], Change]], ...] = (
    # What trains
    (
        "new head at ten times the rate",
        {("own encoder", "torch encoder", "vit"): odd.with_new_head(odd.head_at_tenfold)},
    ),
    ("new head by an optimizer of its own", {("own encoder", "vit"): odd.with_new_head(odd.head_by_its_own)}),
    (
        "rates that decay by layer",
        {("own causal", "gpt2", "bert classifier", "vit"): fine_tuned(optimized(odd.rates_that_decay))},
    ),
    (
        "LoRA scaled by the root of its rank",
        {("llama", "vit"): odd.stabilised_lora("q_proj", "v_proj"), ("t5",): odd.stabilised_lora("q", "v")},
    ),
    (
        "adapters by products of matrices",
        {
            ("llama", "vit"): fine_tuned(
                prepared(with_adapters(LoHaConfig, r=4, alpha=4, target_modules=["q_proj", "v_proj"]))
            )
        },
    ),
    (
        "embeddings of given vectors that train",
        {
            ("own causal", "own encoder", "llama", "bert classifier"): prepared(
                swapped(changes.EMBEDDING, models.vectors_that_train)
            )
        },
    ),
    (
        "new words as the mean of old ones",
        {("gpt2", "bert", "t5", "opt"): fine_tuned(prepared(new_words(models.mean_of_rows)))},
    ),
    (
        "backbone thawed after some steps in training mode",
        {
            ("own encoder", "bert classifier", "vit"): fine_tuned(
                lambda script: replace(script, optimizers=of_all, before_step=odd.thawed_in_training_mode)
            )
        },
    ),
    # Models
    ("rotary positions in an encoder", rotated(attend.rotated_by_tokens)),
    (
        "pooled by attention over real tokens",
        {POOLED: prepared(with_pooling(by_attention(has_mask=True), has_query=True))},
    ),
    ("last word read in the flattened batch", {POOLED: prepared(with_pooling(last_word(has_offset=True)))}),
    ("learned biases of distances", {_ATTENDED: prepared(attend.with_bias_of_distances(0.02))}),
    ("distances penalised by a bell of four", {_ATTENDED: prepared(by_hand(attend.near_by_four))}),
    ("half of the heads dilated", {_SOME: prepared(by_hand(attend.dilated))}),
    ("heads that talk to one another", {_SOME: prepared(by_hand(attend.talking_heads))}),
    ("queries in chunks", {_ATTENDED: prepared(by_hand(attend.in_chunks))}),
    ("eight best keys", {("own causal", "gpt2", "bert"): prepared(by_hand(attend.sparse_top))}),
    ("keys hidden at random", {_SOME: prepared(by_hand(attend.with_dropout))}),
    ("norm of what each head returns", {_SOME: prepared(by_hand(attend.of_normed))}),
    ("gated feed-forward nets", {(*_OWN, "gpt2", "vit"): prepared(replaced(r".*\.mlp", models.GatedNet))}),
    ("norms by mean squares", {(*_OWN, "gpt2", "vit"): prepared(models.rms_norms)}),
    ("no biases", {(*_OWN, "vit"): prepared(models.without_biases)}),
    ("norms before and behind", {_OWN: prepared(models.sandwiched)}),
    ("attention gated by what it reads", {_OWN: prepared(models.gated_attention)}),
    ("attention of PyTorch in own blocks", {_OWN: prepared(models.attention_of_torch)}),
    (
        "scale of a ten-thousandth on branches of 12 layers",
        {("own causal", "llama", "gpt2", "vit"): deep(prepared(models.scaled_branches))},
    ),
    ("values of the first layer mixed in", {(*_OWN, "llama", "bert", "vit"): prepared(models.values_of_first_layer)}),
    ("recurrent net below the layers", {CAUSAL: prepared(models.recurrent_below)}),
    ("mean of earlier tokens added", {DECODERS: prepared(models.earlier_mean_added)}),
    ("embeddings added at the top", {("own causal", "llama", "gpt2"): prepared(models.embeddings_to_the_top)}),
    (
        "narrow embeddings, widened",
        {("own causal", "torch encoder", "llama"): prepared(swapped(changes.EMBEDDING, lambda old: models.Narrow()))},
    ),
    (
        "embeddings by two hashes",
        {("own causal", "own encoder", "llama"): prepared(swapped(changes.EMBEDDING, lambda old: models.Hashed()))},
    ),
    ("weights of three numbers, straight through", {("own causal", "llama", "vit"): prepared(models.ternary_weights)}),
    (
        "cosines of a learned scale as logits",
        {(*_OWN, "llama", "vit"): prepared(cosine_head(2.0, torch.clone))},
    ),
    ("embeddings divided by their mean square", {("own causal", "llama", "bert"): prepared(unit(1e-6))}),
    ("mean of patches", {("vit",): prepared(models.mean_of_patches)}),
    ("four more tokens behind the patches", {("vit",): prepared(models.registers)}),
    ("a quarter of the patches hidden", {("vit",): prepared(models.patches_hidden)}),
    *OF_LOSSES,
    # Optimization
    ("betas of 0.9 and 0.95", {("own causal", "llama", "gpt2", "vit"): optimized(odd.with_betas(0.9, 0.95))}),
    ("no mean of gradients", {("own causal", "bert", "vit"): optimized(odd.with_betas(0.0, 0.99))}),
    ("Adadelta", {_SOME: optimized(odd.adadelta)}),
    ("Adam with a small decay in its gradients", {_SOME: optimized(odd.adam_with_small_decay)}),
    ("Adam's direction by shares of norms", {("own causal", "bert", "t5"): optimized(moved_by(0.01, odd.lamb))}),
    ("gradients clipped by rows", {("own causal", "gpt2", "vit"): odd.clipped_by_units}),
    ("steps with large gradients left out", {_MOST: odd.skipped_where_large}),
    ("average of the weights kept aside", {("own causal", "bert", "t5", "vit"): odd.averaged_aside}),
    ("warm-up, plateau and decay", {_MOST: _scheduled(odd.plateau)}),
    ("rate by the inverse root", {("own causal", "llama", "t5"): _scheduled(odd.inverse_root)}),
    ("triangles of the rate", {_SOME: _scheduled(odd.triangles)}),
    ("rate by a polynomial", {("own encoder", "gpt2", "bert"): _scheduled(odd.polynomial)}),
    ("batches cut and accumulated", {("own causal", "llama", "bert", "vit"): odd.cut_and_accumulated}),
    (
        "dropout that fades",
        {
            ("own causal", "own encoder", "gpt2", "bert"): lambda script: replace(
                script, before_step=odd.dropout_that_fades
            )
        },
    ),
    (
        "dropout that begins late",
        {
            ("own causal", "own encoder", "gpt2"): lambda script: replace(
                script, before_step=odd.dropout_that_begins_late
            )
        },
    ),
    ("autocast to float16 with a scaled loss", {("own causal", "llama", "vit"): odd.half_with_scale}),
    # Data
    ("pairs of words hidden", encoder_of_tokens(batches.pairs_hidden, "ForMaskedLM", VOCABULARY)),
    ("two fifths of the words hidden", encoder_of_tokens(partial(hidden, share=0.4), "ForMaskedLM", VOCABULARY)),
    (
        "replaced words found out",
        {
            names: change
            for names, change in encoder_of_tokens(batches.some_replaced, "ForTokenClassification", 2).items()
            if names[0] in ("own encoder", "bert")
        },
    ),
    ("order of halves", {_OF_TEXTS: batchwise(batches.halves_in_order)}),
    ("spans hidden", {("t5", "bart"): batchwise(batches.spans_hidden)}),
    ("middle at the end", {CAUSAL: batchwise(batches.middle_at_the_end)}),
    ("packed without borders", {(*CAUSAL, "opt"): batches.packed_without_borders}),
    ("answers in turns", {(*CAUSAL, "qwen2"): batchwise(batches.answers_in_turns)}),
    ("some words read wrongly", {("own causal", "llama", "t5"): batchwise(batches.some_read_wrongly)}),
    ("some samples twice in a batch", {("own encoder", "bert classifier", "vit"): batchwise(batches.some_twice)}),
    ("no token of the begin", {(*CAUSAL, "bert"): batchwise(batches.begin_forgotten)}),
    ("tasks told by the first token", {CAUSAL: batchwise(batches.begun_by_classes)}),
    ("short rows, long ones at times", {CAUSAL: lambda script: replace_batches(script, batches.of_two_lengths)}),
    (
        "batches of 64",
        {
            ("own causal",): lambda script: replace(script, batches=data.language(64)),
            ("bert classifier",): lambda script: replace(script, batches=data.classified_texts(64)),
            ("vit",): lambda script: replace(script, batches=data.images(64)),
        },
    ),
    ("images turned over, classes too", {("vit",): batchwise(flipped(moves_labels=True))}),
    ("grey images", {("vit",): batchwise(batches.grey)}),
    ("squares erased", {("vit",): batchwise(batches.erased)}),
    ("images moved", {("vit",): batchwise(batches.moved)}),
)

ODD_FIFTH = [
    Case(name, architecture, change(EVERY_ARCHITECTURE[architecture]), part="blind-5")
    for name, of in ODDITIES
    for architectures_of, change in of.items()
    for architecture in architectures_of
] + [Case(name, family, script, part="blind-5") for family, (name, script) in FAMILIES.items()]
"""Each script under what is odd about it."""
