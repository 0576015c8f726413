"""Sound scripts that look odd: what is odd about the training of a usual model."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from peft import IA3Config, PromptTuningConfig
from torch import nn
from torch.optim import Adafactor, Adagrad, NAdam, RMSprop

from benchmarks.checkup import architectures, changes, data, nets, odd_data
from benchmarks.checkup import odd_trainings as odd
from benchmarks.checkup.architectures import ARCHITECTURES, class_loss, llama, next_token_loss, pretrained
from benchmarks.checkup.edits import batchwise, optimized, prepared, sgd
from benchmarks.checkup.faults import ALL, CAUSAL, CLASSIFIERS
from benchmarks.checkup.losses import ODD_LOSSES
from benchmarks.checkup.odd_models import MODELS
from benchmarks.checkup.scripts import Case, Change, adamw, first_tenth

_MOST = ("own causal", "llama", "bert classifier", "vit")
_TUNED = ("own causal", "gpt2", "bert classifier", "vit")
_PROBE = changes.freeze(changes.HEAD, all_but=True)
_LOWER = changes.freeze(r".*(embed|tokens|wte|wpe|positions|(layers|blocks|h|layer)\.0\.).*")
_LORA = {
    ("llama", "vit"): odd.with_lora("q_proj", "v_proj"),
    ("t5", "own causal"): odd.with_lora("q", "v"),
    ("gpt2",): odd.with_lora("c_attn"),
    ("bert classifier",): odd.with_lora("query", "value"),
}
_IA3 = odd.with_adapters(IA3Config, target_modules=["key", "value"], feedforward_modules=[])
_PROMPT = odd.with_adapters(PromptTuningConfig, num_virtual_tokens=4, task_type="CAUSAL_LM")
_SMOOTH = {("own causal",): lambda script: replace(script, loss=partial(next_token_loss, label_smoothing=0.1))}
_SMOOTH |= {("own encoder",): lambda script: replace(script, loss=partial(class_loss, label_smoothing=0.1))}
_ONE = odd.with_batches(own_causal=data.language(1), llama=data.language(1), bert=data.masked_language(1))
_ONE |= odd.with_batches(bert_classifier=data.classified_texts(1), vit=data.images(1), t5=data.reversed_texts(1))
_EQUAL = odd.with_batches(own_causal=data.language(shortest=16), bert=data.masked_language(shortest=16))
_EQUAL |= odd.with_batches(own_encoder=data.classified_texts(shortest=16), t5=data.reversed_texts(shortest=16))
_MUCH_PADDING = odd.with_batches(llama=data.language(shortest=2), bert_classifier=data.classified_texts(shortest=3))

ODDITIES: tuple[tuple[str, Mapping[tuple[str, ...], Change]], ...] = (
    ("plain", {ALL: lambda script: script}),
    ("plain, a tenth of a run", {CLASSIFIERS: first_tenth}),
    # What trains
    ("LoRA", _LORA),
    ("IA3", {("bert classifier",): odd.fine_tuned(prepared(_IA3))}),
    ("prompt tuning", {("llama",): odd.fine_tuned(prepared(_PROMPT))}),
    ("linear probe", {("own encoder", "torch encoder", "bert classifier", "vit"): odd.fine_tuned(prepared(_PROBE))}),
    (
        "linear probe of a model in eval mode",
        {
            ("bert classifier",): lambda script: odd.keep_in_eval("bert")(
                prepared(_PROBE)(pretrained("bert classifier"))
            ),
            ("vit",): lambda script: odd.keep_in_eval("vit")(prepared(_PROBE)(pretrained("vit"))),
        },
    ),
    (
        "frozen embeddings",
        {("own causal", "gpt2", "bert classifier", "t5"): odd.fine_tuned(prepared(changes.freeze(changes.EMBEDDINGS)))},
    ),
    ("frozen lower layers", {("own causal", "llama", "bert classifier", "vit"): odd.fine_tuned(prepared(_LOWER))}),
    (
        "norms and biases only",
        {
            ("gpt2", "bert classifier", "vit"): odd.fine_tuned(
                prepared(changes.freeze(changes.NORMS_AND_BIASES + "|classifier.*", all_but=True))
            )
        },
    ),
    (
        "layers that wake up",
        {
            ("own causal", "bert classifier", "vit"): lambda script: replace(
                prepared(_LOWER)(pretrained(odd.name_of(script))), optimizers=odd.of_all, before_step=odd.wake_up
            )
        },
    ),
    (
        "layers that wake up in a new group",
        {
            ("llama", "bert classifier"): lambda script: replace(
                prepared(_LOWER)(pretrained(odd.name_of(script))), before_step=odd.wake_up_new_group
            )
        },
    ),
    ("tied weights", {("llama",): lambda script: replace(script, build=llama(tie_word_embeddings=True))}),
    # Optimization
    ("fine-tuning at 1e-6", {_TUNED: odd.fine_tuned(optimized(adamw(1e-6)))}),
    ("fine-tuning at 2e-5", {_TUNED: odd.fine_tuned(optimized(adamw(2e-5)))}),
    ("SGD with momentum", {_MOST: optimized(sgd(0.1, momentum=0.9))}),
    ("SGD", {("own encoder", "gpt2", "t5"): optimized(sgd(0.3))}),
    ("Adafactor", {("llama", "t5"): optimized(lambda model: [Adafactor(model.parameters(), 0.01)])}),
    ("Muon", {("own causal", "llama"): optimized(odd.muon)}),
    ("RMSprop", {("own encoder",): odd.optimized_by(RMSprop, 2e-4)}),
    ("NAdam", {("bert",): odd.optimized_by(NAdam, 2e-3)}),
    ("Adagrad", {("gpt2",): odd.optimized_by(Adagrad, 0.01)}),
    ("two optimizers", {("own causal", "bert", "t5"): optimized(odd.embeddings_apart)}),
    ("rates by layer", {_MOST: optimized(odd.rates_by_layer)}),
    ("weight decay 0.1", {_MOST: optimized(adamw(weight_decay=0.1))}),
    ("decay of matrices only", {("gpt2", "own encoder"): optimized(odd.decay_of_matrices)}),
    ("warm-up of 1000 steps from zero", {_MOST: lambda script: replace(script, schedule=odd.slow_warm_up)}),
    ("clipped", {_MOST: lambda script: replace(script, clip=1.0)}),
    ("clipped to almost nothing", {("own causal", "llama"): lambda script: replace(script, clip=1e-3)}),
    ("accumulation", {_MOST: lambda script: replace(script, accumulate=3, clear="before")}),
    (
        "accumulation, batches counted",
        {("llama", "bert"): lambda script: replace(script, accumulate=3, counts_batches=True)},
    ),
    ("gradients cleared to zero", {("own encoder", "gpt2"): lambda script: replace(script, clear="after_to_zero")}),
    ("label smoothing", _SMOOTH),
    *ODD_LOSSES,
    ("loss summed", {("own causal",): lambda script: replace(script, loss=partial(next_token_loss, reduction="sum"))}),
    ("policy gradient", {("own causal",): lambda script: replace(script, loss=odd.policy_gradient)}),
    ("distillation", {("own causal", "own encoder", "llama", "vit"): odd.distilled}),
    # Precision and modes
    ("autocast to bfloat16", {(*_MOST, "gpt2", "t5"): lambda script: replace(script, autocast=torch.bfloat16)}),
    ("bfloat16 weights with float32 masters", {("own causal", "llama"): odd.masters}),
    ("float64", {("own causal", "bert"): prepared(lambda model: model.double())}),
    ("no dropout", {("own causal", "bert", "t5", "vit"): prepared(odd.without_dropout)}),
    ("eval mode between steps", {("own causal", "bert", "t5"): odd.with_evaluation}),
    ("gradient checkpointing", {("llama", "gpt2", "bert"): prepared(odd.checkpointed)}),
    (
        "weights normalised",
        {
            ("own causal",): prepared(
                changes.on_modules(
                    r".*mlp\.\d",
                    lambda module: nn.utils.parametrizations.weight_norm(module) if hasattr(module, "weight") else None,
                )
            )
        },
    ),
    # Initialisation
    (
        "PyTorch's initialisation",
        {
            ("own causal",): lambda script: replace(script, build=partial(nets.Net, is_causal=True, default_init=True)),
            ("own encoder",): lambda script: replace(
                script, build=partial(nets.Net, is_causal=False, classes=4, default_init=True)
            ),
        },
    ),
    ("zero output layers", {("own causal", "llama", "gpt2", "vit"): prepared(odd.zero_outputs)}),
    ("zero head", {("own causal", "own encoder", "bert classifier", "vit"): prepared(odd.zero_head)}),
    (
        "12 layers",
        {
            ("own causal",): lambda script: replace(script, build=partial(nets.Net, is_causal=True, layers=12)),
            ("llama",): lambda script: replace(script, build=llama(num_hidden_layers=12)),
            ("bert",): lambda script: replace(script, build=architectures.bert(num_hidden_layers=12)),
        },
    ),
    # Masks and positions
    (
        "causal without positions",
        {("own causal",): lambda script: replace(script, build=partial(nets.Net, is_causal=True, has_positions=False))},
    ),
    ("prefix model", {CAUSAL: batchwise(odd_data.prefix)}),
    ("packed", {("llama", "gpt2"): odd_data.packed_texts}),
    ("padding on the left with a mask", {CAUSAL: odd_data.left_padded}),
    ("causal, padding on the right without a mask", {CAUSAL: batchwise(changes.without("attention_mask"))}),
    # Data
    ("batch of one", _ONE),
    ("texts of equal length", _EQUAL),
    ("much padding", _MUCH_PADDING),
    ("lengths that vary", {("own causal", "bert classifier", "t5"): batchwise(odd_data.cut_to_longest)}),
    ("four batches of data, epochs told", {_MOST: odd.tiny_data(4, is_told=True)}),
    ("four batches of data", {("gpt2", "bert"): odd.tiny_data(4, is_told=False)}),
    ("all data in a batch", {("own encoder", "bert classifier"): odd.tiny_data(1, is_told=True)}),
    ("answers only are labelled", {CAUSAL: batchwise(odd_data.answers_only)}),
    ("padding with the end's token", {CAUSAL: batchwise(odd_data.padded_with_end)}),
    ("few samples of rare classes", {("own encoder", "bert classifier"): batchwise(odd_data.rare_class)}),
)

SOUND = [
    Case(name, architecture, change(ARCHITECTURES[architecture]))
    for name, of in ODDITIES
    for architectures_of, change in of.items()
    for architecture in architectures_of
] + [Case(name, kind, script) for name, kind, script in MODELS]
