"""Token dropping in real Lightning trainings of a tiny Llama."""

import logging

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from attnwatch import ConfigurationError, KeepSchedule, PruningPlan, TokenCriterion
from attnwatch.lightning import AttentionMonitor, HeadPruning, TokenDropping
from tests.support.equality import assert_same_weights
from tests.support.layers_by_hand import deep
from tests.support.lightning_training import BATCH, Deep, Llama, batches, train
from tests.support.models import TOKENS, bart_for_generation, bert
from tests.support.versions import WeightAveraging, needs_weight_averaging

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")

STEPS, LAYERS = 20, 4


def dropping(keep_ratio=0.5, **options) -> TokenDropping:
    return TokenDropping(keep_ratio, **{"min_tokens": 2, **options})


@pytest.mark.slow
@pytest.mark.parametrize("criterion", TokenCriterion.registry)
@pytest.mark.parametrize("at", [4, pytest.param(12, marks=pytest.mark.slow)])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, criterion, at):
    epochs = {"limit_train_batches": 4, "accumulate_grad_batches": 2}
    uninterrupted_callback = dropping(criterion=criterion)
    uninterrupted = train(uninterrupted_callback, module=Deep(), **epochs)

    def kill(module, batch_idx):
        if module.global_step == at + 1:
            raise KeyboardInterrupt

    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1, filename="{step}")
    with pytest.raises(SystemExit):
        train(dropping(criterion=criterion), checkpoint, module=Deep(kill), **epochs)
    callback = dropping(criterion=criterion)
    resumed = train(callback, module=Deep(), ckpt_path=tmp_path / f"step={at}.ckpt", **epochs)
    assert_same_weights(resumed, uninterrupted)
    assert resumed.losses == uninterrupted.losses[2 * at :]
    assert callback.dropper.layer_tokens == uninterrupted_callback.dropper.layer_tokens


@pytest.mark.slow
def test_callback_of_a_resumed_run_serves_another_training(tmp_path):
    train(dropping(), ModelCheckpoint(tmp_path, every_n_train_steps=8, filename="{step}"), module=Deep())
    callback = dropping()
    train(callback, module=Deep(), ckpt_path=tmp_path / "step=16.ckpt")
    assert_same_weights(train(callback, module=Deep()), train(dropping(), module=Deep()))


def test_what_it_did_is_on_the_dashboard(tmp_path):
    logger = TensorBoardLogger(tmp_path, name=None, version="")
    callback = dropping(KeepSchedule.stepwise({0: 1.0, 0.25: 0.5}))
    train(callback, module=Deep(), logger=logger, log_every_n_steps=1)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    values = {
        tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"] if "tokens/" in tag
    }
    assert values["tokens/keep_ratio"] == [1.0] * 5 + [0.5] * 11 + [1.0] * 4
    whole, dropped = BATCH * LAYERS * TOKENS, BATCH * (2 * TOKENS + 2 * TOKENS // 2)
    assert values["tokens/layer_tokens"][4] == 5 * whole
    assert values["tokens/layer_tokens"][-1] == 9 * whole + 11 * dropped == callback.dropper.layer_tokens
    assert values["tokens/speedup_ceiling"][4:6] == pytest.approx([1.0, 4 / 3])
    assert min(values["tokens/step_seconds"]) > 0


def test_what_it_came_to_is_told_at_the_end(caplog):
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        train(dropping(), module=Deep())
    (line,) = [record.getMessage() for record in caplog.records if "attnwatch" in record.getMessage()]
    assert line.startswith("attnwatch: the layers computed 80% of the tokens; a step took ")
    assert "with 50% of them" in line
    assert line.endswith("1.33 if cost were linear in tokens")


class TwoLengths(Deep):
    """The second batch of each step has no token too many."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch[:, : 12 - 6 * (batch_idx % 2)], batch_idx)


@pytest.mark.logs_warnings
@pytest.mark.parametrize(
    ("module", "options", "kept", "tokens"),
    [
        (Deep, {}, 6, 12),
        (Deep, {"min_tokens": 9}, 9, 12),
        (Deep, {"multiple_of": 8}, 8, 12),
        (Deep, {"protect_first": 10}, 10, 12),
        (TwoLengths, {"min_tokens": 6}, 6 + 6, 12 + 6),
    ],
    ids=["as asked", "min_tokens", "multiple_of", "protect_first", "batches of two lengths"],
)
@pytest.mark.filterwarnings("ignore::attnwatch.AttnwatchWarning")
def test_summary_says_what_was_computed_really(module, options, kept, tokens):
    callback = dropping(**options)
    train(callback, module=module(), accumulate_grad_batches=2)
    summary, dropper = callback.summary(), callback.dropper
    assert f" with {kept / tokens:.0%} of them" in summary
    assert summary.endswith(f"; {1 / (1 - (1 - kept / tokens) / 2):.2f} if cost were linear in tokens")
    share = dropper.kept_share(dropper.layer_tokens, dropper.all_layer_tokens)
    assert share == pytest.approx(0.8 * kept / tokens + 0.2)


@pytest.mark.logs_warnings
@pytest.mark.filterwarnings("ignore::attnwatch.AttnwatchWarning")
def test_summary_says_nothing_of_steps_without_dropped_tokens():
    callback = dropping(multiple_of=64)
    train(callback, module=Deep())
    assert callback.summary() == "the layers computed 100% of the tokens"


def test_any_function_of_the_share_of_the_run_is_a_schedule():
    callback, ratios = dropping(lambda progress: 0.5 if progress < 0.4 else 1.0), []
    train(callback, module=Deep(lambda *_: ratios.append(callback.dropper.keep_ratio)))
    assert ratios == [0.5] * 8 + [1.0] * 12
    assert [(event.step, event.label) for event in callback.part.events] == [(8, "100% of the tokens")]


@pytest.mark.slow
def test_works_with_the_monitor_and_with_head_pruning():
    monitor, pruning = AttentionMonitor(every_n_steps=2, num_query_rows=None), HeadPruning(0.5, guard=None, num_cuts=2)
    module = train(monitor, pruning, dropping(criterion="attention"), module=Deep())
    assert set(monitor.coverage().values()) == {"observed"}
    assert PruningPlan.of(module).num_removed == LAYERS * 4 // 2
    assert len(monitor.history) == STEPS // 2
    # Attention among half of the tokens reaches further than it would if these were neighbours.
    assert torch.isfinite(torch.tensor(module.losses)).all()


@needs_weight_averaging
def test_works_with_averaged_weights_and_bf16():
    module = train(WeightAveraging(), dropping(), module=Deep(), precision="bf16-mixed", gradient_clip_val=0.1)
    assert torch.isfinite(torch.tensor(module.losses)).all()


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder, self.head = deep(bert)().float(), torch.nn.Linear(32, 2)
        self.lengths = []

    def training_step(self, batch, batch_idx):
        states = self.encoder(batch).last_hidden_state
        self.lengths.append((self.training, states.shape[1]))
        return torch.nn.functional.cross_entropy(self.head(states[:, 0]), batch[:, 1] % 2)

    validation_step = training_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def test_tokens_are_dropped_in_evaluation_too():
    module = Classifier()
    trainer = pl.Trainer(
        max_steps=4,
        callbacks=[dropping(first_layer=2, drop_in_evaluation=True)],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        val_check_interval=2,
        num_sanity_val_steps=1,
    )
    trainer.fit(module, batches(4), batches(1))
    assert set(module.lengths) == {(True, TOKENS // 2), (False, TOKENS // 2)}
    module.lengths.clear()
    trainer.validate(module, batches(1), verbose=False)
    assert set(module.lengths) == {(False, TOKENS // 2)}


def test_two_of_one_model_are_refused():
    trainer = pl.Trainer(
        callbacks=[dropping(), type("Another", (TokenDropping,), {})()], logger=False, accelerator="cpu"
    )
    with pytest.raises(ConfigurationError, match="`callbacks` has two TokenDropping"):
        trainer.fit(Deep(), batches(1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep_ratio": 0.0}, "`keep_ratio` must be the share of the tokens to keep"),
        ({"first_layer": 9}, "`first_layer` must be one of the 4 layers"),
        ({"criterion": "best"}, "`criterion` must be one of 'attention', "),
    ],
    ids=["ratio", "layer", "criterion"],
)
def test_wrong_arguments_are_named_before_the_first_step(arguments, message):
    module = Deep()
    with pytest.raises(ConfigurationError, match=message):
        train(dropping(**arguments), module=module)
    assert module.losses == []


def test_run_of_unknown_length():
    endless = {"steps": -1, "max_epochs": -1, "max_time": {"seconds": 1}, "module": Deep()}
    with pytest.raises(ConfigurationError, match="`keep_ratio` needs the length of the run, which is not known"):
        train(dropping(), **endless)
    callback = dropping(KeepSchedule.constant(0.5, full_length_from=None))
    train(callback, **endless)
    assert callback.dropper.layer_tokens == 0.75 * callback.dropper.all_layer_tokens


class Bart(Llama):
    """Two stacks of four layers."""

    def __init__(self):
        super().__init__()
        self.model = deep(bart_for_generation, encoder_layers=4, decoder_layers=4)().float()


def of_both_stacks() -> list[TokenDropping]:
    return [dropping(stack="model.model.encoder.layers"), dropping(0.75, stack="model.model.decoder.layers")]


@pytest.mark.slow
def test_each_stack_has_a_callback_of_its_own(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=8, save_top_k=-1, filename="{step}")
    whole, resumed = of_both_stacks(), of_both_stacks()
    uninterrupted = train(*whole, checkpoint, module=Bart(), limit_train_batches=4)
    again = train(*resumed, module=Bart(), ckpt_path=tmp_path / "step=8.ckpt", limit_train_batches=4)
    assert_same_weights(again, uninterrupted)
    assert [each.dropper.layer_tokens for each in resumed] == [each.dropper.layer_tokens for each in whole]
    encoder, decoder = (each.dropper.layer_tokens / each.dropper.all_layer_tokens for each in whole)
    assert encoder < decoder < 1


def test_two_callbacks_of_one_stack_are_refused():
    with pytest.raises(ConfigurationError, match=r"`callbacks` has two TokenDropping with stack='model.model.enc"):
        train(*of_both_stacks()[:1], *of_both_stacks()[:1], module=Bart())
