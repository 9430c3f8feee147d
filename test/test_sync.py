"""Laws of synchronisation: nothing stale, nothing skewed, nothing made up."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_oft_ros.aloha import ARMS, CAMERAS
from vla_oft_ros.config import SyncConfig
from vla_oft_ros.sync import (
    CLOCK_BACK_NS,
    FUTURE_TOLERANCE_NS,
    ObservationBuilder,
    ObservationNotReady,
    StreamBuffer,
)

MS = 1_000_000
NOW_NS = 10_000 * MS
CONFIG = SyncConfig()
IMAGE_AGE_NS = round(CONFIG.max_image_age_s * 1e9)
JOINT_AGE_NS = round(CONFIG.max_joint_age_s * 1e9)
SKEW_NS = round(CONFIG.max_skew_s * 1e9)
STREAMS = (*CAMERAS, *ARMS)


def image(value: int) -> np.ndarray:
    return np.full((2, 3, 3), value, dtype=np.uint8)


def filled(stamps: dict[str, int]) -> ObservationBuilder:
    """A builder with one sample per named stream; an absent stream has received nothing."""
    builder = ObservationBuilder(CAMERAS, CONFIG)
    for number, name in enumerate(STREAMS):
        if name in stamps and name in CAMERAS:
            builder.add_image(name, stamps[name], image(number))
        elif name in stamps:
            builder.add_joints(name, stamps[name], np.full(7, float(number)))
    return builder


ages_ns = st.integers(-2 * FUTURE_TOLERANCE_NS, 2 * IMAGE_AGE_NS)


@given(ages=st.dictionaries(st.sampled_from(STREAMS), ages_ns))
def test_an_observation_is_made_exactly_when_every_stream_is_fresh_and_the_cameras_agree(
    ages: dict[str, int],
) -> None:
    builder = filled({name: NOW_NS - age for name, age in ages.items()})
    cameras = [ages[camera] for camera in CAMERAS if camera in ages]
    legal = (
        set(ages) == set(STREAMS)
        and all(-FUTURE_TOLERANCE_NS <= age for age in ages.values())
        and all(age <= IMAGE_AGE_NS for age in cameras)
        and all(ages[arm] <= JOINT_AGE_NS for arm in ARMS)
        and max(cameras) - min(cameras) <= SKEW_NS
    )
    if not legal:
        with pytest.raises(ObservationNotReady):
            builder.build(NOW_NS, "go")
        return
    made = builder.build(NOW_NS, "go")
    assert made.image_stamps_ns == {camera: NOW_NS - ages[camera] for camera in CAMERAS}
    assert made.proprio_stamp_ns == NOW_NS - max(ages[arm] for arm in ARMS)
    assert tuple(made.images) == CAMERAS
    assert [int(made.images[camera][0, 0, 0]) for camera in CAMERAS] == [0, 1, 2]
    assert made.proprio.tolist() == [3.0] * 7 + [4.0] * 7
    assert made.instruction == "go"


def test_every_reason_is_given_at_once_and_says_what_was_expected() -> None:
    stamps = dict.fromkeys(STREAMS, NOW_NS)
    stamps["cam_high"] = NOW_NS - 200 * MS
    stamps["right"] = NOW_NS - 90 * MS
    stamps["cam_left_wrist"] = NOW_NS + 40 * MS
    del stamps["cam_right_wrist"]
    with pytest.raises(ObservationNotReady) as refused:
        filled(stamps).build(NOW_NS, "go")
    assert refused.value.reasons == (
        "cam_high: 200 ms old, expected at most 150 ms",
        "cam_left_wrist: 40 ms in the future; are the clocks synchronised?",
        "cam_right_wrist: nothing received yet",
        "joint states right: 90 ms old, expected at most 50 ms",
    )


def test_skew_names_both_cameras() -> None:
    stamps = dict.fromkeys(STREAMS, NOW_NS) | {"cam_left_wrist": NOW_NS - 60 * MS}
    with pytest.raises(ObservationNotReady, match=r"cam_left_wrist is 60 ms older than cam_high"):
        filled(stamps).build(NOW_NS, "go")


@given(st.lists(st.integers(0, 20), min_size=1))
def test_a_stream_holds_the_newest_sample_however_they_arrive(stamps: list[int]) -> None:
    buffer = StreamBuffer("a")
    taken = [buffer.push(stamp, (stamp, place)) for place, stamp in enumerate(stamps)]
    assert buffer.stamp_ns == max(stamps)
    last = max(place for place, stamp in enumerate(stamps) if stamp == max(stamps))
    assert buffer.value == (max(stamps), last)
    assert buffer.received == sum(taken) and buffer.refused == len(stamps) - sum(taken)
    assert taken == [stamp == max(stamps[: place + 1]) for place, stamp in enumerate(stamps)]


@given(st.integers(0, 3), st.integers(CLOCK_BACK_NS, 10**12))
def test_a_stamp_from_before_a_clock_step_shuts_nothing_out(late: int, step_ns: int) -> None:
    """The clock is put back, `late` samples later one arrives that was stamped before."""
    buffer = StreamBuffer("a")
    stamps = [NOW_NS + place * 40 * MS for place in range(10)]
    assert buffer.push(stamps[0] + step_ns, "before")
    for place, stamp_ns in enumerate(stamps):
        if place == late:
            buffer.push(stamp_ns + step_ns, "straggler")
        assert buffer.push(stamp_ns, place)
    assert (buffer.stamp_ns, buffer.value) == (stamps[-1], 9)


def test_a_frame_is_decoded_only_when_it_is_used_and_only_once() -> None:
    calls = []

    def decode() -> np.ndarray:
        calls.append(1)
        return image(9)

    builder = filled(dict.fromkeys(STREAMS, NOW_NS))
    builder.add_image("cam_high", NOW_NS, decode)
    assert not calls
    for _ in range(2):
        assert builder.build(NOW_NS, "go").images["cam_high"][0, 0, 0] == 9
    assert len(calls) == 1


def test_a_refused_observation_decodes_nothing() -> None:
    def decode() -> np.ndarray:
        raise AssertionError("decoded")

    builder = ObservationBuilder(CAMERAS, CONFIG)
    builder.add_image("cam_high", NOW_NS, decode)
    with pytest.raises(ObservationNotReady):
        builder.build(NOW_NS, "go")


def test_nothing_survives_a_clear() -> None:
    builder = filled(dict.fromkeys(STREAMS, NOW_NS))
    builder.clear()
    assert len(builder.problems(NOW_NS)) == len(STREAMS)
    # A clock that starts anew is no reordered delivery.
    assert builder.add_image("cam_high", 0, image(0))


def test_unannounced_streams_are_refused() -> None:
    builder = ObservationBuilder(("cam_high",), CONFIG)
    with pytest.raises(KeyError):
        builder.add_image("cam_low", 0, image(0))
    with pytest.raises(KeyError):
        builder.add_joints("middle", 0, np.zeros(7))


def test_a_policy_with_one_camera_waits_for_that_one_only() -> None:
    builder = ObservationBuilder(("cam_high",), CONFIG)
    builder.add_image("cam_high", NOW_NS, image(1))
    for arm in ARMS:
        builder.add_joints(arm, NOW_NS, np.zeros(7))
    assert tuple(builder.build(NOW_NS, "go").images) == ("cam_high",)
    assert set(builder.streams) == {"cam_high", "joint states left", "joint states right"}
