"""Later steps of a run at which checks look again."""

_SHARE_OF_RUN, _LEAST_LATER_STEP = 0.1, 50


def later_point(total_steps: int) -> float:
    """Return the step by which a model should have begun to learn: a tenth of the run, but at least 50."""
    return max(_SHARE_OF_RUN * total_steps, _LEAST_LATER_STEP)


def later_points(total_steps: int) -> tuple[float, ...]:
    """Return the steps from which on checks look again: `later_point`, and half of the run if that is later."""
    first = later_point(total_steps)
    return (first, total_steps / 2) if total_steps / 2 >= 2 * first else (first,)
