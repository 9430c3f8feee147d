"""Laws of an evaluation: nothing is run twice, nothing is mixed up, intervals are honest."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("mujoco", reason="the extra 'sim' is not installed")
pytest.importorskip("torch", reason="torch is not installed")

import torch

from vla_oft_ros import cli, evaluation
from vla_oft_ros.config import ChunkQueueConfig, ConfigError, PolicyConfig, PruningConfig
from vla_oft_ros.evaluation import (
    Condition,
    Episode,
    Station,
    checkpoint_identity,
    condition_key,
    evaluate,
    read_episodes,
)
from vla_oft_ros.model.shuffled import shuffle_weights
from vla_oft_ros.model.small_checkpoint import make_random_checkpoint
from vla_oft_ros.policy import load_policy
from vla_oft_ros.sim.loop_setting import EpisodeResult, LoopSetting
from vla_oft_ros.sim.success_rate import summarize, wilson_interval

pytestmark = pytest.mark.sim

SHORT = LoopSetting(queue=ChunkQueueConfig(join="sync"), time_limit_s=1.6)
ORACLE = Condition(name="oracle", policy=None, loop=SHORT)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint") / "small"
    make_random_checkpoint(directory)
    return directory


def policy_of(checkpoint: Path, **changes: object) -> PolicyConfig:
    return PolicyConfig(checkpoint_dir=str(checkpoint), device="cpu", **changes)  # type: ignore[arg-type]


def outcomes(episodes: list[tuple[Condition, Episode]]) -> dict[tuple[str, int], EpisodeResult]:
    return {
        (condition.name, episode.seed): replace(
            episode.result, inference_ms=(), inference_cpu_ms=()
        )
        for condition, episode in episodes
    }


def result_of(success: bool, max_reward: int, **changes: object) -> EpisodeResult:
    return replace(
        EpisodeResult(
            success=success,
            max_reward=max_reward,
            done_s=4.0 if success else None,
            end_s=5.0,
            nearest_mm=3.0,
            inference_ms=(10.0, 30.0, 20.0),
            inference_cpu_ms=(1.0, 2.0, 3.0),
            kept=(1.0, 0.4, 0.4),
            ticks=100,
            idle_ticks=5,
            held_ticks=7,
            refused=0,
            interventions={"velocity": 2, "position": 1},
        ),
        **changes,
    )


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    # Brown, Cai & DasGupta 2001, and the formula by hand.
    [
        (8, 10, 0.4902, 0.9433),
        (0, 10, 0.0, 0.2775),
        (50, 50, 0.9287, 1.0),
        (40, 50, 0.6696, 0.8876),
    ],
)
def test_intervals_are_those_of_wilson(
    successes: int, episodes: int, low: float, high: float
) -> None:
    assert wilson_interval(successes, episodes) == pytest.approx((low, high), abs=1e-4)


def test_intervals_hold_the_rate_mirror_and_narrow() -> None:
    for episodes in (1, 7, 50):
        for successes in range(episodes + 1):
            low, high = wilson_interval(successes, episodes)
            assert 0.0 <= low <= successes / episodes <= high <= 1.0
            mirrored = wilson_interval(episodes - successes, episodes)
            assert mirrored == pytest.approx((1.0 - high, 1.0 - low))
            wide = high - low
            low, high = wilson_interval(10 * successes, 10 * episodes)
            assert high - low < wide
    assert wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="3 of 2"):
        wilson_interval(3, 2)


def test_a_summary_counts_what_the_episodes_hold() -> None:
    results = [result_of(True, 4), result_of(False, 2), result_of(False, 2, nearest_mm=9.0)]
    summary = summarize("x", results, 4)
    assert (summary.episodes, summary.successes) == (3, 1)
    assert summary.rewards == (0, 0, 2, 0, 1)
    assert (summary.done_s, summary.nearest_mm, summary.inference_ms) == (4.0, 3.0, 20.0)
    assert summary.kept == pytest.approx(0.6)
    assert summary.idle == pytest.approx(0.05)
    assert summary.interventions == 3.0
    assert math.isnan(summarize("x", results[1:], 4).done_s)


def test_an_evaluation_runs_no_episode_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep" / "episodes.jsonl"
    first = list(evaluate([ORACLE], [1, 2], path))
    ran: list[int] = []

    def run(self: Station, condition: Condition, seed: int) -> EpisodeResult:
        ran.append(seed)
        return result_of(False, 0)

    monkeypatch.setattr(Station, "run", run)
    again = list(evaluate([ORACLE], [1, 2, 3], path))
    assert ran == [3]
    assert again[:2] == first
    assert [episode.seed for _, episode in again] == [1, 2, 3]


def test_a_killed_evaluation_loses_the_line_it_was_writing_only(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    whole = outcomes(list(evaluate([ORACLE], [1, 2], path)))
    text = path.read_text()
    path.write_text(text[:-40])
    assert [episode.seed for episode in read_episodes(path)] == [1]
    assert outcomes(list(evaluate([ORACLE], [1, 2], path))) == whole
    assert [episode.seed for episode in read_episodes(path)] == [1, 2]
    for line in path.read_text().splitlines()[:1] + path.read_text().splitlines()[2:]:
        json.loads(line)


def test_an_episode_that_was_interrupted_is_not_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(self: Station, condition: Condition, seed: int) -> EpisodeResult:
        if seed == 2:
            raise KeyboardInterrupt
        return result_of(True, 4)

    monkeypatch.setattr(Station, "run", run)
    path = tmp_path / "episodes.jsonl"
    with pytest.raises(KeyboardInterrupt):
        list(evaluate([ORACLE], [1, 2, 3], path))
    assert [episode.seed for episode in read_episodes(path)] == [1]


def test_the_key_knows_every_setting_and_no_name(checkpoint: Path, tmp_path: Path) -> None:
    base = Condition(name="a", policy=policy_of(checkpoint))
    other = tmp_path / "other"
    make_random_checkpoint(other, seed=1)
    pruning = PruningConfig(method="specprune")
    different = [
        base,
        replace(base, policy=None),
        replace(base, task="pick_cube"),
        replace(base, policy=policy_of(other)),
        replace(base, policy=policy_of(checkpoint, diffusion_steps=5)),
        replace(base, policy=policy_of(checkpoint, pruning=pruning)),
        replace(base, policy=policy_of(checkpoint, pruning=replace(pruning, alpha=0.6))),
        replace(base, loop=LoopSetting(latency_ms=100.0)),
        replace(base, loop=LoopSetting(sight="blank")),
        replace(base, loop=LoopSetting(queue=ChunkQueueConfig(join="sync"))),
        replace(base, loop=LoopSetting(time_limit_s=9.0)),
        replace(base, shuffled=True),
    ]
    keys = [condition_key(condition) for condition in different]
    assert len(set(keys)) == len(keys)
    assert condition_key(replace(base, name="b")) == keys[0]
    assert condition_key(replace(base, policy=policy_of(checkpoint, threads=1))) == keys[0]


def test_a_checkpoint_is_known_by_what_it_answers_and_not_by_where_it_lies(
    checkpoint: Path, tmp_path: Path
) -> None:
    same, bare = tmp_path / "same", tmp_path / "bare"
    make_random_checkpoint(same)
    assert checkpoint_identity(same) == checkpoint_identity(checkpoint)
    (same / "fingerprint.json").write_text("{}")
    assert checkpoint_identity(same) != checkpoint_identity(checkpoint)
    bare.mkdir()
    (bare / "model.safetensors").write_bytes(b"1")
    before = checkpoint_identity(bare)
    (bare / "model.safetensors").write_bytes(b"2")
    assert checkpoint_identity(bare) != before
    with pytest.raises(ConfigError, match="expected a directory"):
        checkpoint_identity(tmp_path / "nowhere")


def test_several_processes_find_what_one_finds(checkpoint: Path, tmp_path: Path) -> None:
    conditions = [ORACLE, Condition(name="network", policy=policy_of(checkpoint), loop=SHORT)]
    alone = outcomes(list(evaluate(conditions, [1, 2], tmp_path / "one.jsonl")))
    together = list(evaluate(conditions, [1, 2], tmp_path / "two.jsonl", workers=2))
    assert len(together) == 4
    assert outcomes(together) == alone


def test_what_is_random_in_an_episode_depends_on_its_seed_alone(
    checkpoint: Path, tmp_path: Path
) -> None:
    random = Condition(
        name="random",
        policy=policy_of(checkpoint, pruning=PruningConfig(method="random", alpha=0.3)),
        loop=replace(SHORT, mode="coarse"),
    )
    after_another = outcomes(list(evaluate([random], [1, 2], tmp_path / "a.jsonl")))
    alone = outcomes(list(evaluate([random], [2], tmp_path / "b.jsonl")))
    assert after_another["random", 2] == alone["random", 2]
    assert alone["random", 2].kept[0] < 0.3


def test_conditions_take_turns_on_every_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, int]] = []

    def run(self: Station, condition: Condition, seed: int) -> EpisodeResult:
        ran.append((condition.name, seed))
        return result_of(True, 4)

    monkeypatch.setattr(Station, "run", run)
    other = replace(ORACLE, name="other", loop=LoopSetting(latency_ms=100.0))
    list(evaluate([ORACLE, other], [5, 6], tmp_path / "episodes.jsonl"))
    assert ran == [("oracle", 5), ("other", 5), ("oracle", 6), ("other", 6)]


def test_shuffled_weights_are_the_same_values_in_other_places(checkpoint: Path) -> None:
    before, after, again = (load_policy(policy_of(checkpoint)).checkpoint.model for _ in range(3))
    shuffle_weights(after)
    shuffle_weights(again)
    for (name, old), new, same in zip(
        before.named_parameters(), after.parameters(), again.parameters(), strict=True
    ):
        assert torch.equal(old.flatten().sort().values, new.flatten().sort().values)
        assert torch.equal(new, same)
        if old.unique().numel() > 10:
            assert not torch.equal(old, new), name


def test_a_shuffled_network_acts_otherwise_and_leaves_the_real_one_as_it_is(
    checkpoint: Path, tmp_path: Path
) -> None:
    real = Condition(name="real", policy=policy_of(checkpoint), loop=SHORT)
    shuffled = replace(real, name="shuffled", shuffled=True)
    alone = outcomes(list(evaluate([real], [1, 2], tmp_path / "a.jsonl")))
    both = outcomes(list(evaluate([shuffled, real], [1, 2], tmp_path / "b.jsonl")))
    for seed in (1, 2):
        assert both["real", seed] == alone["real", seed]
        assert both["shuffled", seed].nearest_mm != both["real", seed].nearest_mm


@pytest.fixture
def short_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Station, "run", lambda *_: result_of(True, 4))
    yield


def test_the_command_says_how_often_and_how_sure(
    tmp_path: Path, short_time: None, capsys: pytest.CaptureFixture[str]
) -> None:
    output, summary = tmp_path / "e.jsonl", tmp_path / "s.json"
    arguments = ["eval", "oracle", "--episodes", "4", "--output", str(output)]
    assert cli.main([*arguments, "--json", str(summary)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "4 of 4 episodes succeeded, 100 % (95 % interval 51 to 100 %)" in text
    assert [episode.seed for episode in read_episodes(output)] == [10000, 10001, 10002, 10003]
    assert json.loads(summary.read_text())["successes"] == 4


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--episodes", "0"], "at least one episode"),
        (["--workers", "0"], "workers"),
        (["--join", "glue"], "join"),
        (["--task", "cook"], "task"),
        (["--sight", "x"], "sight"),
    ],
)
def test_a_mistake_on_the_command_line_is_told(
    wrong: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "e.jsonl")
    assert cli.main(["eval", "oracle", "--output", output, *wrong]) == cli.EXIT_BAD_INPUT
    assert told in capsys.readouterr().err


def test_evaluations_use_poses_that_no_training_had() -> None:
    assert evaluation.FIRST_SEED >= 10_000
    parser = cli.build_parser().parse_args(["eval", "oracle"])
    assert parser.seed == evaluation.FIRST_SEED
