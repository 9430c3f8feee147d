"""The command line: every command explains itself, mistakes end with 2 and one clear line."""

import builtins
import sys
from pathlib import Path

import pytest

import vla_oft_ros
from vla_oft_ros import check, cli
from vla_oft_ros.aloha import CAMERAS
from vla_oft_ros.check import Finding

COMMANDS = ("demo", "make-checkpoint", "view", "check", "make-demos", "train", "eval")
COMMANDS += ("record", "record-demo", "replay", "make-keystore")
COMMANDS += ("recover", "inspect", "doctor", "convert", "stats", "bench", "review")


def told(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert command in text


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_explains_it_and_each_of_its_options(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    assert "Ends with" in (text := capsys.readouterr().out)
    parser = cli.build_parser()
    commands = next(action for action in parser._actions if action.dest == "command")
    assert set(commands.choices) == set(COMMANDS)  # type: ignore[arg-type]
    for action in commands.choices[command]._actions:  # type: ignore[index]
        assert action.help, f"{command} {action.dest} has no help"
        for option in action.option_strings:
            assert option in text


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.strip() == f"vla_oft_ros {vla_oft_ros.__version__}"


@pytest.mark.parametrize("arguments", [[], ["dance"], ["demo", "--seconds", "long"]])
def test_an_unknown_command_or_option_ends_with_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == cli.EXIT_BAD_INPUT
    assert "usage: vla_oft" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        ValueError("sim.yaml: expected [left, right]; got [/tmp/x]"),
        FileExistsError("expected an empty folder [a]"),
    ],
)
def test_a_mistake_of_the_user_ends_with_2_and_its_text_unaltered(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: object) -> int:
        raise error

    monkeypatch.setattr(cli, "_run_check", run)
    assert cli.main(["check"]) == cli.EXIT_BAD_INPUT
    assert told(capsys) == f"error: {error}"


def test_a_mistake_of_ours_is_not_disguised(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli, "_run_check", run)
    with pytest.raises(RuntimeError):
        cli.main(["check"])


def test_ctrl_c_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run_check", run)
    assert cli.main(["check"]) == 130


def test_a_demo_without_ros_says_what_is_missing_and_how_to_look(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real_import = builtins.__import__

    def without_ros(name: str, *rest: object) -> object:
        if name.split(".")[0] == "rclpy":
            raise ModuleNotFoundError("No module named 'rclpy'", name="rclpy")
        return real_import(name, *rest)  # type: ignore[arg-type]

    for name in [name for name in sys.modules if name.startswith("vla_oft_ros.ros")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without_ros)
    assert cli.main(["demo"]) == cli.EXIT_BAD_INPUT
    assert "No module named 'rclpy'. `vla_oft check` says what is missing" in told(capsys)


def test_make_checkpoint_refuses_a_folder_that_holds_something(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    (tmp_path / "thesis.txt").touch()
    assert cli.main(["make-checkpoint", str(tmp_path)]) == cli.EXIT_BAD_INPUT
    assert str(tmp_path) in told(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_make_checkpoint_writes_what_a_policy_is_loaded_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    directory = tmp_path / "checkpoint"
    assert cli.main(["make-checkpoint", str(directory), "--seed", "3"]) == 0
    assert str(directory) in capsys.readouterr().out.replace("\n", "")
    assert (directory / "config.json").is_file()


@pytest.mark.parametrize(
    ("good", "needed", "code"), [(True, True, 0), (False, False, 0), (False, True, 1)]
)
def test_check_ends_with_1_only_if_something_needed_is_missing(
    good: bool, needed: bool, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = Finding(name="Thing", good=good, found="it", needed=needed)
    monkeypatch.setattr(check, "check_machine", lambda: [finding])
    assert cli.main(["check"]) == code


def test_view_refuses_to_show_no_inference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    picture = tmp_path / "kept.png"
    assert cli.main(["view", str(picture), "--inferences", "0"]) == cli.EXIT_BAD_INPUT
    assert "--inferences: expected at least 1; got 0" in told(capsys)
    assert not picture.exists()


@pytest.mark.sim
def test_view_writes_the_picture_and_says_what_was_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("mujoco")
    picture = tmp_path / "kept.png"
    view = ["view", str(picture), "--checkpoint", "random", "--inferences", "2"]
    assert cli.main(view) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    for camera in CAMERAS:
        kept = [line for line in said.splitlines() if line.startswith(camera)]
        assert len(kept) > 1, said
        assert not any("100%" in line for line in kept)  # the second inference is pruned
