"""The policy node with a policy that needs no network: a slow, known motion of both arms.

For fault injection (`faults.py`): everything but the network is the real node.
"""

from __future__ import annotations

import numpy as np

from vla_oft_ros.action_aware import MotionScale
from vla_oft_ros.aloha import ACTION_DIM, ARM_DIM, ARM_JOINTS, CAMERAS, RobotProfile, start_pose
from vla_oft_ros.ros.lifecycle import main_of
from vla_oft_ros.ros.policy_node import PolicyNode
from vla_oft_ros.types import ActionChunk, Observation

CHUNK_LEN = 10
FREQUENCY_HZ = 0.25
AMPLITUDE_RAD = 0.15
_MOVING = [
    arm * ARM_DIM + ARM_JOINTS.index(joint) for arm in range(2) for joint in ("waist", "elbow")
]
PHASE_PERIOD_NS = round(1e9 / FREQUENCY_HZ)


def motion(stamp_ns: np.ndarray) -> np.ndarray:
    """(..., 14) joint targets at the given times, nanoseconds: a sine around the start pose."""
    share = (np.asarray(stamp_ns) % PHASE_PERIOD_NS) / PHASE_PERIOD_NS
    targets = np.broadcast_to(start_pose(0.5), (*share.shape, ACTION_DIM)).copy()
    targets[..., _MOVING] += AMPLITUDE_RAD * np.sin(2.0 * np.pi * share)[..., None]
    return targets


class MotionPolicy:
    """What `PolicyNode` needs of a policy."""

    cameras = CAMERAS
    action_dim = ACTION_DIM
    chunk_len = CHUNK_LEN
    motion_scale = MotionScale()
    how_it_runs = "by formula"

    def __init__(self, dt_ns: int) -> None:
        self._dt_ns = dt_ns

    def reset(self) -> None:
        """Nothing is remembered."""

    def infer(self, observation: Observation, mode: object = None) -> ActionChunk:
        """(K, 14) targets of the motion from the observation on."""
        stamps_ns = observation.stamp_ns + self._dt_ns * np.arange(CHUNK_LEN)
        return ActionChunk(
            actions=motion(stamps_ns),
            stamp_ns=observation.stamp_ns,
            dt_ns=self._dt_ns,
            instruction=observation.instruction,
            inference_s=0.0,
        )


class FaultPolicyNode(PolicyNode):
    """The policy node, with `MotionPolicy` in place of a checkpoint."""

    def _load_policy(self, profile: RobotProfile) -> MotionPolicy:
        return MotionPolicy(round(1e9 / self.config.control_rate_hz))


main = main_of(FaultPolicyNode)

if __name__ == "__main__":
    main()
