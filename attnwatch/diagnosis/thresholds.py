"""The numbers behind the rules, each with its reason."""

from dataclasses import dataclass, fields, replace
from numbers import Real

from attnwatch.errors import ConfigurationError
from attnwatch.utils.arguments import require_int


@dataclass(frozen=True)
class Thresholds:
    """When something counts. A pair of an `enter` and a `leave` number is a hysteresis.

    Attributes:
        min_observations, min_steps: before so much was seen, nothing but non-finite values is claimed.
        patience: observations in a row before a flag comes up or goes down.
        uniform_enter, uniform_leave: normalized entropy, mean over the heads of a site. Causal attention with
            logits of standard deviation s has 1 - s²/(2 log n) to first order: 0.97 at 128 visible keys is s = 0.5.
        uniform_steps: a site must have been uniform for so many steps.
        uniform_growth, uniform_growth_floor: if 1 - normalized entropy grew by this factor (and by this much) within
            these steps, queries and keys are learning, only slowly: no finding.
        uniform_spread_growth: neither if the spread of the logits grew by this factor since it was lowest. In runs
            whose queries and keys do not learn it stays within 1.2 times that.
        collapse_enter, collapse_leave: normalized entropy of a head; below, it looks at one key. Sharp but healthy
            heads (previous token, induction) measure 0.03 and more.
        sink_mass: a head with more weight than this on its first key is a sink, and judged by its other weights.
        collapse_share: share of a site's heads that must have collapsed.
        logit_enter, logit_leave: largest attention logit. Runs that capped it at 100 trained well, uncapped ones
            exceeded 1,000 before they became unstable (arXiv 2507.20534).
        logit_growth: and it must be so many times that of the first observations, as some pretrained models live
            with large logits.
        frozen_window: observations that are compared, first half with second half.
        frozen_chi2: mean squared drift of the heads in units of its standard error; 1 is expected of pure noise.
        frozen_drift: and the drift itself must be below this normalized entropy. The flag goes down at 4 times that
            square or twice that drift.
        frozen_loss_drop: and the loss must have fallen by this share within the window.
        widespread: share of the sites from which on a finding decides the status of the whole run.

    Raises:
        ConfigurationError: a number is wrong, or a pair the wrong way round.
    """

    min_observations: int = 10
    min_steps: float = 100
    patience: int = 5
    uniform_enter: float = 0.97
    uniform_leave: float = 0.95
    uniform_steps: float = 100
    uniform_growth: float = 1.5
    uniform_growth_floor: float = 1e-3
    uniform_spread_growth: float = 1.25
    collapse_enter: float = 0.01
    collapse_leave: float = 0.02
    sink_mass: float = 0.5
    collapse_share: float = 0.9
    logit_enter: float = 1000.0
    logit_leave: float = 500.0
    logit_growth: float = 3.0
    frozen_window: int = 20
    frozen_chi2: float = 1.5
    frozen_drift: float = 1e-3
    frozen_loss_drop: float = 0.02
    widespread: float = 0.5

    def of_budget(self, total_steps: int | None) -> "Thresholds":
        """For a run of so many steps: a tenth must be over, and uniform attention have lasted a fifth.

        Of a long run, no more than 1,000 and 2,000 steps, about as long as a warm-up. A very short one is not judged
        at all.
        """
        if total_steps is None or total_steps < self.min_steps:
            return self
        return replace(
            self,
            min_steps=min(total_steps / 10, _MOST_MIN_STEPS),
            uniform_steps=min(total_steps / 5, _MOST_UNIFORM_STEPS),
        )

    def __post_init__(self):
        for number in fields(self):
            value = getattr(self, number.name)
            if isinstance(value, bool) or not isinstance(value, Real) or not value >= 0:
                raise ConfigurationError(f"`{number.name}` must be a number of at least 0, got {value!r}.")
        for name, minimum in {"min_observations": 1, "patience": 1, "frozen_window": 2}.items():
            require_int(name, getattr(self, name), minimum=minimum)
        for low, high in _HYSTERESES:
            if getattr(self, low) > getattr(self, high):
                raise ConfigurationError(
                    f"`{low}` must not be above `{high}`, got {getattr(self, low)!r} and {getattr(self, high)!r}: "
                    "a flag can not come up and go down at once; give both."
                )


_MOST_MIN_STEPS = 1000
_MOST_UNIFORM_STEPS = 2000

_HYSTERESES = (
    ("uniform_leave", "uniform_enter"),
    ("collapse_enter", "collapse_leave"),
    ("logit_leave", "logit_enter"),
)
