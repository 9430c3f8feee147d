"""Options and fixtures that several test files share."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from hypothesis import settings
from parity_report import parity_rows

# A law holds however long a busy machine takes to see it: by default an example has 200 ms.
settings.register_profile("any_machine", deadline=None)
settings.load_profile("any_machine")

GOLDEN_ARCHIVE = Path(__file__).parent / "golden" / "golden.tar.xz"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        type=Path,
        help="folder of golden fixtures to test against; default: the ones in test/golden",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[parity_rows] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows = terminalreporter.config.stash[parity_rows]
    if not rows:
        return
    terminalreporter.section("parity with the official code: largest error, and error allowed")
    for case, quantity, observed, allowed in rows:
        terminalreporter.line(f"{case:26s} {quantity:28s} {observed:10.2e}  {allowed:8.0e}")


@pytest.fixture(scope="session")
def committed_golden_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixtures of this repository, unpacked."""
    directory = tmp_path_factory.mktemp("golden")
    with tarfile.open(GOLDEN_ARCHIVE) as archive:
        if hasattr(tarfile, "data_filter"):  # Python 3.10.12, 3.11.4 and later
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(directory)
    return directory


@pytest.fixture(scope="session")
def golden_dir(request: pytest.FixtureRequest, committed_golden_dir: Path) -> Path:
    """The fixtures to test against: `--golden DIR`, else the committed ones."""
    chosen: Path | None = request.config.getoption("--golden")
    return committed_golden_dir if chosen is None else chosen.resolve()
