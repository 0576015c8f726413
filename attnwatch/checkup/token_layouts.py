"""Layouts of tokens in arguments with other axes than [batch, tokens] or [batch, tokens, features]."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class PatchGrid:
    """Patches of images.

    Attributes:
        size: height and width of the images.
        patch: height and width of a patch.
        is_known: True if the model reads these patches; False if it may read others.
    """

    size: tuple[int, int]
    patch: tuple[int, int]
    is_known: bool = True

    @property
    def is_batched(self) -> bool:
        """True if the first axis is that of the batch; images without known patches may be the frames of one video."""
        return self.is_known

    def patches(self, images: Tensor) -> Tensor:
        """Return the patches [batch, patches, values] of images [batch, channels, height, width]."""
        return F.unfold(images, self.patch, stride=self.patch).transpose(1, 2)

    def image(self, patches: Tensor) -> Tensor:
        """Return the images of patches."""
        return F.fold(patches.transpose(1, 2), self.size, self.patch, stride=self.patch)


@dataclass(frozen=True)
class Layout:
    """Layout of tokens whose argument has other axes than [batch, tokens] or [batch, tokens, features].

    Attributes:
        shape: shape of a sequence in the argument, such as (choices, tokens) or (frames, channels, height, width).
    """

    shape: torch.Size
    is_known = False

    @property
    def is_batched(self) -> bool:
        """True if the first axis of the argument is that of the batch, and not of the values of one series."""
        return len(self.shape) > 1

    def image(self, values: Tensor) -> Tensor:
        """Return tokens in the layout of the argument."""
        return values.reshape(len(values), *self.shape)
