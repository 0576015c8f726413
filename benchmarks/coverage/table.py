"""Table of the architectures that are measured."""

from benchmarks.coverage.architecture import Architecture
from benchmarks.coverage.decoders import DECODERS
from benchmarks.coverage.encoder_decoders import ENCODER_DECODERS
from benchmarks.coverage.encoders import ENCODERS
from benchmarks.coverage.hybrids import HYBRIDS
from benchmarks.coverage.vision_and_audio import VISION_AND_AUDIO

ARCHITECTURES = (*DECODERS, *HYBRIDS, *ENCODERS, *ENCODER_DECODERS, *VISION_AND_AUDIO)
# One of each kind.
QUICK = ("LlamaForCausalLM", "JambaForCausalLM", "MambaForCausalLM", "BertModel", "T5Model", "ViTModel")


def architecture(model: str) -> Architecture:
    """Return the first architecture with this model class."""
    return next(each for each in ARCHITECTURES if each.model == model)
