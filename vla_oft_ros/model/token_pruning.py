"""Token pruning from one inference to the next: which pruner an observation gets, and what of the
previous inference still holds.

Sits between `policy` and `pruner`. The previous inference is forgotten on a new episode, a
new instruction, a camera that stands still, and a gap longer than a chunk; the pass that follows
is dense. Knows nothing of robot units or ROS.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vla_oft_ros.model import pruning
from vla_oft_ros.model.inputs import ImagePipeline, PromptTokenizer
from vla_oft_ros.model.pruner import PruningState, SpecPruner, StagedPruner
from vla_oft_ros.model.pruning_plan import PruningPlan
from vla_oft_ros.model.pruning_rivals import RankPruner
from vla_oft_ros.model.tokens import TokenLayout
from vla_oft_ros.types import MotionMode, Observation, RetainedTokens

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class PreviousInference:
    """What one inference left, and for what it holds.

    Attributes:
        state: For the pruner.
        instruction: What was asked.
        image_stamps_ns: Camera name → stamp of the image seen, nanoseconds.
    """

    state: PruningState
    instruction: str
    image_stamps_ns: Mapping[str, int]

    def holds_for(self, observation: Observation, max_gap_ns: int) -> bool:
        """Whether the observation continues it: same words, and every camera has a newer image
        that is not too much newer.
        """
        if observation.instruction != self.instruction:
            return False
        gaps = [
            observation.image_stamps_ns[camera] - stamp_ns
            for camera, stamp_ns in self.image_stamps_ns.items()
        ]
        return all(0 < gap <= max_gap_ns for gap in gaps)


class TokenPruning:
    """Gives each inference its pruner and carries its state to the next.

    Args:
        plan: What to drop where.
        cameras: Camera names in the order of the network.
        grid: (rows, columns) of patches.
        patch_px: Side of a patch in the network's image.
        images: Prepares reference images as the network's own are prepared.
        tokenizer: Finds the instruction in the prompt.
        max_gap_ns: Longest time between two inferences of one episode, nanoseconds.
    """

    def __init__(
        self,
        plan: PruningPlan,
        *,
        cameras: Sequence[str],
        grid: tuple[int, int],
        patch_px: int,
        images: ImagePipeline,
        tokenizer: PromptTokenizer,
        max_gap_ns: int,
    ) -> None:
        self.plan = plan
        self._cameras = tuple(cameras)
        self._grid = grid
        self._patch_px = patch_px
        self._images = images
        self._tokenizer = tokenizer
        self._max_gap_ns = max_gap_ns
        self._generator = torch.Generator().manual_seed(plan.config.seed)
        self._previous: PreviousInference | None = None

    def reset(self) -> None:
        """A new episode: the next pass is dense."""
        self._previous = None

    def pruner(
        self,
        observation: Observation,
        prepared: Sequence[np.ndarray],
        layout: TokenLayout,
        mode: MotionMode,
    ) -> StagedPruner:
        """The pruner of one inference.

        Args:
            observation: What the policy sees.
            prepared: Its images as the network sees them, N × (size, size, 3) uint8 RGB.
            layout: Of this prompt.
            mode: From the action-aware controller.
        """
        text = self._text(observation.instruction, layout)
        if self.plan.config.method != "specprune":
            return RankPruner(self.plan, layout, text, generator=self._generator, mode=mode)
        previous = self._previous
        if previous is not None and not previous.holds_for(observation, self._max_gap_ns):
            self._previous = previous = None
        if previous is None:
            return SpecPruner(self.plan, layout, text, mode=mode)
        return SpecPruner(
            self.plan,
            layout,
            text,
            state=previous.state,
            similarity=self._similarity(observation, prepared),
            mode=mode,
        )

    def finish(self, pruner: StagedPruner, observation: Observation) -> tuple[RetainedTokens, ...]:
        """Keeps what the next inference needs, and says what this one kept of each camera."""
        stamps = {camera: observation.image_stamps_ns[camera] for camera in self._cameras}
        if isinstance(pruner, SpecPruner):
            self._previous = PreviousInference(
                state=pruner.state, instruction=observation.instruction, image_stamps_ns=stamps
            )
        return pruner.retained(self._cameras, stamps, self._grid)

    def _text(self, instruction: str, layout: TokenLayout) -> slice:
        """Positions of the instruction in the sequence; the whole prompt if there is none."""
        span = self._tokenizer.instruction_span(instruction)
        if self.plan.config.text_span == "prompt" or span.start >= span.stop:
            return layout.prompt
        first = layout.prompt.start - 1  # prompt ids count BOS, which stands before the images
        return slice(first + span.start, first + span.stop)

    def _similarity(
        self, observation: Observation, prepared: Sequence[np.ndarray]
    ) -> torch.Tensor | None:
        """(N, P) likeness to the reference images; None if a camera has none."""
        given = observation.reference_images or {}
        references = [given.get(camera) for camera in self._cameras]
        found = [image for image in references if image is not None]
        if len(found) < len(references):
            missing = [
                c for c, image in zip(self._cameras, references, strict=True) if image is None
            ]
            logger.debug("no reference image of %s: this pass is dense", ", ".join(missing))
            return None
        return pruning.patch_similarity(
            torch.from_numpy(np.stack(prepared)),
            torch.from_numpy(np.stack(self._images.prepare(found))),
            self._patch_px,
        )
