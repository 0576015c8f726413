"""One training of each library that people train transformers with, watched as its users would watch it."""

import numpy as np
import pytest
import torch
import transformers as hf
from torch.utils.data import DataLoader

import attnwatch.transformers as watch
from attnwatch import AttentionRecorder, diagnose
from tests.support.models import llama
from tests.support.versions import BEFORE_5

pytestmark = [
    pytest.mark.slow,
    # Other libraries warn of what they will change; ours must not.
    pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning"),
    pytest.mark.skipif(BEFORE_5, reason="the newest trl and diffusers need transformers 5"),
]
WORDS = [
    "[PAD]",
    "[UNK]",
    "[BOS]",
    "[EOS]",
    *["the", "cat", "sat", "on", "a", "mat", "and", "then", "it", "ran", "to", "us"],
]


@pytest.fixture
def tokenizer() -> hf.PreTrainedTokenizerFast:
    """A tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[BOS]", "eos_token": "[EOS]"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=words, **special)


def dataset(**columns: str):
    from datasets import Dataset

    return Dataset.from_dict({name: [text] * 8 for name, text in columns.items()})


def assert_observed(monitor: watch.AttentionMonitor, *, sites: int = 2) -> None:
    """All layers at every step, with finite values of attention that is not uniform, and a verdict."""
    assert list(monitor.coverage().values()) == ["observed"] * sites
    entropy = monitor.history["normalized_entropy"]
    assert entropy.shape[:2] == (len(monitor.history), sites)
    assert len(monitor.history) >= 2
    assert np.isfinite(entropy).all()
    assert ((entropy > 0) & (entropy < 0.999)).all()
    assert np.isfinite(monitor.history.loss).all()
    assert monitor.diagnosis is not None


def options(config_class: type, directory, **more):
    common = {
        "output_dir": str(directory),
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "bf16": False,
        "gradient_checkpointing": False,
    }
    return config_class(**common | more)


@pytest.mark.parametrize("batching", [{}, {"packing": True}, {"padding_free": True, "max_length": None}], ids=str)
def test_trl_supervised(batching, tokenizer, tmp_path):
    from trl import SFTConfig, SFTTrainer

    monitor = watch.AttentionMonitor(every_n_steps=1)
    trainer = SFTTrainer(
        llama(),
        args=options(SFTConfig, tmp_path, **{"max_length": 16} | batching),
        train_dataset=dataset(text="the cat sat on a mat"),
        processing_class=tokenizer,
        callbacks=[monitor, watch.TokenDropping(0.5, first_layer=0, last_layer=1, min_tokens=2)],
    )
    trainer.train()
    assert_observed(monitor)


def test_trl_preferences_with_a_reference_pass(tokenizer, tmp_path):
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    monitor = watch.AttentionMonitor(every_n_steps=1)
    trainer = DPOTrainer(
        llama(),
        args=options(DPOConfig, tmp_path, max_length=16),
        train_dataset=dataset(prompt="the cat", chosen=" sat on a mat", rejected=" ran"),
        processing_class=tokenizer,
        peft_config=LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
        callbacks=[monitor],
    )
    trainer.train()
    assert_observed(monitor)


def test_trl_policy_that_generates(tokenizer, tmp_path):
    from trl import GRPOConfig, GRPOTrainer

    monitor = watch.AttentionMonitor(every_n_steps=1)
    trainer = GRPOTrainer(
        llama(),
        reward_funcs=lambda completions, **_: [float(len(completion)) for completion in completions],
        args=options(GRPOConfig, tmp_path, num_generations=2, max_completion_length=6),
        train_dataset=dataset(prompt="the cat sat on"),
        processing_class=tokenizer,
        callbacks=[monitor],
    )
    trainer.train()
    assert_observed(monitor)


def test_sentence_transformers(tokenizer, tmp_path):
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, losses, models
    from sentence_transformers import SentenceTransformerTrainingArguments as Arguments

    config = hf.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
    )
    torch.manual_seed(1)
    hf.BertModel(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    words = models.Transformer(str(tmp_path / "bert"), max_seq_length=16)
    model = SentenceTransformer(modules=[words, models.Pooling(32)], device="cpu")
    monitor, pruning = watch.AttentionMonitor(every_n_steps=1), watch.HeadPruning(0.5, start=1, end=1, num_cuts=1)
    trainer = SentenceTransformerTrainer(
        model,
        args=options(Arguments, tmp_path, max_steps=4),
        train_dataset=dataset(anchor="the cat sat on a mat", positive="a cat sat on the mat"),
        loss=losses.MultipleNegativesRankingLoss(model),
        callbacks=[monitor, pruning],
    )
    trainer.train()
    assert list(monitor.coverage().values()) == ["observed"] * 2
    assert monitor.diagnosis is not None
    assert [cut.plan.num_removed for cut in pruning.cuts] == [4]


def test_timm_in_lightning():
    import lightning.pytorch as pl
    import timm

    import attnwatch.lightning

    class Classifier(pl.LightningModule):
        def __init__(self):
            super().__init__()
            sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 3}
            self.model = timm.create_model("vit_tiny_patch16_224", **sizes)

        def training_step(self, batch):
            images, labels = batch
            return torch.nn.functional.cross_entropy(self.model(images), labels)

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), 1e-3)

    torch.manual_seed(1)
    data = [(torch.randn(3, 16, 16), index % 3) for index in range(24)]
    monitor = attnwatch.lightning.AttentionMonitor(every_n_steps=1)
    pruning = attnwatch.lightning.HeadPruning(0.5, start=2, end=2, num_cuts=1, guard=None)
    trainer = pl.Trainer(
        max_steps=6,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[monitor, pruning],
    )
    trainer.fit(Classifier(), DataLoader(data, batch_size=4))
    assert list(monitor.coverage().values()) == ["observed"] * 2
    assert [cut.plan.num_removed for cut in pruning.cuts] == [4]


def diffusion_models():
    import diffusers

    torch.manual_seed(1)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    yield "UNet", unet, {"encoder_hidden_states": torch.randn(2, 5, 12)}
    dit = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=2, sample_size=8, patch_size=2
    )
    yield "DiT", dit, {"class_labels": torch.tensor([1, 2])}


@pytest.mark.parametrize("name", ["UNet", "DiT"])
def test_diffusers_in_a_plain_loop(name):
    _, model, given = next(each for each in diffusion_models() if each[0] == name)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    images, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    with AttentionRecorder(model, every_n_steps=1) as recorder:
        for step in range(3):
            with recorder.step(step):
                predicted = model(images + noise, timestep=torch.tensor([10, 20]), **given).sample[:, :4]
                loss = (predicted - noise).square().mean()
                recorder.record_loss(loss)
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    coverage = recorder.coverage()
    assert set(coverage.values()) == {"observed"}
    attention = [path for path, module in model.named_modules() if type(module).__name__ == "Attention"]
    assert list(coverage) == attention
    assert np.isfinite(recorder.history()["entropy"]).any(2).all()
    assert diagnose(recorder.history()).step == 2
