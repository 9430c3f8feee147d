"""Where the parity test leaves its rows and the session's summary finds them."""

from __future__ import annotations

import pytest

parity_rows = pytest.StashKey[list[tuple[str, str, float, float]]]()
"""Case, quantity, largest error, error allowed."""
