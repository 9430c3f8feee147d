"""Every subcommand of `vla_oft`: a bad call of each, and where its good call is tried.

Help is tried in test_cli.py, command by command. A bad call ends with 2 and one line that says
what was expected and what came, without a traceback. Commands that need robots, networks or
minutes have their good call where those are; the table says where, and that it is there is tested.
"""

from __future__ import annotations

import argparse
import ast
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from vla_oft_ros import cli

TESTS = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Call:
    """How one subcommand is tried.

    Attributes:
        bad: Arguments of a mistake; {tmp} is an empty folder.
        expected: What the message must name as expected.
        came: What it must name as given.
        good: File and test of a call that ends with 0 and does what it promised.
        needs: Modules without which the bad call cannot be tried.
    """

    bad: str
    expected: str
    came: str
    good: tuple[str, str]
    needs: tuple[str, ...] = ()


CALLS = {
    "demo": Call(
        "--seconds 0.5 --output {tmp}/out",
        "--seconds: expected 1 to 86400",
        "got 0.5",
        ("ros/test_demo.py", "test_a_short_demo_ends_with_0_and_shows_what_it_saw"),
        ("rclpy",),
    ),
    "make-checkpoint": Call(
        "{tmp}",
        "expected a new or empty directory",
        "it holds something already",
        ("test_cli.py", "test_make_checkpoint_writes_what_a_policy_is_loaded_from"),
        ("torch",),
    ),
    "view": Call(
        "{tmp}/kept.png --inferences 0",
        "--inferences: expected at least 1",
        "got 0",
        ("test_cli.py", "test_view_writes_the_picture_and_says_what_was_kept"),
        ("torch", "mujoco"),
    ),
    "check": Call(
        "--json",
        "--json: expected one argument",
        "usage: vla_oft check",
        ("test_cli.py", "test_check_ends_with_1_only_if_something_needed_is_missing"),
    ),
    "make-demos": Call(
        "{tmp}/demos --episodes 0",
        "expected at least one episode",
        "got 0 episodes",
        ("train/test_commands.py", "test_make_demos_writes_episodes_and_says_how_many"),
        ("mujoco", "h5py"),
    ),
    "train": Call(
        "--set max_steps=soon",
        "max_steps: expected int",
        "got 'soon'",
        ("train/test_commands.py", "test_train_ends_with_0_and_a_checkpoint_that_a_policy_loads"),
        ("torch", "peft"),
    ),
    "eval": Call(
        "oracle --episodes 0 --output {tmp}/e.jsonl",
        "expected at least one episode",
        "got --episodes 0",
        ("sim/test_evaluation.py", "test_the_command_says_how_often_and_how_sure"),
        ("torch", "mujoco"),
    ),
    "record": Call(
        "--output {tmp}/set",
        "expected a terminal to read keys from",
        "standard input is none",
        ("ros/test_record_command.py", "test_record_shows_the_recorder_and_ends_with_0_after_q"),
        ("rclpy",),
    ),
    "record-demo": Call(
        "--episodes 0 --output {tmp}/set",
        "--episodes: expected at least 1",
        "got 0",
        ("ros/test_tour.py", "test_the_whole_tour_works"),
        ("rclpy", "mujoco"),
    ),
    "recover": Call(
        "{tmp}",
        "expected a bag folder with one .mcap file",
        "found 0",
        ("data/test_cli_data.py", "test_recover_finishes_what_was_cut_short"),
    ),
    "inspect": Call(
        "{tmp}/nowhere",
        "expected a file or folder with episodes",
        "it is missing",
        ("data/test_cli_data.py", "test_inspect_shows_episodes_and_what_was_assumed"),
    ),
    "doctor": Call(
        "{tmp} --output {tmp}/doctor",
        "expected bags",
        "found none",
        (
            "data/test_cli_data.py",
            "test_doctor_writes_its_report_and_ends_with_1_for_bad_episodes",
        ),
    ),
    "convert": Call(
        "{tmp} --to csv --output {tmp}/set",
        "choose from",
        "'csv'",
        ("data/test_cli_data.py", "test_convert_writes_the_set_and_says_how_many"),
    ),
    "stats": Call(
        "{tmp}/nowhere --output {tmp}/statistics.json",
        "expected a file or folder with episodes",
        "it is missing",
        ("data/test_cli_data.py", "test_stats_writes_what_normalization_reads"),
    ),
    "review": Call(
        "{tmp} --output {tmp}/a.avi",
        "expected bags (",
        "found none",
        ("data/test_review.py", "test_the_command_writes_the_video_and_says_what_happened"),
        ("av",),
    ),
    "replay": Call(
        "{tmp}/nowhere --sim",
        "expected a file or folder with episodes",
        "it is missing",
        (
            "sim/test_replay_in_sim.py",
            "test_the_command_replays_a_file_tells_the_outcome_and_draws_it",
        ),
        ("mujoco",),
    ),
    "make-keystore": Call(
        "{tmp}/keys --profile r2d2",
        "--profile: expected one of",
        "got 'r2d2'",
        ("test_security.py", "test_the_command_makes_keys_for_the_domain_of_the_shell"),
        ("cryptography",),
    ),
    "bench": Call(
        "snow",
        "bench: expected one of",
        "got 'snow'",
        ("test_cli_bench.py", "test_options_are_handed_on_and_the_exit_code_handed_back"),
    ),
}


def subcommands() -> dict[str, argparse.ArgumentParser]:
    action = next(a for a in cli.build_parser()._actions if a.dest == "command")
    return dict(action.choices)  # type: ignore[arg-type]


def strings_in(function: ast.FunctionDef) -> set[str]:
    """Every string of a test, and the name of everything that it uses."""
    found = {node.value for node in ast.walk(function) if isinstance(node, ast.Constant)}
    found |= {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
    return {str(value) for value in found}


def test_no_subcommand_is_left_out() -> None:
    assert set(CALLS) == set(subcommands())


@pytest.mark.parametrize("command", CALLS)
def test_a_bad_call_ends_with_2_and_says_what_was_expected_and_what_came(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    call = CALLS[command]
    for module in call.needs:
        pytest.importorskip(module)
    if command == "make-checkpoint":
        (tmp_path / "thesis.txt").touch()
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(sys, "stdin", open(os.devnull))
    monkeypatch.chdir(tmp_path)
    try:
        code: object = cli.main([command, *call.bad.format(tmp=tmp_path).split()])
    except SystemExit as ended:  # argparse
        code = ended.code
    told = " ".join(capsys.readouterr().err.split())
    assert code == cli.EXIT_BAD_INPUT, told
    assert call.expected in told and call.came in told
    assert "Traceback" not in told
    assert sorted(tmp_path.rglob("*")) == before, "a refused call leaves nothing behind"


@pytest.mark.parametrize("command", CALLS)
def test_a_good_call_is_tried_where_the_table_says(command: str) -> None:
    file, name = CALLS[command].good
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert name in functions, f"{file} has no {name}: say where {command} is tried"
    said = strings_in(functions[name])
    if "tour_commands" in said:  # the commands of docs/tour.md
        page = (TESTS.parent / "docs" / "tour.md").read_text(encoding="utf-8")
        assert f"\nvla_oft {command} " in page
    else:
        assert command in said, f"{file}::{name} does not call {command}"
