"""Laws of bfloat16: what it may do to the actions of the policy that ships."""

from __future__ import annotations

import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mujoco", reason="the extra 'sim' is not installed")
pytest.importorskip("transformers", reason="needs the extra bench")
sys.path.append(str(Path(__file__).parents[2] / "benchmark"))

from latency.oft_rows import relative_error
from precision import Case, by_engine, by_forward, of_checkpoint

from vla_oft_ros.model.engine import make_engine
from vla_oft_ros.shipped_policies import DEMO_POLICY, checkpoint_path

pytestmark = pytest.mark.sim

BF16 = torch.bfloat16
FINER = 1e-3
"""Between two numbers of bfloat16 near 0.7, which lie 0.004 apart."""


def answers(case: Case, model: torch.nn.Module) -> np.ndarray:
    return by_engine(case, make_engine(model, images=case.images, action_stats=None, kind="eager"))


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Case:
    cache = tmp_path_factory.mktemp("cache")
    return of_checkpoint(checkpoint_path(DEMO_POLICY, cache=cache), observations=3)


@torch.inference_mode()
def test_bf16_moves_actions_by_half_a_percent_at_most_and_less_than_in_a_plain_forward(
    shipped: Case,
) -> None:
    """Against float32 with the same weights."""
    narrow = deepcopy(shipped.model).to(BF16)
    reference = by_forward(shipped, deepcopy(narrow).float(), torch.float32)
    engine, own = answers(shipped, narrow), by_forward(shipped, narrow, BF16)
    assert 0 < relative_error(engine, reference) < 5e-3
    assert relative_error(engine, reference) < 0.6 * relative_error(own, reference)


@torch.inference_mode()
def test_a_joint_that_moves_less_than_bf16_can_say_moves_the_actions(shipped: Case) -> None:
    images, proprio = shipped.seen[0]
    there, moved = (np.full_like(proprio, value) for value in (0.7, 0.7 + FINER))
    assert torch.equal(*(torch.from_numpy(one).to(BF16) for one in (there, moved)))
    narrow = deepcopy(shipped.model).to(BF16)
    first, second = (
        answers(
            Case(
                model=shipped.model,
                images=shipped.images,
                stats=None,
                prompt=shipped.prompt,
                seen=[(images, one)],
            ),
            narrow,
        )
        for one in (there, moved)
    )
    assert not np.array_equal(first, second)
