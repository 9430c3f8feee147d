"""Many episodes of a policy in the simulation: which ones, in how many processes, what came out.

Every finished episode is one line of a JSON Lines file, under a key of all that its outcome
depends on: checkpoint, settings, task, seed. So an evaluation that was killed goes on where it
was, and a changed setting never finds an old result. Joins `policy` and `sim`; knows nothing of
ROS or the terminal.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from vla_oft_ros.aloha import load_profile
from vla_oft_ros.config import ConfigError, PolicyConfig
from vla_oft_ros.model.shuffled import shuffle_weights
from vla_oft_ros.policy import Policy, load_policy
from vla_oft_ros.shipped_policies import checkpoint_path
from vla_oft_ros.sim.aloha_world import AlohaWorld
from vla_oft_ros.sim.closed_loop import run_episode
from vla_oft_ros.sim.loop_setting import Actor, EpisodeResult, LoopSetting
from vla_oft_ros.sim.oracle import Oracle

FIRST_SEED = 10_000
"""Of the episodes of an evaluation. Training takes the seeds from 0 up, so that an evaluation
shows poses that no demonstration had."""
OTHER_SEEDS = 1_000_000
"""Added to an episode's seed for the cube of `sight` other."""
PROFILE = "sim"
_RULES = 1
"""Goes up when the same key would give another result: old lines then count no more."""


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One row of a table: a policy and how it is run.

    Attributes:
        name: What people call it; not part of the key.
        policy: Checkpoint and pruning; None is the oracle.
        loop: How it is run.
        task: Name of a task of the simulation.
        shuffled: The control of a network that has learnt nothing; see `model.shuffled`.
    """

    name: str
    policy: PolicyConfig | None
    loop: LoopSetting = field(default_factory=LoopSetting)
    task: str = "transfer_cube"
    shuffled: bool = False


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One finished episode.

    Attributes:
        key: See `condition_key`.
        seed: Of the world.
        result: What became of it.
    """

    key: str
    seed: int
    result: EpisodeResult


def checkpoint_identity(directory: Path) -> str:
    """What tells one checkpoint from another: a digest of its fingerprint and its settings.

    The fingerprint holds what the network answers to a fixed input, and loading tests it against
    the weights. A checkpoint without one is known by all its bytes.

    Raises:
        ConfigError: if there is no such directory.
    """
    if not directory.is_dir():
        raise ConfigError(f"checkpoint: expected a directory; {directory} is none")
    paths = [directory / "fingerprint.json", *sorted(directory.glob("*.json"))]
    if not paths[0].is_file():
        paths = sorted(path for path in directory.rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.relative_to(directory).as_posix().encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def condition_key(condition: Condition) -> str:
    """Digest of everything that the outcome of an episode depends on, but for its seed."""
    policy: dict[str, Any] | None = None
    if condition.policy is not None:
        policy = asdict(condition.policy)
        directory = policy.pop("checkpoint_dir")
        policy["checkpoint"] = checkpoint_identity(checkpoint_path(directory))
        for name in ("threads", "skip_self_tests"):
            policy.pop(name)
    told = {"rules": _RULES, "task": condition.task, "policy": policy, "loop": condition.loop}
    if condition.shuffled:
        told["shuffled"] = True
    text = json.dumps(told, sort_keys=True, default=asdict)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Station:
    """What one process keeps from episode to episode: worlds and checkpoints."""

    def __init__(self) -> None:
        self._profile = load_profile(PROFILE)
        self._worlds: dict[tuple[str, str], AlohaWorld] = {}
        self._loaded: dict[tuple[PolicyConfig, bool], Policy] = {}

    def run(self, condition: Condition, seed: int) -> EpisodeResult:
        """Runs one episode."""
        world = self._world(condition.task, "own")
        world.reset(seed=seed)
        other: AlohaWorld | None = None
        if condition.loop.sight == "other":
            other = self._world(condition.task, "other")
            other.reset(seed=seed + OTHER_SEEDS)
        actor = self._actor(condition, world, seed)
        return run_episode(world, self._profile, actor, condition.loop, other=other)

    def close(self) -> None:
        """Frees what drawing has taken."""
        for world in self._worlds.values():
            world.close()

    def _world(self, task: str, role: str) -> AlohaWorld:
        if (task, role) not in self._worlds:
            self._worlds[task, role] = AlohaWorld(self._profile.gripper, task=task)
        return self._worlds[task, role]

    def _actor(self, condition: Condition, world: AlohaWorld, seed: int) -> Actor:
        config = condition.policy
        if config is None:
            return Oracle(world)
        plain = PolicyConfig()
        wanted = replace(config, pruning=plain.pruning, diffusion_steps=plain.diffusion_steps)
        # All are kept, since conditions take turns from episode to episode.
        loaded = self._loaded.get((wanted, condition.shuffled))
        if loaded is None:
            loaded = load_policy(wanted, profile=self._profile)
            if condition.shuffled:
                shuffle_weights(loaded.checkpoint.model)
            self._loaded[wanted, condition.shuffled] = loaded
        # Made anew for each episode: what is random in it depends on the seed alone, and not on
        # the episodes before.
        return Policy(
            loaded.checkpoint,
            dt_ns=world.control_period_ns,
            diffusion_steps=config.diffusion_steps,
            seed=seed,
            pruning=replace(config.pruning, seed=seed),
        )


def evaluate(
    conditions: Sequence[Condition], seeds: Sequence[int], path: Path, *, workers: int = 1
) -> Generator[tuple[Condition, Episode], None, None]:
    """Runs every condition on every seed, but for episodes that are in the file already.

    Seed by seed, and for each seed all conditions: what slows the machine down for a while slows
    all of them, and whatever is there when it ends early is of the same seeds.

    Args:
        conditions: What to compare; all see the same seeds.
        seeds: Of the worlds.
        path: JSON Lines file; made, or gone on with.
        workers: Processes; 1 is this one.

    Yields:
        Condition and episode, those of the file first, then in the order in which they end.

    Raises:
        ValueError: if a number makes no sense or a checkpoint cannot be loaded.
    """
    if workers < 1:
        raise ConfigError(f"workers: expected at least 1; got {workers}")
    keys = {index: condition_key(condition) for index, condition in enumerate(conditions)}
    known = {(episode.key, episode.seed): episode for episode in read_episodes(path)}
    waiting: list[tuple[int, int]] = []
    for seed in seeds:
        for index, condition in enumerate(conditions):
            episode = known.get((keys[index], seed))
            if episode is None:
                waiting.append((index, seed))
            else:
                yield condition, episode
    if not waiting:
        return
    with _appending(path) as file, _running(workers) as run:
        for index, seed, result in run([(i, conditions[i], seed) for i, seed in waiting]):
            episode = Episode(key=keys[index], seed=seed, result=result)
            line = {"name": conditions[index].name, **asdict(episode)}
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
            yield conditions[index], episode


def read_episodes(path: Path) -> Iterator[Episode]:
    """Episodes of a file; a line that a kill cut short is passed over. No file, no episodes."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            told = json.loads(line)
            result: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in told["result"].items()
            }
            yield Episode(key=told["key"], seed=told["seed"], result=EpisodeResult(**result))
        except (ValueError, KeyError, TypeError):
            continue


@contextmanager
def _appending(path: Path) -> Iterator[TextIO]:
    """Opens a file for more lines; one that was cut short is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cut = path.is_file() and path.stat().st_size > 0 and path.read_bytes()[-1:] != b"\n"
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" if cut else "")
        yield file


Job = tuple[int, Condition, int]
"""Number of the condition, the condition, the seed."""
Done = tuple[int, int, EpisodeResult]
"""Number of the condition, the seed, the result."""

_station: Station | None = None
"""Of a worker process; made by its initializer."""


@contextmanager
def _running(workers: int) -> Iterator[Callable[[Sequence[Job]], Iterator[Done]]]:
    """Gives a function that does jobs, here or in processes that end with this one."""
    if workers == 1:
        station = Station()
        try:
            yield lambda jobs: ((i, seed, station.run(each, seed)) for i, each, seed in jobs)
        finally:
            station.close()
        return
    others = multiprocessing.active_children()
    # Not forked: neither torch nor an OpenGL context survives that.
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_begin_worker
    )
    try:
        yield lambda jobs: (
            future.result() for future in as_completed([pool.submit(_work, job) for job in jobs])
        )
    except BaseException:  # no one waits for the episodes that are running
        for process in multiprocessing.active_children():
            if process not in others:
                process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    global _station
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)  # nobody is there any more who could want the result

    # Ctrl-C goes to all processes of a terminal; the parent ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    _station = Station()


def _work(job: Job) -> Done:
    assert _station is not None  # the initializer has run
    index, condition, seed = job
    return index, seed, _station.run(condition, seed)
