"""Sound scripts that look odd and that no check was tuned on: what is odd about the training of a usual model."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from peft import LoraConfig
from torch import nn

from benchmarks.checkup import attentions, changes
from benchmarks.checkup import odd_blind_losses as losses
from benchmarks.checkup import odd_blind_trainings as odd
from benchmarks.checkup.architectures import ADDED_ARCHITECTURES, EVERY_ARCHITECTURE, pretrained
from benchmarks.checkup.blind import checkpointed, resized
from benchmarks.checkup.edits import batchwise, optimized, prepared, prepared_late, replace_batches, sgd
from benchmarks.checkup.faults import CAUSAL
from benchmarks.checkup.odd_blind_models import BLIND_MODELS
from benchmarks.checkup.odd_models import causal
from benchmarks.checkup.odd_trainings import fine_tuned, keep_in_eval, name_of, of_all, with_adapters, with_lora
from benchmarks.checkup.scripts import Case, Change, adamw, circle

_MOST = ("own causal", "llama", "bert classifier", "vit")
_TUNED = ("own causal", "gpt2", "bert classifier", "vit")
_FIRST_LAYER = r".*(layers|blocks|h|encoder\.layer)\.0\..*"
_ATTENTION = r".*(attention|self_attn|attn)\..*|" + changes.HEAD
_CROSS_ATTENTION = r".*(encoder_attn|EncDecAttention).*"
_LAST_LAYER = r".*(layers|blocks|h|encoder\.layer)\.1\..*"
_ALIBI = attentions.by_hand(attentions.with_distances)
_LARGE_COSINES = attentions.by_hand(attentions.of_scaled_cosines)
_WINDOW = changes.with_mask(lambda tokens: changes.square(tokens).tril().triu(-3))
_SMALL = changes.on_matrices(lambda weight: nn.init.normal_(weight, std=0.002))


def _frozen(pattern: str, *, all_but: bool = False) -> Change:
    return fine_tuned(prepared(changes.freeze(pattern, all_but=all_but)))


ODDITIES: tuple[tuple[str, Mapping[tuple[str, ...], Change]], ...] = (
    ("plain", {tuple(ADDED_ARCHITECTURES): lambda script: script}),
    # What trains
    ("first layer only", {_MOST: _frozen(_FIRST_LAYER + "|" + changes.HEAD, all_but=True)}),
    (
        "biases only",
        {
            ("own encoder", "bert classifier", "vit"): _frozen(
                r".*bias|(?!.*dense)" + changes.HEAD,
                all_but=True,
            )
        },
    ),
    ("attention only", {("own encoder", "vit"): _frozen(_ATTENTION, all_but=True)}),
    (
        "layers unfrozen one after the other",
        {
            ("own encoder", "bert classifier", "vit"): lambda script: replace(
                prepared(changes.freeze(changes.HEAD, all_but=True))(pretrained(name_of(script))),
                optimizers=of_all,
                before_step=odd.unfreeze_gradually,
            )
        },
    ),
    ("random first layer frozen", {("own causal", "gpt2"): prepared(changes.freeze(_FIRST_LAYER))}),
    (
        "norms, embeddings and head only",
        {
            ("gpt2",): _frozen(
                r".*(ln_|norm)\w*\..*|" + changes.EMBEDDINGS + "|" + changes.HEAD,
                all_but=True,
            )
        },
    ),
    ("frozen encoder", {("t5", "bart"): _frozen(r"(model\.)?encoder\..*")}),
    ("cross-attention only", {("t5", "bart"): _frozen(_CROSS_ATTENTION, all_but=True)}),
    ("registered adapters", {("own causal", "bert classifier", "vit"): fine_tuned(prepared(odd.adapters))}),
    ("prompts for images", {("vit",): fine_tuned(prepared(odd.visual_prompts))}),
    ("DoRA", {("llama",): with_lora("q_proj", "v_proj", use_dora=True)}),
    (
        "LoRA of all linear layers",
        {("qwen2",): fine_tuned(prepared(with_adapters(LoraConfig, target_modules="all-linear")))},
    ),
    (
        "LoRA with a head",
        {("bert classifier",): with_lora("query", "value", modules_to_save=["classifier"], use_rslora=True)},
    ),
    (
        "LoRA with two rates",
        {("gpt2",): lambda script: replace(with_lora("c_attn")(script), optimizers=odd.lora_plus)},
    ),
    # Optimization
    ("fine-tuning at 2e-5", {("sentence encoder", "roberta classifier"): fine_tuned(optimized(adamw(2e-5)))}),
    ("weight decay 1 with a small rate", {("own causal", "llama", "vit"): optimized(adamw(1e-4, weight_decay=1.0))}),
    ("cosine of ten steps", {_TUNED: fine_tuned(lambda script: replace(script, steps=10, schedule=odd.cosine_of_ten))}),
    (
        "SGD with warm-up from zero",
        {
            ("own encoder", "gpt2"): lambda script: replace(
                optimized(sgd(0.3))(script), schedule=lambda step: step / 100
            )
        },
    ),
    ("SGD with a rate of 1", {("own encoder", "llama"): optimized(sgd(1.0))}),
    ("Lion", {("own causal", "bert", "vit"): optimized(lambda model: [odd.Lion(model.parameters(), 3e-4)])}),
    ("sparse gradients of embeddings", {("own causal",): odd.with_sparse_embeddings}),
    ("two optimizers in turns", {("own causal", "bert"): optimized(odd.in_turns)}),
    ("loss scaled and gradients unscaled", {("own causal", "bert"): odd.scaled_by_hand}),
    ("noise added to gradients", {("own encoder", "gpt2"): prepared(odd.noisy_gradients)}),
    (
        "micro-batches of other sizes",
        {("llama", "bert"): lambda script: replace(odd.of_varied_sizes(script), accumulate=4)},
    ),
    ("batches that grow", {("own causal", "bert classifier", "vit"): odd.of_varied_sizes}),
    # Precision, dropout, modes
    ("dropout of a half", {("own causal", "own encoder"): odd.own(dropout=0.5), ("bert",): odd.bert_with_dropout}),
    ("reentrant checkpointing", {("llama", "gpt2", "bert"): prepared(odd.reentrant)}),
    (
        "reentrant checkpointing, embeddings frozen",
        {("llama", "gpt2", "bert", "bert classifier"): prepared(checkpointed)},
    ),
    (
        "tied embeddings resized after the optimizer was made",
        {("gpt2", "bert", "bart", "t5", "opt"): prepared_late(resized)},
    ),
    ("blocks checkpointed by hand", {("own causal", "own encoder"): prepared(odd.checkpointed_blocks)}),
    (
        "lower layer in eval mode, frozen",
        {
            ("bert classifier", "vit"): lambda script: keep_in_eval(r".*(layer|layers)\.0")(
                _frozen(_FIRST_LAYER)(script)
            )
        },
    ),
    # Attention, initialisation
    ("ALiBi", {("own causal", "own encoder"): lambda script: prepared(_ALIBI)(odd.own(has_positions=False)(script))}),
    (
        "no positions at all",
        {("llama",): lambda script: causal("SmolLM3", no_rope_layers=[0, 0], num_key_value_heads=2)},
    ),
    (
        "scale of muP",
        {("own causal", "llama"): prepared(changes.with_scale(lambda width: 1 / width), odd.zero_queries)},
    ),
    ("cosines with a large scale", {("own causal", "llama", "vit"): prepared(_LARGE_COSINES)}),
    (
        "scale within the queries' weights",
        {("own encoder", "bert"): prepared(changes.with_scale(lambda width: 1.0), odd.scaled_queries)},
    ),
    ("weights with a deviation of 0.002", {("own causal", "gpt2", "bert"): prepared(_SMALL)}),
    ("gates of zero", {("own causal", "own encoder"): prepared(odd.rezero)}),
    ("spectral norms", {("own encoder",): prepared(odd.spectral)}),
    ("capped logits", {("llama",): lambda script: causal("Gemma2", head_dim=16, num_key_value_heads=1)}),
    ("attention and feed-forward side by side", {("gpt2",): lambda script: causal("GPTNeoX")}),
    ("differential attention", {("llama",): lambda script: causal("DiffLlama", num_key_value_heads=2)}),
    ("local windows", {CAUSAL: batchwise(_WINDOW)}),
    # Losses
    ("focal loss", {("own encoder", "bert classifier", "vit"): losses.with_loss_of_logits(losses.focal)}),
    ("two passes that are to agree", {("own encoder", "bert classifier"): losses.agreeing}),
    ("several labels each", {("own encoder", "vit"): losses.with_loss_of_logits(losses.of_several)}),
    ("preferences against a frozen reference", {("own causal", "llama"): losses.preferences}),
    ("cache of the first half", {("llama", "gpt2"): losses.with_cache}),
    ("triplets", {("sentence encoder",): losses.triplets}),
    ("momentum teacher", {("own encoder", "vit"): losses.momentum_teacher}),
    ("states mixed in training", {("own encoder",): losses.mixed_states}),
    # Data
    ("one word only at times", {("own encoder", "bert classifier"): losses.one_word_at_times}),
    ("one class in most batches", {("own encoder", "bert classifier", "vit"): losses.imbalanced}),
    (
        "three batches in a circle, told",
        {
            ("own encoder", "llama", "vit"): lambda script: replace(
                replace_batches(script, partial(circle, count=3)), steps_per_epoch=3
            )
        },
    ),
    ("packed, told by positions", {("llama", "qwen2"): batchwise(losses.packed_by_positions)}),
    ("hidden, random and kept words", {("bert",): batchwise(losses.partly_random)}),
    ("words dropped at random", {("own encoder", "bert classifier"): batchwise(losses.words_dropped)}),
    ("a fifth of the labels wrong", {("own encoder", "vit"): batchwise(losses.noisy_labels)}),
    ("images mixed", {("vit",): batchwise(losses.mixed_images)}),
    ("last word only labelled", {CAUSAL: batchwise(losses.last_only)}),
)

_DELIBERATE: tuple[tuple[str, Mapping[tuple[str, ...], Change]], ...] = (
    ("unlearning by gradient ascent", {("own causal", "llama"): losses.unlearning}),
    ("unlearning beside learning", {("own causal", "llama"): losses.unlearning_half}),
)


def _cases(oddities: tuple[tuple[str, Mapping[tuple[str, ...], Change]], ...], *, is_deliberate: bool) -> list[Case]:
    return [
        Case(name, each, change(EVERY_ARCHITECTURE[each]), part="blind-1", is_deliberate=is_deliberate)
        for name, of in oddities
        for architectures_of, change in of.items()
        for each in architectures_of
    ]


ODD_BLIND = [
    *_cases(ODDITIES, is_deliberate=False),
    *(Case(name, kind, script, part="blind-1") for name, kind, script in BLIND_MODELS),
    *_cases(_DELIBERATE, is_deliberate=True),
]
