"""Clone a reaching policy that predicts chunks of actions (ACT): a CVAE with transformers, in Lightning."""

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from attnwatch import TrainingCheckup
from attnwatch.lightning import AttentionMonitor

CHUNK, STATE, ACTION, SIZE, PATCH, WIDTH, LATENT = 12, 4, 2, 24, 6, 64, 8


class Demonstrations(Dataset):
    """Moments of episodes in which a hand goes to a target in a camera picture, from the left or from the right."""

    def __init__(self, size: int = 4000) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        random = torch.Generator().manual_seed(index)
        hand, target = torch.rand(2, 2, generator=random)
        side = float(torch.randint(0, 2, (), generator=random)) * 2 - 1
        row, column = (target * (SIZE - 5)).int().tolist()
        image = 0.05 * torch.randn(3, SIZE, SIZE, generator=random)
        image[0, row : row + 5, column : column + 5] += 1.0
        length = int(torch.randint(4, CHUNK + 1, (), generator=random))
        progress = torch.linspace(0, 1, length + 1)[:, None]
        path = hand + progress * (target - hand)
        path = path + side * 0.3 * (3.14 * progress).sin() * torch.tensor([0.0, 1.0])
        actions = torch.zeros(CHUNK, ACTION)
        actions[:length] = path.diff(dim=0) / 0.1
        is_pad = torch.arange(CHUNK) >= length
        state = torch.cat([hand, torch.tensor([length / CHUNK, 1.0])])
        return {"image": image, "state": state, "actions": actions, "is_pad": is_pad}


class LatentEncoder(nn.Module):
    """Encodes the state and the actions of a demonstration into the parameters of a Gaussian."""

    def __init__(self) -> None:
        super().__init__()
        self.cls = nn.Parameter(0.02 * torch.randn(1, 1, WIDTH))
        self.state, self.action = nn.Linear(STATE, WIDTH), nn.Linear(ACTION, WIDTH)
        self.position = nn.Parameter(0.1 * torch.randn(CHUNK + 2, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 128, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 2 * LATENT)

    def forward(self, state: Tensor, actions: Tensor, is_pad: Tensor) -> tuple[Tensor, Tensor]:
        tokens = [self.cls.expand(len(state), -1, -1), self.state(state)[:, None], self.action(actions)]
        prefix = torch.zeros(len(state), 2, dtype=torch.bool)
        padding = torch.cat([prefix, is_pad], dim=1)
        x = torch.cat(tokens, dim=1) + self.position
        x = self.encoder(x, src_key_padding_mask=padding)
        return self.head(x[:, 0]).chunk(2, dim=-1)


class Policy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.camera = nn.Sequential(
            nn.Conv2d(3, WIDTH, PATCH, PATCH), nn.GELU(), nn.Conv2d(WIDTH, WIDTH, kernel_size=1)
        )
        self.state, self.latent = nn.Linear(STATE, WIDTH), nn.Linear(LATENT, WIDTH)
        self.position = nn.Parameter(0.1 * torch.randn((SIZE // PATCH) ** 2 + 2, WIDTH))
        self.queries = nn.Embedding(CHUNK, WIDTH)
        self.transformer = nn.Transformer(
            WIDTH, 4, num_encoder_layers=2, num_decoder_layers=1, dim_feedforward=128, dropout=0.1, batch_first=True
        )
        self.action_head = nn.Linear(WIDTH, ACTION)

    def forward(self, image: Tensor, state: Tensor, latent: Tensor) -> Tensor:
        pixels = self.camera(image).flatten(2).transpose(1, 2)
        tokens = [self.latent(latent)[:, None], self.state(state)[:, None], pixels]
        x = torch.cat(tokens, dim=1) + self.position
        queries = self.queries.weight.expand(len(x), -1, -1)
        return self.action_head(self.transformer(x, queries))


class ActionChunking(L.LightningModule):
    def __init__(self, kl_weight: float = 0.02) -> None:
        super().__init__()
        self.policy = Policy()
        self.latent_encoder = LatentEncoder()
        self.kl_weight = kl_weight

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        mean, log_variance = self.latent_encoder(batch["state"], batch["actions"], batch["is_pad"])
        latent = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        predicted = self.policy(batch["image"], batch["state"], latent)
        valid = ~batch["is_pad"][..., None].expand_as(predicted)
        error = F.l1_loss(predicted, batch["actions"], reduction="none")
        reconstruction = error[valid].mean()
        kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(-1).mean()
        self.print(index, round(reconstruction.item(), 3), round(kl.item(), 3))
        return reconstruction + self.kl_weight * kl

    @torch.no_grad()
    def rollout(self, batch: dict[str, Tensor]) -> float:
        """Return how far from the target the hand would end, with the mean of the prior as the latent."""
        self.eval()
        actions = self.policy(batch["image"], batch["state"], torch.zeros(len(batch["state"]), LATENT))
        self.train()
        valid = ~batch["is_pad"][..., None]
        return float(((actions - batch["actions"]) * valid).sum(1).norm(dim=-1).mean())

    def on_train_batch_end(self, outputs: object, batch: dict[str, Tensor], index: int) -> None:
        if index % 10 == 0:
            self.print("rollout:", self.rollout(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        camera = list(self.policy.camera.parameters())
        others = [weight for name, weight in self.named_parameters() if "camera" not in name]
        groups = [{"params": camera, "lr": 3e-4}, {"params": others}]
        return torch.optim.AdamW(groups, lr=1e-3, weight_decay=1e-4)


def train(steps: int) -> TrainingCheckup:
    L.seed_everything(0, verbose=False)
    loader = DataLoader(Demonstrations(), batch_size=32, shuffle=True)
    monitor = AttentionMonitor(on_finding="ignore", report=False)
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        gradient_clip_val=1.0,
        callbacks=[monitor],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(ActionChunking(), loader)
    return monitor.checkup
