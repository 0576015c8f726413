"""Pruned models in whatever the ecosystem saves: what it writes loads again, bit for bit, or the rescue is named."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import accelerate
import peft
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from torch import nn

import attnwatch
from attnwatch import ConfigurationError, PruningPlan, load_pruned, prune_heads, save_pruned
from attnwatch.cli import main
from tests.support import models
from tests.support.language_models import byte_tokenizer
from tests.support.lightning_training import Llama, batches
from tests.support.models import HEADS, LAYERS, bert, gpt2, llama, seeded, token_ids
from tests.support.saved_models import mixtral, pruned, result
from tests.support.transformers_training import train
from tests.support.versions import EARLY

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")

PLAN = "pruning_plan.json"
HEADS_GONE = {0: [2, 3], 1: [0, 3]}


def pruning(target: float = 0.5):
    from attnwatch.transformers import HeadPruning

    return HeadPruning(target, guard=None, start=4, end=10, num_cuts=2)


# What save_pretrained writes, under whatever name it is called.

FAMILIES = {
    "llama": (llama, HEADS_GONE),
    "bert": (bert, {0: [1], 1: [2, 3]}),
    "mixtral": (mixtral, {1: [0, 1]}),  # transformers calls its weights otherwise in files, and splits the experts
    "vit": (models.vit, {1: [0, 3]}),  # and its attention modules too
    "gpt_neox": (models.gpt_neox, {0: [1]}),  # and its head
    "t5": (models.t5_for_generation, {0: [1], 3: [0, 1, 3]}),
    "gpt2, a layer without heads": (gpt2, {1: [0, 1, 2, 3]}),
}


@pytest.mark.parametrize("original", [True, False], ids=["names of the files", "names of the model"])
@pytest.mark.parametrize(("build", "heads"), FAMILIES.values(), ids=FAMILIES)
def test_what_save_pretrained_writes_is_loaded(tmp_path, build: Callable, heads, original: bool):
    model = pruned(build, heads)
    model.save_pretrained(tmp_path, **({} if EARLY else {"save_original_format": original}))
    loaded = load_pruned(tmp_path)
    assert type(loaded) is type(model)
    assert torch.equal(result(loaded), result(model))
    assert PruningPlan.of(loaded) == PruningPlan.of(model)
    again = tmp_path / "again"
    loaded.save_pretrained(again)  # by then it knows how its weights were called
    assert torch.equal(result(load_pruned(again)), result(model))


def test_heads_of_two_towers_are_not_mixed_up(tmp_path):
    text = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 64}
    vision = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 4, "image_size": 16, "patch_size": 8}
    config = hf.LlavaConfig(vision_config=vision, text_config=text | {"num_attention_heads": 4}, image_token_index=63)
    model = seeded(lambda: hf.LlavaForConditionalGeneration(config))
    prune_heads(model, {0: [1], 3: [0, 2]})  # the first layer of one, the last of the other
    model.save_pretrained(tmp_path)
    loaded = load_pruned(tmp_path)
    assert PruningPlan.of(loaded) == PruningPlan.of(model)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_multihead_attention_inside_a_transformers_model_is_loaded(tmp_path):
    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = hf.SiglipVisionConfig(**text, image_size=16, patch_size=8)
    model = seeded(lambda: hf.SiglipVisionModel(config))
    name = next(name for name in PruningPlan.of(model).num_heads if name.endswith("head.attention"))
    prune_heads(model, {name: [0]})
    pixels = torch.randn(2, 3, 16, 16)
    for save in (save_pruned, lambda model, directory: model.save_pretrained(directory)):
        save(model, tmp_path)
        loaded = load_pruned(tmp_path)
        assert torch.equal(loaded(pixels).pooler_output, model.eval()(pixels).pooler_output)
        (tmp_path / PLAN).unlink(missing_ok=True)


def test_shards_and_pickled_weights(tmp_path):
    model = pruned(llama, HEADS_GONE)
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("model-0*.safetensors"))) > 2
    model.config.save_pretrained(tmp_path / "bin")
    torch.save(model.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    for folder in ("shards", "bin"):
        content = json.loads((tmp_path / folder / "config.json").read_text())
        content["architectures"] = ["LlamaForCausalLM"]
        (tmp_path / folder / "config.json").write_text(json.dumps(content))
        assert torch.equal(result(load_pruned(tmp_path / folder)), result(model))


def in_half() -> nn.Module:
    """Buffers of the rotary embedding stay in float32."""
    return type(llama())._from_config(llama().config, dtype=torch.float16)


def test_half_precision_and_variant(tmp_path):
    model = pruned(in_half, HEADS_GONE)
    model.save_pretrained(tmp_path, variant="fp16")
    assert torch.equal(result(load_pruned(tmp_path, variant="fp16")), result(model))


# The Trainer.


@pytest.fixture
def told(caplog):
    """What transformers says."""
    verbosity = hf.logging.get_verbosity()
    hf.logging.enable_propagation()
    hf.logging.set_verbosity_info()
    yield caplog
    hf.logging.set_verbosity(verbosity)
    hf.logging.disable_propagation()


def test_last_line_of_a_trainers_script(tmp_path, told):
    run = train(pruning(), directory=tmp_path / "out", save_strategy="steps", save_steps=10)
    assert "save_pretrained with attnwatch.load_pruned(folder)" in told.text
    run.save_model()
    run.save_model(str(tmp_path / "elsewhere"))
    expected = result(run.model)
    for folder in (tmp_path / "out", tmp_path / "elsewhere"):
        assert torch.equal(result(load_pruned(folder)), expected)
    assert PruningPlan.of(load_pruned(tmp_path / "out" / "checkpoint-10")).num_removed == LAYERS * HEADS // 2


def test_run_that_removed_nothing_says_nothing_of_loading(tmp_path, told):
    from attnwatch.transformers import AttentionMonitor

    train(AttentionMonitor(), directory=tmp_path)
    assert "load_pruned" not in told.text


def test_trainers_checkpoint_of_pruned_model_without_the_callback_names_the_remedy(tmp_path):
    from attnwatch.transformers import AttentionMonitor, HeadPruning, TokenDropping

    train(pruning(), directory=tmp_path, save_strategy="steps", save_steps=12)
    dropping = TokenDropping(0.5, min_tokens=4, first_layer=0, last_layer=LAYERS - 1)
    for callback in (AttentionMonitor(), dropping):
        with pytest.raises(ConfigurationError, match=r"in 2 modules \(model.layers.0.self_attn.*accept_pruned_state"):
            train(callback, directory=tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    model = llama()
    attnwatch.accept_pruned_state(model)
    train(AttentionMonitor(), directory=tmp_path, model=model, resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    train(HeadPruning(0.5, guard=None, start=4, end=10, num_cuts=2), AttentionMonitor(), directory=tmp_path / "new")


# Adapters.


def lora(base: nn.Module) -> peft.PeftModel:
    options = {"target_modules": ["q_proj", "v_proj", "o_proj"], "r": 2, "init_lora_weights": False}
    return peft.get_peft_model(base, peft.LoraConfig(**options)).eval()


def test_adapters_trained_on_a_pruned_base_are_deployed(tmp_path):
    """The recipe of docs/how-to/resume.md."""
    save_pruned(pruned(llama, {0: [2, 3]}), tmp_path / "base")
    trained = lora(load_pruned(tmp_path / "base"))
    trained.save_pretrained(tmp_path / "adapters")

    base = load_pruned(tmp_path / "base")
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapters")
    assert torch.equal(result(model.eval()), result(trained))
    merged = model.merge_and_unload()
    save_pruned(merged, tmp_path / "deployed")
    torch.testing.assert_close(result(load_pruned(tmp_path / "deployed")), result(trained), atol=1e-4, rtol=1e-3)
    assert torch.equal(result(load_pruned(tmp_path / "deployed")), result(merged))
    assert torch.equal(result(load_pruned(tmp_path / "adapters")), result(trained))


def test_adapters_whose_base_was_pruned_while_they_were_trained(tmp_path):
    llama().save_pretrained(tmp_path / "base")
    model = lora(hf.LlamaForCausalLM.from_pretrained(tmp_path / "base"))
    run = train(pruning(), directory=tmp_path / "out", model=model)
    run.save_model()
    expected = result(model)
    plan = PruningPlan.load(tmp_path / "out" / PLAN)
    assert plan == PruningPlan.of(model)

    base = hf.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    plan.apply(base)  # its sites begin with base_model.model. there
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "out")
    assert torch.equal(result(loaded), expected)
    assert torch.equal(result(load_pruned(tmp_path / "out")), expected)


def test_adapters_without_their_base_name_the_way(tmp_path):
    lora(pruned(llama, {0: [2, 3]})).save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match=r"holds PEFT adapters of .*PeftModel.from_pretrained\(base, direc"):
        load_pruned(tmp_path)


# Accelerate.


@pytest.mark.parametrize("how", ["save_model", "save_state"])
def test_what_accelerate_saves_is_loaded(tmp_path, how: str):
    accelerator = accelerate.Accelerator(cpu=True)
    model = pruned(llama, HEADS_GONE)
    optimizer = torch.optim.AdamW(model.parameters())
    model, optimizer = accelerator.prepare(model, optimizer)
    model(input_ids=token_ids(), labels=token_ids()).loss.backward()
    optimizer.step()
    folder = tmp_path / "state"
    accelerator.save_model(model, folder) if how == "save_model" else accelerator.save_state(folder)
    with pytest.raises(ConfigurationError, match=r"no config.json. It has weights.*PruningPlan.saved_in\(directory"):
        load_pruned(folder)

    resumed = llama()
    PruningPlan.saved_in(folder, resumed).apply(resumed)
    other = torch.optim.AdamW(resumed.parameters())
    if how == "save_state":
        resumed, other = accelerator.prepare(resumed, other)
        accelerator._models, accelerator._optimizers = [resumed], [other]
        accelerator.load_state(folder)
        assert len(other.state) == len(optimizer.state)
    else:
        resumed.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    assert torch.equal(result(resumed), result(model))

    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    assert torch.equal(result(load_pruned(folder)), result(model))


# Lightning.


def fit(*callbacks, module: nn.Module, ckpt_path=None, steps: int = 20):
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import ModelCheckpoint

    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet["enable_checkpointing"] = any(isinstance(each, ModelCheckpoint) for each in callbacks)
    trainer = pl.Trainer(**quiet, max_steps=steps, callbacks=list(callbacks), num_sanity_val_steps=0)
    trainer.fit(module, batches(200), ckpt_path=ckpt_path)
    return trainer


@pytest.fixture(scope="module")
def lightning_checkpoints(tmp_path_factory) -> Path:
    """`whole.ckpt` and `weights.ckpt` of a run whose heads were removed, `early.ckpt` from before."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    from attnwatch.lightning import HeadPruning

    folder = tmp_path_factory.mktemp("lightning")
    early = ModelCheckpoint(folder, every_n_train_steps=2, filename="early-{step}", save_top_k=-1)
    callback = HeadPruning(0.5, guard=None, start=4, end=10, num_cuts=2)
    trainer = fit(callback, early, module=Llama(), steps=12)
    trainer.save_checkpoint(folder / "whole.ckpt")
    trainer.save_checkpoint(folder / "weights.ckpt", weights_only=True)
    return folder


@pytest.mark.parametrize("callback", ["AttentionMonitor", "TokenDropping", "Two"])
def test_lightning_checkpoint_without_the_callback_names_the_remedy(lightning_checkpoints, callback: str):
    from attnwatch import lightning as ours

    dropping = {"min_tokens": 4, "first_layer": 0, "last_layer": LAYERS - 1}
    made = [ours.AttentionMonitor()] if callback != "TokenDropping" else []
    made += [ours.TokenDropping(0.5, **dropping)] if callback != "AttentionMonitor" else []
    module = Llama()
    with pytest.raises(ConfigurationError, match=r"in 2 modules \(model.model.layers.*accept_pruned_state\(self\)"):
        fit(*made, module=module, ckpt_path=lightning_checkpoints / "whole.ckpt")
    assert not module._load_state_dict_pre_hooks
    assert not module._load_state_dict_post_hooks


class AcceptingLater(Llama):
    """Its hook comes after those of callbacks."""

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        attnwatch.accept_pruned_state(self)


def test_lightning_checkpoint_is_resumed_by_a_module_that_accepts_it(lightning_checkpoints):
    from attnwatch.lightning import AttentionMonitor, HeadPruning

    class Accepting(Llama):
        def __init__(self):
            super().__init__()
            attnwatch.accept_pruned_state(self)

    for kind in (Accepting, AcceptingLater):
        module = kind()
        fit(AttentionMonitor(), module=module, ckpt_path=lightning_checkpoints / "whole.ckpt", steps=13)
        assert PruningPlan.of(module).num_removed == LAYERS * HEADS // 2
    both = AttentionMonitor(), HeadPruning(0.5, guard=None, start=4, end=10, num_cuts=2)
    for order in (both, both[::-1]):
        module = Llama()
        fit(*order, module=module, ckpt_path=lightning_checkpoints / "whole.ckpt", steps=13)
        assert PruningPlan.of(module).num_removed == LAYERS * HEADS // 2
        assert not module._load_state_dict_pre_hooks
        assert not module._load_state_dict_post_hooks


def test_pruned_module_names_the_remedy_for_an_unpruned_lightning_checkpoint(lightning_checkpoints):
    from attnwatch.lightning import AttentionMonitor

    module = Llama()
    prune_heads(module, {0: [0, 1]})
    with pytest.raises(ConfigurationError, match=r"in 1 modules \(model.model.layers.0.*accept_pruned_state"):
        fit(AttentionMonitor(), module=module, ckpt_path=lightning_checkpoints / "early-step=2.ckpt")


@pytest.mark.parametrize("name", ["whole.ckpt", "weights.ckpt"])
def test_plan_of_a_lightning_checkpoint(lightning_checkpoints, name: str):
    module = Llama()
    plan = PruningPlan.saved_in(lightning_checkpoints / name, module)
    assert plan.num_removed == LAYERS * HEADS // 2
    plan.apply(module)
    module.load_state_dict(torch.load(lightning_checkpoints / name, weights_only=True)["state_dict"])
    bare = llama()
    assert PruningPlan.saved_in(lightning_checkpoints / name, bare).heads == {
        site.removeprefix("model."): heads for site, heads in plan.heads.items()
    }
    with pytest.raises(ConfigurationError, match=r"is a file; pass the folder of a model.*accept_pruned_state"):
        load_pruned(lightning_checkpoints / name)


# SentenceTransformer.


def sentence_transformer(encoder: nn.Module, directory: Path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    encoder.save_pretrained(directory)
    tokenizer = byte_tokenizer(TEXT, encoder.config.vocab_size)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(directory)
    transformer = Transformer(str(directory))
    pooling = Pooling(encoder.config.hidden_size)
    return SentenceTransformer(modules=[transformer, pooling], device="cpu")


TEXT = " ".join(f"word{number % 7} is a thing & number {number}.\n" for number in range(80))


def test_what_a_sentence_transformer_saves_is_loaded(tmp_path, capsys):
    from sentence_transformers import SentenceTransformer

    config = hf.BertConfig(**bert().config.to_diff_dict() | {"vocab_size": 300})
    model = sentence_transformer(seeded(lambda: hf.BertModel(config)), tmp_path / "base")
    prune_heads(model, {0: [1], 1: [2, 3]})
    sentences = ["word1 is a thing", "number 2"]
    expected = model.encode(sentences, convert_to_tensor=True)
    model.save_pretrained(str(tmp_path / "saved"))

    encoder = load_pruned(tmp_path / "saved")
    assert PruningPlan.of(encoder) == PruningPlan.of(model[0].auto_model)
    again = SentenceTransformer(str(tmp_path / "saved"), device="cpu", model_kwargs={"ignore_mismatched_sizes": True})
    again[0].model = encoder
    assert torch.equal(again.encode(sentences, convert_to_tensor=True), expected)

    (tmp_path / "text.txt").write_text(TEXT)
    arguments = ["inspect", str(tmp_path / "saved"), "--text", str(tmp_path / "text.txt"), "--tokens", "16"]
    assert main([*arguments, "--sequences", "4", "--out", str(tmp_path / "page.html")]) == 0
    assert "BertModel" in (tmp_path / "page.html").read_text()


def test_model_in_a_folder_of_a_sentence_transformer(tmp_path):
    model = pruned(bert, {0: [1]})
    model.save_pretrained(tmp_path / "0_Transformer")
    (tmp_path / "modules.json").write_text(json.dumps([{"idx": 0, "path": "0_Transformer", "type": "Transformer"}]))
    assert torch.equal(result(load_pruned(tmp_path)), result(model))
    outside = json.dumps([{"path": "../elsewhere"}, {"path": 3}, 7])
    model.save_pretrained(tmp_path.parent / "elsewhere")
    (tmp_path / "modules.json").write_text(outside)
    with pytest.raises(ConfigurationError, match="holds no saved model"):
        load_pruned(tmp_path)


@pytest.mark.parametrize("target", ["up_proj", "q_proj"])
def test_adapters_that_are_saved_in_a_plain_loop_know_the_heads_of_their_base(target, tmp_path):
    llama().save_pretrained(tmp_path / "base")
    base = hf.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=2, target_modules=[target], init_lora_weights=False)
    model = peft.get_peft_model(base, config).eval()
    prune_heads(model, {0: [0, 1], 1: [2, 3]})
    model.save_pretrained(tmp_path / "adapters")
    assert torch.equal(result(load_pruned(tmp_path / "adapters")), result(model))
    assert b"attnwatch" not in pickle.dumps(model)
