"""The audit by hiding inputs in real trainings of both trainers."""

import lightning.pytorch as pl
import pytest
import torch
import transformers as hf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import attnwatch.lightning
import attnwatch.transformers
from attnwatch import AttnwatchWarning, ConfigurationError
from attnwatch.explain import compare, deletion_curve, occlude
from tests.support.equality import assert_same_history
from tests.support.lightning_training import Llama, train_epochs
from tests.support.models import LAYERS, bert, doge, llama, seeded, token_ids
from tests.support.transformers_training import train, trainer

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")

ASKED = [{"input_ids": token_ids(4, seed=5)}, {"input_ids": token_ids(3, seed=6)}]
# Attention of a random model agrees with nothing; here nobody asks.
ANY = -1.0


def options(**changes) -> dict:
    return {"batches": ASKED, "num_batches": 2, "disagreement": ANY} | changes


def counting(model: nn.Module, inside: list[bool]) -> list[int]:
    """Forwards of a model in evaluation mode, which are those of audits here."""
    counted = [0]

    def count(module, args):
        counted[0] += not module.training and inside[0]

    model.register_forward_pre_hook(count)
    return counted


def test_lightning_training_is_bit_identical():
    _, first = train_epochs(None, Llama(dropout=0.1), steps=6)
    state = torch.get_rng_state()
    audit = attnwatch.lightning.OcclusionAudit(2, **options(max_units=4))
    _, second = train_epochs(audit, Llama(dropout=0.1), steps=6)
    assert first.losses == second.losses
    assert torch.equal(torch.get_rng_state(), state)
    for (name, one), other in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other), name
    assert [step for step, _ in audit.results] == [2, 4, 6]


@pytest.mark.parametrize("given", [{"batches": ASKED}, {"batches": None}], ids=["batches", "validation"])
def test_transformers_training_is_bit_identical(given, tmp_path):
    plain = train(directory=tmp_path, model=llama(dropout=0.1), max_steps=6)
    state = torch.get_rng_state()
    audit = attnwatch.transformers.OcclusionAudit(3, **options(max_units=4, **given))
    watched = train(audit, directory=tmp_path, model=llama(dropout=0.1), max_steps=6)
    assert plain.losses == watched.losses
    assert torch.equal(torch.get_rng_state(), state)
    for (name, one), other in zip(plain.model.named_parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(one, other), name
    assert [step for step, _ in audit.results] == [3, 6]


def test_found_is_what_the_functions_find(tmp_path):
    model = llama()
    inside = [True]
    counted = counting(model, inside)
    audit = attnwatch.transformers.OcclusionAudit(**options(max_units=8))
    run = train(audit, directory=tmp_path, model=model, max_steps=2)
    inside[0] = False
    ((step, found),) = audit.results
    assert step == 2
    assert found.num_forwards == counted[0] > 0
    occlusions = [occlude(model, batch, max_units=8) for batch in ASKED]
    comparisons = [compare(model, *each) for each in zip(ASKED, occlusions, strict=True)]
    torch.testing.assert_close(found.attention, torch.cat([each.attention for each in comparisons], 1))
    torch.testing.assert_close(found.rollout, torch.cat([each.rollout for each in comparisons], 1))
    torch.testing.assert_close(found.gradient, torch.cat([each.gradient for each in comparisons]))
    torch.testing.assert_close(found.importance, occlusions[0].importance[0], equal_nan=True)
    assert found.tokens == [str(each) for each in ASKED[0]["input_ids"][0].tolist()]
    fractions = [0.0, 0.1, 0.25, 0.5, 0.75, 1.0]
    curve = deletion_curve(model, ASKED[1], comparisons[1].gradient_scores, fractions=fractions, num_random=2)
    torch.testing.assert_close(found.deletion["gradient"][4:], curve.areas, equal_nan=True)
    torch.testing.assert_close(found.deletion["random"][4:], curve.random_areas.mean(0), equal_nan=True)

    (logged,) = [entry for entry in run.state.log_history if "occlusion/attention_agreement" in entry]
    assert logged["step"] == 2
    assert logged["occlusion/attention_agreement"] == pytest.approx(found.attention.mean().item())
    assert logged["occlusion/rollout_agreement"] == pytest.approx(found.rollout.mean().item())
    assert logged["occlusion/gradient_agreement"] == pytest.approx(found.gradient.mean().item())
    for layer in range(LAYERS):
        of_layer = logged[f"occlusion_attention_agreement/layer_{layer}"]
        assert of_layer == pytest.approx(found.attention[layer].mean().item())
    assert logged["occlusion/forwards"] == found.num_forwards
    assert {"occlusion", "attention", "rollout", "gradient", "random"} == set(found.deletion)
    assert logged["occlusion/deletion_area/occlusion"] > logged["occlusion/deletion_area/random"]


class Tokenizer:
    """What is asked of a tokenizer."""

    all_special_ids = (0, 1, 2, 20)
    pad_token_id, bos_token_id, eos_token_id, unk_token_id = 0, 1, 2, 20
    cls_token_id = sep_token_id = mask_token_id = None

    def convert_ids_to_tokens(self, ids):
        return [f"Ġword${each}" for each in ids]


def test_pictures_and_numbers_are_in_tensorboard(tmp_path):
    logger = pl.loggers.TensorBoardLogger(tmp_path)
    audit = attnwatch.lightning.OcclusionAudit(3, **options(tokenizer=Tokenizer()))
    trainer, _ = train_epochs(audit, steps=6, logger=logger)
    assert audit.results[-1][1].tokens[0].startswith("Ġword$")
    assert {"occlusion/attention_agreement", "occlusion/deletion_area/random"} <= set(trainer.callback_metrics)
    written = EventAccumulator(logger.log_dir).Reload()
    tags = written.Tags()
    pictures = {"occlusion/tokens", "occlusion/attention_agreement", "occlusion/rollout_agreement"}
    assert pictures <= set(tags["images"])
    assert [each.step for each in written.Scalars("occlusion/gradient_agreement")] == [3, 6]
    assert "occlusion_rollout_agreement/layer_1" in tags["scalars"]


def test_results_travel_in_checkpoints(tmp_path):
    saving = {"directory": tmp_path, "save_strategy": "steps", "save_steps": 4, "max_steps": 8}
    whole = attnwatch.transformers.OcclusionAudit(3, **options(max_units=3))
    train(whole, **saving)
    resumed = attnwatch.transformers.OcclusionAudit(3, **options(max_units=3))
    train(resumed, resume_from_checkpoint=str(tmp_path / "checkpoint-4"), **saving)
    assert [step for step, _ in resumed.results] == [step for step, _ in whole.results] == [3, 6, 8]
    for (_, one), (_, other) in zip(resumed.results, whole.results, strict=True):
        assert torch.equal(one.attention, other.attention)
        assert torch.equal(one.importance.nan_to_num(), other.importance.nan_to_num())


def warnings_of(caught) -> list[str]:
    return [str(each.message) for each in caught if issubclass(each.category, AttnwatchWarning)]


@pytest.mark.parametrize(
    ("build", "what", "instead"),
    [
        (
            lambda: attnwatch.lightning.TokenDropping(criterion="attention", min_tokens=2, first_layer=1, last_layer=1),
            "TokenDropping chooses tokens by criterion='attention'",
            "criterion='random'",
        ),
        (
            lambda: attnwatch.lightning.HeadPruning(0.25, criterion="entropy"),
            "HeadPruning chooses heads by criterion='entropy'",
            "criterion='gate'",
        ),
    ],
    ids=["tokens", "heads"],
)
@pytest.mark.filterwarnings("always::attnwatch.AttnwatchWarning")
def test_choices_by_attention_that_disagrees_are_warned_of_once(build, what, instead):
    audit = attnwatch.lightning.OcclusionAudit(4, **options(disagreement=1.0, max_units=4))
    others = [build(), attnwatch.lightning.AttentionMonitor(every_n_steps=1)]
    with pytest.warns(AttnwatchWarning) as caught:
        train_epochs(audit, steps=12, callbacks=others)
    (message,) = [each for each in warnings_of(caught) if "attention disagrees" in each]
    assert what in message
    assert instead in message
    agreement = audit.results[0][1].attention.mean().item()
    assert f"mean rank correlation {agreement:.2f} ±" in message
    assert "over 7 sequences, after step 4" in message


@pytest.mark.parametrize(
    "build",
    [
        lambda: attnwatch.lightning.TokenDropping(criterion="random", min_tokens=2, first_layer=1, last_layer=1),
        lambda: attnwatch.lightning.HeadPruning(0.25, criterion="gate"),
    ],
    ids=["tokens", "heads"],
)
def test_other_choices_are_not_warned_of(build):
    audit = attnwatch.lightning.OcclusionAudit(6, **options(disagreement=1.0, max_units=4))
    train_epochs(audit, steps=12, callbacks=[build()])  # warnings are errors
    assert len(audit.results) == 2


@pytest.mark.filterwarnings("always::attnwatch.AttnwatchWarning")
def test_attention_that_is_not_seen_is_said_once(tmp_path):
    audit = attnwatch.transformers.OcclusionAudit(2, **options(max_units=3))
    with pytest.warns(AttnwatchWarning) as caught:
        run = train(audit, directory=tmp_path, model=doge(), max_steps=4)
    (message,) = warnings_of(caught)
    assert "depends on their content" in message
    assert len(audit.results) == 2
    logged = [entry for entry in run.state.log_history if "occlusion/gradient_agreement" in entry]
    assert len(logged) == 2
    assert not any("attention_agreement" in name for entry in logged for name in entry)


@pytest.mark.filterwarnings("always::attnwatch.AttnwatchWarning")
def test_batches_that_cannot_be_asked_about_do_not_end_the_training(tmp_path):
    audit = attnwatch.transformers.OcclusionAudit(2, **options(batches=[{"input_ids": torch.zeros(3)}]))
    with pytest.warns(AttnwatchWarning, match="OcclusionAudit failed, training continues") as caught:
        run = train(audit, directory=tmp_path, max_steps=4)
    assert len(warnings_of(caught)) == 1
    assert run.state.global_step == 4
    assert audit.results == []


def test_batch_of_padding_only_is_no_failure(tmp_path):
    empty = {"input_ids": torch.zeros(2, 5, dtype=torch.int64), "attention_mask": torch.zeros(2, 5, dtype=torch.int64)}
    audit = attnwatch.transformers.OcclusionAudit(**options(batches=[empty]))
    train(audit, directory=tmp_path, max_steps=1)
    ((_, found),) = audit.results
    assert found.attention.isnan().all()
    assert found.importance.isnan().all()


def test_tokenizer_of_the_trainer_is_used(tmp_path):
    audit = attnwatch.transformers.OcclusionAudit(**options())
    run = trainer(audit, directory=tmp_path, max_steps=1)
    run.processing_class = Tokenizer()
    run.train()
    assert audit.results[0][1].tokens[0].startswith("Ġword$")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"every_n_steps": 0}, "`every_n_steps` must be an integer of at least 1 or None, got 0"),
        ({"max_units": 0}, "`max_units` must be an integer of at least 1 or None, got 0"),
        ({"tokens_per_forward": 0}, "`tokens_per_forward` must be an integer of at least 1 or None, got 0"),
        ({"effect": "gain"}, "`effect` must be one of 'label', 'loss', 'kl' or None, got 'gain'"),
        ({"readout": "middle"}, "`readout` must be one of 'first', 'last', 'mean' or None, got 'middle'"),
        ({"disagreement": 3}, "`disagreement` must be a correlation"),
        ({"disagreement": "x"}, "`disagreement` must be a correlation, between -1 and 1, got 'x'"),
        ({"disagreement": None}, "`disagreement` must be a correlation, between -1 and 1, got None"),
        ({"hide": "blur"}, "`hide` must be one of"),
        ({"hide": "mask_token", "mask_token_id": "x"}, "`mask_token_id` must be an integer of at least 0 or None"),
        ({"hide": "mask_token", "mask_token_id": -5}, "`mask_token_id` must be an integer of at least 0 or None"),
        ({"seed": "x"}, "`seed` must be an integer of at least 0, got 'x'"),
        ({"special_ids": 5}, "`special_ids` must be a list of token ids, .*; got 5"),
        ({"special_ids": ["a"]}, "`special_ids` must be a list of token ids"),
        ({"tokenizer": "bert-base"}, "pass a tokenizer object, AutoTokenizer.from_pretrained.'bert-base'"),
    ],
)
def test_wrong_arguments_are_refused_at_once(wrong, message):
    with pytest.raises(ConfigurationError, match=message):
        attnwatch.lightning.OcclusionAudit(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hide": "mask_token"}, "needs a mask token"),
        (
            {"hide": "mask_token", "mask_token_id": 10**6},
            "`mask_token_id` must be one of the 50 ids .* got 1000000",
        ),
    ],
)
def test_wrong_ways_to_hide_are_refused_before_the_first_step(wrong, message):
    module = Llama()
    with pytest.raises(ConfigurationError, match=message):
        train_epochs(attnwatch.lightning.OcclusionAudit(**options(**wrong)), module)
    assert module.losses == []


def test_model_that_says_something_else_is_refused_before_the_first_step(tmp_path):
    model = seeded(lambda: hf.BertForMaskedLM(bert().config))
    run = trainer(attnwatch.transformers.OcclusionAudit(), directory=tmp_path, model=model)
    with pytest.raises(ConfigurationError, match="outputs of BertForMaskedLM are about the hidden tokens: pass effect"):
        run.train()
    assert run.losses == []


@pytest.mark.slow
@pytest.mark.parametrize("is_first", [True, False], ids=["audit first", "monitor first"])
def test_monitor_beside_it_sees_the_training_only(is_first):
    alone = attnwatch.lightning.AttentionMonitor(every_n_steps=1)
    train_epochs(alone, steps=6)
    beside = attnwatch.lightning.AttentionMonitor(every_n_steps=1)
    audit = attnwatch.lightning.OcclusionAudit(1, **options(max_units=2))
    callbacks = [audit, beside] if is_first else [beside, audit]
    train_epochs(None, steps=6, callbacks=callbacks)
    assert_same_history(alone.history, beside.history)
