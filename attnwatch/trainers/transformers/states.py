"""Checkpoints with other heads than the model that loads them."""

from pathlib import Path

from torch import nn
from transformers import Trainer

from attnwatch.heads.plan import PLAN_FILE, PruningPlan
from attnwatch.heads.removed import Heads, RemovedHeads
from attnwatch.heads.state import StateLoader


class PrunedStates:
    """Lets a model take the states of checkpoints with other heads.

    It stays with the model for as long as this lives: a trainer loads checkpoints before training begins and after it
    has ended.
    """

    def __init__(self, model: nn.Module):
        self._model = model
        self._removed = RemovedHeads()
        self._loader = StateLoader(self._removed, self._heads_of_best_model, waits=True)
        self._loader.attach(model)
        self._loads_best: Trainer | None = None

    def expect_best_of(self, trainer: Trainer | None) -> None:
        """Say which trainer loads its best model next; None if no trainer does."""
        self._loads_best = trainer

    def note(self) -> None:
        """Keep what only memory has of the heads of now, before they change."""
        self._removed.note(self._model)

    def finish(self) -> None:
        """Check that the last state came whole: raise a `ConfigurationError` if not."""
        self._loader.finish()

    def _heads_of_best_model(self) -> Heads | None:
        """Return the heads of the checkpoint that the trainer loads at the end; None if it is not known."""
        best = None if self._loads_best is None else self._loads_best.state.best_model_checkpoint
        if best is None or not self._removed.stages or not Path(best).is_dir():
            return None
        plan = Path(best, PLAN_FILE)
        gone = PruningPlan.load(plan).heads if plan.exists() else {}
        return {
            site: tuple(head for head in range(number) if head not in gone.get(site, ()))
            for site, number in PruningPlan.of(self._model).num_heads.items()
        }
