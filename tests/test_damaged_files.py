"""Files that are damaged, huge or mean harm: one error in words, exit code 2, and a terminal that is as it was."""

import dataclasses
import io
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.summary.writer.record_writer import masked_crc32c

from attnwatch import AttentionHistory, ConfigurationError, PruningPlan
from attnwatch.cli import main
from attnwatch.explain.multiple_choice.questions import load_questions
from attnwatch.judging import judge
from attnwatch.runs import RunRecord, read_run
from tests.support.histories import course, write_log

COURSE = dataclasses.replace(course(every=10), total_steps=900)
RECORD_HEADER_BYTES = 12


def saved() -> dict:
    """What stands in a saved history."""
    header = {"format": 1, "sites": list(COURSE.sites), "coverage": {}, "total_steps": 900}
    return {"steps": COURSE.steps, "loss": COURSE.loss, "header": header} | {
        f"statistic/{name}": array for name, array in COURSE.values.items()
    }


def write(path: Path, content: dict) -> None:
    with open(path, "wb") as stream:
        np.savez(stream, **content | {"header": np.array(json.dumps(content["header"]))})


def without(name: str) -> Callable[[dict], None]:
    return lambda content: content.pop(name)


def put(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict], None]:
    return lambda content: content.update({name: change(content[name])})


def head(**changes) -> Callable[[dict], None]:
    return lambda content: content.update(header=content["header"] | changes)


ENTROPY = "statistic/normalized_entropy"
WRONG = {
    "no steps": (without("steps"), "its steps are not ascending integers"),
    "steps as text": (put("steps", lambda steps: steps.astype(str)), "its steps are not ascending integers"),
    "steps that are no integers": (put("steps", lambda steps: steps * np.nan), "its steps are not ascending integers"),
    "steps that fall": (put("steps", lambda steps: steps[::-1]), "its steps are not ascending integers"),
    "a step twice": (put("steps", lambda steps: steps // 20), "its steps are not ascending integers"),
    "steps before the first": (put("steps", lambda steps: steps - 10), "its steps are not ascending integers"),
    "a table of steps": (put("steps", lambda steps: steps[:, None]), "its steps are not ascending integers"),
    "one step": (put("steps", lambda steps: steps[0]), "its steps are not ascending integers"),
    "no loss": (without("loss"), "its loss does not have one number for each step"),
    "loss of other steps": (put("loss", lambda loss: loss[1:]), "its loss does not have one number for each step"),
    "loss as text": (put("loss", lambda loss: loss.astype(str)), "its loss does not have one number for each step"),
    "statistic as text": (put(ENTROPY, lambda array: array.astype(str)), "or are not numbers"),
    "complex statistic": (put(ENTROPY, lambda array: array.astype(complex)), "or are not numbers"),
    "statistic of other heads": (put(ENTROPY, lambda array: array[..., :1]), "different shapes"),
    "statistic without heads": (put(ENTROPY, lambda array: array[..., 0]), "different shapes"),
    "statistics without heads": (
        lambda content: content.update({name: content[name][..., :0] for name in content if "/" in name}),
        "its statistics have no heads",
    ),
    "sites that are numbers": (head(sites=[1, 2, 3, 4]), "its sites are not a list of distinct names"),
    "sites that are text": (head(sites="abcd"), "its sites are not a list of distinct names"),
    "a site twice": (head(sites=["a", "a", "b", "c"]), "its sites are not a list of distinct names"),
    "too few sites": (head(sites=["a"]), r"have the shape \(40, 4, \d\), not \[40 steps, 1 sites, heads\]"),
    "coverage that is a list": (head(coverage=["a"]), "its coverage is not a mapping from sites to reasons"),
    "reason that is a number": (head(coverage={"a": 1}), "its coverage is not a mapping from sites to reasons"),
    "length that is text": (head(total_steps="many"), "its total number of steps is not a positive integer"),
    "length that is not": (head(total_steps=True), "its total number of steps is not a positive integer"),
    "header that is a list": (lambda content: content.update(header=[1]), "its header is a list"),
    "newer format": (head(format=2), "has format 2, this version reads 1; upgrade attnwatch"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_history_that_can_not_be_is_refused_by_name(change, message, tmp_path, capsys):
    content, path = saved(), tmp_path / "run.npz"
    write(path, content)
    assert str(diagnosis_of(path)) == str(judge(RunRecord("run", COURSE))[1])
    change(content)
    write(path, content)
    with pytest.raises(ConfigurationError, match=message):
        AttentionHistory.load(path)
    assert main(["judge", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def diagnosis_of(path: Path):
    return judge(read_run(path))[1]


def test_history_that_would_unpack_to_more_than_memory_is_refused(tmp_path):
    content, path = saved(), tmp_path / "run.npz"
    with open(path, "wb") as stream:
        np.savez_compressed(stream, **content | {"header": np.zeros(300_000_000, dtype=np.int8)})
    assert path.stat().st_size < 2**20
    with pytest.raises(ConfigurationError, match=r"it would unpack to 300,\d{3},\d{3} bytes"):
        AttentionHistory.load(path)


@st.composite
def damages(draw) -> Callable[[bytes], bytes]:
    """Bits flipped, bytes replaced, the end cut off: at drawn shares of a file."""
    at, kind = draw(st.floats(0, 1, exclude_max=True)), draw(st.sampled_from(["bit", "bytes", "cut", "twice"]))
    bit, noise = draw(st.integers(0, 7)), draw(st.binary(min_size=1, max_size=40))

    def damage(content: bytes) -> bytes:
        place = int(at * len(content))
        if kind == "cut":
            return content[:place]
        if kind == "twice":
            return content[:place] + content[place // 2 :]
        new = bytes([content[place] ^ 1 << bit]) if kind == "bit" else noise
        return content[:place] + new + content[place + len(new) :]

    return damage


def is_judged(path: Path, damage: Callable[[bytes], bytes], file: Path) -> AttentionHistory | None:
    """What is read of a damaged run; None where it is refused."""
    content = file.read_bytes()
    file.write_bytes(damage(content))
    try:
        run = read_run(path)
        judge(run)
        return run.history
    except ConfigurationError:
        return None
    finally:
        file.write_bytes(content)


@given(damages())
@settings(max_examples=150)
def test_damaged_history_is_refused_or_whole(history_file, damage):
    history = is_judged(history_file, damage, history_file)
    if history is not None:
        np.testing.assert_array_equal(history["entropy"], COURSE["entropy"])
        assert (history.sites, history.total_steps) == (COURSE.sites, 900)


@pytest.fixture(scope="module")
def history_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("history") / "run.npz"
    COURSE.save(path)
    return path


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("logs")
    write_log(directory, COURSE)
    return directory


@pytest.mark.slow
@given(damages())
@settings(max_examples=60)
def test_damaged_event_file_is_refused_or_read_up_to_its_end(logs, damage):
    (file,) = logs.iterdir()
    content = file.read_bytes()
    history = is_judged(logs, damage, file)
    if history is not None:
        damaged = damage(content)
        whole = read_run(logs).history
        is_cut = content.startswith(damaged) or damaged.startswith(content)
        is_same = np.array_equal(history["entropy"], whole["entropy"])  # whole records that stand there twice
        assert is_cut or is_same or damaged[:-RECORD_HEADER_BYTES] == content[: len(damaged) - RECORD_HEADER_BYTES]
        if len(history) > 1:  # of the first observation the layers may be missing
            np.testing.assert_array_equal(history["entropy"][:-1], whole["entropy"][: len(history) - 1])


def test_event_file_that_is_being_written_is_read(logs, tmp_path, capsys):
    (file,) = logs.iterdir()
    content = file.read_bytes()
    (tmp_path / file.name).write_bytes(content[: len(content) // 2])
    assert 0 < len(read_run(tmp_path).history) < len(read_run(logs).history)
    (tmp_path / file.name).write_bytes(content[: len(content) // 2] + b"!" + content[len(content) // 2 + 1 :])
    assert main(["judge", str(tmp_path)]) == 2
    assert "is damaged after event" in capsys.readouterr().err


TABLE = "step,attention/entropy\n0,1.5\n10,nan\n"


@pytest.mark.parametrize(
    "content", [TABLE, TABLE[:9], "\0" * 99, '{"steps": [0, 1]}'], ids=["CSV", "cut", "zeros", "JSON"]
)
def test_other_files_are_no_runs(content, tmp_path, capsys):
    (tmp_path / "table.txt").write_text(content)
    assert main(["judge", str(tmp_path / "table.txt")]) == 2
    assert "is neither a saved attention history" in capsys.readouterr().err


def test_names_do_not_move_the_cursor(tmp_path, capsys):
    sites = ("\x1b[2Jlayers.0", "layers.1\nhealthy", "layers.2\r", "layers.3\u202e")
    coverage = dict.fromkeys(sites, "observed") | {"layers.4\x07": "\x1b]0;title\x07 a bias"}
    dataclasses.replace(course(normalized_entropy=0.999), sites=sites, coverage=coverage).save(tmp_path / "run")
    assert main(["judge", str(tmp_path / "run")]) == 1
    printed = capsys.readouterr().out
    assert not [each for each in printed if not each.isprintable() and each != "\n"]
    assert r"not observed: layers.4\x07: \x1b]0;title\x07 a bias" in printed
    assert r"\x1b[2Jlayers.0" in printed
    assert r"layers.1\nhealthy" in printed


def test_tags_do_not_move_the_cursor(tmp_path, capsys):
    write_log(tmp_path, COURSE, loss_tag="mine\x1b[2J")
    assert main(["judge", str(tmp_path), "--loss-tag", "loss\x07"]) == 2
    printed = capsys.readouterr().err
    assert r"logged tags: mine\x1b[2J" in printed
    assert "\x1b" not in printed


QUESTION = {"prompt": "The sky is", "choices": ["blue", "green"], "answer": 0}
HUGE = {
    "one line": lambda stream: stream.write(b"a" * 100_000_000),
    "one question": lambda stream: stream.write(json.dumps(QUESTION | {"prompt": "a" * 100_000_000}).encode()),
    "long question": lambda stream: stream.write(json.dumps(QUESTION | {"prompt": "a" * 2_000_000}).encode()),
    "brackets": lambda stream: stream.write(b"[" * 1_000_000),
}


@pytest.mark.parametrize("fill", HUGE.values(), ids=HUGE)
def test_huge_questions_are_refused_without_being_read(fill, tmp_path):
    path, content = tmp_path / "questions.jsonl", io.BytesIO()
    fill(content)
    path.write_bytes(content.getvalue())
    expected = r"has more than 64 MiB|has 2,000,\d+ characters|line 1 is not JSON"
    with pytest.raises(ConfigurationError, match=expected) as raised:
        load_questions(path)
    assert len(str(raised.value)) < 1000


def refusal(load: Callable, path: Path) -> str | None:
    """What the error says; None where the file is read all the same."""
    try:
        load(path)
    except ConfigurationError as error:
        return str(error)
    return None


@given(damages())
def test_damaged_questions_and_plans_end_in_words(tmp_path_factory, damage):
    folder = tmp_path_factory.mktemp("files", numbered=True)
    plan = PruningPlan({"layers.0": (0, 2)}, {"layers.0": 4, "layers.1": 4})
    plan.save(folder / "plan.json")
    (folder / "questions.jsonl").write_text("\n".join([json.dumps(QUESTION)] * 3))
    for name, load in (("plan.json", PruningPlan.load), ("questions.jsonl", load_questions)):
        (folder / name).write_bytes(damage((folder / name).read_bytes()))
        message = refusal(load, folder / name)
        assert message is None or str(folder / name) in message


@pytest.mark.parametrize("kept_as", ["asked", "in the file"])
def test_length_that_no_run_has_is_refused(kept_as, tmp_path, capsys):
    path, content = tmp_path / "run.npz", saved()
    content["header"]["total_steps"] = 10**400 if kept_as == "in the file" else None
    write(path, content)
    assert main(["judge", str(path), *(["--total-steps", "1" + 400 * "0"] if kept_as == "asked" else [])]) == 2
    assert len(capsys.readouterr().err) < 500


def test_length_that_the_run_has_passed_is_told_and_not_believed(tmp_path, capsys):
    dataclasses.replace(COURSE, total_steps=5).save(tmp_path / "run.npz")
    assert main(["judge", str(tmp_path / "run.npz")]) == 0
    assert "it has more steps than planned" in capsys.readouterr().out


def test_huge_record_is_refused_without_being_read(logs, tmp_path, capsys):
    (file,) = logs.iterdir()
    size = 2**28
    header = struct.pack("<Q", size)
    begin = file.read_bytes() + header + struct.pack("<I", masked_crc32c(header))
    (tmp_path / file.name).write_bytes(begin)
    os.truncate(tmp_path / file.name, len(begin) + size + 4)  # zeros, which take no room on the disk
    assert main(["judge", str(tmp_path)]) == 2
    assert "is damaged after event" in capsys.readouterr().err


IMPOSSIBLE = {
    "head beyond": ({"a": [9]}, {"a": 2}),
    "negative head": ({"a": [-1]}, {"a": 2}),
    "head twice": ({"a": [1, 1]}, {"a": 2}),
    "unknown site": ({"b": [0]}, {"a": 2}),
    "negative number": ({"a": [-1]}, {"a": -2}),
    "huge number": ({"a": [10**12]}, {"a": 10**12}),
}


@pytest.mark.parametrize(("heads", "num_heads"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_impossible_plan_is_refused(heads, num_heads, tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps({"format": 1, "heads": heads, "num_heads": num_heads}))
    with pytest.raises(ConfigurationError, match=r"its heads of '[ab]' must be distinct numbers from 0 to"):
        PruningPlan.load(tmp_path / "plan.json")
