"""A replay through a real controller: in order, not before a yes, and never on another robot."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ros.graph import Graph, parameters
from ros.test_controller_node import DT_NS, Bench
from std_srvs.srv import Trigger

from vla_oft_ros import cli
from vla_oft_ros import msg as messages
from vla_oft_ros.aloha import ACTION_DIM, start_pose
from vla_oft_ros.data.episode import Episode
from vla_oft_ros.data.replay import replay_targets
from vla_oft_ros.ros import replay_robot
from vla_oft_ros.ros.conversions import stamp_from_msg
from vla_oft_ros.ros.replay_robot import ReplayRefused, ReplayStopped, RobotReplay
from vla_oft_ros.ros.robot_io import targets_from_msg

RATE_HZ = 25.0
STEPS = 40
SAME_RAD = 1e-6


def episode(profile: str = "sim", away: float = 0.0) -> Episode:
    """Arms that swing about the start pose and grippers that close."""
    time_s = np.arange(STEPS)[:, None] / RATE_HZ
    action = start_pose(0.5) + 0.1 * (1.0 - np.cos(2.0 * time_s + np.zeros(ACTION_DIM)))
    action[:, 6::7] = np.linspace(0.5, 0.1, STEPS)[:, None]
    action[:, 0] += away
    stamps = np.round(np.arange(STEPS) * 1e9 / RATE_HZ).astype(np.int64)
    return Episode(
        images={},
        qpos=action,
        action=action,
        stamps_ns=stamps,
        rate_hz=RATE_HZ,
        instruction="wave",
        profile=profile,
        source="take",
    )


@pytest.fixture
def make_bench(make_graph: Callable[..., Graph]) -> Callable[..., Bench]:
    def make(**settings: object) -> Bench:
        bench = Bench(make_graph(*parameters(use_sim_time="true", **settings)))
        assert bench.node.autostart()
        bench.until_targets(5)
        silence_policy(bench)
        return bench

    return make


def silence_policy(bench: Bench) -> None:
    ear = bench.graph.ear
    ear.destroy_publisher(bench._chunks)
    bench.graph.until(lambda: not ear.count_publishers("action_chunk"), "no policy")


def a_replay(bench: Bench, recorded: Episode | None = None) -> RobotReplay:
    def spin() -> None:
        bench.graph.executor.spin_once(timeout_sec=0.02)

    return bench.graph.add(RobotReplay(recorded or episode(), spin))


def published(bench: Bench, first: int) -> np.ndarray:
    return np.array([targets_from_msg(message) for message in bench.targets[first:]])


@pytest.mark.parametrize("join", ["latency_matched_blend", "replace"])
@pytest.mark.parametrize("away", [0.0, 0.4])
def test_the_recorded_targets_leave_in_order_and_each_once(
    join: str, away: float, make_bench: Callable[..., Bench]
) -> None:
    bench = make_bench(queue__join=join)
    recorded = episode(away=away)
    present = targets_from_msg(bench.targets[-1])
    wanted = replay_targets(recorded, present, rate_hz=RATE_HZ)
    replay = a_replay(bench, recorded)
    plan = replay.connect()
    first = len(bench.targets)
    shares: list[float] = []
    outcome = replay.run(shares.append)
    bench.until_targets(5)
    stamps = np.array([stamp_from_msg(message.header.stamp) for message in bench.targets[first:]])
    steps = (stamps - replay._chunks._origin_ns) / DT_NS  # a late tick is between two of them
    during = steps <= len(wanted) - 1
    arms, sent = [*range(6), *range(7, 13)], published(bench, first)
    times = np.arange(-1, len(wanted))
    path = np.concatenate([present[None], wanted])
    # It stays where it is, then each target at its own tick.
    for joint in range(ACTION_DIM):
        expected = np.interp(steps, times, path[:, joint])
        tolerance = SAME_RAD if joint in arms else 0.03  # a gripper takes the nearer row
        assert np.abs(sent[:, joint] - expected)[during].max() < tolerance
    assert np.all(np.diff(steps) > 0) and steps[during].max() > len(wanted) - 2
    assert np.abs(sent[-1] - wanted[-1]).max() < SAME_RAD
    assert outcome.farthest_rad < SAME_RAD and outcome.interventions.keys() <= {"no_action"}
    assert plan.profile == "sim" and plan.duration_s == len(wanted) / RATE_HZ
    assert plan.way_rad == pytest.approx(away, abs=SAME_RAD)
    assert (plan.ease_in_s > 0.5) == (away > 0.0)
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_nothing_leaves_before_it_is_run_and_a_robot_that_moved_meanwhile_is_left_alone(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench()
    heard = bench.graph.hear(messages.ActionChunk, "action_chunk")
    replay = a_replay(bench)
    replay.connect()
    bench.graph.listen_in_silence()
    assert heard == []
    kind = messages.ActionChunk
    bench._chunks = bench.graph.ear.create_publisher(kind, "action_chunk", 10)
    bench.send(bench.chunk(towards=0.1))
    bench.until_targets(10)
    own = len(heard)
    with pytest.raises(ReplayStopped, match="has moved"):
        replay.run()
    assert len(heard) == own


@pytest.mark.parametrize(
    ("profile", "settings", "expected"),
    [
        ("interbotix_main", {}, "profile 'sim'; it says 'interbotix_main'.*--profile sim"),
        ("", {}, "it says nothing about its robot"),
        ("sim", {"queue__join": "sync"}, "it has sync. Start it"),
        ("sim", {"shadow": "true"}, "shadow mode"),
    ],
)
def test_another_robot_or_an_unfit_controller_is_refused(
    profile: str, settings: dict, expected: str, make_graph: Callable[..., Graph]
) -> None:
    bench = Bench(make_graph(*parameters(use_sim_time="true", **settings)))
    assert bench.node.autostart()
    heard = bench.graph.hear(messages.ActionChunk, "action_chunk")
    with pytest.raises(ReplayRefused, match=expected):
        a_replay(bench, episode(profile)).connect()
    bench.graph.listen_in_silence()
    assert heard == []


def test_a_policy_that_still_speaks_is_refused(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    bench.graph.ear.create_publisher(messages.ActionChunk, "action_chunk", 10)
    with pytest.raises(ReplayRefused, match="Stop the policy first"):
        a_replay(bench).connect()


def test_without_a_controller_it_says_how_to_start_one(
    make_graph: Callable[..., Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_robot, "ANSWER_TIMEOUT_S", 0.2)
    graph = make_graph()
    spin = lambda: graph.executor.spin_once(timeout_sec=0.02)  # noqa: E731
    with pytest.raises(ReplayRefused, match=r"none answers\. Start it"):
        graph.add(RobotReplay(episode(), spin)).connect()


class Interrupted:
    """Ctrl-C, after so many targets."""

    def __init__(self, bench: Bench, after: int) -> None:
        self._bench, self._last = bench, len(bench.targets) + after

    def __call__(self, share: float) -> None:
        if len(self._bench.targets) >= self._last:
            raise KeyboardInterrupt


def test_ctrl_c_lets_the_robot_hold(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    replay = a_replay(bench)
    replay.connect()
    with pytest.raises(KeyboardInterrupt):
        replay.run(Interrupted(bench, after=25))
    at = targets_from_msg(bench.targets[-1])
    assert np.abs(at - start_pose(0.5)).max() > 0.02  # it was under way
    still = bench.until_still()
    assert np.abs(still - at).max() < 0.05
    assert np.abs(still - episode().action[-1]).max() > 0.05  # and did not go on to the end


def test_an_emergency_stop_ends_the_replay_and_says_why(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    replay = a_replay(bench)
    replay.connect()
    count = len(bench.targets)
    pressed: list[bool] = []

    def press(share: float) -> None:
        if len(bench.targets) > count + 15 and not pressed:
            pressed.append(True)
            bench.node._on_estop(Trigger.Request(), Trigger.Response(), latch=True)

    with pytest.raises(ReplayStopped, match="asked for by service"):
        replay.run(press)


def test_the_command_asks_first_and_sends_nothing_without_a_yes(
    make_graph: Callable[..., Graph],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The whole command against a controller that is spun in another thread."""
    pytest.importorskip("h5py")
    from vla_oft_ros.data.hdf5 import write_hdf5

    write_hdf5(replace(episode(), images={}), tmp_path / "a.hdf5")
    bench = Bench(make_graph(*parameters(use_sim_time="true")))
    assert bench.node.autostart()
    heard = bench.graph.hear(messages.ActionChunk, "action_chunk")
    bench.until_targets(5)
    silence_policy(bench)
    monkeypatch.setattr(replay_robot.rclpy, "init", lambda **_: None)
    monkeypatch.setattr(replay_robot.rclpy, "try_shutdown", lambda: None)
    ended = threading.Event()
    thread = threading.Thread(target=_spin_until, args=(bench.graph, ended))
    thread.start()
    try:
        command = ["replay", str(tmp_path / "a.hdf5"), "--robot"]
        assert cli.main(command) == cli.EXIT_BAD_INPUT  # nobody can be asked
        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        monkeypatch.setattr("rich.console.Console.input", lambda *_, **__: "yes")
        assert cli.main(command) == 1
        assert heard == [] and "nothing was sent" in capsys.readouterr().out
        monkeypatch.setattr("rich.console.Console.input", lambda *_, **__: "sim")
        assert cli.main(command) == 0
    finally:
        ended.set()
        thread.join()
    assert "rad from what was recorded" in capsys.readouterr().out
    assert {message.instruction for message in heard} == {"hold", "wave"}


def _spin_until(graph: Graph, ended: threading.Event) -> None:
    while not ended.is_set():
        graph.executor.spin_once(timeout_sec=0.02)
