"""The commands of docs/tour.md work, in their order, as they are written there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from vla_oft_ros import cli

ROOT = Path(__file__).resolve().parents[2]
TOUR = ROOT / "docs" / "tour.md"
WITHOUT_SIMULATION = ("inspect", "doctor", "convert", "stats", "train", "view")
"""Commands of the tour that are quick enough for every run of the tests."""
NEEDED = ("torch", "mujoco", "gym_aloha", "h5py", "rosbags")


def tour_commands() -> list[str]:
    """Lines of the blocks marked bash."""
    blocks = re.findall(r"^```bash\n(.*?)^```", TOUR.read_text(encoding="utf-8"), re.M | re.S)
    return [line for block in blocks for line in block.splitlines() if line]


def name_of(command: str) -> str:
    return shlex.split(command)[1]


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """An environment in which `vla_oft` is this source tree's."""
    if any(find_spec(name) is None for name in NEEDED):
        pytest.skip(f"needs {', '.join(NEEDED)}")
    script = tmp_path / "bin" / "vla_oft"
    script.parent.mkdir()
    # Guarded as a console script is: workers of `convert` import it again.
    script.write_text(
        f"#!{sys.executable}\nimport sys\nfrom vla_oft_ros.cli import main\n"
        "if __name__ == '__main__':\n    sys.exit(main())\n"
    )
    script.chmod(0o755)
    path = os.pathsep.join([str(script.parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}


def run(command: str, folder: Path, shell: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=shell,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"$ {command}\n{done.stdout}"


def test_the_tour_goes_from_a_look_at_the_machine_to_a_trained_policy() -> None:
    names = [name_of(command) for command in tour_commands()]
    assert names[0] == "check"
    for before, after in (("record-demo", "convert"), ("convert", "train"), ("train", "view")):
        assert names.index(before) < names.index(after)


@pytest.mark.parametrize("command", tour_commands())
def test_a_command_of_the_tour_is_one_that_the_command_line_knows(command: str) -> None:
    program, *arguments = shlex.split(command)
    assert program == "vla_oft"
    assert cli.build_parser().parse_args(arguments)


@pytest.mark.sim
def test_the_tour_works_from_recordings_to_a_picture_of_the_trained_policy(
    tmp_path: Path, shell: dict[str, str]
) -> None:
    from data.bag_samples import Take

    for number in range(2):
        folder = tmp_path / "tour" / "recordings" / f"episode_00000{number}"
        Take(seconds=4.5, size=(48, 64), seed=number).write(folder)
    for command in tour_commands():
        if name_of(command) in WITHOUT_SIMULATION:
            run(command, tmp_path, shell)
    assert (tmp_path / "tour" / "kept.png").is_file()


@pytest.mark.slow
@pytest.mark.sim
@pytest.mark.timeout(1800)
def test_the_whole_tour_works(tmp_path: Path, shell: dict[str, str]) -> None:
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    for command in tour_commands():
        run(command, tmp_path, shell)
    pictures = ("demo/cameras.png", "doctor/episode_0000.png", "trained/cameras.png", "kept.png")
    for name in pictures:
        assert (tmp_path / "tour" / name).is_file(), name
