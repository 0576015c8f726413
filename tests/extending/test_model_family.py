"""A model family from outside of the package: its heads are removed as those of the models that attnwatch knows."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

import attnwatch
from attnwatch import ConfigurationError, HeadLayout, ModelFamily, PruningPlan, Refused, check_layout, prune_heads
from attnwatch.heads import HeadMap
from attnwatch.heads.head_map import layout_of
from tests.support.equality import assert_same_weights
from tests.support.head_models import masked, pruned
from tests.support.lightning_training import Llama, pruning, train
from tests.support.models import HEAD_DIM, HEADS, WIDTH, OwnAttention, gpt, llama, token_ids

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")

LAYOUT = HeadLayout({"projection": "q|k|v"}, output="output", head_dim=HEAD_DIM, returns="output")


class Rigid(OwnAttention):
    """Takes the width of its heads from that of the model."""

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2) for part in self.projection(x).chunk(3, -1))
        return self.output(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).mT.flatten(1, 2).mT)


class RigidFamily(ModelFamily):
    """Decides by more than the class, and brings a forward for fewer heads."""

    name = "rigid"

    def head_layout(self, module):
        if not isinstance(module, Rigid):
            return None
        if module.output.bias is None:
            raise Refused("it has no bias")
        return HeadLayout(
            {"projection": "q|k|v"}, output="output", head_dim=HEAD_DIM, forward=self.forward, returns="output"
        )

    @staticmethod
    def forward(module, x):
        parts = (part.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2) for part in module.projection(x).chunk(3, -1))
        mixed = nn.functional.scaled_dot_product_attention(*parts, is_causal=True)
        return module.output(mixed.mT.flatten(1, 2).mT)


class Failing(ModelFamily):
    name = "failing"

    def head_layout(self, module):
        return module.no_such_name


class NoLayout(ModelFamily):
    name = "no_layout"

    def head_layout(self, module):
        return {"qkv": "q|k|v"}


class NoLlama(ModelFamily):
    """Knows better than attnwatch."""

    name = "no_llama"

    def head_layout(self, module):
        if type(module).__name__ == "LlamaAttention":
            raise Refused("its heads are needed")


class Task(Llama):
    """Trains a model of our own."""

    def __init__(self):
        super().__init__()
        self.model = gpt(OwnAttention)

    def training_step(self, batch, batch_idx):
        loss = self.model(batch).square().mean()
        self.losses.append(loss.item())
        return loss


@pytest.mark.parametrize("attention", [OwnAttention, Rigid], ids=["instance", "subclass"])
def test_layer_without_some_heads_is_the_masked_one(registered, attention):
    registered(RigidFamily)
    registered(ModelFamily("own", heads={OwnAttention: LAYOUT}))
    model, heads = gpt(attention), {0: [1], 1: [0, 3]}
    check_layout(attention(), torch.randn(2, 5, WIDTH))
    torch.testing.assert_close(pruned(model, heads)(token_ids()), masked(model, heads)(token_ids()))


def test_heads_are_chosen_and_cut_in_a_training_and_a_resumed_one(registered, tmp_path):
    registered(ModelFamily("own", heads={OwnAttention: LAYOUT}))

    def run(**more):
        callback = pruning()
        saves = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)
        return callback, train(callback, saves, module=Task(), limit_train_batches=4, **more)

    whole, expected = run()
    assert PruningPlan.of(expected).num_removed == 4
    resumed, module = run(ckpt_path=tmp_path / "step=8.ckpt")
    assert [cut.plan for cut in resumed.cuts] == [cut.plan for cut in whole.cuts]
    assert_same_weights(module, expected)


def test_families_of_users_come_after_the_built_in_ones(registered):
    registered(ModelFamily("a_family", heads={OwnAttention: LAYOUT}))
    assert list(ModelFamily.registry)[-1] == "a_family"


def test_layouts_are_of_the_class_alone(registered):
    class Derived(OwnAttention): ...

    registered(ModelFamily("own", heads={OwnAttention: LAYOUT}))
    assert layout_of(OwnAttention()) is LAYOUT
    assert layout_of(Derived()) is None


def test_families_of_users_are_asked_first(registered):
    registered(NoLlama)
    with pytest.raises(ConfigurationError, match=r"model.layers.0.self_attn: its heads are needed"):
        prune_heads(llama(), {0: [0, 1]})


def test_what_a_family_refuses_is_named_with_its_reason(registered):
    registered(RigidFamily)
    model = gpt(Rigid)
    model.layers[1]["attention"].output.bias = None
    assert list(HeadMap.of(model).refused.values()) == ["it has no bias"]


def test_family_that_is_defined_again_replaces_its_predecessor(registered):
    registered(ModelFamily("own", heads={OwnAttention: HeadLayout({"projection": "qkv"}, "output", HEAD_DIM)}))
    registered(ModelFamily("own", heads={OwnAttention: LAYOUT}))
    assert layout_of(OwnAttention()) is LAYOUT
    with pytest.raises(ConfigurationError, match=r"the model family 'own' .* has the name of the model family 'own'"):
        attnwatch.register(ModelFamily("own", heads={Rigid: LAYOUT}))


FAILING = {
    "raises": (Failing, r"the model family 'failing' \(.*Failing\) failed with AttributeError: .*no_such_name"),
    "no layout": (NoLayout, "the model family 'no_layout' .*: the head layout of .* must be a HeadLayout, got {'qkv'"),
}


@pytest.mark.parametrize(("family", "message"), FAILING.values(), ids=FAILING)
def test_families_that_fail_are_named(registered, family, message):
    registered(family)
    with pytest.raises(ConfigurationError, match=message):
        prune_heads(llama(), {0: [0, 1]})


WRONG = {
    "no class": ({1: LAYOUT}, "`heads` must map classes of modules to layouts, got 1"),
    "class of something else": ({int: LAYOUT}, "`heads` must map classes of modules to layouts, got <class 'int'>"),
    "no layout": ({Rigid: "q|k|v"}, "'mine' .*: the head layout of Rigid must be a HeadLayout, got 'q|k|v'"),
}


@pytest.mark.parametrize(("heads", "message"), WRONG.values(), ids=WRONG)
def test_wrong_declarations_are_named(heads, message):
    with pytest.raises(ConfigurationError, match=message):
        attnwatch.register(ModelFamily("mine", heads=heads))


def test_name_of_a_family_of_attnwatch_is_taken():
    with pytest.raises(ConfigurationError, match=r"'t5' .* has the name of the model family 't5'"):
        attnwatch.register(ModelFamily("t5", heads={OwnAttention: LAYOUT}))
