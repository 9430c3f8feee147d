"""Laws of joining tokens with frames: the very frame, once, when all stages have come."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_oft_ros.token_frames import TokenFrames
from vla_oft_ros.types import KeptBy, RetainedTokens

CAMERA = "cam_high"


def picture(number: int) -> np.ndarray:
    return np.full((2, 3, 3), number % 256, dtype=np.uint8)


def tokens(stamp_ns: int, layer: int = 2, camera: str = CAMERA) -> RetainedTokens:
    return RetainedTokens(
        camera=camera,
        stamp_ns=stamp_ns,
        grid=(2, 2),
        layer=layer,
        patch_indices=np.array([0], dtype=np.int32),
        kept_by=np.array([KeptBy.LOCAL], dtype=np.uint8),
    )


def filled(count: int, frames: int = 50) -> TokenFrames:
    """A memory that heard frames 0, 10, 20 …."""
    memory = TokenFrames([CAMERA], frames=frames)
    for number in range(count):
        memory.add_frame(CAMERA, 10 * number, picture(number))
    return memory


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(0, 59), st.integers(1, 60))
def test_what_is_shown_is_the_frame_of_the_tokens_or_nothing(
    count: int, asked: int, frames: int
) -> None:
    memory = filled(count, frames)
    memory.add_retained(tokens(10 * asked))
    assert memory.settled(CAMERA) is None
    shown = memory.settled(CAMERA)
    if count - frames <= asked < count:
        assert shown is not None and shown.stamp_ns == 10 * asked
        np.testing.assert_array_equal(shown.image, picture(asked))
    else:
        assert shown is None


def test_an_answer_is_shown_once_and_only_after_its_last_stage() -> None:
    memory = filled(5)
    for layer in (2, 7, 20):
        memory.add_retained(tokens(30, layer))
        assert memory.settled(CAMERA) is None
    shown = memory.settled(CAMERA)
    assert shown is not None and [stage.layer for stage in shown.stages] == [2, 7, 20]
    assert memory.settled(CAMERA) is None


def test_a_late_stage_shows_the_answer_again_and_completely() -> None:
    memory = filled(5)
    memory.add_retained(tokens(30, 2))
    memory.settled(CAMERA)
    assert memory.settled(CAMERA) is not None
    memory.add_retained(tokens(30, 7))
    memory.settled(CAMERA)
    shown = memory.settled(CAMERA)
    assert shown is not None and [stage.layer for stage in shown.stages] == [2, 7]


def test_stages_of_two_answers_are_never_mixed() -> None:
    memory = filled(5)
    memory.add_retained(tokens(20, 2))
    memory.add_retained(tokens(30, 7))
    memory.settled(CAMERA)
    shown = memory.settled(CAMERA)
    assert shown is not None and shown.stamp_ns == 30
    assert [stage.layer for stage in shown.stages] == [7]


def test_a_frame_that_comes_after_its_tokens_is_waited_for() -> None:
    memory = filled(2)
    memory.add_retained(tokens(50))
    for _ in range(3):
        assert memory.settled(CAMERA) is None
    memory.add_frame(CAMERA, 50, picture(5))
    shown = memory.settled(CAMERA)
    assert shown is not None and shown.stamp_ns == 50


def test_answers_without_their_frame_are_counted_when_the_next_one_comes() -> None:
    memory = filled(2)
    memory.add_retained(tokens(12345))
    memory.settled(CAMERA)
    assert memory.missed == 0
    memory.add_retained(tokens(10))
    assert memory.missed == 1
    memory.settled(CAMERA)
    assert memory.settled(CAMERA) is not None
    memory.add_retained(tokens(20))
    assert memory.missed == 1


def test_only_the_frame_that_is_shown_is_decoded() -> None:
    decoded = []
    memory = TokenFrames([CAMERA], frames=50)
    for number in range(5):

        def decode(number: int = number) -> np.ndarray:
            decoded.append(number)
            return picture(number)

        memory.add_frame(CAMERA, 10 * number, decode)
    memory.add_retained(tokens(30))
    memory.settled(CAMERA)
    memory.settled(CAMERA)
    assert decoded == [3]


def test_time_that_begins_anew_forgets_what_was_before() -> None:
    memory = filled(5)
    memory.add_frame(CAMERA, 5, picture(99))
    memory.add_retained(tokens(30))
    memory.settled(CAMERA)
    assert memory.settled(CAMERA) is None
    memory.add_retained(tokens(5))
    memory.settled(CAMERA)
    shown = memory.settled(CAMERA)
    assert shown is not None and shown.image[0, 0, 0] == 99


@pytest.mark.parametrize(
    ("layer", "expected"), [(0, 20), (1, 2), (2, 2), (7, 7), (10, 7), (99, 20)]
)
def test_a_layer_is_shown_what_it_was_left_with(layer: int, expected: int) -> None:
    memory = filled(2)
    for stage in (20, 2, 7):
        memory.add_retained(tokens(10, stage))
    memory.settled(CAMERA)
    shown = memory.settled(CAMERA)
    assert shown is not None and shown.stage(layer).layer == expected


def test_cameras_know_nothing_of_each_other_and_strangers_are_passed_over() -> None:
    memory = TokenFrames([CAMERA, "cam_left_wrist"], frames=3)
    memory.add_frame("cam_left_wrist", 10, picture(1))
    memory.add_retained(tokens(10))
    memory.add_retained(tokens(10, camera="cam_nobody"))
    memory.settled(CAMERA)
    assert memory.settled(CAMERA) is None and memory.settled("cam_left_wrist") is None


def test_a_memory_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="frames: expected at least 1; got 0"):
        TokenFrames([CAMERA], frames=0)
