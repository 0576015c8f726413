"""Sound trainings, and other libraries, that new rules of the checkup must leave alone."""

import functools
import gc
import pickle
import sys
import types
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attnwatch
from attnwatch.checkup.targets import ScoredCall
from tests.support.equality import assert_same_weights

VOCABULARY, WIDTH, TOKENS, BATCH = 40, 32, 12, 4


class Block(nn.Module):
    """Self-attention, causal by default."""

    def __init__(self, *, is_causal=True):
        super().__init__()
        self.norm, self.projection, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.is_causal = is_causal

    def forward(self, x, mask=None):
        query, key, value = self.projection(self.norm(x)).unflatten(-1, (3, 4, -1)).transpose(1, 3).unbind(2)
        is_causal = self.is_causal and mask is None
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=is_causal)
        return x + self.out(attended.transpose(1, 2).flatten(2))


class Network(nn.Module):
    """Language model."""

    def __init__(self, **options):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(64, WIDTH)
        self.blocks, self.head = nn.ModuleList([Block(**options), Block(**options)]), nn.Linear(WIDTH, VOCABULARY)

    def embed(self, ids):
        return self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def next_token(logits, ids):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def train(model, step_loss, *, steps=10, optimizer=None, schedule=None, total_steps=1000):
    """Return the checkup of a training in which `step_loss(model, step)` is the loss."""
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3) if optimizer is None else optimizer
    scheduler = schedule and torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    with attnwatch.TrainingCheckup(model, optimizers=optimizer, total_steps=total_steps) as checkup:
        for step in range(steps):
            with checkup.step(step):
                step_loss(model, step).backward()
            optimizer.step()
            optimizer.zero_grad()
            if scheduler:
                scheduler.step()
    return checkup


def of_texts(model, step):
    ids = torch.randint(5, VOCABULARY, (BATCH, TOKENS))
    return next_token(model(ids), ids)


def kinds(checkup):
    return {finding.kind.value for finding in checkup.findings}


# Nothing of the training changes


class RunningNorm(nn.Module):
    """Norm that divides by a running mean while it trains."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))
        self.register_buffer("size", torch.ones(()))

    def forward(self, x):
        if self.training:
            self.size.lerp_(x.detach().square().mean().sqrt(), 0.5)
        return x / self.size * self.weight


@pytest.mark.parametrize("norm", [RunningNorm, lambda: nn.SyncBatchNorm(TOKENS)])
def test_norms_with_a_state_are_not_called(norm):
    models = []
    for is_watched in (False, True):
        torch.manual_seed(0)
        model = Network()
        model.blocks[0].norm = norm() if norm is RunningNorm else model.blocks[0].norm
        model.unused_norm = norm()
        if is_watched:
            train(model, of_texts, steps=6)
        else:
            torch.manual_seed(1)
            optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
            for step in range(6):
                of_texts(model, step).backward()
                optimizer.step()
                optimizer.zero_grad()
        models.append(model)
    assert_same_weights(*models)
    assert all(map(torch.equal, models[0].buffers(), models[1].buffers()))


class LazyModule(types.ModuleType):
    """Module of an application that imports its parts when somebody reads its names."""

    @property
    def __dict__(self):
        raise ImportError("a part is not installed")


class Pretender:
    """Object that says that it is a module, as libraries loaded by cffi do."""

    __class__ = types.ModuleType


@pytest.mark.parametrize("module", [LazyModule("tests.odd"), Pretender(), None, 3])
def test_what_is_no_plain_module_is_left_alone(monkeypatch, module):
    monkeypatch.setitem(sys.modules, "tests.odd", module)
    assert not kinds(train(Network(), of_texts))


def test_error_in_the_search_for_losses_ends_the_checkup_not_the_training(monkeypatch):
    monkeypatch.setattr("attnwatch.checkup.loss_functions._namespace", lambda module: 1 / 0)
    with pytest.warns(attnwatch.AttnwatchWarning, match="the checkup failed and stops, training continues"):
        checkup = train(Network(), of_texts)
    assert "ZeroDivisionError" in checkup.skipped["future_leak"]


def test_losses_may_be_deleted_and_pickled_in_a_step():
    model = Network()
    model.loss = F.cross_entropy
    with attnwatch.TrainingCheckup(model) as checkup, checkup.step(0):
        pickled = pickle.dumps(model)
        model(torch.zeros(2, 3, dtype=torch.long)).sum().backward()
        del model.loss
    assert pickle.loads(pickled).loss is F.cross_entropy
    assert not hasattr(model, "loss")


@pytest.mark.parametrize("is_last_in_first_out", [True, False])
def test_two_checkups_at_once_see_the_losses_and_leave_nothing_behind(is_last_in_first_out):
    loss, forward = F.cross_entropy, vars(Network)["forward"]
    models = [Network(), Network()]
    optimizers = [torch.optim.AdamW(model.parameters()) for model in models]
    checkups = [
        attnwatch.TrainingCheckup(model, optimizers=optimizer)
        for model, optimizer in zip(models, optimizers, strict=True)
    ]
    for step in range(3):
        contexts = [checkup.step(step) for checkup in checkups]
        for context in contexts:
            context.__enter__()
        ids = torch.randint(5, VOCABULARY, (BATCH, TOKENS))
        for model in models:
            next_token(model(ids), ids).backward()
        for context in contexts[::-1] if is_last_in_first_out else contexts:
            context.__exit__(None, None, None)
        assert F.cross_entropy is loss
        assert vars(Network)["forward"] is forward
    for checkup in checkups:
        assert "labels_shifted_twice" in checkup.answered
        checkup.close()


def test_wrapped_losses_are_seen(monkeypatch):
    original = F.cross_entropy

    @functools.wraps(original)
    def wrapped(*args, **kwargs):
        return original(*args, **kwargs)

    monkeypatch.setattr(F, "cross_entropy", wrapped)
    assert "labels_shifted_twice" in train(Network(), of_texts, steps=3).answered
    assert F.cross_entropy is wrapped


def test_functions_that_were_taken_in_a_step_keep_nothing_of_later_ones():
    taken = []

    def loss(model, step):
        taken.append(F.cross_entropy)
        ids = torch.randint(5, VOCABULARY, (BATCH, TOKENS))
        return taken[0](model(ids)[:, :-1].mT, ids[:, 1:])

    gc.collect()
    before = sum(isinstance(each, ScoredCall) for each in gc.get_objects())
    checkup = train(Network(), loss, steps=12)
    gc.collect()
    assert "labels_shifted_twice" in checkup.answered
    assert sum(isinstance(each, ScoredCall) for each in gc.get_objects()) - before <= 1


def test_functions_that_other_code_replaces_in_a_step_keep_nothing(monkeypatch):
    original = F.cross_entropy
    monkeypatch.setattr(F, "cross_entropy", original)  # to be put back

    def loss(model, step):
        result = of_texts(model, step)
        F.cross_entropy = functools.wraps(original)(lambda *args, **kwargs: original(*args, **kwargs))
        return result

    gc.collect()
    before = sum(isinstance(each, ScoredCall) for each in gc.get_objects())
    assert "labels_shifted_twice" in train(Network(), loss, steps=8).answered
    gc.collect()
    assert sum(isinstance(each, ScoredCall) for each in gc.get_objects()) == before


def test_batches_are_forgotten_after_each_step():
    batches = []

    def loss(model, step):
        ids = torch.randint(5, VOCABULARY, (BATCH, TOKENS))
        batches.append(weakref.ref(ids))
        return next_token(model(ids), ids)

    model = Network()
    with attnwatch.TrainingCheckup(model) as checkup:
        for step in range(2):
            with checkup.step(step):
                loss(model, step).backward()
        gc.collect()
        assert not [each for each in batches if each() is not None]


# Places in the batch


class Memory(Network):
    """Model that also sees the states of the last segment, which it keeps for each place in the batch."""

    def __init__(self):
        super().__init__()
        self.last = None

    def forward(self, ids):
        x = self.embed(ids)
        last = torch.zeros_like(x) if self.last is None else self.last
        self.last = x.detach()
        sees = torch.ones(2 * TOKENS, 2 * TOKENS, dtype=torch.bool).tril()
        for block in self.blocks:
            x = block(torch.cat([last, x], 1), sees)[:, TOKENS:]
        return self.head(x)


class Prompted(Network):
    """Model that compares texts with as many descriptions of classes."""

    def forward(self, ids, prompts):
        return super().forward(ids).mean(1) @ super().forward(prompts).mean(1).T


class Biased(Network):
    """Model that receives a bias of its attention for each head."""

    def forward(self, ids, bias):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, bias)
        return self.head(x)


def of_prompts(model, step):
    prompts = torch.arange(5, 5 + BATCH * 6).view(BATCH, 6)
    return F.cross_entropy(model(torch.randint(5, VOCABULARY, (BATCH, TOKENS)), prompts), torch.arange(BATCH) % 3)


def with_bias(model, step):
    ids = torch.randint(5, VOCABULARY, (BATCH, TOKENS))
    distances = (torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)).abs()
    bias = -distances * torch.tensor([0.5, 0.25, 0.125, 0.0625])[:, None, None]
    return next_token(model(ids, bias.masked_fill(torch.ones_like(distances).triu(1).bool(), -torch.inf)), ids)


@pytest.mark.parametrize(
    ("model", "loss"),
    [(Memory, of_texts), (Prompted, of_prompts), (Biased, with_bias)],
    ids=["memory", "prompts", "bias"],
)
def test_what_has_the_size_of_the_batch_by_chance_or_belongs_to_a_place(model, loss):
    torch.manual_seed(0)
    assert "order_ignored" not in kinds(train(model(), loss))


# Labels


def at_last_place(model, step):
    ids = torch.randint(5, VOCABULARY, (32, TOKENS))
    ids[:, 0] = 1
    return F.cross_entropy(model(ids)[:, -1], ids[:, 3])


def at_last_place_of_all(model, step):
    ids = torch.randint(5, VOCABULARY, (32, TOKENS))
    ids[:, 0] = 1
    targets = torch.full_like(ids, -100)
    targets[:, -1] = ids[:, 3]
    return F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())


def before_padding(model, step):
    ids, lengths = torch.randint(5, VOCABULARY, (32, TOKENS)), torch.randint(5, TOKENS - 2, (32, 1))
    ids = ids.masked_fill(torch.arange(TOKENS) >= lengths, 0)
    targets = torch.full_like(ids, -100).scatter(1, lengths - 1, ids[:, 1:2])
    return F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())


def recalled(model, step):
    ids = torch.randint(5, VOCABULARY, (32, TOKENS))
    ids[:, 7::2] = 0
    targets = torch.full_like(ids, -100)
    targets[:, 6::2] = ids[:, 1:2]
    return F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("loss", [at_last_place, at_last_place_of_all, before_padding])
def test_sparse_targets_beside_one_token_are_not_shifted(loss, is_causal):
    torch.manual_seed(0)
    assert "labels_shifted_twice" not in kinds(train(Network(is_causal=is_causal), loss, steps=4))


def test_recall_between_fillers_is_not_shifted():
    torch.manual_seed(0)
    assert "labels_shifted_twice" not in kinds(train(Network(), recalled, steps=4))


def test_rare_targets_are_not_all_one_number():
    torch.manual_seed(0)

    def loss(model, step):
        targets = torch.zeros(64)
        targets[50] = 1.0
        logits = model(torch.randint(5, VOCABULARY, (64, TOKENS))).mean((1, 2))
        return F.binary_cross_entropy_with_logits(logits, targets)

    assert "empty_batch" not in kinds(train(Network(), loss))


# Optimization


def test_schedule_in_units_of_one():
    def noam(step):
        return WIDTH**-0.5 * min((step + 1) ** -0.5, (step + 1) * 4000**-1.5)

    model = Network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1.0, betas=(0.9, 0.98))
    assert "rate_too_low" not in kinds(train(model, of_texts, optimizer=optimizer, schedule=noam, total_steps=100_000))


def test_two_passes_of_sharpness_aware_minimisation():
    model = Network()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    with attnwatch.TrainingCheckup(model, optimizers=optimizer, steps_per_epoch=100) as checkup:
        for step in range(10):
            ids = torch.randint(5, VOCABULARY, (BATCH, TOKENS))
            with checkup.step(step):
                next_token(model(ids), ids).backward()
            moves = [0.05 * each.grad for each in model.parameters()]
            with torch.no_grad():
                for each, move in zip(model.parameters(), moves, strict=True):
                    each.add_(move)
            optimizer.zero_grad()
            with checkup.step(step):
                next_token(model(ids), ids).backward()
            with torch.no_grad():
                for each, move in zip(model.parameters(), moves, strict=True):
                    each.sub_(move)
            optimizer.step()
            optimizer.zero_grad()
    assert "repeated_batch" not in kinds(checkup)


class WithTemperature(Network):
    """Model whose learned temperature is also read for a log."""

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.logged = []

    def forward(self, ids):
        self.logged = [self.temperature.item()]
        return super().forward(ids) * self.temperature


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
def test_gradients_that_are_cleared_within_the_step():
    model = WithTemperature()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    with attnwatch.TrainingCheckup(model, optimizers=optimizer) as checkup:
        for step in range(10):
            with checkup.step(step):
                of_texts(model, step).backward()
                optimizer.step()
                optimizer.zero_grad()
    assert "no_gradient" not in kinds(checkup)


# Masks


@pytest.mark.parametrize("has_padding", [True, False])
def test_own_masks_that_are_true_at_padding(has_padding):
    class Masked(Network):
        def forward(self, ids, attention_mask):
            x = self.embed(ids)
            for block in self.blocks:
                x = block(x, ~attention_mask[:, None, None, :])
            return self.head(x).masked_fill(attention_mask[..., None], 0.0).sum(1)

    def loss(model, step):
        ids = torch.randint(5, VOCABULARY, (BATCH, TOKENS))
        mask = torch.arange(TOKENS) >= (torch.randint(6, 10, (BATCH, 1)) if has_padding else TOKENS)
        return F.cross_entropy(model(ids, mask.expand(BATCH, TOKENS)), torch.arange(BATCH))

    torch.manual_seed(0)
    found = kinds(train(Masked(is_causal=False), loss))
    assert "empty_batch" not in found
    assert has_padding or "mask_inverted" not in found


class OfFrames(nn.Module):
    """Classifier of frames [batch, tokens, width], which may attend to the other sequences too."""

    def __init__(self, *, attends_to_batch=False):
        super().__init__()
        self.block, self.head = Block(is_causal=False), nn.Linear(WIDTH, 3)
        self.over_batch = nn.Linear(WIDTH, 3 * WIDTH) if attends_to_batch else None

    def forward(self, frames):
        x = self.block(frames).mean(1)
        if self.over_batch is not None:
            query, key, value = self.over_batch(x)[None].unflatten(-1, (3, 4, -1)).transpose(1, 3).unbind(2)
            x = x + F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)[0]
        return self.head(x)


def frames_of_classes(model, frames):
    return F.cross_entropy(model(frames), torch.arange(len(frames)) % 3)


def test_silence_at_the_end_is_no_more_than_a_note():
    torch.manual_seed(0)
    lengths = torch.tensor([12, 5, 9, 7])[:, None]
    frames = torch.randn(BATCH, TOKENS, WIDTH) * (torch.arange(TOKENS) < lengths)[..., None]
    model = OfFrames().train()
    checkup = attnwatch.check_training(
        model, frames, optimizers=torch.optim.AdamW(model.parameters()), forward=frames_of_classes
    )
    assert [(each.kind.value, each.is_note) for each in checkup.findings] == [("padding_leak", True)]


def test_attention_that_is_given_all_sequences_as_one_is_a_note():
    torch.manual_seed(0)
    model = OfFrames(attends_to_batch=True).train()
    checkup = attnwatch.check_training(
        model,
        torch.randn(BATCH, TOKENS, WIDTH),
        optimizers=torch.optim.AdamW(model.parameters()),
        forward=frames_of_classes,
    )
    assert [(each.kind.value, each.is_note) for each in checkup.findings] == [("batch_mixing", True)]


class Segmenter(nn.Module):
    """Labels each pixel of an image, whose patches overlap."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Conv2d(3, WIDTH, 7, stride=4, padding=3)
        self.block, self.head = Block(is_causal=False), nn.Conv2d(WIDTH, 16, 1)

    def forward(self, pixel_values, labels):
        maps = self.enter(pixel_values)
        states = self.block(maps.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, maps.shape[2:])
        return F.cross_entropy(F.interpolate(self.head(states), labels.shape[1:]), labels), self.head(states)


def test_labels_of_pixels_are_no_texts():
    torch.manual_seed(0)
    model = Segmenter().train()
    batch = {"pixel_values": torch.randn(BATCH, 3, 32, 32), "labels": torch.randint(16, (BATCH, 32, 32))}
    checkup = attnwatch.check_training(
        model,
        batch,
        optimizers=torch.optim.AdamW(model.parameters()),
        forward=lambda model, batch: model(**batch)[0],
    )
    assert "batch_mixing" in checkup.answered
    assert not checkup.findings


def test_mask_that_is_made_of_a_separator():
    """The question before the separator is seen in both directions, and only the answer is scored."""
    torch.manual_seed(0)

    class Prefix(Network):
        def forward(self, ids):
            x, places = self.embed(ids), torch.arange(ids.shape[1])
            is_question = (ids == 1).flip(1).cumsum(1).flip(1) > 0  # up to the last separator
            mask = (places <= places[:, None]) | (is_question[:, :, None] & is_question[:, None])
            for block in self.blocks:
                x = block(x, mask[:, None])
            return self.head(x)

    def loss(model, ids):
        is_answer = torch.arange(TOKENS - 1) >= (ids == 1).int().argmax(1)[:, None]
        losses = F.cross_entropy(model(ids)[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
        return (losses * is_answer).sum() / is_answer.sum()

    ids = torch.randint(2, VOCABULARY, (BATCH, TOKENS))
    ids[torch.arange(BATCH), torch.tensor([4, 6, 5, 7])] = 1
    model = Prefix().train()
    checkup = attnwatch.check_training(model, ids, optimizers=torch.optim.AdamW(model.parameters()), forward=loss)
    assert "future_leak" in checkup.answered
    assert not checkup.findings
