"""Laws of the benchmarks: what they compare computes the same, and each of them runs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra bench")
sys.path.append(str(Path(__file__).parent.parent / "benchmark"))

from latency.hf_baseline import ATTENTIONS, share_weights
from latency.random_oft import FULL, random_inputs, random_model, scaled_down, work

CPU = torch.device("cpu")
TINY = scaled_down(width=32, layers=3, heads=4, tower_width=32, tower_depth=3, grid=3)
ERROR = {torch.float32: 1e-4, torch.float64: 1e-6}
"""Norms are computed in float32 by both, whatever the format of the weights."""


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("dtype", ERROR)
@torch.inference_mode()
def test_the_hugging_face_baseline_predicts_what_our_model_predicts(
    dtype: torch.dtype, attention: str
) -> None:
    model, inputs = random_model(TINY, CPU, dtype), random_inputs(TINY, CPU, dtype)
    baseline = share_weights(model, attention)
    theirs = baseline(inputs.pixel_values, inputs.input_ids, inputs.proprio)
    ours = model(inputs).actions
    assert ours.std() > 0.1
    assert (theirs - ours).abs().max() < ERROR[dtype]


@torch.inference_mode()
def test_the_baseline_holds_no_weights_of_its_own() -> None:
    model = random_model(TINY, CPU, torch.float32)
    shared = {parameter.data_ptr() for parameter in model.parameters()}
    baseline = share_weights(model)
    assert all(parameter.data_ptr() in shared for parameter in baseline.parameters())


@torch.inference_mode()
def test_every_part_of_the_input_changes_what_the_baseline_predicts() -> None:
    model, inputs = random_model(TINY, CPU, torch.float32), random_inputs(TINY, CPU, torch.float32)
    baseline = share_weights(model)
    given = [inputs.pixel_values, inputs.input_ids, inputs.proprio]
    before = baseline(*given)
    for index, part in enumerate(given):
        other = part.clone()
        other[:, 1] = other[:, 1] + 1
        assert (baseline(*given[:index], other, *given[index + 1 :]) - before).abs().max() > 1e-6


def test_a_baseline_that_stays_causal_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import latency.hf_baseline as module

    make = module._llama_config

    def causal(*arguments: object) -> object:
        config = make(*arguments)
        config.is_causal = True
        return config

    monkeypatch.setattr(module, "_llama_config", causal)
    with pytest.raises(ValueError, match="both directions"):
        share_weights(random_model(TINY, CPU, torch.float32))


def test_the_baseline_is_for_oft_plus_alone() -> None:
    plain = replace(
        TINY,
        dino=replace(TINY.dino, film_width=0),
        siglip=replace(TINY.siglip, film_width=0),
    )
    with pytest.raises(ValueError, match="expected FiLM"):
        share_weights(random_model(plain, CPU, torch.float32))


def test_the_floor_counts_what_the_network_computes() -> None:
    """Operations by formula are those that torch counts in a pass."""
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    attention = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
            lambda q, k, v, *_, out_shape=None, **__: sdpa_flop_count(q, k, v)
        )
    }
    model, inputs = random_model(TINY, CPU, torch.float32), random_inputs(TINY, CPU, torch.float32)
    with torch.inference_mode():
        modulations = model.film(inputs)
        with FlopCounterMode(display=False, custom_mapping=attention) as counter:
            model(inputs, modulations=modulations)
    length = TINY.layout(inputs.prompt_lens[0]).length
    needed = work(TINY, [length] * TINY.llm.layers, bytes_per_weight=4)
    head = 2 * TINY.chunk_len * needed.head_bytes / 4
    width = TINY.llm.width
    proprio = 2 * (TINY.proprio_dim * width + width * width)
    assert needed.flop + head + proprio == counter.get_total_flops()


def test_the_full_network_has_the_operations_and_the_floor_of_the_official_one() -> None:
    needed = work(FULL, [1153] * 32)
    assert needed.flop == pytest.approx(16.85e12, rel=1e-3)
    # At the rates of an H200: 790 TFLOP/s in bfloat16, 4.3 TB/s.
    assert needed.floor_s(790e12, 4.3e12) == pytest.approx(21.45e-3, rel=1e-3)


def test_the_gpu_benchmark_runs_small_on_a_cpu_and_names_every_row_that_cannot(
    tmp_path: Path,
) -> None:
    pytest.importorskip("vla_oft_ros.model.engine")
    script = Path(__file__).parent.parent / "benchmark" / "latency_gpu.py"
    told = tmp_path / "told.json"
    command = [sys.executable, str(script), "--tiny", "--rounds", "1", "--json", str(told)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(told.read_text())["rows"]}
    cannot = {name for name, row in rows.items() if "not_run" in row}
    assert all("needs a CUDA GPU" in rows[name]["not_run"] for name in cannot)
    assert {"Hugging Face", "ours, dense", "ours, pruned, coarse"} <= rows.keys() - cannot
    assert rows["ours, dense"]["relative_error"] < 1e-4
    assert rows["Hugging Face"]["relative_error"] < 1e-4


def test_the_cpu_benchmark_compares_the_engine_with_the_baseline_on_the_same_weights(
    tmp_path: Path,
) -> None:
    told = tmp_path / "told.json"
    script = Path(__file__).parent.parent / "benchmark" / "latency_cpu.py"
    options = ["--tiny", "--rounds", "1", "--calls", "1", "--json", str(told)]
    command = [sys.executable, str(script), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(told.read_text())["float32"]
    rows = {row["name"]: row for row in report["rows"]}
    cannot = {name for name, row in rows.items() if "not_run" in row}
    assert cannot == {"Hugging Face, torch.compile", "engine, compiled"}
    unpruned = [row for name, row in rows.items() if "pruned" not in name and name not in cannot]
    assert len(unpruned) > 10
    assert all(row["relative_error"] < 1e-5 for row in unpruned)
    for kind in ("", ", from frames"):
        assert f"times as fast as Hugging Face{kind}" in rows[f"engine{kind}"]
    assert len(report["bars"]) == 3


def test_a_plateau_is_where_more_tokens_take_no_longer() -> None:
    import plateaus

    tiles = {length: float(-(-length // 64)) for length in range(384, 769, 8)}
    assert plateaus.steps(tiles) == [384, 448, 512, 576, 640, 704]
    for multiple, median in ((8, None), (32, 1.0), (64, 1.0), (128, None)):
        ratios = [ratio for _, ratio in plateaus.rounding(tiles, multiple)]
        if multiple == 8:
            assert ratios == [], "every length is one already"
        elif median is None:
            assert max(ratios) > 1.1
        else:
            assert set(ratios) == {median}
    straight = {length: float(length) for length in range(384, 769, 8)}
    assert plateaus.steps(straight) == []
    [free, *_] = plateaus.roundings([tiles, tiles])
    assert (free.multiple, free.median, free.worst, free.again) == (16, 1.0, 1.0, 1.0)
    assert free.added == 8.0


def test_the_sweep_over_lengths_runs(tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    script = Path(__file__).parent.parent / "benchmark" / "plateaus.py"
    options = [
        "--from",
        "24",
        "--to",
        "64",
        "--width",
        "64",
        "--rounds",
        "2",
        "--dtype",
        "float32",
    ]
    options += ["--dtype", "float32", "--device", "cpu", "--json", str(told)]
    command = [sys.executable, str(script), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads(told.read_text())
    assert list(map(int, record["seconds"])) == [24, 32, 40, 48, 56, 64]
    assert [row["multiple"] for row in record["roundings"]] == [16, 32, 64]
