"""OpenVLA-OFT+ as one writes it with Hugging Face at hand: what the benchmarks compare with.

Written from the paper and the official code, apart from `vla_oft_ros.model`, whose weights it
shares: LoRA merged, `transformers`' LlamaModel without the causal mask, ViTs in the manner of
timm, one image after the other, FiLM projected anew in every call, the last block of each tower
run though nobody reads it. Left out in its favour: the official code's output layer over all
tokens and its tuple of all hidden states. That both give the same actions is a test.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from vla_oft_ros.model.vision import TowerConfig
from vla_oft_ros.model.vla import ModelConfig, OpenVLAOFT

ATTENTIONS = ("no mask", "mask")
"""`no mask` asks transformers for attention in both directions, which lets FlashAttention run;
`mask` adds a 4-D mask of zeros, which works in every version of transformers and forbids it."""


class ViTAttention(nn.Module):
    """Attention as in timm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (1, tokens, width) to the same shape."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (1, heads, tokens, head dim)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    """Two layers around a GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (…, width) to the same shape."""
        return self.fc2(F.gelu(self.fc1(x)))


class Scale(nn.Module):
    """LayerScale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (…, width) to the same shape."""
        return x * self.scale_factor


class FilmProjections(nn.Module):
    """γ and β from the mean language embedding."""

    def __init__(self, llm_width: int, width: int) -> None:
        super().__init__()
        self.scale = nn.Linear(llm_width, width)
        self.shift = nn.Linear(llm_width, width)


class ViTBlock(nn.Module):
    """A block of either tower with FiLM behind its attention."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        width = config.width
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = ViTAttention(width, config.heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, config.mlp_hidden)
        self.ls1 = Scale(width) if config.layer_scale else nn.Identity()
        self.ls2 = Scale(width) if config.layer_scale else nn.Identity()
        self.film = FilmProjections(config.film_width, width)

    def forward(self, x: Tensor, language: Tensor) -> Tensor:
        """Maps (1, tokens, width) to the same shape; `language` is (1, D)."""
        gamma, beta = self.film.scale(language), self.film.shift(language)  # (1, width)
        x = x + self.ls1(self.attn(self.norm1(x)))
        x = x * (1 + gamma[:, None]) + beta[:, None]
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """A convolution over patches."""

    def __init__(self, width: int, patch_px: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_px, stride=patch_px)

    def forward(self, image: Tensor) -> Tensor:
        """Maps (1, 3, H, W) to (1, P, width)."""
        return self.proj(image).flatten(2).transpose(1, 2)


class ViT(nn.Module):
    """One tower; features are those of its second-to-last block, without the final norm."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        width = config.width
        self.patch_embed = PatchEmbed(width, config.patch_px)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.patches, width))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if config.class_token else None
        self.reg_token = (
            nn.Parameter(torch.zeros(1, config.registers, width)) if config.registers else None
        )
        self.blocks = nn.ModuleList(ViTBlock(config) for _ in range(config.depth))
        self.prefix = int(config.class_token) + config.registers

    def forward(self, image: Tensor, language: Tensor) -> Tensor:
        """Maps (1, 3, H, W) to (1, P, width)."""
        x = self.patch_embed(image) + self.pos_embed
        extra = [token for token in (self.cls_token, self.reg_token) if token is not None]
        x = torch.cat([*extra, x], dim=1)
        outputs = []
        for block in self.blocks:
            x = block(x, language)
            outputs.append(x)
        return outputs[-2][:, self.prefix :]


class Projector(nn.Module):
    """Linear layers with GELUs between them."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.count = len(widths) - 1
        for index in range(self.count):
            self.add_module(f"fc{index + 1}", nn.Linear(widths[index], widths[index + 1]))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (…, first width) to (…, last width)."""
        for index in range(self.count):
            x = self.get_submodule(f"fc{index + 1}")(x if index == 0 else F.gelu(x))
        return x


class Head(nn.Module):
    """The L1 action head."""

    def __init__(self, inputs: int, hidden: int, outputs: int, blocks: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(inputs)
        self.fc1 = nn.Linear(inputs, hidden)
        self.mlp_resnet_blocks = nn.ModuleList(
            nn.ModuleDict(
                {"ffn": nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, hidden), nn.ReLU())}
            )
            for _ in range(blocks)
        )
        self.layer_norm2 = nn.LayerNorm(hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (1, K, A·D) to (1, K, A)."""
        x = F.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = x + block["ffn"](x)
        return self.fc2(self.layer_norm2(x))


class HuggingFaceOFT(nn.Module):
    """The whole network; `share_weights` makes one.

    Args:
        config: Sizes; only FiLM, proprio and the L1 head are supported, as in OFT+.
        attention: One of `ATTENTIONS`.

    Raises:
        ValueError: for any other kind of checkpoint.
    """

    def __init__(self, config: ModelConfig, attention: str = "no mask") -> None:
        super().__init__()
        if not (config.film and config.proprio_dim and config.head == "l1"):
            raise ValueError(
                "the baseline: expected FiLM, proprio and the L1 head; got film "
                f"{config.film}, proprio_dim {config.proprio_dim}, head {config.head.value}"
            )
        if attention not in ATTENTIONS:
            raise ValueError(f"attention: expected one of {ATTENTIONS}; got {attention!r}")
        llm = config.llm
        self.masked = attention == "mask"
        self.action_dim = config.action_dim
        self.slots = config.chunk_len * config.action_dim
        self.vision_backbone = nn.ModuleDict(
            {"featurizer": ViT(config.dino), "fused_featurizer": ViT(config.siglip)}
        )
        width = config.dino.width + config.siglip.width
        self.projector = Projector(width, config.projector_hidden, llm.width, llm.width)
        self.proprio_projector = Projector(config.proprio_dim, llm.width, llm.width)
        self.language_model = nn.ModuleDict(
            {"model": LlamaModel(_llama_config(config, attention))}
        )
        head_inputs = config.action_dim * llm.width
        head = Head(head_inputs, config.head_hidden, config.action_dim, config.head_blocks)
        self.action_head = nn.ModuleDict({"model": head})

    def forward(self, pixel_values: Tensor, input_ids: Tensor, proprio: Tensor) -> Tensor:
        """Predicts normalised actions.

        Args:
            pixel_values: (1, 6·N, H, W), as `ModelInputs`.
            input_ids: (1, ids) int64: prompt, K·A action ids, stop.
            proprio: (1, A) normalised.

        Returns:
            (1, K, A) in the dtype of the weights.
        """
        llm = self.language_model["model"]
        embeddings = llm.embed_tokens(input_ids)  # (1, ids, D)
        words = torch.ones_like(input_ids, dtype=embeddings.dtype)  # (1, ids)
        words[:, -self.slots - 1 : -1] = 0
        embeddings = embeddings * words[..., None]
        language = embeddings.sum(dim=1) / words.sum(dim=1, keepdim=True)  # (1, D)
        features = []
        for image in pixel_values.split(6, dim=1):
            first, second = image.split(3, dim=1)
            dino = self.vision_backbone["featurizer"](first, language)
            siglip = self.vision_backbone["fused_featurizer"](second, language)
            features.append(torch.cat([dino, siglip], dim=-1))
        patches = self.projector(torch.cat(features, dim=1))  # (1, N·P, D)
        state = self.proprio_projector(proprio)[:, None]  # (1, 1, D)
        sequence = torch.cat([embeddings[:, :1], patches, state, embeddings[:, 1:]], dim=1)
        mask = None
        if self.masked:
            length = sequence.shape[1]
            mask = sequence.new_zeros(1, 1, length, length)
        output = llm(inputs_embeds=sequence, attention_mask=mask, use_cache=False)
        hidden = output.last_hidden_state[:, -self.slots - 2 : -2]  # (1, K·A, D)
        steps = hidden.reshape(1, self.slots // self.action_dim, -1)  # (1, K, A·D)
        return self.action_head["model"](steps)

    @torch.inference_mode()
    def sees_the_last_token_from_the_first(self) -> bool:
        """Whether attention really looks both ways: some versions of transformers silently stay
        causal.
        """
        llm = self.language_model["model"]
        table = llm.embed_tokens.weight
        sequence = table[1:5].clone()[None]  # (1, 4, D)
        mask = sequence.new_zeros(1, 1, 4, 4) if self.masked else None
        answers = []
        for _ in range(2):
            output = llm(inputs_embeds=sequence, attention_mask=mask, use_cache=False)
            answers.append(output.last_hidden_state[:, 0])
            sequence[:, -1] = table[7]
        return not torch.equal(*answers)


def share_weights(
    model: OpenVLAOFT, attention: str = "no mask", dtype: torch.dtype | None = None
) -> HuggingFaceOFT:
    """The baseline with the very tensors of our model.

    Args:
        model: Whose weights it takes; nothing is copied unless `dtype` is another.
        attention: One of `ATTENTIONS`.
        dtype: Format of the weights; None for the model's.

    Raises:
        ValueError: if the model is no OFT+, or attention would be causal with this version of
            transformers.
    """
    with torch.device("meta"):
        baseline = HuggingFaceOFT(model.config, attention)
    weights = model.state_dict()
    taken = {name: weights[name].to(dtype) for name in baseline.state_dict()}
    baseline.load_state_dict(taken, assign=True)
    llm = baseline.language_model["model"]
    # Its table of frequencies is no weight and is still on no device.
    device = llm.embed_tokens.weight.device
    llm.rotary_emb = LlamaRotaryEmbedding(config=llm.config).to(device)
    if not baseline.eval().sees_the_last_token_from_the_first():
        raise ValueError(
            "the baseline: expected attention in both directions; this version of transformers "
            f"stays causal with attention={attention!r}"
        )
    return baseline


def _llama_config(config: ModelConfig, attention: str) -> LlamaConfig:
    llm = config.llm
    return LlamaConfig(
        vocab_size=llm.vocab,
        hidden_size=llm.width,
        intermediate_size=llm.mlp_hidden,
        num_hidden_layers=llm.layers,
        num_attention_heads=llm.heads,
        num_key_value_heads=llm.kv_heads,
        rms_norm_eps=llm.rms_eps,
        rope_theta=llm.rope_theta,
        attn_implementation="sdpa",
        is_causal=attention == "mask",
    )
