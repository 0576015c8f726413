"""The heads that go: a value that can be printed, stored, and applied."""

import json
import operator
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from attnwatch.errors import ConfigurationError
from attnwatch.heads.head_map import HeadMap
from attnwatch.heads.names import aligned
from attnwatch.heads.surgery import HeadsBySite, Surgery
from attnwatch.heads.weights import saved_heads, sites_of, weight_files
from attnwatch.utils.files import UnreadableFileError, read_json, replaced_file
from attnwatch.utils.hooks import put
from attnwatch.utils.notebooks import as_html

PLAN_FILE = "pruning_plan.json"
_FORMAT = 1


@dataclass(frozen=True)
class PruningPlan:
    """Heads to remove, or that were removed. Printed, it is a table.

    Attributes:
        heads: for each site the heads that go, numbered as in the unpruned model.
        num_heads: for each site of the model how many heads it has unpruned.

    Example:
        >>> print(PruningPlan({"layers.1": (0, 2, 3, 4)}, {"layers.0": 8, "layers.1": 8}))
        site      heads  removed  which
        layers.0      8        0  –
        layers.1      8        4  0, 2-4
        all          16        4  25%
    """

    heads: Mapping[str, tuple[int, ...]]
    num_heads: Mapping[str, int]

    @property
    def num_removed(self) -> int:
        """Number of heads that go."""
        return sum(map(len, self.heads.values()))

    @property
    def num_unpruned(self) -> int:
        """Number of heads of the unpruned model."""
        return sum(self.num_heads.values())

    @classmethod
    def of(cls, model: nn.Module | HeadMap) -> "PruningPlan":
        """Return what has been removed from a model so far."""
        heads = HeadMap.of(model)
        return cls.leaving(heads.kept, heads.num_heads)

    @classmethod
    def saved_in(cls, path: str | Path, model: nn.Module) -> "PruningPlan":
        """Return what has been removed from the model whose weights lie in a file or folder.

        ```python
        PruningPlan.saved_in("state", model).apply(model)  # before optimizers are made
        accelerator.load_state("state")
        ```

        Args:
            path: a folder (`save_pretrained`, `Trainer.save_model`, Accelerate's `save_state` and `save_model`), or a
                file with a state dict (`.safetensors`, Lightning's `.ckpt`, `torch.save`).
            model: like the saved one, as it was before heads were removed. It is not changed.

        Raises:
            ConfigurationError: there are no weights, or they are those of another model.
        """
        heads = HeadMap.of(model)
        try:
            files = weight_files(Path(path))
            if not files:
                raise ConfigurationError("there are no weights")
            kept = sites_of(saved_heads(files), heads)
        except ConfigurationError as error:
            raise ConfigurationError(f"`path`: no plan can be read from {str(path)!r}: {error}.") from error
        return cls.leaving(kept, heads.num_heads)

    @classmethod
    def leaving(cls, kept: Mapping[str, Sequence[int]], num_heads: Mapping[str, int]) -> "PruningPlan":
        """Return the plan that removes all heads but these; sites that are not named keep all of theirs."""
        gone = {name: tuple(head for head in range(num_heads[name]) if head not in kept[name]) for name in kept}
        return cls({name: heads for name, heads in gone.items() if heads}, dict(num_heads))

    def apply(self, model: nn.Module, optimizers: Iterable[Optimizer] = ()) -> None:
        """Remove the heads from a model, and from the optimizers that hold its parameters; all of them or none.

        The model may lie in a wrapper (PEFT's, a LightningModule), or have lain in one when the plan was made.

        Raises:
            ConfigurationError: it is a plan for another model, or a head of it is gone already.
        """
        heads = HeadMap.of(model)
        Surgery(heads, self.named_as_in(heads).heads, optimizers).apply()
        save_beside_adapters(model)

    def save(self, path: str | Path) -> None:
        """Write it as JSON. A file that is already there is replaced only when the new one is complete."""
        content = {"format": _FORMAT, "num_heads": dict(self.num_heads)}
        content["heads"] = {site: list(heads) for site, heads in self.heads.items()}
        with replaced_file(path) as stream:
            stream.write(json.dumps(content, indent=2).encode())

    @classmethod
    def load(cls, path: str | Path) -> "PruningPlan":
        """Read a file that `save` wrote.

        Raises:
            ConfigurationError: the file is no plan, or is damaged.
        """
        try:
            content = read_json(path)
            if content["format"] != _FORMAT:
                raise ConfigurationError(f"`path`: {str(path)!r} has format {content['format']}, expected {_FORMAT}.")
            heads = {site: tuple(map(operator.index, heads)) for site, heads in content["heads"].items()}
            num_heads = {site: operator.index(number) for site, number in content["num_heads"].items()}
        except UnreadableFileError as error:
            raise ConfigurationError(f"`path`: {str(path)!r} {error}; give a file of `PruningPlan.save`.") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigurationError(f"`path`: {str(path)!r} is not a saved pruning plan ({error!r}).") from None
        for site, gone in heads.items():
            number = num_heads.get(site, 0)
            if len({*gone}) < len(gone) or not all(0 <= head < number for head in gone):
                raise ConfigurationError(
                    f"`path`: {str(path)!r} is damaged: its heads of {site!r} must be different numbers from 0 to "
                    f"{number - 1}, got {list(gone)!s:.80}."
                )
        return cls(heads, num_heads)

    def _repr_html_(self) -> str:
        return as_html(str(self))

    def __str__(self) -> str:
        width = max([len("site"), *map(len, self.num_heads)])
        rows = [
            (site, number, len(self.heads.get(site, ())), _ranges(self.heads.get(site, ())))
            for site, number in self.num_heads.items()
        ]
        rows.append(("all", self.num_unpruned, self.num_removed, f"{self.num_removed / max(self.num_unpruned, 1):.0%}"))
        lines = [f"{site:<{width}}  {number:>5}  {gone:>7}  {which}" for site, number, gone, which in rows]
        return "\n".join([f"{'site':<{width}}  heads  removed  which", *lines])

    def named_as_in(self, model: nn.Module | HeadMap) -> "PruningPlan":
        """Return the plan with the names that the sites have in this model, which may lie in a wrapper or without one.

        Raises:
            ConfigurationError: it is a plan for another model.
        """
        has = HeadMap.of(model).num_heads
        names = aligned(self.num_heads, has) if self.heads.keys() <= self.num_heads.keys() else None
        if names is None:
            raise ConfigurationError(
                f"this plan, for {', '.join(self.heads) or 'no site'}, is for a model with the heads "
                f"{dict(self.num_heads)}; `model` has {has}."
            )
        return PruningPlan({names[site]: heads for site, heads in self.heads.items()}, has)

    def __add__(self, later: "PruningPlan") -> "PruningPlan":
        """Return the plan that removes the heads of both."""
        both = {
            site: tuple(sorted({*self.heads.get(site, ()), *later.heads.get(site, ())})) for site in later.num_heads
        }
        return PruningPlan({site: heads for site, heads in both.items() if heads}, later.num_heads)


def prune_heads(model: nn.Module, heads: HeadsBySite, *, optimizers: Iterable[Optimizer] = ()) -> PruningPlan:
    """Remove attention heads from a model, and from the optimizers that train it; all of them or none.

    Weights, biases, config and attributes are cut, so that the model is smaller and faster from the next step on.
    Parameters are replaced by new, smaller ones; the optimizers hold these in the places of the old ones, with the
    state that belongs to what is left. Outputs are those of the model with the heads' columns of the output
    projection set to zero.

    Args:
        model: any module with attention of a known layout; other layouts are described by a `ModelFamily`.
        heads: query heads by site (as in a recorder's coverage) or by layer, counted over the model's sites; numbered
            as in the unpruned model, also where some are gone already.
        optimizers: all that hold parameters of the model. One that is forgotten trains what is no longer there.

    Returns:
        The heads that this call has removed.

    Raises:
        ConfigurationError: a site or head that does not exist, one that is gone, all heads of the model, groups of
            different sizes in grouped-query attention, an optimizer of another model. Nothing was changed then.

    Example:
        >>> from torch import nn
        >>> layer = nn.TransformerEncoderLayer(d_model=32, nhead=4, batch_first=True)
        >>> print(prune_heads(layer, {"self_attn": [0, 3]}))
        site       heads  removed  which
        self_attn      4        2  0, 3
        all            4        2  50%
    """
    surgery = Surgery(found := HeadMap.of(model), heads, optimizers)
    surgery.apply()
    save_beside_adapters(model)
    return PruningPlan(surgery.removed, found.num_heads)


def save_beside_adapters(model: nn.Module) -> None:
    """Let PEFT's `save_pretrained` of a pruned model write the plan beside the adapters, whose files say nothing of it.

    Args:
        model: with adapters, or a module with such models in it; others are left alone.
    """
    for module in model.modules():
        is_ours = isinstance(vars(module).get("save_pretrained"), _SavePretrained)
        if hasattr(module, "peft_config") and hasattr(type(module), "save_pretrained") and not is_ours:
            put(module, attributes={"save_pretrained": _SavePretrained(module)})


class _SavePretrained:
    """A model's `save_pretrained` that also writes which heads are gone."""

    def __init__(self, module: nn.Module):
        self._module = weakref.ref(module)

    def __call__(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> Any:
        module: Any = self._module()
        result = type(module).save_pretrained(module, save_directory, *args, **kwargs)
        plan = PruningPlan.of(module)
        adapters = getattr(module, "peft_config", ())  # none any more once they were merged
        for folder in (Path(save_directory), *(Path(save_directory, name) for name in adapters)):
            if plan.heads and (folder / "adapter_config.json").is_file():
                plan.save(folder / PLAN_FILE)
        return result


def _ranges(heads: Sequence[int]) -> str:
    """Return the numbers as text such as `0, 3-5, 7`."""
    parts: list[list[int]] = []
    for head in sorted(heads):
        if parts and head == parts[-1][-1] + 1:
            parts[-1].append(head)
        else:
            parts.append([head])
    shown = [f"{part[0]}-{part[-1]}" if len(part) > 2 else ", ".join(map(str, part)) for part in parts]
    return ", ".join(shown) or "–"
