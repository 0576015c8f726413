"""Inputs of other kinds than padded tensors by name: containers of all sorts, nested tensors, and empty batches."""

import types
from collections import OrderedDict, UserDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BatchEncoding
from transformers.modeling_outputs import BaseModelOutput

from attnwatch import TrainingCheckup
from attnwatch.checkup.containers import tensors_in
from attnwatch.checkup.forward import CannotCheck
from attnwatch.checkup.sequences import first_sequences

SIZE, TOKENS, VOCABULARY, WIDTH = 6, 8, 30, 16


class Pair(NamedTuple):
    ids: Tensor
    name: str


@dataclass(frozen=True)
class Sample:
    ids: Tensor
    name: str = "sample"


class Read(Mapping):
    """Mapping that can't be changed, made of another one."""

    def __init__(self, entries):
        self._entries = dict(entries)

    def __getitem__(self, name):
        return self._entries[name]

    def __iter__(self):
        return iter(self._entries)

    def __len__(self):
        return len(self._entries)


class Drawn(Read):
    """Mapping that is not made of another one."""

    def __init__(self, ids, name):
        super().__init__({"ids": ids, "name": name})


class Ordered(dict):
    """Dict with an attribute."""

    side = "right"


CONTAINERS = {
    "dict": lambda ids: {"ids": ids},
    "dict with an attribute": lambda ids: _with_side(Ordered(ids=ids)),
    "ordered dict": lambda ids: OrderedDict(ids=ids),
    "UserDict": lambda ids: UserDict(ids=ids),
    "BatchEncoding": lambda ids: BatchEncoding({"ids": ids}),
    "output of transformers": lambda ids: BaseModelOutput(last_hidden_state=ids),
    "named tuple": lambda ids: Pair(ids, "sample"),
    "frozen dataclass": Sample,
    "mapping": lambda ids: Read({"ids": ids}),
    "mapping proxy": lambda ids: types.MappingProxyType({"ids": ids}),
    "nested": lambda ids: [{"ids": (Sample(ids),)}],
}


def _with_side(entries):
    entries.side = "left"
    return entries


@pytest.mark.parametrize("make", CONTAINERS.values(), ids=CONTAINERS)
def test_containers_are_cut_and_stay_as_they_were(make):
    ids = torch.arange(SIZE * TOKENS).view(SIZE, TOKENS)
    container = make(ids)
    cut = first_sequences(container, SIZE, 4)
    assert type(cut) is type(container)
    (_, first), *others = tensors_in(cut)
    assert not others
    assert torch.equal(first, ids[:4])
    assert [tensor is ids for _, tensor in tensors_in(container)] == [True]
    assert getattr(cut, "side", None) == getattr(container, "side", None)
    assert getattr(cut, "name", "sample") == "sample"


def test_what_can_not_be_made_anew_has_a_reason():
    with pytest.raises(CannotCheck, match="received a Drawn, which can't be copied with fewer sequences"):
        first_sequences(Drawn(torch.ones(SIZE, 2), "x"), SIZE, 4)
    with pytest.raises(CannotCheck, match="an iterator, which can be read only once"):
        first_sequences([iter([])], SIZE, 4)


def test_what_has_no_tensor_is_copied_if_it_can_be_changed():
    for value in ("x", 3, None, torch.float32, len):
        assert first_sequences(value, SIZE, 4) is value
    state = {"calls": 0}
    copied = first_sequences(state, SIZE, 4)
    assert copied == state
    assert copied is not state


class Stored(dict):
    """Dict whose copies share their entries."""

    def __init__(self, **entries):
        super().__init__(**entries)
        self.store = dict(entries)

    def __setitem__(self, name, value):
        self.store[name] = value

    def __getitem__(self, name):
        return self.store[name]

    def items(self):
        return self.store.items()

    def update(self, entries):
        self.store.update(entries)


def test_batch_whose_copies_share_their_entries_stays_as_it_was():
    ids = torch.arange(SIZE * TOKENS).view(SIZE, TOKENS)
    batch = Stored(ids=ids)
    with pytest.raises(CannotCheck, match="a copy of a Stored shares its entries"):
        first_sequences(batch, SIZE, 4)
    assert batch["ids"] is ids


def test_containers_that_hold_one_another_end():
    first, second = {}, {}
    first["other"], second["other"], second["ids"] = second, first, torch.ones(2)
    assert len(list(tensors_in(first))) > 1


class Net(nn.Module):
    """Encoder of ids, which may be nested, and of what else a batch has."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True, dropout=0.0)

    def forward(self, ids, extra=None):
        for _, tensor in tensors_in(extra):
            assert len(tensor) == len(ids)
        ids = torch.nested.to_padded_tensor(ids, 0) if ids.is_nested else ids
        return self.head(self.layer(self.embedding(ids)))


def checked(batches, extra=lambda ids: None) -> TrainingCheckup:
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with TrainingCheckup(model, optimizers=optimizer) as checkup:
        for step, ids in enumerate(batches):
            with checkup.step(step):
                logits = model(ids, extra(ids))
                F.cross_entropy(logits.flatten(0, 1), torch.randint(VOCABULARY, logits.shape[:2]).flatten()).backward()
            optimizer.step()
            optimizer.zero_grad()
    return checkup


def whole_batches(number=9):
    return [torch.randint(1, VOCABULARY, (SIZE, TOKENS)) for _ in range(number)]


@pytest.mark.parametrize("extra", [CONTAINERS["BatchEncoding"], CONTAINERS["named tuple"], CONTAINERS["mapping"]])
def test_forwards_with_containers_are_repeated(extra):
    checkup = checked(whole_batches(2), extra)
    assert "batch_mixing" in checkup.answered, checkup.skipped["batch_mixing"]


class OfBatch(nn.Module):
    """Encoder that receives a whole batch: ids, their mask and the labels."""

    def __init__(self, read, *, ignores_mask=False):
        super().__init__()
        self.net, self.head, self.read, self.ignores_mask = Net(), nn.Linear(VOCABULARY, 2), read, ignores_mask

    def forward(self, batch):
        ids, mask, _ = self.read(batch)
        padding = None if self.ignores_mask else ~mask.bool()
        states = self.net.layer(self.net.embedding(ids), src_key_padding_mask=padding)
        return self.head(self.net.head(states)[:, 0])


class Texts(NamedTuple):
    ids: Tensor
    attention_mask: Tensor
    labels: Tensor


@dataclass
class TextsOfClass:
    ids: Tensor
    attention_mask: Tensor
    labels: Tensor


BATCHES = {
    "dict": (lambda **batch: batch, lambda batch: tuple(batch.values())),
    "BatchEncoding": (lambda **batch: BatchEncoding(batch), lambda batch: tuple(batch.values())),
    "named tuple": (Texts, tuple),
    "dataclass": (TextsOfClass, lambda batch: (batch.ids, batch.attention_mask, batch.labels)),
}


@pytest.mark.parametrize(("make", "read"), BATCHES.values(), ids=BATCHES)
def test_parts_of_a_batch_are_arguments(make, read):
    def found(**options):
        torch.manual_seed(0)
        model = OfBatch(read, **options)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        lengths = torch.tensor([8, 3, 5, 8, 4, 6])
        with TrainingCheckup(model, optimizers=optimizer) as checkup:
            for step in range(3):
                mask = (torch.arange(TOKENS) < lengths[:, None]).long()
                ids, labels = torch.randint(1, VOCABULARY, (SIZE, TOKENS)) * mask, torch.arange(SIZE) % 2
                batch = make(ids=ids, attention_mask=mask, labels=labels)
                with checkup.step(step):
                    F.cross_entropy(model(batch), labels).backward()
                optimizer.step()
                optimizer.zero_grad()
        assert {"batch_mixing", "blind_attention", "padding_leak"} <= checkup.answered, checkup.skipped
        return {finding.kind.value for finding in checkup.findings if not finding.is_note}

    assert "padding_leak" not in found()
    assert "padding_leak" in found(ignores_mask=True)


def test_batch_that_forward_changes_is_not_repeated():
    def roll(batch):
        batch["ids"], batch["attention_mask"] = batch["ids"].roll(1, 0), batch["attention_mask"].roll(1, 0)
        return tuple(batch.values())

    torch.manual_seed(0)
    model = OfBatch(roll)
    mask = (torch.arange(TOKENS) < torch.tensor([8, 3, 5, 8, 4, 6])[:, None]).long()
    batch = {"ids": torch.randint(1, VOCABULARY, (SIZE, TOKENS)) * mask, "attention_mask": mask, "labels": mask[:, 0]}
    with TrainingCheckup(model, optimizers=torch.optim.AdamW(model.parameters())) as checkup, checkup.step(0):
        F.cross_entropy(model(batch), torch.arange(SIZE) % 2).backward()
    assert "changes the batch that it receives" in checkup.skipped["padding_leak"]


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_nested_tensors_are_skipped_with_a_reason(layout):
    rows = [[torch.randint(1, VOCABULARY, (length,)) for length in (5, 8, 3)] for _ in range(9)]
    checkup = checked([torch.nested.nested_tensor(each, layout=layout) for each in rows])
    for name in ("batch_mixing", "padding_leak", "repeated_batch"):
        assert checkup.skipped[name].startswith("the model received a nested tensor")
    assert not [reason for reason in checkup.skipped.values() if "failed" in reason]
    assert {"not_in_optimizer", "no_gradient"} - checkup.answered <= {"no_gradient"}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_nested_outputs_do_not_end_the_checkup():
    layer = nn.Linear(WIDTH, VOCABULARY)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3)
    with TrainingCheckup(layer, optimizers=optimizer) as checkup:
        for step in range(9):
            features = torch.nested.nested_tensor([torch.randn(length, WIDTH) for length in (5, 8, 3)])
            with checkup.step(step):
                torch.nested.to_padded_tensor(layer(features), 0.0).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert not [reason for reason in checkup.skipped.values() if "failed" in reason]
    assert "rate_too_high" in checkup.answered


@pytest.mark.parametrize("shape", [(0, TOKENS), (SIZE, 0)])
def test_empty_batches_are_skipped_with_a_reason_and_later_ones_checked(shape):
    empty = torch.zeros(shape, dtype=torch.long)
    only, later = checked([empty] * 3), checked([empty, *whole_batches()])
    for name in ("batch_mixing", "repeated_batch", "order_ignored"):
        assert only.skipped[name].startswith("the batch is empty")
        assert name in later.answered or later.skipped[name].startswith("no batch came again in the first")
    for checkup in (only, later):
        assert not [reason for reason in checkup.skipped.values() if "failed" in reason]
