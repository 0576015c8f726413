"""Loading of state dicts of pruned models, which resizes the model."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from attnwatch.errors import ConfigurationError
from attnwatch.heads.changes import AttributeSwap, Change, apply_all, size_changes
from attnwatch.heads.head_map import HeadMap
from attnwatch.heads.removed import Heads, RemovedHeads
from attnwatch.heads.site_state import SiteState
from attnwatch.heads.surgery import Surgery, replaced_parameter
from attnwatch.utils.hooks import put, take_off
from attnwatch.utils.messages import listed


def accept_pruned_state(model: nn.Module) -> RemovableHandle:
    """Let `model.load_state_dict` accept the state of a pruned model: the model gets the heads of the state dict.

    Called in a LightningModule's `__init__`, it makes `load_from_checkpoint` work:

    ```python
    class Classifier(LightningModule):
        def __init__(self):
            super().__init__()
            self.model = AutoModel.from_pretrained(...)
            attnwatch.accept_pruned_state(self)
    ```

    Heads that the model no longer has return, as in `trainer.test(ckpt_path="best")` with a checkpoint from before a
    cut. Parameters stay the same objects, so that optimizers continue with them once their own state, whose sizes now
    differ, is loaded too.

    Deep copies of the model accept such states too. Pickles do not, so that they load without attnwatch.

    If a state dict has other heads than the model but lacks some of their weights (adapters only, or part of a sharded
    checkpoint), `load_state_dict` raises a `ConfigurationError` and leaves the model unchanged.

    Args:
        model: model with heads that can be removed, or a module that contains such models.

    Returns:
        A handle whose `remove()` method undoes this.

    Example:
        >>> from attnwatch import prune_heads
        >>> pruned, whole = (nn.TransformerEncoderLayer(d_model=32, nhead=4) for _ in range(2))
        >>> print(prune_heads(pruned, {0: [1, 2]}).num_removed)
        2
        >>> handle = accept_pruned_state(whole)
        >>> whole.load_state_dict(pruned.state_dict())
        <All keys matched successfully>
        >>> whole.self_attn.num_heads
        2
    """
    return _register(StateLoader(), model)


class StateLoader:
    """Hook that resizes a model to the heads of a state dict before it is loaded, or raises and changes nothing.

    Its `prepare` is a hook for `register_load_state_dict_pre_hook`. Copies of the model get their own hook, which
    does not know the run.

    Args:
        removed: weights that cuts removed from the model; None if none were kept.
        expected: function that returns the heads of the checkpoint being loaded, or None if they are unknown.
        waits: True to wait for the rest of a module's state in later calls, as with a sharded checkpoint; `finish`
            raises an error if it did not arrive.
    """

    def __init__(
        self,
        removed: RemovedHeads | None = None,
        expected: Callable[[], Heads | None] | None = None,
        *,
        waits: bool = False,
    ):
        self._removed, self._expected, self._waits = removed, expected, waits
        self._waiting: dict[str, dict[str, Tensor]] = {}
        self._loaded: set[str] = set()

    def attach(self, model: nn.Module) -> None:
        """Register this loader on the module, replacing an earlier one from another run."""
        take_off(model, accept_pruned_state)
        _register(self, model)

    def finish(self) -> None:
        """Check that the state dict was complete.

        Raises:
            ConfigurationError: part of a module's state is missing.
        """
        waiting, self._waiting = self._waiting, {}
        self._loaded.clear()
        if waiting:
            raise ConfigurationError(
                f"the state dict is not complete: it has only a part of {listed(list(waiting))}, with other heads than "
                "the model. These modules were left unchanged. Load all parts of the checkpoint."
            )

    def prepare(self, model: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
        """Give the model the heads of the state dict.

        Raises:
            ConfigurationError: the state dict lacks some of the weights needed; nothing was changed.
        """
        for waiting in self._waiting.values():
            state.update(waiting)
        heads = HeadMap.of(model)
        parts = [
            SiteState(site, state, f"{prefix}{heads.paths[name]}".removesuffix("."))
            for name, site in heads.sites.items()
        ]
        self._choose_heads(parts, heads)
        for part in parts:
            part.plan(heads.parameter_names, prefix, self._removed, self._loaded)
        incomplete = [part for part in parts if part.missing]
        self._waiting = {}
        for part in incomplete:
            if not self._waits or part.has_only_adapters:
                raise ConfigurationError(part.why_not())
        for part in incomplete:
            self._waiting[part.site.name] = {name: state.pop(name) for name in part.names}
        if self._waits:
            self._loaded.update(name for part in parts if not part.missing for name in part.names)
        ready = [part for part in parts if part.changes_heads and not part.missing]
        if ready:
            _refuse_other_shapes(model, state, prefix, ready)
            if self._removed is not None:
                self._removed.note(heads)
            _apply(heads, ready)

    def _choose_heads(self, parts: Sequence[SiteState], heads: HeadMap) -> None:
        """Choose each site's heads: as named in the state dict, or from one stage of the run, or by the sizes."""
        is_named = any(part.named is not None for part in parts)
        expected = None if is_named or self._expected is None else self._expected()
        history = [] if is_named or self._removed is None else self._removed.stages
        stages = [stage for stage in (expected, heads.kept, *history) if stage is not None]
        fitting = (stage for stage in stages if all(part.fits_stage(stage) for part in parts))
        stage = next(fitting, None) if len(stages) > 1 else None
        for part in parts:
            part.choose(stage)


def _register(loader: StateLoader, model: nn.Module) -> RemovableHandle:
    handle = model.register_load_state_dict_pre_hook(loader.prepare)
    put(model, handles=[handle], again=accept_pruned_state)
    return handle


def _refuse_other_shapes(model: nn.Module, state: dict[str, Any], prefix: str, parts: Sequence[SiteState]) -> None:
    """Raise a `ConfigurationError` if loading the state dict would still fail for a reason other than its heads."""
    ours = {name for part in parts for name in part.names}
    for name, value in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
        other = state.get(f"{prefix}{name}")
        if f"{prefix}{name}" not in ours and isinstance(other, Tensor) and other.shape != value.shape:
            raise ConfigurationError(
                f"the state dict has other heads than the model, and differs in other sizes too: {name} is "
                f"{list(other.shape)} there, {list(value.shape)} here. Nothing was changed."
            )


def _apply(heads: HeadMap, parts: Sequence[SiteState]) -> None:
    removed = {part.site.name: sorted({*part.site.kept} - {*part.heads}) for part in parts if part.is_cut}
    changes: list[Change] = [Surgery(heads, removed)] if removed else []
    for part in parts:
        if not part.is_cut:
            changes += [
                AttributeSwap(cut.module._parameters, cut.name, replaced_parameter(cut.parameter, value))
                for cut, value in part.values
            ]
            changes += size_changes(part.site, part.heads)
    places = [(cut.module, cut.name, cut.parameter) for part in parts for cut in part.site.cuts_of(part.site.kept)]
    apply_all(changes)
    for module, name, parameter in places:
        _become(parameter, module, name)


def _become(parameter: nn.Parameter, module: nn.Module, name: str) -> None:
    """Give a parameter, which optimizers hold, the values and place of the one that replaced it."""
    new = module._parameters[name]
    if new is not None and new is not parameter:
        parameter.data, parameter.grad = new.data, None
        module._parameters[name] = parameter
