"""What SpecPrune saves on a CPU: floating-point operations by formula and by count, and time.

    python benchmark/pruning_cpu.py [--json FILE] [--rounds N] [--width D]

Needs no robot, weights or GPU: a 32-layer LLM with random weights, small but bound by arithmetic,
with the token proportions of OFT+ on ALOHA (192 visual, 24 prompt, 70 action tokens; 3 cameras).
One thread; time is that of the process, the least of N interleaved rounds. Every row but the
first two drops tokens; the second is the first again and shows the noise. A pruned row pays for
similarity, scores, top-k and weights; `own work` is their share, timed by themselves.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from vla_oft_ros.config import PruningConfig
from vla_oft_ros.model.llm import LayerOutput, LlamaConfig, LlamaModel
from vla_oft_ros.model.pruner import SpecPruner, StagedPruner
from vla_oft_ros.model.pruning import patch_similarity
from vla_oft_ros.model.pruning_plan import PruningPlan, llm_flops, scoring_flops
from vla_oft_ros.model.tokens import TokenLayout
from vla_oft_ros.types import MotionMode

LAYOUT = TokenLayout(
    cameras=3,
    patches_per_camera=64,
    prompt_len=25,
    chunk_len=5,
    action_dim=14,
    has_proprio=False,
)
TEXT = slice(LAYOUT.prompt.start + 8, LAYOUT.prompt.start + 20)
PATCH_PX, IMAGE_PX = 14, 112
OWN_WORK_PASSES = 12

# Name → configuration; None is dense. 58 and 77 of 192 visual tokens are 30 and 40 %.
ROWS: dict[str, PruningConfig | None] = {
    "dense": None,
    "dense again (A/A)": None,
    "40 % static": PruningConfig(
        method="specprune", alpha=1.0, budget_coarse=77, budget_fine=102, gamma=1.0
    ),
    "40 % static + dynamic": PruningConfig(
        method="specprune", alpha=1.0, budget_coarse=77, budget_fine=102
    ),
    "30 % static": PruningConfig(
        method="specprune", alpha=0.75, budget_coarse=58, budget_fine=90, gamma=1.0
    ),
    "30 % static + dynamic": PruningConfig(
        method="specprune", alpha=0.75, budget_coarse=58, budget_fine=90
    ),
    "paper preset, alpha 0.8": PruningConfig(method="specprune", preset="paper"),
}


@dataclass(frozen=True, kw_only=True)
class Result:
    """One row.

    Attributes:
        name: Which setting.
        kept: Visual tokens after static pruning.
        formula_gflop: By the closed form.
        counted_gflop: As counted by torch during a pass.
        ideal: Operations of the dense pass over these.
        time_ms: Least process time of a pass, ms.
        ratio: Time of the dense pass over this.
        own_work: Share of the pass that pruning itself takes.
    """

    name: str
    kept: int
    formula_gflop: float
    counted_gflop: float
    ideal: float
    time_ms: float
    ratio: float
    own_work: float


class Stopwatch:
    """A pruner around a pruner that notes the process time of its work after each layer."""

    def __init__(self, pruner: StagedPruner) -> None:
        self._pruner = pruner
        self.spent_s: list[float] = []

    def scores_layer(self, layer: int) -> bool:
        """See `TokenPruner`."""
        return self._pruner.scores_layer(layer)

    def after_layer(self, layer: int, positions: Tensor, output: LayerOutput) -> Tensor | None:
        """See `TokenPruner`."""
        start_s = time.process_time()
        kept = self._pruner.after_layer(layer, positions, output)
        self.spent_s.append(time.process_time() - start_s)
        return kept


class Bench:
    """The model, its inputs, and a pruner per row."""

    def __init__(self, width: int) -> None:
        torch.manual_seed(0)
        self.llm = LlamaConfig(
            vocab=8,
            width=width,
            layers=32,
            heads=4,
            kv_heads=4,
            mlp_hidden=round(width * 11008 / 4096),
            rms_eps=1e-6,
            rope_theta=1e4,
        )
        self.model = LlamaModel(self.llm).eval()
        self.embeddings = torch.randn(1, LAYOUT.length, width)
        generator = np.random.default_rng(0)
        images = generator.integers(0, 256, (2, 3, IMAGE_PX, IMAGE_PX, 3), dtype=np.uint8)
        self.images, self.references = torch.from_numpy(images)
        first = SpecPruner(self.plan(ROWS["paper preset, alpha 0.8"]), LAYOUT, TEXT)
        self.model(self.embeddings, pruner=first)
        self.state = first.state

    def plan(self, config: PruningConfig | None) -> PruningPlan:
        """The plan of a row that prunes."""
        assert config is not None
        return PruningPlan.resolve(config, cameras=3, patches=64, depth=self.llm.layers)

    def pruner(self, config: PruningConfig | None) -> SpecPruner | None:
        """What one inference of a row does before the LLM runs: similarity included."""
        if config is None:
            return None
        return SpecPruner(
            self.plan(config),
            LAYOUT,
            TEXT,
            state=self.state,
            similarity=patch_similarity(self.images, self.references, PATCH_PX),
            mode=MotionMode.COARSE,
        )

    def time_pass(self, config: PruningConfig | None) -> float:
        """Process time of one inference, s."""
        start_s = time.process_time()
        self.model(self.embeddings, pruner=self.pruner(config))
        return time.process_time() - start_s

    def own_work_s(self, config: PruningConfig | None) -> float:
        """Process time of pruning's own work in one inference: similarity, and what follows each
        layer. Each is the least of some passes, since together they are a few ms.
        """
        if config is None:
            return 0.0
        spent = []
        for _ in range(OWN_WORK_PASSES):
            start_s = time.process_time()
            pruner = self.pruner(config)
            before_s = time.process_time() - start_s
            assert pruner is not None
            watch = Stopwatch(pruner)
            self.model(self.embeddings, pruner=watch)
            spent.append([before_s, *watch.spent_s])
        return float(np.min(spent, axis=0).sum())

    def operations(self, config: PruningConfig | None) -> tuple[int, int, int]:
        """Visual tokens kept, operations by formula, operations counted."""
        pruner = self.pruner(config)
        # The CPU kernel is missing in torch's own table.
        attention = {
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
                lambda q, k, v, *_, out_shape=None, **__: sdpa_flop_count(q, k, v)
            )
        }
        with FlopCounterMode(display=False, custom_mapping=attention) as counter:
            self.model(self.embeddings, pruner=pruner)
        visual = LAYOUT.vision.stop - LAYOUT.vision.start
        others = LAYOUT.length - visual
        if pruner is None:
            formula = llm_flops(self.llm, [LAYOUT.length] * self.llm.layers)
            return visual, formula, counter.get_total_flops()
        kept = len(pruner.stages[0].patches)
        formula = llm_flops(self.llm, [others + n for n in pruner.plan.visual_counts(kept)])
        formula += scoring_flops(self.llm, pruner.plan.scored_counts(kept), TEXT.stop - TEXT.start)
        return kept, formula, counter.get_total_flops()


@torch.inference_mode()
def measure(rounds: int, width: int) -> list[Result]:
    """Runs everything.

    Args:
        rounds: Interleaved rounds; each row runs once per round, in random order.
        width: D of the model.
    """
    bench = Bench(width)
    order = np.random.default_rng(1)
    times: dict[str, list[float]] = {name: [] for name in ROWS}
    for config in ROWS.values():
        bench.time_pass(config)  # warm-up
    for _ in range(rounds):
        for name in order.permutation(list(ROWS)):
            times[str(name)].append(bench.time_pass(ROWS[str(name)]))
    dense_s = min(times["dense"])
    dense_flop = bench.operations(None)[1]
    results = []
    for name, config in ROWS.items():
        kept, formula, counted = bench.operations(config)
        results.append(
            Result(
                name=name,
                kept=kept,
                formula_gflop=formula / 1e9,
                counted_gflop=counted / 1e9,
                ideal=dense_flop / formula,
                time_ms=min(times[name]) * 1e3,
                ratio=dense_s / min(times[name]),
                own_work=bench.own_work_s(config) / min(times[name]),
            )
        )
    return results


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (default: 9)")
    parser.add_argument("--width", type=int, default=256, help="width of the LLM (default: 256)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = measure(arguments.rounds, arguments.width)
    table = Table(title=f"32 layers of width {arguments.width}, {LAYOUT.length} tokens, 1 thread")
    columns = ("", "kept", "GFLOP formula", "counted", "ideal", "ms", "ratio", "own work")
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for row in results:
        table.add_row(
            row.name,
            f"{row.kept}",
            f"{row.formula_gflop:.3f}",
            f"{row.counted_gflop:.3f}",
            f"{row.ideal:.2f}x",
            f"{row.time_ms:.1f}",
            f"{row.ratio:.2f}x",
            f"{row.own_work:.1%}",
        )
    Console().print(table)
    if arguments.json:
        record = {"width": arguments.width, "rows": [asdict(row) for row in results]}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
