"""A classifier of two classes, with and without a decoder, and a batch for it."""

import torch
import transformers as hf
from torch import nn

from tests.support.models import bert, padding_mask, seeded, token_ids

LABELS = torch.tensor([1, 0, 1])


def classifier(implementation: str = "sdpa", **options) -> nn.Module:
    config = bert(implementation, **options).config
    config._attn_implementation = implementation
    return seeded(lambda: hf.BertForSequenceClassification(config))


def batch_of(side: str) -> dict:
    mask = padding_mask(side)
    return {"input_ids": token_ids() * mask, "attention_mask": mask, "labels": LABELS}
