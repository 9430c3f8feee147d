"""How well one inference foretells what the next will attend to, on the simulated robot at work.

    python benchmark/pruning_recall.py [--checkpoint DIR] [--seeds N] [--json FILE]

SpecPrune rests on Eq. 1: the patches that scored best in the previous inference (V_global) score
best again; the paper reports 75-88 %. Here the scripted teleoperator works before three rendered
cameras, and dense passes at several strides give the sets of every inference. Without
--checkpoint the weights are random, and so is what they attend to: the figures then show that the
machinery works and what pixels alone carry over, not what a trained policy would show. Also
printed, for a policy that prunes all along: how much of what a dense pass would attend to its
static sets hold (`kept`; below the recall, since V_global of a pruned pass is chosen among what
was left); how much the slope k of the rank weight changes; and what similarity, top-k and entropy
cost.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from vla_oft_ros.aloha import RobotProfile, load_profile
from vla_oft_ros.config import PolicyConfig, PruningConfig
from vla_oft_ros.model import pruning
from vla_oft_ros.model.pruner import PruningState, SpecPruner
from vla_oft_ros.model.pruning_plan import PruningPlan
from vla_oft_ros.model.small_checkpoint import SmallSize, make_random_checkpoint
from vla_oft_ros.policy import Policy, load_policy
from vla_oft_ros.sim.aloha_world import AlohaWorld
from vla_oft_ros.token_view import Sight, watch_demonstration

STRIDES = (8, 15, 25)
"""Control steps between inferences: LIBERO's chunk, this package's default, a whole ALOHA
chunk."""
SLOPES = (0.01, 0.02, 0.05, 0.1, 0.2)
DEFAULT_SLOPE = PruningConfig().rank_slope
PAPER = "75-88 %"


class Network:
    """A policy's network, asked with and without pruning."""

    def __init__(self, policy: Policy) -> None:
        sizes = policy.checkpoint.config
        self.policy = policy
        self.config = PruningConfig(method="specprune", preset="paper")
        self.plan = self.resolve(self.config)
        self.patch_px = sizes.dino.patch_px

    def resolve(self, config: PruningConfig) -> PruningPlan:
        """The plan of a configuration for this network."""
        sizes = self.policy.checkpoint.config
        return PruningPlan.resolve(
            config, cameras=sizes.cameras, patches=sizes.dino.patches, depth=sizes.llm.layers
        )

    @torch.inference_mode()
    def run(
        self, sight: Sight, plan: PruningPlan | None = None, state: PruningState | None = None
    ) -> tuple[SpecPruner, float]:
        """One pass, pruned if there is a state, and its process time in s."""
        inputs = self.policy.inputs(sight.observation)
        layout = self.policy.checkpoint.config.layout(inputs.prompt_lens[0])
        span = self.policy.checkpoint.tokenizer.instruction_span(sight.observation.instruction)
        first = layout.prompt.start - 1
        pruner = SpecPruner(
            plan or self.plan,
            layout,
            slice(first + span.start, first + span.stop),
            state=state,
            similarity=self.similarity(sight) if state is not None else None,
            mode=sight.mode,
        )
        start_s = time.process_time()
        self.policy.checkpoint.model(inputs, pruner=pruner)
        return pruner, time.process_time() - start_s

    def prepared(self, sight: Sight) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(N, H, W, 3) images and references as the network sees them."""
        observation = sight.observation
        references = observation.reference_images or {}
        pairs = [(observation.images[c], references.get(c)) for c in self.policy.cameras]
        found = [past for _, past in pairs if past is not None]
        if len(found) < len(pairs):
            return None
        prepare = self.policy.checkpoint.images.prepare
        now = np.stack(prepare([image for image, _ in pairs]))
        return torch.from_numpy(now), torch.from_numpy(np.stack(prepare(found)))

    def similarity(self, sight: Sight) -> torch.Tensor | None:
        """(N, P) likeness to the reference images, if there are any."""
        images = self.prepared(sight)
        return None if images is None else pruning.patch_similarity(*images, self.patch_px)


def recall(of: torch.Tensor, by: torch.Tensor) -> np.ndarray:
    """Share of the patches marked in `of` that `by` marks too, per camera: (N,)."""
    return ((of & by).sum(dim=1) / of.sum(dim=1)).double().numpy()


def look_on(profile: RobotProfile, seed: int, stride: int) -> list[Sight]:
    """One demonstration, seen every `stride` steps."""
    world = AlohaWorld(profile.gripper, seed=seed)
    try:
        return list(watch_demonstration(world, profile, stride=stride))
    finally:
        world.close()


def follow(network: Network, sights: Sequence[Sight]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Eq. 1 between consecutive dense passes, and what the pruned passes kept of the dense sets.

    Returns:
        Per inference but the first, (N,) each.
    """
    dense = [network.run(sight)[0].state for sight in sights]
    foretold = [
        recall(now.global_patches, before.global_patches) for before, now in pairwise(dense)
    ]
    kept, state = [], dense[0]
    for sight, truth in zip(sights[1:], dense[1:], strict=True):
        pruner, _ = network.run(sight, state=state)
        state = pruner.state
        if pruner.reasons is not None:
            kept.append(recall(truth.global_patches, pruner.reasons > 0))
    return foretold, kept


def slope_overlap(network: Network, sights: Sequence[Sight], state: PruningState) -> list[float]:
    """Share of the tokens kept after the last stage that is the same as with the default slope."""

    def final(slope: float, sight: Sight) -> set[int]:
        plan = network.resolve(replace(network.config, rank_slope=slope))
        return set(network.run(sight, plan, state)[0].stages[-1].patches.tolist())

    usual = [final(DEFAULT_SLOPE, sight) for sight in sights]
    return [
        float(
            np.mean(
                [
                    len(final(slope, sight) & same) / len(same)
                    for sight, same in zip(sights, usual, strict=True)
                ]
            )
        )
        for slope in SLOPES
    ]


def least_ms(work: Callable[[], object], rounds: int = 15) -> float:
    """Least process time of some runs, ms."""
    times = []
    for _ in range(rounds):
        start_s = time.process_time()
        work()
        times.append(time.process_time() - start_s)
    return min(times) * 1e3


@torch.inference_mode()
def shares(network: Network, sight: Sight, state: PruningState) -> dict[str, float]:
    """Process times in ms: of a pruned pass, and of pruning's own parts in it."""
    images = network.prepared(sight)
    assert images is not None
    plan, llm = network.plan, network.policy.checkpoint.config.llm
    generator = torch.Generator().manual_seed(0)
    present = plan.visual_counts(plan.budgets[sight.mode])
    scores = torch.rand(len(plan.local_layers), plan.cameras, plan.patches, generator=generator)
    texts = [
        torch.rand(llm.heads, count, generator=generator)
        for layer, count in enumerate(present, start=1)
        if plan.is_weighed(layer)
    ]
    likeness = network.similarity(sight)
    assert likeness is not None

    def select() -> None:
        reasons = pruning.static_reasons(
            state.global_patches,
            scores,
            likeness,
            local_count=plan.local_counts[sight.mode],
            dynamic_count=plan.dynamic_counts[sight.mode],
            tau=plan.config.tau,
        )
        pruning.indices_of(reasons.flatten() > 0)
        for text in texts:
            table = pruning.rank_table(text.shape[1], plan.rank_slope, text)
            pruning.rank_weights(text, table)
        for layer in plan.dynamic_layers:
            importance = texts[0][0].new_ones(present[layer - 1])
            pruning.keep_highest(importance, plan.after_stage(len(importance)))

    return {
        "pruned pass": min(network.run(sight, state=state)[1] for _ in range(5)) * 1e3,
        "similarity": least_ms(lambda: pruning.patch_similarity(*images, network.patch_px)),
        "top-k, ranks": least_ms(select),
        "entropy, reused": least_ms(lambda: pruning.entropy_confidence(state.entropies, 1e-6)),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="checkpoint (default: random weights)")
    parser.add_argument("--seeds", type=int, default=2, help="demonstrations (default: 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        directory = arguments.checkpoint
        if directory is None:
            directory = Path(scratch) / "random"
            make_random_checkpoint(directory, size=SmallSize(image_px=224, layers=32))
        policy = load_policy(PolicyConfig(checkpoint_dir=str(directory), device="cpu"))
    network, profile, console = Network(policy), load_profile("sim"), Console()
    plan = network.plan
    weights = "random weights" if arguments.checkpoint is None else str(arguments.checkpoint)
    record: dict[str, object] = {"weights": weights, "paper": PAPER}

    table = Table(title=f"Recall of V_global ({plan.global_count} of {plan.patches}), {weights}")
    names = [*policy.cameras, *(f"{camera} kept" for camera in policy.cameras)]
    for column in ("stride", *names):
        table.add_column(column, justify="right")
    for stride in STRIDES:
        foretold, kept = [], []
        for seed in range(arguments.seeds):
            first, second = follow(network, look_on(profile, seed, stride))
            foretold += first
            kept += second
        means = [*np.mean(foretold, axis=0), *np.mean(kept, axis=0)]
        record[f"stride {stride}"] = dict(zip(names, map(float, means), strict=True))
        table.add_row(f"{stride}", *(f"{mean:.0%}" for mean in means))
    console.print(table)
    chance = plan.global_count / plan.patches
    console.print(f"Paper: {PAPER} (trained, LIBERO). By chance: {chance:.0%}.")

    sights = look_on(profile, 0, STRIDES[1])
    state = network.run(sights[2])[0].state
    overlap = slope_overlap(network, sights[3:8], state)
    record["slope overlap"] = dict(zip(map(str, SLOPES), overlap, strict=True))
    pairs = ", ".join(f"k={k}: {same:.0%}" for k, same in zip(SLOPES, overlap, strict=True))
    console.print(f"Tokens after the last stage that are those of k={DEFAULT_SLOPE}: {pairs}")

    times = shares(network, sights[3], state)
    record["ms"] = times
    own = sum(value for name, value in times.items() if name != "pruned pass")
    parts = ", ".join(f"{name} {value:.2f} ms" for name, value in times.items())
    console.print(f"{parts}: {own / times['pruned pass']:.1%} of the pass")
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
