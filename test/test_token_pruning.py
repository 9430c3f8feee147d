"""Laws of token pruning from one inference to the next, on a small random checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_oft_ros.aloha import CAMERAS, example_observation
from vla_oft_ros.config import ConfigError, PolicyConfig, PruningConfig
from vla_oft_ros.model.action_head import HeadKind
from vla_oft_ros.model.inputs import PROMPT
from vla_oft_ros.model.small_checkpoint import make_random_checkpoint
from vla_oft_ros.normalization import unnormalize
from vla_oft_ros.policy import Policy, load_policy
from vla_oft_ros.types import ActionChunk, KeptBy, MotionMode, Observation

TICK_NS = 40_000_000
CHUNK_NS = 25 * TICK_NS
PATCHES = 64


@pytest.fixture(scope="module")
def checkpoint_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint") / "small"
    make_random_checkpoint(directory)
    return directory


def policy_with(checkpoint_dir: Path, **changes: object) -> Policy:
    return load_policy(
        PolicyConfig(
            checkpoint_dir=str(checkpoint_dir),
            device="cpu",
            pruning=PruningConfig(**{"method": "specprune", **changes}),
        )
    )


@pytest.fixture(scope="module")
def pruned_policy(checkpoint_dir: Path) -> Policy:
    return policy_with(checkpoint_dir)


@pytest.fixture
def policy(pruned_policy: Policy) -> Policy:
    pruned_policy.reset()
    return pruned_policy


def seen_at(stamp_ns: int, seed: int = 0, instruction: str = "transfer the cube") -> Observation:
    generator = np.random.default_rng(seed)
    observation = example_observation(generator, instruction)
    return replace(
        observation,
        image_stamps_ns=dict.fromkeys(observation.images, stamp_ns),
        proprio_stamp_ns=stamp_ns,
        reference_images=observation.images,
    )


def is_dense(chunk: ActionChunk) -> bool:
    return {record.layer for record in chunk.retained} == {0}


@torch.inference_mode()
def test_without_pruning_the_network_answers_as_published_up_to_rounding(
    checkpoint_dir: Path,
) -> None:
    off = policy_with(checkpoint_dir, method="none")
    for number in range(2):
        observation = seen_at(number * 15 * TICK_NS, seed=number)
        chunk = off.infer(observation)
        published = off.checkpoint.model(off.inputs(observation)).actions[0].double().numpy()
        stats = off.checkpoint.action_stats
        np.testing.assert_allclose(chunk.actions, unnormalize(published, stats), rtol=0, atol=5e-6)
        assert is_dense(chunk)


def test_the_first_inference_is_dense_and_the_next_is_pruned(policy: Policy) -> None:
    first, second = policy.infer(seen_at(TICK_NS)), policy.infer(seen_at(16 * TICK_NS, seed=1))
    assert is_dense(first)
    assert [record.layer for record in second.retained] == [2] * 3 + [4] * 3 + [7] * 3
    assert [record.camera for record in second.retained] == list(CAMERAS) * 3
    kept = [
        sum(r.patch_indices.size for r in second.retained if r.layer == layer)
        for layer in (2, 4, 7)
    ]
    assert kept == [3 * (6 + 2 * 8 + 2), 64, 57]


def test_a_dense_first_pass_acts_as_if_nothing_were_pruned(
    policy: Policy, checkpoint_dir: Path
) -> None:
    plain = policy_with(checkpoint_dir, method="none")
    observation = seen_at(0)
    assert np.array_equal(policy.infer(observation).actions, plain.infer(observation).actions)


def test_a_budget_of_all_patches_acts_as_if_nothing_were_pruned(checkpoint_dir: Path) -> None:
    whole = policy_with(checkpoint_dir, budget_fine=3 * PATCHES, gamma=1.0)
    plain = policy_with(checkpoint_dir, method="none")
    for number in range(3):
        observation = seen_at(number * 15 * TICK_NS, seed=number)
        chunk = whole.infer(observation)
        assert np.array_equal(chunk.actions, plain.infer(observation).actions)
    assert {record.retain_ratio for record in chunk.retained} == {1.0}
    assert not is_dense(chunk)


def test_coarse_motion_keeps_fewer_patches_than_fine(policy: Policy) -> None:
    kept = {}
    for mode in MotionMode:
        policy.reset()
        policy.infer(seen_at(0), mode=mode)
        chunk = policy.infer(seen_at(15 * TICK_NS), mode=mode)
        kept[mode] = sum(r.patch_indices.size for r in chunk.retained if r.layer == 2)
    assert kept[MotionMode.COARSE] == 3 * (6 + 2 * 5 + 4)
    assert kept[MotionMode.COARSE] < kept[MotionMode.FINE]


def test_whoever_does_not_say_the_mode_gets_the_careful_one(policy: Policy) -> None:
    policy.infer(seen_at(0))
    chunk = policy.infer(seen_at(15 * TICK_NS))
    assert sum(r.patch_indices.size for r in chunk.retained if r.layer == 2) == 72


def test_patches_that_changed_are_kept_as_dynamic(checkpoint_dir: Path) -> None:
    policy = policy_with(checkpoint_dir, preset="paper")
    policy.infer(seen_at(0))
    before = np.full((480, 640, 3), 90, dtype=np.uint8)
    after = before.copy()
    after[210:270, 280:360] = (0, 200, 10)  # something green appears in the middle
    observation = replace(
        seen_at(15 * TICK_NS),
        images=dict.fromkeys(CAMERAS, after),
        reference_images=dict.fromkeys(CAMERAS, before),
    )
    for record in policy.infer(observation).retained[:3]:
        dynamic = record.patch_indices[record.kept_by & KeptBy.DYNAMIC > 0]
        assert len(dynamic) == 2
        assert set(dynamic.tolist()) <= {row * 8 + column for row in (3, 4) for column in (3, 4)}


@pytest.mark.parametrize(
    ("next_one", "dense"),
    [
        (seen_at(15 * TICK_NS), False),
        # Open loop: all of a chunk is played, then the arms wait for the answer (0.32 s, OFT).
        (seen_at(CHUNK_NS + 8 * TICK_NS), False),
        (seen_at(2 * CHUNK_NS), False),
        (seen_at(2 * CHUNK_NS + 1), True),
        (seen_at(15 * TICK_NS, instruction="open the drawer"), True),
        (seen_at(-TICK_NS), True),
        (replace(seen_at(15 * TICK_NS), reference_images=None), True),
    ],
    ids=[
        "next",
        "open loop",
        "two chunks later",
        "after that",
        "new words",
        "back in time",
        "no reference",
    ],
)
def test_what_an_inference_leaves_holds_only_for_what_continues_it(
    policy: Policy, next_one: Observation, dense: bool
) -> None:
    policy.infer(seen_at(0))
    assert is_dense(policy.infer(next_one)) == dense


def test_a_camera_that_stands_still_drops_the_state(policy: Policy) -> None:
    policy.infer(seen_at(0))
    observation = seen_at(15 * TICK_NS)
    stamps = {**observation.image_stamps_ns, CAMERAS[1]: 0}
    assert is_dense(policy.infer(replace(observation, image_stamps_ns=stamps)))


def test_a_camera_without_reference_makes_the_pass_dense_and_the_next_one_pruned(
    policy: Policy,
) -> None:
    policy.infer(seen_at(0))
    observation = seen_at(15 * TICK_NS)
    references = {**observation.images, CAMERAS[2]: None}
    assert is_dense(policy.infer(replace(observation, reference_images=references)))
    assert not is_dense(policy.infer(seen_at(30 * TICK_NS)))


def test_a_new_episode_starts_dense(policy: Policy) -> None:
    policy.infer(seen_at(0))
    policy.reset()
    assert is_dense(policy.infer(seen_at(15 * TICK_NS)))


def test_an_episode_repeats_bit_for_bit(policy: Policy) -> None:
    runs = []
    for _ in range(2):
        policy.reset()
        runs.append([policy.infer(seen_at(n * 15 * TICK_NS, seed=n)) for n in range(3)])
    for first, again in zip(*runs, strict=True):
        assert np.array_equal(first.actions, again.actions)


@pytest.mark.parametrize("method", ["random", "fastv", "divprune"])
def test_rivals_prune_from_the_first_inference_on(checkpoint_dir: Path, method: str) -> None:
    chunk = policy_with(checkpoint_dir, method=method).infer(seen_at(0))
    assert sum(r.patch_indices.size for r in chunk.retained if r.layer == 2) == 72
    assert np.all(np.isfinite(chunk.actions))


@pytest.mark.parametrize("method", ["random", "fastv", "divprune"])
def test_rivals_that_start_dense_keep_as_many_tokens_as_specprune_in_every_inference(
    checkpoint_dir: Path, policy: Policy, method: str
) -> None:
    rival = policy_with(checkpoint_dir, method=method, rivals_start_dense=True)
    stamps = [0, 15, 30, 30 + 51, 30 + 52]  # ticks; the fourth comes too late to go on from
    for episode in range(2):
        policy.reset()
        rival.reset()
        for number, ticks in enumerate(stamps):
            mode = list(MotionMode)[number % 2]
            observation = seen_at(ticks * TICK_NS, seed=10 * episode + number)
            counts = [
                [
                    sum(r.patch_indices.size for r in chunk.retained if r.layer == layer)
                    for layer in sorted({r.layer for r in chunk.retained})
                ]
                for chunk in (p.infer(observation, mode=mode) for p in (policy, rival))
            ]
            assert counts[0] == counts[1]
            assert (len(counts[0]) == 1) == (number in (0, 3))


def test_text_is_the_operators_words_or_the_whole_prompt(
    policy: Policy, checkpoint_dir: Path
) -> None:
    words = "pick up the red cube"
    ids = policy.checkpoint.tokenizer.prompt_ids(words)
    layout = policy.checkpoint.config.layout(len(ids))
    decode = policy.checkpoint.tokenizer._tokenizer.decode

    def text_of(policy: Policy, instruction: str) -> str:
        span = policy._pruning.text(instruction)
        first = layout.prompt.start - 1
        start, stop = policy.engine.instruction(ids, span).text
        return decode(ids[start - first : stop - first].tolist()).strip()

    assert text_of(policy, words) == words
    whole = policy_with(checkpoint_dir, text_span="prompt")
    assert text_of(whole, words) == PROMPT.format(words).strip()


def test_an_empty_instruction_still_works(policy: Policy) -> None:
    policy.infer(seen_at(0, instruction=""))
    assert not is_dense(policy.infer(seen_at(15 * TICK_NS, instruction="")))


def test_token_by_token_decoding_refuses_pruning(checkpoint_dir: Path) -> None:
    checkpoint = policy_with(checkpoint_dir).checkpoint
    checkpoint.model.config = replace(checkpoint.config, head=HeadKind.AUTOREGRESSIVE)
    with pytest.raises(ConfigError, match="token by token"):
        Policy(checkpoint, dt_ns=TICK_NS, pruning=PruningConfig(method="specprune"))
