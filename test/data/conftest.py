"""Fixtures of the data tests; they need the extra `data`."""

from __future__ import annotations

import pytest

for name in ("rosbags", "mcap", "h5py", "pyarrow", "av", "google_crc32c"):
    pytest.importorskip(name, reason="needs the extra data: pip install '.[data]'")
