"""What the coverage benchmark measures of one architecture of each kind, and that it notices what is wrong."""

import functools

import pytest
import torch
import transformers as hf

import attnwatch
from attnwatch import ModelFamily, TokenLayout
from attnwatch.capture.calls import transformers_interface
from attnwatch.heads import HeadMap
from benchmarks.coverage import heads, report
from benchmarks.coverage.eager import eager_copy, weights_of
from benchmarks.coverage.measure import measure
from benchmarks.coverage.observing import deviations_of, record
from benchmarks.coverage.table import ARCHITECTURES, QUICK, architecture
from benchmarks.coverage.tokens import dropping_of
from tests.support.versions import BEFORE_5, EARLY, lacks

# Models warn of what transformers deprecates, and of what attnwatch does not observe of them.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.logs_warnings]
NO_T5 = lacks(EARLY, "T5 computes attention by hand")
ATTENTION = [
    pytest.param(model, marks=NO_T5) if model == "T5Model" else model for model in QUICK if model != "MambaForCausalLM"
]
DROPPABLE = ["LlamaForCausalLM", "BertModel", "ViTModel"]

measured = functools.cache(lambda model: measure(architecture(model)))


def largest(deviations: dict[str, dict[str, float]]) -> float:
    return max(max(statistics.values()) for statistics in deviations.values())


@pytest.mark.parametrize("model", QUICK)
def test_nothing_crashes_and_nothing_is_wrong(model: str):
    assert measured(model)["crashes"] == []
    assert not report.is_wrong(measured(model))


@pytest.mark.parametrize("model", ATTENTION)
def test_all_attention_is_observed_and_right(model: str):
    seen, statistics = measured(model)["observation"], measured(model)["statistics"]
    assert seen["observed"] == seen["sites"] == statistics["compared"] > 0
    assert seen["missed"] == []
    assert statistics["largest"] < 1e-4
    names = {"entropy", "normalized_entropy", "sink_mass", "max_weight", "distance", "content_sensitivity"}
    assert names <= set(statistics["by_statistic"])


NO_JAMBA = lacks(BEFORE_5, "Jamba's attention has the width of the model")


@pytest.mark.parametrize(
    "model", [pytest.param(model, marks=NO_JAMBA) if model == "JambaForCausalLM" else model for model in ATTENTION]
)
def test_heads_are_removed(model: str):
    cut = measured(model)["heads"]
    assert cut["prunable"] == cut["sites"] > 0
    assert cut["deviation"] < 1e-4 < 1e-2 < cut["effect"]


@pytest.mark.parametrize("model", QUICK)
def test_tokens_are_dropped_or_a_reason_is_given(model: str):
    tokens = measured(model)["tokens"]
    assert tokens["droppable"] == (model in DROPPABLE)
    assert bool(tokens["reasons"]) == (model not in DROPPABLE)
    if tokens["deviation"] is not None:
        assert tokens["deviation"] < 1e-4


def test_a_model_without_attention_has_nothing_to_observe():
    seen = measured("MambaForCausalLM")["observation"]
    assert seen["sites"] == seen["observed"] == 0
    assert "has no attention" in next(iter(seen["reasons"]))


@lacks(EARLY, "not all architectures exist")
def test_architectures_exist_and_are_many():
    assert {each.model for each in ARCHITECTURES} <= set(dir(hf))
    assert len({each.model for each in ARCHITECTURES}) >= 45


@NO_T5
def test_totals_count_what_rows_say():
    totals = report.totals([measured(model) for model in QUICK])
    assert totals["architectures"] == len(QUICK)
    assert totals["without attention"] == 1
    assert totals["observed fully and right"] == totals["heads prunable"] == len(ATTENTION)
    assert totals["tokens droppable"] == len(DROPPABLE)
    assert totals["wrong"] == totals["crashes"] == 0
    words = report.row(measured("MambaForCausalLM"))
    assert words["right"] == "–"
    assert words["observed"].startswith("–; `model` (MambaForCausalLM) has no attention")


def test_other_attention_weights_are_noticed():
    llama = architecture("LlamaForCausalLM")
    model = llama.build()
    batch, eager = llama.batch(model), eager_copy(llama, model)
    history = record(model, batch)
    assert largest(deviations_of(history, weights_of(eager, batch))) < 1e-4
    with torch.no_grad():
        eager.model.layers[1].self_attn.q_proj.weight *= 1.1
    deviations = deviations_of(history, weights_of(eager, batch))
    assert max(deviations["model.layers.0.self_attn"].values()) < 1e-4
    assert deviations["model.layers.1.self_attn"]["entropy"] > 1e-3


def test_a_number_where_none_must_be_is_noticed():
    bart = architecture("BartModel")
    model = bart.build()
    batch, eager = bart.batch(model), eager_copy(bart, model)
    history = record(model, batch)
    site = "decoder.layers.0.encoder_attn"
    history["distance"][0, history.sites.index(site)] = 1.0
    assert deviations_of(history, weights_of(eager, batch))[site]["distance"] == float("inf")


def test_other_heads_are_noticed(monkeypatch):
    def prune_others(model, gone):
        every = {name: site.groups() for name, site in HeadMap.of(model).sites.items()}
        others = {name: next(group for group in every[name] if group != gone[name]) for name in gone}
        attnwatch.prune_heads(model, others)

    monkeypatch.setattr(heads, "prune_heads", prune_others)
    result = measure(architecture("LlamaForCausalLM"))
    assert result["heads"]["deviation"] > 1e-2
    assert not report.is_prunable(result)
    assert report.is_wrong(result)
    assert "WRONG" in report.row(result)["heads"]


@NO_T5
def test_positions_in_the_tensor_are_noticed(registered):
    """UMT5's layers count the distance of tokens in the tensor: a layout that says otherwise is wrong."""
    umt5 = architecture("UMT5Model")
    model = umt5.build()
    masks = {
        "attention_mask": "batch heads tokens tokens",
        "encoder_attention_mask": "batch heads tokens memory",
    }
    layout = TokenLayout(
        "hidden_states", routed=masks, whole=("encoder_hidden_states", "use_cache"), caches=("past_key_values",)
    )
    registered(ModelFamily("wrong_umt5", tokens={type(model.encoder.block[0]): layout}))
    tokens = dropping_of(model, umt5.batch(model))
    assert tokens["droppable"] == 2
    assert tokens["deviation"] > 1e-2


def test_a_crash_is_noticed(monkeypatch):
    def fail(*args):
        raise ZeroDivisionError("nobody expects this")

    monkeypatch.setattr(transformers_interface, "read_call", fail)
    monkeypatch.setattr(heads, "prune_heads", fail)
    result = measure(architecture("LlamaForCausalLM"))
    assert len(result["crashes"]) == 2
    assert all("ZeroDivisionError" in crash for crash in result["crashes"])
    assert result["observation"]["observed"] == 0
    assert not report.is_observed(result)
    assert not report.is_prunable(result)


WRONG_ONCE = [
    *("swin", "umt5", "seamless_m4t", "yolos", "llava"),
    pytest.param("doge", marks=lacks(EARLY, "without a mask Doge is not causal under sdpa")),
    pytest.param("deepseek_v32", marks=lacks(EARLY, "there is no DeepSeek V3.2")),
]


@pytest.mark.parametrize("name", WRONG_ONCE)
def test_what_was_wrong_once_is_right_or_refused(name: str):
    result = measure(next(each for each in ARCHITECTURES if hasattr(hf, each.model) and each.name == name))
    assert result["crashes"] == []
    assert not report.is_wrong(result)
