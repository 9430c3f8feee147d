"""Laws of the frame ring: it gives what was on camera then, or nothing; and it never grows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_oft_ros.frame_ring import FrameRing, reference_ticks
from vla_oft_ros.sync import CLOCK_BACK_NS

TICK_NS = 40_000_000
CAMERA = "cam_high"


def frame(number: int) -> np.ndarray:
    return np.full((2, 2, 3), number % 256, dtype=np.uint8)


def ring_at(rate_hz: float, seconds: float) -> tuple[FrameRing, list[int]]:
    ring = FrameRing([CAMERA], tick_ns=TICK_NS)
    stamps = [round(1e9 * i / rate_hz) for i in range(round(seconds * rate_hz))]
    for number, stamp_ns in enumerate(stamps):
        ring.add(CAMERA, stamp_ns, frame(number))
    return ring, stamps


@pytest.mark.parametrize(
    ("speed", "ticks"), [(0.0, 11), (0.3, 10), (1.0, 10), (1.5, 9), (2.0, 9), (9.0, 9), (-1, 11)]
)
def test_the_faster_the_gripper_the_nearer_the_reference(speed: float, ticks: int) -> None:
    assert reference_ticks(speed) == ticks


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([25.0, 30.0, 60.0, 100.0]), st.integers(9, 11))
def test_a_reference_is_within_a_tick_of_the_time_asked_for(rate_hz: float, ticks: int) -> None:
    ring, stamps = ring_at(rate_hz, 2.0)
    image = ring.reference_images({CAMERA: stamps[-1]}, ticks)[CAMERA]
    assert image is not None
    wanted = stamps[-1] - ticks * TICK_NS
    assert abs(stamps[image[0, 0, 0]] - wanted) <= TICK_NS


def test_the_nearest_frame_is_given_exactly() -> None:
    ring, stamps = ring_at(25.0, 1.0)
    image = ring.at(CAMERA, stamps[-5] + TICK_NS // 3)
    assert image is not None
    assert image[0, 0, 0] == len(stamps) - 5


def test_there_is_no_reference_before_the_robot_was_seen_for_that_long() -> None:
    ring, stamps = ring_at(25.0, 0.32)
    assert ring.reference_images({CAMERA: stamps[-1]}, 10) == {CAMERA: None}


def test_a_pause_of_the_camera_leaves_a_gap_and_not_a_wrong_frame() -> None:
    ring, stamps = ring_at(25.0, 0.2)
    ring.add(CAMERA, stamps[-1] + 8 * TICK_NS, frame(99))
    assert ring.at(CAMERA, stamps[-1] + 4 * TICK_NS) is None


@pytest.mark.parametrize("rate_hz", [30.0, 60.0, 200.0])
def test_memory_does_not_grow_with_time_or_rate(rate_hz: float) -> None:
    ring, _ = ring_at(rate_hz, 5.0)
    assert len(ring._frames[CAMERA]) <= 12 / 0.6 + 1


def test_frames_are_decoded_only_when_asked_for() -> None:
    decoded: list[int] = []

    def source(number: int):
        def decode() -> np.ndarray:
            decoded.append(number)
            return frame(number)

        return decode

    ring = FrameRing([CAMERA], tick_ns=TICK_NS)
    for number in range(12):
        ring.add(CAMERA, number * TICK_NS, source(number))
    image = ring.at(CAMERA, 3 * TICK_NS)
    assert image is not None
    assert image[0, 0, 0] == 3
    assert decoded == [3]


def test_frames_out_of_order_are_not_kept() -> None:
    ring = FrameRing([CAMERA], tick_ns=TICK_NS)
    ring.add(CAMERA, 5 * TICK_NS, frame(5))
    ring.add(CAMERA, 2 * TICK_NS, frame(2))
    assert ring.at(CAMERA, 2 * TICK_NS) is None


def test_a_frame_from_before_a_step_of_the_clock_shuts_nothing_out() -> None:
    ring, stamps = ring_at(25.0, 1.0)
    ring.add(CAMERA, stamps[-1] + CLOCK_BACK_NS + TICK_NS, frame(99))
    ring.add(CAMERA, stamps[-1] + TICK_NS, frame(1))
    image = ring.at(CAMERA, stamps[-1] + TICK_NS)
    assert image is not None and image[0, 0, 0] == 1


def test_a_cleared_ring_remembers_nothing() -> None:
    ring, stamps = ring_at(25.0, 1.0)
    ring.clear()
    assert ring.at(CAMERA, stamps[-1]) is None


def test_cameras_without_a_ring_are_left_out_of_the_references() -> None:
    ring, stamps = ring_at(25.0, 1.0)
    assert set(ring.reference_images({CAMERA: stamps[-1], "other": 0}, 9)) == {CAMERA}
    with pytest.raises(KeyError):
        ring.add("other", 0, frame(0))
    with pytest.raises(ValueError, match="positive tick"):
        FrameRing([CAMERA], tick_ns=0)
