from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_cases import Case, make_variant

from vla_oft_ros.action_aware import MotionScale
from vla_oft_ros.aloha import CAMERAS, example_observation, load_profile, position_limits
from vla_oft_ros.config import ConfigError, PolicyConfig, PreprocessingConfig
from vla_oft_ros.model.action_head import HeadKind
from vla_oft_ros.model.small_checkpoint import SmallSize, make_random_checkpoint
from vla_oft_ros.policy import Policy, load_policy
from vla_oft_ros.types import KeptBy, Observation

TINY = SmallSize(
    width=16, layers=2, heads=2, dino_width=16, siglip_width=16, depth=2, image_px=28, chunk_len=3
)


@pytest.fixture(scope="module")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("policy") / "checkpoint"
    make_random_checkpoint(directory, size=TINY)
    return directory


@pytest.fixture(scope="module")
def policy(tiny_dir: Path) -> Policy:
    return load_policy(PolicyConfig(checkpoint_dir=str(tiny_dir), device="cpu"))


@pytest.fixture
def observation() -> Observation:
    return example_observation(np.random.default_rng(0))


def test_chunk_says_when_it_is_for_and_what_it_answers(
    policy: Policy, observation: Observation
) -> None:
    stamped = replace(
        observation,
        proprio_stamp_ns=70,
        image_stamps_ns=dict(zip(CAMERAS, (90, 60, 80), strict=True)),
    )
    chunk = policy.infer(stamped)
    assert chunk.actions.shape == (policy.chunk_len, policy.action_dim) == (3, 14)
    assert chunk.actions.dtype == np.float64
    assert chunk.stamp_ns == 60
    assert chunk.dt_ns == 40_000_000
    assert chunk.instruction == observation.instruction


def test_dense_inference_reports_every_patch_of_every_camera(
    policy: Policy, observation: Observation
) -> None:
    retained = policy.infer(observation).retained
    assert tuple(tokens.camera for tokens in retained) == CAMERAS == policy.cameras
    for tokens in retained:
        assert tokens.grid == policy.patch_grid == (2, 2)
        assert tokens.patch_indices.tolist() == [0, 1, 2, 3]
        assert set(tokens.kept_by) == {KeptBy.DENSE}


def test_same_observation_gives_the_same_actions(policy: Policy, observation: Observation) -> None:
    first = policy.infer(observation).actions
    policy.reset()
    np.testing.assert_array_equal(policy.infer(observation).actions, first)


def test_instruction_in_between_leaves_no_trace(policy: Policy, observation: Observation) -> None:
    first = policy.infer(observation).actions
    folding = replace(observation, instruction="fold the shirt")
    other = policy.infer(folding).actions
    assert not np.array_equal(other, first)
    np.testing.assert_array_equal(policy.infer(observation).actions, first)
    policy.reset()
    np.testing.assert_array_equal(policy.infer(folding).actions, other)


def test_order_of_the_images_does_not_matter_their_names_do(
    policy: Policy, observation: Observation
) -> None:
    first = policy.infer(observation).actions
    turned = {name: observation.images[name] for name in reversed(CAMERAS)}
    np.testing.assert_array_equal(policy.infer(replace(observation, images=turned)).actions, first)
    left, right = "cam_left_wrist", "cam_right_wrist"
    swapped = {
        **observation.images,
        left: observation.images[right],
        right: observation.images[left],
    }
    assert not np.array_equal(policy.infer(replace(observation, images=swapped)).actions, first)


def test_random_policy_stays_within_the_robots_limits(tmp_path: Path) -> None:
    make_random_checkpoint(tmp_path / "checkpoint")
    policy = load_policy(PolicyConfig(checkpoint_dir=str(tmp_path / "checkpoint"), device="cpu"))
    lower, upper = position_limits()
    for seed in range(3):
        actions = policy.infer(example_observation(np.random.default_rng(seed))).actions
        assert np.all((actions > lower - 0.1) & (actions < upper + 0.1))
        assert np.abs(np.diff(actions, axis=0))[:, :6].max() < 0.1  # rad in one tick
        assert np.ptp(actions, axis=0).max() > 0.01  # it does move


def drop_camera(observation: Observation) -> Observation:
    kept = CAMERAS[:2]
    return replace(
        observation,
        images={name: observation.images[name] for name in kept},
        image_stamps_ns=dict.fromkeys(kept, 0),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_camera, "expected an image of cam_right_wrist"),
        (lambda o: replace(o, proprio=np.zeros(7)), "expected 14 finite proprio numbers"),
        (lambda o: replace(o, proprio=np.full(14, np.nan)), "expected 14 finite proprio numbers"),
    ],
)
def test_observation_that_does_not_fit_is_refused(
    change: Callable[[Observation], Observation],
    message: str,
    policy: Policy,
    observation: Observation,
) -> None:
    with pytest.raises(ValueError, match=message):
        policy.infer(change(observation))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"checkpoint_dir": ""}, "checkpoint_dir: expected"),
        ({"device": "quantum"}, "device: expected auto, cpu"),
        ({"unnorm_key": "nobody"}, "aloha_sim_random"),
        ({"cameras": ("cam_high", "cam_high")}, "cameras: expected different"),
    ],
)
def test_setting_that_makes_no_sense_is_refused(
    settings: dict[str, object], message: str, tiny_dir: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        load_policy(PolicyConfig(**{"checkpoint_dir": str(tiny_dir), "device": "cpu", **settings}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_gpu_that_is_not_there_is_named(tiny_dir: Path) -> None:
    with pytest.raises(ValueError, match="torch sees none"):
        load_policy(PolicyConfig(checkpoint_dir=str(tiny_dir), device="cuda"))


def test_preprocessing_is_the_checkpoints_unless_overridden(tiny_dir: Path) -> None:
    options = PreprocessingConfig(center_crop=False)
    config = PolicyConfig(checkpoint_dir=str(tiny_dir), device="cpu", preprocessing=options)
    kept = load_policy(config)
    overridden = load_policy(replace(config, override_preprocessing=True))
    assert kept.checkpoint.images.options == PreprocessingConfig()
    assert overridden.checkpoint.images.options == options


def test_cameras_can_be_renamed(tiny_dir: Path, observation: Observation) -> None:
    names = ("above", "left", "right")
    config = PolicyConfig(checkpoint_dir=str(tiny_dir), device="cpu", cameras=names)
    renamed = replace(
        observation,
        images=dict(zip(names, observation.images.values(), strict=True)),
        image_stamps_ns=dict.fromkeys(names, 0),
    )
    actions = load_policy(config).infer(renamed).actions
    plain = load_policy(PolicyConfig(checkpoint_dir=str(tiny_dir), device="cpu"))
    np.testing.assert_array_equal(actions, plain.infer(observation).actions)


def test_rows_of_a_chunk_are_as_far_apart_as_the_control_rate_says(
    tiny_dir: Path, observation: Observation
) -> None:
    config = PolicyConfig(checkpoint_dir=str(tiny_dir), device="cpu")
    assert load_policy(config, control_rate_hz=50.0).infer(observation).dt_ns == 20_000_000


def test_speeds_are_measured_against_the_data_set_that_the_checkpoint_tells_of(
    policy: Policy,
) -> None:
    def with_scale(told: object) -> Policy:
        statistics = {**policy.checkpoint.statistics, "motion_per_step": told}
        return Policy(replace(policy.checkpoint, statistics=statistics), dt_ns=40_000_000)

    told = {"translation_m": 0.5, "rotation_rad": 0.25}
    assert with_scale(told).motion_scale == MotionScale(translation_m=0.5, rotation_rad=0.25)
    assert with_scale({}).motion_scale == MotionScale()
    for wrong in ({"translation_m": 0.5}, {**told, "rotation_rad": -1.0}, 7):
        with pytest.raises(ConfigError, match="motion_per_step: expected"):
            _ = with_scale(wrong).motion_scale


def test_policy_knows_the_robot_it_was_trained_for(policy: Policy) -> None:
    assert policy.profile == "sim"
    assert load_profile(policy.profile).name == "sim"


def test_bfloat16_stays_near_float32(tiny_dir: Path, observation: Observation) -> None:
    wide, narrow = (
        load_policy(PolicyConfig(checkpoint_dir=str(tiny_dir), device="cpu", precision=precision))
        for precision in ("fp32", "bf16")
    )
    assert narrow.dtype == torch.bfloat16
    gap = np.abs(wide.infer_normalized(observation) - narrow.infer_normalized(observation)).max()
    assert 0 < gap < 0.1


def test_diffusion_noise_follows_the_seed(
    committed_golden_dir: Path, tmp_path: Path, observation: Observation
) -> None:
    name = "aloha_nofilm_diffusion10"
    directory = make_variant(committed_golden_dir, name, tmp_path / "checkpoint")
    checkpoint = Case(committed_golden_dir, name, directory).checkpoint
    assert checkpoint.config.head is HeadKind.DIFFUSION

    def chunks(seed: int) -> list[np.ndarray]:
        policy = Policy(checkpoint, dt_ns=1, diffusion_steps=2, seed=seed)
        return [policy.infer(observation).actions for _ in range(2)]

    first, again, other = chunks(0), chunks(0), chunks(1)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], other[0])
