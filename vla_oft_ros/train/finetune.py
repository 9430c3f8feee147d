"""The training loop: settings in, checkpoints in the official layout out.

Every optimizer step depends on the weights, the optimizer's state and the step's number alone:
samples, noise, dropout and learning rate follow from the seed and that number. So a training that
was interrupted goes on bit for bit as if it had not been, and two processes compute what one
computes with the same samples per step. Source of the recipe: openvla-oft `finetune.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint as recompute

from vla_oft_ros.config import ConfigError, FinetuneConfig
from vla_oft_ros.data.dataset import ChunkDataset, EpisodeReader, find_episodes, split_episodes
from vla_oft_ros.data.statistics import Statistics, StatisticsCollector
from vla_oft_ros.train.base import load_base, make_small_base
from vla_oft_ros.train.checkpoints import DivergedError, Trainee, resume, save, saved_checkpoints
from vla_oft_ros.train.lora import choose_trained, freeze_film, freeze_vision
from vla_oft_ros.train.noise_start import start_noise
from vla_oft_ros.train.objectives import Batch, Losses, Objective
from vla_oft_ros.train.processes import Processes, gradients_later, joined, split_again, spread
from vla_oft_ros.train.report import TrainingReport
from vla_oft_ros.train.samples import (
    Preparation,
    Shares,
    TrainingSamples,
    ValidationSamples,
    loader,
)
from vla_oft_ros.train.schedule import Schedule
from vla_oft_ros.train.vision_start import seen_by, start_vision

VISION_START_FILE = "vision_start.safetensors"
"""In run_dir: vision towers and projector as `vision_start_steps` left them."""


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """How a training ended.

    Attributes:
        step: Optimizer steps done.
        checkpoint_dir: The last checkpoint.
        figures: Figures of the last log line.
    """

    step: int
    checkpoint_dir: Path
    figures: Mapping[str, float]


def finetune(config: FinetuneConfig, console: Console) -> TrainingResult:
    """Trains until `max_steps`, going on from what run_dir holds.

    Args:
        config: Settings.
        console: Where progress goes; only that of the first process is used.

    Raises:
        ValueError: if settings, data or base do not fit; the message says what to change.
        DivergedError: if the loss is not finite; the last checkpoint stays as it is.
    """
    run_dir = _run_dir(config)
    _check_starts(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    with joined(config.device) as processes:
        readers = find_episodes(config.data.paths, keep_failures=config.data.keep_failures)
        profile = readers[0]().profile
        windows, held_out = _windows(config, readers)
        if processes.first:
            run_dir.mkdir(parents=True, exist_ok=True)
            if not config.base_dir:
                make_small_base(config)
        processes.wait()
        collector = StatisticsCollector()
        for reader in readers:  # those for validation too, as officially
            collector.add(reader())
        training = _Training(
            config,
            processes,
            windows,
            held_out,
            collector.finish(),
            profile,
            run_dir=run_dir,
            say=partial(console.print, soft_wrap=True) if processes.first else lambda line: None,
        )
        return training.run(run_dir, console)


def _run_dir(config: FinetuneConfig) -> Path:
    if not config.run_dir:
        raise ConfigError("run_dir: expected a folder for checkpoints and logs; got none")
    run_dir = Path(config.run_dir).expanduser()
    if not config.resume and saved_checkpoints(run_dir):
        raise ConfigError(
            f"run_dir: {run_dir} holds checkpoints of a training; set resume to true to go on, or "
            "choose another folder"
        )
    return run_dir


def _check_starts(config: FinetuneConfig) -> None:
    """What is learned before the first step fits what is learned then."""
    if config.noise_start_steps and config.decoding != "diffusion":
        raise ConfigError(
            f"noise_start_steps: expected 0 where decoding is {config.decoding}: only diffusion "
            f"has noise; got {config.noise_start_steps}"
        )
    if config.freeze_vision and config.vision_probe:
        raise ConfigError(
            "vision_probe: expected 0 where freeze_vision leaves nobody to be taught; got "
            f"{config.vision_probe:g}"
        )
    if not config.vision_start_steps:
        return
    if config.lora_rank:
        raise ConfigError(
            "vision_start_steps: expected 0 where lora_rank keeps the weights of the base frozen; "
            f"got {config.vision_start_steps} and rank {config.lora_rank}"
        )
    if config.sharding == "fsdp":
        raise ConfigError(
            "vision_start_steps: expected 0, or sharding ddp; fsdp splits the vision towers among "
            f"the processes; got {config.vision_start_steps}"
        )


def _windows(
    config: FinetuneConfig, readers: list[EpisodeReader]
) -> tuple[ChunkDataset, ChunkDataset | None]:
    """Training and validation frames."""
    kept, held_out = split_episodes(len(readers), config.data.validation_share, config.seed)

    def dataset(numbers: list[int]) -> ChunkDataset:
        return ChunkDataset(
            [readers[number] for number in numbers],
            chunk_len=config.chunk_len,
            cameras=config.data.cameras,
            instruction=config.data.instruction,
            keep_ends=not config.official.drop_episode_ends,
        )

    return dataset(kept), dataset(held_out) if held_out else None


class _Training:
    """One run of the loop."""

    def __init__(
        self,
        config: FinetuneConfig,
        processes: Processes,
        windows: ChunkDataset,
        held_out: ChunkDataset | None,
        statistics: Statistics,
        profile: str,
        *,
        run_dir: Path,
        say: Callable[[str], None],
    ) -> None:
        self.config = config
        self.floored = statistics.floored
        self.processes = processes
        bf16 = config.precision == "bf16" or (
            config.precision == "auto" and processes.device.type == "cuda"
        )
        computed = torch.bfloat16 if bf16 else None
        checkpoint = load_base(
            config,
            statistics.content,
            profile=profile,
            device=processes.device,
            dtype=computed or torch.float32,
        )
        torch.manual_seed(config.seed)  # LoRA's A, the same in all processes
        choose_trained(checkpoint.model, rank=config.lora_rank, dropout=config.lora_dropout)
        if config.gradient_checkpointing:
            recompute_activations(checkpoint.model)
        self.objective = Objective(
            checkpoint.model,
            autocast=computed,
            pads_in_film_average=config.official.pads_in_film_average,
            vision_probe=config.vision_probe,
        ).to(processes.device)
        preparation = Preparation.of(
            checkpoint,
            seed=config.seed,
            augmented=config.data.augment,
            diagonal_crops=config.official.diagonal_crops,
        )
        if config.vision_start_steps:
            self._start_vision(run_dir, windows, held_out, preparation, say)
        if config.freeze_vision:
            freeze_vision(checkpoint.model)
        if config.freeze_film:
            freeze_film(checkpoint.model)
        noise_steps = config.noise_start_steps
        if noise_steps and not (config.resume and saved_checkpoints(run_dir)):
            # All it teaches is in the checkpoints, and every process computes the same.
            start_noise(self.objective, windows, preparation, steps=noise_steps, say=say)
        self.module = spread(self.objective, processes, config.sharding)
        parameters = [p for p in self.objective.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            parameters,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.parameters = parameters
        self.shares = Shares(
            batch_size=config.batch_size,
            accumulate=config.accumulate,
            rank=processes.rank,
            world=processes.world,
        )
        self.trainee = Trainee(
            checkpoint=checkpoint,
            probe=self.objective.probe,
            optimizer=self.optimizer,
            statistics={config.data.name: statistics.content},
            config=config,
            identity={
                "base_dir": config.base_dir,
                "decoding": config.decoding,
                "film": config.film,
                "chunk_len": config.chunk_len,
                "lora_rank": config.lora_rank,
                "vision_probe": config.vision_probe,
                "vision_start_steps": config.vision_start_steps,
                "freeze_vision": config.freeze_vision,
                "freeze_film": config.freeze_film,
                "data.start_share": config.data.start_share,
                "data.start_frames": config.data.start_frames,
                "seed": config.seed,
                "data.name": config.data.name,
                "data.cameras": list(config.data.cameras),
                "training frames": len(windows),
                "samples per step": self.shares.per_step,
                # Only where there was one: trainings that began before it existed go on.
                **({"noise_start_steps": noise_steps} if noise_steps else {}),
            },
        )
        self.samples = TrainingSamples(
            windows,
            preparation,
            start_share=config.data.start_share,
            start_frames=config.data.start_frames,
        )
        self.held_out = (
            None
            if held_out is None
            else ValidationSamples(held_out, preparation, config.validation_frames)
        )

    def _start_vision(
        self,
        run_dir: Path,
        windows: ChunkDataset,
        held_out: ChunkDataset | None,
        preparation: Preparation,
        say: Callable[[str], None],
    ) -> None:
        """Once per run_dir: checkpoints hold only what is trained after it."""
        kept = run_dir / VISION_START_FILE
        if not (self.config.resume and kept.is_file()):
            start_vision(
                self.objective,
                windows,
                held_out,
                preparation,
                steps=self.config.vision_start_steps,
                say=say,
            )
            if self.processes.first:
                part = kept.with_suffix(".part")
                save_file(seen_by(self.objective.model), part)
                part.replace(kept)
            self.processes.wait()
        # Read back by those who computed it too: the same numbers in all processes.
        self.objective.model.load_state_dict(load_file(kept), strict=False)

    def run(self, run_dir: Path, console: Console) -> TrainingResult:
        config = self.config
        first = resume(self.trainee) if config.resume else 0
        schedule = Schedule(
            rate=config.learning_rate,
            warmup_steps=config.warmup_steps,
            decay_steps=config.decay_steps,
            decay_factor=config.decay_factor,
            warmup_cancels_decay=config.official.warmup_cancels_decay,
            restarted_at=first if config.official.resume_restarts else 0,
        )
        saved = saved_checkpoints(run_dir)[-1][1] if first else run_dir
        figures: dict[str, float] = {}
        with ExitStack() as stack:
            report = None
            if self.processes.first:
                report = stack.enter_context(self._report(run_dir, console, first))
            window: dict[str, Tensor] = {}
            batches = iter(self._batches(first))
            for step in range(first + 1, config.max_steps + 1):
                rate = schedule.at(step - 1)
                _accumulate(window, self._step(step, batches, rate))
                if report is not None:
                    report.advance(step)
                if step % config.log_every == 0 or step == config.max_steps:
                    figures = {**self._means(window, step), "learning_rate": rate}
                    window = {}
                    if report is not None:
                        report.figures(step, figures)
                if self.held_out and (
                    step % config.validate_every == 0 or step == config.max_steps
                ):
                    validated = self._validate(step)
                    if report is not None:
                        report.figures(step, validated)
                if step % config.save_every == 0 or step == config.max_steps:
                    saved = save(self.trainee, step, self.processes)
                    if report is not None:
                        report.say(f"saved {saved}")
            if report is not None:
                report.say(f"{max(first, config.max_steps)} steps done; {saved}")
        return TrainingResult(
            step=max(first, config.max_steps), checkpoint_dir=saved, figures=figures
        )

    def _report(self, run_dir: Path, console: Console, first: int) -> TrainingReport:
        report = TrainingReport(
            console,
            run_dir,
            first_step=first,
            max_steps=self.config.max_steps,
            tensorboard=self.config.tensorboard,
        )
        trained = sum(p.numel() for p in self.parameters)
        total = sum(p.numel() for p in self.objective.parameters())
        report.say(
            f"{len(self.samples.windows)} training frames, {len(self.held_out or ())} for "
            f"validation; {trained:,} of {total:,} parameters are trained; "
            f"{self.shares.per_step} samples per step"
            + (f"; goes on after step {first}" if first else "")
        )
        if self.floored:
            report.say(f"hardly moved, range widened: {', '.join(self.floored)}")
        return report

    def _batches(self, first: int) -> Iterator[Batch]:
        shares = replace(self.shares, start=first, stop=self.config.max_steps)
        return iter(loader(self.samples, shares, self.config.data.workers))

    def _step(self, step: int, batches: Iterator[Batch], rate: float) -> dict[str, Tensor]:
        """One update of the weights; returns the sums of this process."""
        config, processes = self.config, self.processes
        device = processes.device
        own = [next(batches).to(device) for _ in range(config.accumulate)]
        counts = torch.tensor(
            float(sum(self.objective.count(batch) for batch in own)), device=device
        )
        count = float(processes.total({"count": counts})["count"])
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # Dropout only: everything else that is random comes with the samples.
        torch.manual_seed(config.seed + step * processes.world + processes.rank)
        sums: dict[str, Tensor] = {}
        for number, batch in enumerate(own, start=1):
            with gradients_later(self.module, number < len(own)):
                losses: Losses = self.module(batch)
                # DDP and FSDP average gradients over processes; the sum over all is wanted.
                (losses.total * (processes.world / count)).backward()  # type: ignore[no-untyped-call]
            loss = torch.stack([losses.total.detach(), counts / len(own)])
            _accumulate(sums, {"loss": loss, **losses.figures})
        if config.max_gradient_norm:
            norm = nn.utils.clip_grad_norm_(self.parameters, config.max_gradient_norm)
            norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
            one = torch.ones((), device=device)
            _accumulate(sums, {"gradient_norm": torch.stack([norm.detach(), one])})
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return sums

    def _means(self, sums: Mapping[str, Tensor], step: int) -> dict[str, float]:
        """Means over all processes.

        Raises:
            DivergedError: if the loss is not finite.
        """
        means = {
            name: float(total[0] / total[1]) if float(total[1]) else 0.0
            for name, total in self.processes.total(sums).items()
        }
        if not math.isfinite(means["loss"]):
            raise DivergedError(
                f"step {step}: the loss is {means['loss']}; lower learning_rate or set "
                "max_gradient_norm, and start again: training goes on from the last checkpoint"
            )
        return means

    @torch.no_grad()
    def _validate(self, step: int) -> dict[str, float]:
        """Means over the held-out frames, the same in all processes."""
        assert self.held_out is not None
        shares = replace(self.shares, accumulate=1)
        shares = replace(shares, stop=math.ceil(len(self.held_out) / shares.per_step))
        sums: dict[str, Tensor] = {}
        self.module.eval()
        for batch in loader(self.held_out, shares, self.config.data.workers):
            placed = batch.to(self.processes.device)
            losses: Losses = self.module(placed)
            count = losses.total.new_tensor(float(self.objective.count(placed)))
            _accumulate(sums, {"loss": torch.stack([losses.total, count]), **losses.figures})
        split_again(self.module)
        self.module.train()
        means = self._means(sums, step)
        return {f"validation_{name}": value for name, value in means.items()}


def _accumulate(sums: dict[str, Tensor], more: Mapping[str, Tensor]) -> None:
    for name, value in more.items():
        sums[name] = sums[name] + value if name in sums else value


def recompute_activations(model: nn.Module) -> None:
    """Lets transformer layers forget their activations and compute them again on the way back."""
    for name, layer in model.named_modules():
        parent, _, leaf = name.rpartition(".")
        if leaf.isdigit() and parent.endswith((".layers", ".blocks")):
            layer.forward = partial(recompute, layer.forward, use_reentrant=False)
