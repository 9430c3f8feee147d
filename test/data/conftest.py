"""Fixtures of the data tests; they need the extra `data`."""

from __future__ import annotations

import pytest

for name in ("rosbags", "mcap", "h5py", "pyarrow", "av", "google_crc32c"):
    pytest.importorskip(name, reason="needs the extra data: pip install '.[data]'")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--tfds-python",
        help="a Python that has tensorflow-datasets, to read RLDS data sets with",
    )
    parser.addoption(
        "--lerobot-python",
        help="a Python that has lerobot, to read LeRobot data sets with",
    )
