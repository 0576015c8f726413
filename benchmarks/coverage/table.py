"""All architectures that are measured."""

from benchmarks.coverage.architecture import Architecture
from benchmarks.coverage.decoders import DECODERS
from benchmarks.coverage.encoders import ENCODERS
from benchmarks.coverage.hybrids import HYBRIDS
from benchmarks.coverage.senses import SENSES
from benchmarks.coverage.two_stacks import TWO_STACKS

ARCHITECTURES = (*DECODERS, *HYBRIDS, *ENCODERS, *TWO_STACKS, *SENSES)
# One of each kind.
QUICK = ("LlamaForCausalLM", "JambaForCausalLM", "MambaForCausalLM", "BertModel", "T5Model", "ViTModel")


def architecture(model: str) -> Architecture:
    """The first one with this model class."""
    return next(each for each in ARCHITECTURES if each.model == model)
