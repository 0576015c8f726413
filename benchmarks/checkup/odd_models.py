"""Sound scripts that look odd: models and losses that are not the usual ones."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
import transformers as hf
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer

from benchmarks.checkup import architectures, data, nets
from benchmarks.checkup.architectures import bert, class_loss, contrast, decoder, gpt2, hf_loss, hf_model, vit
from benchmarks.checkup.data import BATCH_SIZE, Batch
from benchmarks.checkup.nets import CLASSES, FEATURES, WIDTH, Net, mean_of_real
from benchmarks.checkup.own_models import Captioner, Features, Gan, Student, TwoTasks, stochastic_depth, with_experts
from benchmarks.checkup.scripts import Script, each_batch


def series(seed: int) -> Iterator[Batch]:
    """Yield waves, whose frequency is the label."""
    random = Generator().manual_seed(seed)
    times = torch.linspace(0, 6, nets.TOKENS)[None, :, None]
    while True:
        frequency = torch.rand(BATCH_SIZE, 1, 1, generator=random) * 3 + 0.5
        phases = torch.rand(BATCH_SIZE, 1, FEATURES, generator=random) * 6
        yield {"values": torch.sin(frequency * times + phases), "labels": frequency[:, 0]}


def point_sets(seed: int) -> Iterator[Batch]:
    """Yield sets of points around one of four centres, which is the class."""
    random = Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, 1, FEATURES, generator=Generator().manual_seed(0))
    while True:
        classes = torch.randint(CLASSES, (BATCH_SIZE,), generator=random)
        noise = torch.randn(BATCH_SIZE, nets.TOKENS, FEATURES, generator=random)
        yield {"values": centres[classes] + noise, "labels": classes}


def _regression(model: nn.Module, batch: Batch) -> Tensor:
    return F.mse_loss(model(batch["values"]), batch["labels"])


def _classification(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch["values"]), batch["labels"])


def _denoising(model: nn.Module, batch: Batch) -> Tensor:
    noise = torch.randn_like(batch["values"])
    share = torch.rand(len(noise), 1, 1)
    return F.mse_loss(model(batch["values"] * (1 - share) + noise * share), noise)


def _as_number(batch: Batch) -> Batch:
    return batch | {"labels": batch["labels"].float()}


def _text_regression(model: nn.Module, batch: Batch) -> Tensor:
    return F.mse_loss(model(batch["input_ids"], batch["attention_mask"]).squeeze(-1), batch["labels"])


def _image_regression(model: nn.Module, batch: Batch) -> Tensor:
    return F.mse_loss(model(batch["pixel_values"]).logits.squeeze(-1), batch["labels"])


def _two_views(model: nn.Module, batch: Batch) -> Tensor:
    inputs = batch["input_ids"], batch["attention_mask"]
    return contrast(model(*inputs), model(*inputs))  # by dropout, as SimCSE


def _two_views_of_bert(model: nn.Module, batch: Batch) -> Tensor:
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return contrast(*(mean_of_real(model(**inputs).last_hidden_state, inputs["attention_mask"]) for _ in range(2)))


def _clip_batches(seed: int) -> Iterator[Batch]:
    for text, image in zip(data.classified_texts()(seed), data.images()(seed), strict=False):
        yield {name: text[name] for name in ("input_ids", "attention_mask")} | {"pixel_values": image["pixel_values"]}


def _clip() -> nn.Module:
    sizes = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = hf.CLIPTextConfig(**sizes, vocab_size=nets.VOCABULARY, max_position_embeddings=nets.TOKENS, eos_token_id=2)
    vision = hf.CLIPVisionConfig(**sizes, image_size=data.IMAGE, patch_size=data.PATCH)
    return hf.CLIPModel(hf.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16))


def _gan_optimizers(model: Gan) -> list[Optimizer]:
    return [AdamW(part.parameters(), 5e-4, betas=(0.5, 0.99)) for part in (model.discriminator, model.generator)]


def _discriminator_loss(model: Gan, batch: Batch) -> Tensor:
    return model.loss_of_discriminator(batch["values"])


def _train_generator(model: Gan, optimizers: Sequence[Optimizer], step: int) -> None:
    """Step the generator; the gradients that the discriminator is left with are cleared before its next step."""
    optimizers[1].zero_grad()
    model.loss_of_generator().backward()
    optimizers[1].step()


def _train_discriminator(model: Gan, optimizers: Sequence[Optimizer], step: int) -> None:
    model.discriminator.requires_grad_(True)
    optimizers[0].zero_grad()
    model.loss_of_discriminator(next(series(step))["values"]).backward()
    optimizers[0].step()
    optimizers[0].zero_grad()


_GAN = Script(Gan, series, _discriminator_loss, _gan_optimizers, clear="before", after_step=_train_generator)
_GENERATOR = replace(
    _GAN,
    loss=lambda model, batch: model.loss_of_generator(),
    before_step=lambda model, optimizers, step: model.discriminator.requires_grad_(False),
    after_step=_train_discriminator,
    watched=lambda model, optimizers: (model.generator, optimizers[1]),
)


def _averaged(model: Student, optimizers: Sequence[Optimizer], step: int) -> None:
    with torch.no_grad():
        for old, new in zip(model.teacher.parameters(), model.student.parameters(), strict=True):
            old.lerp_(new, 0.01)


def _loss_of_tasks(model: TwoTasks, batch: Batch) -> Tensor:
    task, labels = int(batch["labels"][0]) % 2, batch["labels"]
    logits = model(batch["input_ids"], batch["attention_mask"], task)
    return F.cross_entropy(logits, labels if task == 0 else labels % 2)


def _captions(seed: int) -> Iterator[Batch]:
    for text, image in zip(data.language()(seed), data.images()(seed), strict=False):
        yield {"pixel_values": image["pixel_values"], "input_ids": text["input_ids"], "labels": text["labels"]}


def tags(batch: Batch) -> Batch:
    """Tag each word by whether the next one is larger."""
    ids = batch["input_ids"]
    tags = (ids.roll(-1, 1) > ids).long().masked_fill(batch["attention_mask"] == 0, data.IGNORED)
    return batch | {"labels": tags}


def _bert_without_pooler() -> nn.Module:
    return hf.BertModel(hf.BertConfig(**architectures.BERT), add_pooling_layer=False)


def _most_frequent(batch: Batch) -> Batch:
    """Label texts by the commonest remainder of their words, for which order does not matter."""
    remainders = F.one_hot(batch["input_ids"] % CLASSES, CLASSES) * batch["attention_mask"][:, :, None]
    return batch | {"labels": remainders.sum(1).argmax(1)}


def _student_loss(model: nn.Module, batch: Batch) -> Tensor:
    learned, taught = model(batch["input_ids"], batch["attention_mask"])
    return F.cross_entropy(learned, batch["labels"]) + F.mse_loss(learned, taught)


_TEXTS, _LANGUAGE = data.classified_texts(), data.language()
_ENCODER = Script(lambda: Net(is_causal=False, classes=CLASSES), _TEXTS, class_loss)
_STUDENT = replace(_ENCODER, build=Student, loss=_student_loss)
_MIXTRAL = {"num_local_experts": 16, "num_experts_per_tok": 1, "num_key_value_heads": 1}
_GEMMA = {"head_dim": 16, "num_key_value_heads": 1}


def causal(family: str, **options: object) -> Script:
    return Script(decoder(family, **options), _LANGUAGE, hf_loss)


_CAPTIONER = Script(Captioner, _captions, lambda model, batch: model(**batch))
_SERIES = Script(lambda: Features(has_positions=True, outputs=1), series, _regression)
_SETS = Script(lambda: Features(has_positions=False, outputs=CLASSES), point_sets, _classification)
_new_mae = hf_model(
    "ViTMAEForPreTraining",
    "ViTMAEConfig",
    architectures.VIT
    | {
        "decoder_hidden_size": WIDTH,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": WIDTH,
    },
)


def _mae() -> nn.Module:
    """Return a ViT MAE with positions: transformers 5.23 leaves those of a new model at zero, and frozen."""
    model = _new_mae()
    nn.init.normal_(model.vit.embeddings.position_embeddings, std=0.02)
    nn.init.normal_(model.decoder.decoder_pos_embed, std=0.02)
    return model


MODELS: tuple[tuple[str, str, Script], ...] = (
    ("experts, some unused", "own causal", Script(with_experts, _LANGUAGE, architectures.next_token_loss)),
    ("experts, some unused", "mixtral", causal("Mixtral", **_MIXTRAL)),
    ("sliding window", "mistral", causal("Mistral", sliding_window=4, num_key_value_heads=2)),
    ("norms of queries and keys", "qwen3", causal("Qwen3", head_dim=16, num_key_value_heads=2)),
    ("scaled embeddings", "gemma", causal("Gemma", **_GEMMA)),
    (
        "distances as biases",
        "bloom",
        Script(hf_model("BloomForCausalLM", "BloomConfig", architectures.GPT2), _LANGUAGE, hf_loss),
    ),
    ("shared layers", "albert", Script(bert(family="Albert", embedding_size=16), data.masked_language(), hf_loss)),
    ("class of the last word", "gpt2", Script(gpt2("ForSequenceClassification", num_labels=CLASSES), _TEXTS, hf_loss)),
    (
        "class of the last word",
        "llama",
        Script(
            hf_model("LlamaForSequenceClassification", "LlamaConfig", architectures.LLAMA, num_labels=CLASSES),
            _TEXTS,
            hf_loss,
        ),
    ),
    ("tags of words", "bert", each_batch(Script(bert("ForTokenClassification", num_labels=2), _TEXTS, hf_loss), tags)),
    ("tags of words", "own encoder", each_batch(Script(lambda: Net(is_causal=False), _TEXTS, class_loss), tags)),
    (
        "regression",
        "bert",
        each_batch(Script(bert("ForSequenceClassification", num_labels=1), _TEXTS, hf_loss), _as_number),
    ),
    (
        "regression",
        "own encoder",
        each_batch(Script(lambda: Net(is_causal=False, classes=1), _TEXTS, _text_regression), _as_number),
    ),
    ("regression", "vit", each_batch(Script(vit(num_labels=1), data.images(), _image_regression), _as_number)),
    ("regression of series", "features", _SERIES),
    ("sets without positions", "features", _SETS),
    (
        "texts without positions",
        "own encoder",
        each_batch(
            replace(_ENCODER, build=lambda: Net(is_causal=False, classes=CLASSES, has_positions=False)), _most_frequent
        ),
    ),
    (
        "batch norm",
        "features",
        replace(_SERIES, build=lambda: Features(has_positions=True, outputs=1, has_batch_norm=True)),
    ),
    (
        "batch norm, set",
        "features",
        replace(_SETS, build=lambda: Features(has_positions=False, outputs=CLASSES, has_batch_norm=True)),
    ),
    (
        "denoising",
        "features",
        replace(
            _SERIES, build=lambda: Features(has_positions=True, outputs=FEATURES, each_token=True), loss=_denoising
        ),
    ),
    ("masked patches", "vit mae", Script(_mae, data.images(), lambda model, batch: model(batch["pixel_values"]).loss)),
    ("contrast over the batch", "own encoder", replace(_ENCODER, loss=_two_views)),
    (
        "contrast over the batch",
        "bert",
        Script(_bert_without_pooler, _TEXTS, _two_views_of_bert),
    ),
    (
        "contrast over the batch",
        "clip",
        Script(_clip, _clip_batches, lambda model, batch: model(**batch, return_loss=True).loss),
    ),
    ("discriminator of a GAN", "features", replace(_GAN, watched=lambda model, each: (model.discriminator, each[0]))),
    ("generator of a GAN", "features", _GENERATOR),
    ("GAN, trained in turns", "features", _GAN),
    ("teacher inside", "own encoder", _STUDENT),
    ("teacher that follows", "own encoder", replace(_STUDENT, after_step=_averaged)),
    ("two tasks in turns", "own encoder", replace(_ENCODER, build=TwoTasks, loss=_loss_of_tasks)),
    ("layers skipped at random", "own causal", Script(stochastic_depth, _LANGUAGE, architectures.next_token_loss)),
    (
        "projection between frozen models",
        "vit and llama",
        _CAPTIONER,
    ),
    (
        "relative positions",
        "t5 encoder",
        Script(hf_model("T5EncoderModel", "T5Config", architectures.T5), _TEXTS, _two_views_of_bert),
    ),
)
