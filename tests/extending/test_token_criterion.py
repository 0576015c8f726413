"""A token criterion from outside of the package: chosen, routed, logged, saved and resumed as those of attnwatch."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import attnwatch
from attnwatch import AttnwatchWarning, ConfigurationError, TokenDropper
from attnwatch.lightning import TokenDropping
from tests.support.equality import assert_same_weights
from tests.support.layers_by_hand import BATCH, FAMILIES, LAST, by_hand, deep, entering, expected_kept, run, whole
from tests.support.lightning_training import Deep, train
from tests.support.models import TOKENS, llama, token_ids

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")

IDS = token_ids()
SMALL = {"keep_ratio": 0.5, "min_tokens": 2}


class Norm(attnwatch.TokenCriterion):
    name = "norm"

    def scores(self, batch):
        return batch.states.norm(dim=-1)


class Surprise(attnwatch.TokenCriterion):
    """Reads all that a criterion can read, and has a state of its own."""

    name = "surprise"
    reads = ("attention", "losses")

    def __init__(self):
        self.level = torch.zeros(())

    def scores(self, batch):
        scores = batch.attention * (1 + batch.losses.nan_to_num(100.0)) + batch.noise()
        self.level = 0.9 * self.level + 0.1 * scores.mean()
        return (scores - self.level).abs()

    def state_dict(self):
        return {"level": self.level.clone()}

    def load_state_dict(self, state):
        self.level = state.get("level", torch.zeros(()))


class Failing(Norm):
    name = "failing"

    def scores(self, batch):
        raise RuntimeError("no such token")


class WrongShape(Norm):
    name = "wrong_shape"

    def scores(self, batch):
        return batch.states


def deep_llama() -> nn.Module:
    return deep(llama)().float().train()


@pytest.mark.parametrize("given", ["norm", Norm, Norm()], ids=["name", "class", "instance"])
def test_kept_tokens_are_computed_as_by_hand(registered, given):
    registered(Norm)
    family, batch = FAMILIES["llama"], whole()
    model = family.build()
    before = entering(family, model, batch.given)
    kept = [expected_kept(before.norm(dim=-1), batch, sequence, 6) for sequence in range(BATCH)]
    expected = by_hand(family, model, batch, before, kept)
    with TokenDropper(model, **SMALL, criterion=given, last_layer=LAST):
        _, after, _ = run(family, model, batch.given)
    torch.testing.assert_close(after, expected, rtol=1e-9, atol=1e-9)


def test_trained_logged_and_resumed(registered, tmp_path):
    registered(Surprise)
    uninterrupted = TokenDropping(0.5, min_tokens=2, criterion="surprise")
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1, filename="{step}")
    logger, epochs = TensorBoardLogger(tmp_path, name="run", version=""), {"limit_train_batches": 4}
    module = train(uninterrupted, checkpoint, module=Deep(), logger=logger, log_every_n_steps=1, **epochs)
    resumed = TokenDropping(0.5, min_tokens=2, criterion="surprise")
    again = train(resumed, module=Deep(), ckpt_path=tmp_path / "step=8.ckpt", **epochs)
    assert again.losses == module.losses[8:]
    assert_same_weights(again, module)
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    computed = [event.value for event in events.Scalars("tokens/layer_tokens")]
    assert computed[-1] == uninterrupted.dropper.layer_tokens == resumed.dropper.layer_tokens
    random = train(TokenDropping(0.5, min_tokens=2), module=Deep(), **epochs)
    assert random.losses != module.losses


def test_states_are_kept_while_the_criterion_is_missing(registered):
    registered(Surprise)

    def state_after(criterion, state=None):
        model = deep_llama()
        with TokenDropper(model, **SMALL, criterion=criterion) as dropper:
            if state:
                dropper.load_state_dict(state)
            model(input_ids=IDS, labels=IDS)
            return dropper.state_dict()

    before = state_after("surprise")
    between = state_after("random", before)
    assert between["forwards"] == 2
    assert between["criteria"]["surprise"] is before["criteria"]["surprise"]
    assert before["criteria"]["surprise"]["criterion"]["level"] > 0
    assert not before["criteria"]["surprise"]["losses"]["means"].isnan().all()
    after = state_after("surprise", between)
    assert set(after["criteria"]) == {"surprise", "random"}
    assert after["criteria"]["surprise"]["criterion"]["level"] > before["criteria"]["surprise"]["criterion"]["level"]


@pytest.mark.slow
def test_compiled_model_computes_the_same(registered):
    registered(Surprise)
    plain, compiled = deep_llama(), deep_llama()
    torch._dynamo.reset()
    compiled.compile(backend="aot_eager", fullgraph=True)
    for model in (plain, compiled):
        with TokenDropper(model, **SMALL, criterion="surprise"):
            for seed in range(3):
                model(input_ids=token_ids(seed=seed), labels=IDS).loss.backward()
    for ours, theirs in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_instances_that_are_registered_are_not_shared(registered):
    criterion = registered(Surprise())
    for _ in range(2):
        model = deep_llama()
        with TokenDropper(model, **SMALL, criterion="surprise"):
            model(IDS)
    assert criterion.level == 0


def test_unknown_names_are_told_all_that_there_are(registered):
    registered(Norm)
    for name in ("entropy", None, 3):
        message = f"`criterion` must be one of 'attention', .*'random', 'norm', or a function .*; got {name!r}"
        with pytest.raises(ConfigurationError, match=message):
            TokenDropper(deep_llama(), **SMALL, criterion=name)


def test_what_it_can_not_read_is_named(registered):
    registered(Surprise)
    with pytest.raises(ConfigurationError, match="`criterion` 'surprise' reads the layer before `first_layer`"):
        TokenDropper(deep_llama(), **SMALL, criterion="surprise", first_layer=0)
    model = deep_llama()
    with (
        TokenDropper(model, **SMALL, criterion="surprise"),
        pytest.warns(AttnwatchWarning, match="`criterion` 'surprise' needs `input_ids`"),
    ):
        model(inputs_embeds=torch.zeros(3, TOKENS, 32))


class Undeclared(Norm):
    name = "undeclared"

    def scores(self, batch):
        return batch.losses


WRONG = {
    Undeclared: r"'undeclared' .* a criterion that reads `batch.losses` must declare reads = \('losses',\)",
    Failing: rf"the token criterion 'failing' \({__name__}.Failing\) failed with RuntimeError: no such token",
    WrongShape: r"'wrong_shape' must return scores of shape \[3, 12\], got \[3, 12, 32\]",
}


@pytest.mark.parametrize("criterion", WRONG)
def test_failing_criterion_is_named_once_and_tokens_go_by_chance(registered, criterion):
    registered(criterion)
    model, other = deep_llama(), deep_llama()
    with TokenDropper(model, **SMALL, criterion=criterion.name), TokenDropper(other, **SMALL):
        with pytest.warns(AttnwatchWarning, match=WRONG[criterion]) as warned:
            outputs = [model(IDS).logits for _ in range(2)]
        assert len(warned) == 1
        assert all(torch.equal(output, other(IDS).logits) for output in outputs)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"name": "loss"}, r"the token criterion 'loss' \(.*\) has the name of the token criterion 'loss' \(attnwatch"),
        ({"name": "Not a name"}, "must have a `name` of lower-case letters"),
        ({"reads": ("logits",)}, r"'wrong'.*: `reads` must be a tuple with any of \('attention', 'losses'\), got"),
        ({"reads": "losses"}, "'wrong'.*: `reads` must be a tuple"),
        ({"scores": attnwatch.TokenCriterion.scores}, r"must have a method `scores\(self, batch\)`"),
        ({"__init__": lambda self, power: None}, r"can't be created without arguments \(TypeError: .*'power'\)"),
        (
            {"__init__": lambda self: 1 / 0},
            r"can't be created without arguments \(ZeroDiv.*; pass an instance",
        ),
    ],
)
def test_wrong_declarations_are_named(declared, message):
    attnwatch.TokenCriterion.registry.choose("criterion", "loss")  # those of attnwatch come first
    with pytest.raises(ConfigurationError, match=message):
        attnwatch.register(type("Wrong", (Norm,), {"name": "wrong", **declared}))
