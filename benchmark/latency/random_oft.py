"""OpenVLA-OFT+ on ALOHA with random weights, made directly on the device: latency does not depend
on what a network has learnt. Also its operations and bytes, part by part, for the floor.

Sizes are those of the official 7B checkpoints, or small ones of the same shape. Random data, never
zeros: a GPU multiplies zeros measurably faster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from vla_oft_ros.model.action_head import HeadKind
from vla_oft_ros.model.inputs import ModelInputs, sequence_ids
from vla_oft_ros.model.llm import LlamaConfig
from vla_oft_ros.model.pruning_plan import llm_flops
from vla_oft_ros.model.tokens import BOS_ID, EMPTY_ID
from vla_oft_ros.model.vision import TowerConfig, VisionTower
from vla_oft_ros.model.vla import ModelConfig, OpenVLAOFT

PROMPT_LEN = 33
"""BOS, template, a dozen words of instruction and the closing token: 1153 tokens in all."""

FULL = ModelConfig(
    dino=TowerConfig(
        width=1024,
        depth=24,
        heads=16,
        mlp_hidden=4096,
        patch_px=14,
        grid=16,
        class_token=True,
        registers=4,
        layer_scale=True,
        pooling=False,
        film_width=4096,
    ),
    siglip=TowerConfig(
        width=1152,
        depth=27,
        heads=16,
        mlp_hidden=4304,
        patch_px=14,
        grid=16,
        class_token=False,
        registers=0,
        layer_scale=False,
        pooling=True,
        film_width=4096,
    ),
    llm=LlamaConfig(
        vocab=32064,
        width=4096,
        layers=32,
        heads=32,
        kv_heads=32,
        mlp_hidden=11008,
        rms_eps=1e-6,
        rope_theta=1e4,
    ),
    projector_hidden=8704,
    head=HeadKind.L1,
    head_hidden=4096,
    head_blocks=2,
    cameras=3,
    chunk_len=25,
    action_dim=14,
    proprio_dim=14,
    vocab_end=32000,
    action_bins=256,
)
"""The official OFT+ checkpoint for ALOHA: shapes of its files."""


def scaled_down(
    *, width: int, layers: int, heads: int, tower_width: int, tower_depth: int, grid: int
) -> ModelConfig:
    """A network of the same shape: three cameras, 350 action slots, FiLM in every block.

    Args:
        width: D.
        layers: LLM layers.
        heads: Attention heads, everywhere.
        tower_width: Width of the first tower; the second is a quarter narrower.
        tower_depth: Blocks of the first tower; the second has one more.
        grid: Patches along one side of an image.
    """
    sizes = {"heads": heads, "grid": grid, "film_width": width}
    second_width = tower_width * 3 // 4
    return replace(
        FULL,
        dino=replace(
            FULL.dino, width=tower_width, depth=tower_depth, mlp_hidden=4 * tower_width, **sizes
        ),
        siglip=replace(
            FULL.siglip,
            width=second_width,
            depth=tower_depth + 1,
            mlp_hidden=4 * second_width,
            **sizes,
        ),
        llm=replace(
            FULL.llm,
            width=width,
            layers=layers,
            heads=heads,
            kv_heads=heads,
            mlp_hidden=round(width * 11008 / 4096 / 8) * 8,
        ),
        projector_hidden=4 * (tower_width + second_width),
        head_hidden=width,
    )


def random_model(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> OpenVLAOFT:
    """Weights N(0, 1/fan in), norms at identity, drawn where they stay."""
    with torch.device("meta"):
        model = OpenVLAOFT(config).to(dtype)
    model = model.to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif name.endswith("scale_factor") or (parameter.ndim == 1):
            parameter.fill_(1.0)
        elif parameter.ndim == 3:  # tokens and position embeddings
            parameter.normal_(0.0, 0.5, generator=generator)
        else:
            fan_in = parameter.shape[1] if "embed_tokens" in name else parameter[0].numel()
            parameter.normal_(0.0, 1 / math.sqrt(fan_in), generator=generator)
    return model


def random_inputs(
    config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    prompt_len: int = PROMPT_LEN,
    seed: int = 1,
) -> ModelInputs:
    """One observation, as the network reads it."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(dtype)

    side = config.dino.image_px
    return ModelInputs(
        pixel_values=normal(1, 6 * config.cameras, side, side),
        input_ids=sequence_ids(
            [random_prompt(prompt_len)], config.chunk_len * config.action_dim
        ).to(device),
        prompt_lens=(prompt_len,),
        proprio=normal(1, config.proprio_dim),
    )


def random_prompt(prompt_len: int = PROMPT_LEN) -> np.ndarray:
    """(L,) int64 token ids, BOS first, `EMPTY_ID` last."""
    words = np.random.default_rng(0).integers(3, 29000, prompt_len - 2)
    return np.array([BOS_ID, *words, EMPTY_ID], dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one inference cannot do without.

    Attributes:
        llm_linear_flop: Linear layers of the LLM.
        other_flop: Attention of the LLM, towers, projectors.
        head_bytes: Weights of the action head, which K rows cannot keep busy.
    """

    llm_linear_flop: float
    other_flop: float
    head_bytes: float

    @property
    def flop(self) -> float:
        """All of them."""
        return self.llm_linear_flop + self.other_flop

    def floor_s(
        self, flop_per_s: float, bytes_per_s: float, linear_flop_per_s: float | None = None
    ) -> float:
        """Least time at the rates that the device reached in this run.

        Args:
            flop_per_s: Of a large matrix product.
            bytes_per_s: Of a large copy, read and written bytes together.
            linear_flop_per_s: Of a product in the format of the LLM's linear layers, if another.
        """
        linear_s = self.llm_linear_flop / (linear_flop_per_s or flop_per_s)
        return linear_s + self.other_flop / flop_per_s + self.head_bytes / bytes_per_s


def work(config: ModelConfig, lengths: Sequence[int], bytes_per_weight: int = 2) -> Work:
    """Operations and bytes of one inference, FiLM known and last tower blocks not run.

    Args:
        config: Sizes.
        lengths: Tokens in each layer of the LLM.
        bytes_per_weight: Of the action head.
    """
    llm = config.llm
    attention = sum(4 * length**2 * llm.width for length in lengths)
    linear = llm_flops(llm, lengths) - attention
    towers = config.cameras * sum(_tower_flop(tower) for tower in (config.dino, config.siglip))
    features = config.dino.width + config.siglip.width
    patches = config.cameras * config.dino.patches
    hidden, width = config.projector_hidden, llm.width
    projector = 2 * patches * (features * hidden + hidden * width + width * width)
    head = config.action_dim * width * config.head_hidden
    head += config.head_blocks * config.head_hidden**2 + config.head_hidden * config.action_dim
    return Work(
        llm_linear_flop=float(linear),
        other_flop=float(attention + towers + projector),
        head_bytes=float(head * bytes_per_weight),
    )


def _tower_flop(tower: TowerConfig) -> int:
    """One image through the blocks whose output is read."""
    tokens = tower.patches + int(tower.class_token) + tower.registers
    block = 2 * tokens * (4 * tower.width**2 + 2 * tower.width * tower.mlp_hidden)
    block += 4 * tokens**2 * tower.width
    embedding = 2 * tower.patches * 3 * tower.patch_px**2 * tower.width
    return (tower.depth - 1) * block + embedding


def weight_count(module: nn.Module) -> int:
    """Parameters that an inference reads: no unused tower blocks, pooling or output layer."""
    unused = {
        id(parameter)
        for tower in module.modules()
        if isinstance(tower, VisionTower)
        for part in (tower.blocks[-1], tower.norm, tower.attn_pool)
        if part is not None
        for parameter in part.parameters()
    }
    return sum(
        parameter.numel()
        for name, parameter in module.named_parameters()
        if id(parameter) not in unused and not name.startswith("language_model.lm_head")
    )
