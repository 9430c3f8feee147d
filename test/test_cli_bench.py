"""`vla_oft bench`: finds the measurements of the source tree and hands their options on."""

import ast
from pathlib import Path

import pytest

from vla_oft_ros import cli, cli_bench

MEASUREMENT = '''"""Measures whether it rains.

    python benchmark/rain.py
"""
import sys
from pathlib import Path
Path(sys.argv[1]).write_text(" ".join(sys.argv[2:]))
sys.exit(7)
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "benchmark"
    made.mkdir()
    (made / "rain.py").write_text(MEASUREMENT, encoding="utf-8")
    monkeypatch.setattr(cli_bench, "FOLDER", made)
    return made


def test_without_a_name_every_measurement_is_listed_with_what_it_measures(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["bench"]) == 0
    said = capsys.readouterr().out
    files = sorted(cli_bench.FOLDER.glob("*.py"))
    assert len(files) > 5
    for path in files:
        first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")
        assert f"{path.stem} " in said and first[0] in said


def test_options_are_handed_on_and_the_exit_code_handed_back(folder: Path) -> None:
    told = folder / "told.txt"
    assert cli.main(["bench", "rain", str(told), "--json", "x.json", "--help"]) == 7
    assert told.read_text() == "--json x.json --help"


def test_an_unknown_measurement_ends_with_2_and_the_known_ones(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", "snow"]) == cli.EXIT_BAD_INPUT
    assert "expected one of rain; got 'snow'" in capsys.readouterr().err


def test_an_installed_package_says_where_the_measurements_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli_bench, "FOLDER", tmp_path / "site-packages" / "benchmark")
    assert cli.main(["bench"]) == cli.EXIT_BAD_INPUT
    assert "clone the repository" in " ".join(capsys.readouterr().err.split())
