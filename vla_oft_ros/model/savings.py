"""Which exact savings of the engine are on: all of them, except while their worth is measured.

None changes what is computed, at most how it is rounded; the laws are in test_engine_savings.
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class Savings:
    """One switch per saving, for the ablation rows of the benchmarks; everybody else leaves all
    on.

    Attributes:
        batch_cameras: All cameras are one batch in each vision tower; off, they pass one by one.
        parallel_towers: The towers run on two CUDA streams; off, one after the other.
        cache_film: γ and β are computed once per instruction; off, in every pass.
        skip_last_blocks: The last block of each tower, which nobody reads, is not run.
        fuse_projections: Query, key and value come from one product, gate and up from another.
        fuse_pointwise: Norms, rotary embedding, SwiGLU and residuals are fused by torch.compile in
            captured passes.
        skip_lm_head: The LLM's output layer does not run for heads that do not read it.
        trim_last_layer: The last LLM layer works for the rows that the head reads.
        dedup_actions: Blank action slots, alike before attention first moves them, are worked on
            once.
        device_preprocessing: Images are uploaded raw, from pinned memory, and prepared on the GPU.
        flash_scores: Pruning takes the softmax normalisers from the attention kernel.
    """

    batch_cameras: bool = True
    parallel_towers: bool = True
    cache_film: bool = True
    skip_last_blocks: bool = True
    fuse_projections: bool = True
    fuse_pointwise: bool = True
    skip_lm_head: bool = True
    trim_last_layer: bool = True
    dedup_actions: bool = True
    device_preprocessing: bool = True
    flash_scores: bool = True

    @classmethod
    def none(cls) -> Savings:
        """All off."""
        return cls(**{entry.name: False for entry in fields(cls)})

    @property
    def off(self) -> tuple[str, ...]:
        """Names of those that are off."""
        return tuple(entry.name for entry in fields(self) if not getattr(self, entry.name))
