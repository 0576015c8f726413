"""Torch's random states on the devices of a model."""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn


def devices_of(model: nn.Module) -> list[torch.device]:
    """Return the devices of a model's parameters, except for devices without values (meta)."""
    devices = dict.fromkeys(parameter.device for parameter in model.parameters())
    return [device for device in devices if device.type != "meta"]


@contextlib.contextmanager
def random_states_kept(devices: Iterable[torch.device], *, seed: int | None = None) -> Iterator[None]:
    """Restore the random states of the CPU and these devices when the context ends.

    Args:
        devices: devices whose random states change in the context.
        seed: seed of all these random states in the context; None leaves them as they are. `torch.manual_seed` would
            also change the states of devices that are not restored.
    """
    devices = list(dict.fromkeys([torch.device("cpu"), *filter(_has_state, devices)]))
    states = list(map(_state_of, devices))
    try:
        if seed is not None:
            for device in devices:
                _set_state(device, torch.Generator(device).manual_seed(seed).get_state())
        yield
    finally:
        for device, state in zip(devices, states, strict=True):
            _set_state(device, state)


def _has_state(device: torch.device) -> bool:
    return hasattr(getattr(torch, device.type, None), "get_rng_state")


def _state_of(device: torch.device) -> Tensor:
    return torch.get_rng_state() if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)


def _set_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state, device)
