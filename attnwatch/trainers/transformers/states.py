"""Loading of checkpoints with other heads than the model has."""

from pathlib import Path

from torch import nn
from transformers import Trainer

from attnwatch.heads.plan import PLAN_FILE, PruningPlan
from attnwatch.heads.removed import Heads, RemovedHeads
from attnwatch.heads.state import StateLoader


class PrunedStates:
    """Let a model load checkpoints with other heads than its own.

    It stays attached to the model as long as the object exists, since a trainer loads checkpoints before training
    begins and after it has ended.

    Attributes:
        removed: data of removed heads that exists only in memory.
        loader: loader that gives the model the heads of a loaded state.
        loads_best: trainer that loads its best model next; None if no trainer does.
    """

    def __init__(self, model: nn.Module):
        self._model = model
        self.removed = RemovedHeads()
        self.loader = StateLoader(self.removed, self._heads_of_best_model, waits=True)
        self.loader.attach(model)
        self.loads_best: Trainer | None = None

    def _heads_of_best_model(self) -> Heads | None:
        """Return the heads of the checkpoint that the trainer loads at the end; None if they are unknown."""
        best = None if self.loads_best is None else self.loads_best.state.best_model_checkpoint
        if best is None or not self.removed.stages or not Path(best).is_dir():
            return None
        plan = Path(best, PLAN_FILE)
        gone = PruningPlan.load(plan).heads if plan.exists() else {}
        return {
            site: tuple(head for head in range(number) if head not in gone.get(site, ()))
            for site, number in PruningPlan.of(self._model).num_heads.items()
        }
