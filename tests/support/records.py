"""Records of runs that were never trained, for what is written about runs."""

import numpy as np

from attnwatch import AttentionHistory, Finding, FindingKind
from attnwatch.layers import LayerStatistic
from attnwatch.runs import RATE_CURVE, Curve, RunEvent, RunRecord
from attnwatch.statistics import Statistic


def a_history(num_steps: int = 8, num_sites: int = 2, num_heads: int = 3, *, seed: int = 0) -> AttentionHistory:
    """Return a history of random numbers in which the last head of the first site goes in the second half."""
    drawn = np.random.default_rng(seed)
    values = {
        name: drawn.random((num_steps, num_sites, num_heads), dtype=np.float32) * 0.5 + 0.2
        for name in Statistic.registry
    }
    values["nonfinite"] = np.zeros((num_steps, num_sites, num_heads), dtype=np.float32)
    for array in values.values():
        array[num_steps // 2 :, :1, -1:] = np.nan
    layers = {name: drawn.random((num_steps, num_sites), dtype=np.float32) for name in LayerStatistic.registry}
    sites = tuple(f"layers.{index}.attn" for index in range(num_sites))
    steps, loss = np.arange(num_steps) * 10, np.linspace(3, 1, num_steps)
    return AttentionHistory(steps, sites, values, loss, total_steps=20 * max(num_steps, 1), layers=layers)


def a_record(name: str = "run", history: AttentionHistory | None = None) -> RunRecord:
    """Return a record with one of everything."""
    finding = Finding(FindingKind("eval_mode"), ("layers.0",), 0, 0.8, "the model was in eval mode", {"modules": 3.0})
    details = {"heads": 1.0, "criterion": "gate"}
    return RunRecord(
        name,
        a_history() if history is None else history,
        curves={RATE_CURVE: Curve(np.array([0, 50]), np.array([1e-3, 5e-4]))},
        events=(RunEvent(40, "heads", "heads removed", "1 of 6 heads was removed.", details),),
        checked=(finding,),
        ruled_out=frozenset({"batch_mixing"}),
        checkup={"eval_mode": "FOUND: the model was in eval mode", "batch_mixing": "ok"},
        settings={"every_n_steps": "10"},
        environment={"torch": "2.13"},
        outcomes=("HeadPruning: 1 of 6 heads is gone.",),
        remarks=("Read it so.",),
    )
