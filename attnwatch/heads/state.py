"""State dicts of pruned models, which resize the model that they are loaded into."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from attnwatch.capture import KEPT_HEADS, UNPRUNED_HEADS
from attnwatch.errors import ConfigurationError
from attnwatch.heads.heads import HeadSite, head_sites
from attnwatch.heads.projections import ParameterCut, features_of
from attnwatch.heads.removed import Heads, RemovedHeads, cuts_of, names_of_parameters
from attnwatch.heads.surgery import AttributeSwap, Surgery, apply_all, attribute_swaps, replaced_parameter
from attnwatch.utils.hooks import Remove, put

# Names that an error lists.
_NAMED = 3
_attached: WeakKeyDictionary[nn.Module, Remove] = WeakKeyDictionary()


def accept_pruned_state(model: nn.Module) -> RemovableHandle:
    """Let `model.load_state_dict` take the state of a pruned model: the model gets the heads that the state has.

    In a LightningModule's `__init__` it makes `load_from_checkpoint` work:

    ```python
    class Classifier(LightningModule):
        def __init__(self):
            super().__init__()
            self.model = AutoModel.from_pretrained(...)
            attnwatch.accept_pruned_state(self)
    ```

    Heads that the model does not have come back, as in `trainer.test(ckpt_path="best")` of a checkpoint from before a
    cut. Parameters stay the objects that they are, so that optimizers go on with them once their own state, which has
    other sizes now, is loaded too.

    Deep copies of the model take such states too. A pickle of it does not, so that it loads without attnwatch.

    `load_state_dict` raises a `ConfigurationError`, and leaves the model as it was, where a state dict has other heads
    than the model but not all that these need: one of adapters only, or a part of a sharded one.

    Args:
        model: whose heads can be removed, or a module with such models in it.

    Returns:
        A handle whose `remove()` ends it.
    """
    handle = model.register_load_state_dict_pre_hook(StateLoader().prepare)
    _attached.setdefault(model, put(model, handles=[handle], again=accept_pruned_state))
    return handle


class StateLoader:
    """Resizes a model to the heads of a state dict before this is loaded: all that it takes, or nothing.

    Its `prepare` is a hook for `register_load_state_dict_pre_hook`. Copies of the model accept states for
    themselves, and know nothing of the run.

    Args:
        removed: what cuts have taken from the model; None where nothing was kept.
        expected: returns the heads of the checkpoint that is being loaded, or None where they are not known.
        waits: for the rest of a module's state, which comes in a later call, as from a sharded checkpoint; `finish`
            says whether it came.
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
        """Be the one that prepares this module for its states: an earlier one, of another run, is taken out."""
        if model in _attached:
            _attached.pop(model)()
        handle = model.register_load_state_dict_pre_hook(self.prepare)
        _attached[model] = put(model, handles=[handle], again=accept_pruned_state)

    def finish(self) -> None:
        """After the last part of a state.

        Raises:
            ConfigurationError: some of a module's state did not come.
        """
        waiting, self._waiting = self._waiting, {}
        self._loaded.clear()
        if waiting:
            raise ConfigurationError(
                f"the state dict is not complete: of {_listed(waiting)} it has only a part, with other heads than the "
                "model. These modules are left as they were. Load all parts of the checkpoint."
            )

    def prepare(self, model: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
        """Give the model the heads that the state has.

        Raises:
            ConfigurationError: the state has not all that it takes; nothing was changed.
        """
        for part in self._waiting.values():
            state.update(part)
        loads = [_Load(site, state, at) for site, at in _sites(model, prefix)]
        self._choose_heads(loads)
        for load in loads:
            load.plan(names_of_parameters(model), prefix, self._removed, self._loaded)
        incomplete = [load for load in loads if load.missing]
        self._waiting = {}
        for load in incomplete:
            if not self._waits or load.is_of_adapters:
                raise ConfigurationError(load.why_not())
        for load in incomplete:
            self._waiting[load.site.name] = {name: state.pop(name) for name in load.names}
        if self._waits:
            self._loaded.update(name for load in loads if not load.missing for name in load.names)
        ready = [load for load in loads if load.is_other and not load.missing]
        if ready:
            _refuse_other_shapes(model, state, prefix, ready)
            if self._removed is not None:
                self._removed.note(model)
            _apply(model, ready)

    def _choose_heads(self, loads: "Sequence[_Load]") -> None:
        """Each load's heads: as the state says, else those of one time of the run, else by the sizes."""
        says = any(load.said is not None for load in loads)
        expected = None if says or self._expected is None else self._expected()
        history = [] if says or self._removed is None else self._removed.stages
        current = {load.site.name: load.site.kept for load in loads}
        stages = [stage for stage in (expected, current, *history) if stage is not None]
        stage = next((stage for stage in stages if _fits(stage, loads)), None) if len(stages) > 1 else None
        for load in loads:
            load.choose(stage)


@dataclass
class _Load:
    """What a state dict means for one site.

    Attributes:
        at: the module's path in the state dict.
        said: the heads that the state says it has; None where it says nothing of them.
        heads: that the site gets; None where they are not known.
        missing: names of what these need, and neither the state nor anything else has.
        values: of its parameters, where their size changes, before the state is loaded.
    """

    site: HeadSite
    state: Mapping[str, Any]
    at: str
    said: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    names: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    values: list[tuple[ParameterCut, Tensor]] = field(default_factory=list)

    def __post_init__(self):
        self.present = _present(self.site, self.state, self.at)
        kept = self.state.get(self._kept_name)
        if kept is not None:
            self.said = _checked(self.site, kept)

    @property
    def _kept_name(self) -> str:
        return f"{self.at}.{KEPT_HEADS}".removeprefix(".")

    @property
    def is_other(self) -> bool:
        """Whether the site gets other heads than it has."""
        return self.heads != self.site.kept

    @property
    def is_of_adapters(self) -> bool:
        """Whether the state has only adapters of it: those of a checkpoint come all together."""
        return bool(self.present) and all(".lora_" in name for name, _ in self.present.values())

    @property
    def is_cut(self) -> bool:
        """Whether all that the site gets is in the model."""
        return self.heads is not None and set(self.heads) <= set(self.site.kept)

    def fits(self, heads: Sequence[int]) -> bool:
        """Whether the state has the sizes of so many heads."""
        shapes = _shapes(self.site, tuple(heads))
        return all(shapes[key] == value.shape for key, (_, value) in self.present.items())

    def choose(self, stage: Heads | None) -> None:
        of_stage = [] if stage is None or self.site.name not in stage else [stage[self.site.name]]
        unpruned = tuple(range(self.site.num_unpruned_heads))
        known = [self.said] if self.said is not None else [*of_stage, self.site.kept, unpruned]
        self.heads = next((tuple(heads) for heads in known if self.fits(heads)), None)

    def plan(
        self, parameters: Mapping[int, str], prefix: str, removed: RemovedHeads | None, loaded: Collection[str]
    ) -> None:
        """What it takes to have these heads; nothing is changed. What is `loaded` came with an earlier part."""
        self.names = [name for name, _ in self.present.values()]
        self.names += [self._kept_name] if self.said is not None else []
        if self.heads is None:
            self.missing = [self._kept_name]
        if not self.is_other or self.is_cut or self.heads is None:
            return
        before = {(id(cut.module), cut.name): cut for cut in cuts_of(self.site, self.site.kept)}
        for cut in cuts_of(self.site, self.heads):
            key, old = (id(cut.module), cut.name), cut.parameter
            name = parameters[id(old)]
            is_same = torch.equal(cut.kept, before[key].kept) and cut.scale is None
            is_loaded = f"{prefix}{name}" in loaded and old.shape[cut.dim] == len(cut.kept)
            if key in self.present:
                self.values.append((cut, old.new_zeros(self.present[key][1].shape)))  # until it is loaded, in a moment
            elif not is_same and not is_loaded:
                value = None if removed is None else removed.value(name, cut)
                if value is None:
                    self.missing.append(f"{prefix}{name}")
                else:
                    self.values.append((cut, value))

    def why_not(self) -> str:
        name, has = self.site.name, list(self.site.kept)
        if self.heads is None:
            sizes = ", ".join(f"{name} {list(value.shape)}" for name, value in list(self.present.values())[:_NAMED])
            return (
                f"the state dict does not say which heads of {name!r} it has: {self._kept_name!r} is missing, and its "
                f"sizes ({sizes}) are not those of the model's heads {has}. Nothing was changed. Remove the heads that "
                "the checkpoint's model did not have first, as with attnwatch.PruningPlan.load("
                "'checkpoint/pruning_plan.json').apply(model), or load a state dict of the whole model."
            )
        back = sorted(set(self.heads) - set(has))
        return (
            f"the state dict has the heads {list(self.heads)} of {name!r}, the model {has}, and the weights of "
            f"{back} are neither in the state dict nor in the model: missing are {_listed(self.missing)}. Nothing was "
            "changed. Load a state dict of the whole model in one call; load adapters onto an unpruned base model, "
            "after attnwatch.PruningPlan has removed the heads that the checkpoint's model did not have."
        )


def _sites(model: nn.Module, prefix: str) -> Iterable[tuple[HeadSite, str]]:
    """The sites, and the paths of their modules in a state dict."""
    paths = {id(module): path for path, module in model.named_modules()}
    for site in head_sites(model)[0].values():
        yield site, f"{prefix}{paths[id(site.module)]}".removesuffix(".")


def _present(site: HeadSite, state: Mapping[str, Any], at: str) -> dict[tuple[int, str], tuple[str, Tensor]]:
    """What of the site's parameters that depend on heads is in the state, and by which name."""
    roots = [(at, site.module)]
    if site.is_output_outside:
        outside = site.layout.output.removeprefix("../")
        roots.append((".".join(filter(None, (at.rpartition(".")[0], outside))), site.projection))
    depends = {(id(cut.module), cut.name) for cut in cuts_of(site, site.kept)}
    found = {}
    for path, root in roots:
        for within, module in root.named_modules():
            for name in module._parameters:
                full = ".".join(filter(None, (path, within, name)))
                if (id(module), name) in depends and full in state:
                    found[(id(module), name)] = (full, state[full])
    return found


def _shapes(site: HeadSite, heads: tuple[int, ...]) -> dict[tuple[int, str], torch.Size]:
    shapes = {}
    for cut in cuts_of(site, heads):
        shape = list(cut.parameter.shape)
        shape[cut.dim] = len(cut.kept)
        shapes[(id(cut.module), cut.name)] = torch.Size(shape)
    return shapes


def _fits(stage: Heads, loads: Sequence[_Load]) -> bool:
    return all(load.site.name not in stage or load.fits(stage[load.site.name]) for load in loads)


def _checked(site: HeadSite, kept: Tensor) -> tuple[int, ...]:
    heads = tuple(kept.round().long().tolist())
    if list(heads) != sorted(set(heads)) or not set(heads) <= set(range(site.num_unpruned_heads)):
        raise ConfigurationError(
            f"the state dict says that {site.name!r} has the heads {list(heads)}; the unpruned model has 0 to "
            f"{site.num_unpruned_heads - 1} there. Is it of another model? Nothing was changed."
        )
    return heads


def _refuse_other_shapes(model: nn.Module, state: Mapping[str, Any], prefix: str, loads: Sequence[_Load]) -> None:
    """What could not be loaded afterwards, for another reason than its heads."""
    ours = {name for load in loads for name in load.names}
    for name, value in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
        other = state.get(f"{prefix}{name}")
        if f"{prefix}{name}" not in ours and isinstance(other, Tensor) and other.shape != value.shape:
            raise ConfigurationError(
                f"the state dict has other heads than the model, and is not of the same model otherwise: {name} is "
                f"{list(other.shape)} there, {list(value.shape)} here. Nothing was changed."
            )


def _apply(model: nn.Module, loads: Sequence[_Load]) -> None:
    removed = {load.site.name: sorted(set(load.site.kept) - set(load.heads)) for load in loads if load.is_cut}
    surgery = [Surgery(model, removed)] if removed else []
    grown = [load for load in loads if not load.is_cut]
    swaps = [
        AttributeSwap(cut.module._parameters, cut.name, replaced_parameter(cut.parameter, value))
        for load in grown
        for cut, value in load.values
    ]
    places = [(cut.module, cut.name, cut.parameter) for load in loads for cut in cuts_of(load.site, load.site.kept)]
    apply_all([*surgery, *swaps])
    for load in grown:
        _name_sizes(load.site, load.heads)
    for module, name, parameter in places:
        _become(parameter, module, name)


def _become(parameter: nn.Parameter, module: nn.Module, name: str) -> None:
    """Let a parameter take the values and the place of the one that has replaced it: optimizers hold it."""
    new = module._parameters[name]
    if new is not parameter:
        parameter.data, parameter.grad = new.data, None
        module._parameters[name] = parameter


def _name_sizes(site: HeadSite, heads: tuple[int, ...]) -> None:
    """What the module and its projections say of their sizes, once the parameters have these."""
    projections = [base for cut in cuts_of(site, heads) if features_of(base := cut.module)]
    for module in (*projections, *site.adapters):
        vars(module).update(features_of(module))
    for swap in attribute_swaps(site, list(heads), site.count_key_value_heads(len(heads))):
        swap.apply()
    if len(heads) == site.num_unpruned_heads:
        del site.module._buffers[KEPT_HEADS], vars(site.module)[UNPRUNED_HEADS]


def _listed(names: Iterable[str]) -> str:
    first, rest = list(names)[:_NAMED], list(names)[_NAMED:]
    return ", ".join(first) + (f" and {len(rest)} more" if rest else "")
