"""Torchvision, which timm imports, works beside another torch than its own once this module is imported.

It lies in a folder of its own (see the Makefile), as other libraries would import it without this.
"""

import os
import sys
import types

import torch

FOLDER = os.path.join(sys.prefix, "timm")

_OPERATORS = torch.library.Library("torchvision", "DEF")  # they are gone with this object
_OPERATORS.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")
sys.path.append(FOLDER)
