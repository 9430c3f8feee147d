"""Learning rate as a function of the step alone, so that resuming needs no state.

Source: openvla-oft `finetune.py` (MultiStepLR after an optional linear warm-up).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WARMUP_START = 0.1
"""Share of the full rate at the first step of a warm-up (openvla-oft: 10 % → 100 %)."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up, then steps down.

    Attributes:
        rate: Full learning rate.
        warmup_steps: Steps from `WARMUP_START` to the full rate.
        decay_steps: Steps at which the rate is multiplied by `decay_factor`.
        decay_factor: See there.
        warmup_cancels_decay: Official behaviour: a warm-up writes the rate at every step, also
            after its end, so that it never falls.
        restarted_at: Step from which everything is counted; 0 unless the official restart at
            resume is asked for.
    """

    rate: float
    warmup_steps: int = 0
    decay_steps: Sequence[int] = ()
    decay_factor: float = 0.1
    warmup_cancels_decay: bool = False
    restarted_at: int = 0

    def at(self, step: int) -> float:
        """Rate of the update that follows `step` finished updates."""
        step -= self.restarted_at
        warmup = 1.0
        if self.warmup_steps:
            progress = min((step + 1) / self.warmup_steps, 1.0)
            warmup = WARMUP_START + (1.0 - WARMUP_START) * progress
            if self.warmup_cancels_decay:
                return self.rate * warmup
        decays = sum(step >= milestone for milestone in self.decay_steps)
        return self.rate * warmup * self.decay_factor**decays
