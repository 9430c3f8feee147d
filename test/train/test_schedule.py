"""The learning rate against torch's own MultiStepLR; the official warm-up's flaw on request."""

from __future__ import annotations

import pytest
import torch

from vla_oft_ros.train.schedule import Schedule


def test_without_warm_up_it_is_torchs_multi_step_schedule() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    expected = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[3, 7], gamma=0.1)
    schedule = Schedule(rate=0.5, decay_steps=(3, 7), decay_factor=0.1)
    for step in range(12):
        assert schedule.at(step) == pytest.approx(expected.get_last_lr()[0])
        optimizer.step()
        expected.step()


def test_a_warm_up_rises_to_the_full_rate_and_the_decay_follows_all_the_same() -> None:
    schedule = Schedule(rate=1.0, warmup_steps=10, decay_steps=(20,))
    rates = [schedule.at(step) for step in range(25)]
    assert rates[:10] == sorted(rates[:10]) and rates[0] == pytest.approx(0.19)
    assert rates[9:20] == [1.0] * 11
    assert rates[20:] == [pytest.approx(0.1)] * 5


def test_the_official_warm_up_cancels_the_decay_if_asked_to() -> None:
    schedule = Schedule(rate=1.0, warmup_steps=10, decay_steps=(20,), warmup_cancels_decay=True)
    assert schedule.at(24) == 1.0
    without = Schedule(rate=1.0, decay_steps=(20,), warmup_cancels_decay=True)
    assert without.at(24) == pytest.approx(0.1)


def test_a_restarted_schedule_counts_from_the_resume() -> None:
    fresh = Schedule(rate=1.0, warmup_steps=3, decay_steps=(5,))
    restarted = Schedule(rate=1.0, warmup_steps=3, decay_steps=(5,), restarted_at=100)
    assert [restarted.at(100 + step) for step in range(9)] == [fresh.at(s) for s in range(9)]
