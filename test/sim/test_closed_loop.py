"""Laws of the closed loop: it adds nothing of its own, and a perfect policy comes through it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("mujoco", reason="the extra 'sim' is not installed")

from vla_oft_ros.action_aware import MotionScale
from vla_oft_ros.aloha import CAMERAS, GripperCalibration, load_profile
from vla_oft_ros.config import ChunkQueueConfig, ConfigError
from vla_oft_ros.sim.aim import aim_errors, grasp_tick
from vla_oft_ros.sim.aloha_world import AlohaWorld
from vla_oft_ros.sim.closed_loop import run_episode
from vla_oft_ros.sim.loop_setting import Actor, EpisodeResult, LoopSetting
from vla_oft_ros.sim.oracle import Oracle
from vla_oft_ros.sim.record import measured
from vla_oft_ros.types import ActionChunk, MotionMode, Observation

pytestmark = pytest.mark.sim

PROFILE = load_profile("sim")
SYNC = ChunkQueueConfig(join="sync")
SEEDS = range(10_000, 10_003)


class Witness:
    """Answers as another actor does, wants to see, and remembers what it was shown."""

    def __init__(self, actor: Actor, cameras: tuple[str, ...] = CAMERAS) -> None:
        self._actor = actor
        self.cameras = cameras
        self.motion_scale = MotionScale()
        self.seen: list[Observation] = []
        self.modes: list[MotionMode] = []

    def reset(self) -> None:
        self._actor.reset()

    def infer(self, observation: Observation, *, mode: MotionMode) -> ActionChunk:
        self.seen.append(observation)
        self.modes.append(mode)
        return self._actor.infer(observation, mode=mode)


class Still:
    """Wants the arms to stay where they are."""

    cameras = ()
    motion_scale = MotionScale()

    def reset(self) -> None:
        pass

    def infer(self, observation: Observation, *, mode: MotionMode) -> ActionChunk:
        return ActionChunk(
            actions=np.tile(observation.proprio, (25, 1)),
            stamp_ns=observation.stamp_ns,
            dt_ns=40_000_000,
            instruction=observation.instruction,
            inference_s=0.0,
        )


def outcome(result: EpisodeResult) -> EpisodeResult:
    """Without the times that the machine needed."""
    return replace(result, inference_ms=(), inference_cpu_ms=())


@pytest.mark.parametrize("join", ["sync", "latency_matched_blend"])
@pytest.mark.parametrize("latency_ms", [0.0, 321.0])
def test_a_perfect_policy_succeeds_from_poses_nobody_saw_before(
    world: AlohaWorld, join: str, latency_ms: float
) -> None:
    setting = LoopSetting(queue=ChunkQueueConfig(join=join), latency_ms=latency_ms)
    for seed in SEEDS:
        world.reset(seed=seed)
        result = run_episode(world, PROFILE, Oracle(world), setting)
        assert result.success, (seed, result)
        assert result.max_reward == 4
        assert result.nearest_mm < 5.0


def test_a_perfect_policy_picks_the_cube_that_is_asked_for(
    calibration: GripperCalibration,
) -> None:
    world = AlohaWorld(calibration, task="pick_cube")
    for seed in SEEDS:
        world.reset(seed=seed)
        assert run_episode(world, PROFILE, Oracle(world), LoopSetting(queue=SYNC)).success


def test_a_policy_that_does_nothing_fails_when_the_time_is_over(world: AlohaWorld) -> None:
    result = run_episode(world, PROFILE, Still(), LoopSetting(time_limit_s=2.0))
    assert (result.success, result.done_s) == (False, None)
    assert (result.max_reward, result.ticks, result.end_s) == (0, 50, pytest.approx(2.0))


def test_an_episode_ends_a_settling_time_after_the_task_is_done(world: AlohaWorld) -> None:
    for settle_s in (0.0, 0.6):
        world.reset(seed=0)
        setting = LoopSetting(queue=SYNC, settle_s=settle_s)
        result = run_episode(world, PROFILE, Oracle(world), setting)
        assert result.done_s is not None
        assert result.end_s == pytest.approx(result.done_s + settle_s)
        assert result.ticks == round(result.end_s * 25)


def test_what_is_dropped_while_the_task_settles_is_no_success(world: AlohaWorld) -> None:
    class Dropping(Oracle):
        def infer(
            self, observation: Observation, *, mode: MotionMode = MotionMode.FINE
        ) -> ActionChunk:
            chunk = super().infer(observation, mode=mode)
            late = observation.stamp_ns + np.arange(25) * chunk.dt_ns > 4.8e9
            actions = chunk.actions.copy()
            actions[np.ix_(late, [6, 13])] = 1.0  # opens both grippers
            return replace(chunk, actions=actions)

    assert run_episode(world, PROFILE, Oracle(world), LoopSetting()).success
    world.reset(seed=0)
    result = run_episode(world, PROFILE, Dropping(world), LoopSetting(settle_s=1.0))
    assert result.done_s is not None
    assert not result.success


@pytest.mark.parametrize(("latency_ms", "wait_ticks"), [(0.0, 0), (100.0, 3), (321.0, 9)])
def test_with_sync_the_arms_wait_for_every_answer(
    world: AlohaWorld, latency_ms: float, wait_ticks: int
) -> None:
    setting = LoopSetting(queue=SYNC, latency_ms=latency_ms)
    result = run_episode(world, PROFILE, Oracle(world), setting)
    # The answer to the last question may not have come any more.
    started = -(-result.ticks // (25 + wait_ticks))
    assert len(result.kept) == started
    assert result.held_ticks == pytest.approx(started * wait_ticks, abs=wait_ticks)
    assert result.idle_ticks == result.held_ticks - wait_ticks  # the first wait is no gap


def test_the_default_join_waits_for_the_first_answer_only(world: AlohaWorld) -> None:
    witness = Witness(Oracle(world), cameras=())
    result = run_episode(world, PROFILE, witness, LoopSetting(latency_ms=321.0))
    assert (result.held_ticks, result.idle_ticks) == (9, 0)
    stamps = [observation.stamp_ns for observation in witness.seen]
    assert set(np.diff(stamps)) == {15 * 40_000_000}


def test_a_policy_sees_what_a_recorder_would_have_written_down(world: AlohaWorld) -> None:
    images, joints = world.images(), measured(world, PROFILE)
    witness = Witness(Oracle(world))
    run_episode(world, PROFILE, witness, LoopSetting(queue=SYNC, time_limit_s=1.2))
    first, second = witness.seen
    np.testing.assert_array_equal(first.proprio, joints)
    for camera in CAMERAS:
        np.testing.assert_array_equal(first.images[camera], images[camera])
    assert (first.stamp_ns, second.stamp_ns) == (0, 25 * 40_000_000)
    assert first.instruction == world.instruction

    world.reset(seed=0)
    for targets in Oracle(world).infer(first, mode=MotionMode.FINE).actions:
        world.set_targets(targets)
        world.advance(40_000_000)
    np.testing.assert_allclose(second.proprio, measured(world, PROFILE), atol=0.01)


def test_looking_changes_nothing(world: AlohaWorld) -> None:
    results = []
    for cameras, looks_back in (((), False), (CAMERAS, False), (CAMERAS, True)):
        world.reset(seed=1)
        setting = LoopSetting(latency_ms=60.0, time_limit_s=2.0, looks_back=looks_back)
        results.append(
            outcome(run_episode(world, PROFILE, Witness(Oracle(world), cameras), setting))
        )
    assert results[0] == results[1] == results[2]


def test_reference_images_are_those_of_the_tick_they_claim(world: AlohaWorld) -> None:
    # At rest the reference lies 11 ticks back: the image of the question before.
    setting = LoopSetting(execute_steps=11, looks_back=True, time_limit_s=0.6)
    witness = Witness(Still(), CAMERAS)
    run_episode(world, PROFILE, witness, setting)
    first, second = witness.seen
    assert first.reference_images == dict.fromkeys(CAMERAS)
    assert second.reference_images is not None
    for camera in CAMERAS:
        np.testing.assert_array_equal(second.reference_images[camera], first.images[camera])
    # The cube falls at first, so that these images differ.
    assert np.any(second.images["cam_high"] != first.images["cam_high"])


def test_a_blind_policy_sees_grey_and_another_sight_is_of_another_cube(
    world: AlohaWorld, calibration: GripperCalibration
) -> None:
    blind = Witness(Still(), CAMERAS)
    setting = LoopSetting(sight="blank", execute_steps=11, looks_back=True, time_limit_s=0.6)
    run_episode(world, PROFILE, blind, setting)
    for observation in blind.seen:
        references = observation.reference_images
        assert references is not None
        shown = [*observation.images.values(), *references.values()]
        assert all(image is None or np.ptp(image) == 0 for image in shown)
    # What it is compared with is no sight either.
    assert all(image is not None for image in (blind.seen[-1].reference_images or {}).values())

    other = AlohaWorld(calibration, width_px=160, height_px=120)
    other.reset(seed=77)
    there = other.images()
    world.reset(seed=0)
    elsewhere = Witness(Oracle(world), CAMERAS)
    setting = LoopSetting(queue=SYNC, sight="other")
    assert run_episode(world, PROFILE, elsewhere, setting, other=other).success
    for camera in CAMERAS:
        np.testing.assert_array_equal(elsewhere.seen[0].images[camera], there[camera])
    assert other.reward() != world.reward()
    # Its robot does the same all the time.
    np.testing.assert_array_equal(other.targets(), world.targets())
    other.close()


def test_the_mode_follows_the_motion_unless_it_is_fixed(world: AlohaWorld) -> None:
    modes = {}
    for mode in ("action_aware", "coarse", "fine"):
        world.reset(seed=0)
        witness = Witness(Oracle(world), cameras=())
        run_episode(world, PROFILE, witness, LoopSetting(mode=mode))
        modes[mode] = set(witness.modes)
    assert modes["action_aware"] == {MotionMode.COARSE, MotionMode.FINE}
    assert modes["coarse"] == {MotionMode.COARSE}
    assert modes["fine"] == {MotionMode.FINE}


def test_a_policy_can_be_told_something_else_than_what_is_asked_for(world: AlohaWorld) -> None:
    witness = Witness(Still(), cameras=())
    setting = LoopSetting(instruction="do the dishes", time_limit_s=0.2)
    run_episode(world, PROFILE, witness, setting)
    assert {observation.instruction for observation in witness.seen} == {"do the dishes"}


def test_a_perfect_policy_does_what_it_hears_and_not_what_is_asked_for(
    calibration: GripperCalibration,
) -> None:
    world = AlohaWorld(calibration, task="pick_cube")
    for seed in SEEDS:
        world.reset(seed=seed)
        asked = world.instruction
        for words in world.task.instructions:
            world.reset(seed=seed)
            result = run_episode(world, PROFILE, Oracle(world), LoopSetting(instruction=words))
            assert result.success == (words == asked)
            assert result.max_reward == (4 if words == asked else 2)


def test_answers_that_come_too_late_are_refused_and_counted(world: AlohaWorld) -> None:
    setting = LoopSetting(latency_ms=2500.0, time_limit_s=6.0)
    result = run_episode(world, PROFILE, Still(), setting)
    assert result.refused == 2
    assert result.held_ticks == result.ticks


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "bold"},
        {"sight": "inner"},
        {"execute_steps": 0},
        {"latency_ms": -1.0},
        {"settle_s": -0.1},
        {"time_limit_s": 0.0},
    ],
)
def test_settings_without_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        LoopSetting(**wrong)  # type: ignore[arg-type]


def test_another_world_is_taken_for_another_sight_only(world: AlohaWorld) -> None:
    for sight, other in (("own", world), ("other", None)):
        with pytest.raises(ConfigError, match="another world"):
            run_episode(world, PROFILE, Still(), LoopSetting(sight=sight), other=other)


def test_the_teleoperator_aims_at_what_the_teleoperator_does(world: AlohaWorld) -> None:
    errors = aim_errors(world, PROFILE, Oracle(world))
    assert errors.shape == (152, 2)
    assert errors.max() < 2.0  # the cube falls after the first look
    assert np.median(errors) < 1e-6
    assert 0 < grasp_tick(world) < len(errors)


def test_who_stays_at_home_misses_by_the_way_to_the_cube(world: AlohaWorld) -> None:
    errors = aim_errors(world, PROFILE, Still())
    assert errors[:, 1].max() > 50.0
    assert errors[0].max() < 5.0  # at once nothing is far
