from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla_oft_ros.model.action_head import (
    TRAIN_STEPS,
    ActionBins,
    DdimSchedule,
    RegressionHead,
    timestep_embedding,
)

BINS = ActionBins(256, 32000)
CPU = torch.device("cpu")


@given(st.lists(st.floats(-1.5, 1.5), min_size=1, max_size=30))
def test_decoded_token_is_within_half_a_bin_of_the_clipped_action(actions: list[float]) -> None:
    values = torch.tensor(actions, dtype=torch.float64)
    decoded = BINS.decode(BINS.encode(values))
    assert (decoded - values.clamp(-1, 1)).abs().max() <= 1.0 / 255 + 1e-9


@given(st.lists(st.floats(-1.0, 1.0), min_size=1, max_size=30))
def test_encoding_is_numpys_digitize(actions: list[float]) -> None:
    expected = 32000 - np.digitize(np.array(actions), np.linspace(-1, 1, 256))
    assert BINS.encode(torch.tensor(actions, dtype=torch.float64)).tolist() == expected.tolist()


def test_all_action_tokens_survive_a_round_trip_but_the_edge() -> None:
    ids = torch.arange(31745, 32000)
    assert torch.equal(BINS.encode(BINS.decode(ids)), ids)
    # 31744 stands for exactly 1.0 and shares the last bin.
    assert BINS.decode(torch.tensor([31744])) == BINS.decode(torch.tensor([31745]))


def test_tokens_that_are_no_actions_give_the_outermost_bins() -> None:
    low, high = BINS.decode(torch.tensor([32063, 5])).tolist()
    assert low == pytest.approx(-1 + 1 / 255)
    assert high == pytest.approx(1 - 1 / 255)


def test_true_noise_leads_back_to_the_actions_in_any_number_of_steps() -> None:
    """With a perfect noise prediction DDIM returns the clean sample."""
    schedule = DdimSchedule(CPU)
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(1, 4, 3, generator=generator) * 1.8 - 0.9
    noise = torch.randn(1, 4, 3, generator=generator)
    for steps in (50, 10, 5, 2, 1):
        first = torch.tensor([schedule.timesteps(steps)[0]])
        start = schedule.add_noise(clean, noise, first)
        result = schedule.sample(start, steps, lambda sample, levels: noise)
        torch.testing.assert_close(result, clean, atol=1e-3, rtol=0)


@pytest.mark.parametrize("steps", [50, 10, 5, 2, 1])
def test_timesteps_descend_to_zero(steps: int) -> None:
    timesteps = DdimSchedule.timesteps(steps)
    assert len(timesteps) == steps
    assert timesteps[-1] == 0
    assert timesteps == sorted(timesteps, reverse=True)


@pytest.mark.parametrize("steps", [0, TRAIN_STEPS + 1])
def test_impossible_number_of_steps_is_refused(steps: int) -> None:
    with pytest.raises(ValueError, match="expected a value from 1 to 50"):
        DdimSchedule.timesteps(steps)


def test_noise_levels_fall_from_almost_clean_to_almost_noise() -> None:
    alphas = DdimSchedule(CPU).alphas_cumprod
    assert (alphas.diff() < 0).all()
    assert alphas[0] > 0.99
    assert alphas[-1] < 1e-3


def test_head_reads_the_slots_of_one_time_step_side_by_side() -> None:
    torch.manual_seed(0)
    head = RegressionHead(llm_width=4, hidden=8, action_dim=3, blocks=2)
    hidden = torch.randn(1, 5 * 3, 4)
    before = head(hidden)
    hidden[:, 8] += 1.0  # last slot of the third time step
    changed = (head(hidden) - before).abs().amax(dim=(0, 2)) > 1e-7
    assert before.shape == (1, 5, 3)
    assert changed.tolist() == [False, False, True, False, False]


def test_time_embedding_starts_with_sines_then_cosines() -> None:
    embedding = timestep_embedding(torch.tensor([0, 3]), 8)
    assert embedding[0].tolist() == [0.0] * 4 + [1.0] * 4
    assert embedding[1, 0] == pytest.approx(np.sin(3.0))
    assert embedding[1, 4] == pytest.approx(np.cos(3.0))
