"""Token pruning from one inference to the next: what of the previous inference still holds.

Sits between `policy` and the engine. The previous inference is forgotten on a new episode, a
new instruction, a camera that stands still, and a gap longer than two chunks; the pass that
follows is dense. Knows nothing of robot units or ROS.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vla_oft_ros.model.inputs import PromptTokenizer
from vla_oft_ros.model.pruner import PruningState
from vla_oft_ros.model.pruning_plan import PruningPlan
from vla_oft_ros.types import Observation

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class PreviousInference:
    """What one inference left, and for what it holds.

    Attributes:
        state: For the pruner; None of a rival, which needs none.
        instruction: What was asked.
        image_stamps_ns: Camera name → stamp of the image seen, nanoseconds.
    """

    state: PruningState | None
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


@dataclass(frozen=True, kw_only=True, eq=False)
class BeforePass:
    """What an inference may go by.

    Attributes:
        state: That the inference before left. SpecPrune's pass is dense without.
        references: Images of all cameras some ticks ago. SpecPrune's pass is dense without.
        dense: Whether nothing is pruned, whatever the method.
    """

    state: PruningState | None = None
    references: Sequence[np.ndarray] | None = None
    dense: bool = False


class TokenPruning:
    """Says what each inference goes by and carries its state to the next.

    Args:
        plan: What to drop where.
        cameras: Camera names in the order of the network.
        tokenizer: Finds the instruction in the prompt.
        max_gap_ns: Longest time between two inferences of one episode, nanoseconds.
    """

    def __init__(
        self,
        plan: PruningPlan,
        *,
        cameras: Sequence[str],
        tokenizer: PromptTokenizer,
        max_gap_ns: int,
    ) -> None:
        self.plan = plan
        self._cameras = tuple(cameras)
        self._tokenizer = tokenizer
        self._max_gap_ns = max_gap_ns
        self._previous: PreviousInference | None = None

    def reset(self) -> None:
        """A new episode: the next pass is dense."""
        self._previous = None

    def before(self, observation: Observation) -> BeforePass:
        """What an inference may go by."""
        previous = self._previous
        if previous is not None and not previous.holds_for(observation, self._max_gap_ns):
            self._previous = previous = None
        given = observation.reference_images or {}
        found = (given.get(camera) for camera in self._cameras)
        references = [image for image in found if image is not None]
        whole = len(references) == len(self._cameras)
        if previous is not None and previous.state is not None and not whole:
            logger.debug("a camera has no reference image: this pass is dense")
        config = self.plan.config
        return BeforePass(
            state=None if previous is None else previous.state,
            references=references if whole else None,
            dense=config.method != "specprune" and config.rivals_start_dense and previous is None,
        )

    def after(self, state: PruningState | None, observation: Observation) -> None:
        """Keeps what an inference left to the next one."""
        if state is None and self.plan.config.method == "specprune":
            return
        stamps = {camera: observation.image_stamps_ns[camera] for camera in self._cameras}
        self._previous = PreviousInference(
            state=state, instruction=observation.instruction, image_stamps_ns=stamps
        )

    def text(self, instruction: str) -> slice:
        """Which prompt ids count as the instruction; an empty slice is the whole prompt."""
        if self.plan.config.text_span == "prompt":
            return slice(0, 0)
        return self._tokenizer.instruction_span(instruction)
