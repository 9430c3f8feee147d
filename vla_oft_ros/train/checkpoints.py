"""What a training leaves on disk, and how it goes on from there.

run_dir/<name>--<step>_chkpt/ is a checkpoint in the official layout, which `load_policy` loads as
it is, plus `training_state.pt` in the newest one: what is trained in float32, and the optimizer's
state. LoRA is merged into all weights, the vision tower of FiLM checkpoints included (officially
that one stays unmerged; the official loader finds LoRA matrices of zeros there and computes the
same); the adapter lies beside it. A checkpoint is written under another name and renamed when it
is whole, so there is never a half one, whenever the process dies.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vla_oft_ros.config import ConfigError, FinetuneConfig
from vla_oft_ros.model.checkpoint import Checkpoint
from vla_oft_ros.model.checkpoint_save import save_checkpoint
from vla_oft_ros.model.vla import OpenVLAOFT
from vla_oft_ros.normalization import STATISTICS_FILE
from vla_oft_ros.train.lora import merged_tensors, write_adapter
from vla_oft_ros.train.processes import Processes, like, whole

STATE_FILE = "training_state.pt"
_NAME = re.compile(r"--(\d+)_chkpt$")
_PART = ".part"
_PROBE = "vision_probe"
PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}


class DivergedError(ValueError):
    """A training whose loss or weights are no numbers any more."""


Identity = Mapping[str, Any]
"""What must be the same when a training resumes: setting → value."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trainee:
    """A network under training, with what its checkpoints need.

    Attributes:
        checkpoint: From `load_base`; its network has LoRA by now.
        probe: Trained beside it, but no part of a policy; None where there is none.
        optimizer: Of the trained parameters.
        statistics: Content of dataset_statistics.json.
        config: Settings.
        identity: See `Identity`.
    """

    checkpoint: Checkpoint
    probe: nn.Module | None
    optimizer: Optimizer
    statistics: Mapping[str, Any]
    config: FinetuneConfig
    identity: Identity

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """Name → parameter that is trained."""
        return {name: value for name, value in self.parameters.items() if value.requires_grad}

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Name → parameter of network and probe."""
        probe = self.probe.named_parameters(prefix=_PROBE) if self.probe else ()
        return dict([*self.checkpoint.model.named_parameters(), *probe])


def saved_checkpoints(run_dir: Path) -> list[tuple[int, Path]]:
    """Step and directory of every whole checkpoint, ascending."""
    found = [
        (int(match[1]), path)
        for path in (run_dir.iterdir() if run_dir.is_dir() else ())
        if path.is_dir() and (match := _NAME.search(path.name))
    ]
    return sorted(found)


def save(trainee: Trainee, step: int, processes: Processes) -> Path:
    """Writes a checkpoint; all processes must call it, the first one writes.

    Args:
        trainee: What to save.
        step: Optimizer steps done.
        processes: Who computes.

    Returns:
        The new directory.

    Raises:
        DivergedError: if a trained weight is not finite; nothing is written then.
    """
    config = trainee.config
    run_dir = Path(config.run_dir).expanduser()
    target = run_dir / f"{config.data.name}--{step}_chkpt"
    tensors = _gathered(trainee.parameters, processes)
    state = _optimizer_state(trainee, processes)
    if processes.first:
        _refuse_unless_finite(tensors, trainee.trained)
        for stale in run_dir.glob(f".*{_PART}"):  # of a process that died
            shutil.rmtree(stale)
        part = run_dir / f".{target.name}{_PART}"
        _write_checkpoint(trainee, tensors, part, step)
        content = {
            "step": step,
            "identity": dict(trainee.identity),
            "trained": {name: tensors[name] for name in trainee.trained},
            "optimizer": state,
        }
        torch.save(content, part / STATE_FILE)
        _to_disk(part)
        part.rename(target)
        _tidy(run_dir, target, config.keep_checkpoints)
    processes.wait()
    return target


def _refuse_unless_finite(tensors: Mapping[str, Tensor], trained: Collection[str]) -> None:
    bad = [name for name in trained if not bool(torch.isfinite(tensors[name]).all())]
    if bad:
        raise DivergedError(
            f"NaN or infinity in {len(bad)} trained weights, {bad[0]} the first: not saved. Lower "
            "learning_rate or set max_gradient_norm and start again: training goes on from the "
            "last checkpoint"
        )


def _gathered(tensors: Mapping[str, Tensor], processes: Processes) -> dict[str, Tensor]:
    """Whole tensors on the CPU of the first process; nothing elsewhere."""
    gathered = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if processes.first:
            gathered[name] = full.cpu()
    return gathered


def _optimizer_state(trainee: Trainee, processes: Processes) -> dict[str, dict[str, Tensor]]:
    state: dict[str, dict[str, Tensor]] = {}
    for name, parameter in trainee.trained.items():
        state[name] = _gathered(trainee.optimizer.state.get(parameter, {}), processes)
    return state


def _write_checkpoint(
    trainee: Trainee, tensors: Mapping[str, Tensor], directory: Path, step: int
) -> None:
    config, source = trainee.config, trainee.checkpoint
    dtype = PRECISIONS[config.save_precision]
    merged = merged_tensors(tensors, config.lora_rank)
    with torch.device("meta"):
        model = OpenVLAOFT(source.config)
    for name in dict(model.named_parameters()):
        module, _, leaf = name.rpartition(".")
        parameter = nn.Parameter(merged.pop(name).to(dtype), requires_grad=False)
        model.get_submodule(module).register_parameter(leaf, parameter)
    save_checkpoint(replace(source, model=model.eval()), directory, step=step)
    text = json.dumps(trainee.statistics, indent=2) + "\n"
    (directory / STATISTICS_FILE).write_text(text, encoding="utf-8")
    if config.lora_rank:
        write_adapter(
            tensors,
            directory,
            rank=config.lora_rank,
            film=source.config.film,
            base_dir=config.base_dir,
            dtype=dtype,
        )


def _to_disk(directory: Path) -> None:
    """Waits until all of it is on the disk: a rename may overtake the contents otherwise."""
    for path in (*directory.rglob("*"), directory):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _tidy(run_dir: Path, newest: Path, keep: int) -> None:
    """Drops the states of older checkpoints, and checkpoints beyond those to keep."""
    others = [path for _, path in saved_checkpoints(run_dir) if path != newest]
    for path in others:
        (path / STATE_FILE).unlink(missing_ok=True)
    for path in others[: max(len(others) - keep + 1, 0)] if keep else ():
        shutil.rmtree(path)


def resume(trainee: Trainee) -> int:
    """Goes on from the newest checkpoint that has a training state.

    Args:
        trainee: Freshly built; gets the trained weights and the optimizer's state.

    Returns:
        Optimizer steps done; 0 if there is no checkpoint.

    Raises:
        ConfigError: if the checkpoint belongs to another training, or there are only such as
            cannot be gone on from.
    """
    run_dir = Path(trainee.config.run_dir).expanduser()
    saved = saved_checkpoints(run_dir)
    for step, directory in reversed(saved):
        path = directory / STATE_FILE
        if path.is_file():
            _restore(trainee, path)
            return step
    if saved:
        raise ConfigError(
            f"run_dir: {run_dir} holds checkpoints, but none with {STATE_FILE}, which the newest "
            f"one has; choose another folder, with base_dir {saved[-1][1]} to start from its "
            "weights"
        )
    return 0


def _restore(trainee: Trainee, path: Path) -> None:
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    told: Identity = content["identity"]
    is_now = trainee.identity
    other = [
        f"{name} was {told.get(name)!r}, is {is_now.get(name)!r}"
        for name in {**told, **is_now}
        if told.get(name) != is_now.get(name)
    ]
    if other:
        raise ConfigError(
            f"{path.parent}: expected the training that this run_dir holds; {'; '.join(other)}. "
            "Set them back, choose another run_dir, or set resume to false"
        )
    keep_moments = not trainee.config.official.resume_restarts
    with torch.no_grad():
        for name, parameter in trainee.trained.items():
            parameter.copy_(like(content["trained"][name], parameter))
            if keep_moments and content["optimizer"][name]:
                trainee.optimizer.state[parameter] = {
                    key: like(value.clone(), parameter) if value.ndim else value.clone()
                    for key, value in content["optimizer"][name].items()
                }
