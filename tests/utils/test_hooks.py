"""Copies and pickles of a model that is watched, gated or shortened hold nothing of ours."""

import copy
import functools
import io
import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lightning
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from attnwatch import TokenDropper, accept_pruned_state
from attnwatch.heads import HeadImportance
from attnwatch.recorder import AttentionRecorder
from attnwatch.utils.hooks import put
from attnwatch.utils.interception import is_intercepted
from tests.support.models import LAYERS, WIDTH, bert, gpt, llama, seeded, token_ids
from tests.support.paths import ROOT

SDPA = F.scaled_dot_product_attention


def encoder() -> nn.Module:
    def build():
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 48, dropout=0.0, batch_first=True)
        return nn.Sequential(nn.Embedding(50, WIDTH), nn.TransformerEncoder(layer, LAYERS))

    return seeded(build)


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = bert()

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(ids)[0]


class Twice(nn.Module):
    """Has a way of its own to be copied, which copies what stands in `__dict__`."""

    def __init__(self):
        super().__init__()
        self.model = gpt()

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(ids)

    def __deepcopy__(self, memo: dict) -> "Twice":
        twin = Twice.__new__(Twice)
        memo[id(self)] = twin
        twin.__dict__ = copy.deepcopy(self.__dict__, memo)
        return twin


MODELS = {"gpt": gpt, "llama": llama, "bert": bert, "torch encoder": encoder, "lightning": Module, "own copy": Twice}


def output_of(model: nn.Module) -> Tensor:
    output = model.eval()(token_ids())
    output = output if isinstance(output, Tensor) else output[0]
    return output.detach()


def watched(model: nn.Module) -> Callable[[], object]:
    recorder = AttentionRecorder(model, every_n_steps=1)
    with recorder.step(0):
        model(token_ids())
    return recorder.close


def gated(model: nn.Module) -> Callable[[], object]:
    """Gates are on layers whose own weights get no gradient."""
    model.requires_grad_(False)
    return HeadImportance(model).close


def shortened(model: nn.Module) -> Callable[[], object]:
    dropper = TokenDropper(model, keep_ratio=0.5, criterion="attention", first_layer=1, last_layer=1)
    dropper.attach()
    return dropper.detach


def accepting(model: nn.Module) -> Callable[[], object]:
    return accept_pruned_state(model).remove


WAYS = {
    **{f"watched {name}": (build, watched) for name, build in MODELS.items()},
    "gated llama": (llama, gated),
    "gated torch encoder": (encoder, gated),
    "shortened llama": (llama, shortened),
    "shortened bert": (bert, shortened),
    "accepting llama": (llama, accepting),
    "accepting lightning": (Module, accepting),
}


def traces(model: nn.Module) -> list[str]:
    """Whatever of ours a module holds, by its module."""
    found = []
    for name, module in model.named_modules():
        hooks = [module._forward_hooks, module._forward_pre_hooks, module._load_state_dict_pre_hooks]
        found += [f"{name}: hook" for each in hooks if each]
        found += [f"{name}: {key}" for key in vars(module) if "attnwatch" in key or key.startswith("__")]
        found += [f"{name}: class"] if "attnwatch" in type(module).__module__ else []
        found += [f"{name}: intercepted"] if is_intercepted(module) else []
    return found


def load_elsewhere(path: Path) -> Tensor:
    """The model's output, in a process that has no attnwatch."""
    code = (
        "import sys; sys.modules['attnwatch'] = None; sys.path.insert(0, sys.argv[1]); import torch\n"
        "from tests.support.models import token_ids\n"
        "model = torch.load(sys.argv[2], weights_only=False).eval()\n"
        "output = model(token_ids()); output = output if isinstance(output, torch.Tensor) else output[0]\n"
        "torch.save(output.detach(), sys.argv[2] + '.out')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(ROOT), str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return torch.load(f"{path}.out")


@pytest.mark.parametrize(("build", "attach"), WAYS.values(), ids=WAYS)
def test_copies_and_pickles_hold_nothing_of_ours(build, attach):
    model = build()
    detach = attach(model)
    held = traces(model)
    copies = {
        "pickle": pickle.loads(pickle.dumps(model)),
        "deepcopy": copy.deepcopy(model),
        "average": AveragedModel(model).module,
    }
    buffer = io.BytesIO()
    torch.save(model, buffer)
    assert b"attnwatch" not in buffer.getvalue()
    buffer.seek(0)
    copies["torch.save"] = torch.load(buffer, weights_only=False)
    assert set(traces(model)) == set(held)
    assert held
    detach()
    expected = output_of(model)
    for way, twin in copies.items():
        if attach is accepting and way in ("deepcopy", "average"):
            continue  # which the user has asked for
        assert traces(twin) == [], way
        assert output_of(twin).equal(expected), way
    assert not [each for each in traces(model) if not each.endswith("__reduce_ex__") and "deepcopy" not in each]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["watched gpt", "gated llama", "shortened llama", "accepting llama"])
def test_pickle_loads_where_attnwatch_is_not_installed(name: str, tmp_path):
    build, attach = WAYS[name]
    model = build()
    detach = attach(model)
    torch.save(model, tmp_path / "model.pt")
    detach()
    assert load_elsewhere(tmp_path / "model.pt").equal(output_of(model))


def test_deep_copy_still_accepts_pruned_states():
    model = llama()
    handle = accept_pruned_state(model)
    twin = copy.deepcopy(model)
    assert twin._load_state_dict_pre_hooks
    handle.remove()
    assert not copy.deepcopy(model)._load_state_dict_pre_hooks


def test_hooks_of_others_stay():
    model, seen = gpt(), []
    module = model.layers[0]["attention"]
    module.register_forward_hook(_note)
    with AttentionRecorder(model):
        module.register_forward_pre_hook(_note_before)
        twin = copy.deepcopy(model)
        twin = pickle.loads(pickle.dumps(twin))
    assert not seen
    assert list(twin.layers[0]["attention"]._forward_hooks.values()) == [_note]
    assert list(twin.layers[0]["attention"]._forward_pre_hooks.values()) == [_note_before]


def _note(*_):
    return None


def _note_before(*_):
    return None


class Holder:
    """Holds the function, as a module of an attention library does."""

    def __init__(self):
        self.function = F.scaled_dot_product_attention
        self.partial = functools.partial(F.scaled_dot_product_attention, is_causal=True)


def test_function_that_was_taken_while_watching_is_pickled_as_torchs():
    with AttentionRecorder(gpt()):
        holder, original = Holder(), SDPA
        for each in (holder, original, holder.function, holder.partial):
            pickled = pickle.dumps(each)
            assert b"attnwatch" not in pickled
            assert b"attnwatch" not in _by_cloudpickle(each)
        assert copy.deepcopy(holder).function is SDPA
    loaded = pickle.loads(pickle.dumps(holder))
    assert loaded.function is SDPA
    assert loaded.partial.func is SDPA


def _by_cloudpickle(value: object) -> bytes:
    cloudpickle = pytest.importorskip("cloudpickle")
    return cloudpickle.dumps(value)


@pytest.mark.slow
def test_watched_model_is_sent_to_a_spawned_process():
    model = gpt()
    with AttentionRecorder(model):
        context = multiprocessing.get_context("spawn")
        data = context.reducer.ForkingPickler.dumps(nn.Linear(2, 2))
        assert b"attnwatch" not in bytes(data)
        data = context.reducer.ForkingPickler.dumps(model)
    assert b"attnwatch" not in bytes(data)


def test_what_is_put_twice_is_taken_away_one_by_one():
    module = nn.Linear(2, 2)
    first = put(module, attributes={"_ours": 1})
    second = put(module, handles=[module.register_forward_hook(_note)])
    first()
    first()
    assert len(module._forward_hooks) == 1
    assert not copy.deepcopy(module)._forward_hooks
    second()
    assert "__reduce_ex__" not in vars(module)
