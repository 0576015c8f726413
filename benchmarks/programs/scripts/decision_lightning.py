"""Train a decision transformer on logged trajectories of a thermostat, with returns-to-go, under Lightning."""

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import GPT2Config, GPT2Model

from attnwatch import TrainingCheckup
from attnwatch.lightning import AttentionMonitor

STATES, ACTIONS, CONTEXT, MAX_TIME = 5, 3, 10, 40
WARMUP = 200


def simulate(skill: float, generator: torch.Generator) -> dict[str, Tensor]:
    """Run a thermostat (cool, wait, heat) that acts well with a probability of `skill`; one sensor never changes."""
    length = int(torch.randint(15, MAX_TIME, (1,), generator=generator))
    noise = torch.randn(length, 3, generator=generator)
    temperature, target = 20 + 5 * noise[0, 0], 20 + 5 * noise[0, 1]
    states, actions, rewards = [], [], []
    for step in range(length):
        outside = 15 + 3 * noise[step, 2]
        states.append(torch.stack([temperature, target, outside, temperature - target, torch.tensor(230.0)]))
        gap = float(target - temperature)
        best = 2 if gap > 1 else 0 if gap < -1 else 1
        is_good = bool(torch.rand(1, generator=generator) < skill)
        action = best if is_good else int(torch.randint(ACTIONS, (1,), generator=generator))
        temperature = temperature + 1.5 * (action - 1) + 0.05 * (outside - temperature)
        actions.append(action)
        rewards.append(-float(abs(target - temperature)))
    returns = torch.tensor(rewards).flip(0).cumsum(0).flip(0)
    return {"states": torch.stack(states), "actions": torch.tensor(actions), "returns": returns / 50}


class Trajectories(Dataset):
    def __init__(self, count: int) -> None:
        self.generator = torch.Generator().manual_seed(0)
        skills = torch.rand(count, generator=self.generator) * 0.5 + 0.5
        self.runs = [simulate(float(skill), self.generator) for skill in skills]
        states = torch.cat([run["states"] for run in self.runs])
        self.mean, self.std = states.mean(0), states.std(0) + 1e-6

    def __len__(self) -> int:
        return 20 * len(self.runs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return a window of a trajectory, padded at its left."""
        run = self.runs[index % len(self.runs)]
        length = len(run["actions"])
        end = int(torch.randint(1, length + 1, (1,), generator=self.generator))
        start = max(0, end - CONTEXT)
        missing = CONTEXT - (end - start)
        states = (run["states"][start:end] - self.mean) / self.std
        return {
            "states": F.pad(states, (0, 0, missing, 0)),
            "actions": F.pad(run["actions"][start:end], (missing, 0), value=0),
            "returns": F.pad(run["returns"][start:end], (missing, 0)),
            "timesteps": F.pad(torch.arange(start, end), (missing, 0)),
            "mask": F.pad(torch.ones(end - start), (missing, 0)),
        }


class DecisionTransformer(L.LightningModule):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        config = GPT2Config(
            vocab_size=1,
            n_positions=3 * CONTEXT,
            n_embd=width,
            n_layer=2,
            n_head=4,
            use_cache=False,
            bos_token_id=None,
            eos_token_id=None,
        )
        self.transformer = GPT2Model(config)
        self.transformer.wte.requires_grad_(False)
        self.embed_time = nn.Embedding(MAX_TIME, width)
        self.embed_return = nn.Linear(1, width)
        self.embed_state = nn.Linear(STATES, width)
        self.embed_action = nn.Embedding(ACTIONS, width)
        self.embed_norm = nn.LayerNorm(width)
        self.predict_action = nn.Linear(width, ACTIONS)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        time = self.embed_time(batch["timesteps"])
        returns = self.embed_return(batch["returns"].unsqueeze(-1)) + time
        states = self.embed_state(batch["states"]) + time
        actions = self.embed_action(batch["actions"]) + time
        tokens = torch.stack((returns, states, actions), dim=2).flatten(1, 2)
        attention_mask = batch["mask"].repeat_interleave(3, dim=1)
        outputs = self.transformer(inputs_embeds=self.embed_norm(tokens), attention_mask=attention_mask)
        hidden = outputs.last_hidden_state
        return self.predict_action(hidden[:, 1::3])

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        logits = self(batch)
        is_real = batch["mask"] > 0
        loss = F.cross_entropy(logits[is_real], batch["actions"][is_real])
        if self.global_step % 25 == 0:
            print(self.global_step, round(loss.item(), 3))
        return loss

    def configure_optimizers(self) -> dict[str, object]:
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=1e-4)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def train(steps: int) -> TrainingCheckup:
    L.seed_everything(0, verbose=False)
    loader = DataLoader(Trajectories(100), batch_size=32, shuffle=True)
    model = DecisionTransformer()
    model.train()
    monitor = AttentionMonitor(on_finding="ignore", report=False)
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        gradient_clip_val=0.25,
        callbacks=[monitor],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, loader)
    return monitor.checkup
