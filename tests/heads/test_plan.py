"""Plans as values and files, and what they would save, counted by hand."""

import copy
import json

import hypothesis.strategies as st
import peft
import pytest
import torch
from hypothesis import given
from torch import nn

from attnwatch import ConfigurationError, PruningPlan, prune_heads, savings
from attnwatch.heads.names import aligned
from tests.support.contents import assert_unchanged, contents
from tests.support.head_models import EVERYWHERE, with_lora
from tests.support.models import HEAD_DIM, HEADS, LAYERS, TOKENS, VOCABULARY, WIDTH, bert, gpt2, llama, t5, token_ids

SITES = [f"model.layers.{layer}.self_attn" for layer in range(LAYERS)]
HIDDEN = 48


def plan_of(heads: dict[str, tuple[int, ...]]) -> PruningPlan:
    return PruningPlan(heads, dict.fromkeys(SITES, HEADS))


# Plans.


def test_table():
    heads = {"attention": (0, 1, 2, 4, 6, 7), "layers.1": ()}
    plan = PruningPlan(heads, {"attention": 12, "layers.1": 4, "layers.2": 4})
    assert str(plan).splitlines() == [
        "site       heads  removed  which",
        "attention     12        6  0-2, 4, 6, 7",
        "layers.1       4        0  –",
        "layers.2       4        0  –",
        "all           20        6  30%",
    ]


@given(st.dictionaries(st.text(max_size=9), st.lists(st.integers(0, 40), unique=True)))
def test_file_holds_the_plan_as_json(tmp_path_factory, heads):
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    plan = PruningPlan({site: tuple(gone) for site, gone in heads.items()}, dict.fromkeys(heads, 41))
    plan.save(path)
    assert PruningPlan.load(path) == plan
    assert json.loads(path.read_text(encoding="utf-8"))["heads"] == heads


BROKEN = {
    "not JSON": b"{",
    "not text": b"\xff\xfe",
    "a list": b"[1]",
    "a number": b"3",
    "no format": b'{"heads": {}, "num_heads": {}}',
    "no heads": b'{"format": 1, "num_heads": {}}',
    "heads are a list": b'{"format": 1, "heads": [], "num_heads": {}}',
    "heads are text": b'{"format": 1, "heads": {"a": "01"}, "num_heads": {"a": 4}}',
    "a head is a fraction": b'{"format": 1, "heads": {"a": [0.5]}, "num_heads": {"a": 4}}',
    "heads are a number": b'{"format": 1, "heads": {"a": 1}, "num_heads": {"a": 4}}',
    "number of heads is none": b'{"format": 1, "heads": {}, "num_heads": {"a": null}}',
    "numbers of heads are a number": b'{"format": 1, "heads": {}, "num_heads": 3}',
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_file_that_is_no_plan_is_named(tmp_path, content: bytes):
    (tmp_path / "plan.json").write_bytes(content)
    reasons = r"is not a saved pruning plan \(\w+Error|is not JSON \(|can't be read as UTF-8 text \("
    with pytest.raises(ConfigurationError, match=rf"`path`: '.*plan.json' ({reasons})"):
        PruningPlan.load(tmp_path / "plan.json")


def test_file_of_another_format_is_named(tmp_path):
    (tmp_path / "plan.json").write_text('{"format": 2}')
    with pytest.raises(ConfigurationError, match=r"`path`: '.*plan.json' has format 2, expected 1"):
        PruningPlan.load(tmp_path / "plan.json")


@pytest.mark.parametrize("by", ["site", "layer"])
def test_plan_applied_to_a_copy_equals_the_pruned_model(by: str):
    model = llama()
    other = copy.deepcopy(model)
    first = prune_heads(model, {SITES[0]: [2, 3]} if by == "site" else {0: [2, 3]})
    second = prune_heads(model, {SITES[1]: [0, 3]} if by == "site" else {1: [0, 3]})
    assert first == plan_of({SITES[0]: (2, 3)})
    assert second == plan_of({SITES[1]: (0, 3)})
    assert PruningPlan.of(model) == plan_of({SITES[0]: (2, 3), SITES[1]: (0, 3)})
    PruningPlan.of(model).apply(other)
    assert PruningPlan.of(other) == PruningPlan.of(model)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(token_ids()).logits, other(token_ids()).logits)


class Net(nn.Module):
    """Holds a model, as a LightningModule does."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.net = model


WRAPPERS = {
    "nothing": lambda model: model,
    "a module": Net,
    "two modules": lambda model: Net(Net(model)),
    "PEFT": lambda model: peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "query", "c_attn"])),
    "PEFT in a module": lambda model: Net(WRAPPERS["PEFT"](model)),
    "compile": lambda model: torch.compile(model, backend="eager"),
    "Lightning": lambda model: lightning_module(model),
}


def lightning_module(model: nn.Module) -> nn.Module:
    import lightning.pytorch as pl

    module = pl.LightningModule()
    module.encoder = model
    return module


@pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")  # PEFT's
@pytest.mark.parametrize(
    ("build", "made_of", "applied_to"),
    [(llama, made_of, applied_to) for made_of in WRAPPERS for applied_to in WRAPPERS]
    + [(build, *pair) for build in (bert, gpt2) for pair in (("PEFT", "nothing"), ("nothing", "Lightning"))],
)
def test_plan_of_a_wrapped_model_applies_to_the_bare_one_and_the_reverse(build, made_of: str, applied_to: str):
    model, other = build(), build()
    heads = {0: [2, 3], 1: [0, 1]}
    wrapped = WRAPPERS[made_of](model)
    plan = prune_heads(wrapped, heads)
    target = WRAPPERS[applied_to](other)
    assert (
        savings(target, plan, num_tokens=TOKENS).parameters_after < savings(target, plan, num_tokens=TOKENS).parameters
    )
    plan.apply(target)
    assert list(PruningPlan.of(target).heads.values()) == list(plan.heads.values())
    for name, value in kept_weights(model).items():
        assert torch.equal(value, kept_weights(other)[name])


def kept_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Without those of adapters."""
    state = {name.replace(".base_layer", ""): value for name, value in model.state_dict().items()}
    return {name: value for name, value in state.items() if "lora_" not in name}


def test_plan_does_not_apply_to_a_module_with_the_model_and_another():
    both = Net(llama())
    both.teacher = llama()
    with pytest.raises(
        ConfigurationError, match=r"this plan, .* is for a model with the heads .*; `model` has .*teacher"
    ):
        prune_heads(llama(), {0: [2, 3]}).apply(both)


@given(
    st.lists(st.sampled_from(["a", "b", "layers", "0"]), max_size=3),
    st.lists(st.sampled_from(["a", "b", "model", "1"]), max_size=3),
    st.integers(1, 4),
)
def test_sites_are_matched_behind_any_prefixes(first: list[str], second: list[str], layers: int):
    names = [f"layers.{layer}.self_attn" for layer in range(layers)]
    heads = {name: 4 + number for number, name in enumerate(names)}
    of = [{".".join([*prefix, name]): heads[name] for name in names} for prefix in (first, second)]
    assert list(aligned(*of).values()) == list(of[1])
    changed = {**of[1], next(iter(of[1])): 99}
    assert aligned(of[0], changed) is None
    assert aligned(of[0], {**of[1], "more.self_attn": 4}) is None


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (PruningPlan.of(gpt2()), r"this plan, for no site, is for a model with the heads {'transformer.h.0.attn': 4"),
        (PruningPlan({}, {SITES[0]: 4}), r"this plan, .* `model` has {'model.layers.0.self_attn': 4, 'model.layers.1"),
        (PruningPlan({}, dict.fromkeys(SITES, 8)), r"this plan, .* 'model.layers.1.self_attn': 8}; `model` has"),
        (plan_of({"lm_head": (1,)}), "this plan, for lm_head, is for a model"),
    ],
    ids=["other sites", "fewer sites", "other heads", "unknown site"],
)
def test_plan_of_another_model_is_refused(plan: PruningPlan, message: str):
    model = llama()
    before = contents(model)
    for use in (plan.apply, lambda model: savings(model, plan, num_tokens=4)):
        with pytest.raises(ConfigurationError, match=message):
            use(model)
        assert_unchanged(model, before)


# Savings.


def test_savings_of_a_llama_by_hand():
    model, plan = llama(), plan_of({SITES[0]: (2, 3), SITES[1]: (0, 3)})
    got = savings(model, plan, num_tokens=TOKENS)
    head = WIDTH * HEAD_DIM  # weights of one head in one projection
    attention, rest = LAYERS * (4 + 2 + 2 + 4) * head, LAYERS * 3 * WIDTH * HIDDEN + VOCABULARY * WIDTH
    flops = 2 * (attention + rest) + LAYERS * 4 * TOKENS * 4 * HEAD_DIM
    left = (2 + 1 + 1 + 2) * head + (2 + 2 + 2 + 2) * head  # in the first layer a group goes, in the second a head each
    flops_after = 2 * (left + rest) + LAYERS * 4 * TOKENS * 2 * HEAD_DIM
    assert (got.flops, got.flops_after) == (flops, flops_after)
    f = (2 * attention + LAYERS * 4 * TOKENS * WIDTH) / flops
    assert got.attention_share == pytest.approx(f)
    s = (flops - flops_after) / (f * flops)
    assert got.speed_ceiling == pytest.approx(1 / (1 - s * f))
    assert str(got) == (
        "18,720 to 16,160 parameters (-13.7%); at 12 tokens -18.0% FLOPs per forward, 42% of them in attention: "
        "at most 1.22 times as fast"
    )


def test_savings_of_a_bert_by_hand():
    model = bert()
    sites = list(PruningPlan.of(model).num_heads)
    got = savings(model, PruningPlan({sites[1]: (1,)}, dict.fromkeys(sites, HEADS)), num_tokens=TOKENS)
    square = WIDTH * WIDTH
    flops = 2 * (LAYERS * (4 * square + 2 * WIDTH * HIDDEN) + square) + LAYERS * 4 * TOKENS * WIDTH  # and the pooler
    assert got.flops == flops
    assert flops - got.flops_after == 2 * square + 4 * TOKENS * HEAD_DIM
    assert got.parameters - got.parameters_after == square + 3 * HEAD_DIM  # the output's bias stays


CUTS = {
    "llama": (llama, {0: [2, 3], 1: [0, 3]}),
    "gpt2": (gpt2, {0: [1], 1: [0, 1, 2, 3]}),
    "bert": (bert, {1: [2, 3]}),
    "t5": (t5, {0: [1], 2: [0, 1, 2], 5: [3]}),
    "torch": (lambda: nn.TransformerEncoderLayer(WIDTH, HEADS), {0: [0, 2]}),
    "lora": (with_lora(llama, *EVERYWHERE), {0: [2, 3]}),
}


@pytest.mark.parametrize(("build", "heads"), CUTS.values(), ids=CUTS)
def test_dry_run_changes_nothing_and_tells_what_is_left(build, heads):
    model = build()
    sites = list(PruningPlan.of(model).num_heads)
    plan = PruningPlan({sites[at]: tuple(gone) for at, gone in heads.items()}, PruningPlan.of(model).num_heads)
    before = contents(model)
    dry = savings(model, plan, num_tokens=TOKENS)
    assert_unchanged(model, before)
    assert dry.parameters == sum(parameter.numel() for parameter in model.parameters())
    plan.apply(model)
    assert dry.parameters_after == sum(parameter.numel() for parameter in model.parameters()) < dry.parameters
    again = savings(model, plan, num_tokens=TOKENS)  # all of it is gone already
    assert (again.parameters, again.flops) == (dry.parameters_after, dry.flops_after)
    assert (again.parameters_after, again.flops_after, again.speed_ceiling) == (again.parameters, again.flops, 1.0)


@pytest.mark.parametrize("num_tokens", [0, True, 1.5])
def test_number_of_tokens_must_be_one(num_tokens):
    with pytest.raises(ConfigurationError, match="`num_tokens` must be an integer of at least 1"):
        savings(llama(), plan_of({}), num_tokens=num_tokens)
