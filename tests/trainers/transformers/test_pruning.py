"""Head pruning and token dropping in real trainings of the transformers Trainer."""

import copy
import pickle

import peft
import pytest
import torch
import transformers as hf

import attnwatch
from attnwatch import AttnwatchWarning, ConfigurationError, Guard, PruningPlan
from attnwatch.transformers import AttentionMonitor, HeadPruning, TokenDropping
from tests.support.equality import assert_same_weights
from tests.support.models import HEADS, LAYERS, llama, t5, token_ids
from tests.support.transformers_training import STEPS, Noting, train, trainer

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")

SITES = [f"model.layers.{layer}.self_attn" for layer in range(LAYERS)]


def pruning(target=0.5, **options) -> HeadPruning:
    return HeadPruning(target, **{"guard": None, "start": 4, "end": 10, "num_cuts": 2, **options})


def dropping_tokens() -> TokenDropping:
    return TokenDropping(0.5, min_tokens=4, first_layer=0, last_layer=LAYERS - 1)


def gone(model) -> int:
    return sum(map(len, PruningPlan.of(model).heads.values()))


def test_trainer_trains_on_without_the_callback(tmp_path):
    callback = pruning()
    run = train(callback, directory=tmp_path, optim="adamw_torch")
    before = {name: value.clone() for name, value in run.model.state_dict().items() if "proj" in name}
    run.remove_callback(callback)
    run.args.max_steps = 2
    run.train()
    assert all(not torch.equal(value, run.model.state_dict()[name]) for name, value in before.items())


def test_best_model_comes_back_with_its_heads(tmp_path):
    """The best checkpoint is from before the second cut."""

    class Worsening(Noting):
        def evaluate(self, *args, **options):
            metrics = super().evaluate(*args, **options)
            metrics["eval_worse"] = float(self.state.global_step)
            return metrics

    callback = pruning()
    run = train(
        callback,
        directory=tmp_path,
        trainer_class=Worsening,
        save_strategy="steps",
        save_steps=5,
        eval_strategy="steps",
        eval_steps=5,
        load_best_model_at_end=True,
        metric_for_best_model="eval_worse",
        greater_is_better=False,
    )
    assert run.state.best_model_checkpoint.endswith("checkpoint-5")
    assert gone(run.model) == LAYERS * HEADS // 4
    run.model(input_ids=token_ids(2))


def test_checkpoint_loads_without_a_trainer(tmp_path):
    run = train(pruning(), directory=tmp_path, save_strategy="steps", save_steps=STEPS)
    loaded = attnwatch.load_pruned(tmp_path / f"checkpoint-{STEPS}")
    assert_same_weights(loaded, run.model)
    attnwatch.save_pruned(run.model, tmp_path / "final")
    ids = token_ids(2)
    with torch.no_grad():
        logits = attnwatch.load_pruned(tmp_path / "final")(input_ids=ids).logits
        assert torch.equal(logits, run.model.eval()(input_ids=ids).logits)


@pytest.mark.parametrize("metric", ["eval_worse", "loss", None])
def test_guard_takes_a_harmful_cut_back(metric, tmp_path):
    class Harmed(Noting):
        """Whatever is removed does harm."""

        def evaluate(self, *args, **options):
            metrics = super().evaluate(*args, **options) | {"eval_worse": 1.0 + 10 * gone(self.model)}
            self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

        def log(self, logs, *args, **options):
            if "loss" in logs:
                logs["loss"] = 1.0 + 10 * gone(self.model)
            super().log(logs, *args, **options)

        def training_step(self, *args, **options):
            return super().training_step(*args, **options) * 0 + 1.0 + 10 * gone(self.model)

    callback = HeadPruning(
        0.5, start=8, end=8, num_cuts=1, guard=Guard(metric=metric, recovery_steps=1, window=2), seed=1
    )
    with pytest.warns(AttnwatchWarning, match="was taken back"):
        run = train(
            callback,
            directory=tmp_path,
            trainer_class=Harmed,
            eval_strategy="steps",
            eval_steps=2,
            logging_steps=1,
        )
    assert callback.cuts[0].taken_back
    assert gone(run.model) == 0


def test_numbers_are_logged_with_the_trainers_own(tmp_path):
    run = train(pruning(), dropping_tokens(), directory=tmp_path)
    logged = {entry["step"]: entry for entry in run.state.log_history if "loss" in entry}
    assert [logged[step]["pruning/heads"] for step in (5, 10, 15, 20)] == [0.75, 0.5, 0.5, 0.5]
    assert [logged[step]["tokens/keep_ratio"] for step in (5, 10, 15, 20)] == [0.5, 0.5, 0.5, 1.0]
    assert len(run.state.log_history) == 5


def test_seq2seq_trainer(tmp_path):
    model = hf.T5ForConditionalGeneration(hf.T5Config(**t5().config.to_diff_dict() | {"decoder_start_token_id": 0}))
    run = train(
        pruning(),
        directory=tmp_path,
        model=model,
        trainer_class=hf.Seq2SeqTrainer,
        arguments_class=hf.Seq2SeqTrainingArguments,
        eval_strategy="steps",
        eval_steps=6,
        predict_with_generate=True,
    )
    assert gone(run.model) > 0
    assert run.state.global_step == STEPS


def adapted() -> peft.PeftModel:
    torch.manual_seed(0)
    return peft.get_peft_model(llama(), peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "o_proj"]))


def test_lora_is_pruned_and_merges_to_the_same_model(tmp_path):
    callback = pruning()
    run = train(callback, AttentionMonitor(every_n_steps=2), dropping_tokens(), model=adapted(), directory=tmp_path)
    assert gone(run.model) == LAYERS * HEADS // 2
    run.model.eval()
    ids = token_ids(3)
    with torch.no_grad():
        before = run.model(input_ids=ids).logits
        merged = run.model.merge_and_unload()
        after = merged(input_ids=ids).logits
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    assert gone(merged) == LAYERS * HEADS // 2
    attnwatch.save_pruned(merged, tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(attnwatch.load_pruned(tmp_path / "merged")(input_ids=ids).logits, after)


@pytest.mark.slow
def test_lora_with_token_dropping_resumes(tmp_path):
    options = {"directory": tmp_path, "save_strategy": "steps", "save_steps": 8}
    whole = train(AttentionMonitor(), dropping_tokens(), model=adapted(), **options)
    rest = train(
        AttentionMonitor(),
        dropping_tokens(),
        model=adapted(),
        resume_from_checkpoint=str(tmp_path / "checkpoint-8"),
        **options,
    )
    assert whole.losses[8:] == rest.losses


def test_model_without_attention_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="no attention whose heads can be removed"):
        train(pruning(), directory=tmp_path, model=torch.nn.Linear(2, 2))


def test_trainer_may_evaluate_before_it_trains(tmp_path):
    run = trainer(AttentionMonitor(), pruning(), dropping_tokens(), directory=tmp_path)
    before = run.evaluate()["eval_loss"]
    assert before > 0
    run.train()
    assert gone(run.model) == LAYERS * HEADS // 2


@pytest.mark.slow
def test_lora_resumes_once_its_base_has_the_checkpoints_heads(tmp_path):
    """A checkpoint of adapters has nothing of the base: the plan beside it says which heads are gone."""
    options = {"directory": tmp_path, "save_strategy": "steps", "save_steps": 8, "learning_rate": 1e-2}
    whole = train(HeadPruning(0.5, start=4, end=6, num_cuts=2, guard=None), model=adapted(), **options)
    checkpoint = tmp_path / "checkpoint-8"
    model = adapted()
    attnwatch.PruningPlan.load(checkpoint / "pruning_plan.json").apply(model)
    callback = HeadPruning(0.5, start=4, end=6, num_cuts=2, guard=None)
    resumed = train(callback, model=model, resume_from_checkpoint=str(checkpoint), **options)
    assert resumed.losses == whole.losses[8:]
    assert len(callback.cuts) == 2
    assert_same_weights(resumed.model, whole.model)


def with_optimizer(*callbacks, model, directory, **options) -> Noting:
    """A trainer that is given its optimizer, which therefore exists before a checkpoint is loaded."""
    made = trainer(*callbacks, model=model, directory=directory, **options)
    made.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return made


@pytest.mark.parametrize("is_given", [True, False], ids=["given to the trainer", "of its earlier training"])
def test_optimizer_that_exists_before_the_checkpoint_is_loaded_goes_on(is_given, tmp_path):
    options = {"directory": tmp_path, "save_strategy": "steps", "save_steps": 7, "max_steps": 14}
    make = with_optimizer if is_given else trainer
    whole = make(pruning(), model=llama(), **options)
    whole.train()
    expected = {name: value.clone() for name, value in whole.model.state_dict().items()}
    losses = whole.losses[7:]
    rest = make(pruning(), model=llama(), **options) if is_given else whole
    rest.losses.clear()
    rest.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
    held = {id(parameter) for group in rest.optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in rest.model.parameters()}
    assert rest.losses == losses
    assert all(torch.equal(value, expected[name]) for name, value in rest.model.state_dict().items())


@pytest.mark.slow
def test_training_goes_on_after_the_best_model_was_loaded(tmp_path):
    """Its heads are others than those at the end; the optimizer is that of the end."""
    options = {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": 6, "eval_steps": 6}
    callback = pruning(start=4, end=16)
    run = trainer(callback, directory=tmp_path, load_best_model_at_end=True, max_steps=18, **options)
    run.evaluate = lambda *args, **kwargs: (
        run.log({"eval_loss": abs(run.state.global_step - 12)}) or {"eval_loss": abs(run.state.global_step - 12)}
    )
    run.train()
    assert gone(run.model) < LAYERS * HEADS // 2
    before = {name: value.clone() for name, value in run.model.state_dict().items() if "proj" in name}
    run.remove_callback(callback)
    run.add_callback(pruning())
    run.train()
    assert gone(run.model) == LAYERS * HEADS // 2
    assert not any(torch.equal(value, run.model.state_dict()[name]) for name, value in before.items())


def test_pickle_of_a_model_in_and_after_pruning_has_nothing_of_ours(tmp_path):
    run = train(pruning(), directory=tmp_path)
    assert b"attnwatch" not in pickle.dumps(run.model)
    assert b"attnwatch" not in pickle.dumps(copy.deepcopy(run.model))
