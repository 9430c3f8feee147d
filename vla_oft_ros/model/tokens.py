"""Where everything sits in the LLM sequence, and the few token ids that have a meaning.

    [BOS] [camera 0: P] … [camera N-1: P] [proprio] [diffusion timestep] [prompt] [K·A action
    slots] [stop]

Pure arithmetic on sizes; knows nothing of tensors. Everything that slices the sequence asks a
`TokenLayout`.
Source: openvla-oft `modeling_prismatic.py`, `_build_multimodal_attention` and `predict_action`.
"""

from __future__ import annotations

from dataclasses import dataclass

# Ids of the Llama-2 tokenizer as OpenVLA uses it (openvla-oft `prismatic/vla/constants.py`).
BOS_ID = 1
STOP_ID = 2
"""`</s>`, the last token of every sequence."""
EMPTY_ID = 29871
"""A lone "▁": in training the prompt ends in "Out: " before the action characters, so inference
appends this id.
"""
PAD_ID = 32000
"""`<PAD>`, right padding of shorter prompts in a training batch."""
IGNORE_LABEL = -100
"""Label of positions without a loss (torch's cross entropy default)."""


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """Slices of one unpadded sequence; together they partition range(S).

    Attributes:
        cameras: N.
        patches_per_camera: P.
        prompt_len: L, prompt tokens *including* BOS and the closing `EMPTY_ID`.
        chunk_len: K.
        action_dim: A.
        has_proprio: Whether one proprio token follows the patches.
        has_timestep: Whether one diffusion timestep token follows the proprio token.
    """

    cameras: int
    patches_per_camera: int
    prompt_len: int
    chunk_len: int
    action_dim: int
    has_proprio: bool
    has_timestep: bool = False

    @property
    def bos(self) -> slice:
        """The first token."""
        return slice(0, 1)

    def patches(self, camera: int) -> slice:
        """The P patches of one camera, row by row of its grid."""
        if not 0 <= camera < self.cameras:
            raise ValueError(
                f"TokenLayout: expected a camera from 0 to {self.cameras - 1}; got {camera}"
            )
        start = self.bos.stop + camera * self.patches_per_camera
        return slice(start, start + self.patches_per_camera)

    @property
    def vision(self) -> slice:
        """The N·P patches of all cameras."""
        return slice(self.bos.stop, self.bos.stop + self.cameras * self.patches_per_camera)

    @property
    def proprio(self) -> slice:
        """The proprio token; empty without one."""
        return slice(self.vision.stop, self.vision.stop + int(self.has_proprio))

    @property
    def timestep(self) -> slice:
        """The diffusion timestep token; empty without one."""
        return slice(self.proprio.stop, self.proprio.stop + int(self.has_timestep))

    @property
    def prompt(self) -> slice:
        """The prompt after BOS, closing `EMPTY_ID` included."""
        return slice(self.timestep.stop, self.timestep.stop + self.prompt_len - 1)

    @property
    def actions(self) -> slice:
        """The K·A action slots, time-major: slot = k·A + a."""
        return slice(self.prompt.stop, self.prompt.stop + self.chunk_len * self.action_dim)

    @property
    def stop(self) -> slice:
        """The stop token."""
        return slice(self.actions.stop, self.actions.stop + 1)

    @property
    def head(self) -> slice:
        """Positions whose final hidden states feed the action head: one *before* each action slot.

        Note:
            The paper speaks of the hidden states of the action slots. The code aligns them as
            next-token prediction does, from the last prompt token to the second-to-last slot, in
            training and inference alike; we follow the code, pinned by test_reference_parity.
        """
        return slice(self.actions.start - 1, self.actions.stop - 1)

    @property
    def length(self) -> int:
        """S."""
        return self._inserted + self.input_ids_len

    @property
    def _inserted(self) -> int:
        """Tokens that stand between BOS and the rest of the prompt."""
        patches = self.cameras * self.patches_per_camera
        return patches + int(self.has_proprio) + int(self.has_timestep)

    @property
    def input_ids_len(self) -> int:
        """Number of token ids that make up the sequence: prompt, action slots and stop."""
        return self.prompt_len + self.chunk_len * self.action_dim + 1
