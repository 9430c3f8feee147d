"""One whole pass, from camera frames to actions in robot units, as a function of tensors.

Nothing in it depends on the values of its inputs but the result: with a fixed `PassShape` the same
operations run on the same shapes, which is what lets a CUDA graph capture it. How it is run is
`engine`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from vla_oft_ros.model import image_ops_torch, pruning
from vla_oft_ros.model.action_head import HeadKind
from vla_oft_ros.model.engine_llm import Decoder, Regions
from vla_oft_ros.model.engine_vision import RunBlock, Towers
from vla_oft_ros.model.engine_wide import actions_of, value_token, wide
from vla_oft_ros.model.film import Modulation
from vla_oft_ros.model.inputs import ImagePipeline, ModelInputs
from vla_oft_ros.model.llm import Rotary
from vla_oft_ros.model.pruner import PruningState, SpecPruner, Stage, StagedPruner
from vla_oft_ros.model.pruning_plan import PruningPlan
from vla_oft_ros.model.pruning_rivals import RankPruner
from vla_oft_ros.model.savings import Savings
from vla_oft_ros.model.stage_times import StageTimes
from vla_oft_ros.model.tokens import TokenLayout
from vla_oft_ros.model.vla import Modulations, OpenVLAOFT
from vla_oft_ros.normalization import EPSILON, NormStats
from vla_oft_ros.types import MotionMode

CHANNELS = 3
TOWERS = 2


class Variant(str, Enum):
    """What pruning does in a pass."""

    DENSE = "dense"
    """Nothing: no token is dropped or scored."""
    COLD = "cold"
    """The first pass of an episode: SpecPrune only looks, a rival prunes."""
    WARM = "warm"
    """SpecPrune goes by the pass before."""


@dataclass(frozen=True, kw_only=True)
class PassShape:
    """All that decides which operations a pass consists of.

    Attributes:
        layout: Where the tokens are; the length of the prompt is in it.
        text: First position of the instruction in the sequence, and the one after its last.
        variant: What pruning does.
        mode: Which budgets; FINE where it makes no difference.
        frames: (height, width) of each camera's images, pixels; empty if they come prepared.
    """

    layout: TokenLayout
    text: tuple[int, int]
    variant: Variant
    mode: MotionMode
    frames: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class PassInputs:
    """Everything that a pass reads besides weights.

    Attributes:
        images: Per camera (H, W, 3) uint8; or one tensor (N, size, size, 3) prepared on the host.
        references: The frames some ticks ago, alike; only of warm passes.
        proprio: (1, A) wide, normalised; None for checkpoints without a proprio projector.
        noise: (1, K, A) start of a diffusion run; None for other heads.
        prompt: (1, L + 1, D) embeddings of prompt and stop token.
        input_ids: (1, ids) int64.
        modulations: FiLM of the instruction; None computes it or there is none.
        state: What the pass before left; only of warm passes.
    """

    images: tuple[Tensor, ...]
    references: tuple[Tensor, ...] | None
    proprio: Tensor | None
    noise: Tensor | None
    prompt: Tensor
    input_ids: Tensor
    modulations: Modulations | None
    state: PruningState | None

    def of_observation(self) -> Iterator[Tensor]:
        """Tensors that differ from pass to pass, always in the same order."""
        yield from self.images
        yield from self.references or ()
        if self.proprio is not None:
            yield self.proprio
        if self.noise is not None:
            yield self.noise
        if self.state is not None:
            yield self.state.global_patches
            yield self.state.entropies

    def of_instruction(self) -> Iterator[Tensor]:
        """Tensors that stay as long as the instruction does, always in the same order."""
        yield self.prompt
        yield self.input_ids
        for tower in self.modulations or ():
            for modulation in tower:
                yield from modulation

    def map(self, function: Callable[[Tensor], Tensor]) -> PassInputs:
        """The same with every tensor replaced by what a function makes of it."""

        def maybe(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else function(tensor)

        state = self.state
        return PassInputs(
            images=tuple(map(function, self.images)),
            references=None if self.references is None else tuple(map(function, self.references)),
            proprio=maybe(self.proprio),
            noise=maybe(self.noise),
            prompt=function(self.prompt),
            input_ids=function(self.input_ids),
            modulations=None
            if self.modulations is None
            else tuple(
                tuple(Modulation(*map(function, pair)) for pair in tower)
                for tower in self.modulations
            ),
            state=None
            if state is None
            else PruningState(
                global_patches=function(state.global_patches), entropies=function(state.entropies)
            ),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class PassOutput:
    """What a pass answers, on its device.

    Attributes:
        normalized: (K, A) float64, nominally in [-1, 1].
        actions: (K, A) float64 in robot units.
        stages: What pruning left after each stage; empty for a dense pass.
        reasons: (N, P) uint8 `KeptBy` flags; None for a dense pass.
        state: For the next pass; None unless SpecPrune looked.
    """

    normalized: Tensor
    actions: Tensor
    stages: tuple[Stage, ...]
    reasons: Tensor | None
    state: PruningState | None


class Network:
    """The pass: `network(shape, inputs) → PassOutput`.

    Args:
        model: The weights.
        images: How frames become network input.
        action_stats: Bounds of the actions; None leaves them normalised.
        plan: Which tokens to drop; None for none.
        savings: What not to do.
        regions: How the LLM's arithmetic runs.
        run: How a vision block runs.
        fp8: LLM products in e4m3.
        diffusion_steps: DDIM steps of a diffusion checkpoint.
        times: Marks between stages.
    """

    def __init__(
        self,
        model: OpenVLAOFT,
        *,
        images: ImagePipeline,
        action_stats: NormStats | None,
        plan: PruningPlan | None,
        savings: Savings,
        regions: Regions,
        run: RunBlock,
        fp8: bool = False,
        diffusion_steps: int = 50,
        times: StageTimes | None = None,
    ) -> None:
        parameter = next(model.parameters())
        self.model = model
        self.images = images
        self.plan = plan
        self.device, self.dtype = parameter.device, parameter.dtype
        self.wide = torch.promote_types(self.dtype, torch.float32)
        self.fp8 = fp8
        self._savings = savings
        self._times = times
        self._diffusion_steps = diffusion_steps
        self._generator = torch.Generator().manual_seed(plan.config.seed if plan else 0)
        self._towers = Towers(model.vision_backbone, savings, run, parameter.device)
        self._decoder = Decoder(model.language_model, savings, regions, fp8=fp8)
        self._rotary: dict[int, Rotary] = {}
        self._bounds: tuple[Tensor, Tensor, Tensor] | None = None
        if action_stats is not None:
            span = action_stats.upper - action_stats.lower + EPSILON
            parts = (action_stats.mask, span, action_stats.lower)
            mask, scale, lower = (torch.tensor(p, device=parameter.device) for p in parts)
            self._bounds = (mask, scale, lower)

    def __call__(self, shape: PassShape, inputs: PassInputs) -> PassOutput:
        """Runs it all; in inference mode."""
        if self._times is not None:
            self._times.start()
        frames = self._frames(shape, inputs.images)
        pixels = image_ops_torch.normalize_pixels(frames, self.images.mean, self.images.std)
        pixels = pixels.to(self.dtype)  # (N·6, H, W)
        similarity: Tensor | None = None
        if inputs.references is not None:
            past = self._frames(shape, inputs.references)
            similarity = pruning.patch_similarity(frames, past, self.model.config.dino.patch_px)
        self._end("preprocess")
        pruner = self._pruner(shape, inputs.state, similarity)
        if self.model.config.head in (HeadKind.L1, HeadKind.DISCRETE):
            normalized = self._parallel(shape, inputs, pixels, pruner)
        else:
            normalized = self._stepwise(shape, inputs, pixels, pruner)
        self._end("head")
        normalized = normalized[0].double()  # (K, A)
        output = PassOutput(
            normalized=normalized,
            actions=self._unnormalize(normalized),
            stages=() if pruner is None else tuple(pruner.stages),
            reasons=None if pruner is None else pruner.reasons,
            state=pruner.state if isinstance(pruner, SpecPruner) else None,
        )
        self._end("unnormalize")
        return output

    def _frames(self, shape: PassShape, images: tuple[Tensor, ...]) -> Tensor:
        """(N, size, size, 3) uint8, what the network sees."""
        return self.images.prepare_on_device(images) if shape.frames else images[0]

    def _parallel(
        self, shape: PassShape, inputs: PassInputs, pixels: Tensor, pruner: StagedPruner | None
    ) -> Tensor:
        """All actions at once, from the rows before blank slots: (1, K, A)."""
        model, layout = self.model, shape.layout
        modulations = inputs.modulations
        if modulations is None:
            modulations = model.film(_instruction_only(inputs, layout))
        views = rearrange(
            pixels, "(n tower c) h w -> tower n c h w", tower=TOWERS, c=CHANNELS
        )  # (2, N, 3, H, W)
        features = self._towers(views, modulations, self._times)
        patches = model.projector(features.to(self.dtype))  # (1, N·P, D)
        self._end("projector")
        parts = [inputs.prompt[:, :1], patches]
        if model.proprio_projector is not None and inputs.proprio is not None:
            parts.append(value_token(model.proprio_projector, inputs.proprio)[:, None])
        prefix = torch.cat([*map(wide, parts), wide(inputs.prompt[:, 1:-1])], dim=1)
        rotary = self.rotary(layout.length)
        self._end("embed")
        hidden = self._decoder(
            prefix, wide(inputs.prompt[:, -1:]), layout, rotary, pruner=pruner, times=self._times
        )  # (1, K·A, D)
        if model.action_head is not None:
            return actions_of(model.action_head, hidden).float()
        token_ids = model.language_model.lm_head(hidden.to(self.dtype)).argmax(dim=-1)  # (1, K·A)
        return model.bins.decode(token_ids).reshape(1, layout.chunk_len, layout.action_dim)

    def _stepwise(
        self, shape: PassShape, inputs: PassInputs, pixels: Tensor, pruner: StagedPruner | None
    ) -> Tensor:
        """Diffusion and token by token: the model's own forward, many passes of the LLM."""
        layout = shape.layout
        model_inputs = ModelInputs(
            pixel_values=pixels[None],
            input_ids=inputs.input_ids,
            prompt_lens=(layout.prompt_len,),
            proprio=None if inputs.proprio is None else inputs.proprio.to(self.dtype),
        )
        output = self.model(
            model_inputs,
            pruner=pruner,
            modulations=inputs.modulations,
            noise=inputs.noise,
            diffusion_steps=self._diffusion_steps,
        )
        actions: Tensor = output.actions
        return actions

    def rotary(self, length: int) -> Rotary:
        """Rotary tables of a sequence, kept."""
        if length not in self._rotary:
            self._rotary[length] = self._decoder.rotary(length, self.device, self.dtype)
        return self._rotary[length]

    def _pruner(
        self, shape: PassShape, state: PruningState | None, similarity: Tensor | None
    ) -> StagedPruner | None:
        if self.plan is None or shape.variant is Variant.DENSE:
            return None
        plan, text = self.plan.for_length(shape.layout.length), slice(*shape.text)
        if plan.config.method != "specprune":
            return RankPruner(plan, shape.layout, text, generator=self._generator, mode=shape.mode)
        return SpecPruner(
            plan, shape.layout, text, state=state, similarity=similarity, mode=shape.mode
        )

    def _unnormalize(self, normalized: Tensor) -> Tensor:
        """`normalization.unnormalize` on the device: (K, A) float64 → the same."""
        if self._bounds is None:
            return normalized
        mask, scale, lower = self._bounds
        return torch.where(mask, 0.5 * (normalized + 1.0) * scale + lower, normalized)

    def _end(self, stage: str) -> None:
        if self._times is not None:
            self._times.end(stage)


def _instruction_only(inputs: PassInputs, layout: TokenLayout) -> ModelInputs:
    """What FiLM reads."""
    return ModelInputs(
        pixel_values=inputs.images[0],
        input_ids=inputs.input_ids,
        prompt_lens=(layout.prompt_len,),
        proprio=None,
    )


def host_tensors(arrays: Sequence[np.ndarray]) -> tuple[Tensor, ...]:
    """Arrays as tensors that share their memory, where torch may."""
    return tuple(
        torch.from_numpy(a if a.flags.writeable and a.flags.c_contiguous else a.copy())
        for a in arrays
    )
