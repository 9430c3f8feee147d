"""LoRA: what it wraps, what is trained, and that merging changes nothing but the form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from golden_cases import Case, make_variant
from made_up import MakeConfig
from safetensors.torch import load_file
from test_objectives import rows, small

from vla_oft_ros.model.vla import OpenVLAOFT
from vla_oft_ros.train.lora import (
    ADAPTER_FILE,
    OFFICIAL_TARGETS,
    choose_trained,
    is_unused,
    lora_targets,
    merged_tensors,
    write_adapter,
)
from vla_oft_ros.train.objectives import Objective

RANK = 4


def disturb_lora(model: OpenVLAOFT) -> None:
    """As if trained: B is zero at the start."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.normal_(0.0, 0.1, generator=generator)


def test_lora_wraps_what_the_official_recipe_wraps(golden_dir: Path, tmp_path: Path) -> None:
    case = Case(golden_dir, "train_film_l1", make_variant(golden_dir, "x_film", tmp_path / "c"))
    model = case.checkpoint.model
    targets = lora_targets(model)
    assert {name.rpartition(".")[2] for name in targets} == set(OFFICIAL_TARGETS)
    official = torch.load(next(case.checkpoint_dir.glob("vision_backbone--*")), weights_only=True)
    wrapped = {
        key.removesuffix(".base_layer.weight").replace(".block.", ".")
        for key in official
        if key.endswith(".base_layer.weight")
    }
    assert {name for name in targets if name.startswith("vision_backbone.")} == wrapped
    linear = len(model.language_model.model.layers) * 7 + 1 + 3  # with lm_head and projector
    assert len(targets) == len(wrapped) + linear


def test_lora_changes_nothing_before_training_and_merges_into_what_it_computes(
    base_dir: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    checkpoint, batch = small(base_dir, make_config(tmp_path))
    model, inputs = checkpoint.model, rows(batch, [0]).inputs
    with torch.no_grad():
        base = model(inputs).actions
        choose_trained(model, rank=RANK)
        model.eval()
        assert torch.equal(model(inputs).actions, base)
        disturb_lora(model)
        trained = model(inputs).actions
        assert not torch.allclose(trained, base, atol=1e-3)
        merged = OpenVLAOFT(model.config)
        merged.load_state_dict(merged_tensors(dict(model.named_parameters()), RANK))
        assert torch.allclose(merged.eval()(inputs).actions, trained, atol=1e-5)


@pytest.mark.parametrize("rank", [0, RANK])
@pytest.mark.parametrize("decoding", ["l1", "discrete", "diffusion"])
def test_exactly_the_weights_that_matter_are_trained(
    decoding: str, rank: int, base_dir: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    checkpoint, batch = small(base_dir, make_config(tmp_path, decoding=decoding))
    model = checkpoint.model
    choose_trained(model, rank=rank)
    disturb_lora(model)
    Objective(model)(batch).total.backward()
    for name, parameter in model.named_parameters():
        whole = name.startswith(("action_head", "proprio", "noisy")) or ".film." in name
        wanted = (not rank or whole or ".lora_" in name) and not is_unused(name, model.config)
        assert parameter.requires_grad == wanted, name
        assert (parameter.grad is not None) == wanted, name
        if wanted:
            assert parameter.dtype is torch.float32
    # What is left out as unused really is: with it set loose, no gradient reaches it.
    model.zero_grad(set_to_none=True)
    model.requires_grad_(True)
    Objective(model)(batch).total.backward()
    unused = {n for n, p in model.named_parameters() if p.grad is None}
    assert unused == {n for n, _ in model.named_parameters() if is_unused(n, model.config)}


def test_the_adapter_has_the_official_names(
    base_dir: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    checkpoint, _ = small(base_dir, make_config(tmp_path))
    choose_trained(checkpoint.model, rank=RANK)
    tensors = {name: p.detach() for name, p in checkpoint.model.named_parameters()}
    write_adapter(
        tensors, tmp_path, rank=RANK, film=True, base_dir="openvla-7b", dtype=torch.bfloat16
    )
    content = load_file(tmp_path / ADAPTER_FILE)
    start = "base_model.model."
    vision = f"{start}vision_backbone.vision_backbone.featurizer."
    assert content[f"{vision}blocks.0.block.attn.qkv.lora_A.weight"].dtype is torch.bfloat16
    assert f"{vision}patch_embed.proj.lora_B.weight" in content
    assert f"{start}language_model.model.layers.0.self_attn.q_proj.lora_A.weight" in content
    assert f"{start}language_model.lm_head.base_layer.weight" in content
    assert not any(part in key for key in content for part in ("film", "action_head", "default"))
    assert len(content) == 2 * len([n for n in tensors if ".lora_A." in n]) + 1
    config = json.loads((tmp_path / "lora_adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (RANK, RANK)
    assert set(config["target_modules"]) == set(OFFICIAL_TARGETS)
