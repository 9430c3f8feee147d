"""Demonstrations on disk, settings and a checkpoint that the tests of training share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("peft", reason="needs the extra train")
pytest.importorskip("h5py", reason="needs the extra data")

from made_up import CHUNK_LEN, SMALL, MakeConfig, make_episode

from vla_oft_ros.config import FinetuneConfig, TrainingDataConfig
from vla_oft_ros.data.hdf5 import write_hdf5
from vla_oft_ros.train.base import SMALL_DIR, make_small_base


@pytest.fixture(scope="session")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("demos")
    for number in range(3):
        write_hdf5(make_episode(number), directory / f"episode_{number}.hdf5")
    return directory


@pytest.fixture(scope="session")
def make_config(demos: Path) -> MakeConfig:
    """Settings of a training from scratch that takes a second, with changes."""

    def make(run_dir: Path, **changes: object) -> FinetuneConfig:
        config = FinetuneConfig(
            run_dir=str(run_dir),
            lora_rank=0,
            learning_rate=3e-3,
            chunk_len=CHUNK_LEN,
            max_steps=6,
            batch_size=2,
            device="cpu",
            threads=1,
            log_every=1,
            validate_every=1000,
            save_every=1000,
            save_precision="fp32",
            data=TrainingDataConfig(paths=(str(demos),), validation_share=0.3, workers=0),
            small=SMALL,
        )
        return replace(config, **changes)

    return make


@pytest.fixture(scope="session")
def base_dir(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint to fine-tune with LoRA."""
    run_dir = tmp_path_factory.mktemp("base_run")
    make_small_base(make_config(run_dir))
    return run_dir / SMALL_DIR
