"""Versions and hardware of a training run."""

import platform
from importlib import metadata

import torch
from torch import nn

from attnwatch.utils.processes import num_processes

_LIBRARIES = ("attnwatch", "torch", "transformers", "lightning", "pytorch-lightning", "accelerate", "peft")


def environment(model: nn.Module) -> dict[str, str]:
    """Return the model, versions and hardware of a training run by name, as text."""
    parameters = list(model.parameters())
    trained = sum(each.numel() for each in parameters if each.requires_grad)
    number = sum(each.numel() for each in parameters)
    device = parameters[0].device if parameters else torch.device("cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    found = {
        "model": f"{type(model).__name__}, {number / 1e6:,.1f} million parameters ({trained / 1e6:,.1f} trainable)",
        "device": f"{device.type} ({name})",
        "processes": str(num_processes()),
        "Python": platform.python_version(),
    }
    return found | {library: version for library in _LIBRARIES if (version := _version(library))}


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return ""
