"""Change of the parameters of a block by one step of the optimizer, relative to the parameters."""

from torch import Tensor

from attnwatch.layers.base import LayerSource, LayerStatistic
from attnwatch.plugins import register


@register
class UpdateRatio(LayerStatistic):
    name = "update_ratio"
    summary = "norm of the optimizer's update divided by the norm of the parameters that are trained"
    formula = "‖W' - W‖₂ / ‖W‖₂ over a sample of the entries"
    source = LayerSource.UPDATE

    def values(self, blocks: tuple[Tensor, Tensor]) -> Tensor:
        before, after = blocks
        return (after - before).norm(dim=1) / before.norm(dim=1)
