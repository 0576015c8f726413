"""A fault that the loss hides, named in the first step by the monitor, under Lightning and under the Trainer.

    python examples/checkup_in_trainers.py

Both train a small GPT-2 on numbers that count up. The script shifts the labels, as it would for a model that does not;
models of transformers shift them themselves. The loss falls all the same.
"""

import tempfile
import warnings

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import attnwatch.lightning
import attnwatch.transformers

VOCABULARY, TOKENS, STEPS = 64, 16, 30
Sample = dict[str, torch.Tensor]


def samples() -> list[Sample]:
    """Return sequences that count up from a random number, with labels that are shifted."""
    starts = torch.randint(VOCABULARY, (8 * STEPS, 1))
    numbers = (starts + torch.arange(TOKENS + 1)) % VOCABULARY
    return [{"input_ids": each[:-1], "labels": each[1:]} for each in numbers]


def model() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, bos_token_id=0)).train()


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = model()

    def training_step(self, batch: Sample) -> torch.Tensor:
        loss = self.model(**batch).loss
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def with_lightning() -> None:
    monitor = attnwatch.lightning.AttentionMonitor(on_finding="ignore")
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_steps=STEPS,
            accelerator="cpu",
            callbacks=[monitor],
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Module(), DataLoader(samples(), batch_size=8))
    print(f"\nUnder Lightning:\n{monitor.checkup}")


def with_transformers() -> None:
    monitor = attnwatch.transformers.AttentionMonitor(on_finding="ignore")
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=STEPS, per_device_train_batch_size=8, report_to=[], use_cpu=True, disable_tqdm=True
        )
        Trainer(model(), arguments, train_dataset=samples(), callbacks=[monitor]).train()
    print(f"\nUnder the Trainer:\n{monitor.checkup}")


def main() -> None:
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    with_lightning()
    with_transformers()


if __name__ == "__main__":
    main()
