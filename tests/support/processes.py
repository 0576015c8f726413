"""Trainings on two processes."""

import os
import socket
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from tests.support.paths import ROOT
from tests.support.torchvision import FOLDER


def run_script(script: str, directory: Path, *arguments: str) -> None:
    """In a new process, which may start others; the script is called with directory and arguments."""
    file = directory / "train.py"
    file.write_text(textwrap.dedent(script))
    finished = subprocess.run(
        [sys.executable, str(file), str(directory), *arguments],
        capture_output=True,
        text=True,
        timeout=1800,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *_paths()])},
    )
    assert finished.returncode == 0, finished.stderr


def _paths() -> list[str]:
    """Without the folder of timm and torchvision, which needs what tests/support/torchvision.py does."""
    return [path for path in sys.path if path != FOLDER]


def on_two_processes(script: str, directory: Path, *arguments: str, launch: bool = False) -> list[Any]:
    """What each process of the script has saved as {directory}/rank{rank}.pt.

    Args:
        launch: call the script twice, with the rank as its last argument; else it starts the other process itself.
    """
    if launch:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda rank: run_script(script, directory, *arguments, str(rank)), (0, 1)))
    else:
        run_script(script, directory, *arguments)
    return [torch.load(directory / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def sharded(model: nn.Module, mesh: DeviceMesh | None = None) -> nn.Module:
    """A Llama with its parameters over the processes of a mesh, by default over all."""
    for module in (*model.model.layers, model):
        fully_shard(module, mesh=mesh)
    return model


def parallel(model: nn.Module, mesh: DeviceMesh | None = None) -> nn.Module:
    """A Llama with its heads over the processes of a mesh, by default over two."""
    plan = {f"self_attn.{name}_proj": ColwiseParallel() for name in "qkv"} | {"self_attn.o_proj": RowwiseParallel()}
    for layer in model.model.layers:
        parallelize_module(layer, mesh or init_device_mesh("cpu", (2,)), plan)
    return model


# They look at one batch at a time: what differs between its sequences, and the error of that.
WITHIN_A_BATCH = {"content_sensitivity", "normalized_entropy_stderr", "output_kurtosis"}
