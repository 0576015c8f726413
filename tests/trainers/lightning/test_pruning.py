"""Head pruning in real Lightning trainings of a tiny Llama."""

import logging
import time

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import attnwatch
from attnwatch import AttnwatchWarning, ConfigurationError, Guard, PruningPlan
from attnwatch.heads.pruner import HeadPruner
from attnwatch.heads.surgery import Surgery
from attnwatch.lightning import AttentionMonitor, HeadPruning
from tests.support.equality import assert_same_weights
from tests.support.lightning_training import STEPS, Llama, batches, pruning, train
from tests.support.models import HEADS, LAYERS, llama
from tests.support.versions import EMAWeightAveraging, WeightAveraging, needs_moving_averages, needs_weight_averaging

# Lightning gives hints on workers and intervals; what attnwatch itself warns of stays an error.
pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")

SITES = [f"model.model.layers.{layer}.self_attn" for layer in range(LAYERS)]


def least_important_last(model) -> dict[str, torch.Tensor]:
    return {site: -torch.arange(float(HEADS)) for site in PruningPlan.of(model).num_heads}


@pytest.mark.parametrize("criterion", ["gate", "weight", "random", least_important_last])
def test_criteria_need_nothing_else(criterion):
    callback = pruning(criterion=criterion)
    module = train(callback, steps=12)
    assert sum(map(len, PruningPlan.of(module).heads.values())) == LAYERS * HEADS // 2


@pytest.mark.parametrize("criterion", ["entropy", "max_weight"])
def test_criteria_from_attention_read_the_monitor(criterion):
    monitor = AttentionMonitor(every_n_steps=2, flush_every=1, num_query_rows=None)
    callback = pruning(criterion=criterion, num_cuts=1, start=7, end=7)
    train(monitor, callback, steps=12)
    statistic, sign = {"entropy": ("normalized_entropy", 1), "max_weight": ("max_weight", -1)}[criterion]
    values = sign * torch.from_numpy(monitor.history[statistic][:4]).mean(0)
    gone = [[head in callback.cuts[0].plan.heads.get(site, ()) for head in range(HEADS)] for site in SITES]
    # Whole key-value groups of two heads go, the highest means of all.
    groups = values.unflatten(1, (2, 2)).mean(-1).flatten()
    expected = torch.zeros(4, dtype=torch.bool).index_fill_(0, groups.topk(2).indices, True)
    assert torch.tensor(gone).unflatten(1, (2, 2)).all(-1).flatten().tolist() == expected.tolist()


def test_monitor_goes_on_with_the_heads_that_are_left():
    monitor = AttentionMonitor(every_n_steps=2, num_query_rows=None)
    callback = pruning(num_cuts=1, start=5, end=5)
    module = train(monitor, callback)
    entropy = monitor.history["normalized_entropy"]
    gone = PruningPlan.of(module).heads
    assert entropy.shape == (STEPS // 2, LAYERS, HEADS)
    for index, site in enumerate(SITES):
        for head in range(HEADS):
            assert not torch.from_numpy(entropy[:3, index, head]).isnan().any()
            assert torch.from_numpy(entropy[3:, index, head]).isnan().all() == (head in gone.get(site, ()))


# Resuming.


@pytest.mark.parametrize("guard", [None, Guard(recovery_steps=2, window=3)], ids=["unguarded", "guarded"])
@pytest.mark.parametrize("at", [4, 8, 12])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, at, guard):
    epochs = {"limit_train_batches": 4}
    uninterrupted_callback = pruning(guard=guard)
    uninterrupted = train(uninterrupted_callback, **epochs)

    def kill(module, batch_idx):
        if module.global_step == at + 1:
            raise KeyboardInterrupt

    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1, filename="{step}")
    with pytest.raises(SystemExit):
        train(pruning(guard=guard), checkpoint, module=Llama(kill), **epochs)
    callback = pruning(guard=guard)
    resumed = train(callback, ckpt_path=tmp_path / f"step={at}.ckpt", **epochs)
    assert_same_weights(resumed, uninterrupted)
    assert [cut.plan for cut in callback.cuts] == [cut.plan for cut in uninterrupted_callback.cuts]
    assert resumed.losses == uninterrupted.losses[at:]


class Rising(Llama):
    """The loss that is seen rises whatever the model does."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * (1 + self.global_step)


def test_cut_is_taken_back_also_by_a_run_that_was_resumed_in_between(tmp_path):
    options = {"num_cuts": 1, "start": 6, "end": 6, "guard": Guard(recovery_steps=3, window=2)}
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1, filename="{step}")
    with pytest.warns(AttnwatchWarning, match="was taken back"):
        uninterrupted = train(pruning(**options), checkpoint, module=Rising(), limit_train_batches=4)
    with pytest.warns(AttnwatchWarning, match="was taken back"):
        resumed = train(pruning(**options), module=Rising(), ckpt_path=tmp_path / "step=8.ckpt", limit_train_batches=4)
    assert not PruningPlan.of(resumed).heads
    assert_same_weights(resumed, uninterrupted)
    assert resumed.losses == uninterrupted.losses[8:]


def test_checkpoint_loads_without_pickled_code(tmp_path):
    train(
        pruning(guard=Guard(tolerance=9.0, recovery_steps=9)),
        ModelCheckpoint(tmp_path, every_n_train_steps=6, filename="{step}"),
    )
    checkpoint = torch.load(tmp_path / "step=18.ckpt", weights_only=True)
    assert any("HeadPruning" in name for name in checkpoint["callbacks"])


class AcceptingLlama(Llama):
    def __init__(self):
        super().__init__()
        attnwatch.accept_pruned_state(self)


def test_load_from_checkpoint_on_an_unpruned_module(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, filename="last")
    trained = train(pruning(), checkpoint, module=AcceptingLlama())
    loaded = AcceptingLlama.load_from_checkpoint(tmp_path / "last.ckpt")
    assert_same_weights(loaded, trained)
    assert PruningPlan.of(loaded) == PruningPlan.of(trained)
    with pytest.raises(RuntimeError, match="size mismatch"):
        Llama.load_from_checkpoint(tmp_path / "last.ckpt")


@pytest.mark.slow
def test_callback_of_a_resumed_run_serves_another_training(tmp_path):
    train(pruning(), ModelCheckpoint(tmp_path, every_n_train_steps=8, filename="{step}"), limit_train_batches=4)
    callback = pruning()
    train(callback, ckpt_path=tmp_path / "step=16.ckpt", limit_train_batches=4)
    anew = train(callback)
    assert [cut.step for cut in callback.cuts] == [4, 10]
    assert_same_weights(anew, train(pruning()))


def test_nothing_of_it_stays_on_the_module():
    module = Llama()
    for site in SITES:  # frozen, so that gates are put before it
        module.get_submodule(site).o_proj.requires_grad_(False)
    train(pruning(), module=module)
    assert PruningPlan.of(module).heads
    for name, each in module.named_modules():
        assert not each._forward_pre_hooks, name
        assert not each._load_state_dict_pre_hooks, name


def test_checkpoint_from_before_a_cut_is_tested_after_the_training(tmp_path):
    """`trainer.test(ckpt_path="best")`, where the best one may have more heads than the model."""
    module = Llama()
    trainer = pl.Trainer(
        max_steps=12,
        callbacks=[pruning(), ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1, filename="{step}")],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(module, batches(200), batches(1))
    assert PruningPlan.of(module).num_removed == 4
    trainer.limit_val_batches = 1.0
    trainer.validate(module, batches(1), ckpt_path=tmp_path / "step=2.ckpt", verbose=False)
    assert not PruningPlan.of(module).heads
    loaded = Llama()
    loaded.load_state_dict(torch.load(tmp_path / "step=2.ckpt", weights_only=True)["state_dict"])
    assert_same_weights(module, loaded)


# Guard.


def test_harmful_cut_is_taken_back_as_if_it_had_not_happened():
    """The loss is multiplied after the cut; the run goes on from where the cut was made."""
    states = []

    def record(module, batch_idx):
        states.append({name: value.clone() for name, value in module.state_dict().items()})
        module.harmed = module.get_submodule(SITES[0]).o_proj.in_features < 32

    class Harmed(Llama):
        harmed = False

        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (3.0 if self.harmed else 1.0)

    guard = Guard(recovery_steps=2, window=2)
    callback = pruning(0.5, ranking="layer", num_cuts=1, start=6, end=6, guard=guard)
    with pytest.warns(
        AttnwatchWarning, match=r"the cut after step 6 \(4 heads\) was taken back: training loss went from"
    ):
        module = train(callback, module=Harmed(record))
    taken_back = next(index for index in range(7, STEPS) if states[index].keys() == states[0].keys())
    assert taken_back == 10  # 2 steps that do not count, then 2 that do
    uncut = [name for name in states[0] if "self_attn" not in name]
    assert all(torch.equal(states[taken_back][name], states[6][name]) for name in uncut)
    assert not torch.equal(states[taken_back - 1][uncut[0]], states[6][uncut[0]])
    assert callback.cuts[0].taken_back
    assert not PruningPlan.of(module).heads
    assert all(not name.endswith("kept_heads") for name in module.state_dict())


def test_training_after_a_cut_was_taken_back_equals_one_that_never_saw_those_batches():
    guard = Guard(tolerance=0.0, recovery_steps=0, window=1)
    callback = pruning(0.75, ranking="layer", grouping="within", num_cuts=1, start=6, end=6, guard=guard)
    with pytest.warns(AttnwatchWarning, match="was taken back"):
        pruned = train(callback)
    pl.seed_everything(0, verbose=False)
    model = llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for index, batch in enumerate(batches(STEPS)):
        if index != 6:  # the cut came after step 6 and was judged by the loss of the next one
            optimizer.zero_grad()
            model(input_ids=batch, labels=batch).loss.backward()
            optimizer.step()
    assert_same_weights(pruned.model, model)


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (lambda model: {SITES[0]: torch.ones(3)}, "`criterion` must return one number for each of the 4 heads"),
        (lambda model: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
    ids=["wrong shape", "raises"],
)
def test_criterion_that_fails_ends_the_pruning_and_not_the_training(criterion, message):
    callback = pruning(criterion=criterion, guard=Guard())
    with pytest.warns(
        AttnwatchWarning, match=f"no heads were removed after step 4, and none will be: .*{message}"
    ) as w:
        module = train(callback)
    assert len([each for each in w if each.category is AttnwatchWarning]) == 1
    assert len(module.losses) == STEPS
    assert not callback.cuts
    assert not PruningPlan.of(module).heads
    plain = train()
    assert_same_weights(module, plain)


@needs_weight_averaging
def test_cut_that_fails_half_way_leaves_model_and_average_whole(monkeypatch):
    """The model is cut, then its average can't be: its memory is not enough, say."""
    average, callback = WeightAveraging(), pruning(guard=Guard())
    apply, models = Surgery.apply, []

    def fail_at_the_second(surgery):
        models.append(surgery)
        apply(surgery)
        if len(models) == 2:
            raise MemoryError("no memory")

    monkeypatch.setattr(Surgery, "apply", fail_at_the_second)
    with pytest.warns(AttnwatchWarning, match="none will be: no memory"):
        module = train(average, callback)
    assert not PruningPlan.of(module).heads
    assert not PruningPlan.of(average._average_model.module).heads
    assert_same_weights(module, train(WeightAveraging()))


def test_harmless_cut_stays():
    callback = pruning(0.25, num_cuts=1, guard=Guard(tolerance=0.5, recovery_steps=1, window=4))
    train(callback)
    assert [cut.taken_back for cut in callback.cuts] == [""]


def test_guard_watches_a_logged_metric():
    class Validated(Llama):
        def validation_step(self, batch, batch_idx):
            self.log(
                "quality", torch.tensor(1.0 if self.model.model.layers[0].self_attn.o_proj.in_features == 32 else 0.0)
            )

    callback = pruning(
        0.5, ranking="layer", num_cuts=1, start=6, end=6, guard=Guard(metric="quality", mode="max", recovery_steps=0)
    )
    module = Validated()
    trainer = pl.Trainer(
        max_steps=STEPS,
        callbacks=[callback],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        val_check_interval=4,
    )
    with pytest.warns(AttnwatchWarning, match="quality went from 1 to 0"):
        trainer.fit(module, batches(200), batches(1))
    assert not PruningPlan.of(module).heads


class Adversarial(Llama):
    """Two optimizers that step in turn, by hand; training_step returns nothing."""

    automatic_optimization = False

    def __init__(self):
        super().__init__()
        self.critic = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        super_loss = super().training_step(batch, batch_idx)
        model_optimizer, critic_optimizer = self.optimizers()
        model_optimizer.zero_grad()
        self.manual_backward(super_loss)
        model_optimizer.step()
        critic_optimizer.zero_grad()
        self.manual_backward(self.critic(super_loss.detach().reshape(1, 1)).sum())
        critic_optimizer.step()

    def configure_optimizers(self):
        return super().configure_optimizers(), torch.optim.SGD(self.critic.parameters(), lr=1e-3)


# With what else a training has.


def test_several_optimizers_that_step_in_turn_by_hand():
    seen = []

    def note(model):
        seen.append(model.trainer.global_step)
        return least_important_last(model)

    callback = pruning(criterion=note, start=0.25, end=0.5, num_cuts=2)
    module = train(callback, module=Adversarial(), steps=-1, max_epochs=1, limit_train_batches=20)
    assert seen == [cut.step for cut in callback.cuts] == [10, 20]  # of 40 steps of both optimizers
    state = module.optimizers()[0].state
    weight = module.get_submodule(SITES[0]).o_proj.weight
    assert state[weight]["exp_avg"].shape == weight.shape == (32, 16)
    assert state[weight]["step"] == 20


def test_gradients_count_once_where_several_optimizers_step():
    plans = []
    for module, steps in ((Llama(), 10), (Adversarial(), 20)):
        callback = pruning(0.25, num_cuts=1, start=steps // 2, end=steps // 2)
        train(callback, module=module, steps=steps)
        plans.append(callback.part._pruner._importance.values())
    for name, values in plans[0].items():
        torch.testing.assert_close(values, plans[1][name], equal_nan=True)


def test_loss_that_is_not_returned_is_named_and_cuts_are_made_without_guard():
    callback = pruning(guard=Guard())
    with pytest.warns(AttnwatchWarning, match="training_step returns no loss, so cuts are not judged") as warnings:
        train(callback, module=Adversarial())
    assert len([warning for warning in warnings if warning.category is AttnwatchWarning]) == 1
    assert [cut.step for cut in callback.cuts] == [4, 10]


def test_run_of_unknown_length():
    endless = {"steps": -1, "max_epochs": -1, "max_time": {"seconds": 2}}
    with pytest.raises(ConfigurationError, match="give `start` and `end` as numbers of steps"):
        train(pruning(start=0.1), **endless)
    callback = pruning(start=2, end=4)
    train(callback, **endless)
    assert [cut.step for cut in callback.cuts] == [2, 4]


def test_step_is_timed_with_all_its_micro_batches(tmp_path, monkeypatch):
    seen, after_step = [], HeadPruner.after_step

    def note(pruner, step, seconds, keep_ratio):
        seen.append((step, seconds))
        return after_step(pruner, step, seconds, keep_ratio)

    monkeypatch.setattr(HeadPruner, "after_step", note)
    options = {"accumulate_grad_batches": 2, "limit_train_batches": 8}
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=8, filename="{step}")
    begin = time.perf_counter()
    train(pruning(), checkpoint, module=Llama(lambda *_: time.sleep(0.003)), **options)
    elapsed = time.perf_counter() - begin
    steps, seconds = zip(*seen, strict=True)
    assert list(steps) == list(range(1, STEPS + 1))
    assert min(seconds) >= 2 * 0.003
    assert sum(seconds) <= elapsed
    seen.clear()
    train(pruning(), ckpt_path=tmp_path / "step=16.ckpt", **options)
    assert [step for step, _ in seen] == list(range(17, STEPS + 1))


@needs_weight_averaging
def test_averaged_weights_are_cut_with_the_model():
    callback, average = pruning(), WeightAveraging()
    module = train(average, callback)
    assert PruningPlan.of(module).heads
    assert PruningPlan.of(average._average_model.module) == PruningPlan.of(module)


@pytest.mark.slow
def test_compiled_module():
    callback, module = pruning(num_cuts=1), Llama()
    plain = train(pruning(num_cuts=1))
    module.model.compile(backend="eager")
    train(callback, module=module)
    assert module.losses == pytest.approx(plain.losses, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": 1}, "`target` must be the fraction of the heads to remove, between 0 and 1; got 1"),
        ({"target": 0.0}, "`target` must be"),
        ({"criterion": "gates"}, "`criterion` must be one of 'entropy', "),
        ({"start": 1.5}, "`start` must be a fraction of the run, below 1, or a number of steps, got 1.5"),
        ({"start": 0.5, "end": 0.4}, "`start` must not be after `end`"),
        ({"num_cuts": 0}, "`num_cuts` must be an integer of at least 1"),
        ({"ranking": "best"}, "`ranking` must be one of 'global', 'layer', 'equal'"),
        ({"grouping": "all"}, "`grouping` must be one of 'auto', 'group', 'within'"),
        ({"min_heads": -1}, "`min_heads` must be an integer of at least 0"),
        ({"guard": 3}, "`guard` must be an attnwatch.Guard or None"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_arguments_are_named_at_construction(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        HeadPruning(**arguments)


def test_sharding_strategies_are_refused_with_the_way_that_works():
    trainer = pl.Trainer(strategy=ModelParallelStrategy(), logger=False, enable_checkpointing=False, accelerator="cpu")
    with pytest.raises(
        ConfigurationError, match=r"under ModelParallelStrategy.*attnwatch.prune_heads, then train the result"
    ):
        pruning().setup(trainer, Llama(), "fit")


@needs_weight_averaging
def test_run_with_averaged_weights_is_resumed(tmp_path):
    callbacks = pruning(), WeightAveraging(), ModelCheckpoint(tmp_path, every_n_train_steps=8, filename="{step}")
    module = train(*callbacks, limit_train_batches=4)
    for order in (slice(None), slice(None, None, -1)):
        resumed = train(
            *[pruning(), WeightAveraging()][order], ckpt_path=tmp_path / "step=16.ckpt", limit_train_batches=4
        )
        assert_same_weights(resumed, module)


def test_pruned_checkpoint_is_validated_on_an_unpruned_module(tmp_path):
    trained = train(pruning(), ModelCheckpoint(tmp_path, filename="last"))
    trainer = pl.Trainer(callbacks=[pruning()], logger=False, enable_progress_bar=False, accelerator="cpu")
    module = Llama()
    trainer.validate(module, batches(1), ckpt_path=tmp_path / "last.ckpt", verbose=False)
    assert_same_weights(module, trained)


def test_cuts_are_on_the_dashboard(tmp_path):
    logger = TensorBoardLogger(tmp_path, name=None, version="")
    module = train(pruning(), logger=logger, log_every_n_steps=1)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.value for event in events.Scalars("pruning/heads")][::6] == [1.0, 0.75, 0.5, 0.5]
    assert all(event.value > 0 for event in events.Scalars("pruning/step_seconds"))
    texts = [tensor.tensor_proto.string_val[0].decode() for tensor in events.Tensors("pruning/cuts/text_summary")]
    assert [text.partition(":")[0].partition("\n")[0] for text in texts] == [
        "2 heads removed after step 4",
        "the cut after step 4 (2 heads)",
        "2 heads removed after step 10",
        "the cut after step 10 (2 heads)",
    ]
    assert str(PruningPlan.of(module)) in texts[-1]


def validated(callback, module, *, steps=STEPS, **options) -> None:
    trainer = pl.Trainer(
        max_steps=steps,
        callbacks=[callback],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, batches(200), batches(1))


@pytest.mark.parametrize("on_epoch", [False, True], ids=["step", "epoch"])
def test_guard_watches_a_metric_of_the_training(on_epoch, monkeypatch):
    """Which validation does not know, so that its sanity check can't find it."""

    class Logging(Llama):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            worse = float(PruningPlan.of(self).num_removed)
            self.log("quality", torch.tensor(worse), on_step=not on_epoch, on_epoch=on_epoch)
            return loss

    values, record = [], HeadPruner.record
    callback = pruning(num_cuts=1, start=6, end=6, guard=Guard("quality", recovery_steps=0))
    monkeypatch.setattr(HeadPruner, "record", lambda pruner, value: values.append(value) or record(pruner, value))
    with pytest.warns(AttnwatchWarning, match="quality went from 0 to"):
        validated(callback, Logging(), limit_train_batches=4, val_check_interval=2)
    # Means of the four epochs before the last: cut from step 7 to 9, when the second one has told that it does harm.
    assert list(map(float, values)) == ([0, 2, 1, 0] if on_epoch else [*[0] * 6, 4, *[0] * 13])


# Other ways to try, and to average.


@pytest.mark.parametrize("fast_dev_run", [True, 5])
def test_trial_run_makes_one_cut(fast_dev_run):
    callback, module = HeadPruning(), Llama()
    trainer = pl.Trainer(
        fast_dev_run=fast_dev_run, callbacks=[callback], accelerator="cpu", enable_progress_bar=False, logger=False
    )
    trainer.fit(module, batches(9), batches(1))
    assert [cut.step for cut in callback.cuts] == [1]
    assert PruningPlan.of(module).num_removed == LAYERS * HEADS // 2


@needs_moving_averages
@pytest.mark.parametrize("decay", [0.9, 0.95, 0.9999])
def test_moving_averages_do_not_spoil_the_numbers_of_the_heads(decay):
    """Lightning's EMA averages buffers too."""
    callback = pruning(criterion=lambda model: {site: torch.arange(4.0) for site in SITES}, ranking="layer")
    module = train(EMAWeightAveraging(decay=decay), callback)
    assert [module.get_submodule(site).kept_heads.round().tolist() for site in SITES] == [[2, 3], [2, 3]]


def test_stochastic_weight_averaging():
    callback, average = pruning(start=4, end=8), StochasticWeightAveraging(1e-3, swa_epoch_start=0.5)
    module = train(callback, average, steps=-1, max_epochs=5, limit_train_batches=4)
    assert [cut.step for cut in callback.cuts] == [4, 8]
    assert PruningPlan.of(module).num_removed == LAYERS * HEADS // 2
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())


def test_two_prunings_of_one_model_are_refused():
    trainer = pl.Trainer(callbacks=[pruning(), type("Another", (HeadPruning,), {})()], logger=False, accelerator="cpu")
    with pytest.raises(ConfigurationError, match="`callbacks` has two HeadPruning"):
        trainer.fit(Llama(), batches(1))


def test_run_that_goes_on_with_another_target_is_told(tmp_path):
    train(pruning(), ModelCheckpoint(tmp_path, every_n_train_steps=8, filename="{step}"), limit_train_batches=4)
    callback = pruning(0.75, start=4, end=18, num_cuts=2, min_heads=0)
    with pytest.warns(AttnwatchWarning, match="continues with other settings than before: {'target': 0.75, 'steps"):
        resumed = train(callback, ckpt_path=tmp_path / "step=16.ckpt", limit_train_batches=4)
    assert [cut.step for cut in callback.cuts] == [4, 10, 18]
    assert PruningPlan.of(resumed).num_removed == 3 * LAYERS * HEADS // 4


def test_what_it_came_to_is_told_at_the_end(caplog):
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        train(pruning())
    lines = [record.getMessage() for record in caplog.records if "attnwatch" in record.getMessage()]
    assert lines[0] == "attnwatch: 2 heads removed after step 4"
    begins = "attnwatch: 4 of 8 heads removed; the target was 50%; a step took "
    assert sum(line.startswith(begins) for line in lines) == 1
    assert "accept_pruned_state" in lines[-1]
