"""Arguments of models: sequences of different lengths, some padded on the left, some on the right."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from benchmarks.coverage.sizes import FIRST_WORD, IMAGE, PAD, PATCH, PICTURE, TOKENS, VISION_START, VOCABULARY

BATCH = 3
_ENCODERS, _DECODERS = ("encoder", "text_encoder"), ("decoder", "text_decoder")


@dataclass(frozen=True)
class Batch:
    """Arguments of a model.

    Attributes:
        inputs: by name.
        real: by a name in the paths of modules (`""`: all): bool [batch, tokens], False at padding, for the modules
            whose queries are these tokens.
    """

    inputs: Mapping[str, Tensor | bool]
    real: Mapping[str, Tensor] = field(default_factory=dict)

    def real_of(self, path: str, num_queries: int) -> Tensor | None:
        """Return which queries of the module at this path are no padding; None if no padding is known."""
        for name, real in self.real.items():
            if (not name or name in path.split(".")) and real.shape[1] == num_queries:
                return real
        return None


def text(model: nn.Module) -> Batch:
    """Return three sequences, of which one is padded on the right and one on the left."""
    real = _real()
    return Batch({"input_ids": _ids(real), "attention_mask": real.long()}, {"": real})


def two_texts(model: nn.Module) -> Batch:
    """Return sources and targets of the same length, so that shapes do not tell cross-attention."""
    source, target = _real(), _real_on_the_right()
    inputs = {"input_ids": _ids(source), "attention_mask": source.long()}
    inputs |= {"decoder_input_ids": _ids(target, seed=1), "decoder_attention_mask": target.long()}
    return Batch(inputs, dict.fromkeys(_ENCODERS, source) | dict.fromkeys(_DECODERS, target))


def pictures(model: nn.Module) -> Batch:
    return Batch({"pixel_values": _normal(3, PICTURE, PICTURE)})


def text_and_pictures(model: nn.Module) -> Batch:
    """Return texts and pictures for models that embed both apart."""
    written = text(model)
    return Batch({**written.inputs, **pictures(model).inputs}, {"text_model": written.real[""]})


def pictures_in_text(model: nn.Module) -> Batch:
    """Return texts with one token for each patch of a picture, and with more words than patches, to tell them apart."""
    num_patches = (PICTURE // PATCH) ** 2
    real = torch.ones(BATCH, num_patches + TOKENS, dtype=torch.bool)
    real[1, -5:] = False
    ids = _ids(real)
    ids[:, 1 : 1 + num_patches] = IMAGE
    return Batch({"input_ids": ids, "attention_mask": real.long(), **pictures(model).inputs}, {"language_model": real})


def pictures_in_prefix(model: nn.Module) -> Batch:
    """Return `pictures_in_text` with the token types of the prefix, which sees all of itself."""
    batch = pictures_in_text(model)
    types = torch.zeros_like(batch.inputs["input_ids"])
    types[:, -TOKENS // 2 :] = 1
    return Batch({**batch.inputs, "token_type_ids": types}, batch.real)


def pictures_among_text(model: nn.Module) -> Batch:
    """Return `pictures_in_text` with the token types of the picture, whose tokens see each other."""
    batch = pictures_in_text(model)
    types = (batch.inputs["input_ids"] == IMAGE).long()
    return Batch({**batch.inputs, "token_type_ids": types}, batch.real)


def patches_in_text(model: nn.Module) -> Batch:
    """Return texts with pictures as rows of patches, four of which become one token."""
    side = 4
    real = torch.ones(BATCH, side + TOKENS, dtype=torch.bool)
    real[1, -5:] = False
    ids = _ids(real)
    ids[:, 1] = VISION_START
    ids[:, 2 : 2 + side] = IMAGE
    grid = torch.tensor([[1, side, side]] * BATCH)
    pixels = _normal(side * side, 3 * 2 * PATCH**2).flatten(0, 1)
    inputs = {"input_ids": ids, "attention_mask": real.long(), "pixel_values": pixels, "image_grid_thw": grid}
    return Batch({**inputs, "mm_token_type_ids": (ids == IMAGE).int()}, {"language_model": real})


def waves(model: nn.Module) -> Batch:
    """Return raw sound, with the padding of its frames as the model computes it."""
    mask = torch.ones(BATCH, 24, dtype=torch.long)
    mask[1, 14:] = 0
    frames = model._get_feat_extract_output_lengths(24)
    real = model._get_feature_vector_attention_mask(int(frames), mask).bool()
    return Batch({"input_values": _normal(24) * mask, "attention_mask": mask}, {"": real})


def spectrogram(model: nn.Module) -> Batch:
    return Batch({"input_values": _normal(model.config.max_length, model.config.num_mel_bins)})


def speech_and_text(model: nn.Module) -> Batch:
    target = _real_on_the_right()
    inputs = {"input_features": _normal(model.config.num_mel_bins, 2 * TOKENS)}
    inputs |= {"decoder_input_ids": _ids(target), "decoder_attention_mask": target.long()}
    return Batch(inputs, {"decoder": target})


def without_padding(batch: Batch) -> Batch | None:
    """Return the same batch with all tokens visible, or None if it hides none."""
    masks = {name: torch.ones_like(mask) for name, mask in batch.inputs.items() if name.endswith("attention_mask")}
    return Batch({**batch.inputs, **masks}) if masks else None


def packed(model: nn.Module, batch: Batch) -> Batch | None:
    """Return two documents in each sequence, with positions that restart; None if the model takes no positions."""
    takes = set(inspect.signature(model.forward).parameters)
    if set(batch.inputs) != {"input_ids", "attention_mask"} or not {"position_ids", "use_cache"} <= takes:
        return None
    positions = torch.cat([torch.arange(5), torch.arange(TOKENS - 5)]).expand(BATCH, -1)
    return Batch({"input_ids": batch.inputs["input_ids"], "position_ids": positions, "use_cache": False})


def _real() -> Tensor:
    real = torch.ones(BATCH, TOKENS, dtype=torch.bool)
    real[1, -5:] = real[2, :3] = False
    return real


def _real_on_the_right() -> Tensor:
    """Return a mask padded on the right: there all implementations of attention compute the same for padded targets."""
    real = torch.ones(BATCH, TOKENS, dtype=torch.bool)
    real[1, -3:] = real[2, -6:] = False
    return real


def _ids(real: Tensor, seed: int = 0) -> Tensor:
    ids = torch.randint(FIRST_WORD, VOCABULARY, real.shape, generator=torch.Generator().manual_seed(seed))
    return ids.masked_fill(~real, PAD)


def _normal(*shape: int) -> Tensor:
    return torch.randn(BATCH, *shape, generator=torch.Generator().manual_seed(2))
