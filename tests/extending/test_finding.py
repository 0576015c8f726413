"""A finding from outside of the package: judged, warned of, shown, acted on and resumed as those of attnwatch."""

import copy
import inspect
import json
import pickle
from dataclasses import dataclass

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import attnwatch
from attnwatch import AttentionHistory, AttnwatchWarning, ConfigurationError, FindingKind, FindingRule, RunStatus
from attnwatch.diagnosis import FindingActions, RuleSet, Symptom, latest
from attnwatch.diagnosis.findings.frozen_attention import FrozenAttention
from attnwatch.diagnosis.findings.uniform_attention import UniformAttention
from attnwatch.lightning import AttentionMonitor
from tests.support.histories import course, diagnose
from tests.support.lightning_training import Llama, train_epochs

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")


@dataclass(frozen=True)
class EntropyGap(FindingRule):
    """Heads of a layer differ in entropy more than they should."""

    name = "entropy_gap"
    status = RunStatus.UNSTABLE
    known_at_once = True
    remedy = "Look at these heads."
    note = "Nothing needs to be done."

    enter: float = 0.5
    leave: float = 0.4

    def look(self, evidence):
        gap = evidence.largest("normalized_entropy") - evidence.mean("normalized_entropy")
        found = evidence.flags(gap > self.enter, gap < self.leave, patience=2)
        numbers = {"gap": latest(gap)[found.now].mean() if found.now.any() else 0.0}
        return evidence.symptom(found, f"heads differ by {numbers['gap']:.2f}", severity=0.8, numbers=numbers)


def with_gap(sites=slice(None)) -> AttentionHistory:
    """A run in which one head of these sites attends uniformly, and the others to one key, from step 200 on."""
    history = course()
    history["normalized_entropy"][20:, sites] = [1.0, 0.05, 0.05]
    return history


def failing(error: type[Exception] = RuntimeError) -> type[FindingRule]:
    def look(self, evidence):
        raise error("no such number")

    return type("Failing", (EntropyGap,), {"name": "failing", "look": look})


def messages(warned) -> list[str]:
    return [str(each.message) for each in warned if issubclass(each.category, AttnwatchWarning)]


def test_a_rule_is_short():
    assert len(inspect.getsource(EntropyGap).splitlines()) <= 25


def test_run_is_judged_by_it(registered):
    registered(EntropyGap)
    diagnosis = diagnose(with_gap())
    (finding,) = diagnosis.findings
    assert diagnosis.status is RunStatus.UNSTABLE
    assert diagnosis.risk == finding.severity == 0.8
    assert finding.kind is FindingKind.ENTROPY_GAP is FindingKind("entropy_gap")
    assert (finding.step, len(finding.sites)) == (200, 4)
    assert finding.message.startswith("heads differ by 0.63 at 4 of 4 sites (layers.0.attn, ")
    assert finding.message.endswith(". Look at these heads.")
    assert finding.evidence == pytest.approx({"gap": 0.95 - 0.95 / 3}, abs=1e-6)
    assert diagnose(with_gap(), rules=[EntropyGap(enter=0.7, leave=0.6)]).findings == ()
    assert diagnose(with_gap(), rules=[EntropyGap(enabled=False)]).findings == ()


def test_few_sites_are_a_note(registered):
    registered(EntropyGap)
    (note,) = diagnose(with_gap([1])).findings
    assert (note.is_note, note.severity, note.sites) == (True, 0.0, ("layers.1.attn",))
    assert note.message.endswith(". Nothing needs to be done.")


def test_status_follows_from_its_declarations(registered):
    registered(type("Anywhere", (EntropyGap,), {"name": "gap_anywhere", "counts_anywhere": True}))
    assert diagnose(with_gap([1])).status is RunStatus.UNSTABLE
    registered(type("Never", (EntropyGap,), {"name": "gap_noted", "status": None}))
    registered(type("Fallback", (EntropyGap,), {"name": "gap_fallback", "is_fallback": True}))
    assert [finding.kind.value for finding in diagnose(with_gap([1])).findings] == ["gap_anywhere", "gap_noted"]
    attnwatch.diagnose(with_gap())
    fallback = diagnose(with_gap(), rules=[attnwatch.FindingRule.registry["gap_anywhere"].__class__(enabled=False)])
    assert [finding.kind.value for finding in fallback.findings] == ["gap_fallback", "gap_noted"]


def test_it_is_told_before_there_is_evidence_only_if_known_at_once(registered):
    late = registered(type("Late", (EntropyGap,), {"name": "late_gap", "known_at_once": False}))
    registered(EntropyGap)
    early = with_gap().at(slice(14, 22))
    assert [finding.kind.value for finding in diagnose(early).findings] == ["entropy_gap"]
    assert late.name in [finding.kind.value for finding in diagnose(with_gap()).findings]


def test_its_kind_is_a_member_like_the_others(registered):
    before = list(FindingKind)
    assert "entropy_gap" not in FindingKind
    registered(EntropyGap)
    kind = FindingKind("entropy_gap")
    assert list(FindingKind) == [*before, kind]
    assert len(FindingKind) == len(before) + 1
    assert kind in FindingKind
    assert "entropy_gap" in FindingKind
    assert FindingKind["ENTROPY_GAP"] is FindingKind.ENTROPY_GAP is kind is FindingKind(kind)
    assert (kind.value, kind.name, isinstance(kind, str), isinstance(kind, FindingKind)) == (
        "entropy_gap",
        "ENTROPY_GAP",
        True,
        True,
    )
    assert {kind: 1}["entropy_gap"] == {"entropy_gap": 1}[kind] == 1
    assert pickle.loads(pickle.dumps(kind)) is copy.deepcopy(kind) is kind
    assert json.loads(json.dumps(kind)) == kind == "entropy_gap"
    assert repr(kind) == "<FindingKind.ENTROPY_GAP: 'entropy_gap'>"


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="'entropy_gap' is not a kind of finding; there are: blind_attention, "):
        FindingKind("entropy_gap")
    with pytest.raises(AttributeError, match="ENTROPY_GAP"):
        _ = FindingKind.ENTROPY_GAP
    with pytest.raises(KeyError, match="ENTROPY_GAP"):
        _ = FindingKind["ENTROPY_GAP"]
    with pytest.raises(ConfigurationError, match="`on_finding`: 'entropy_gap' is not a kind of finding"):
        AttentionMonitor(on_finding={"entropy_gap": "stop"})


def grow_one_head(module, batch_idx):
    """From the sixth step on one head attends uniformly and the others to single keys."""
    if batch_idx == 6:
        with torch.no_grad():
            for layer in module.model.model.layers:
                weight = layer.self_attn.q_proj.weight
                weight.mul_(100)
                weight[:8] = 0


OPTIONS = {"every_n_steps": 1, "flush_every": 1, "rules": [EntropyGap(enter=0.3, leave=0.2)]}


@pytest.mark.slow
def test_training_is_warned_and_dashboards_show_it(registered, tmp_path):
    registered(EntropyGap)
    monitor, logger = AttentionMonitor(**OPTIONS), TensorBoardLogger(tmp_path)
    with pytest.warns(AttnwatchWarning) as warned:
        trainer, _ = train_epochs(monitor, Llama(grow_one_head), logger=logger)
    (message,) = [each for each in messages(warned) if "entropy_gap" in each]
    assert message.startswith("attnwatch: entropy_gap since step 6: heads differ by 0.")
    assert trainer.global_step == 12
    assert monitor.diagnosis.findings[0].kind is FindingKind.ENTROPY_GAP
    events = EventAccumulator(logger.log_dir).Reload()
    text = events.Tensors("attention/diagnosis/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "**entropy gap** since step 6, severity 0.80: heads differ by" in text
    assert events.Scalars("attention/risk")[-1].value >= 0.8


def test_actions_name_it(registered):
    registered(EntropyGap)
    with pytest.warns(AttnwatchWarning, match="entropy_gap"):
        stopped, _ = train_epochs(AttentionMonitor(on_finding={"entropy_gap": "stop"}, **OPTIONS), Llama(grow_one_head))
    assert stopped.global_step == 9
    told = []
    actions = {"entropy_gap": lambda finding, *_: told.append(finding.kind), "exploding_logits": "ignore"}
    train_epochs(AttentionMonitor(on_finding=actions, **OPTIONS), Llama(grow_one_head))
    assert told == [FindingKind.ENTROPY_GAP]


@pytest.mark.slow
def test_resumed_run_is_not_told_again_also_if_the_rule_was_missing_meanwhile(registered, tmp_path):
    attnwatch.register(EntropyGap)
    with pytest.warns(AttnwatchWarning, match="entropy_gap"):
        trainer, _ = train_epochs(AttentionMonitor(**OPTIONS), Llama(grow_one_head))
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    torch.load(tmp_path / "first.ckpt", weights_only=True)
    attnwatch.unregister(EntropyGap)
    without = AttentionMonitor(every_n_steps=1, flush_every=1)
    trainer, _ = train_epochs(without, epochs=2, ckpt_path=tmp_path / "first.ckpt")
    assert without.diagnosis.findings == ()
    assert len(without.history) == 24
    trainer.save_checkpoint(tmp_path / "second.ckpt")
    registered(EntropyGap)
    again = AttentionMonitor(**OPTIONS)
    train_epochs(again, epochs=3, ckpt_path=tmp_path / "second.ckpt")
    assert [finding.kind.value for finding in again.diagnosis.findings] == ["entropy_gap"]


def test_state_and_findings_of_a_missing_rule_are_kept(registered):
    attnwatch.register(EntropyGap)
    diagnosis, actions = diagnose(with_gap()), FindingActions("warn")
    actions.new_findings(diagnosis)
    pickled, state = pickle.dumps(diagnosis), actions.state_dict()
    attnwatch.unregister(EntropyGap)
    assert pickle.loads(pickled) == diagnosis
    assert FindingKind(diagnosis.findings[0].kind) not in FindingKind
    resumed = FindingActions("warn")
    resumed.load_state_dict(state)
    resumed.new_findings(diagnose(course()))
    assert resumed.state_dict() == state
    registered(EntropyGap)
    assert resumed.new_findings(diagnosis) == []
    resumed.new_findings(diagnose(course()))
    assert resumed.state_dict()["current"] == []


NONSENSE = {
    "a string": (lambda evidence: "layers.0.attn", "TypeError: `look` must return evidence.symptom"),
    "sites that there are not": (
        lambda evidence: Symptom(("layers.9",), 100, 1.0, 0.5, ""),
        r"ValueError: expected observed sites and a step from 0 to 390, got Symptom\(sites=\('layers.9',\)",
    ),
    "a step that there is not": (lambda evidence: Symptom((), 1000, 1.0, 0.5, ""), "ValueError: .* from 0 to 390"),
    "a severity above one": (
        lambda evidence: Symptom((), 100, 1.0, 5, ""),
        "ValueError: expected a share and a severity from 0 to 1, got 1.0 and 5",
    ),
    "numbers that are none": (lambda evidence: Symptom((), 100, 1.0, 0.5, "", {"a": "b"}), "ValueError: could not"),
    "flags of something else": (
        lambda evidence: evidence.symptom(
            evidence.flags(evidence.mean("entropy")[:, :1] > 0, evidence.mean("entropy")[:, :1] < 0), "", severity=1
        ),
        r"ValueError: expected one flag for each of 4 observed sites, got \(1,\)",
    ),
}


@pytest.mark.parametrize(("returned", "reason"), NONSENSE.values(), ids=NONSENSE)
def test_rule_that_returns_nonsense_is_named_and_left_out(registered, returned, reason):
    registered(type("Nonsense", (EntropyGap,), {"name": "nonsense", "look": lambda self, evidence: returned(evidence)}))
    expected = rf"attnwatch: the finding 'nonsense' \({__name__}.Nonsense\) failed; .* judged without it from now on: "
    with pytest.warns(AttnwatchWarning, match=expected + reason) as warned:
        diagnosis = diagnose(course(normalized_entropy=0.999))
    assert len(warned) == 1
    assert [finding.kind.value for finding in diagnosis.findings] == ["uniform_attention"]


def test_rule_that_fails_is_not_asked_again(registered):
    registered(failing())
    rules = RuleSet()
    with pytest.warns(AttnwatchWarning, match=r"the finding 'failing' \(.*Failing\) failed; .*: RuntimeError: no such"):
        diagnose(course(), rules=rules)
    assert diagnose(course(normalized_entropy=0.999), rules=rules).status is RunStatus.NOT_CONVERGING
    rules.reset()
    with pytest.warns(AttnwatchWarning, match="'failing'"):
        diagnose(course(), rules=rules)


def test_ctrl_c_in_a_rule_is_not_swallowed(registered):
    registered(failing(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        diagnose(course())


@pytest.mark.slow
def test_training_goes_on_without_a_rule_that_fails(registered, tmp_path):
    registered(failing())
    registered(EntropyGap)
    monitor = AttentionMonitor(**OPTIONS)
    for _ in range(2):
        with pytest.warns(AttnwatchWarning) as warned:
            trainer, _ = train_epochs(monitor, Llama(grow_one_head))
        assert ["'failing'" in each for each in messages(warned)].count(True) == 1
        assert trainer.global_step == 12
        assert FindingKind.ENTROPY_GAP in [finding.kind for finding in monitor.diagnosis.findings]


WRONG = {
    "no name": ({"name": "Entropy gap"}, "must have a `name` of lower-case letters"),
    "a status that is no alarm": (
        {"status": RunStatus.HEALTHY},
        "must have RunStatus.NOT_CONVERGING, RunStatus.UNSTABLE or None as `status`, got <RunStatus.HEALTHY",
    ),
    "no remedy": ({"remedy": ""}, "must have a `remedy`, as it decides the status"),
    "no look": ({"look": FindingRule.look}, r"must have a method `look\(evidence\)`; see attnwatch.FindingRule"),
    "a taken name": ({"name": "uniform_attention"}, "has the name of the finding 'uniform_attention'"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_what_a_rule_lacks_is_said_when_it_is_registered(changes, message):
    with pytest.raises(ConfigurationError, match=rf"the finding.*{__name__}.Wrong\) {message}"):
        attnwatch.register(type("Wrong", (EntropyGap,), changes))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            [UniformAttention],
            r"`rules` must be a list of rules, such as \[UniformAttention\(enter=0.98\)\]; got \[<class",
        ),
        (UniformAttention(), r"`rules` must be a list of rules, such as .* got UniformAttention\(enabled=True"),
        (["uniform_attention"], r"`rules` must be a list of rules, .* got \['uniform_attention'\]"),
        ({"uniform_attention": 0.98}, "`rules` must be a list of rules"),
        (3, "`rules` must be a list of rules, .* got 3"),
        ([EntropyGap()], r"`rules`: the finding 'entropy_gap' .* is not registered; call attnwatch.register first"),
        ([UniformAttention(), UniformAttention()], "`rules` has two rules named 'uniform_attention'"),
    ],
    ids=["a class", "no list", "a name", "a mapping", "a number", "not registered", "twice"],
)
def test_what_is_no_rule_is_refused(rules, message):
    for refusing in (AttentionMonitor, lambda rules: diagnose(course(), rules=rules)):
        with pytest.raises(ConfigurationError, match=message):
            refusing(rules=rules)


def test_thresholds_of_a_rule_can_be_changed_and_a_rule_switched_off():
    near = course(normalized_entropy=0.975, loss=torch.linspace(4, 2, 40).numpy())
    assert [finding.kind.value for finding in diagnose(near).findings] == ["uniform_attention"]
    assert diagnose(near, rules=[UniformAttention(enter=0.98)]).findings == ()
    still = course(loss=torch.linspace(4, 2, 40).numpy())
    assert [finding.kind.value for finding in diagnose(still).findings] == ["frozen_attention"]
    assert diagnose(still, rules=[FrozenAttention(enabled=False)]).findings == ()


def test_given_rules_are_used_as_they_are_and_others_follow_the_budget():
    uniform = course(normalized_entropy=0.999, every=10)
    for given in ({}, {"thresholds": attnwatch.Thresholds()}):
        assert diagnose(uniform, total_steps=1000, **given).findings
        assert not diagnose(uniform, total_steps=3000, **given).findings
        assert diagnose(uniform, total_steps=3000, rules=[UniformAttention()], **given).findings
    assert UniformAttention().of_budget(None) == UniformAttention().of_budget(99) == UniformAttention(steps=100)
    assert UniformAttention().of_budget(100).steps == 20
    assert UniformAttention(enter=0.98).of_budget(10**6) == UniformAttention(enter=0.98, steps=2000)


def test_every_rule_says_what_it_means():
    """Documentation is made of this."""
    for rule in FindingRule.registry.values():
        summary = inspect.getdoc(type(rule)).splitlines()[0]
        assert summary.endswith(".")
        assert rule.remedy or rule.status is None
        assert FindingKind(rule.name).value == rule.name
