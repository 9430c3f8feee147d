from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from golden_cases import make_variant
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from vla_oft_ros.config import PreprocessingConfig
from vla_oft_ros.model.action_head import HeadKind
from vla_oft_ros.model.checkpoint import Checkpoint, load_checkpoint
from vla_oft_ros.model.checkpoint_files import part_key, part_parameter
from vla_oft_ros.model.checkpoint_record import CheckpointRecord
from vla_oft_ros.model.checkpoint_save import save_checkpoint
from vla_oft_ros.model.checkpoint_stream import merge_lora
from vla_oft_ros.model.self_test import fingerprint, run_self_tests
from vla_oft_ros.model.small_checkpoint import SmallSize, make_random_checkpoint
from vla_oft_ros.normalization import Bounds

CPU = torch.device("cpu")
TINY = SmallSize(
    width=16, layers=2, heads=2, dino_width=16, siglip_width=16, depth=2, image_px=28, chunk_len=3
)
GOLDEN_RECORD = CheckpointRecord(vision_heads=(3, 4))


@pytest.fixture(scope="module")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny") / "checkpoint"
    make_random_checkpoint(directory, size=TINY)
    return directory


@pytest.fixture(scope="module")
def film_dir(committed_golden_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as the official code saves it, live LoRA in its vision tower."""
    target = tmp_path_factory.mktemp("film") / "checkpoint"
    return make_variant(committed_golden_dir, "aloha_film_l1", target)


@pytest.fixture
def film_copy(film_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(film_dir, tmp_path / "checkpoint"))


def load(directory: Path, record: CheckpointRecord | None = None) -> Checkpoint:
    return load_checkpoint(directory, device=CPU, dtype=torch.float32, record=record)


def assert_same_weights(first: Checkpoint, second: Checkpoint) -> None:
    a, b = (dict(c.model.named_parameters()) for c in (first, second))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_saved_checkpoint_loads_bit_for_bit(tiny_dir: Path, tmp_path: Path) -> None:
    first = load(tiny_dir)
    save_checkpoint(first, tmp_path / "saved", step=7)
    second = load(tmp_path / "saved")
    assert_same_weights(first, second)
    assert fingerprint(first)["actions"] == fingerprint(second)["actions"]
    assert second.record == first.record


def test_official_checkpoint_saved_from_here_keeps_its_policy(
    film_dir: Path, tmp_path: Path
) -> None:
    """Vision LoRA is live in the first and merged, with zeros beside it, in the second."""
    first = load(film_dir, GOLDEN_RECORD)
    save_checkpoint(first, tmp_path / "saved", step=9)
    assert_same_weights(first, load(tmp_path / "saved"))


def test_saved_files_have_the_official_names_and_keys(film_dir: Path, tmp_path: Path) -> None:
    checkpoint = load(film_dir, GOLDEN_RECORD)
    save_checkpoint(checkpoint, tmp_path / "saved", step=100000)
    saved = {path.name for path in (tmp_path / "saved").iterdir()}
    assert {path.name for path in film_dir.iterdir()} <= saved
    for name in sorted(path.name for path in film_dir.glob("*.pt")):
        ours, official = (
            torch.load(folder / name, weights_only=True)
            for folder in (tmp_path / "saved", film_dir)
        )
        shapes = [{key: tuple(value.shape) for key, value in d.items()} for d in (ours, official)]
        assert shapes[0] == shapes[1], name
    ours, official = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "saved", film_dir)
    )
    assert ours.keys() == official.keys()


@pytest.mark.parametrize("shard_bytes", [200_000, 2_200_000])
def test_shards_make_no_difference(tiny_dir: Path, tmp_path: Path, shard_bytes: int) -> None:
    first = load(tiny_dir)
    save_checkpoint(first, tmp_path / "saved", step=1, max_shard_bytes=shard_bytes)
    index = json.loads((tmp_path / "saved" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    assert_same_weights(first, load(tmp_path / "saved"))


def test_module_prefix_is_not_needed(film_dir: Path, film_copy: Path) -> None:
    for path in film_copy.glob("*.pt"):
        content = torch.load(path, weights_only=True)
        torch.save({key.removeprefix("module."): v for key, v in content.items()}, path)
    assert_same_weights(load(film_dir, GOLDEN_RECORD), load(film_copy, GOLDEN_RECORD))


def test_old_pickle_format_is_read_too(film_dir: Path, film_copy: Path) -> None:
    for path in film_copy.glob("*.pt"):
        content = torch.load(path, weights_only=True)
        torch.save(content, path, _use_new_zipfile_serialization=False)
    assert_same_weights(load(film_dir, GOLDEN_RECORD), load(film_copy, GOLDEN_RECORD))


def test_loaded_weights_do_not_hang_on_the_files(film_copy: Path) -> None:
    checkpoint = load(film_copy, GOLDEN_RECORD)
    before = {name: p.clone() for name, p in checkpoint.model.named_parameters()}
    for path in film_copy.iterdir():
        path.write_bytes(b"\0" * path.stat().st_size)
    assert all(torch.equal(p, before[name]) for name, p in checkpoint.model.named_parameters())


def test_rotary_tables_of_old_transformers_are_ignored(film_copy: Path) -> None:
    path = film_copy / "model.safetensors"
    tensors = load_file(path)
    tensors["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, path)
    load(film_copy, GOLDEN_RECORD)


def test_adapter_config_overrides_the_usual_alpha(film_dir: Path, film_copy: Path) -> None:
    (film_copy / "lora_adapter").mkdir()
    adapter = film_copy / "lora_adapter" / "adapter_config.json"
    name = "vision_backbone.featurizer.blocks.0.attn.qkv.weight"

    def weight(alpha: int) -> torch.Tensor:
        adapter.write_text(json.dumps({"r": 32, "lora_alpha": alpha}))
        return load(film_copy, GOLDEN_RECORD).model.get_parameter(name)

    usual = load(film_dir, GOLDEN_RECORD).model.get_parameter(name)
    assert torch.equal(weight(16), usual)  # min(32, 16)
    assert not torch.equal(weight(32), usual)


ranks = st.integers(1, 40)


@given(rank=ranks, seed=st.integers(0, 99))
def test_merged_lora_equals_the_live_one(rank: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    base, a, b = (
        torch.randn(shape, generator=generator) for shape in ((6, 5), (rank, 5), (6, rank))
    )
    x = torch.randn(3, 5, generator=generator)
    live = x @ base.T + min(rank, 16) / rank * (x @ a.T) @ b.T
    torch.testing.assert_close(x @ merge_lora(base, a, b).T, live, atol=1e-4, rtol=1e-4)


@given(rank=ranks)
def test_merged_convolution_lora_equals_the_live_one(rank: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    base, a, b = (
        torch.randn(shape, generator=generator)
        for shape in ((6, 3, 2, 2), (rank, 3, 2, 2), (6, rank, 1, 1))
    )
    x = torch.randn(1, 3, 4, 4, generator=generator)
    conv = torch.nn.functional.conv2d
    live = conv(x, base, stride=2) + 8 / rank * conv(conv(x, a, stride=2), b)
    torch.testing.assert_close(
        conv(x, merge_lora(base, a, b, alpha=8), stride=2), live, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("has_lora", [True, False])
@pytest.mark.parametrize("head", ["l1", "diffusion"])
def test_official_keys_and_parameter_names_invert_each_other(head: str, has_lora: bool) -> None:
    diffusion = head == "diffusion"
    names = {
        "vision_backbone": "vision_backbone.featurizer.blocks.3.attn.qkv.weight",
        "proprio_projector": "proprio_projector.fc1.weight",
        "action_head": "action_head.model.mlp_resnet_blocks.0.ffn.1.weight",
    }
    for part, name in names.items():
        assert (
            part_parameter(part, part_key(part, name, diffusion=diffusion, has_lora=has_lora))
            == name
        )
    film = "vision_backbone.fused_featurizer.blocks.0.film.scale.bias"
    key = part_key("vision_backbone", film, diffusion=False, has_lora=False)
    assert key == "vision_backbone.fused_featurizer.blocks.0.scale.bias"
    assert part_parameter("vision_backbone", key) == film


def test_record_survives_json() -> None:
    record = CheckpointRecord(
        chunk_len=8,
        cameras=("a", "b"),
        bounds=Bounds.QUANTILES,
        decoding=HeadKind.DIFFUSION,
        vision_heads=(3, 4),
        profile="aloha1",
        preprocessing=PreprocessingConfig(center_crop=False),
        parts=("action_head",),
    )
    assert CheckpointRecord.from_json(json.loads(json.dumps(record.to_json()))) == record
    assert CheckpointRecord.from_json({}) == CheckpointRecord()


def test_override_beats_the_checkpoint_which_beats_the_official_table(tiny_dir: Path) -> None:
    assert load(tiny_dir).record.chunk_len == 3  # the official 14-dimensional training has 25
    assert load(tiny_dir, CheckpointRecord(chunk_len=5)).config.chunk_len == 5


def test_official_aloha_checkpoint_is_recognised_by_its_vectors(film_dir: Path) -> None:
    record = load(film_dir, GOLDEN_RECORD).record
    assert (record.chunk_len, record.bounds) == (25, Bounds.MIN_MAX)
    assert record.cameras == ("cam_high", "cam_left_wrist", "cam_right_wrist")


@pytest.mark.parametrize(
    ("case", "decoding"),
    [
        ("aloha_nofilm_l1", HeadKind.L1),
        ("aloha_nofilm_discrete", HeadKind.DISCRETE),
        ("aloha_nofilm_diffusion10", HeadKind.DIFFUSION),
    ],
)
def test_decoding_is_read_off_the_files(
    case: str, decoding: HeadKind, committed_golden_dir: Path, tmp_path: Path
) -> None:
    directory = make_variant(committed_golden_dir, case, tmp_path / "checkpoint")
    checkpoint = load(directory, GOLDEN_RECORD)
    assert checkpoint.config.head is decoding
    assert not checkpoint.config.film


def test_libero_checkpoint_is_normalised_by_quantiles_but_for_its_gripper(
    committed_golden_dir: Path, tmp_path: Path
) -> None:
    directory = make_variant(committed_golden_dir, "libero_l1", tmp_path / "checkpoint")
    checkpoint = load(directory, GOLDEN_RECORD)
    assert checkpoint.record.bounds is Bounds.QUANTILES
    assert checkpoint.action_stats.mask.tolist() == [True] * 6 + [False]
    assert (checkpoint.config.chunk_len, checkpoint.config.cameras) == (8, 2)


def test_statistics_inside_config_json_mean_the_original_openvla(
    committed_golden_dir: Path, tmp_path: Path
) -> None:
    directory = make_variant(committed_golden_dir, "libero_discrete", tmp_path / "checkpoint")
    statistics = json.loads((directory / "dataset_statistics.json").read_text())
    config = json.loads((directory / "config.json").read_text())
    config["norm_stats"] = statistics
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "dataset_statistics.json").unlink()
    checkpoint = load(directory, GOLDEN_RECORD)
    assert checkpoint.config.head is HeadKind.AUTOREGRESSIVE
    assert (checkpoint.config.chunk_len, checkpoint.config.cameras) == (1, 1)


def test_fingerprint_notices_a_lora_merged_with_another_scale(
    film_dir: Path, tmp_path: Path
) -> None:
    checkpoint = load(film_dir, GOLDEN_RECORD)
    save_checkpoint(checkpoint, tmp_path / "saved", step=1)
    saved = load(tmp_path / "saved")
    other = replace(load(film_dir, GOLDEN_RECORD), directory=saved.directory)
    scaled = saved.model.get_parameter("vision_backbone.featurizer.blocks.0.attn.qkv.weight")
    target = other.model.get_parameter("vision_backbone.featurizer.blocks.0.attn.qkv.weight")
    with torch.no_grad():
        target.copy_(scaled * 1.2)
    others = ("statistics_fit_robot",)  # the golden statistics are random
    assert run_self_tests(saved, skip=others)
    with pytest.raises(ValueError, match="fingerprint: actions differ"):
        run_self_tests(other, skip=others)


@pytest.mark.parametrize("decoding", [HeadKind.DISCRETE, HeadKind.AUTOREGRESSIVE])
def test_the_fingerprint_of_token_choices_bears_another_precision_but_no_other_weights(
    committed_golden_dir: Path, tmp_path: Path, decoding: HeadKind
) -> None:
    directory = make_variant(committed_golden_dir, "aloha_nofilm_discrete", tmp_path / "golden")
    record = replace(GOLDEN_RECORD, decoding=decoding)
    half = load_checkpoint(directory, device=CPU, dtype=torch.bfloat16, record=record)
    save_checkpoint(half, tmp_path / "saved", step=1)
    whole = load(tmp_path / "saved")
    assert whole.config.head is decoding
    assert run_self_tests(whole, skip=("statistics_fit_robot",))
    with torch.no_grad():
        whole.model.language_model.lm_head.weight.mul_(-1.0)
    with pytest.raises(ValueError, match="fingerprint: actions differ"):
        run_self_tests(whole, skip=("statistics_fit_robot",))


def test_non_empty_directory_is_not_overwritten(tiny_dir: Path) -> None:
    with pytest.raises(ValueError, match="new or empty directory"):
        make_random_checkpoint(tiny_dir, size=TINY)


@pytest.mark.parametrize("seed", [0, 1])
def test_seed_decides_the_weights(seed: int, tiny_dir: Path, tmp_path: Path) -> None:
    make_random_checkpoint(tmp_path / "again", size=TINY, seed=seed)
    first, second = load(tiny_dir), load(tmp_path / "again")
    same: Callable[[], None] = lambda: assert_same_weights(first, second)  # noqa: E731
    if seed == 0:
        same()
    else:
        with pytest.raises(AssertionError):
            same()


def test_bfloat16_checkpoint_is_half_as_large_and_loads(tiny_dir: Path, tmp_path: Path) -> None:
    make_random_checkpoint(tmp_path / "bf16", size=TINY, dtype=torch.bfloat16)
    whole, half = ((d / "model.safetensors").stat().st_size for d in (tiny_dir, tmp_path / "bf16"))
    assert 1.8 < whole / half < 2.2
    run_self_tests(load(tmp_path / "bf16"))


def test_small_checkpoint_is_small_and_has_the_promised_shape(tmp_path: Path) -> None:
    make_random_checkpoint(tmp_path / "small")
    checkpoint = load(tmp_path / "small")
    count = sum(p.numel() for p in checkpoint.model.parameters())
    assert 2e6 < count < 5e6
    config = checkpoint.config
    assert (config.cameras, config.chunk_len, config.action_dim, config.proprio_dim) == (
        3,
        25,
        14,
        14,
    )
    assert (config.film, config.dino.patches) == (True, 64)
