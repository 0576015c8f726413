"""Trainings of trl: what it samples and refers to within a step does not count."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from torch import nn

from attnwatch.transformers import AttentionMonitor
from tests.support.language_models import number_tokenizer
from tests.support.models import llama, seeded
from tests.support.versions import BEFORE_5

trl = pytest.importorskip("trl")
peft = pytest.importorskip("peft")
datasets = pytest.importorskip("datasets")

pytestmark = [
    pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning"),
    pytest.mark.skipif(BEFORE_5, reason=f"transformers {hf.__version__}: trl needs 5"),
]
PROMPTS = ["3 4 5", "6 7 8 9", "10 11", "12 13 14 15"]


class Noting:
    """Keeps what the model is given in forwards with gradients, and weights of the first one."""

    def __init__(self, model: nn.Module):
        self.batches, self.model = [], None
        model.register_forward_hook(self._note, with_kwargs=True)

    def _note(self, module: nn.Module, args: tuple, kwargs: dict, output) -> None:
        if torch.is_grad_enabled():
            if self.model is None:
                state = module.state_dict().items()  # a copy of the adapter is the reference
                self.model = {name: value.clone() for name, value in state if ".ref." not in name}
            self.batches.append({name: kwargs[name].clone() for name in ("input_ids", "attention_mask")})


def with_adapters(implementation: str) -> nn.Module:
    config = peft.LoraConfig(target_modules=["q_proj", "k_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    return seeded(lambda: peft.get_peft_model(llama(implementation), config))


def by_hand(model: nn.Module, batch: dict) -> np.ndarray:
    """Mean entropy over the rows that see two tokens or more, [layers, heads], in float64, each sequence alone."""
    total, rows = 0.0, 0
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True):
        with torch.no_grad():
            weights = model(input_ids=ids[mask][None], output_attentions=True).attentions
        total += torch.stack([torch.special.entr(each[0]).sum(-1)[:, 1:].sum(-1) for each in weights])
        rows += int(mask.sum()) - 1
    return (total / rows).numpy()


def grpo(model: nn.Module, monitor: AttentionMonitor, options: dict) -> hf.Trainer:
    def reward(completions, **_) -> list[float]:
        return [float(len(set(each.split()))) for each in completions]

    arguments = trl.GRPOConfig(**options, num_generations=2, max_completion_length=5, beta=0.1)
    data = datasets.Dataset.from_dict({"prompt": PROMPTS})
    return trl.GRPOTrainer(model, reward, arguments, data, processing_class=number_tokenizer(), callbacks=[monitor])


def dpo(model: nn.Module, monitor: AttentionMonitor, options: dict) -> hf.Trainer:
    answers = {"chosen": ["20 21 22", "23", "24 25", "26 27"], "rejected": ["30", "31 32 33", "34 35", "36"]}
    data = datasets.Dataset.from_dict({"prompt": PROMPTS, **answers})
    arguments = trl.DPOConfig(**options)
    return trl.DPOTrainer(
        model, args=arguments, train_dataset=data, processing_class=number_tokenizer(), callbacks=[monitor]
    )


@pytest.mark.parametrize("make", [grpo, dpo])
@pytest.mark.parametrize("is_checkpointed", [False, True], ids=["", "checkpointed"])
def test_statistics_are_those_of_the_training_forward_alone(make, is_checkpointed: bool, tmp_path: Path):
    model = with_adapters("sdpa")
    noted = Noting(model.base_model.model)
    monitor = AttentionMonitor(every_n_steps=1, num_query_rows=None)
    options = {"output_dir": str(tmp_path), "max_steps": 2, "per_device_train_batch_size": 2, "report_to": "none"}
    options |= {"save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "bf16": False, "learning_rate": 0.1}
    options |= {"gradient_checkpointing": is_checkpointed}
    if is_checkpointed:
        options["gradient_checkpointing_kwargs"] = {"use_reentrant": True}
    trainer = make(model, monitor, options)
    trainer.train()
    assert set(monitor.coverage().values()) == {"observed"}
    assert monitor.history.steps.tolist() == [0, 1]
    alone = copy.deepcopy(with_adapters("eager").base_model.model).double().eval()
    alone.load_state_dict(noted.model)
    np.testing.assert_allclose(monitor.history["entropy"][0], by_hand(alone, noted.batches[0]), rtol=0, atol=1e-5)
