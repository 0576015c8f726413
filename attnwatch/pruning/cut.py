"""What is told of one cut."""

from dataclasses import dataclass

from attnwatch.pruning.plan import PruningPlan


@dataclass
class Cut:
    """One cut that was made.

    Attributes:
        step: after this optimizer step.
        plan: what went.
        seconds_before, seconds_after: median time of a step; None while it is not known.
        seconds_lost: what the cut took, and the first steps after it beyond that median (recompilation).
        taken_back: why the guard took it back; empty where it did not.
    """

    step: int
    plan: PruningPlan
    seconds_before: float | None = None
    seconds_after: float | None = None
    seconds_lost: float = 0.0
    taken_back: str = ""

    def __str__(self) -> str:
        heads = "1 head" if self.plan.num_removed == 1 else f"{self.plan.num_removed} heads"
        if self.taken_back:
            return f"the cut after step {self.step} ({heads}) is taken back: {self.taken_back}"
        if self.seconds_before is None or self.seconds_after is None:
            return f"{heads} removed after step {self.step}"
        return (
            f"the cut after step {self.step} ({heads}): a step took {milliseconds(self.seconds_before)} before, "
            f"{milliseconds(self.seconds_after)} after; the cut itself {self.seconds_lost:.2g} s"
        )


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"
