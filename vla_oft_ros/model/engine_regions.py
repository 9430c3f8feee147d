"""What `torch.compile` makes faster, and whether it can here.

Only the arithmetic between two calls of the attention kernel is compiled, and one vision block:
a layer's code is compiled once and serves all layers, so it takes seconds, not minutes.
"""

from __future__ import annotations

from typing import Any

import torch

from vla_oft_ros.model.engine_llm import Regions, finish, project
from vla_oft_ros.model.engine_vision import RunBlock, run_block

FORMS = 64
"""Compiled forms of one function: about five per engine, a dozen engines in a benchmark."""
PLAIN = Regions(project=project, finish=finish)


def compiled_regions() -> tuple[Regions, RunBlock]:
    """Compiled forms of `project`, `finish` and `run_block`; compilation itself happens at first
    use.
    """
    # torch counts the forms of a function (dtypes, packed or not, with rows repeated or trimmed)
    # over all engines of a process, and gives up at 8 unless told otherwise.
    settings: Any = torch._dynamo.config
    name = "recompile_limit" if hasattr(settings, "recompile_limit") else "cache_size_limit"
    setattr(settings, name, max(getattr(settings, name), FORMS))
    return Regions(project=_compiled(project), finish=_compiled(finish)), _compiled(run_block)


def _compiled(function: Any) -> Any:
    # A graph break would be no saving, but a hidden cost.
    return torch.compile(function, fullgraph=True)


def compile_problem(device: torch.device) -> str | None:
    """Why torch.compile does not work here; None if it does."""
    try:
        torch.compile(_probe, fullgraph=True)(torch.ones(8, device=device))
    except Exception as error:  # compilers, drivers and torch each raise what they like
        return f"torch.compile failed: {str(error).strip().splitlines()[0]}"
    return None


def _probe(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1.0
