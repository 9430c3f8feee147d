"""A scripted teleoperator: moves the leader arms as a person would who hands a cube over, or picks
one up.

Way-points in space, smooth motion between them, inverse kinematics per tick. What it yields are
the leaders' positions, which are the actions of a demonstration; whether the task really was done,
only the physics knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import mujoco
import numpy as np

from vla_oft_ros.aloha import ARMS, GRIPPERS, START_ARM_POSE_RAD
from vla_oft_ros.sim.aloha_world import AlohaWorld
from vla_oft_ros.sim.inverse_kinematics import ToolSolver

HAND_OVER_M = (0.0, 0.5, 0.25)
"""Where the cube changes hands, in the world: half way between the arms."""
GRASP_HEIGHT_M = 0.02
"""Height of the middle of a cube that lies on the table."""
PICK_PITCH_RAD = np.deg2rad(60.0)
RECEIVE_ROLL_RAD = np.deg2rad(90.0)
PICK_OPENING = 0.75
"""How far the gripper opens where other cubes may lie close by: 6 cm between the fingers."""
LIFT_M = 0.12
"""How high a cube is lifted that shall be picked up."""
SPEED = 1.25
"""How much faster than the times written below, which a careful person would take."""
_CALM_S = 0.4
"""How long an arm takes to come to rest from a disturbance, at the careful speed."""
_OPEN, _CLOSED = 1.0, 0.0

Leg = tuple[float, np.ndarray, float, float, float]
"""One way-point as written below: time in s at the careful speed, (3,) position in the world,
pitch and roll in rad, opening."""


@dataclass(frozen=True, kw_only=True)
class Waypoint:
    """Where the tool point of an arm shall be at some time.

    The gripper always points away from the arm's own base, so that its yaw follows from the
    position; any other yaw leads through poses where forearm and wrist turn by half a circle,
    which are hard to learn from.

    Attributes:
        time_s: Since the start of the demonstration.
        position_m: (3,) in the frame of the arm's base.
        pitch_rad: How far the fingers point down.
        roll_rad: Turn about the fingers.
        opening: Gripper, 0 closed … 1 open, on the action scale.
    """

    time_s: float
    position_m: np.ndarray
    pitch_rad: float
    roll_rad: float
    opening: float

    def rotation(self) -> np.ndarray:
        """(3, 3) rotation of the tool in the base frame."""
        yaw = np.arctan2(self.position_m[1], self.position_m[0])
        return np.asarray(_turn(2, yaw) @ _turn(1, self.pitch_rad) @ _turn(0, self.roll_rad))


def between(waypoints: Sequence[Waypoint], time_s: float) -> Waypoint:
    """Where the tool is at some time: at rest at, before and after way-points, else on its way."""
    if len(waypoints) == 1:
        return waypoints[0]
    times = [point.time_s for point in waypoints]
    after = int(np.clip(np.searchsorted(times, time_s), 1, len(times) - 1))
    first, second = waypoints[after - 1], waypoints[after]
    share = np.clip((time_s - first.time_s) / (second.time_s - first.time_s), 0.0, 1.0)
    share = share * share * (3.0 - 2.0 * share)  # smoothstep: no speed at either end

    def mix(name: str) -> np.ndarray:
        return np.asarray(getattr(first, name) * (1.0 - share) + getattr(second, name) * share)

    return Waypoint(
        time_s=time_s,
        position_m=mix("position_m"),
        pitch_rad=float(mix("pitch_rad")),
        roll_rad=float(mix("roll_rad")),
        opening=float(mix("opening")),
    )


@dataclass(frozen=True, kw_only=True)
class Script:
    """How a task is done, for a cube anywhere.

    Attributes:
        legs: (3,) world position of the middle of the lying cube → arm → where its tool goes,
            after the start pose. An arm without legs stays there.
        grasp_s: When the gripper closes, at the careful speed.
        end_s: When it is over, at the careful speed.
        delicate_s: Arm → from when until when a push would cost the cube, at the careful speed:
            while it has the cube between its fingers or comes near one in the other hand.
    """

    legs: Callable[[np.ndarray], Mapping[str, Sequence[Leg]]]
    grasp_s: float
    end_s: float
    delicate_s: Mapping[str, tuple[float, float]]

    @property
    def duration_s(self) -> float:
        """How long it really takes."""
        return self.end_s / SPEED

    @property
    def look_s(self) -> float:
        """Until then an operator looks where the cube is; afterwards the gripper hides it."""
        return self.grasp_s / SPEED

    def slack(self, time_s: float) -> np.ndarray:
        """How much of a disturbance each arm can bear.

        Args:
            time_s: Since the start of the demonstration.

        Returns:
            (2,) float64, left arm first: 1 in free motion, 0 where it is delicate, and between
            them a slope.
        """
        slack = np.ones(len(ARMS))
        for arm, (begin_s, end_s) in self.delicate_s.items():
            away_s = max(begin_s - time_s * SPEED, time_s * SPEED - end_s, 0.0)
            slack[ARMS.index(arm)] = min(away_s / _CALM_S, 1.0)
        return slack


def _transfer_legs(cube: np.ndarray) -> dict[str, list[Leg]]:
    hand_over = np.array(HAND_OVER_M)
    lift, right = np.array([0.0, 0.0, 0.10]), np.array([1.0, 0.0, 0.0])
    pick = (PICK_PITCH_RAD, 0.0)
    receive = (0.0, RECEIVE_ROLL_RAD)
    return {
        "left": [
            (2.0, hand_over - 0.12 * right, *receive, _OPEN),
            (5.0, hand_over, *receive, _OPEN),
            (5.7, hand_over, *receive, _CLOSED),
            (6.2, hand_over, *receive, _CLOSED),
            (7.0, hand_over - 0.10 * right, *receive, _CLOSED),
        ],
        "right": [
            (1.5, cube + lift, *pick, _OPEN),
            (2.3, cube, *pick, _OPEN),
            (2.9, cube, *pick, _CLOSED),
            (4.0, hand_over, *pick, _CLOSED),
            (5.7, hand_over, *pick, _CLOSED),
            (6.2, hand_over, *pick, _OPEN),
            (7.0, hand_over + 0.12 * right, *pick, _OPEN),
        ],
    }


def _pick_legs(cube: np.ndarray) -> dict[str, list[Leg]]:
    above, lifted = np.array([0.0, 0.0, 0.10]), np.array([0.0, 0.0, LIFT_M])
    pick = (PICK_PITCH_RAD, 0.0)
    return {
        "left": [],
        "right": [
            (1.5, cube + above, *pick, PICK_OPENING),
            (2.3, cube, *pick, PICK_OPENING),
            (2.9, cube, *pick, _CLOSED),
            (4.0, cube + lifted, *pick, _CLOSED),
        ],
    }


SCRIPTS: Mapping[str, Script] = {
    "transfer_cube": Script(
        legs=_transfer_legs,
        grasp_s=2.3,
        end_s=7.6,
        delicate_s={"left": (3.5, 7.6), "right": (2.3, 6.2)},
    ),
    "pick_cube": Script(legs=_pick_legs, grasp_s=2.3, end_s=5.0, delicate_s={"right": (2.3, 5.0)}),
}
"""Task → how it is done."""


class Demonstrator:
    """Does a task with the cube that is meant.

    Args:
        model: The scene, for its kinematics.
        script: How the task is done.
        start_opening: Opening of both grippers at the beginning, action scale.
    """

    def __init__(
        self, model: mujoco.MjModel, script: Script, start_opening: float = _CLOSED
    ) -> None:
        self.script = script
        self._solvers = {arm: ToolSolver(model, arm) for arm in ARMS}
        self._start_opening = start_opening
        self.reset()

    def reset(self) -> None:
        """Goes back to the start pose, for the next demonstration."""
        self._angles = {arm: np.array(START_ARM_POSE_RAD) for arm in ARMS}

    def targets(self, time_s: float, cube_position_m: np.ndarray) -> np.ndarray:
        """Where the leader arms are at some time; ask for ascending times, one per tick.

        Args:
            time_s: Since the start of the demonstration.
            cube_position_m: (3,) or longer; where the cube was before it was touched, in the
                world.

        Returns:
            (14,) float64 joint targets: rad; grippers 0 closed … 1 open on the action scale.
        """
        targets = []
        for arm, waypoints in self.waypoints(cube_position_m).items():
            point = between(waypoints, time_s)
            angles = self._solvers[arm].solve(
                point.position_m, point.rotation(), self._angles[arm]
            )
            self._angles[arm] = angles
            targets += [*angles, point.opening]
        return np.array(targets)

    def plan(self, cube_position_m: np.ndarray, control_rate_hz: float = 25.0) -> np.ndarray:
        """A whole demonstration from the start pose.

        Args:
            cube_position_m: (3,) or longer; where the cube lies, in the world.
            control_rate_hz: Targets per second.

        Returns:
            (T, 14) float64 joint targets, as `targets` gives them.
        """
        self.reset()
        steps = round(self.script.duration_s * control_rate_hz)
        return np.stack(
            [self.targets(step / control_rate_hz, cube_position_m) for step in range(1, steps + 1)]
        )

    def waypoints(self, cube_position_m: np.ndarray) -> dict[str, tuple[Waypoint, ...]]:
        """Arm → its way-points for a cube at this place, (3,) in the world."""
        legs = self.script.legs(np.array([*cube_position_m[:2], GRASP_HEIGHT_M]))
        return {arm: self._waypoints(arm, legs[arm]) for arm in ARMS}

    def _waypoints(self, arm: str, legs: Sequence[Leg]) -> tuple[Waypoint, ...]:
        """The start pose, then the legs in the frame of the arm's base."""
        solver = self._solvers[arm]
        position_m, rotation = solver.forward(np.array(START_ARM_POSE_RAD))
        start = Waypoint(
            time_s=0.0,
            position_m=position_m,
            pitch_rad=float(np.arcsin(-rotation[2, 0])),
            roll_rad=0.0,
            opening=self._start_opening,
        )
        to_base = solver.base_rotation.T
        return (
            start,
            *(
                Waypoint(
                    time_s=time_s / SPEED,
                    position_m=to_base @ (position - solver.base_position_m),
                    pitch_rad=pitch,
                    roll_rad=roll,
                    opening=opening,
                )
                for time_s, position, pitch, roll, opening in legs
            ),
        )


def demonstrate(world: AlohaWorld) -> Iterator[np.ndarray]:
    """Teleoperates a world just reset, as its instruction asks: yields the targets of each tick;
    the caller applies them and advances.

    Looks where the cube is until the gripper closes on it, as an operator does.

    Yields:
        (14,) float64 joint targets.
    """
    script = SCRIPTS[world.task.name]
    demonstrator = Demonstrator(world.model, script, float(world.targets()[GRIPPERS[0]]))
    period_s = world.control_period_ns * 1e-9
    cube = world.cube_pose(world.target)
    for step in range(1, round(script.duration_s / period_s) + 1):
        if step * period_s <= script.look_s:
            cube = world.cube_pose(world.target)
        yield demonstrator.targets(step * period_s, cube)


def _turn(axis: int, angle_rad: float) -> np.ndarray:
    """(3, 3) rotation about a coordinate axis."""
    cosine, sine = np.cos(angle_rad), np.sin(angle_rad)
    matrix = np.eye(3)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix[[i, j], [i, j]] = cosine
    matrix[i, j], matrix[j, i] = -sine, sine
    return matrix
