"""Laws of the tables of docs/results.md: what is compared is comparable, and nothing gets lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mujoco", reason="the extra 'sim' is not installed")
pytest.importorskip("torch", reason="torch is not installed")
sys.path.append(str(Path(__file__).parents[2] / "benchmark"))

import closed_loop
import torch
from success import report, tables
from success.deepened import write_deepened
from success.tables import TABLES, Given, Table, model_sizes, plan_of

from vla_oft_ros.config import PolicyConfig
from vla_oft_ros.evaluation import Condition, Station, condition_key, read_episodes
from vla_oft_ros.model.action_head import HeadKind
from vla_oft_ros.model.engine_request import Request
from vla_oft_ros.model.engine_run import Engine
from vla_oft_ros.model.llm import Rotary
from vla_oft_ros.model.small_checkpoint import SmallSize, make_random_checkpoint
from vla_oft_ros.policy import load_policy
from vla_oft_ros.sim.loop_setting import EpisodeResult
from vla_oft_ros.sim.success_rate import wilson_interval
from vla_oft_ros.sim.tasks import PICK_CUBE
from vla_oft_ros.types import MotionMode

pytestmark = pytest.mark.sim

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "results.md"
WEIGHTS = ("entropy", "uniform")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint") / "small"
    make_random_checkpoint(directory)
    return directory


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint") / "shallow"
    make_random_checkpoint(directory, size=SmallSize(layers=4))
    return directory


def table_of(checkpoint: Path, name: str = "pruning") -> Table:
    given = Given(
        checkpoints={"checkpoint": str(checkpoint)}, scratch=checkpoint.parent, device="cpu"
    )
    return TABLES[name](given)


def made_up(condition: Condition, seed: int) -> EpisodeResult:
    """A result that depends on nothing but the condition and the seed."""
    generator = np.random.default_rng([int(condition_key(condition), 16), seed])
    success = bool(generator.random() < 0.6)
    return EpisodeResult(
        success=success,
        max_reward=4 if success else int(generator.integers(4)),
        done_s=4.0 + generator.random() if success else None,
        end_s=6.0,
        nearest_mm=float(generator.random()),
        inference_ms=(10.0,),
        inference_cpu_ms=tuple(generator.random(3)),
        kept=(1.0, *generator.random(2)),
        ticks=100,
        idle_ticks=0,
        held_ticks=0,
        refused=0,
        interventions={},
    )


class Counting:
    """In the place of `Station.run`: makes results up, remembers for what, and may break off."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> None:
        self.ran: list[tuple[str, int]] = []
        self._stop_after = stop_after
        monkeypatch.setattr(Station, "run", lambda _, *job: self(*job))

    def __call__(self, condition: Condition, seed: int) -> EpisodeResult:
        if len(self.ran) == self._stop_after:
            raise KeyboardInterrupt
        self.ran.append((condition.name, seed))
        return made_up(condition, seed)


def options(folder: Path, checkpoint: Path, *more: str) -> list[str]:
    """Of a table of joins with three seeds, in a folder of its own."""
    folder.mkdir(exist_ok=True)
    document = folder / "results.md"
    if not document.exists():
        document.write_bytes(DOCUMENT.read_bytes())
    return [
        *("--table", "joins", "--checkpoint", str(checkpoint), "--device", "cpu"),
        *("--episodes", "3", "--output", str(folder / "episodes.jsonl")),
        *("--json", str(folder / "figures.json"), "--write", str(document), *more),
    ]


def written(folder: Path) -> tuple[str, str]:
    return (folder / "results.md").read_text(), (folder / "figures.json").read_text()


def test_a_table_that_was_interrupted_goes_on_to_the_same_table(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    everything = Counting(monkeypatch)
    assert closed_loop.main(options(whole, checkpoint)) == 0
    assert len(everything.ran) == 6 * 3

    first = Counting(monkeypatch, stop_after=8)
    before = DOCUMENT.read_text()
    assert closed_loop.main(options(broken, checkpoint)) == closed_loop.INTERRUPTED
    assert (broken / "results.md").read_text() == before
    assert len(list(read_episodes(broken / "episodes.jsonl"))) == 8
    second = Counting(monkeypatch)
    assert closed_loop.main(options(broken, checkpoint)) == 0
    assert first.ran + second.ran == everything.ran
    assert written(broken) == written(whole)


def test_a_process_that_is_killed_loses_no_more_than_what_it_was_running(
    checkpoint: Path, tmp_path: Path
) -> None:
    arguments = options(tmp_path, checkpoint, "--time-limit-s", "0.8", "--episodes", "2")
    command = [sys.executable, str(ROOT / "benchmark" / "closed_loop.py"), *arguments]
    path = tmp_path / "episodes.jsonl"
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        end_s = time.monotonic() + 240.0
        while not path.is_file() or path.read_text().count("\n") < 3:
            assert process.poll() is None and time.monotonic() < end_s
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    kept = {(each.key, each.seed): each for each in read_episodes(path)}
    assert len(kept) >= 3
    assert closed_loop.main(arguments) == 0
    after = {(each.key, each.seed): each for each in read_episodes(path)}
    assert len(after) == 6 * 2
    assert all(after[key] == each for key, each in kept.items())
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert [row["episodes"] for row in rows] == [2] * 6


def test_every_row_runs_on_the_same_seeds_in_turn(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(monkeypatch)
    assert closed_loop.main(options(tmp_path, checkpoint)) == 0
    names = [condition.name for condition in table_of(checkpoint, "joins").conditions]
    assert counting.ran == [(name, seed) for seed in (10_000, 10_001, 10_002) for name in names]


def test_a_table_written_twice_is_the_table_written_once_and_leaves_the_rest_alone(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Counting(monkeypatch)
    assert closed_loop.main(options(tmp_path, checkpoint)) == 0
    once = written(tmp_path)
    assert closed_loop.main(options(tmp_path, checkpoint)) == 0
    assert written(tmp_path) == once

    def rest(text: str) -> str:
        begin, end = report.marks("joins")
        return text.partition(begin)[0] + text.partition(end)[2]

    assert rest(once[0]) == rest(DOCUMENT.read_text())
    assert str(tmp_path) not in once[0]
    assert "--table joins --checkpoint small --episodes 3 --device cpu`" in once[0]


def test_the_document_has_a_place_for_every_table() -> None:
    for name in TABLES:
        report.check_document(DOCUMENT, name)


def test_figures_are_those_of_the_episodes(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Counting(monkeypatch)
    assert closed_loop.main(options(tmp_path, checkpoint, "--episodes", "20")) == 0
    told = json.loads((tmp_path / "figures.json").read_text())
    conditions = table_of(checkpoint, "joins").conditions
    lines = (tmp_path / "results.md").read_text().splitlines()
    successes = {}
    for condition, row in zip(conditions, told["rows"], strict=True):
        results = [made_up(condition, seed) for seed in range(10_000, 10_020)]
        successes[condition.name] = np.array([result.success for result in results])
        count = int(successes[condition.name].sum())
        assert (row["episodes"], row["successes"]) == (20, count)
        assert (row["low"], row["high"]) == pytest.approx(wilson_interval(count, 20))
        kept = np.mean([share for result in results for share in result.kept])
        assert row["tokens"] == pytest.approx(192 * kept)
        first = successes[conditions[0].name]
        assert row["won"] == (successes[condition.name] & ~first).sum()
        assert row["lost"] == (~successes[condition.name] & first).sum()
        [line] = [line for line in lines if line.startswith(f"| {condition.name} |")]
        assert f"| 20 | {count} | {5.0 * count:.1f} [" in line
    assert len(set(map(tuple, successes.values()))) > 1


def test_rows_that_are_to_keep_as_many_tokens_as_specprune_have_its_budgets(
    checkpoint: Path, shallow: Path
) -> None:
    for directory in (checkpoint, shallow):
        rows = {each.name: each for each in table_of(directory).conditions}
        spec = rows["SpecPrune, α = 0.8"].policy
        assert spec is not None
        sizes = model_sizes(spec)
        budgets = plan_of(spec.pruning, sizes).budgets
        assert budgets[MotionMode.COARSE] < budgets[MotionMode.FINE] < 192
        alike = [
            each
            for name, each in rows.items()
            if "α = 0.8" in name and not name.endswith("5 layers")
        ]
        assert len(alike) == 8
        for each in alike:
            assert each.policy is not None
            assert plan_of(each.policy.pruning, sizes).budgets == budgets
            specprune = each.policy.pruning.method == "specprune"
            assert each.loop.looks_back == specprune
            assert each.policy.pruning.rivals_start_dense != specprune


def test_what_a_shallow_network_cannot_compare_is_said(checkpoint: Path, shallow: Path) -> None:
    deep, flat = table_of(checkpoint), table_of(shallow)
    names = [[each.name for each in table.conditions] for table in (deep, flat)]
    assert "α = 0.8, uniform weights" in names[0]
    assert "α = 0.8, uniform weights" not in names[1]
    assert names[1][-4:-2] == [f"α = 0.8, {word} weights, 5 layers" for word in WEIGHTS]
    assert "α = 0.8, static after 1, dynamic after 3" in names[1]
    assert "layers 4, 7" in deep.notes[0] and "there is no dynamic stage" in flat.notes[0]
    assert any("one layer more before layer 3" in note for note in flat.notes)
    early = next(each.policy for each in flat.conditions if "static after 1" in each.name)
    assert early is not None
    plan = plan_of(early.pruning, model_sizes(early))
    assert (plan.static_layer, plan.dynamic_layers) == (1, (3,))


def test_weights_are_compared_in_a_network_whose_new_layer_changes_nothing_but_scores(
    shallow: Path, tmp_path: Path
) -> None:
    rows = {each.name: each.policy for each in table_of(shallow).conditions}
    dense = rows["dense"]
    assert dense is not None
    policies = []
    for word in WEIGHTS:
        deep = rows[f"α = 0.8, {word} weights, 5 layers"]
        assert deep is not None and deep.pruning.layer_weights == word
        plan = plan_of(deep.pruning, model_sizes(deep))
        assert (plan.static_layer, plan.dynamic_layers) == (1, (4,))
        assert [layer for layer in range(1, 6) if plan.is_weighed(layer)] == [2, 3]
        shallow_plan = plan_of(replace(deep.pruning, dynamic_layers=()), model_sizes(dense))
        assert plan.budgets == shallow_plan.budgets
        policies.append(deep)
    one, other = (replace(policy, pruning=dense.pruning) for policy in policies)
    assert one == other != dense
    before, after = (
        load_policy(policy).checkpoint.model.language_model.model for policy in (dense, one)
    )
    assert len(after.layers) == len(before.layers) + 1
    tokens = torch.randn(1, 40, before.config.width)
    with torch.no_grad():
        assert torch.equal(before(tokens).hidden, after(tokens).hidden)
        rotary = Rotary.at(torch.arange(40), before.config.head_dim, 1e4, tokens.dtype)
        twin, new = before.layers[2](tokens, rotary), after.layers[2](tokens, rotary)
    assert torch.equal(new.hidden, tokens) and not torch.equal(twin.hidden, tokens)
    assert torch.equal(new.queries, twin.queries) and torch.equal(new.keys, twin.keys)


@pytest.mark.parametrize("broken", ["split", "layer"])
def test_what_cannot_be_deepened_is_named(shallow: Path, tmp_path: Path, broken: str) -> None:
    source = tmp_path / "source"
    shutil.copytree(shallow, source)
    if broken == "split":
        (source / "model.safetensors").rename(source / "model-00001-of-00001.safetensors")
    with pytest.raises(ValueError, match=r"expected a model\.safetensors of at least"):
        write_deepened(source, tmp_path / "deeper", 5 if broken == "layer" else 2)
    assert not (tmp_path / "deeper").exists()


def test_a_control_with_blank_images_shows_the_network_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {each.name: each for each in table_of(checkpoint).conditions}
    seen: list[Sequence[np.ndarray]] = []
    load = Engine.load

    def loading(engine: Engine, request: Request) -> None:
        seen.append(request.images)
        load(engine, request)

    monkeypatch.setattr(Engine, "load", loading)
    station = Station()
    for name, blank in (("dense", False), ("control: blank images", True)):
        seen.clear()
        condition = rows[name]
        short = replace(condition, loop=replace(condition.loop, time_limit_s=0.8))
        station.run(short, 10_000)
        assert len(seen) == 2
        assert all(len(images) == 3 for images in seen)
        assert all((np.ptp(image) == 0) == blank for images in seen for image in images)
    station.close()


def test_controls_differ_from_the_dense_row_in_one_thing(checkpoint: Path) -> None:
    rows = {each.name: each for each in table_of(checkpoint).conditions}
    dense = rows["dense"]
    blank, shuffled = rows["control: blank images"], rows["control: shuffled weights"]
    assert replace(blank, name="", loop=dense.loop) == replace(dense, name="")
    assert blank.loop == replace(dense.loop, sight="blank")
    assert replace(shuffled, name="", shuffled=False) == replace(dense, name="")
    assert shuffled.shuffled


@pytest.fixture
def kinds(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    """Option → a checkpoint that claims to be what the option wants; all are one network."""
    heads = {"discrete": HeadKind.DISCRETE, "diffusion": HeadKind.DIFFUSION}
    real = model_sizes(PolicyConfig(checkpoint_dir=str(checkpoint)))
    blind = replace(real, dino=replace(real.dino, film_width=0))
    said = {name: replace(real, head=head) for name, head in heads.items()}
    said |= {"checkpoint": real, "no-film": blind}
    for name in said:
        shutil.copytree(checkpoint, tmp_path / name)
        (tmp_path / name / "fingerprint.json").write_text(name)
    monkeypatch.setattr(
        tables, "model_sizes", lambda policy: said[Path(policy.checkpoint_dir).name]
    )
    return {name: str(tmp_path / name) for name in said}


def test_language_is_measured_beside_chance_and_deaf_policies(
    kinds: Mapping[str, str], tmp_path: Path
) -> None:
    table = TABLES["language"](Given(checkpoints=kinds, scratch=tmp_path))
    rows = {each.name: each for each in table.conditions}
    assert {each.task for each in rows.values()} == {"pick_cube"}
    chance = rows["chance: scripted operator, always told the same"]
    assert chance.policy is None
    assert chance.loop.instruction in PICK_CUBE.instructions
    for name, option in (("with FiLM", "checkpoint"), ("without FiLM", "no-film")):
        deaf = rows[f"{name}, always told '{chance.loop.instruction}'"]
        assert rows[name].loop.instruction == ""
        assert deaf.loop == chance.loop
        assert rows[name].policy == deaf.policy
        assert rows[name].policy is not None
        assert rows[name].policy.checkpoint_dir == kinds[option]
    assert any("33.3 %" in note for note in table.notes)


def test_a_diffusion_head_is_measured_in_fewer_and_fewer_steps(
    kinds: Mapping[str, str], tmp_path: Path
) -> None:
    table = TABLES["heads"](Given(checkpoints=kinds, scratch=tmp_path))
    names = [each.name for each in table.conditions]
    steps = (50, 20, 10, 5, 2, 1)
    assert names == [
        "l1",
        "discrete",
        *(f"diffusion, {count} step{'s' if count > 1 else ''}" for count in steps),
    ]
    policies = [each.policy for each in table.conditions]
    assert [each.diffusion_steps for each in policies if each][2:] == list(steps)
    assert not table.notes
    partial = {**kinds, "discrete": ""}
    fewer = TABLES["heads"](Given(checkpoints=partial, scratch=tmp_path))
    assert fewer.notes == ("Not measured: discrete.",)


def test_joins_are_measured_at_every_latency(checkpoint: Path) -> None:
    loops = [each.loop for each in table_of(checkpoint, "joins").conditions]
    assert {(each.queue.join, each.latency_ms) for each in loops} == {
        (join, latency_ms)
        for join in ("sync", "latency_matched_blend")
        for latency_ms in (0.0, 100.0, 321.0)
    }


def test_names_and_keys_of_a_table_are_its_own(checkpoint: Path, shallow: Path) -> None:
    for table in (table_of(checkpoint), table_of(shallow), table_of(checkpoint, "joins")):
        names = [each.name for each in table.conditions]
        keys = [condition_key(each) for each in table.conditions]
        assert len(set(names)) == len(names) == len(set(keys))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--table", "pruning"], "--checkpoint: expected"),
        (["--table", "pruning", "--checkpoint", "nowhere"], "nowhere"),
        (["--table", "joins", "--checkpoint", "shipped:nothing"], "shipped:"),
        (["--table", "language", "--checkpoint", "HERE"], "--no-film: expected"),
        (["--table", "language", "--checkpoint", "HERE", "--no-film", "HERE"], "without FiLM"),
        (["--table", "heads", "--checkpoint", "HERE"], "at least two"),
        (["--table", "heads", "--checkpoint", "HERE", "--diffusion", "HERE"], "head diffusion"),
        (["--table", "joins", "--checkpoint", "HERE", "--episodes", "0"], "at least one episode"),
        (["--table", "joins", "--checkpoint", "HERE", "--workers", "0"], "workers"),
        (["--table", "joins", "--checkpoint", "HERE", "--write", "HERE/config.json"], "--write"),
        (["--table", "joins", "--checkpoint", "HERE", "--json", "nowhere/x.json"], "--json"),
    ],
)
def test_a_mistake_is_told_before_anything_is_run(
    wrong: list[str],
    told: str,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    counting = Counting(monkeypatch)
    monkeypatch.chdir(tmp_path)
    arguments = [word.replace("HERE", str(checkpoint)) for word in wrong]
    assert closed_loop.main(arguments) == closed_loop.BAD_INPUT
    assert told in " ".join(capsys.readouterr().err.split())
    assert not counting.ran


def test_without_a_table_they_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert closed_loop.main([]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in TABLES)
