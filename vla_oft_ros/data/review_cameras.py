"""The cameras of a run at one moment: what is seen now, and what the policy kept of what it saw.

The upper row is the newest image of each camera. The lower row is the very frame that the newest
chunk was predicted from, found by its stamp, with the retained tokens painted; where the bag does
not have that frame, none is shown in its place. A run without chunks has one large row.
"""

from __future__ import annotations

import numpy as np

from vla_oft_ros.aloha import CAMERAS
from vla_oft_ros.data.review_canvas import (
    INK,
    PALE,
    PANEL,
    RED,
    YELLOW,
    Color,
    fitted,
    label,
    placed,
    wrap,
    write,
)
from vla_oft_ros.data.run_log import Answer, Picture, RunLog
from vla_oft_ros.overlay import paint_retained

TILE_PX = (320, 240)
PANEL_PX = (3 * TILE_PX[0], 2 * TILE_PX[1])
"""Width and height of all of it."""
_OLD_S = 0.2
"""A camera whose newest image is older has its age in red."""


class CameraPanel:
    """Draws the cameras of a run.

    Args:
        log: The run.
        crop_area: Share of the image's area that the network saw, its centre.
    """

    def __init__(self, log: RunLog, crop_area: float) -> None:
        self._log, self._crop_area = log, crop_area
        self._now: dict[str, tuple[int, np.ndarray]] = {}
        self._used: dict[str, tuple[float, np.ndarray]] = {}

    def at(self, time_s: float, answer: Answer | None) -> np.ndarray:
        """All cameras at a time.

        Args:
            time_s: Since the start of the run.
            answer: The newest chunk at that time.

        Returns:
            (PANEL_PX[1], PANEL_PX[0], 3) uint8 RGB.
        """
        width, height = TILE_PX
        page = np.full((2 * height, 3 * width, 3), PANEL, dtype=np.uint8)
        if not self._log.answers.values:
            # One camera large, the wrists beside it.
            placed(
                page,
                self._now_tile(CAMERAS[0], time_s, (2 * width, 2 * height)),
                (
                    0,
                    0,
                    2 * width,
                    2 * height,
                ),
            )
            for row, camera in enumerate(CAMERAS[1:]):
                tile = self._now_tile(camera, time_s, TILE_PX)
                placed(page, tile, (2 * width, row * height, width, height))
            return page
        for column, camera in enumerate(CAMERAS):
            box = (column * width, 0, width, height)
            placed(page, self._now_tile(camera, time_s, TILE_PX), box)
            placed(page, self._used_tile(camera, time_s, answer), (box[0], height, width, height))
        return page

    def _now_tile(self, camera: str, time_s: float, size: tuple[int, int]) -> np.ndarray:
        track = self._log.pictures.get(camera)
        if track is None:
            return _empty(size, f"{camera}: no images in the bag")
        place = track.index(time_s)
        if place < 0:
            return _empty(size, f"{camera}: nothing yet")
        if self._now.get(camera, (-1,))[0] != place:
            self._now[camera] = place, self._decoded(camera, track.values[place], size)
        tile = self._now[camera][1].copy()
        age_s = time_s - track.times_s[place]
        text, color = f"{camera}  now", INK
        if age_s > _OLD_S:
            text, color = f"{camera}  {age_s:.1f} s old", RED
        label(tile, text, (8, tile.shape[0] - 9), color)
        return tile

    def _used_tile(self, camera: str, time_s: float, answer: Answer | None) -> np.ndarray:
        if answer is None:
            return _empty(TILE_PX, "no action chunk yet")
        retained = answer.retained.get(camera)
        if retained is None:
            return _empty(TILE_PX, f"{camera}: no retained tokens recorded for this chunk")
        if self._used.get(camera, (-1.0,))[0] != answer.time_s:
            self._used[camera] = answer.time_s, self._painted(camera, answer)
        tile = self._used[camera][1].copy()
        patches = retained.grid[0] * retained.grid[1]
        age_s = time_s - self._log.time_s(retained.stamp_ns)
        text = f"used {age_s:.2f} s ago, kept {retained.patch_indices.size} of {patches}"
        label(tile, text, (8, tile.shape[0] - 9), YELLOW)
        return tile

    def _painted(self, camera: str, answer: Answer) -> np.ndarray:
        retained = answer.retained[camera]
        picture = self._log.picture_with_stamp(camera, retained.stamp_ns)
        if picture is None:
            return _empty(TILE_PX, f"{camera}: the frame that was used is not in the bag")
        image = self._decoded(camera, picture, TILE_PX)
        try:
            return paint_retained(image, retained, crop_area=self._crop_area)
        except ValueError as error:  # a grid too fine to be seen
            return _empty(TILE_PX, f"{camera}: {error}")

    def _decoded(self, camera: str, picture: Picture, size: tuple[int, int]) -> np.ndarray:
        try:
            return fitted(self._log.decode(picture), size)
        except ValueError as error:
            return _empty(size, f"{camera}: this image cannot be decoded: {error}")


def _empty(size: tuple[int, int], text: str, color: Color = PALE) -> np.ndarray:
    width, height = size
    tile = np.full((height, width, 3), PANEL, dtype=np.uint8)
    for number, line in enumerate(wrap(text, width - 24, 5)):
        write(tile, line, (12, height // 2 - 20 + 18 * number), color)
    return tile
