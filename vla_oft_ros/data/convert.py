"""Any episodes → one training set: in parallel, and going on where it was interrupted.

Every episode becomes a part in a hidden folder of the output; when all are there they are put
together and counted on disk. An episode that cannot be used stops the conversion or is left out
and named, as asked for; none is ever left out silently.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from vla_oft_ros.data import lerobot, rlds
from vla_oft_ros.data.atomic import new_file
from vla_oft_ros.data.episode import FAILURE, EpisodeError
from vla_oft_ros.data.hdf5 import write_hdf5
from vla_oft_ros.data.sources import ReadOptions, Source, read_source
from vla_oft_ros.data.statistics import Statistics, StatisticsCollector, write_statistics
from vla_oft_ros.data.tfrecord import read_records
from vla_oft_ros.normalization import STATISTICS_FILE

FORMATS = ("hdf5", "rlds", "lerobot")
PARTS = ".parts"
_DONE = "part_done.json"


class ConversionError(ValueError):
    """Episodes that cannot be converted; names each of them."""


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """What is made of the episodes.

    Attributes:
        to: "hdf5", "rlds" or "lerobot".
        name: Name of the data set, in RLDS and in the statistics.
        read: How episodes are read.
        on_bad: "stop" at episodes that cannot be used, or "skip" and name them.
        keep_failures: Whether episodes labelled as failures count.
        compress: HDF5: JPEG images.
        preprocessed: HDF5: openvla-oft's form, 256x256, in folders train and val.
        codec: LeRobot: video codec.
        val_share: RLDS and preprocessed HDF5: share of the episodes for validation; at least one
            unless it is 0.
        seed: The same seed gives the same split.
    """

    to: str
    name: str = "aloha"
    read: ReadOptions = field(default_factory=ReadOptions)
    on_bad: str = "stop"
    keep_failures: bool = False
    compress: bool = False
    preprocessed: bool = False
    codec: str = "h264"
    val_share: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.to not in FORMATS:
            raise ValueError(f"to: expected one of {', '.join(FORMATS)}; got {self.to!r}")
        if not 0.0 <= self.val_share < 1.0:
            raise ValueError(f"val_share: expected 0 to below 1; got {self.val_share}")
        if not self.name.isidentifier():
            raise ValueError(f"name: expected letters, digits and underscores; got {self.name!r}")
        if (self.compress or self.preprocessed) and self.to != "hdf5":
            raise ValueError("compress and preprocessed are forms of HDF5; set --to hdf5")
        if self.compress and self.preprocessed:
            raise ValueError("compress and preprocessed: expected one of them")


@dataclass(frozen=True)
class PartResult:
    """What became of one episode.

    Attributes:
        source: Which one.
        problem: Why it was not converted; empty if it was.
        steps: T.
        rate_hz: Steps per second.
        outcome: Its label.
        notes: What its reader assumed or repaired.
        resumed: True if it was done by an earlier, interrupted run.
    """

    source: str
    problem: str = ""
    steps: int = 0
    rate_hz: float = 0.0
    outcome: str = ""
    notes: tuple[str, ...] = ()
    resumed: bool = False


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did.

    Attributes:
        folder: The data set.
        episodes: Episodes that are in it, counted on disk.
        splits: Split → episodes.
        converted: Those that were converted.
        skipped: Those that could not be, with their problems.
        failures: Sources that were left out because they are labelled as failures.
        statistics: Of what is in the set.
    """

    folder: Path
    episodes: int
    splits: dict[str, int]
    converted: tuple[PartResult, ...]
    skipped: tuple[PartResult, ...]
    failures: tuple[str, ...]
    statistics: Statistics


def convert(
    sources: Sequence[Source],
    output: Path,
    options: ConvertOptions,
    *,
    workers: int = 1,
    on_part: Callable[[PartResult], None] = lambda result: None,
) -> ConversionReport:
    """Converts episodes to a training set.

    Args:
        sources: The episodes, in the order of the set.
        output: Folder to write; new, empty, or that of an interrupted conversion.
        options: What to make.
        workers: Processes.
        on_part: Called for each episode when it is done.

    Raises:
        ConversionError: naming every episode that cannot be used, if that is not to be skipped;
            if none is left; or if they differ in rate.
    """
    finished = [entry for entry in output.glob("*") if entry.name != PARTS]
    if finished:
        raise ConversionError(
            f"{output}: expected a new folder, or that of an interrupted conversion; it holds "
            f"{finished[0].name}"
        )
    output.mkdir(parents=True, exist_ok=True)
    folders = [_folder(output, source, options) for source in sources]
    results = _run(sources, folders, options, workers, on_part)
    skipped = [result for result in results if result.problem]
    if skipped and options.on_bad != "skip":
        listed = "\n  ".join(result.problem for result in skipped)
        raise ConversionError(
            f"{len(skipped)} of {len(results)} episodes cannot be used:\n  {listed}\n"
            "Leave them out with --on-bad skip; what is done so far is kept"
        )
    good = [(result, f) for result, f in zip(results, folders, strict=True) if not result.problem]
    failed = [] if options.keep_failures else [r for r, _ in good if r.outcome == FAILURE]
    kept = [(result, folder) for result, folder in good if result not in failed]
    _refuse_mixed([result for result, _ in kept])
    statistics = _statistics(kept)
    chosen = [folder for _, folder in kept]
    splits = _finish(output, chosen, options)
    write_statistics(output / STATISTICS_FILE, options.name, statistics)
    counted = count_on_disk(output, options)
    if counted != len(kept):
        raise RuntimeError(f"{output}: {len(kept)} episodes were written, {counted} are on disk")
    shutil.rmtree(output / PARTS)
    return ConversionReport(
        folder=output,
        episodes=counted,
        splits={split: splits.count(split) for split in dict.fromkeys(splits)},
        converted=tuple(result for result, _ in kept),
        skipped=tuple(skipped),
        failures=tuple(result.source for result in failed),
        statistics=statistics,
    )


def _refuse_mixed(results: Sequence[PartResult]) -> None:
    if not results:
        raise ConversionError("expected at least one usable episode; got none")
    rates: dict[float, list[str]] = {}
    for result in results:
        rates.setdefault(result.rate_hz, []).append(result.source)
    if len(rates) > 1:
        listed = "; ".join(
            f"{rate:g} Hz in {len(names)}, e.g. {names[0]}" for rate, names in rates.items()
        )
        raise ConversionError(
            f"expected episodes of one rate; got {listed}. Bring them to one with --rate"
        )


def _folder(output: Path, source: Source, options: ConvertOptions) -> Path:
    """Where the part of an episode goes; another if the source or what is made of it changes."""
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in source.files]
    making = (options.to, options.compress, options.preprocessed, options.codec, options.read)
    key = repr((str(source.path.resolve()), source.kind, source.index, files, making))
    return output / PARTS / hashlib.blake2b(key.encode(), digest_size=12).hexdigest()


def _run(
    sources: Sequence[Source],
    folders: Sequence[Path],
    options: ConvertOptions,
    workers: int,
    on_part: Callable[[PartResult], None],
) -> list[PartResult]:
    work = partial(convert_part, options=options)
    if workers <= 1:
        results = []
        for source, folder in zip(sources, folders, strict=True):
            results.append(work(source, folder))
            on_part(results[-1])
        return results
    # Spawned, not forked: OpenCV and HDF5 have threads that do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures: dict[Future[PartResult], int] = {
            pool.submit(work, source, folder): place
            for place, (source, folder) in enumerate(zip(sources, folders, strict=True))
        }
        done: dict[int, PartResult] = {}
        for future in as_completed(futures):
            done[futures[future]] = future.result()
            on_part(done[futures[future]])
    return [done[place] for place in range(len(sources))]


def convert_part(source: Source, folder: Path, options: ConvertOptions) -> PartResult:
    """Converts one episode into a folder of its own, unless that is done already.

    Returns:
        What became of it; an episode that cannot be used is no exception.
    """
    done = folder / _DONE
    if done.is_file():
        told = json.loads(done.read_text(encoding="utf-8"))
        return PartResult(**{**told, "notes": tuple(told["notes"]), "resumed": True})
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        episode = read_source(source, options.read)
        if options.to == "hdf5":
            form = {"compress": options.compress, "preprocessed": options.preprocessed}
            write_hdf5(episode, folder / "episode.hdf5", **form)
        elif options.to == "rlds":
            rlds.write_record(episode, folder / "record")
        else:
            lerobot.write_part(episode, folder, options.codec)
    except (ValueError, EOFError) as error:
        shutil.rmtree(folder)
        text = str(error)
        named = text if str(source.path) in text else f"{source}: {text}"
        return PartResult(source=str(source), problem=named)
    with new_file(folder / "vectors.npz") as part, part.open("wb") as file:
        np.savez(file, qpos=episode.qpos, action=episode.action)
    result = PartResult(
        source=str(source),
        steps=len(episode),
        rate_hz=episode.rate_hz,
        outcome=episode.outcome,
        notes=episode.notes,
    )
    with new_file(done) as part:
        part.write_text(json.dumps(asdict(result)), encoding="utf-8")
    return result


def _statistics(kept: Sequence[tuple[PartResult, Path]]) -> Statistics:
    collector = StatisticsCollector()
    for result, folder in kept:
        with np.load(folder / "vectors.npz") as vectors:
            collector.add_vectors(
                vectors["qpos"], vectors["action"], result.rate_hz, result.source
            )
    return collector.finish()


def choose_splits(count: int, val_share: float, seed: int) -> list[str]:
    """Chooses "train" or "val" for some episodes, whole: frames of one are alike.

    Args:
        count: Number of episodes.
        val_share: Share for validation; at least one episode unless it is 0 or there is only one.
        seed: The same seed gives the same split.
    """
    held_out = min(max(round(count * val_share), 1), count - 1)
    if val_share == 0.0 or count < 2:
        held_out = 0
    order = np.random.default_rng(seed).permutation(count)
    chosen = set(order[:held_out].tolist())
    return ["val" if place in chosen else "train" for place in range(count)]


def _finish(output: Path, folders: Sequence[Path], options: ConvertOptions) -> list[str]:
    """Puts the parts together; returns the split of each episode."""
    has_splits = options.to == "rlds" or options.preprocessed
    share = options.val_share if has_splits else 0.0
    splits = choose_splits(len(folders), share, options.seed)
    if options.to == "rlds":
        parts = [rlds.RldsPart(f / "record", s) for f, s in zip(folders, splits, strict=True)]
        rlds.write_dataset(output, options.name, parts)
    elif options.to == "lerobot":
        lerobot.write_dataset(output, folders)
    else:
        numbers = dict.fromkeys(splits, 0)
        for folder, split in zip(folders, splits, strict=True):
            target = output / split if options.preprocessed else output
            target.mkdir(exist_ok=True)
            (folder / "episode.hdf5").replace(target / f"episode_{numbers[split]}.hdf5")
            numbers[split] += 1
    return splits


def count_on_disk(output: Path, options: ConvertOptions) -> int:
    """Episodes that a finished set really holds."""
    if options.to == "hdf5":
        return len(list(output.rglob("episode_*.hdf5")))
    if options.to == "rlds":
        files = (output / options.name / rlds.VERSION).glob("*.tfrecord-*")
        return sum(1 for file in files for _ in read_records(file))
    cameras: set[int] = set()
    for camera in (output / "videos").iterdir():
        cameras.add(len(list(camera.rglob("*.mp4"))))
    rows = len(list((output / "data").rglob("*.parquet")))
    if cameras != {rows}:
        raise EpisodeError(f"{output}: {rows} episodes of numbers, {sorted(cameras)} of videos")
    return rows
