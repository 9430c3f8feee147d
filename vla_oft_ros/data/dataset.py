"""Episodes as a torch Dataset: every frame with the chunk of actions that follows it.

Vectors stay in memory (a few kilobytes per second of demonstration), images are read when a frame
is asked for and few episodes are open at a time, so memory does not grow with the size of the set
or the length of training. Knows no network: `train/samples` turns windows into its inputs.

Windows and episode ends, the one rule: the chunk of frame t is actions[t … t+K−1], the action of
the same row first. Near the end of an episode the last action is repeated to fill the chunk and
`valid` is False there, so every frame is used and nothing is learned from the repetition.
`keep_ends=False` is the official rule instead: the last K−1 frames are no starts, and episodes
shorter than K vanish (openvla-oft `traj_transforms.py`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from vla_oft_ros.data.episode import FAILURE, Episode
from vla_oft_ros.data.hdf5 import Hdf5Options, read_hdf5

OPEN_EPISODES = 8
"""Episodes that one process keeps open; each holds a file and one decoded frame per camera."""
HDF5_SUFFIXES = (".hdf5", ".h5")

EpisodeReader = Callable[[], Episode]
"""Opens one episode; called again whenever it is needed and was closed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Window:
    """One frame and what was done from there on, in robot units.

    Attributes:
        images: One (H, W, 3) uint8 RGB image per camera, in the order asked for.
        proprio: (A,) float64 measured joint state.
        actions: (K, A) float64 joint targets.
        valid: (K,) bool, False where the episode had ended and its last action is repeated.
        instruction: What was asked for.
    """

    images: tuple[np.ndarray, ...]
    proprio: np.ndarray
    actions: np.ndarray
    valid: np.ndarray
    instruction: str


@dataclass(frozen=True, kw_only=True, eq=False)
class _Vectors:
    """What is kept of an episode."""

    qpos: np.ndarray
    action: np.ndarray
    instruction: str


class ChunkDataset(Dataset[Window]):
    """Every start frame of some episodes.

    Args:
        readers: One per episode.
        chunk_len: K.
        cameras: Cameras to read, in order.
        instruction: For episodes that carry none.
        keep_ends: False drops the last K−1 frames of each episode, as the official code does.

    Raises:
        ValueError: if an episode lacks a camera or an instruction, or no frame is left.
    """

    def __init__(
        self,
        readers: Sequence[EpisodeReader],
        *,
        chunk_len: int,
        cameras: Sequence[str],
        instruction: str = "",
        keep_ends: bool = True,
    ) -> None:
        self.chunk_len = chunk_len
        self.cameras = tuple(cameras)
        self._readers = tuple(readers)
        self._open: OrderedDict[int, Episode] = OrderedDict()
        self._episodes = [self._vectors(reader(), instruction) for reader in readers]
        dropped = 0 if keep_ends else chunk_len - 1
        starts = [max(len(episode.action) - dropped, 0) for episode in self._episodes]
        self._ends = np.cumsum(starts, dtype=np.int64)
        if not len(self):
            raise ValueError(
                f"training data: expected at least one frame; got {len(readers)} episodes"
                + ("" if keep_ends else f", none of {chunk_len} steps or more")
            )

    def _vectors(self, episode: Episode, instruction: str) -> _Vectors:
        missing = [camera for camera in self.cameras if camera not in episode.images]
        if missing:
            raise ValueError(
                f"{episode.source}: expected images of {', '.join(self.cameras)}; "
                f"{', '.join(missing)} missing, got {', '.join(episode.images)}. Set data.cameras"
            )
        if not (episode.instruction or instruction):
            raise ValueError(
                f"{episode.source}: it carries no instruction; set data.instruction to what was "
                "asked for"
            )
        return _Vectors(
            qpos=episode.qpos,
            action=episode.action,
            instruction=episode.instruction or instruction,
        )

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def locate(self, index: int) -> tuple[int, int]:
        """Episode and frame in it of a window.

        Raises:
            IndexError: outside 0 … len − 1.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        episode = int(np.searchsorted(self._ends, index, side="right"))
        return episode, index - (int(self._ends[episode - 1]) if episode else 0)

    def starts(self, frames: int) -> np.ndarray:
        """(S,) int64 indices of the windows that begin in the first frames of an episode."""
        firsts = np.concatenate([[0], self._ends[:-1]])
        return np.concatenate(
            [
                np.arange(first, min(first + frames, end))
                for first, end in zip(firsts, self._ends, strict=True)
            ]
        )

    def __getitem__(self, index: int) -> Window:
        number, step = self.locate(index)
        vectors = self._episodes[number]
        steps = np.arange(step, step + self.chunk_len)
        last = len(vectors.action) - 1
        images = self._opened(number).images
        return Window(
            images=tuple(np.asarray(images[camera][step]) for camera in self.cameras),
            proprio=vectors.qpos[step],
            actions=vectors.action[np.minimum(steps, last)],  # (K, A)
            valid=steps <= last,
            instruction=vectors.instruction,
        )

    def _opened(self, number: int) -> Episode:
        if number not in self._open:
            self._open[number] = self._readers[number]()
            if len(self._open) > OPEN_EPISODES:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number]

    def __getstate__(self) -> dict[str, object]:
        # Open files do not travel to another process.
        return {**self.__dict__, "_open": OrderedDict()}


def split_episodes(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Divides episodes into training and validation, whole: frames of one are too alike.

    Args:
        count: Number of episodes.
        share: Share for validation; at least one episode unless it is 0 or there is only one.
        seed: The same seed gives the same split.

    Returns:
        Numbers of the training and of the validation episodes, ascending.
    """
    order = np.random.default_rng(seed).permutation(count)
    held_out = 0 if share == 0 or count < 2 else min(max(round(count * share), 1), count - 1)
    return sorted(order[held_out:].tolist()), sorted(order[:held_out].tolist())


def find_episodes(paths: Sequence[str | Path], *, keep_failures: bool) -> list[EpisodeReader]:
    """Readers of all episodes in files and folders, in the order of their names.

    Args:
        paths: HDF5 files, folders with HDF5 files somewhere below, folders of LeRobot v3 sets.
        keep_failures: Whether episodes labelled as failures count.

    Raises:
        ValueError: if a path does not exist or holds no usable episode.
    """
    readers: list[EpisodeReader] = []
    for path in (Path(entry).expanduser() for entry in paths):
        if not path.exists():
            raise ValueError(f"data.paths: expected a file or folder; {path} does not exist")
        if (path / "meta" / "info.json").is_file():
            found = _lerobot_readers(path)
        else:
            files = [path] if path.is_file() else sorted(path.rglob("*"))
            found = [_Hdf5Reader(file) for file in files if file.suffix in HDF5_SUFFIXES]
        kept = [reader for reader in found if keep_failures or reader().outcome != FAILURE]
        if not kept:
            raise ValueError(
                f"data.paths: expected HDF5 episodes or a LeRobot v3 set in {path}; got "
                f"{len(found)} episodes, {len(found) - len(kept)} of them failures"
            )
        readers += kept
    if not readers:
        raise ValueError("data.paths: expected files or folders of demonstrations; got none")
    return readers


@dataclass(frozen=True)
class _Hdf5Reader:
    """Opens one HDF5 episode; a record, so that it travels to another process."""

    path: Path

    def __call__(self) -> Episode:
        return read_hdf5(self.path, Hdf5Options())


def _lerobot_readers(path: Path) -> list[EpisodeReader]:
    from vla_oft_ros.data.lerobot import episode_readers

    readers: list[EpisodeReader] = list(episode_readers(path))
    return readers
