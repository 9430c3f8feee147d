"""One network with one observation, and the ways to run it: rows for `rounds.run`.

A row is given either images that are prepared already or camera frames that it prepares itself;
only rows of the same kind may be compared. Prepared, the baseline finds network input on the
device, ours finds uint8 images of the network's size in host memory; both answer on the host. What
every row last answered is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from latency.hf_baseline import HuggingFaceOFT, share_weights
from latency.random_oft import PROMPT_LEN, Work, random_model, random_prompt, work
from latency.rounds import Row
from latency.unchosen import without_choice
from vla_oft_ros.aloha import CAMERAS
from vla_oft_ros.config import PreprocessingConfig, PruningConfig
from vla_oft_ros.model.engine import Engine, Request, make_engine
from vla_oft_ros.model.inputs import ImagePipeline, ModelInputs, sequence_ids
from vla_oft_ros.model.pruning_plan import PruningPlan
from vla_oft_ros.model.savings import Savings
from vla_oft_ros.model.stage_times import StageTimes
from vla_oft_ros.model.vla import ModelConfig, OpenVLAOFT
from vla_oft_ros.normalization import NormStats
from vla_oft_ros.types import MotionMode

FRAME_PX = (480, 640)
WORDS = slice(8, 20)
"""Tokens of the made-up prompt that are the operator's words."""
MOVED_PX = (slice(120, 300), slice(200, 380))
"""What differs between the frames and those before them: about a tenth."""
MEAN_STD = 0.5
"""SigLIP's mean and deviation, here for both towers."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How our network is run in one row.

    Attributes:
        kind: eager, compiled or cuda_graph.
        pruning: None is dense.
        mode: Which budgets.
        fp8: LLM products in e4m3.
        savings: Which exact savings are on.
        images: Whether it prepares the camera frames itself.
        chooses: Whether pruning looks for the tokens that it keeps, and does not take the first.
    """

    kind: str
    pruning: PruningConfig | None = None
    mode: MotionMode = MotionMode.COARSE
    fp8: bool = False
    savings: Savings = field(default_factory=Savings)
    images: bool = False
    chooses: bool = True


class Oft:
    """The network, made on its device, and its observation.

    Args:
        config: Sizes.
        device: Where it runs.
        dtype: Format of its weights.
        model: Takes its weights, rounded to `dtype`; None draws some.
    """

    def __init__(
        self,
        config: ModelConfig,
        device: torch.device,
        dtype: torch.dtype,
        model: OpenVLAOFT | None = None,
    ) -> None:
        self.config, self.device, self.dtype = config, device, dtype
        if model is None:
            self.model = random_model(config, device, dtype)
        else:
            self.model = deepcopy(model).to(dtype)
        self.pipeline = ImagePipeline(
            size_px=config.dino.image_px,
            mean=np.full((2, 3), MEAN_STD, dtype=np.float32),
            std=np.full((2, 3), MEAN_STD, dtype=np.float32),
            options=PreprocessingConfig(),
        )
        nothing = PreprocessingConfig(resize_to_256=False, jpeg_roundtrip=False, center_crop=False)
        self.ready_made = replace(self.pipeline, options=nothing)
        """For images that `pipeline` prepared before."""
        reach = np.ones(config.action_dim)
        self.stats = NormStats(lower=-reach, upper=reach, mask=reach > 0)
        generator = np.random.default_rng(0)
        shape = (config.cameras, *FRAME_PX, 3)
        self.references = list(generator.integers(0, 256, shape, dtype=np.uint8))
        self.frames = [frame.copy() for frame in self.references]
        for frame in self.frames:
            frame[MOVED_PX] = 255 - frame[MOVED_PX]
        self.prepared = self.pipeline.prepare(self.frames)
        self.prepared_references = self.pipeline.prepare(self.references)
        self.proprio = generator.uniform(-1, 1, config.proprio_dim).astype(np.float32)
        self.prompt = random_prompt(PROMPT_LEN)
        self.layout = config.layout(PROMPT_LEN)
        self.answers: dict[str, np.ndarray] = {}
        """Row → (K, A) normalised actions that it answered last."""
        self.lengths: dict[str, list[int]] = {}
        """Row → tokens in each layer of the LLM."""

    def inputs(self, dtype: torch.dtype | None = None) -> ModelInputs:
        """The observation as network input, on the device, in the network's format or another."""
        pixels = self.pipeline.to_device(self.frames, self.device)[None]
        slots = self.config.chunk_len * self.config.action_dim
        return ModelInputs(
            pixel_values=pixels,
            input_ids=sequence_ids([self.prompt], slots),
            prompt_lens=(PROMPT_LEN,),
            proprio=torch.from_numpy(self.proprio)[None],
        ).to(self.device, dtype or self.dtype)

    def reference(self) -> np.ndarray:
        """(K, A) normalised actions of the baseline in a wider format than the rows'."""
        dtype = torch.float64 if self.dtype is torch.float32 else torch.float32
        network = share_weights(self.model, dtype=dtype)
        inputs = self.inputs(dtype)
        actions = network(inputs.pixel_values, inputs.input_ids, inputs.proprio)
        return actions[0].double().cpu().numpy()

    def baseline(
        self,
        name: str,
        *,
        bases: tuple[str, ...],
        attention: str = "no mask",
        images: bool = False,
        compiled: str = "",
        why_not: str = "",
    ) -> Row:
        """The Hugging Face network.

        Args:
            name: Of the row.
            bases: See `Row.bases`.
            attention: See `hf_baseline.ATTENTIONS`.
            images: Whether it prepares the frames itself, on the host as the official code does.
            compiled: Mode of torch.compile; empty is without.
            why_not: Why it cannot run here.
        """

        def prepare() -> Callable[[], object]:
            network = share_weights(self.model, attention)
            if compiled:
                compile_parts(network, compiled)
            inputs = self.inputs()
            self.lengths[name] = [self.layout.length] * self.config.llm.layers

            def call() -> None:
                pixels = inputs.pixel_values
                if images:
                    prepared = self.pipeline.pixel_values(self.pipeline.prepare(self.frames))
                    pixels = torch.from_numpy(prepared)[None].to(self.device, self.dtype)
                if compiled:
                    torch.compiler.cudagraph_mark_step_begin()
                actions = network(pixels, inputs.input_ids, inputs.proprio)
                self.answers[name] = actions[0].double().cpu().numpy()

            return call

        return Row(name=name, prepare=prepare, bases=bases, why_not=why_not)

    def plain(self, name: str, *, bases: tuple[str, ...]) -> Row:
        """Our model's own forward, which the engine is held to."""

        def prepare() -> Callable[[], object]:
            inputs = self.inputs()
            self.lengths[name] = [self.layout.length] * self.config.llm.layers

            def call() -> None:
                self.answers[name] = self.model(inputs).actions[0].double().cpu().numpy()

            return call

        return Row(name=name, prepare=prepare, bases=bases)

    def ours(
        self, name: str, setting: Setting, *, bases: tuple[str, ...], why_not: str = ""
    ) -> Row:
        """Our network by the engine; `why_not` if it cannot run here."""

        def prepare() -> Callable[[], object]:
            engine = self.engine(setting)
            request = self.request(engine, setting)

            def call() -> None:
                self.answers[name] = engine.run(request).normalized

            answer = engine.run(request)
            if engine.report.fallbacks:
                raise RuntimeError("; ".join(engine.report.fallbacks))
            retained = answer.retained(CAMERAS, dict.fromkeys(CAMERAS, 0), self.grid)
            kept: dict[int, int] = {}
            for tokens in retained:
                kept[tokens.layer] = kept.get(tokens.layer, 0) + len(tokens.patch_indices)
            self.lengths[name] = self._lengths(kept)
            return call

        return Row(name=name, prepare=prepare, bases=bases, why_not=why_not)

    def engine(self, setting: Setting, times: StageTimes | None = None) -> Engine:
        """An engine over the one network."""
        config = self.config
        plan = setting.pruning and PruningPlan.resolve(
            setting.pruning,
            cameras=config.cameras,
            patches=config.dino.patches,
            depth=config.llm.layers,
        )
        engine = make_engine(
            self.model,
            images=self.pipeline if setting.images else self.ready_made,
            action_stats=self.stats,
            plan=plan,
            kind=setting.kind,
            fp8=setting.fp8,
            fp8_tolerance=math.inf,  # random weights: the error is a row of the report
            savings=setting.savings,
            stage_times=times,
        )
        if plan is not None and not setting.chooses:
            without_choice(engine, plan, setting.mode)
        return engine

    def request(self, engine: Engine, setting: Setting) -> Request:
        """The observation; with what an inference before it left, where tokens are pruned."""
        first = Request(
            instruction=engine.instruction(self.prompt, WORDS),
            images=self.frames if setting.images else self.prepared,
            proprio=self.proprio,
            mode=setting.mode,
        )
        if setting.pruning is None or not setting.chooses:
            return first
        references = self.references if setting.images else self.prepared_references
        return replace(first, references=references, state=engine.run(first).state)

    def stages(self, setting: Setting, calls: int) -> dict[str, float]:
        """Stage → median milliseconds over some calls, of an engine of its own."""
        times = StageTimes(self.device)
        engine = self.engine(setting, times)
        request = self.request(engine, setting)
        found: dict[str, list[float]] = {}
        for count in range(calls + 2):
            engine.run(request)
            if count < 2:
                continue
            for stage, milliseconds in times.milliseconds().items():
                found.setdefault(stage, []).append(milliseconds)
        return {stage: float(np.median(values)) for stage, values in found.items()}

    def work(self, name: str) -> Work:
        """What the row's inference cannot do without."""
        bytes_per_weight = torch.empty(0, dtype=self.dtype).element_size()
        return work(self.config, self.lengths[name], bytes_per_weight)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        return (self.config.dino.grid,) * 2

    def _lengths(self, kept: dict[int, int]) -> list[int]:
        """Tokens in each layer, from the visual tokens kept after some; layer 0 is dense."""
        visual = self.config.cameras * self.config.dino.patches
        others = self.layout.length - visual
        lengths = []
        for layer in range(self.config.llm.layers):
            visual = kept.get(layer, visual)
            lengths.append(others + visual)
        return lengths


def compile_parts(network: HuggingFaceOFT, mode: str) -> None:
    """torch.compile on every part: the towers are then compiled once, not once per camera."""
    towers = list(network.vision_backbone.values())
    llm = network.language_model["model"]
    for part in (*towers, network.projector, llm, network.action_head["model"]):
        part.compile(mode=mode, dynamic=False)


def relative_error(answer: np.ndarray, reference: np.ndarray) -> float:
    """Norm of the difference over norm of the reference."""
    return float(np.linalg.norm(answer - reference) / np.linalg.norm(reference))
