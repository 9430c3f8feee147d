"""OpenVLA-OFT+: observation → action chunk in one forward pass. Read `forward` beside the figure
of the paper.

    images ─ vision (DINOv2 + SigLIP, FiLM by the instruction) ─ projector ─┐ proprio ─ projector
    ────────────────────────────────────────────────────┤ instruction ─ embeddings
    ───────────────────────────────────────────────┼─ Llama (bidirectional) ─ action head K·A empty
    action slots ─────────────────────────────────────────────────┘

Sizes come from `ModelConfig`, which `checkpoint` reads from the files. Source: arXiv 2502.19645,
openvla-oft.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from vla_oft_ros.model.action_head import (
    ActionBins,
    DdimSchedule,
    HeadKind,
    RegressionHead,
    timestep_embedding,
)
from vla_oft_ros.model.film import Modulation, mean_language_embedding
from vla_oft_ros.model.inputs import ModelInputs
from vla_oft_ros.model.llm import KeyValueCache, Llama, LlamaConfig, TokenPruner, causal_mask
from vla_oft_ros.model.projector import PatchProjector, ValueProjector
from vla_oft_ros.model.tokens import TokenLayout
from vla_oft_ros.model.vision import TowerConfig, VisionBackbone


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Every size of one checkpoint.

    Attributes:
        dino: First tower.
        siglip: Second tower.
        llm: Language model.
        projector_hidden: Hidden width of the patch projector.
        head: How actions are decoded.
        head_hidden: Width inside the L1 or diffusion head; 0 for the others.
        head_blocks: Residual blocks of that head; 0 for the others.
        cameras: N.
        chunk_len: K.
        action_dim: A.
        proprio_dim: Numbers in the proprio vector; 0 without a proprio projector.
        vocab_end: Size of the tokenizer's vocabulary without padding rows; action ids end here.
        action_bins: Edges of the discrete action bins.
    """

    dino: TowerConfig
    siglip: TowerConfig
    llm: LlamaConfig
    projector_hidden: int
    head: HeadKind
    head_hidden: int
    head_blocks: int
    cameras: int
    chunk_len: int
    action_dim: int
    proprio_dim: int
    vocab_end: int
    action_bins: int

    @property
    def film(self) -> bool:
        """Whether the instruction modulates the vision towers."""
        return self.dino.film_width > 0

    def layout(self, prompt_len: int) -> TokenLayout:
        """Where everything sits for a prompt of this many tokens."""
        return TokenLayout(
            cameras=self.cameras,
            patches_per_camera=self.dino.patches,
            prompt_len=prompt_len,
            chunk_len=self.chunk_len,
            action_dim=self.action_dim,
            has_proprio=self.proprio_dim > 0,
            has_timestep=self.head is HeadKind.DIFFUSION,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Context:
    """Everything of the LLM input that does not depend on the actions; computed once per
    observation.

    Attributes:
        layouts: One per row.
        patches: (B, N·P, D).
        proprio: (B, 0 or 1, D).
        prompt: (B, ids, D) embeddings of all token ids, action slots blank.
    """

    layouts: tuple[TokenLayout, ...]
    patches: Tensor
    proprio: Tensor
    prompt: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class VLAOutput:
    """What the network answers.

    Attributes:
        actions: (B, K, A) float32 normalised, nominally in [-1, 1].
        action_hidden: (B, K·A, D) hidden states that the head read (last step of a diffusion run).
        positions: (S',) int64 original positions of the tokens that reached the last layer; all S
            without a pruner.
        token_ids: (B, K·A) int64 chosen action tokens of discrete decoding, else None.
    """

    actions: Tensor
    action_hidden: Tensor
    positions: Tensor
    token_ids: Tensor | None = None


Modulations = tuple[tuple[Modulation, ...], ...]


class OpenVLAOFT(nn.Module):
    """The policy network; `checkpoint.load_checkpoint` makes one from a directory."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.llm.width
        self.config = config
        self.bins = ActionBins(config.action_bins, config.vocab_end)
        self.vision_backbone = VisionBackbone(config.dino, config.siglip)
        self.projector = PatchProjector(
            config.dino.width + config.siglip.width, config.projector_hidden, width
        )
        self.language_model = Llama(config.llm)
        self.proprio_projector = (
            ValueProjector(config.proprio_dim, width) if config.proprio_dim else None
        )
        has_head = config.head in (HeadKind.L1, HeadKind.DIFFUSION)
        self.action_head = (
            RegressionHead(width, config.head_hidden, config.action_dim, config.head_blocks)
            if has_head
            else None
        )
        self.noisy_action_projector = (
            ValueProjector(1, width) if config.head is HeadKind.DIFFUSION else None
        )

    def forward(
        self,
        inputs: ModelInputs,
        *,
        pruner: TokenPruner | None = None,
        modulations: Modulations | None = None,
        noise: Tensor | None = None,
        diffusion_steps: int = 50,
    ) -> VLAOutput:
        """Predicts one action chunk per row.

        Args:
            inputs: Batch; more than one row may be padded on the right.
            pruner: Drops visual tokens between LLM layers; single rows only.
            modulations: FiLM of this instruction from `film`, to save computing it again.
            noise: (B, K, A) start of a diffusion run; drawn from torch's generator if absent.
            diffusion_steps: DDIM steps; only the diffusion head reads it.

        Raises:
            ValueError: if the inputs do not fit the configuration.
        """
        self.check(inputs)
        if self.config.head is HeadKind.AUTOREGRESSIVE:
            return self.generate(inputs)
        context = self.embed(inputs, modulations)
        if self.config.head is HeadKind.DIFFUSION:
            return self.denoise(context, noise, diffusion_steps, pruner)
        hidden, positions = self.action_hidden(context, pruner=pruner)
        if self.action_head is not None:
            actions = self.action_head(hidden).float()
            return VLAOutput(actions=actions, action_hidden=hidden, positions=positions)
        token_ids = self.language_model.lm_head(hidden).argmax(dim=-1)  # (B, K·A)
        return VLAOutput(
            actions=self._decode_bins(token_ids),
            action_hidden=hidden,
            positions=positions,
            token_ids=token_ids,
        )

    def check(self, inputs: ModelInputs) -> None:
        """Refuses inputs that do not fit the configuration.

        Raises:
            ValueError: saying what was expected and what came.
        """
        config = self.config
        side = config.dino.image_px
        expected = (6 * config.cameras, side, side)
        if tuple(inputs.pixel_values.shape[1:]) != expected:
            raise ValueError(
                f"pixel_values: expected (B, {', '.join(map(str, expected))}) for "
                f"{config.cameras} cameras; got {tuple(inputs.pixel_values.shape)}"
            )
        if (inputs.proprio is None) != (config.proprio_dim == 0):
            raise ValueError(
                f"proprio: expected {config.proprio_dim or 'no'} numbers; "
                f"got {'none' if inputs.proprio is None else inputs.proprio.shape[-1]}"
            )
        longest = max(config.layout(length).input_ids_len for length in inputs.prompt_lens)
        if inputs.input_ids.shape != (len(inputs.prompt_lens), longest):
            raise ValueError(
                f"input_ids: expected ({len(inputs.prompt_lens)}, {longest}) for prompts of "
                f"{inputs.prompt_lens} tokens and {config.chunk_len}x{config.action_dim} "
                f"actions; got {tuple(inputs.input_ids.shape)}"
            )

    def film(self, inputs: ModelInputs) -> Modulations | None:
        """FiLM of every vision block for the instructions in `inputs`; None for checkpoints
        without FiLM.
        """
        if not self.config.film:
            return None
        layouts = [self.config.layout(length) for length in inputs.prompt_lens]
        embeddings = self.language_model.model.embed_tokens(inputs.input_ids)  # (B, ids, D)
        language = mean_language_embedding(embeddings, _is_action(layouts, inputs.input_ids))
        return self.vision_backbone.modulations(language)

    def embed(self, inputs: ModelInputs, modulations: Modulations | None = None) -> Context:
        """Turns images, proprio and instruction into LLM embeddings."""
        if modulations is None:
            modulations = self.film(inputs)
        patches = self.projector(self.vision_backbone(inputs.pixel_values, modulations))
        layouts = [self.config.layout(length) for length in inputs.prompt_lens]
        return self.context(inputs, patches, layouts)

    def context(
        self, inputs: ModelInputs, patches: Tensor, layouts: Sequence[TokenLayout]
    ) -> Context:
        """Puts proprio and instruction beside (B, N·P, D) patch tokens."""
        prompt = self.language_model.model.embed_tokens(inputs.input_ids)  # (B, ids, D)
        # Action slots are literally zero; only their positions tell them apart.
        prompt = prompt * ~_is_action(layouts, inputs.input_ids)[..., None]
        proprio = patches[:, :0]  # (B, 0, D)
        if self.proprio_projector is not None and inputs.proprio is not None:
            proprio = self.proprio_projector(inputs.proprio)[:, None]  # (B, 1, D)
        return Context(layouts=tuple(layouts), patches=patches, proprio=proprio, prompt=prompt)

    def action_hidden(
        self,
        context: Context,
        *,
        slots: Tensor | None = None,
        timestep: Tensor | None = None,
        pruner: TokenPruner | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Runs the LLM and reads the hidden states that precede the action slots.

        Args:
            context: From `embed`.
            slots: (B, K·A, D) embeddings for the action slots; None leaves them blank.
            timestep: (B, 1, D) diffusion timestep token.
            pruner: Drops visual tokens between layers.

        Returns:
            (B, K·A, D) hidden states and the (S',) original positions of the tokens that got
            there.
        """
        prompt = context.prompt
        if slots is not None:
            starts = [layout.prompt_len for layout in context.layouts]
            prompt = torch.stack(
                [
                    torch.cat([row[:start], slot, row[start + len(slot) :]])
                    for row, slot, start in zip(prompt, slots, starts, strict=True)
                ]
            )
        extra = [] if timestep is None else [timestep.to(prompt.dtype)]
        embeddings = torch.cat(
            [prompt[:, :1], context.patches, context.proprio, *extra, prompt[:, 1:]], dim=1
        )  # (B, S, D)
        lengths = [layout.length for layout in context.layouts]
        hidden, positions = self.language_model.model(
            embeddings, mask=_padding_mask(lengths, embeddings), pruner=pruner
        )
        # Counted from the end: a pruner drops visual tokens only, and these come before every head
        # position.
        dropped = embeddings.shape[1] - hidden.shape[1]
        rows = [
            row[layout.head.start - dropped : layout.head.stop - dropped]
            for row, layout in zip(hidden, context.layouts, strict=True)
        ]
        return torch.stack(rows), positions  # (B, K·A, D)

    def denoise(
        self,
        context: Context,
        noise: Tensor | None,
        steps: int,
        pruner: TokenPruner | None = None,
    ) -> VLAOutput:
        """Diffusion: DDIM from noise to actions; images and prompt are embedded once for all
        steps.
        """
        batch, device = len(context.prompt), context.prompt.device
        shape = (batch, self.config.chunk_len, self.config.action_dim)
        start = torch.randn(shape, device=device) if noise is None else noise.float()
        last: list[tuple[Tensor, Tensor]] = []

        def predict(sample: Tensor, timesteps: Tensor) -> Tensor:
            last[:] = [self.noisy_hidden(context, sample, timesteps, pruner)]
            return self._head(last[0][0])

        actions = DdimSchedule(device).sample(start, steps, predict)
        hidden, positions = last[0]
        return VLAOutput(actions=actions, action_hidden=hidden, positions=positions)

    def noisy_hidden(
        self,
        context: Context,
        sample: Tensor,
        timesteps: Tensor,
        pruner: TokenPruner | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Hidden states for noisy actions (B, K, A) at noise levels (B,); see `action_hidden`."""
        if self.noisy_action_projector is None:
            raise RuntimeError("noisy_hidden: expected a diffusion checkpoint")
        numbers = rearrange(sample, "b k a -> b (k a) 1").to(context.prompt.dtype)
        slots = self.noisy_action_projector(numbers)  # (B, K·A, D)
        timestep = timestep_embedding(timesteps, self.config.llm.width)[:, None]  # (B, 1, D)
        return self.action_hidden(context, slots=slots, timestep=timestep, pruner=pruner)

    def generate(self, inputs: ModelInputs) -> VLAOutput:
        """Autoregressive OpenVLA, the baseline of Table II: causal, greedy, one token after the
        other.

        Raises:
            ValueError: for more than one row.
        """
        if len(inputs.input_ids) != 1:
            raise ValueError(
                f"autoregressive decoding: expected one row; got {len(inputs.input_ids)}"
            )
        llm = self.language_model.model
        context = self.embed(inputs)
        layout = context.layouts[0]
        prompt = context.prompt[:, : layout.prompt_len]
        embeddings = torch.cat(
            [prompt[:, :1], context.patches, context.proprio, prompt[:, 1:]], dim=1
        )  # (1, S without actions and stop, D)
        cache = KeyValueCache(self.config.llm.layers)
        length = embeddings.shape[1]
        mask: Tensor | None = causal_mask(length, length, embeddings.device)
        states, ids = [], []
        for _ in range(layout.chunk_len * layout.action_dim):
            hidden = llm(embeddings, mask=mask, cache=cache).hidden[:, -1:]  # (1, 1, D)
            token = self.language_model.lm_head(hidden).argmax(dim=-1)  # (1, 1)
            states.append(hidden)
            ids.append(token)
            # One new token may look at everything before it: no mask needed.
            embeddings, mask = llm.embed_tokens(token), None
        token_ids = torch.cat(ids, dim=1)  # (1, K·A)
        return VLAOutput(
            actions=self._decode_bins(token_ids),
            action_hidden=torch.cat(states, dim=1),
            positions=torch.arange(cache.length, device=token_ids.device),
            token_ids=token_ids,
        )

    def _head(self, hidden: Tensor) -> Tensor:
        if self.action_head is None:
            raise RuntimeError("action head: this checkpoint decodes tokens and has none")
        actions: Tensor = self.action_head(hidden)
        return actions

    def _decode_bins(self, token_ids: Tensor) -> Tensor:
        shape = (len(token_ids), self.config.chunk_len, self.config.action_dim)
        return self.bins.decode(token_ids).reshape(shape)  # (B, K, A)


def _is_action(layouts: Sequence[TokenLayout], input_ids: Tensor) -> Tensor:
    """(B, ids) bool, True at the action slots of each row."""
    mask = torch.zeros_like(input_ids, dtype=torch.bool)
    for row, layout in enumerate(layouts):
        mask[row, layout.prompt_len : layout.input_ids_len - 1] = True
    return mask


def _padding_mask(lengths: list[int], embeddings: Tensor) -> Tensor | None:
    """(B, 1, 1, S) bool, True at real tokens; None where nothing is padded."""
    total = embeddings.shape[1]
    if min(lengths) == total:
        return None
    ends = torch.tensor(lengths, device=embeddings.device)[:, None]  # (B, 1)
    return (torch.arange(total, device=embeddings.device) < ends)[:, None, None]
