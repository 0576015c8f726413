"""Plain trainings of each architecture, with weights at random or from a short training."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.checkup import data, nets
from benchmarks.checkup.data import Batch
from benchmarks.checkup.nets import (
    BEGIN,
    CLASSES,
    DROPOUT,
    END,
    HEADS,
    LAYERS,
    PAD,
    TOKENS,
    VOCABULARY,
    WIDTH,
    mean_of_real,
)
from benchmarks.checkup.scripts import Script, train

_SIZES = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
_SIZES |= {"intermediate_size": 2 * WIDTH}
_TEXT = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": BEGIN, "eos_token_id": END}
LLAMA = _SIZES | _TEXT | {"max_position_embeddings": 64}
BERT = _SIZES | {"vocab_size": VOCABULARY, "pad_token_id": PAD, "max_position_embeddings": TOKENS}
GPT2 = _TEXT | {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 2 * TOKENS}
T5 = {"d_model": WIDTH, "d_kv": WIDTH // HEADS, "d_ff": 2 * WIDTH, "num_layers": LAYERS, "num_heads": HEADS}
T5 |= {"vocab_size": VOCABULARY, "pad_token_id": PAD, "eos_token_id": END, "decoder_start_token_id": PAD}
_BART = {"d_model": WIDTH, "encoder_layers": LAYERS, "decoder_layers": LAYERS, "encoder_ffn_dim": 2 * WIDTH}
_BART |= {"decoder_ffn_dim": 2 * WIDTH, "encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS}
_BART |= _TEXT | {"max_position_embeddings": TOKENS, "decoder_start_token_id": END, "forced_eos_token_id": None}
_OPT = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "ffn_dim": 2 * WIDTH}
_OPT |= {"word_embed_proj_dim": WIDTH}
VIT = _SIZES | {"image_size": data.IMAGE, "patch_size": data.PATCH, "num_labels": CLASSES}
VIT |= {"hidden_dropout_prob": DROPOUT, "attention_probs_dropout_prob": DROPOUT}


def hf_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the loss that a model of transformers computes."""
    return model(**batch).loss


def next_token_loss(model: nn.Module, batch: Batch, **options: float | str) -> Tensor:
    """Return the cross entropy of the next tokens."""
    logits = model(batch["input_ids"], batch.get("attention_mask"))
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), **options)


def class_loss(model: nn.Module, batch: Batch, **options: float | str) -> Tensor:
    """Return the cross entropy of classes, of sequences or of tokens."""
    logits = model(batch["input_ids"], batch.get("attention_mask"))
    return F.cross_entropy(logits.flatten(0, -2), batch["labels"].flatten(), **options)


def image_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the cross entropy of the classes of images."""
    return F.cross_entropy(model(batch["pixel_values"]).logits, batch["labels"])


def contrast(first: Tensor, second: Tensor) -> Tensor:
    """Return the loss by which the views of a sample find each other within the batch."""
    scores = F.normalize(first, dim=-1) @ F.normalize(second, dim=-1).T / 0.1
    return F.cross_entropy(scores, torch.arange(len(scores)))


def pair_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the loss by which first parts of texts find their second parts, which come after all first ones."""
    return contrast(*model(batch["input_ids"], batch.get("attention_mask")).chunk(2))


class SentenceEncoder(nn.Module):
    """Encoder of texts with the mean over the real tokens.

    Attributes:
        pool: function of states [batch, tokens, width] and the attention mask.
    """

    def __init__(self, build: Callable[[], nn.Module]):
        super().__init__()
        self.bert = build()
        self.pool: Callable[[Tensor, Tensor | None], Tensor] = mean_of_real

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.pool(self.bert(input_ids, attention_mask).last_hidden_state, attention_mask)


def hf_model(name: str, config: str, sizes: dict[str, object], **options: object) -> Callable[[], nn.Module]:
    """Return a function that makes a model of transformers with random weights."""
    of_model = {key: options.pop(key) for key in ("add_pooling_layer",) if key in options}
    return lambda: getattr(hf, name)(getattr(hf, config)(**sizes | options), **of_model)


def llama(**options: object) -> Callable[[], nn.Module]:
    """Return a function that makes a Llama."""
    return hf_model("LlamaForCausalLM", "LlamaConfig", LLAMA, **options)


def decoder(family: str, **options: object) -> Callable[[], nn.Module]:
    """Return a function that makes a decoder of another family."""
    return hf_model(f"{family}ForCausalLM", f"{family}Config", _SIZES | _TEXT, **options)


def bert(kind: str = "ForMaskedLM", family: str = "Bert", **options: object) -> Callable[[], nn.Module]:
    """Return a function that makes a BERT or a relative."""
    return hf_model(f"{family}{kind}", f"{family}Config", BERT, **options)


def gpt2(kind: str = "LMHeadModel", **options: object) -> Callable[[], nn.Module]:
    """Return a function that makes a GPT-2."""
    return hf_model(f"GPT2{kind}", "GPT2Config", GPT2, **options)


def vit(kind: str = "ForImageClassification", **options: object) -> Callable[[], nn.Module]:
    """Return a function that makes a ViT."""
    return hf_model(f"ViT{kind}", "ViTConfig", VIT, **options)


def bart() -> Callable[[], nn.Module]:
    """Return a function that makes a BART."""
    return hf_model("BartForConditionalGeneration", "BartConfig", _BART)


def t5() -> Callable[[], nn.Module]:
    """Return a function that makes a T5."""
    return hf_model("T5ForConditionalGeneration", "T5Config", T5)


ARCHITECTURES = {
    "own causal": Script(partial(nets.Net, is_causal=True), data.language(), next_token_loss),
    "own encoder": Script(partial(nets.Net, is_causal=False, classes=CLASSES), data.classified_texts(), class_loss),
    "torch encoder": Script(nets.TorchEncoder, data.classified_texts(), class_loss),
    "llama": Script(llama(), data.language(), hf_loss),
    "gpt2": Script(gpt2(), data.language(), hf_loss),
    "bert": Script(bert(), data.masked_language(), hf_loss),
    "bert classifier": Script(bert("ForSequenceClassification", num_labels=CLASSES), data.classified_texts(), hf_loss),
    "bart": Script(bart(), data.reversed_texts(), hf_loss),
    "t5": Script(t5(), data.reversed_texts(), hf_loss),
    "vit": Script(vit(), data.images(), image_loss),
}
ADDED_ARCHITECTURES = {
    "qwen2": Script(decoder("Qwen2", num_key_value_heads=1), data.language(), hf_loss),
    "opt": Script(
        hf_model("OPTForCausalLM", "OPTConfig", _OPT | _TEXT | {"max_position_embeddings": TOKENS}),
        data.language(),
        hf_loss,
    ),
    "roberta classifier": Script(
        bert("ForSequenceClassification", "Roberta", num_labels=CLASSES, max_position_embeddings=TOKENS + 1),
        data.classified_texts(),
        hf_loss,
    ),
    "sentence encoder": Script(partial(SentenceEncoder, bert("Model", add_pooling_layer=False)), data.pairs, pair_loss),
}
EVERY_ARCHITECTURE = ARCHITECTURES | ADDED_ARCHITECTURES
_PRETRAINING_STEPS = 60


@cache
def _pretrained(architecture: str) -> nn.Module:
    """Return the model after a short training.

    Raises:
        RuntimeError: the training ended with an error. Scripts would begin with weights at random.
    """
    trained: list[nn.Module] = []

    def keep(model: nn.Module) -> None:
        trained.append(model)

    script = replace(EVERY_ARCHITECTURE[architecture], prepare=(keep,), steps=_PRETRAINING_STEPS)
    # A run that finds the model trained already draws the same numbers. Teachers are made without gradients.
    with torch.random.fork_rng(), torch.enable_grad():
        error = train(script, seed=1).error
    if error:
        raise RuntimeError(f"the short training of {architecture!r} failed: {error}")
    return trained[0]


def pretrained(architecture: str) -> Script:
    """Return the plain script with a model that has learned something already."""
    script = EVERY_ARCHITECTURE[architecture]

    def load(model: nn.Module) -> None:
        model.load_state_dict(_pretrained(architecture).state_dict())

    return replace(script, prepare=(load,))
