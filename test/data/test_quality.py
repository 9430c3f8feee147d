"""Every check of the live verdict: silent on a good take, named on the take that has the fault."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from bag_samples import NS, START_NS, Sent, Take, raw_image

from vla_oft_ros.aloha import ARMS, CAMERAS, load_profile
from vla_oft_ros.config import QualityConfig
from vla_oft_ros.data import cdr
from vla_oft_ros.data.quality import EpisodeQuality, Stream
from vla_oft_ros.data.verdict import Verdict

PROFILE = load_profile("sim")
TAKE = Take(seconds=3.0, size=(48, 64))


def stream_of(one: Sent) -> Stream | None:
    for camera in CAMERAS:
        if one.topic.startswith(PROFILE.camera_topic(camera)):
            return Stream("image", camera, one.type)
    for role, topics in (
        ("follower", PROFILE.follower_joint_state_topics),
        ("leader", PROFILE.leader_joint_state_topics),
    ):
        if one.topic in topics:
            return Stream(role, ARMS[topics.index(one.topic)], one.type)
    return Stream("target", "", one.type) if one.topic == "/joint_targets" else None


def judge(messages: list[Sent], **limits: float) -> tuple[Verdict, list[str]]:
    quality = EpisodeQuality(PROFILE, QualityConfig(**limits), camera_rate_hz=30.0)
    for one in messages:
        stream = stream_of(one)
        if stream is not None:
            quality.add(stream, one.log_ns, one.data)
    findings = quality.findings()
    return quality.verdict(findings), [finding.text for finding in findings]


def without(messages: list[Sent], topic: str, begin_s: float, end_s: float) -> list[Sent]:
    begin_ns, end_ns = (START_NS + round(time_s * NS) for time_s in (begin_s, end_s))
    return [
        one for one in messages if topic not in one.topic or not begin_ns <= one.log_ns < end_ns
    ]


@pytest.mark.parametrize("compressed", [False, True])
def test_a_good_take_is_good_from_its_second_second_on(compressed: bool) -> None:
    take = replace(TAKE, compressed=compressed)
    assert judge(take.messages()) == (Verdict.GOOD, [])
    early = [one for one in take.messages() if one.log_ns < START_NS + NS // 2]
    assert judge(early) == (Verdict.UNKNOWN, [])


def test_a_take_with_targets_instead_of_leaders_is_good() -> None:
    take = replace(TAKE, leaders=False, targets=True)
    assert judge(take.messages(), max_distance_rad=10.0) == (Verdict.GOOD, [])


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ("cam_left_wrist", "nothing was heard of cam_left_wrist"),
        ("follower_right", "nothing was heard of right follower"),
        ("leader_right", "nothing was heard of right leader"),
    ],
)
def test_a_stream_that_is_missing_is_named(missing: str, expected: str) -> None:
    verdict, reasons = judge(replace(TAKE, missing=(missing,)).messages())
    assert verdict is Verdict.BAD and expected in reasons


def test_a_take_without_any_action_says_so() -> None:
    verdict, reasons = judge(replace(TAKE, leaders=False).messages())
    assert verdict is Verdict.BAD
    assert reasons == ["nothing was heard of neither leaders nor joint targets"]


@pytest.mark.parametrize(
    ("topic", "gap_s", "expected"),
    [
        ("cam_high", 0.3, "cam_high: nothing for 3"),
        ("follower_left", 0.1, "left follower: nothing for 1"),
        ("leader_left", 0.1, "left leader: nothing for 1"),
    ],
)
def test_a_gap_is_named_with_its_stream(topic: str, gap_s: float, expected: str) -> None:
    verdict, reasons = judge(without(TAKE.messages(), topic, 1.5, 1.5 + gap_s))
    assert verdict is Verdict.BAD
    assert any(reason.startswith(expected) for reason in reasons), reasons


def test_a_stream_that_falls_silent_is_named_while_it_is_silent() -> None:
    verdict, reasons = judge(without(TAKE.messages(), "cam_high", 1.2, 9.0))
    assert verdict is Verdict.BAD
    assert any(reason.startswith("cam_high: silent for 1.") for reason in reasons), reasons


def test_cameras_at_half_their_rate_are_bad() -> None:
    verdict, reasons = judge(replace(TAKE, camera_hz=15.0).messages())
    assert verdict is Verdict.BAD
    assert {f"{camera}: 15.0 Hz, expected 27 or more" for camera in CAMERAS} == set(reasons)


def frames_replaced(change: Callable[[str, int, np.ndarray], np.ndarray]) -> list[Sent]:
    """The take with other images in it; `change` is told camera, number and image."""
    numbers = dict.fromkeys(CAMERAS, 0)
    changed = []
    for one in TAKE.messages():
        stream = stream_of(one)
        if stream is not None and stream.role == "image":
            number = numbers[stream.name]
            numbers[stream.name] += 1
            image = change(stream.name, number, TAKE.image(stream.name, number))
            one = replace(one, data=raw_image(cdr.read_stamp_ns(one.data), image))
        changed.append(one)
    return changed


def test_a_camera_that_repeats_its_picture_while_the_arms_move_is_frozen() -> None:
    frozen = TAKE.image("cam_high", 30)
    messages = frames_replaced(
        lambda camera, number, image: (
            frozen if camera == "cam_high" and 30 <= number < 60 else image
        )
    )
    verdict, reasons = judge(messages)
    assert verdict is Verdict.BAD
    assert any("cam_high: the same picture for 1.0 s" in reason for reason in reasons), reasons


def test_pictures_that_come_twice_are_suspect() -> None:
    messages = frames_replaced(lambda camera, number, image: TAKE.image(camera, number // 3 * 3))
    verdict, reasons = judge(messages, frozen_motion_rad=0.001)
    assert verdict is Verdict.SUSPECT
    assert all("pictures repeat the one before" in reason for reason in reasons), reasons


def test_the_same_picture_is_fine_while_nothing_moves() -> None:
    still = replace(TAKE, seconds=2.0)
    still.arm_positions = lambda arm, time_s, lag_s: TAKE.arm_positions(arm, 0.0, lag_s)  # type: ignore[method-assign]
    still.image = lambda camera, index: TAKE.image(camera, 0)  # type: ignore[method-assign]
    assert judge(still.messages(), max_idle_s=10.0) == (Verdict.GOOD, [])


def test_dark_pictures_are_bad_and_a_dark_moment_is_suspect() -> None:
    dark = frames_replaced(
        lambda camera, number, image: image // 60 if camera == "cam_left_wrist" else image
    )
    verdict, reasons = judge(dark)
    assert verdict is Verdict.BAD and "cam_left_wrist: mean brightness down to" in reasons[0]
    moment = frames_replaced(lambda camera, number, image: image // 60 if number > 65 else image)
    assert judge(moment)[0] is Verdict.SUSPECT


def test_a_camera_that_is_late_by_more_than_the_limit_is_skewed() -> None:
    # A stamp 60 ms behind, at 30 Hz, is 7 ms from a frame of the others: no skew can be seen
    # there. A camera at a third of the rate is another matter.
    verdict, reasons = judge(TAKE.messages(), max_skew_s=0.001)
    assert verdict is Verdict.GOOD, reasons
    slow = [
        one
        for number, one in enumerate(TAKE.messages())
        if "cam_high" not in one.topic or cdr.read_stamp_ns(one.data) % (NS // 10) < NS // 50
    ]
    verdict, reasons = judge(slow, max_skew_s=0.03, max_image_gap_s=1.0, min_rate_share=0.1)
    assert verdict is Verdict.BAD
    assert any("cameras are up to" in reason for reason in reasons), reasons


def with_positions(topic: str, change: Callable[[np.ndarray], np.ndarray]) -> list[Sent]:
    from bag_samples import joint_state

    changed = []
    for one in TAKE.messages():
        if topic in one.topic:
            state = cdr.read_joint_state(one.data)
            one = replace(
                one, data=joint_state(state.stamp_ns, state.name, change(state.position))
            )
        changed.append(one)
    return changed


def shifted(joint: int, by: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(position: np.ndarray) -> np.ndarray:
        position = position.copy()
        position[joint] += by
        return position

    return change


def test_grippers_of_another_profile_are_bad() -> None:
    verdict, reasons = judge(with_positions("leader_left", shifted(6, 0.9)))
    assert verdict is Verdict.BAD
    assert reasons[0].startswith("left gripper: action from 0.9") and "'sim'" in reasons[0]


def test_actions_beyond_the_follower_s_limits_are_suspect_and_named() -> None:
    verdict, reasons = judge(with_positions("leader_right", shifted(2, 0.6)), max_distance_rad=2.0)
    assert verdict is Verdict.SUSPECT
    (reason,) = reasons
    assert reason.startswith("right arm: ") and "elbow by up to 0." in reason


def test_a_follower_that_does_not_follow_is_suspect() -> None:
    verdict, reasons = judge(with_positions("leader_right", shifted(0, 0.8)))
    assert verdict is Verdict.SUSPECT
    (reason,) = reasons
    assert reason.startswith("right arm: 0.7") and "torque" in reason


def test_a_joint_that_is_missing_is_bad_and_named() -> None:
    from bag_samples import joint_state

    messages = [
        replace(one, data=joint_state(START_NS, ("waist",), np.zeros(1)))
        if "follower_left" in one.topic
        else one
        for one in TAKE.messages()
    ]
    verdict, reasons = judge(messages)
    assert verdict is Verdict.BAD
    assert any(reason.startswith("left follower: joint_states: expected") for reason in reasons)


def test_standing_still_at_the_beginning_and_at_the_end_is_suspect() -> None:
    take = replace(TAKE, seconds=4.0)

    def rests(arm: str, time_s: float, lag_s: float) -> np.ndarray:
        return TAKE.arm_positions(arm, min(max(time_s - 1.2, 0.0), 1.0), lag_s)

    take.arm_positions = rests  # type: ignore[method-assign]
    verdict, reasons = judge(take.messages(), max_idle_s=1.0)
    assert verdict is Verdict.SUSPECT
    assert len(reasons) == 2, reasons
    assert reasons[0].startswith("the arms stand still for the first 1.")
    assert reasons[1].startswith("the arms stand still for the last 1.")
    assert judge(take.messages(), max_idle_s=2.5)[0] is Verdict.GOOD


def test_what_is_missing_in_the_recording_is_suspect() -> None:
    quality = EpisodeQuality(PROFILE, QualityConfig(), camera_rate_hz=30.0)
    texts = [finding.text for finding in quality.findings({"/a": 0, "/b": 3})]
    assert texts == ["/b: 3 messages are missing in the recording"]


def test_stamps_of_another_clock_are_suspect() -> None:
    late = [replace(one, log_ns=one.log_ns + 5 * NS) for one in TAKE.messages()]
    verdict, reasons = judge(late)
    assert verdict is Verdict.SUSPECT and "5.0 s behind the recorder's clock" in reasons[0]
