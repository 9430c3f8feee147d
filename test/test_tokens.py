from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_oft_ros.model.tokens import TokenLayout

layouts = st.builds(
    TokenLayout,
    cameras=st.integers(1, 4),
    patches_per_camera=st.integers(1, 300),
    prompt_len=st.integers(2, 60),
    chunk_len=st.integers(1, 30),
    action_dim=st.integers(1, 14),
    has_proprio=st.booleans(),
    has_timestep=st.booleans(),
)


def positions(part: slice) -> list[int]:
    return list(range(part.start, part.stop))


@given(layouts)
def test_slices_partition_the_sequence(layout: TokenLayout) -> None:
    cameras = [layout.patches(camera) for camera in range(layout.cameras)]
    parts = [layout.bos, *cameras, layout.proprio, layout.timestep, layout.prompt]
    parts += [layout.actions, layout.stop]
    assert [p for part in parts for p in positions(part)] == list(range(layout.length))


@given(layouts)
def test_cameras_make_up_the_vision_slice(layout: TokenLayout) -> None:
    cameras = [p for c in range(layout.cameras) for p in positions(layout.patches(c))]
    assert cameras == positions(layout.vision)


@given(layouts)
def test_head_reads_the_token_before_each_action_slot(layout: TokenLayout) -> None:
    assert [p + 1 for p in positions(layout.head)] == positions(layout.actions)


@given(layouts)
def test_ids_and_inserted_tokens_make_up_the_length(layout: TokenLayout) -> None:
    inserted = layout.prompt.start - layout.bos.stop
    assert layout.input_ids_len + inserted == layout.length


def test_official_aloha_sequence_has_the_documented_length() -> None:
    layout = TokenLayout(
        cameras=3,
        patches_per_camera=256,
        prompt_len=20,
        chunk_len=25,
        action_dim=14,
        has_proprio=True,
    )
    assert layout.length == 1140
    assert layout.proprio == slice(769, 770)


@pytest.mark.parametrize("camera", [-1, 3])
def test_unknown_camera_is_refused(camera: int) -> None:
    layout = TokenLayout(
        cameras=3,
        patches_per_camera=4,
        prompt_len=2,
        chunk_len=1,
        action_dim=1,
        has_proprio=False,
    )
    with pytest.raises(ValueError, match="expected a camera from 0 to 2"):
        layout.patches(camera)
