"""The first cases of `python -m benchmarks.fuzz`."""

from benchmarks.fuzz.judging import judge_drawn

CASES = 45


def test_drawn_calls_of_attention_are_right():
    verdicts = {index: judge_drawn(0, index)[1] for index in range(CASES)}
    found = {index: each for index, of in verdicts.items() for each in of if each.wrong or each.crash}
    assert not found
    assert sum(each.num_judged for of in verdicts.values() for each in of) > 1_000
