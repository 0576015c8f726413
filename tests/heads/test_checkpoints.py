"""Pruned models saved and loaded: transformers folders, and state dicts that resize a model."""

import contextlib
import functools
import json
import resource
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import peft
import pytest
import torch
import transformers as hf
from packaging.version import Version
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.integrations.peft import MIN_PEFT_VERSION

from attnwatch import ConfigurationError, PruningPlan, load_pruned, prune_heads, save_pruned
from tests.support import models
from tests.support.head_models import with_lora
from tests.support.models import HEADS, bert, gpt2, llama, seeded, token_ids
from tests.support.saved_models import mixtral, pruned, result
from tests.support.versions import EARLY, lacks

PLAN = "pruning_plan.json"


def llama_without_groups():
    """Its width must be a multiple of its number of heads, or transformers refuses the config."""
    options = {**models._GROUPED, "num_key_value_heads": HEADS}
    return models._transformers(hf.LlamaForCausalLM, hf.LlamaConfig, "sdpa", **options)


def in_bfloat16(build: Callable) -> Callable:
    """As `from_pretrained` makes it: buffers of the rotary embedding stay in float32."""
    return lambda: type(build())._from_config(build().config, dtype=torch.bfloat16)


def files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


# Folders.

UNEQUAL = {
    "llama": (llama, {0: [2, 3]}),
    "qwen3": (models.qwen3, {0: [2, 3], 1: [0, 3]}),
    "mixtral": (mixtral, {1: [0, 1]}),  # transformers calls its weights otherwise in files
    "bert": (bert, {0: [1], 1: [2, 3]}),
    "bert, equal": (bert, {0: [1], 1: [2]}),
    "gpt2": (gpt2, {0: [1], 1: [0, 2, 3]}),
    "t5": (models.t5_for_generation, {0: [1], 3: [0, 1, 3], 5: [2]}),
    "vit": (models.vit, {1: [0, 3]}),
    "llama, a layer without heads": (llama, {0: [0, 1, 2, 3]}),
    "gpt2, a layer without heads": (gpt2, {1: [0, 1, 2, 3]}),
    "llama, three heads in a width of 32": pytest.param(
        llama_without_groups,
        {0: [1], 1: [3]},
        marks=lacks(EARLY, "a Llama's width need not be a multiple of its number of heads"),
    ),
    "llama, bfloat16": (in_bfloat16(llama), {0: [2, 3]}),
    "t5, bfloat16": (in_bfloat16(models.t5), {0: [1]}),
}


@pytest.mark.parametrize(("build", "heads"), UNEQUAL.values(), ids=UNEQUAL)
def test_loaded_model_equals_the_saved_one(tmp_path, build, heads):
    model = pruned(build, heads)
    random = torch.get_rng_state()
    save_pruned(model, tmp_path / "model")
    loaded = load_pruned(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), random)
    assert type(loaded) is type(model)
    assert not loaded.training
    assert torch.equal(result(loaded), result(model))
    expected = model.state_dict()
    assert {name: value.dtype for name, value in loaded.state_dict().items()} == {
        name: value.dtype for name, value in expected.items()
    }
    assert PruningPlan.of(loaded) == PruningPlan.of(model)
    assert set(load_file(tmp_path / "model" / "model.safetensors")) <= set(expected)
    tied = [len({id(value) for value in each.state_dict(keep_vars=True).values()}) for each in (model, loaded)]
    assert tied[0] == tied[1]
    assert not [name for name in files(tmp_path) if not name.endswith((".json", ".safetensors"))]  # and no pickle


STOCK = [llama, models.mistral, models.qwen2, models.qwen3, models.gemma2, models.phi3, mixtral, in_bfloat16(llama)]


@pytest.mark.parametrize("build", STOCK)
@pytest.mark.parametrize("heads", [{0: [2, 3], 1: [0, 1]}, {0: [0, 3], 1: [0, 2]}], ids=["groups", "within"])
def test_equally_many_heads_need_nothing_of_attnwatch(tmp_path, build, heads):
    model = pruned(build, heads)
    save_pruned(model, tmp_path)
    assert files(tmp_path) == {"config.json", "generation_config.json", "model.safetensors"}
    content = json.loads((tmp_path / "config.json").read_text())
    key_value_heads = 1 if heads[0] == [2, 3] else 2
    assert (content["num_attention_heads"], content["num_key_value_heads"]) == (2, key_value_heads)
    assert (content["head_dim"], content["hidden_size"]) == (models.HEAD_DIM, models.WIDTH)
    assert not [name for name in load_file(tmp_path / "model.safetensors") if "kept_heads" in name]
    assert "attnwatch" not in (tmp_path / "config.json").read_text()
    for loaded in (hf.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto"), load_pruned(tmp_path)):
        assert torch.equal(result(loaded), result(model))
        assert not PruningPlan.of(loaded).heads  # heads are counted anew
    assert model.config.num_attention_heads == HEADS


@pytest.mark.parametrize("build", [bert, gpt2, mixtral])
def test_model_that_was_not_pruned_is_an_ordinary_folder(tmp_path, build):
    save_pruned(build(), tmp_path)
    assert PLAN not in files(tmp_path)
    assert torch.equal(result(type(build()).from_pretrained(tmp_path)), result(build()))
    assert torch.equal(result(load_pruned(tmp_path)), result(build()))


@pytest.mark.parametrize("build", [llama, gpt2, models.t5_for_generation, models.bart_for_generation])
def test_loaded_model_generates_what_the_saved_one_does(tmp_path, build):
    model = pruned(build, {0: [2, 3]}).eval()
    model.generation_config.max_new_tokens = 7
    model.generation_config.eos_token_id = None
    save_pruned(model, tmp_path)
    loaded = load_pruned(tmp_path)
    ids = [each.generate(token_ids(), do_sample=False) for each in (model, loaded)]
    assert torch.equal(*ids)
    assert ids[0].shape[1] >= 7


def test_heads_keep_their_numbers(tmp_path):
    model = pruned(gpt2, {0: [0, 2]})
    save_pruned(model, tmp_path)
    loaded = load_pruned(tmp_path)
    for each in (model, loaded):
        prune_heads(each, {0: [3], 1: [1]})
    assert torch.equal(result(loaded), result(model))
    with pytest.raises(ConfigurationError, match=r"head 2 of .* was already removed"):
        prune_heads(loaded, {0: [2]})
    save_pruned(loaded, tmp_path)
    assert torch.equal(result(load_pruned(tmp_path)), result(model))


def test_shards_and_options(tmp_path):
    model = pruned(llama, {0: [2, 3]})
    model.save_pretrained = functools.partial(model.save_pretrained, max_shard_size="20KB")
    save_pruned(model, tmp_path)
    assert len(list(tmp_path.glob("model-0*.safetensors"))) > 2
    loaded = load_pruned(tmp_path, attn_implementation="eager")
    assert loaded.config._attn_implementation == "eager"
    torch.testing.assert_close(result(loaded), result(model))
    del model.save_pretrained
    save_pruned(model, tmp_path)
    assert files(tmp_path) == {"config.json", "generation_config.json", "model.safetensors", PLAN}


def test_saving_replaces_the_model_and_leaves_other_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_pruned(pruned(llama, {0: [2, 3]}), "models/mine")
    others = {"tokenizer.json", "checkpoint-5/model.safetensors", "checkpoint-5/config.json"}
    for name in others:
        Path("models/mine", name).parent.mkdir(exist_ok=True)
        Path("models/mine", name).write_text(name)
    model = pruned(llama, {0: [2, 3], 1: [2, 3]})
    save_pruned(model, "models/mine/")
    expected = {"config.json", "generation_config.json", "model.safetensors"} | others
    assert files(tmp_path) == {f"models/mine/{name}" for name in expected}
    assert all(Path("models/mine", name).read_text() == name for name in others)
    assert torch.equal(result(load_pruned("models/mine")), result(model))


KILLS = {
    "before weights are written": (hf.PreTrainedModel, "save_pretrained", 0),
    "before the plan is written": (PruningPlan, "save", 0),
    "before the first renaming": (Path, "rename", 0),
    "between the two": (Path, "rename", 1),
}


@pytest.mark.parametrize(("owner", "name", "number"), KILLS.values(), ids=KILLS)
def test_killed_while_saving_leaves_the_model_before(tmp_path, monkeypatch, owner, name: str, number: int):
    first, second = pruned(llama, {0: [2, 3]}), pruned(llama, {1: [0, 1, 2, 3]})
    save_pruned(first, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("mine")
    calls, step = [], getattr(owner, name)

    def killed(*args, **kwargs):
        calls.append(1)
        if len(calls) > number:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, killed)
        with pytest.raises(KeyboardInterrupt):
            save_pruned(second, tmp_path / "model")
    assert torch.equal(result(load_pruned(tmp_path / "model")), result(first))
    save_pruned(second, tmp_path / "model")
    assert torch.equal(result(load_pruned(tmp_path / "model")), result(second))
    assert (tmp_path / "model" / "tokenizer.json").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@contextlib.contextmanager
def small_files(most: int):
    """Writing more than this many bytes to a file fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("most", [10, 2_000, 20_000], ids=["no config", "no weights", "no whole weights"])
@pytest.mark.parametrize("heads", [{1: [2, 3]}, {0: [0, 1], 1: [0, 1]}], ids=["with a plan", "stock"])
def test_saving_that_fails_leaves_the_model_before_and_nothing_beside_it(tmp_path, most: int, heads):
    first = pruned(llama, {0: [2, 3]})
    save_pruned(first, tmp_path / "model")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for directory in ("model", "other"):
        with pytest.raises(Exception, match=r"too large|os error 27|File too"), small_files(most):
            save_pruned(pruned(llama, heads), tmp_path / directory)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    save_pruned(pruned(llama, heads), tmp_path / "other")
    assert torch.equal(result(load_pruned(tmp_path / "model")), result(first))


def test_what_can_not_be_saved_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigurationError, match=r"`directory`: '.*file' is a file"):
        save_pruned(llama(), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"

    for model in (nn.Linear(2, 2), with_lora(llama, "q_proj")(), torch.compile(llama(), backend="eager")):
        with pytest.raises(ConfigurationError, match="`model` must be a transformers model, got "):
            save_pruned(model, tmp_path / "model")
    namesake = type("LlamaForCausalLM", (hf.LlamaForCausalLM,), {})(llama().config)
    with pytest.raises(ConfigurationError, match=r"has the same name as a class in transformers.models.llama"):
        save_pruned(namesake, tmp_path / "model")
    assert files(tmp_path) == {"file"}


@lacks(Version(metadata.version("peft")) < Version(MIN_PEFT_VERSION), f"add_adapter needs peft {MIN_PEFT_VERSION}")
def test_model_with_adapters_of_transformers_can_not_be_saved(tmp_path):
    adapted = llama()
    adapted.add_adapter(peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ConfigurationError, match="`model` has adapters"):
        save_pruned(adapted, tmp_path / "model")
    assert not files(tmp_path)


def break_weights(directory: Path, change: Callable[[dict], None]) -> None:
    state = load_file(directory / "model.safetensors")
    change(state)
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})


def write(name: str, content: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).write_text(content)


def write_plan(build: Callable, heads) -> Callable[[Path], None]:
    return lambda directory: PruningPlan.of(pruned(build, heads)).save(directory / PLAN)


def without(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


BROKEN = {
    "no folder": (shutil.rmtree, "holds no saved model: it has no config.json"),
    "no config": (without("config.json"), "holds no saved model: it has no config.json"),
    "config that is none": (write("config.json", "{"), "can't be loaded: its config.json is not JSON"),
    "impossible config": (
        write("config.json", '{"model_type": "llama", "hidden_size": 32, "num_attention_heads": 3}'),
        "can't be loaded: (Class validation error|its config.json does not name)",  # transformers 4 validates nothing
    ),
    "unknown class": (
        write("config.json", '{"model_type": "llama", "architectures": ["My"]}'),
        "can't be loaded: its config.json names the class 'My', which is not in transformers.*`model_class`",
    ),
    "no class": (write("config.json", '{"model_type": "llama"}'), "can't be loaded: "),
    "no weights": (without("model.safetensors"), "can't be loaded: .*no file named .*model.safetensors"),
    "weights that are none": (write("model.safetensors", "weights"), "can't be loaded: "),
    "plan that is none": (write(PLAN, "[]"), "can't be loaded: `path`: .* is not a saved pruning plan"),
    "plan of another model": (write_plan(gpt2, {0: [1]}), "can't be loaded: this plan, for transformer.h.0.attn, is"),
    "other plan": (
        write_plan(llama, {1: [2, 3]}),
        "do not fit its plan: .*'missing_keys': .*1.self_attn.kept_heads.*'mismatched_keys': .*0.self_attn",
    ),
    "plan of fewer heads": (write_plan(llama, {0: [1, 3]}), "do not fit its plan: .*mismatched_keys.*k_proj"),
    "lost weights": (
        lambda at: break_weights(at, lambda state: state.pop("model.norm.weight")),
        "do not fit its plan: {'missing_keys': .'model.norm.weight'.}",
    ),
    "unknown weights": (
        lambda at: break_weights(at, lambda state: state.update(more=torch.ones(2))),
        "do not fit its plan: {'unexpected_keys': .'more'.}",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), BROKEN.values(), ids=BROKEN)
def test_folder_that_can_not_be_loaded_is_named(tmp_path, spoil, message: str):
    save_pruned(pruned(llama, {0: [2, 3]}), tmp_path / "model")
    spoil(tmp_path / "model")
    with pytest.raises(ConfigurationError, match=rf"`directory`: .*{message}"):
        load_pruned(tmp_path / "model")


# Classes that transformers does not export.


class Reader(hf.LlamaForCausalLM):
    """A user's own."""


def bart_encoder() -> nn.Module:
    from transformers.models.bart.modeling_bart import BartEncoder

    return seeded(lambda: BartEncoder(models.bart().config))


@pytest.mark.parametrize(("build", "heads"), [(bart_encoder, {0: [1]}), (models.qwen2_vision, {1: [0, 3]})])
def test_class_that_transformers_does_not_export(tmp_path, build: Callable, heads):
    model = pruned(build, heads)
    assert not hasattr(hf, type(model).__name__)
    for save in (save_pruned, lambda model, directory: model.save_pretrained(directory)):
        save(model, tmp_path / save.__name__)
        loaded = load_pruned(tmp_path / save.__name__)
        assert type(loaded) is type(model)
        assert PruningPlan.of(loaded) == PruningPlan.of(model)
        assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("heads", [{0: [2, 3]}, {0: [2, 3], 1: [0, 1]}], ids=["with a plan", "stock"])
def test_own_class_is_saved_and_loaded_by_name(tmp_path, heads):
    model = Reader(llama().config)
    prune_heads(model, heads)
    save_pruned(model, tmp_path)
    loaded = load_pruned(tmp_path, model_class=Reader)
    assert type(loaded) is Reader
    assert torch.equal(result(loaded), result(model))
    with pytest.raises(ConfigurationError, match=r"class 'Reader', which is not in transformers.*`model_class`"):
        load_pruned(tmp_path)
    for wrong in (nn.Linear, "Reader", hf.AutoModel, hf.PreTrainedModel, model):
        with pytest.raises(ConfigurationError, match="`model_class` must be a subclass of PreTrainedModel, got"):
            load_pruned(tmp_path, model_class=wrong)
