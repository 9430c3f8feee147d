"""Laws of words around pictures: they add lines and leave the picture as it was."""

import numpy as np
import pytest

from vla_oft_ros.overlay import reason_color
from vla_oft_ros.overlay_caption import (
    LONG_LEGEND,
    SHORT_LEGEND,
    STRIP_PX,
    with_legend,
    with_title,
)
from vla_oft_ros.types import KeptBy

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 900, 3), dtype=np.uint8)


def test_a_title_is_above_and_a_legend_below_the_untouched_picture() -> None:
    titled = with_title(PICTURE, "word")
    np.testing.assert_array_equal(titled[STRIP_PX:], PICTURE)
    explained = with_legend(PICTURE, SHORT_LEGEND)
    np.testing.assert_array_equal(explained[:-STRIP_PX], PICTURE)
    assert titled.shape == explained.shape == (40 + STRIP_PX, 900, 3)
    assert titled[:STRIP_PX].min() < 60 < with_title(PICTURE, "")[:STRIP_PX].min()


@pytest.mark.parametrize("legend", [LONG_LEGEND, SHORT_LEGEND])
def test_a_legend_shows_the_colour_of_every_reason_it_names(legend: tuple) -> None:
    strip = with_legend(PICTURE, legend)[-STRIP_PX:]
    for reason, _ in legend:
        assert np.any(np.all(strip == reason_color(reason), axis=-1)), reason


def test_the_short_legend_names_every_reason() -> None:
    assert [word for _, word in SHORT_LEGEND] == [str(flag.name).lower() for flag in KeptBy]
