"""The best model comes back whole at the end of a training under head pruning, whatever its checkpoint holds."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
import transformers as hf
from safetensors.torch import save_file
from torch import nn

from attnwatch import ConfigurationError, PruningPlan
from attnwatch.transformers import HeadPruning
from tests.support.models import HEADS, LAYERS, llama, token_ids
from tests.support.transformers_training import Noting, train, trainer

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")

BEST = {"before the first cut": 2, "between the cuts": 4, "after the last cut": 6}
GONE = {2: 0, 4: LAYERS * HEADS // 4, 6: LAYERS * HEADS // 2}
STEPS = 7


class BestAt(Noting):
    """The evaluation after one step is the best; there the weights and the outputs are noted."""

    best_step = 0

    def evaluate(self, *args, **options):
        metrics = super().evaluate(*args, **options)
        metrics["eval_distance"] = float(abs(self.state.global_step - self.best_step))
        if self.state.global_step == self.best_step and not hasattr(self, "at_best"):
            self.at_best = {name: value.clone() for name, value in self.model.state_dict().items()}
            self.logits_at_best = logits(self.model)
        return metrics


def logits(model: nn.Module) -> torch.Tensor:
    was_training = model.training
    with torch.no_grad():
        result = model.eval()(input_ids=token_ids(2)).logits
    model.train(was_training)
    return result


def run_with_best_at(step: int, directory: Path, model: nn.Module, trainer_class=BestAt, **options) -> hf.Trainer:
    class Ours(trainer_class):
        best_step = step

    return train(
        HeadPruning(0.5, guard=None, start=3, end=5, num_cuts=2),
        directory=directory,
        model=model,
        trainer_class=Ours,
        max_steps=STEPS,
        learning_rate=1e-2,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_distance",
        greater_is_better=False,
        **options,
    )


def assert_best_is_back(run: hf.Trainer, step: int):
    assert run.state.best_model_checkpoint.endswith(f"checkpoint-{step}")
    state = run.model.state_dict()
    assert state.keys() == run.at_best.keys()
    assert [name for name in state if not torch.equal(state[name], run.at_best[name])] == []
    assert torch.equal(logits(run.model), run.logits_at_best)
    assert PruningPlan.of(run.model).num_removed == GONE[step]


def adapted(*targets: str, build: Callable = llama, **options) -> peft.PeftModel:
    torch.manual_seed(0)
    return peft.get_peft_model(build(), peft.LoraConfig(r=2, target_modules=list(targets), **options))


ADAPTERS = {
    "attention": lambda: adapted("q_proj", "v_proj", "o_proj"),
    "queries": lambda: adapted("q_proj"),
    "MLP": lambda: adapted("up_proj", "down_proj"),
    "one layer": lambda: adapted("q_proj", "v_proj", layers_to_transform=[1]),
    "DoRA": lambda: adapted("q_proj", "v_proj", "o_proj", use_dora=True),
    "with another module": lambda: adapted("k_proj", modules_to_save=["lm_head"]),
}


@pytest.mark.parametrize("step", BEST.values(), ids=BEST)
@pytest.mark.parametrize("build", ADAPTERS.values(), ids=ADAPTERS)
def test_adapters(build: Callable, step: int, tmp_path):
    assert_best_is_back(run_with_best_at(step, tmp_path, build()), step)


@pytest.mark.parametrize("step", BEST.values(), ids=BEST)
def test_all_parameters(step: int, tmp_path):
    assert_best_is_back(run_with_best_at(step, tmp_path, llama()), step)


class Sharded(BestAt):
    """Checkpoints lie in many files: parts of one attention module in several."""

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        Path(output_dir, "model.safetensors").unlink()
        self.model.save_pretrained(output_dir, state_dict=self.model.state_dict(), max_shard_size="4KB")
        files = json.loads(Path(output_dir, "model.safetensors.index.json").read_text())["weight_map"]
        assert any(len({files[name] for name in files if f"{layer}.self_attn" in name}) > 1 for layer in range(LAYERS))


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 4])
def test_sharded_checkpoints(step: int, tmp_path):
    assert_best_is_back(run_with_best_at(step, tmp_path, llama(), Sharded), step)


@pytest.mark.slow
def test_sharded_checkpoint_resumes(tmp_path):
    """Onto an unpruned model; the files come in any order."""
    best = run_with_best_at(6, tmp_path, llama(), Sharded)
    sharded, whole = tmp_path / "checkpoint-6", tmp_path / "whole" / "checkpoint-6"
    shutil.copytree(sharded, whole, ignore=shutil.ignore_patterns("model*"))
    save_file(best.model.state_dict(), whole / "model.safetensors", {"format": "pt"})
    resumed = []
    for checkpoint in (sharded, whole):
        pruning = HeadPruning(0.5, guard=None, start=3, end=5, num_cuts=2)
        run = trainer(pruning, directory=tmp_path, max_steps=8)
        run.train(resume_from_checkpoint=str(checkpoint))
        resumed.append(run.model.state_dict())
    assert PruningPlan.of(run.model).num_removed == 4
    assert resumed[0].keys() == resumed[1].keys()
    assert all(torch.equal(value, resumed[1][name]) for name, value in resumed[0].items())


@pytest.mark.slow
def test_incomplete_checkpoint_is_named(tmp_path):
    run_with_best_at(6, tmp_path, llama(), Sharded)
    folder = tmp_path / "checkpoint-6"
    index = folder / "model.safetensors.index.json"
    lost = '"model.layers.0.self_attn.kept_heads"'
    assert lost in index.read_text()
    shard = index.read_text().split(lost)[1].split('"')[1]
    index.write_text("".join(line for line in index.read_text().splitlines(True) if shard not in line))
    run = trainer(HeadPruning(0.5, guard=None, start=3, end=5, num_cuts=2), directory=tmp_path, max_steps=STEPS)
    with pytest.raises(
        ConfigurationError, match=r"state dict is not complete: it has only a part of model.layers.0.self_attn"
    ):
        run.train(resume_from_checkpoint=str(folder))


def test_adapters_onto_an_unpruned_base_are_refused_by_name(tmp_path):
    """Nothing says which heads they are of; the remedy does."""
    run = run_with_best_at(6, tmp_path, ADAPTERS["attention"]())
    model = ADAPTERS["attention"]()
    again = trainer(HeadPruning(0.5, guard=None, start=3, end=5, num_cuts=2), model=model, directory=tmp_path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ConfigurationError, match=r"does not say which heads .* has.*PruningPlan.load\('checkpoint"):
        model.load_adapter(str(tmp_path / "checkpoint-6"), "default")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    PruningPlan.load(tmp_path / "checkpoint-6" / "pruning_plan.json").apply(model)
    model.load_adapter(str(tmp_path / "checkpoint-6"), "default")
    assert torch.equal(logits(again.model), logits(run.model))


@pytest.mark.slow
def test_second_training_of_one_model(tmp_path):
    """Another callback, on the model that the first one has pruned."""
    first = run_with_best_at(2, tmp_path / "first", ADAPTERS["attention"]())
    second = run_with_best_at(2, tmp_path / "second", first.model)
    assert_best_is_back(second, 2)
