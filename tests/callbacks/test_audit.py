"""Whatever asks a model beside its training leaves no trace in it, nor in what the training draws from."""

import lightning.pytorch as pl
import pytest
import torch
import transformers as hf
from torch import Tensor
from torch.utils.data import DataLoader

import attnwatch.lightning
import attnwatch.transformers
from attnwatch import ConfigurationError
from attnwatch.explain import occlude
from tests.support.language_models import word_tokenizer
from tests.support.lightning_training import BatchModule
from tests.support.models import VOCABULARY, llama, seeded, token_ids
from tests.support.transformers_training import Sequences, train


def losses(*callbacks: pl.Callback, validation: DataLoader | None = None) -> list[float]:
    pl.seed_everything(1, verbose=False)
    module = BatchModule(llama(dropout=0.3))
    trainer = pl.Trainer(
        max_steps=8,
        val_check_interval=4,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
        logger=False,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(Sequences(32), 2, shuffle=True), validation or DataLoader(Sequences(8), 2))
    return module.losses


def probes(**options) -> attnwatch.lightning.LayerProbe:
    return attnwatch.lightning.LayerProbe(every_n_steps=2, num_splits=2, targets=["position"], **options)


pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")


@pytest.mark.parametrize("shuffle", [False, True])
def test_data_loader_of_ones_own(shuffle: bool):
    callback = probes(batches=DataLoader(Sequences(16), 8, shuffle=shuffle), num_batches=2)
    assert losses(callback) == losses()
    assert callback.results[-1][1].num_examples
    assert losses(callback) == losses()  # again, with the batches that it has


def test_generator_gives_its_batches_once():
    callback = probes(batches=({"input_ids": ids} for ids in token_ids(16).split(8)), num_batches=2)
    for _ in range(2):
        assert losses(callback) == losses()
        assert callback.results[-1][1].num_examples


def test_workers_that_persist_are_the_trainings_own():
    def validation() -> DataLoader:
        return DataLoader(Sequences(16), 8, num_workers=1, persistent_workers=True)

    callback = probes(num_batches=2)
    assert losses(callback, validation=validation()) == losses(validation=validation())
    assert callback.results[-1][1].num_examples


@pytest.mark.parametrize("audit", ["LayerProbe", "OcclusionAudit"])
def test_collator_with_a_generator_of_its_own(tmp_path, audit: str):
    """Training and evaluation share it."""

    def trained(*callbacks) -> list[float]:
        tokenizer = word_tokenizer()
        tokenizer.mask_token = "w0"
        collator = hf.DataCollatorForLanguageModeling(tokenizer, mlm=True, mlm_probability=0.3, seed=42)
        run = train(*callbacks, directory=tmp_path, data_collator=collator)
        return run.losses

    options = {"targets": ["position"], "num_splits": 2} if audit == "LayerProbe" else {}
    assert trained(getattr(attnwatch.transformers, audit)(every_n_steps=4, **options)) == trained()


def test_buffers_that_a_forward_replaces_come_back():
    """Dynamic rotary embeddings are made anew for a sequence that is longer than all before."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    config = hf.LlamaConfig(**llama().config.to_diff_dict() | {"rope_parameters": rope, "max_position_embeddings": 8})
    model = seeded(lambda: hf.LlamaForCausalLM(config)).eval()
    short: Tensor = token_ids(2, 10)
    before = model(short).logits
    occlude(model, {"input_ids": token_ids(2, 20)})
    assert torch.equal(model(short).logits, before)
    assert short.max() < VOCABULARY


def test_no_batches():
    with pytest.raises(ConfigurationError, match="`batches` is empty"):
        losses(probes(batches=[]))
