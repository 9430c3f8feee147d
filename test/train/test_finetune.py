"""The loop: it learns, it resumes bit for bit, several processes compute what one does, and a
checkpoint is whole or absent.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from made_up import CHUNK_LEN, SMALL, MakeConfig, make_episode
from rich.console import Console
from safetensors.torch import load_file

from vla_oft_ros.config import (
    ConfigError,
    FinetuneConfig,
    OfficialTrainingConfig,
    PolicyConfig,
    config_dir,
    flat_fields,
    load_tool_config,
    load_yaml,
)
from vla_oft_ros.model.checkpoint_files import find_parts, list_entries
from vla_oft_ros.policy import load_policy
from vla_oft_ros.train.checkpoints import STATE_FILE, DivergedError, saved_checkpoints
from vla_oft_ros.train.finetune import TrainingResult, finetune
from vla_oft_ros.train.report import METRICS_FILE
from vla_oft_ros.types import Observation

RUN = "import sys; from vla_oft_ros.cli import main; sys.exit(main())"


def train(config: FinetuneConfig) -> TrainingResult:
    return finetune(config, Console(quiet=True))


def losses(run_dir: Path) -> list[float]:
    lines = (run_dir / METRICS_FILE).read_text().splitlines()
    return [content["loss"] for line in lines if "loss" in (content := json.loads(line))]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    content = torch.load(directory / STATE_FILE, weights_only=True)
    state = {f"trained.{name}": value for name, value in content["trained"].items()}
    for name, moments in content["optimizer"].items():
        state |= {f"{key}.{name}": value for key, value in moments.items()}
    return state


def observation() -> Observation:
    episode = make_episode(1)
    return Observation(
        images={camera: images[2] for camera, images in episode.images.items()},
        image_stamps_ns=dict.fromkeys(episode.images, 0),
        proprio=episode.qpos[2],
        proprio_stamp_ns=0,
        instruction=episode.instruction,
    )


@pytest.mark.parametrize("decoding", ["l1", "discrete", "diffusion"])
def test_the_loss_falls_in_twenty_steps(
    decoding: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(tmp_path, decoding=decoding, max_steps=20, batch_size=6)
    train(replace(config, data=replace(config.data, augment=False)))
    course = losses(tmp_path)
    assert len(course) == 20
    assert np.mean(course[-3:]) < 0.9 * np.mean(course[:3])


def test_fine_tuning_ends_in_the_official_layout_that_the_policy_loads(
    base_dir: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(tmp_path, base_dir=str(base_dir), lora_rank=4, validate_every=3)
    result = train(config)
    assert result.checkpoint_dir == tmp_path / "aloha--6_chkpt"
    names = {path.name for path in result.checkpoint_dir.iterdir()}
    assert names >= {
        "action_head--6_checkpoint.pt",
        "proprio_projector--6_checkpoint.pt",
        "vision_backbone--6_checkpoint.pt",
        "model.safetensors",
        "config.json",
        "dataset_statistics.json",
        "fingerprint.json",
        "lora_adapter",
        "preprocessor_config.json",
        "tokenizer.json",
    }
    head = torch.load(result.checkpoint_dir / "action_head--6_checkpoint.pt", weights_only=True)
    assert all(key.startswith("module.model.") for key in head)
    problems: list[str] = []
    entries = list_entries([], find_parts(result.checkpoint_dir, problems), problems)
    assert not problems and any(entry.lora_a for entry in entries.values())
    policy = load_policy(PolicyConfig(checkpoint_dir=str(result.checkpoint_dir), device="cpu"))
    assert all(check.passed for check in policy.self_tests)
    assert policy.checkpoint.dataset == "aloha" and policy.profile == "sim"
    chunk = policy.infer(observation())
    assert chunk.actions.shape == (CHUNK_LEN, 14)
    lines = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    assert [line["step"] for line in lines if "validation_l1" in line] == [3, 6]


def test_the_saved_policy_answers_as_the_network_in_training_did(
    base_dir: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    """Validation in training and a forward pass of the reloaded checkpoint agree."""
    config = make_config(tmp_path, base_dir=str(base_dir), lora_rank=4, learning_rate=1e-2)
    config = replace(config, data=replace(config.data, augment=False), validate_every=6)
    result = train(config)
    lines = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    told = next(line["validation_l1"] for line in lines if "validation_l1" in line)
    again = replace(
        config,
        base_dir=str(result.checkpoint_dir),
        run_dir=str(tmp_path / "again"),
        learning_rate=0.0,
        max_steps=1,
        validate_every=1,
    )
    train(again)
    lines = [json.loads(line) for line in (tmp_path / "again" / METRICS_FILE).open()]
    reloaded = next(line["validation_l1"] for line in lines if "validation_l1" in line)
    assert reloaded == pytest.approx(told, rel=1e-5)


@pytest.mark.parametrize("rank", [0, 4])
def test_an_interrupted_and_resumed_training_equals_an_uninterrupted_one_bit_for_bit(
    rank: int, base_dir: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    def config(name: str, steps: int) -> FinetuneConfig:
        return make_config(
            tmp_path / name,
            base_dir=str(base_dir),
            lora_rank=rank,
            lora_dropout=0.1 if rank else 0.0,
            vision_probe=0.0 if rank else 0.5,
            max_steps=steps,
            warmup_steps=3,
            decay_steps=(5,),
            accumulate=2,
        )

    whole = train(config("whole", 7))
    train(config("parts", 4))
    parts = train(config("parts", 7))
    expected, resumed = weights(whole.checkpoint_dir), weights(parts.checkpoint_dir)
    assert expected.keys() == resumed.keys() and len(expected) > 100
    for name, value in expected.items():
        assert torch.equal(value, resumed[name]), name
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    states = [path for _, path in saved_checkpoints(tmp_path / "parts")]
    assert [(path / STATE_FILE).is_file() for path in states] == [False, True]


def test_the_vision_probe_teaches_the_towers_and_leaves_with_the_training(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    """Its loss is added, its gradients stop before the LLM, and it is not saved."""
    plain = train(make_config(tmp_path / "plain", max_steps=1))
    probed = train(make_config(tmp_path / "probed", max_steps=1, vision_probe=0.5))
    figures = probed.figures
    assert figures["loss"] == pytest.approx(figures["l1"] + 0.5 * figures["vision_probe_l1"])
    assert figures["l1"] == pytest.approx(plain.figures["l1"]) and "vision_probe_l1" in figures
    before, after = weights(plain.checkpoint_dir), weights(probed.checkpoint_dir)
    changed = {
        name.removeprefix("exp_avg.")
        for name, value in before.items()
        if name.startswith("exp_avg.") and not torch.equal(value, after[name])
    }
    # The instruction's words drive FiLM, and so the towers.
    own = ("vision_backbone.", "projector.", "language_model.model.embed_tokens.")
    assert len(changed) > 20 and all(name.startswith(own) for name in changed)
    saved = load_file(probed.checkpoint_dir / "model.safetensors")
    assert saved.keys() == load_file(plain.checkpoint_dir / "model.safetensors").keys()
    assert any("vision_probe" in name for name in after)


def test_the_official_resume_forgets_the_optimizer_if_asked_to(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(
        tmp_path, max_steps=2, official=OfficialTrainingConfig(resume_restarts=True)
    )
    train(config)
    result = train(replace(config, max_steps=3))
    steps = {float(v) for k, v in weights(result.checkpoint_dir).items() if k.startswith("step.")}
    assert steps == {1.0}


def test_a_training_goes_on_only_as_the_same_training(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(tmp_path, max_steps=1)
    train(config)
    with pytest.raises(ConfigError, match=r"samples per step was 2, is 3.*Set them back"):
        train(replace(config, batch_size=3, max_steps=2))
    with pytest.raises(ConfigError, match="holds checkpoints of a training; set resume to true"):
        train(replace(config, resume=False))


def test_a_training_whose_state_was_deleted_does_not_silently_begin_anew(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(tmp_path, max_steps=1)
    newest = train(config).checkpoint_dir
    (newest / STATE_FILE).unlink()
    before = (newest / "model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match=rf"none with {STATE_FILE}.*base_dir {newest}"):
        train(replace(config, max_steps=2))
    assert (newest / "model.safetensors").read_bytes() == before


def test_a_training_that_diverges_stops_and_keeps_its_last_checkpoint(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(tmp_path, max_steps=1)
    state = train(config).checkpoint_dir / STATE_FILE
    content = torch.load(state, weights_only=True)
    content["trained"]["projector.fc1.weight"] += torch.inf
    torch.save(content, state)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(DivergedError, match=r"step 2: the loss is nan; lower learning_rate"):
        train(replace(config, max_steps=2))
    with pytest.raises(DivergedError, match=r"NaN or infinity in \d+ trained weights"):
        train(replace(config, max_steps=3, log_every=3, save_every=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_settings(config: FinetuneConfig, path: Path) -> Path:
    path.write_text(yaml.safe_dump(json.loads(json.dumps(asdict(config)))), encoding="utf-8")
    return path


def run_together(settings: Path, count: int) -> None:
    """The training as torchrun or accelerate would start it, traffic on the loopback only."""
    common = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(count),
    }
    running = [
        subprocess.Popen(
            [sys.executable, "-c", RUN, "train", "--config", str(settings)],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]
    said = [process.communicate(timeout=200)[0] for process in running]
    assert [process.returncode for process in running] == [0] * count, said


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_two_processes_compute_what_one_computes(
    sharding: str, base_dir: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    shared = dict(
        base_dir=str(base_dir), lora_rank=4, max_steps=4, validate_every=4, max_gradient_norm=0.5
    )
    one = train(make_config(tmp_path / "one", batch_size=4, **shared))
    two_dir = tmp_path / "two"
    for steps in (2, 4) if sharding == "fsdp" else (4,):  # one of them resumed half way
        config = make_config(two_dir, batch_size=2, sharding=sharding, **shared)
        settings = write_settings(replace(config, max_steps=steps), tmp_path / "two.yaml")
        run_together(settings, 2)
    single = [json.loads(line) for line in (tmp_path / "one" / METRICS_FILE).open()]
    double = {
        (line["step"], "validation_l1" in line): line
        for line in map(json.loads, (two_dir / METRICS_FILE).open())
    }
    for line in single:
        other = double[(line["step"], "validation_l1" in line)]
        for name, value in line.items():
            if name != "seconds":
                assert other[name] == pytest.approx(value, rel=1e-4), (line["step"], name)
    expected = weights(one.checkpoint_dir)
    actual = weights(two_dir / one.checkpoint_dir.name)
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        assert torch.allclose(value, actual[name], atol=2e-4), name


def test_a_process_killed_at_any_moment_leaves_whole_checkpoints_only(
    base_dir: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    config = make_config(
        run_dir, base_dir=str(base_dir), max_steps=100000, save_every=1, log_every=1000
    )
    settings = write_settings(config, tmp_path / "killed.yaml")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": "1",
    }
    reached = 0
    for delay_s in (0.0, 0.11, 0.23):
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, "train", "--config", str(settings)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline and process.poll() is None:
            saved = saved_checkpoints(run_dir)
            if saved and saved[-1][0] > reached:
                break
            time.sleep(0.005)
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
        process.wait()
        step, newest = saved_checkpoints(run_dir)[-1]
        assert step > reached, "nothing was saved in time"
        reached = step
        assert (newest / STATE_FILE).is_file() and weights(newest)
        assert load_policy(PolicyConfig(checkpoint_dir=str(newest), device="cpu"))
    result = train(replace(config, max_steps=reached + 1))
    assert result.step == reached + 1
    assert not list(run_dir.glob(".*.part"))


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16"},
        {"gradient_checkpointing": True},
        {"film": False},
    ],
)
def test_variants_of_the_computation_give_about_the_same_losses(
    changes: dict[str, object], base_dir: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    plain = make_config(tmp_path / "plain", base_dir=str(base_dir), lora_rank=4)
    train(plain)
    train(replace(plain, run_dir=str(tmp_path / "other"), **changes))
    exact = changes == {"gradient_checkpointing": True}
    expected = losses(tmp_path / "plain")
    tolerance = 1e-5 if exact else 0.3 if "film" in changes else 0.15
    assert losses(tmp_path / "other") == pytest.approx(expected, rel=tolerance)


def test_a_small_checkpoint_holds_nothing_but_zeros_for_words_that_it_never_reads(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    result = train(make_config(tmp_path, max_steps=3, weight_decay=0.1))
    content = load_file(result.checkpoint_dir / "model.safetensors")
    tokenizer = json.loads((result.checkpoint_dir / "tokenizer.json").read_text())
    known = {*tokenizer["model"]["vocab"].values(), *(t["id"] for t in tokenizer["added_tokens"])}
    rows = content["language_model.model.embed_tokens.weight"].any(dim=1)
    assert {int(row) for row in rows.nonzero()} == known
    assert not content["language_model.lm_head.weight"].any()


def test_random_weights_must_not_stay_frozen(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lora_rank: expected 0"):
        train(make_config(tmp_path, lora_rank=8))


def test_the_shipped_settings_name_every_field_and_hold_its_default() -> None:
    path = config_dir() / "finetune.yaml"
    assert load_tool_config(FinetuneConfig, path) == FinetuneConfig()
    content = load_yaml(path)
    written = {
        f"{key}.{inner}" if isinstance(value, dict) else key
        for key, value in content.items()
        for inner in (value if isinstance(value, dict) else [key])
    }
    assert written == {name for name, *_ in flat_fields(FinetuneConfig)}
    small = load_tool_config(FinetuneConfig, config_dir() / "finetune_small.yaml")
    assert small.lora_rank == 0 and not small.base_dir


def test_settings_can_be_overridden_and_mistakes_are_named(tmp_path: Path) -> None:
    path = config_dir() / "finetune.yaml"
    config = load_tool_config(
        FinetuneConfig, path, ["max_steps=3", "data.paths=[a, b]", "learning_rate=1e-3"]
    )
    assert (config.max_steps, config.data.paths) == (3, ("a", "b"))
    with pytest.raises(ConfigError, match="did you mean 'max_steps'"):
        load_tool_config(FinetuneConfig, path, ["max_step=3"])
    with pytest.raises(ConfigError, match="--set: expected name=value; got 'max_steps'"):
        load_tool_config(FinetuneConfig, path, ["max_steps"])
    assert SMALL.image_px % SMALL.patch_px == 0
