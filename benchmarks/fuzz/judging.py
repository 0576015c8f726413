"""Comparison of the package's functions with the oracle.

Tolerances follow from how errors travel. A logit is a sum of products; in the dtype that is computed in it is off by
δ ≤ c · eps · M, with M the largest sum of absolute terms behind a logit (its worst case has c = head_dim / 2; sums are
made in parts, and errors cancel: c = 4). The kernel subtracts two terms of size M, with the same error. The entropy
moves by at most Σ_j |p_j (log p_j + H)| · δ ≤ 2 log n · δ, weights by less than δ, the mean distance by the number of
keys times that. The standard deviation of n logits of spread R, at least R / sqrt(2n), comes from the difference of
squares up to R², so that its error is up to sqrt(n) larger. Where this exceeds what a statistic can be at all, its
range is what is tested.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from attnwatch import ConfigurationError, attention_entropy, attention_statistics
from attnwatch.attention import Accumulator, AttentionInputs
from attnwatch.statistics import Statistic
from benchmarks.fuzz.cases import Case, draw_case
from benchmarks.fuzz.oracle import Matrix, compute_dtype, entropy_of, matrix_of, statistics_of

_FLOAT32_EPS = torch.finfo(torch.float32).eps
_LOGITS, _SHARES = ("max_logit", "logit_std"), ("normalized_entropy", "sink_mass", "max_weight")


@dataclass(frozen=True)
class Verdict:
    """Result of one function on one case.

    Attributes:
        function: its name.
        wrong: what is wrong, in words; empty if nothing is.
        crash: the exception, where there was one that there must not be.
        num_judged: values that were compared with the oracle's.
    """

    function: str
    wrong: str = ""
    crash: str = ""
    num_judged: int = 0


def judge_drawn(seed: int, index: int) -> tuple[bool, list[Verdict]]:
    """Draw a case; return True if it is empty, and the verdict on every function that takes it."""
    case = draw_case(seed, index)
    return case.is_empty, judge(case)


def judge(case: Case) -> list[Verdict]:
    """Return the verdict on every function that takes the case."""
    functions: list[Callable[[Case], tuple[str, int]]] = [_entropy, _statistics]
    return [_judged(function, case) for function in (*functions, *([_inputs] if case.model_options else []))]


def _judged(function: Callable[[Case], tuple[str, int]], case: Case) -> Verdict:
    name = function.__name__.strip("_")
    before = {key: tensor.clone() for key, tensor in case.tensors.items()}
    try:
        wrong, num_judged = function(case)
    except Exception as error:
        return Verdict(name, crash=f"{type(error).__name__}: {error}")
    for key, tensor in case.tensors.items():
        if not torch.equal(tensor.nan_to_num(nan=1.5), before[key].nan_to_num(nan=1.5)):
            wrong = wrong or f"`{key}` was written to"
    return Verdict(name, wrong, num_judged=num_judged)


def _refuses(call: Callable[[], object]) -> tuple[str, int]:
    try:
        call()
    except ConfigurationError as error:
        return ("" if "must not be empty" in str(error) else f"refused with other words: {error}"), 1
    return "a call without anything in it was taken", 1


def _entropy(case: Case) -> tuple[str, int]:
    def call() -> torch.Tensor:
        return attention_entropy(case.query, case.key, **case.options)

    if case.is_empty:
        return _refuses(call)
    entropy, matrix = call(), matrix_of(case, with_model_options=False)
    if entropy.dtype != compute_dtype(case) or entropy.shape != matrix.is_finite.shape or entropy.requires_grad:
        return f"returned {entropy.dtype} of shape {list(entropy.shape)}", 0
    if not torch.equal(call().nan_to_num(nan=-1.0), entropy.nan_to_num(nan=-1.0)):
        return "a second call gave other values", 0
    found, expected = entropy.double().numpy(), entropy_of(matrix)
    unsure = np.isnan(found) & ~matrix.is_sure
    tolerance = 8 * matrix.eps * (1 + matrix.magnitude) * (1 + np.log(matrix.logits.shape[-1]))
    highest = np.log(np.maximum(matrix.num_visible, 1)) + max(1e-5, min(tolerance, 0.1))
    is_wrong = ~_close(found, np.where(matrix.is_sure, expected, found), tolerance) | (found < 0) | (found > highest)
    return _first_wrong("entropy", is_wrong & ~unsure, found, expected, tolerance), int((~unsure).sum())


def _statistics(case: Case) -> tuple[str, int]:
    def call():
        return attention_statistics(case.query, case.key, **case.options, query_mask=case.query_mask)

    if case.is_empty:
        return _refuses(call)
    return _compare(call(), case, matrix_of(case, with_model_options=False))


def _inputs(case: Case) -> tuple[str, int]:
    """Compare the call that a recorder makes, with the options that models add to attention."""
    options = {name: value for name, value in case.options.items() if name != "enable_gqa"}
    inputs = AttentionInputs(case.query, case.key, **options, query_mask=case.query_mask, **case.model_options)
    accumulator = Accumulator()
    sums = accumulator.sums(inputs, torch.arange(inputs.num_queries))
    if case.is_empty:
        return ("" if (sums[:, 1] == 0).all() else "a call without anything in it counts"), 1
    found = dict(zip(accumulator.names, accumulator.values(sums).float(), strict=True))
    return _compare(found, case, matrix_of(case, with_model_options=True))


def _compare(found: Mapping[str, torch.Tensor], case: Case, matrix: Matrix) -> tuple[str, int]:
    expected = statistics_of(matrix, case.query_mask)
    sure = matrix.is_sure.all((0, 2))  # by head
    num_judged = 0
    for name in expected:
        values = found[name].double().numpy()
        if found[name].dtype != torch.float32 or values.shape != sure.shape:
            return f"{name} is {found[name].dtype} of shape {list(values.shape)}", num_judged
        tolerance = _tolerance(name, matrix, expected[name])
        is_wrong = sure & ~_close(values, expected[name], tolerance)
        low, high = Statistic.registry[name].low, Statistic.registry[name].high
        is_wrong |= (values < (-np.inf if low is None else low)) | (values > (np.inf if high is None else high + 1e-5))
        if is_wrong.any():
            return _first_wrong(name, is_wrong, values, expected[name], tolerance), num_judged
        num_judged += int(sure.sum())
    return "", num_judged


def _tolerance(name: str, matrix: Matrix, expected: np.ndarray) -> np.ndarray:
    """Return the tolerance of each head."""
    num_keys = matrix.logits.shape[-1]
    of_logits = 8 * matrix.eps * (1 + matrix.magnitude)
    of_name = of_logits * (1 + np.log(num_keys))
    if name in _LOGITS:
        of_name = of_logits * np.sqrt(num_keys)
    elif name == "distance":
        of_name = of_logits * num_keys
    elif name in _SHARES:
        of_name = of_logits * 2
    elif name in ("nonfinite", "max_entropy"):
        of_name = 0.0
    return of_name + 4 * _FLOAT32_EPS * (1 + np.abs(np.nan_to_num(expected)))  # the results are float32


def _close(found: np.ndarray, expected: np.ndarray, tolerance: np.ndarray | float) -> np.ndarray:
    both_nan = np.isnan(found) & np.isnan(expected)
    return both_nan | (np.abs(found - expected) <= tolerance)


def _first_wrong(name: str, is_wrong: np.ndarray, found: np.ndarray, expected: np.ndarray, tolerance) -> str:
    if not is_wrong.any():
        return ""
    place = tuple(int(each[0]) for each in np.nonzero(is_wrong))
    allowed = float(np.broadcast_to(tolerance, found.shape)[place])
    return (
        f"{name}{list(place)} is {found[place]:.9g}, expected {expected[place]:.9g} ± {allowed:.2g} "
        f"({int(is_wrong.sum())} of {is_wrong.size} values)"
    )
