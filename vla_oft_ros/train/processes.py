"""One process or many: `torchrun` or `accelerate launch` start them, this file joins them.

DDP holds the whole network in every process; FSDP splits it, layer by layer of the LLM and the
rest as one, for networks that do not fit. A process that was started alone needs nothing of this.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from vla_oft_ros.config import ConfigError
from vla_oft_ros.train.objectives import Objective


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Who computes.

    Attributes:
        rank: Number of this process; 0 logs and saves.
        world: How many there are.
        device: Where this one computes.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that logs and saves."""
        return self.rank == 0

    def total(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums tensors over all processes; every process must call it with the same names."""
        summed = {name: value.detach().clone() for name, value in values.items()}
        if self.world > 1:
            for name in sorted(summed):
                dist.all_reduce(summed[name])
        return summed

    def wait(self) -> None:
        """Returns when all processes have come here."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Joins the processes of one training for as long as the block lasts.

    Args:
        device: auto, cpu, cuda or cuda:<index>; of several processes each takes the GPU of its
            local number.

    Raises:
        ConfigError: if the device does not exist.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    kind = device
    if device == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(kind)
    except RuntimeError as error:
        raise ConfigError(
            f"device: expected auto, cpu, cuda or cuda:<index>; got {device!r} ({error})"
        ) from None
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device: expected a CUDA GPU for {device!r}; torch sees none. Set device to cpu"
        )
    if place.type == "cuda" and world > 1:
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", str(rank))))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if world == 1:
        yield Processes(rank=0, world=1, device=place)
        return
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Processes(rank=rank, world=world, device=place)
    finally:
        dist.destroy_process_group()


def spread(objective: Objective, processes: Processes, sharding: str) -> nn.Module:
    """Wraps the network for several processes; one process gets it back as it is.

    Args:
        objective: Network and loss, the same in all processes.
        processes: Who computes.
        sharding: "ddp" or "fsdp".

    Returns:
        What to call. With FSDP the parameters of `objective` itself become shards.
    """
    if processes.world == 1:
        return objective
    if sharding == "ddp":
        # Parameters that get no gradient are frozen (`lora.is_unused`), so none need be looked
        # for; the official code looks for them at every step.
        on_gpu = processes.device.type == "cuda"
        return DistributedDataParallel(
            objective, device_ids=[processes.device] if on_gpu else None
        )
    mesh = init_device_mesh(processes.device.type, (processes.world,))
    for layer in objective.model.language_model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(objective, mesh=mesh)
    return objective


@contextmanager
def gradients_later(module: nn.Module, later: bool) -> Iterator[None]:
    """Within it, backward passes do not yet exchange gradients, if `later` says so."""
    if isinstance(module, DistributedDataParallel) and later:
        with module.no_sync():
            yield
        return
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(not later)
    yield


def split_again(module: nn.Module) -> None:
    """After a forward pass without a backward one, FSDP still holds the whole network: gives the
    shards their places back, which optimizer and saving look for.
    """
    if isinstance(module, FSDPModule):
        module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """A parameter or its state put together from all processes; all must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """A whole tensor divided among the processes as another one is; inverse of `whole`."""
    tensor = tensor.to(device=pattern.device)
    if isinstance(pattern, DTensor):
        return distribute_tensor(tensor, pattern.device_mesh, pattern.placements)
    return tensor
