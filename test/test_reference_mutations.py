"""Plausible mistakes must show in the goldens: each is made on purpose, and the tolerance must
notice it.

The list is the one of the golden fixtures' provenance; a mistake that slipped through would mean
that `test_reference_parity` proves less than it says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_cases import Case, make_variant
from test_reference_parity import FORWARD, TRAINING, run_training
from torch import Tensor

from vla_oft_ros.model import checkpoint_stream, vision, vla
from vla_oft_ros.model.film import Modulation, modulate
from vla_oft_ros.model.llm import RMSNorm, causal_mask
from vla_oft_ros.model.tokens import TokenLayout

ALLOWED = FORWARD["normalized_actions"]
Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def film_dir(committed_golden_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("mutations") / "checkpoint"
    return make_variant(committed_golden_dir, "aloha_film_l1", target)


@pytest.fixture
def case(committed_golden_dir: Path, film_dir: Path) -> Case:
    return Case(committed_golden_dir, "aloha_film_l1", film_dir)


def action_error(case: Case) -> float:
    with torch.inference_mode():
        actions = case.checkpoint.model(case.inputs()).actions[0].numpy()
    return float(np.abs(actions - case.expected["normalized_actions"]).max())


def head_not_shifted(case: Case, patch: Patch) -> None:
    patch.setattr(TokenLayout, "head", property(lambda layout: layout.actions))


def causal_attention(case: Case, patch: Patch) -> None:
    def mask(lengths: list[int], embeddings: Tensor) -> Tensor:
        return causal_mask(embeddings.shape[1], embeddings.shape[1], embeddings.device)

    patch.setattr(vla, "_padding_mask", mask)


def film_average_without_stop(case: Case, patch: Patch) -> None:
    original = vla.mean_language_embedding
    patch.setattr(
        vla, "mean_language_embedding", lambda emb, act: original(emb[:, :-1], act[:, :-1])
    )


def lora_scale_one(case: Case, patch: Patch) -> None:
    patch.setattr(checkpoint_stream, "MAX_LORA_ALPHA", 10**9)


def patch_embed_lora_forgotten(case: Case, patch: Patch) -> None:
    original = checkpoint_stream.merge_lora

    def merge(base: Tensor, a: Tensor, b: Tensor, alpha: float | None) -> Tensor:
        return base.float() if base.ndim == 4 else original(base, a, b, alpha)

    patch.setattr(checkpoint_stream, "merge_lora", merge)


def exact_imagenet_statistics(case: Case, patch: Patch) -> None:
    images = case.checkpoint.images
    mean, std = images.mean.copy(), images.std.copy()
    mean[0], std[0] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    case.__dict__["checkpoint"] = replace(
        case.checkpoint, images=replace(images, mean=mean, std=std)
    )


def towers_swapped(case: Case, patch: Patch) -> None:
    width = case.checkpoint.config.dino.width
    case.checkpoint.model.vision_backbone.register_forward_hook(
        lambda module, args, out: torch.cat([out[..., width:], out[..., :width]], dim=-1)
    )


def wrists_swapped(case: Case, patch: Patch) -> None:
    high, left, right = case.policy_images()
    case.__dict__["policy_images"] = lambda: [high, right, left]


def film_after_the_mlp(case: Case, patch: Patch) -> None:
    def forward(block: vision.Block, x: Tensor, modulation: Modulation) -> Tensor:
        x = x + block.ls1(block.attn(block.norm1(x)))
        return modulate(x + block.ls2(block.mlp(block.norm2(x))), modulation)

    patch.setattr(vision.Block, "forward", forward)


def film_on_patch_tokens_only(case: Case, patch: Patch) -> None:
    patches = case.checkpoint.config.dino.patches

    def only_patches(x: Tensor, modulation: Modulation) -> Tensor:
        return torch.cat([x[:, :-patches], modulate(x[:, -patches:], modulation)], dim=1)

    patch.setattr(vision, "modulate", only_patches)


def last_vision_block_instead_of_the_one_before(case: Case, patch: Patch) -> None:
    patch.setattr(vision.VisionTower, "run_blocks", property(lambda tower: list(tower.blocks)))


def tanh_gelu_in_vision(case: Case, patch: Patch) -> None:
    original = F.gelu
    patch.setattr(vision.F, "gelu", lambda x: original(x, approximate="tanh"))


def rms_norm_epsilon_of_llama(case: Case, patch: Patch) -> None:
    for module in case.checkpoint.model.modules():
        if isinstance(module, RMSNorm):
            module.eps = 1e-5


def layer_norm_epsilon_of_torch(case: Case, patch: Patch) -> None:
    for module in case.checkpoint.model.vision_backbone.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5


MUTATIONS: list[Callable[[Case, Patch], None]] = [
    head_not_shifted,
    causal_attention,
    film_average_without_stop,
    lora_scale_one,
    patch_embed_lora_forgotten,
    exact_imagenet_statistics,
    towers_swapped,
    wrists_swapped,
    film_after_the_mlp,
    film_on_patch_tokens_only,
    last_vision_block_instead_of_the_one_before,
    tanh_gelu_in_vision,
    rms_norm_epsilon_of_llama,
    layer_norm_epsilon_of_torch,
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_goldens_notice(
    mutation: Callable[[Case, Patch], None], case: Case, monkeypatch: Patch
) -> None:
    mutation(case, monkeypatch)
    assert action_error(case) > 1.5 * ALLOWED


def test_goldens_accept_the_package_as_it_is(case: Case) -> None:
    assert action_error(case) <= ALLOWED


def test_training_golden_notices_pads_left_out_of_the_film_average(
    committed_golden_dir: Path, film_dir: Path, monkeypatch: Patch
) -> None:
    case = Case(committed_golden_dir, "train_film_l1", film_dir)
    original = vla.mean_language_embedding

    def without_pads(embeddings: Tensor, is_action: Tensor) -> Tensor:
        lengths = case.expected["attention_mask"].sum(axis=1)
        rows = [
            original(embeddings[i : i + 1, :n], is_action[i : i + 1, :n])
            for i, n in enumerate(lengths)
        ]
        return torch.cat(rows)

    monkeypatch.setattr(vla, "mean_language_embedding", without_pads)
    assert run_training(case)["predicted_actions"] > 1.5 * TRAINING["predicted_actions"]
