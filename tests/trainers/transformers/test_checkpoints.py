"""A Trainer's checkpoint is resumed from as it was, or refused by name, whatever happened while it was written."""

import json
import logging
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers as hf

from attnwatch import AttnwatchWarning, ConfigurationError, Guard, PruningPlan
from attnwatch.transformers import AttentionMonitor, HeadPruning, TokenDropping
from tests.support.killed_saves import EARLIER, SAVED
from tests.support.models import LAYERS, bart_for_generation
from tests.support.processes import run_script
from tests.support.transformers_training import Noting, train, trainer

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")

SAVING = {"save_strategy": "steps", "save_steps": 4, "max_steps": 12}
KILL = """
    import sys
    from pathlib import Path
    import tests.support.torchvision  # lets timm be imported
    from tests.support import killed_saves
    killed_saves.main(Path(sys.argv[1]))
"""


def pruning() -> HeadPruning:
    return HeadPruning(0.5, start=5, end=10, num_cuts=2, guard=Guard(tolerance=10.0, window=2))


def dropping() -> TokenDropping:
    return TokenDropping(0.5, min_tokens=4, first_layer=0, last_layer=LAYERS - 1)


def resumed(*callbacks: hf.TrainerCallback, directory: Path, checkpoint: str | Path = SAVED, **options) -> Noting:
    return train(
        *callbacks, directory=directory, resume_from_checkpoint=str(directory / checkpoint), **SAVING | options
    )


def assert_same_training(rest: Noting, whole: Noting) -> None:
    assert rest.losses == whole.losses[-len(rest.losses) :]
    expected = whole.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in rest.model.state_dict().items())


@pytest.mark.slow
def test_training_killed_while_it_saves_is_resumed_bit_for_bit_or_refused(tmp_path):
    run_script(KILL, tmp_path)
    for disk, outcomes in json.loads((tmp_path / "outcomes.json").read_text()).items():
        assert outcomes.pop("counted")[1] == "equal"
        assert outcomes
        for name, (files, outcome) in outcomes.items():
            if outcome == "equal":
                assert {"attnwatch.pt", "trainer_state.json"} <= set(files)
                continue
            assert outcome.startswith("refused: "), (name, files, outcome)
            assert outcome.endswith("from the one before: equal"), (name, files, outcome)
            folder = tmp_path / disk / name
            assert str(folder / SAVED) in outcome
            if "trainer_state.json" in files:  # else the trainer itself refuses it
                assert "attnwatch.pt" not in files
                assert f"resume_from_checkpoint={str(folder / EARLIER)!r}" in outcome


def remove(file: Path) -> None:
    file.unlink()


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def change_a_number(file: Path) -> None:
    """In a tensor, where PyTorch would not notice."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x40
    file.write_bytes(content)


def write_another_version(file: Path) -> None:
    torch.save(torch.load(file, weights_only=True) | {"format": 99}, file)


def write_another_run(file: Path) -> None:
    """As where a run from the beginning wrote to the same folder before."""
    torch.save(torch.load(file, weights_only=True) | {"run": "another"}, file)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (remove, "is missing: the process was killed, or the disk was full"),
        (cut_short, "is damaged (BadZipFile"),
        (empty, "is damaged (BadZipFile"),
        (change_a_number, "is damaged (checksum of"),
        (write_another_version, "can't be read: `state` has format 99, expected 1"),
        (write_another_run, "was written by another run, or at another step"),
    ],
)
def test_checkpoint_without_its_states_is_refused_by_name_before_anything_is_attached(damage, told, tmp_path):
    train(AttentionMonitor(), pruning(), directory=tmp_path, **SAVING)
    damage(tmp_path / SAVED / "attnwatch.pt")
    run = trainer(AttentionMonitor(), pruning(), directory=tmp_path, **SAVING)
    with pytest.raises(ConfigurationError) as caught:
        run.train(resume_from_checkpoint=str(tmp_path / SAVED))
    message = str(caught.value)
    assert message.startswith(
        f"`resume_from_checkpoint`: the checkpoint {str(tmp_path / SAVED)!r} can't be resumed from"
    )
    assert f"the state of AttentionMonitor, HeadPruning, {told}" in message
    assert f"trainer.train(resume_from_checkpoint={str(tmp_path / EARLIER)!r})" in message
    assert not {"training_step", "save_model"} & set(vars(run))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in run.model.modules())


def test_where_no_earlier_checkpoint_is_whole_the_message_says_so(tmp_path):
    train(pruning(), directory=tmp_path, **SAVING)
    for name in (EARLIER, SAVED):
        (tmp_path / name / "attnwatch.pt").unlink()
    with pytest.raises(ConfigurationError, match="No earlier checkpoint beside it is complete: train from the"):
        resumed(pruning(), directory=tmp_path)


def test_a_cut_that_was_taken_back_is_not_made_again_in_silence(tmp_path):
    class Harmed(Noting):
        """Whatever is removed does harm."""

        def training_step(self, *args, **options):
            return super().training_step(*args, **options) * 0 + 1.0 + 10 * len(PruningPlan.of(self.model).heads)

    def guarded() -> HeadPruning:
        return HeadPruning(0.5, start=4, end=4, num_cuts=1, guard=Guard(recovery_steps=1, window=1))

    with pytest.warns(AttnwatchWarning, match="was taken back"):
        whole = train(guarded(), directory=tmp_path, trainer_class=Harmed, **SAVING)
    assert_same_training(resumed(guarded(), directory=tmp_path, trainer_class=Harmed), whole)
    (tmp_path / SAVED / "attnwatch.pt").unlink()
    with pytest.raises(ConfigurationError, match="HeadPruning, is missing"):
        resumed(guarded(), directory=tmp_path, trainer_class=Harmed)


def test_what_only_watches_never_keeps_a_training_from_being_resumed(tmp_path):
    whole = train(AttentionMonitor(every_n_steps=2), directory=tmp_path, **SAVING)
    (tmp_path / SAVED / "attnwatch.pt").unlink()
    monitor = AttentionMonitor(every_n_steps=2)
    with pytest.warns(AttnwatchWarning, match=r"attnwatch.pt', with the state of AttentionMonitor, is missing.*lost"):
        rest = resumed(monitor, directory=tmp_path)
    assert_same_training(rest, whole)
    assert monitor.history.steps.tolist() == [8, 10]
    with pytest.raises(ConfigurationError, match="AttentionMonitor, is missing"):
        resumed(AttentionMonitor(on_finding="stop"), directory=tmp_path)


def test_callbacks_are_added_to_a_run_that_began_without_them(tmp_path):
    whole = train(directory=tmp_path, **SAVING)
    monitor = AttentionMonitor(every_n_steps=2)
    assert_same_training(resumed(monitor, directory=tmp_path), whole)
    assert monitor.history.steps.tolist() == [8, 10]
    more = AttentionMonitor(every_n_steps=2), HeadPruning(0.5, start=14, end=14, num_cuts=1, guard=None)
    resumed(*more, directory=tmp_path, checkpoint="checkpoint-12", max_steps=16)
    assert more[0].history.steps.tolist() == [8, 10, 12, 14]
    assert [cut.step for cut in more[1].cuts] == [14]


def test_checkpoints_of_a_run_that_went_on_without_callbacks_need_no_states(tmp_path):
    train(dropping(), directory=tmp_path, **SAVING | {"max_steps": 4})
    whole = resumed(directory=tmp_path, checkpoint=EARLIER)
    assert not (tmp_path / SAVED / "attnwatch.pt").exists()
    rest = resumed(TokenDropping(1.0, first_layer=0, last_layer=LAYERS - 1), directory=tmp_path)
    assert_same_training(rest, whole)


def test_states_that_another_run_left_in_the_folder_are_not_taken(tmp_path):
    """The run that wrote the checkpoint had no callbacks, so that the file beside it means nothing."""
    before, after = dropping(), dropping()
    train(before, directory=tmp_path, **SAVING)
    train(directory=tmp_path, **SAVING)
    assert (tmp_path / SAVED / "attnwatch.pt").is_file()
    resumed(after, directory=tmp_path)
    assert after.dropper.all_layer_tokens == before.dropper.all_layer_tokens * 4 / 12


@pytest.mark.parametrize("as_given", [Path, str, lambda folder: True], ids=["Path", "str", "True"])
def test_checkpoint_may_be_given_in_all_ways_that_the_trainer_takes(as_given, tmp_path):
    options = SAVING | {"save_total_limit": 2}
    whole = train(pruning(), dropping(), directory=tmp_path, **options)
    shutil.rmtree(tmp_path / "checkpoint-12")
    callbacks = pruning(), dropping()
    run = trainer(*callbacks, directory=tmp_path, **options)
    run.train(resume_from_checkpoint=as_given(tmp_path / SAVED))
    assert_same_training(run, whole)
    assert [cut.step for cut in callbacks[0].cuts] == [5, 10]


class SavingByHand(hf.TrainerCallback):
    """As the trainer's own just-in-time checkpoints do: without `on_save`."""

    def __init__(self, hook: str):
        self.trainer = None
        setattr(self, hook, self._save)

    def _save(self, args, state, control, **kwargs):
        if state.global_step == 8:
            self.trainer._save_checkpoint(self.trainer.model, trial=None)


@pytest.mark.parametrize(
    ("hook", "is_in_step"), [("on_step_begin", False), ("on_pre_optimizer_step", True), ("on_step_end", True)]
)
def test_checkpoints_that_are_saved_by_hand(hook, is_in_step, tmp_path):
    saving = SavingByHand(hook)
    run = trainer(saving, pruning(), dropping(), directory=tmp_path, **SAVING | {"save_strategy": "no"})
    saving.trainer = run
    if not is_in_step:
        run.train()
        assert_same_training(resumed(pruning(), dropping(), directory=tmp_path), run)
        return
    with pytest.warns(AttnwatchWarning, match="checkpoint-8 was saved in the middle of a step"):
        run.train()
    with pytest.raises(ConfigurationError, match=re.escape(f"{str(tmp_path / SAVED)!r} can't be resumed from")):
        resumed(pruning(), dropping(), directory=tmp_path)


def test_states_of_hyperparameter_searches_lie_in_their_own_folders(tmp_path):
    class Searching(Noting):
        def _get_output_dir(self, trial):
            return str(tmp_path / "run-0")

    train(dropping(), directory=tmp_path, trainer_class=Searching, **SAVING)
    assert (tmp_path / "run-0" / SAVED / "attnwatch.pt").is_file()


def test_restoring_callbacks_of_the_trainer_finds_ours_in_their_place(tmp_path, caplog, monkeypatch):
    """The trainer restores its own; those of attnwatch are neither made anew nor said to be ignored."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    options = {"restore_callback_states_from_checkpoint": True}
    whole = train(pruning(), dropping(), directory=tmp_path, **SAVING)
    callbacks = pruning(), dropping()
    rest = resumed(*callbacks, directory=tmp_path, **options)
    assert_same_training(rest, whole)
    assert [each for each in rest.callback_handler.callbacks if isinstance(each, HeadPruning)] == [callbacks[0]]
    assert "Ignoring" not in caplog.text
    train(dropping(), directory=tmp_path, **SAVING)
    resumed(directory=tmp_path, **options)
    assert "Ignoring. (AttnwatchMark)" in caplog.text  # which is true


def test_token_dropping_of_each_stack_resumes_its_own(tmp_path):
    def of_both_stacks() -> list[TokenDropping]:
        options = {"min_tokens": 4, "first_layer": 0, "last_layer": 1}
        encoder = TokenDropping(0.5, stack="model.encoder.layers", **options)
        return [encoder, TokenDropping(0.75, stack="model.decoder.layers", **options)]

    whole, rest = of_both_stacks(), of_both_stacks()
    uninterrupted = train(*whole, model=bart_for_generation(), directory=tmp_path, **SAVING)
    assert_same_training(resumed(*rest, model=bart_for_generation(), directory=tmp_path), uninterrupted)
    assert [each.dropper.layer_tokens for each in rest] == [each.dropper.layer_tokens for each in whole]
    encoder, decoder = (each.dropper.layer_tokens / each.dropper.all_layer_tokens for each in whole)
    assert encoder < decoder < 1
