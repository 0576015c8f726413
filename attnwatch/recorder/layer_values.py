"""Values of layer statistics in one step, on the device."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnwatch.capture import ForwardPass

Key = tuple[str, str]
"""Site, and name of the layer statistic."""


class LayerValues:
    """Values of the layer statistics of sites in one step, one for each forward or backward that counts.

    Args:
        values: 0-dimensional tensors by site and statistic.
    """

    def __init__(self, values: Mapping[Key, Sequence[Tensor]] | None = None):
        self._values = {key: list(each) for key, each in (values or {}).items()}
        self._passes: dict[str, ForwardPass] = {}

    def put(self, site: str, name: str, value: Tensor) -> None:
        """Replace earlier values by a new one."""
        self._values[site, name] = [value]

    def add(self, site: str, name: str, value: Tensor) -> None:
        """Add a value to earlier ones, which are averaged."""
        self._values.setdefault((site, name), []).append(value)

    def expects(self, site: str, of: ForwardPass, names: Iterable[str]) -> bool:
        """Return whether outputs of this pass count. If so, earlier values (`names`) of lesser passes are dropped."""
        greatest = self._passes.get(site, of)
        if of > greatest:
            for name in names:
                self._values.pop((site, name), None)
        self._passes[site] = max(of, greatest)
        return of >= greatest

    def remember(self) -> Callable[[], None]:
        """Return a function that undoes all later changes."""
        values, passes = {key: list(each) for key, each in self._values.items()}, dict(self._passes)

        def take_back() -> None:
            self._values, self._passes = values, passes

        return take_back

    @property
    def keys(self) -> list[Key]:
        """Site and statistic of each value."""
        return [key for key, values in self._values.items() for _ in values]

    def packed(self) -> Tensor | None:
        """Return the values in the order of `keys`, float32 [values]; None if there are none."""
        values = [value for each in self._values.values() for value in each]
        return torch.stack([value.to(values[0].device) for value in values]).float() if values else None

    def state_dict(self) -> dict[str, Any]:
        packed = self.packed()
        parts = iter(() if packed is None else packed.cpu().split([len(each) for each in self._values.values()]))
        return {
            "values": {f"{name} {site}": next(parts) for site, name in self._values},
            "passes": {site: list(of) for site, of in self._passes.items()},
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Any], names: Collection[str]) -> "LayerValues":
        """Return the values of a `state_dict`, limited to statistics with these names."""
        by_key = {tuple(key.split(" ", 1)[::-1]): list(each) for key, each in state["values"].items()}
        values = cls({(site, name): each for (site, name), each in by_key.items() if name in names})
        values._passes = {site: ForwardPass(*of) for site, of in state["passes"].items()}
        return values


def columns(keys: Sequence[Key], values: Tensor, names: Collection[str], sites: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the mean of the values of each site by statistic: float32 [sites], nan where there are none.

    Args:
        keys: site and statistic of each value.
        values: values on the host, [values].
        names: names of the statistics.
        sites: names of the sites, in order.
    """
    places = {site: place for place, site in enumerate(sites)}
    sums, numbers = np.zeros((2, len(names), len(sites)))
    rows = {name: row for row, name in enumerate(names)}
    for (site, name), value in zip(keys, values.tolist(), strict=True):
        if site in places and name in rows:
            sums[rows[name], places[site]] += value
            numbers[rows[name], places[site]] += 1
    means = np.divide(sums, numbers, out=np.full_like(sums, np.nan), where=numbers > 0).astype(np.float32)
    return dict(zip(names, means, strict=True))
