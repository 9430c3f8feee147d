"""`vla_oft make-demos` and `vla_oft train` as they are typed, with little to do."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
from made_up import CHUNK_LEN, SIZE_PX, SMALL, make_episode

from vla_oft_ros import cli
from vla_oft_ros.config import PolicyConfig
from vla_oft_ros.data.hdf5 import read_hdf5
from vla_oft_ros.policy import load_policy
from vla_oft_ros.types import Observation


@pytest.mark.sim
def test_make_demos_writes_episodes_and_says_how_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mujoco")
    from vla_oft_ros.sim import record
    from vla_oft_ros.sim.demonstrator import demonstrate

    monkeypatch.setattr(record, "demonstrate", lambda world: islice(demonstrate(world), 3))
    arguments = ["make-demos", str(tmp_path / "set"), "--image-px", str(SIZE_PX), "--episodes"]
    assert cli.main([*arguments, "1"]) == 0
    assert "0 successes, 1 failures, 0 there before" in capsys.readouterr().out
    assert cli.main([*arguments, "2"]) == 0
    assert "0 successes, 1 failures, 1 there before" in capsys.readouterr().out
    files = sorted((tmp_path / "set").iterdir())
    assert [path.name for path in files] == ["episode_000000.hdf5", "episode_000001.hdf5"]
    assert read_hdf5(files[0]).images["cam_high"][0].shape == (SIZE_PX, SIZE_PX, 3)


def test_train_ends_with_0_and_a_checkpoint_that_a_policy_loads(
    demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {
        "run_dir": tmp_path,
        "data.paths": f"[{demos}]",
        "data.name": "made_up",
        "data.workers": 0,
        "data.validation_share": 0.3,
        "chunk_len": CHUNK_LEN,
        "max_steps": 2,
        "save_every": 2,
        "validate_every": 2,
        "warmup_steps": 1,
        "batch_size": 2,
        "vision_probe": 0.0,
        "device": "cpu",
        "small.width": SMALL.width,
        "small.layers": SMALL.layers,
        "small.dino_width": SMALL.dino_width,
        "small.siglip_width": SMALL.siglip_width,
        "small.depth": SMALL.depth,
        "small.image_px": SIZE_PX,
    }
    given = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    assert cli.main(["train", "--config", "finetune_small.yaml", *given]) == 0
    checkpoint = tmp_path / "made_up--2_chkpt"
    assert checkpoint.name in capsys.readouterr().out.replace("\n", "")
    policy = load_policy(PolicyConfig(checkpoint_dir=str(checkpoint), device="cpu"))
    episode = make_episode(0)
    seen = Observation(
        images={camera: images[0] for camera, images in episode.images.items()},
        image_stamps_ns=dict.fromkeys(episode.images, 0),
        proprio=episode.qpos[0],
        proprio_stamp_ns=0,
        instruction=episode.instruction,
    )
    assert policy.infer(seen).actions.shape == (CHUNK_LEN, 14)
