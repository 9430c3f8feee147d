"""Libraries of the extra `data`, imported when they are needed, with a hint where they are not."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def require(module: str) -> Any:
    """Imports a module of the extra `data`.

    Raises:
        ImportError: naming the extra that brings it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module} is needed for this and cannot be imported ({error}); install it with "
            "pip install 'vla_oft_ros[data]'"
        ) from None
