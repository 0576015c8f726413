"""A checkup beside a training: it changes nothing, answers once, and leaves nothing behind."""

import copy
import gc
import io
import random
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2Model

import attnwatch
from attnwatch import AttnwatchWarning, ConfigurationError, TrainingCheckup, check_training

SIZES = {"n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 1}


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, **SIZES)).train()


class CountingNet(nn.Module):
    """Model with everything that a second forward may change: dropout, batch norm, counters, random numbers."""

    def __init__(self):
        super().__init__()
        self.embedding, self.norm, self.dropout = nn.Embedding(40, 16), nn.BatchNorm1d(16), nn.Dropout(0.3)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 40)
        self.register_buffer("num_calls", torch.zeros(()))
        self.num_forwards = 0

    def forward(self, tokens):
        self.num_calls += 1
        self.num_forwards += 1
        x = self.embedding(tokens) * (1 + 0.01 * random.random() + 0.01 * np.random.rand())
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return self.head(self.dropout(self.layer(x)))


def train(model, optimizer, checkup=None, *, steps=4, clear=True, accumulate=1, scheduler=None, batches=None, sign=1):
    losses, data = [], torch.randint(1, 40, (steps * accumulate, 6, 12))
    for step in range(steps * accumulate):
        tokens = data[step % (batches or len(data))]
        context = checkup.step(step // accumulate) if checkup else torch.enable_grad()
        with context:
            output = model(tokens)
            logits = getattr(output, "logits", output)
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
            (sign * loss).backward()
        losses.append(loss.item())
        if (step + 1) % accumulate == 0:
            optimizer.step()
            if scheduler:
                scheduler.step()
            if clear:
                optimizer.zero_grad()
    return losses


@pytest.mark.parametrize("make", [gpt2, CountingNet])
def test_training_stays_bit_identical(make):
    def run(watched: bool):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        model = make()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        if not watched:
            return model, train(model, optimizer), torch.rand(3)
        with TrainingCheckup(model, optimizers=optimizer) as checkup:
            losses = train(model, optimizer, checkup)
            assert "future_leak" not in checkup.skipped
        return model, losses, torch.rand(3)

    (model, losses, numbers), (expected, expected_losses, expected_numbers) = run(True), run(False)
    assert losses == expected_losses
    assert torch.equal(numbers, expected_numbers)
    assert getattr(model, "num_forwards", 4) == 4
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_check_training_leaves_gradients_modes_and_random_states():
    model, tokens = gpt2(), torch.randint(1, 40, (4, 10))
    model(input_ids=tokens, labels=tokens).loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    state = torch.get_rng_state()
    assert not check_training(model, {"input_ids": tokens, "labels": tokens}).findings
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(parameter.grad, gradients[name]) for name, parameter in model.named_parameters())
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_first_loss_is_a_mean_however_the_script_reduces_it(reduction):
    def loss(model, tokens):
        logits = model(tokens).logits[:, :-1].flatten(0, 1)
        return F.cross_entropy(logits, tokens[:, 1:].flatten(), reduction=reduction)

    checkup = check_training(gpt2(), torch.randint(1, 40, (4, 10)), forward=loss)
    assert not checkup.findings
    assert "initialisation" not in checkup.skipped


@pytest.mark.parametrize(
    ("clear", "accumulate", "found"),
    [(False, 1, True), (True, 1, False), (True, 3, False), (False, 3, True)],
    ids=["not cleared", "cleared", "accumulated", "accumulated and not cleared"],
)
def test_gradients_that_were_not_cleared_are_told_from_accumulation(clear, accumulate, found):
    model = gpt2()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with TrainingCheckup(model, optimizers=optimizer) as checkup:
        train(model, optimizer, checkup, clear=clear, accumulate=accumulate)
    assert [finding.kind.value for finding in checkup.findings] == ["gradients_not_cleared"] * found
    if found:
        assert checkup.findings[0].step == 2
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("clears", ["before the forward", "after the step"])
def test_gradients_of_weights_that_only_the_loss_uses_are_no_old_ones(clears):
    """They are there before the outputs of the model have gradients."""
    model = gpt2()
    model.scale = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.AdamW([model.scale, *model.transformer.parameters()], lr=1e-3)
    with TrainingCheckup(model, optimizers=optimizer) as checkup:
        for step in range(4):
            tokens = torch.randint(1, 40, (4, 10))
            with checkup.step(step):
                if clears == "before the forward":
                    optimizer.zero_grad()
                loss = model(input_ids=tokens, labels=tokens).loss
                (loss * (-model.scale).exp() + model.scale).backward()
            optimizer.step()
            if clears == "after the step":
                optimizer.zero_grad()
    assert not checkup.findings, checkup
    assert "gradients_not_cleared" not in checkup.skipped


def test_gradients_that_take_the_place_of_the_old_ones_need_no_clearing():
    model = gpt2()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with TrainingCheckup(model, optimizers=optimizer) as checkup:
        for step in range(4):
            tokens = torch.randint(1, 40, (4, 10))
            with checkup.step(step):
                loss = model(input_ids=tokens, labels=tokens).loss
                parameters = list(model.parameters())
                for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                    parameter.grad = gradient
            optimizer.step()
    assert not checkup.findings, checkup


def test_model_is_saved_within_a_step_without_the_hooks_of_the_checkup():
    model = gpt2()
    with TrainingCheckup(model) as checkup, checkup.step(0):
        stored = io.BytesIO()
        torch.save(model, stored)
        model(torch.randint(1, 40, (4, 10))).logits.sum().backward()
    stored.seek(0)
    loaded = torch.load(stored, weights_only=False)
    tokens = torch.randint(1, 40, (4, 10))
    assert torch.equal(loaded.eval()(tokens).logits, model.eval()(tokens).logits)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_shallow_copy_of_a_model_has_its_layers(duplicate):
    """A copy in eval mode takes the layers of the model with it."""
    model = gpt2()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with TrainingCheckup(model, optimizers=optimizer) as checkup:
        for step in range(2):
            tokens = torch.randint(1, 40, (4, 10))
            with checkup.step(step):
                teacher = duplicate(model).eval()
                with torch.no_grad():
                    teacher(input_ids=tokens)
                model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert [finding.kind.value for finding in checkup.findings] == ["eval_mode"] * (duplicate is copy.copy)


class CountedNet(nn.Module):
    """Encoder or decoder of padded texts that counts its forwards."""

    def __init__(self, causal, counts):
        super().__init__()
        self.embedding, self.positions = nn.Embedding(40, 16, padding_idx=0), nn.Embedding(12, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head, self.causal = nn.Linear(16, 40), causal
        self.count = counts.append  # a list of the module's own would be something that its forward changes

    def forward(self, tokens):
        self.count(len(tokens))
        mask = torch.ones(tokens.shape[1], tokens.shape[1]).triu(1).bool() if self.causal else None
        states = self.embedding(tokens) + self.positions(torch.arange(tokens.shape[1]))
        return self.head(self.layer(states, src_mask=mask, src_key_padding_mask=tokens == 0))


@pytest.mark.parametrize("causal", [True, False])
def test_six_forwards_of_few_sequences_are_repeated_once(causal):
    counts = []
    model, shift = CountedNet(causal, counts), int(causal)
    optimizer = torch.optim.AdamW(model.parameters())
    numbers = []
    with TrainingCheckup(model, optimizers=optimizer) as checkup:
        for step in range(9):
            tokens = torch.randint(1, 40, (6, 12))
            tokens[1, 8:] = 0
            counts.clear()
            with checkup.step(step):
                logits = model(tokens)[:, : 12 - shift].flatten(0, 1)
                F.cross_entropy(logits, tokens[:, shift:].flatten(), ignore_index=0).backward()
            numbers.append(len(counts) - 1)
            assert set(counts[1:]) <= {4}
            optimizer.step()
            optimizer.zero_grad()
    assert numbers == [6, *[0] * 8]
    assert not checkup.findings, checkup


def test_steps_after_the_last_answer_are_not_touched(monkeypatch):
    model = gpt2()
    optimizer = torch.optim.AdamW(model.parameters())
    with TrainingCheckup(model, optimizers=optimizer) as checkup:
        train(model, optimizer, checkup, steps=12)
        monkeypatch.setattr(F, "cross_entropy", F.cross_entropy)
        with checkup.step(12):
            assert not model._forward_hooks
    assert "padding_leak" in checkup.skipped
    assert "not checked: no padding was recognised" in str(checkup)


def test_errors_of_the_training_pass_and_leave_nothing_behind():
    model, original = gpt2(), F.cross_entropy
    with pytest.raises(ValueError, match="of the script"), TrainingCheckup(model) as checkup, checkup.step(0):
        raise ValueError("of the script")
    assert F.cross_entropy is original
    assert not model._forward_hooks
    assert not checkup.findings


def test_check_that_fails_is_named_and_the_others_go_on(registered):
    @registered
    class Failing(attnwatch.Check):
        """A check that fails."""

        name = "failing"
        remedy = "None."

        def look(self, step):
            raise KeyError("no such thing")

    model = gpt2()
    optimizer = torch.optim.AdamW(model.parameters())
    message = r"the check 'failing' \(.*Failing\) failed with KeyError: .*is no longer checked for it"
    with (
        TrainingCheckup(model, optimizers=optimizer) as checkup,
        pytest.warns(AttnwatchWarning, match=message) as given,
    ):
        train(model, optimizer, checkup)
    assert len(given) == 1
    assert checkup.skipped["failing"] == "the check failed with KeyError: 'no such thing'"
    assert "future_leak" not in checkup.skipped


@pytest.mark.parametrize(
    ("own", "advice"), [("", "Look at it."), ("Look at the second half.", "Look at the second half.")]
)
def test_advice_is_that_of_the_fault_or_of_the_check(registered, own, advice):
    @registered
    class Finding(attnwatch.Check):
        """A check that finds something."""

        name = "finding_something"
        remedy = "Look at it."

        def look(self, step):
            return attnwatch.Fault("half of it is missing", remedy=own)

    checkup = check_training(gpt2(), {"input_ids": torch.ones(2, 5, dtype=torch.long)}, forward=_logits)
    finding = next(each for each in checkup.findings if each.kind.value == "finding_something")
    assert finding.message == f"half of it is missing. {advice}"
    assert (finding.what, finding.advice) == ("Half of it is missing.", advice)


def _logits(model, batch):
    return model(**batch).logits.sum()


class _ReadsIterator(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(40, 8)

    def forward(self, mask, batches):
        return self.embedding(next(batches))


UNREADABLE = {
    "iterator": (
        lambda model, batch: model(batch["mask"], iter([batch["tokens"]])),
        "an iterator, which can be read only once",
    ),
    "no gradients": (
        lambda model, batch: model(batch["mask"], iter([batch["tokens"]])).detach(),
        "no forward|iterator",
    ),
    "another model": (lambda model, batch: gpt2()(batch["tokens"]).logits, "no forward with gradients was seen"),
}


@pytest.mark.parametrize(("call", "reason"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_checked_has_a_reason(call, reason):
    batch = {"tokens": torch.ones(2, 5, dtype=torch.long), "mask": torch.ones(2, 5)}
    checkup = check_training(_ReadsIterator(), batch, forward=call)
    assert not checkup.findings
    assert re.search(reason, checkup.skipped["batch_mixing"])


WRONG = {
    "model": (lambda: TrainingCheckup("model"), "`model` must be a torch.nn.Module, got str"),
    "optimizers": (
        lambda: TrainingCheckup(gpt2(), optimizers="adam"),
        "`optimizers` must be a torch.optim.Optimizer or",
    ),
    "no loss": (
        lambda: check_training(gpt2(), torch.ones(2, 5, dtype=torch.long)),
        "`batch`: GPT2LMHeadModel returns no `loss` for it. Add labels",
    ),
    "no forward": (lambda: check_training(nn.Module(), {}), r"`model` \(Module\) has no own forward: pass the"),
    "forward": (lambda: check_training(gpt2(), {}, forward=3), r"`forward` must be a function of \(model, batch\)"),
    "forward without a loss": (
        lambda: check_training(gpt2(), {}, forward=lambda model, batch: (torch.ones(1), None)),
        "`forward` must return the loss as a tensor, got tuple",
    ),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ConfigurationError, match=message):
        call()


def test_step_must_be_a_number():
    with (
        TrainingCheckup(gpt2()) as checkup,
        pytest.raises(ConfigurationError, match="`global_step`"),
        checkup.step("0"),
    ):
        pass


RATES = {
    "1000 times too high": ({"lr": 1.0}, None, torch.float32, "rate_too_high"),
    "usual": ({"lr": 1e-3}, None, torch.float32, None),
    "falls in each step": ({"lr": 1e-3}, lambda step: 0.5**step, torch.float32, "rate_too_low"),
    "falls by a tenth in each step": ({"lr": 1e-3}, lambda step: 0.9**step, torch.float32, "rate_too_low"),
    "is over after three steps": ({"lr": 1e-3}, lambda step: max(0, 1 - step / 3), torch.float32, "rate_too_low"),
    "falls below zero": ({"lr": 1e-3}, lambda step: 1 - step / 3, torch.float32, "loss_rises"),
    "is zero at times": ({"lr": 1e-3}, lambda step: 1 - step % 3 / 2, torch.float32, None),
    "falls as a cosine": ({"lr": 1e-3}, lambda step: 0.5 + 0.5 * np.cos(np.pi * step / 10), torch.float32, None),
    "decays by a tenth": ({"lr": 1e-3, "weight_decay": 100.0}, None, torch.float32, "weights_shrink"),
    "decays as is usual": ({"lr": 1e-3, "weight_decay": 0.1}, None, torch.float32, None),
    "of fine-tuning": ({"lr": 1e-6}, None, torch.float32, None),
    "changes nothing": ({"lr": 1e-10}, None, torch.float32, "rate_too_low"),
    "warmed up from zero": ({"lr": 1e-3}, lambda step: step / 500, torch.float32, None),
    "warmed up for longer than the run": ({"lr": 1e-3}, lambda step: step / 5000, torch.float32, "rate_too_low"),
    "rises over the whole run": ({"lr": 1e-3}, lambda step: step / 1000, torch.float32, None),
    "too high when warmed up": ({"lr": 0.1}, lambda step: step / 40, torch.float32, "rate_too_high"),
    "of schedules in units of 1": ({"lr": 1.0}, lambda step: step * 1e-5, torch.float32, None),
    "drops to a tenth at once": ({"lr": 1e-3}, lambda step: 1.0 if not step else 0.1, torch.float32, "rate_too_low"),
    "halves at once": ({"lr": 1e-3}, lambda step: 1.0 if not step else 0.5, torch.float32, None),
    "stands at its first step": ({"lr": 1e-3}, lambda step: 0.01, torch.float32, "rate_too_low"),
    "stands in units of 1": ({"lr": 1.0}, lambda step: 1e-3, torch.float32, None),
    "stands at a tenth": ({"lr": 1e-3}, lambda step: 0.1, torch.float32, None),
    "lost in bfloat16": ({"lr": 1e-6}, None, torch.bfloat16, "lost_updates"),
    "seen in bfloat16": ({"lr": 2e-3}, None, torch.bfloat16, None),
}


@pytest.mark.parametrize(("options", "factor", "dtype", "expected"), RATES.values(), ids=RATES)
def test_updates_tell_wrong_rates(options, factor, dtype, expected):
    model = gpt2().to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), **options)
    scheduler = factor and torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    with TrainingCheckup(model, optimizers=optimizer, total_steps=1000) as checkup:
        train(model, optimizer, checkup, steps=9, scheduler=scheduler)
    assert [finding.kind.value for finding in checkup.findings] == [expected] * bool(expected), checkup
    assert not {"rate_too_high", "rate_too_low"} & checkup.skipped.keys()


def test_rate_that_stands_still_is_a_note():
    model = gpt2()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.01)
    with TrainingCheckup(model, optimizers=optimizer, total_steps=1000, steps_per_epoch=1000) as checkup:
        train(model, optimizer, checkup, steps=9, scheduler=scheduler)
    (finding,) = checkup.findings
    assert finding.is_note
    assert "has stayed at 0.01 of its full rate" in finding.message


def test_rates_of_optimizers_that_take_turns_are_no_schedule():
    model = gpt2()
    slow = torch.optim.AdamW(model.transformer.parameters(), lr=1e-4)
    fast = torch.optim.AdamW([nn.Parameter(torch.zeros(8, 8))], lr=1e-2)
    with TrainingCheckup(model, optimizers=[slow, fast], total_steps=1000) as checkup:
        for step in range(9):
            with checkup.step(step):
                model(input_ids=torch.randint(1, 40, (4, 10)), labels=torch.randint(1, 40, (4, 10))).loss.backward()
            slow.step()
            if not step:
                fast.step()
            slow.zero_grad()
    assert "rate_too_low" not in {finding.kind.value for finding in checkup.findings}


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.RMSprop, torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("decay", [3.0, 1e-4])
def test_weight_decay_in_the_gradient_of_an_optimizer_that_scales_it(kind, decay):
    model = gpt2()
    optimizer = kind(model.parameters(), lr=1e-5, weight_decay=decay)
    with TrainingCheckup(model, optimizers=optimizer, total_steps=1000) as checkup:
        train(model, optimizer, checkup, steps=9)
    is_coupled = kind in (torch.optim.Adam, torch.optim.RMSprop) and decay > 1
    found = [finding.message for finding in checkup.findings if finding.kind.value == "weights_shrink"]
    assert bool(found) is is_coupled
    assert all("Use AdamW" in message for message in found)


class HalfPrecision(nn.Module):
    """Model with layers in bfloat16 behind embeddings in float32."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(40, 8)
        self.layers = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3))).bfloat16()

    def forward(self, tokens):
        return self.layers(self.embedding(tokens).bfloat16())


def test_precision_of_lost_updates_is_that_of_the_weights_that_lose_them():
    model = HalfPrecision()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    with TrainingCheckup(model, optimizers=optimizer) as checkup:
        for step in range(9):
            with checkup.step(step):
                model(torch.randint(0, 40, (4, 10))).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    (finding,) = (each for each in checkup.findings if each.kind.value == "lost_updates")
    assert finding.message.startswith("in half of the bfloat16 matrices, all weights")
    assert {name.partition(".")[0] for name in finding.sites} == {"layers"}


@pytest.mark.parametrize("share", [0.6, 1.0])
def test_weights_that_are_lost_say_nothing_about_the_rate(share):
    model = gpt2()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with TrainingCheckup(model, optimizers=optimizer) as checkup:
        train(model, optimizer, checkup, steps=1)
        matrices = [each for each in model.parameters() if each.ndim > 1]
        lost = matrices[: round(share * len(matrices))]
        for each in lost:
            each.register_hook(lambda gradient: gradient * torch.inf)
        train(model, optimizer, checkup, steps=9)
    assert [finding.kind.value for finding in checkup.findings] == ["nonfinite_gradient"], checkup


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adafactor, torch.optim.RAdam], ids=lambda o: o.__name__)
def test_other_optimizers_have_usual_rates(make):
    model = gpt2()
    optimizer = make(model.parameters(), lr=1e-2)
    with TrainingCheckup(model, optimizers=optimizer) as checkup:
        train(model, optimizer, checkup, steps=9)
    assert not checkup.findings, checkup


@pytest.mark.parametrize(
    ("batches", "epoch", "expected"),
    [(1, 100, False), (3, 100, False), (5, 100, False), (6, 100, None), (1, 1, True), (1, None, True)],
)
def test_batches_that_come_again_are_told(batches, epoch, expected):
    model = gpt2()
    optimizer = torch.optim.AdamW(model.parameters())
    with TrainingCheckup(model, optimizers=optimizer, steps_per_epoch=epoch) as checkup:
        train(model, optimizer, checkup, steps=10, batches=batches)
    found = {finding.kind.value: finding.is_note for finding in checkup.findings}
    assert found == ({} if expected is None else {"repeated_batch": expected})


@pytest.mark.parametrize(("copies", "found"), [(True, ["repeated_batch"]), (False, [])])
def test_gradients_accumulated_over_copies_of_one_batch(copies, found):
    model = gpt2()
    optimizer = torch.optim.AdamW(model.parameters())
    with TrainingCheckup(model, optimizers=optimizer, steps_per_epoch=100) as checkup:
        for step in range(10):
            tokens = torch.randint(1, 40, (3, 2, 10))
            for part in range(3):
                with checkup.step(step):
                    ids = tokens[0 if copies else part]
                    model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert [finding.kind.value for finding in checkup.findings] == found


def sequences(draw):
    """Train for nine steps with batches of sequences 0 to 19 that `draw` returns."""
    model, data = gpt2(), torch.randint(1, 40, (20, 12))
    optimizer = torch.optim.AdamW(model.parameters())
    with TrainingCheckup(model, optimizers=optimizer, steps_per_epoch=100) as checkup:
        for step in range(9):
            tokens = data[torch.tensor(draw(step))]
            with checkup.step(step):
                model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return {finding.kind.value for finding in checkup.findings}


@pytest.mark.parametrize(
    ("draw", "found"),
    [
        (lambda step: [(step + index) % 6 for index in range(6)][::-1], True),
        (lambda step: [(3 * step + 5 * index**2) % 8 for index in range(8)], True),
        (lambda step: [step] * 6, True),
        (lambda step: range(6) if step % 2 else range(step + 1, step + 7), True),
        (lambda step: [(3 * step + 5 * index**2) % 16 for index in range(8)], False),
        (lambda step: [step, step, step + 1, step + 1], False),
        (lambda step: range(2 * step, 2 * step + 4), False),
    ],
    ids=["reordered", "of eight", "one for all", "every second", "of sixteen", "pairs", "overlapping"],
)
def test_sequences_that_come_again_are_told(draw, found):
    assert sequences(draw) == ({"repeated_batch"} if found else set())


@pytest.mark.parametrize(
    ("classes", "found"), [(lambda step: [step % 3] * 8, True), (lambda step: [step % 3] * 7 + [(step + 1) % 3], False)]
)
def test_batches_of_one_class_are_told(classes, found):
    model = GPT2ForSequenceClassification(GPT2Config(vocab_size=40, num_labels=3, pad_token_id=0, **SIZES)).train()
    optimizer = torch.optim.AdamW(model.parameters())
    with TrainingCheckup(model, optimizers=optimizer) as checkup:
        for step in range(9):
            with checkup.step(step):
                labels = torch.tensor(classes(step))
                model(input_ids=torch.randint(1, 40, (8, 12)), labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert [finding.kind.value for finding in checkup.findings] == ["empty_batch"] * found


@pytest.mark.parametrize(("share", "found"), [(1e-5, True), (0.1, False)])
def test_states_that_are_almost_detached_are_told(share, found):
    model = gpt2()

    def almost_detached(module, args, output):
        states = output[0] if isinstance(output, tuple) else output
        states = share * states + (1 - share) * states.detach()
        return (states, *output[1:]) if isinstance(output, tuple) else states

    model.transformer.h[0].register_forward_hook(almost_detached)
    optimizer = torch.optim.AdamW(model.parameters())
    with TrainingCheckup(model, optimizers=optimizer) as checkup:
        train(model, optimizer, checkup, steps=9)
    assert [finding.kind.value for finding in checkup.findings] == ["broken_gradient_path"] * found, checkup


def restore(weights, model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


def average(weights, model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.lerp_(weights[name], 0.5)


def to_coarse_grid(weights, model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter * 64).round() / 64)


def to_fine_grid(weights, model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter * 2**14).round() / 2**14)


@pytest.mark.parametrize(
    ("change", "found"), [(restore, True), (average, False), (to_coarse_grid, True), (to_fine_grid, False)]
)
def test_updates_that_are_taken_back_are_told(change, found):
    model = gpt2()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with TrainingCheckup(model, optimizers=optimizer) as checkup:
        for step in range(9):
            weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
            tokens = torch.randint(1, 40, (4, 10))
            with checkup.step(step):
                model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            change(weights, model)
    assert [finding.kind.value for finding in checkup.findings] == ["lost_updates"] * found


def test_rate_of_one_group_is_told():
    model = gpt2()
    names = dict(model.named_parameters())
    odd = names.pop("transformer.h.1.mlp.c_fc.weight")
    optimizer = torch.optim.AdamW([{"params": list(names.values())}, {"params": [odd], "lr": 0.1}], lr=1e-3)
    with TrainingCheckup(model, optimizers=optimizer) as checkup:
        train(model, optimizer, checkup, steps=9)
    assert [(finding.kind.value, finding.sites) for finding in checkup.findings] == [
        ("rate_too_high", ("transformer.h.1.mlp.c_fc.weight",))
    ]


class Rounding(nn.Module):
    """Two layers of attention; the states between them are rounded, whose slope is zero, or not."""

    def __init__(self, rounds):
        super().__init__()
        self.embedding, self.head, self.rounds = nn.Embedding(40, 16), nn.Linear(16, 40), rounds
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(2))

    def forward(self, tokens):
        mask = torch.ones(tokens.shape[1], tokens.shape[1]).triu(1).bool()
        states = self.layers[0](self.embedding(tokens), src_mask=mask)
        return self.head(self.layers[1](states.round() if self.rounds else states, src_mask=mask))


@pytest.mark.parametrize("rounds", [True, False])
def test_layers_whose_gradient_is_zero_are_told(rounds):
    model = Rounding(rounds)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with TrainingCheckup(model, optimizers=optimizer) as checkup:
        train(model, optimizer, checkup)
    assert [(finding.kind.value, finding.step) for finding in checkup.findings] == [
        ("broken_gradient_path", 3)
    ] * rounds


def test_batches_that_come_again_in_another_order_are_told():
    model, tokens = gpt2(), torch.randint(1, 40, (6, 12))
    optimizer = torch.optim.AdamW(model.parameters())
    with TrainingCheckup(model, optimizers=optimizer, steps_per_epoch=100) as checkup:
        for step in range(9):
            batch = tokens[torch.randperm(6)]
            with checkup.step(step):
                model(input_ids=batch, labels=batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert [finding.kind.value for finding in checkup.findings] == ["repeated_batch"]


SIGNS = {"of the loss": (-1, {}), "of the optimizer": (1, {"maximize": True})}


@pytest.mark.parametrize(("sign", "options"), SIGNS.values(), ids=SIGNS)
def test_steps_up_the_gradient_are_told(sign, options):
    model = gpt2()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, **options)
    with TrainingCheckup(model, optimizers=optimizer) as checkup:
        train(model, optimizer, checkup, sign=sign)
    assert [finding.kind.value for finding in checkup.findings] == ["loss_rises"]
    assert checkup.findings[0].step == 1


def test_losses_that_are_weighted_by_sample_have_no_sign():
    model = gpt2()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    with TrainingCheckup(model, optimizers=optimizer) as checkup:
        for step in range(4):
            tokens = torch.randint(1, 40, (4, 10))
            with checkup.step(step):
                logits = model(tokens).logits[:, :-1].flatten(0, 1)
                (-F.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="none")).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert not checkup.findings, checkup


def classify(step_of_labels, *, classes=4, steps=9, total_steps=None, rate=1e-2):
    """Train on whether texts begin with a small token, or with other labels."""
    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(GPT2Config(vocab_size=40, num_labels=classes, pad_token_id=0, **SIZES))
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=rate)
    with TrainingCheckup(model, optimizers=optimizer, total_steps=total_steps) as checkup:
        for step in range(steps):
            tokens = torch.randint(1, 40, (16, 8))
            with checkup.step(step):
                model(tokens, labels=step_of_labels(tokens)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return {finding.kind.value: finding for finding in checkup.findings}


@pytest.mark.parametrize(("classes", "is_note"), [(4, False), (2, True)])
def test_one_class_only_is_told(classes, is_note):
    found = classify(lambda tokens: torch.zeros(16, dtype=torch.long), classes=classes)
    assert {kind: finding.is_note for kind, finding in found.items()} == {"empty_batch": is_note}
    assert not classify(lambda tokens: torch.arange(16) % classes, classes=classes)


def test_ranking_with_the_right_candidate_first_is_a_note():
    """As in contrastive losses with a queue: the scores are no outputs of the model."""
    torch.manual_seed(0)
    model = GPT2Model(GPT2Config(vocab_size=40, **SIZES)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with TrainingCheckup(model, optimizers=optimizer) as checkup:
        for step in range(6):
            with checkup.step(step):
                queries = model(torch.randint(1, 40, (8, 10))).last_hidden_state[:, -1]
                candidates = 0.1 * torch.randn(8, 5, 32)
                scores = (candidates @ queries[:, :, None]).squeeze(-1)
                F.cross_entropy(scores, torch.zeros(8, dtype=torch.long)).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert [(finding.kind.value, finding.is_note) for finding in checkup.findings] == [("empty_batch", True)]


@pytest.mark.parametrize(
    ("labels", "is_found"),
    [
        (torch.tensor([2, 0, 1, 1, 2, 0, 0, 3, 0, 2, 2, 1, 3, 0, 1, 3]), True),
        (torch.arange(16) // 4, False),  # as by a sampler of classes
        (torch.arange(16) % 4, False),
        (torch.cat([torch.arange(7, 15), torch.arange(8)]), False),  # of the other view, as in SimCLR
    ],
    ids=["in any order", "sorted", "periodic", "contrastive"],
)
def test_labels_that_are_the_same_for_all_texts_are_unrelated(labels, is_found):
    found = classify(lambda tokens: labels, classes=int(labels.max()) + 1)
    assert {kind: finding.is_note for kind, finding in found.items()} == (
        {"labels_unrelated": False} if is_found else {}
    )
    assert not is_found or "5 batches of different tokens had the same labels" in found["labels_unrelated"].message


@pytest.mark.parametrize("noise", [0.0, 0.15])
def test_labels_of_the_same_texts_are_the_same(noise):
    """Training on one batch is a note of its own, unless it is noised anew each time."""
    torch.manual_seed(0)
    texts, labels = torch.randint(1, 40, (8, 10)), torch.tensor([2, 0, 1, 1, 2, 0, 0, 2])
    model = GPT2ForSequenceClassification(GPT2Config(vocab_size=40, num_labels=3, pad_token_id=0, **SIZES)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with TrainingCheckup(model, optimizers=optimizer) as checkup:
        for step in range(6):
            with checkup.step(step):
                model(texts.masked_fill(torch.rand(texts.shape) < noise, 3), labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert [finding.kind.value for finding in checkup.findings] == ["repeated_batch"] * (not noise)


@pytest.mark.slow
def test_labels_of_other_samples_are_noted_after_a_tenth_of_the_run():
    found = classify(lambda tokens: (tokens[:, -1] < 20).long()[torch.randperm(16)], steps=120, total_steps=1000)
    assert {kind: finding.is_note for kind, finding in found.items()} == {"labels_unrelated": True}
    assert found["labels_unrelated"].step == 104
    assert not classify(lambda tokens: (tokens[:, -1] < 20).long(), steps=120, total_steps=1000)


@pytest.mark.slow
def test_note_on_the_labels_is_withdrawn_once_they_matter():
    """The model begins to learn after a fifth of the run; until then its labels are of other samples."""

    def labels_of(steps):
        steps = iter(range(steps))

        def labels(tokens):
            right = (tokens[:, -1] < 20).long()
            return right[torch.randperm(16)] if next(steps, None) is not None else right

        return labels

    assert not classify(labels_of(110), steps=306, total_steps=600)
    found = classify(labels_of(600), steps=306, total_steps=600)
    assert found["labels_unrelated"].step == 64


def test_later_steps_are_looked_at_now_and_then():
    model = gpt2()
    optimizer = torch.optim.AdamW(model.parameters())
    looked = []
    with TrainingCheckup(model, optimizers=optimizer) as checkup:
        for step in range(70):
            tokens = torch.randint(1, 40, (4, 10))
            model.train(step < 25)
            with checkup.step(step):
                looked += [step] * bool(model._forward_hooks)
                model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert looked == [*range(10), 20, 40]
    assert [(finding.kind.value, finding.step) for finding in checkup.findings] == [("eval_mode", 40)]


def test_steps_without_gradients_are_told():
    model = gpt2()
    optimizer = torch.optim.AdamW(model.parameters())
    with TrainingCheckup(model, optimizers=optimizer) as checkup:
        for step in range(9):
            with checkup.step(step):
                tokens = torch.randint(1, 40, (4, 10))
                model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.zero_grad()
            optimizer.step()
    assert [finding.kind.value for finding in checkup.findings] == ["no_gradient"]


def test_batch_without_labels_is_told_whenever_it_comes():
    model = gpt2()
    optimizer = torch.optim.AdamW(model.parameters())
    with TrainingCheckup(model, optimizers=optimizer) as checkup:
        for step in range(6):
            tokens = torch.randint(1, 40, (4, 10))
            labels = torch.full_like(tokens, -100) if step == 4 else tokens
            with checkup.step(step):
                model(input_ids=tokens, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert {(finding.kind.value, finding.step) for finding in checkup.findings} >= {("empty_batch", 4)}


def test_gradients_of_two_networks_in_turns_are_no_fault():
    generator, critic = nn.Linear(4, 8), nn.Linear(8, 1)
    model = nn.ModuleDict({"generator": generator, "critic": critic})
    optimizers = [torch.optim.Adam(part.parameters()) for part in (generator, critic)]
    with TrainingCheckup(model, optimizers=optimizers) as checkup:
        for step in range(6):
            with checkup.step(step):
                optimizers[1].zero_grad()
                critic(generator(torch.randn(5, 4)).detach()).mean().backward()
                optimizers[1].step()
                optimizers[0].zero_grad()
                critic(generator(torch.randn(5, 4))).mean().backward()  # leaves gradients in the critic
                optimizers[0].step()
    assert not checkup.findings, checkup
    assert "gradients_not_cleared" not in checkup.skipped


def test_checkup_keeps_no_logits():
    model = gpt2()
    with TrainingCheckup(model) as checkup:
        tokens = torch.randint(1, 40, (16, 64))
        with checkup.step(0):
            logits = model(tokens).logits
            loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
            loss.backward()
            place, size = logits.data_ptr(), logits.numel()
            del logits, loss
            tensors = [each for each in gc.get_objects() if isinstance(each, torch.Tensor) and each.numel() == size]
            assert place not in [each.data_ptr() for each in tensors]


class Stateful(nn.Module):
    """Model whose forward changes something that a second forward would change again."""

    def __init__(self, kind):
        super().__init__()
        self.embedding, self.head = nn.Embedding(40, 16), nn.Linear(16, 40)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        self.average = nn.Parameter(torch.zeros(16, 40), requires_grad=False)
        self.register_buffer("queue", torch.zeros(2**20 + 1))
        self.kind, self.numbers = kind, {"calls": 0}
        if kind == "generator":
            self.generator = torch.Generator().manual_seed(0)

    def forward(self, tokens):
        scale = 1.0
        if self.kind == "generator":
            scale = 1 + 0.1 * torch.rand((), generator=self.generator)
        elif self.kind == "container":
            self.numbers["calls"] += 1
            scale = 1 + 0.01 * self.numbers["calls"]
        elif self.kind == "parameter":
            with torch.no_grad():
                self.average.mul_(0.9).add_(self.head.weight.T, alpha=0.1)
        else:
            self.queue[0] += 1
            scale = 1 + 0.01 * float(self.queue[0])
        return scale * self.head(self.layer(self.embedding(tokens)))


@pytest.mark.parametrize("kind", ["generator", "container", "parameter", "buffer"])
def test_forward_with_a_state_is_not_repeated(kind):
    results = []
    for watched in (False, True):
        torch.manual_seed(0)
        model = Stateful(kind)
        optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-2)
        checkup = TrainingCheckup(model, optimizers=optimizer) if watched else None
        losses = train(model, optimizer, checkup)
        results.append((losses, model.average))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])
    assert "side effects" in checkup.skipped["batch_mixing"]
    assert not checkup.findings


def test_batch_that_the_forward_changes_in_place_is_given_as_it_was():
    class InPlace(CountingNet):
        def forward(self, tokens):
            return super().forward(tokens.add_(1).remainder_(40))

    data = torch.randint(1, 40, (6, 12))
    model, copy = InPlace(), (data + 1).remainder(40)
    with TrainingCheckup(model) as checkup, checkup.step(0):
        logits = model(data)
        F.cross_entropy(logits[:, :-1].flatten(0, 1), data[:, 1:].flatten()).backward()
    assert torch.equal(data, copy)


def test_error_in_a_hook_ends_the_checkup_and_not_the_training():
    model = gpt2()
    weight = model.transformer.h[0].mlp.c_fc.weight
    weight.register_hook(lambda gradient: None)
    optimizer = torch.optim.AdamW(model.parameters())
    checkup = TrainingCheckup(model, optimizers=optimizer)
    checkup._updates._names = None  # whatever a hook may stumble over
    with pytest.warns(AttnwatchWarning, match="the checkup failed and stops, training continues: TypeError"):
        train(model, optimizer, checkup)
    assert "the checkup failed with TypeError" in checkup.skipped["rate_too_high"]
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("padded", [True, False])
def test_one_score_for_each_token_is_an_output_of_tokens(padded):
    class Scores(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = CountedNet(False, [])
            self.score = nn.Linear(40, 1)

        def forward(self, tokens):
            return self.score(self.net(tokens)).squeeze(-1)

    tokens = torch.randint(1, 40, (6, 12))
    if padded:
        tokens[1, 8:] = 0
    real = (tokens != 0).float()
    checkup = check_training(
        Scores(), tokens, forward=lambda model, batch: ((model(batch) - real).square() * real).sum() / real.sum()
    )
    assert not checkup.findings, checkup
