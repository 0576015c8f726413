"""Which tokens are kept, by which criterion, and when."""

import dataclasses
import math

import hypothesis.strategies as st
import pytest
import torch
import transformers as hf
from hypothesis import given
from torch import Tensor, nn

from attnwatch import AttnwatchWarning, ConfigurationError, ModelFamily
from attnwatch.attention import AttentionInputs, attention_received
from attnwatch.models import TokenPredictions
from attnwatch.tokens import KeepSchedule, TokenBatch, TokenCriterion, TokenDropper, TokenLayout
from attnwatch.tokens.losses import TokenLosses, sampled_losses
from attnwatch.tokens.schedule import require_keep_ratio, schedule_of
from attnwatch.tokens.selection import choose_tokens, num_kept
from tests.support.layers_by_hand import deep
from tests.support.models import HEADS, TOKENS, VOCABULARY, bert, llama, token_ids
from tests.support.versions import BEFORE_5, lacks

IDS = token_ids()

# How many.


@given(
    tokens=st.integers(1, 300),
    ratio=st.floats(0.01, 1),
    least=st.integers(1, 64),
    multiple=st.integers(1, 64),
)
def test_number_is_at_least_the_share_the_minimum_and_a_multiple(tokens, ratio, least, multiple):
    number = num_kept(tokens, ratio, min_tokens=least, multiple_of=multiple)
    assert 1 <= number <= tokens
    assert number >= min(least, tokens)
    assert number >= math.floor(ratio * tokens)
    assert number % multiple == 0 or number == tokens
    # No more than is asked for.
    assert number <= math.ceil(max(math.ceil(ratio * tokens), least) / multiple) * multiple


@pytest.mark.parametrize(("tokens", "ratio", "number"), [(100, 0.55, 55), (100, 0.29, 29), (12, 0.5, 6), (3, 0.01, 1)])
def test_number_is_no_victim_of_rounding(tokens, ratio, number):
    assert num_kept(tokens, ratio, min_tokens=1, multiple_of=1) == number


# Which.


@given(data=st.data(), batch=st.integers(1, 3), tokens=st.integers(1, 12))
def test_choice_against_sorting(data, batch, tokens):
    number = data.draw(st.integers(1, tokens))
    draw = st.lists(st.lists(st.booleans(), min_size=tokens, max_size=tokens), min_size=batch, max_size=batch)
    protected, padding = (torch.tensor(data.draw(draw)) for _ in range(2))
    padding &= ~protected
    values = data.draw(st.permutations(range(batch * tokens)))
    scores = torch.tensor(values, dtype=torch.float32).reshape(batch, tokens)
    kept = choose_tokens(scores, number, protected=protected, padding=padding)
    for row in range(batch):
        ranked = sorted(
            range(tokens),
            key=lambda token: (-int(protected[row, token]), int(padding[row, token]), -scores[row, token]),
        )
        assert set(ranked[:number]) >= {t for t in kept[row].tolist() if not protected[row, t] and not padding[row, t]}
        assert kept[row].tolist() == sorted(set(kept[row].tolist()))
        for group in (protected, ~protected & ~padding):
            in_group = [token for token in ranked[:number] if group[row, token]]
            assert len(in_group) == sum(bool(group[row, token]) for token in kept[row].tolist())


def test_highest_scores_stay():
    """Another system kept the lowest ones."""
    kept = choose_tokens(torch.tensor([[0.1, 0.9, 0.5, 0.8]]), 2, protected=None, padding=None)
    assert kept.tolist() == [[1, 3]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_do_not_overrule_protection_and_padding(value):
    scores = torch.full((1, 4), value)
    protected = torch.tensor([[True, False, False, False]])
    padding = torch.tensor([[False, False, True, True]])
    assert choose_tokens(scores, 2, protected=protected, padding=padding).tolist() == [[0, 1]]


def test_first_tokens_and_vocabulary_ids_are_protected():
    ids = torch.tensor([[5, 6, 7, 9, 6, 6, 9, 6]])
    batch = TokenBatch.of(
        torch.zeros(1, 8, 2), {"input_ids": ids, "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])}
    )
    protected = batch.protected(2, [9])
    assert protected[0].tolist() == [True, True, False, True, True, True, True, False]
    assert not batch.protected(0, []).any()


BOUNDARIES = {
    "positions": {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 0]])},
    "boundaries": {"boundaries": torch.tensor([0, 3, 5, 6], dtype=torch.int32)},
    "bool mask": {
        "layer_mask": torch.block_diag(torch.ones(3, 3), torch.ones(2, 2), torch.ones(1, 1)).tril().bool()[None, None]
    },
    "float mask, not causal": {
        "layer_mask": torch.where(
            torch.block_diag(torch.ones(3, 3), torch.ones(2, 2), torch.ones(1, 1)).bool(), 0.0, -1e9
        )[None, None]
    },
}


@pytest.mark.parametrize("known", BOUNDARIES.values(), ids=BOUNDARIES)
def test_documents_of_a_packed_sequence_are_told_apart(known):
    starts = TokenBatch.of(torch.zeros(1, 6, 2), known).starts
    assert starts[0].tolist() == [True, False, False, True, False, True]


def test_sliding_window_makes_no_documents():
    allowed = torch.ones(6, 6).tril().triu(-1).bool()[None, None]
    assert TokenBatch.of(torch.zeros(1, 6, 2), {"layer_mask": allowed}).starts[0].tolist() == [True] + [False] * 5


PADDED = torch.tensor([[False, False, True, True], [True, False, False, False]])
PADDING = {
    "of the model": {"attention_mask": (~PADDED).long()},
    "of flash attention": {"layer_mask": ~PADDED},
    "of torch, bool": {"hidden": PADDED},
    "of torch, float": {"hidden": torch.where(PADDED, -torch.inf, 0.0)},
    "in a mask": {"layer_mask": (~PADDED)[:, None, None].expand(2, 1, 4, 4)},
    "in one row of a float mask": {"layer_mask": torch.where(PADDED, -1e9, 0.0)[:, None, None]},
}


@pytest.mark.parametrize("known", PADDING.values(), ids=PADDING)
def test_padding_in_every_form(known):
    states = torch.zeros(2, 4, 2)
    for positions in ({}, {"position_ids": torch.tensor([[0, 1, 1, 1], [1, 0, 1, 2]])}):
        batch = TokenBatch.of(states, known | positions)
        assert batch.padding.tolist() == PADDED.tolist()
        assert batch.starts.tolist() == [[True, False, False, False], [False, True, False, False]]


# Criteria.


def test_random_choice_is_another_one_for_each_sequence_forward_and_seed():
    model = deep(llama)().float()

    def choices(seed: int) -> list[tuple]:
        kept = []
        with TokenDropper(model, keep_ratio=0.5, min_tokens=2, seed=seed) as dropper:
            choose = dropper.chooser.choose
            dropper.chooser.choose = lambda *args: kept.append(choose(*args)) or kept[-1]
            for _ in range(3):
                model(IDS)
        return [tuple(row) for forward in kept for row in forward.tolist()]

    first = choices(0)
    assert len(first) == 9
    assert len(set(first)) >= 8  # of 462 possible ones
    assert choices(0) == first
    assert len(set(choices(1)) & set(first)) <= 1


def test_random_choice_leaves_the_global_random_state_alone():
    model = deep(llama)().float()
    with TokenDropper(model, keep_ratio=0.5, min_tokens=2):
        before = torch.get_rng_state()
        model(IDS)
        assert torch.equal(torch.get_rng_state(), before)


def oracle_received(query: Tensor, key: Tensor, is_causal: bool, real: Tensor) -> Tensor:
    """Mean over heads and the queries that see the key of weight times number of visible keys, in float64 loops."""
    batch, heads, tokens, dim = query.shape
    received = torch.ones(batch, tokens, dtype=torch.float64)
    for b in range(batch):
        for key_index in range(tokens):
            values = []
            for row in range(tokens):
                allowed = [k for k in range(tokens) if real[b, k] and (k <= row or not is_causal)]
                if key_index not in allowed or not real[b, row]:
                    continue
                for h in range(heads):
                    logits = torch.stack([query[b, h, row] @ key[b, h, k] / dim**0.5 for k in allowed])
                    values.append(logits.softmax(0)[allowed.index(key_index)] * len(allowed))
            if values:
                received[b, key_index] = torch.stack(values).mean()
    return received


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("is_padded", [False, True])
def test_attention_received_against_loops(is_causal, is_padded):
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 2, 3, 7, 4, dtype=torch.float64, generator=generator).unbind()
    real = torch.ones(2, 7, dtype=torch.bool)
    if is_padded:
        real[0, 4:] = False
    inputs = AttentionInputs(
        query,
        key,
        is_causal=is_causal,
        key_padding=real if is_padded else None,
        query_mask=real if is_padded else None,
    )
    torch.testing.assert_close(attention_received(inputs, None, None), oracle_received(query, key, is_causal, real))


def test_uniform_attention_is_received_alike_by_all_also_from_a_few_rows():
    inputs = AttentionInputs(torch.zeros(2, 2, 40, 4), torch.randn(2, 2, 40, 4), is_causal=True)
    for rows in (None, 5):
        received = attention_received(inputs, rows, torch.Generator().manual_seed(0))
        torch.testing.assert_close(received, torch.ones(2, 40))


BERT = pytest.param(bert, id="bert", marks=lacks(BEFORE_5, "eager attention of BERT is computed by hand"))


@pytest.mark.parametrize("build", [pytest.param(llama, id="llama"), BERT])
def test_attention_keeps_what_the_layer_before_attends_to(build):
    """With all rows looked at, against weights that the model itself returns."""
    model = deep(lambda: build("eager"))().float()
    chosen = []
    weights = model(IDS, output_attentions=True).attentions[0].double()
    visible = torch.arange(1, TOKENS + 1) if build is llama else torch.full((TOKENS,), TOKENS)
    relative = weights * visible[None, None, :, None]
    counts = torch.arange(TOKENS, 0, -1) if build is llama else torch.full((TOKENS,), TOKENS)
    received = relative.sum((1, 2)) / (HEADS * counts)
    received[:, 0] = 1e9
    expected = received.topk(6).indices.sort(1).values
    with TokenDropper(model, keep_ratio=0.5, min_tokens=2, criterion="attention") as dropper:
        choose = dropper.chooser.choose
        dropper.chooser.choose = lambda *args: chosen.append(choose(*args)) or chosen[-1]
        model(IDS)
    assert torch.equal(chosen[0], expected)


def test_attention_criterion_beside_a_layer_without_attention_is_refused(registered):
    class Mlp(nn.Linear):
        pass

    registered(ModelFamily("mlp", tokens={Mlp: TokenLayout("input")}))
    model = nn.Sequential(*(Mlp(2, 2) for _ in range(4)))
    with pytest.raises(ConfigurationError, match="`criterion` 'attention' can't observe the layer before"):
        TokenDropper(model, criterion="attention")


def test_loss_keeps_what_is_not_known_and_what_is_hard():
    losses, criterion = TokenLosses("loss"), TokenCriterion.registry["loss"]()
    ids = torch.tensor([[1, 2, 3, 4, 2, 1]])

    def scored(seed: int) -> Tensor:
        batch = TokenBatch.of(torch.zeros(1, 6, 2), {"input_ids": ids}, torch.Generator().manual_seed(seed))
        return criterion.scores(dataclasses.replace(batch, read={"losses": losses.of(batch)}))

    assert scored(0).unique().numel() == 6  # by chance
    losses.record(torch.tensor([1, 2, 3]), torch.tensor([0.1, 5.0, 2.0]), VOCABULARY)
    scores = scored(1)[0]
    assert scores.argsort(descending=True).tolist()[0] == 3  # id 4, which was not seen
    assert set(scores.argsort(descending=True).tolist()[1:3]) == {1, 4}  # id 2, hardest
    assert set(scores.argsort().tolist()[:2]) == {0, 5}  # id 1, easiest
    assert scores[0] != scores[5]


def test_running_mean_of_the_loss():
    criterion = TokenLosses("loss")
    criterion.record(torch.tensor([7]), torch.tensor([4.0]), 9)
    criterion.record(torch.tensor([7, 7, 2]), torch.tensor([1.0, 3.0, 5.0]), 9)
    means = criterion.state_dict()["means"]
    share = 1 - 0.95**2
    assert means[7] == pytest.approx(4 + share * (2 - 4))
    assert means[2] == 5
    assert means.isnan().sum() == 7
    other = TokenLosses("loss")
    other.load_state_dict(criterion.state_dict())
    torch.testing.assert_close(other.state_dict()["means"], means, equal_nan=True)


@pytest.mark.parametrize("is_shifted", [True, False])
def test_losses_are_those_of_the_labels(is_shifted):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 4, generator=generator)
    labels = torch.tensor([[0, 1, -100, 3, 2], [1, 1, 0, -100, 3]])
    ids, losses = sampled_losses(TokenPredictions(logits, labels, is_shifted), generator)
    expected = {}
    for row in range(2):
        for token in range(5):
            label = labels[row, token]
            if label >= 0 and (token > 0 or not is_shifted):
                at = token - 1 if is_shifted else token
                expected[round(float(-logits[row, at].log_softmax(0)[label]), 4)] = int(label)
    assert len(ids)
    for label, loss in zip(ids.tolist(), losses.tolist(), strict=True):
        assert expected[round(loss, 4)] == label


def test_loss_criterion_learns_while_the_model_trains():
    model = deep(llama)().float()
    with TokenDropper(model, keep_ratio=0.5, min_tokens=2, criterion="loss") as dropper:
        model(input_ids=IDS, labels=IDS)
        means = dropper.state_dict()["criteria"]["loss"]["losses"]["means"]
    seen = set(IDS[:, 1:].unique().tolist())
    assert {index for index, mean in enumerate(means.tolist()) if not math.isnan(mean)} <= seen
    assert means.nanmean() == pytest.approx(model(input_ids=IDS, labels=IDS).loss.item(), rel=0.5)


def test_loss_criterion_that_learns_nothing_says_so():
    model = deep(llama)().float()
    with TokenDropper(model, keep_ratio=0.5, min_tokens=2, criterion="loss"):
        for _ in range(9):
            model(input_ids=IDS)
        with pytest.warns(AttnwatchWarning, match="'loss' has seen no loss in 10 forward passes"):
            model(input_ids=IDS)
        model(input_ids=IDS)


def test_classes_are_no_vocabulary():
    """Labels of a classifier are not the losses of tokens."""
    config = bert().config
    for model_class, labels in (
        (hf.BertForSequenceClassification, torch.tensor([0, 1, 1])),
        (hf.BertForTokenClassification, torch.ones_like(IDS)),
    ):
        config.num_hidden_layers = 4
        model = model_class(config)
        with TokenDropper(model, keep_ratio=0.5, min_tokens=2, criterion="loss") as dropper:
            model(input_ids=IDS, labels=labels).loss.backward()
            assert dropper.state_dict()["criteria"]["loss"]["losses"]["means"] is None


@pytest.mark.parametrize("criterion", TokenCriterion.registry)
def test_state_goes_on_where_it_was(criterion):
    def losses(state, forwards) -> tuple[list[float], dict]:
        model = deep(llama)().float()
        options = {"keep_ratio": 0.5, "min_tokens": 2, "criterion": criterion}
        with TokenDropper(model, **options) as dropper:
            if state:
                dropper.load_state_dict(state)
            batches = (token_ids(seed=index) for index in forwards)
            return [model(input_ids=ids, labels=ids).loss.item() for ids in batches], dropper.state_dict()

    whole, _ = losses(None, range(4))
    first, state = losses(None, range(2))
    second, end = losses(state, range(2, 4))
    assert first + second == whole
    assert end["layer_tokens"] == [4 * 36 * 3, 4 * 36 * 4]


# Schedule.


def test_constant_schedule_ends_at_full_length():
    schedule = KeepSchedule.constant(0.5)
    assert [schedule(progress) for progress in (0, 0.5, 0.79, 0.8, 1)] == [0.5, 0.5, 0.5, 1, 1]
    assert (
        str(schedule) == "50% of the tokens from 0% to 80% of the run, 100% of the tokens from 80% to 100% of the run"
    )
    assert KeepSchedule.constant(0.5, full_length_from=None)(1) == 0.5


def test_linear_schedule_has_few_ratios():
    schedule = KeepSchedule.linear(0.25, 1.0, num_steps=4)
    ratios = [schedule(progress / 100) for progress in range(101)]
    assert sorted(set(ratios)) == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert ratios == sorted(ratios)
    assert [schedule(at) for at in (0.0, 0.26, 0.27, 0.54, 0.8)] == pytest.approx([0.25, 0.25, 0.5, 0.75, 1.0])
    whole_run = KeepSchedule.linear(0.25, 1.0, num_steps=4, full_length_from=None)
    assert [whole_run(at) for at in (0.0, 0.25, 0.5, 0.75)] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert KeepSchedule.linear(0.25, 0.75, num_steps=2)(0.5) == 0.75


def test_schedule_that_is_none():
    with pytest.raises(ConfigurationError, match=r"`steps` must be pairs; create a schedule with KeepSchedule"):
        KeepSchedule(0.5)
    with pytest.raises(ConfigurationError, match=r"Set dropper.keep_ratio = schedule\(progress\) in your loop"):
        require_keep_ratio("keep_ratio", KeepSchedule.constant(0.5))


def test_any_schedule_is_taken_in_steps():
    schedule = schedule_of(lambda progress: 0.5 + progress / 2, full_length_from=None)
    assert [ratio for _, ratio in schedule.steps] == pytest.approx([0.5 + (index + 0.5) / 40 for index in range(20)])
    assert [begin for begin, _ in schedule.steps] == pytest.approx([index / 20 for index in range(20)])
    assert schedule_of(lambda progress: 0.25 if progress < 0.3 else 1, full_length_from=None).steps == (
        (0, 0.25),
        (0.3, 1),
    )
    assert schedule_of(schedule, full_length_from=None) is schedule


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (lambda progress: 1 / (progress - 0.025), "`keep_ratio`: .*lambda.* failed at 0.025: float division by zero"),
        (
            lambda progress: progress - 0.5,
            r"`keep_ratio`: .*lambda.* failed at 0.025: .* above 0 and up to 1; got -0.475",
        ),
        (lambda progress: "half", "got 'half'"),
    ],
)
def test_schedule_that_fails_is_named(schedule, message):
    with pytest.raises(ConfigurationError, match=message):
        schedule_of(schedule, full_length_from=None)


def test_schedules_by_name():
    pytest.importorskip("attnwatch.schedules")
    steps = schedule_of("cubic", full_length_from=None).steps
    assert steps[0] == (0, pytest.approx(1 - 0.975**3))
    with pytest.raises(ConfigurationError, match=r"`keep_ratio` must be one of .*'cubic', .*; got 'square'"):
        schedule_of("square", full_length_from=None)


def test_steps():
    schedule = KeepSchedule.stepwise({0: 1.0, 0.1: 0.5})
    assert [schedule(at) for at in (0, 0.1, 0.85, 0.95)] == [1.0, 0.5, 1.0, 1.0]
    schedule = KeepSchedule.stepwise({0: 1.0, 0.1: 0.5, 0.9: 0.6}, full_length_from=None)
    assert [schedule(at) for at in (0, 0.1, 0.85, 0.95)] == [1.0, 0.5, 0.5, 0.6]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KeepSchedule.stepwise({0.1: 0.5}), "`steps` must start at 0 and ascend to below 1; got"),
        (lambda: KeepSchedule.stepwise({0: 0.5, 0.9: 0.7}), r"`steps` must start before `full_length_from` \(0.8\)"),
        (lambda: KeepSchedule(()), "`steps` must start at 0"),
        (lambda: KeepSchedule.constant(0), "`keep_ratio` must be the share of the tokens"),
        (lambda: KeepSchedule.constant(0.5, full_length_from=1.0), "`full_length_from` must be a share of the run"),
        (lambda: KeepSchedule.linear(0.5, num_steps=1), "`num_steps` must be an integer of at least 2, got 1"),
    ],
)
def test_wrong_schedules_are_named(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()
