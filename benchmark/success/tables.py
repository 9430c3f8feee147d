"""What each table of docs/results.md compares: policies and how they are run, each under a name.

A table is plain values; `closed_loop.py` runs it. Sizes come from the headers of the checkpoint:
what does not fit is refused before the first episode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from success.deepened import write_deepened
from vla_oft_ros.config import ChunkQueueConfig, ConfigError, PolicyConfig, PruningConfig
from vla_oft_ros.evaluation import Condition, checkpoint_identity
from vla_oft_ros.model.action_head import HeadKind
from vla_oft_ros.model.checkpoint import plan_checkpoint
from vla_oft_ros.model.checkpoint_record import CheckpointRecord
from vla_oft_ros.model.pruning_plan import PAPER_LAYERS, PruningPlan
from vla_oft_ros.model.vla import ModelConfig
from vla_oft_ros.shipped_policies import checkpoint_path
from vla_oft_ros.sim.loop_setting import LoopSetting
from vla_oft_ros.sim.tasks import PICK_CUBE, TRANSFER_CUBE
from vla_oft_ros.types import MotionMode

JOINS = ("sync", ChunkQueueConfig.join)
LATENCIES_MS = (0.0, 100.0, 321.0)
"""321 ms is the figure of OpenVLA-OFT's paper for three cameras."""
DIFFUSION_STEPS = (50, 20, 10, 5, 2, 1)
_SHALLOWEST = 4
"""Layers that a network needs so that with one more two lie between static pruning and a dynamic
stage with a layer after it."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the command line gives.

    Attributes:
        checkpoints: Option without dashes → directory or shipped:<name>; empty if not given.
        device: Torch device.
        loop: How policies are run where a table does not say otherwise.
        scratch: Where a table may put checkpoints that it makes; they are read while it runs.
    """

    checkpoints: Mapping[str, str]
    scratch: Path
    device: str = "auto"
    loop: LoopSetting = field(default_factory=LoopSetting)

    def policy(self, option: str) -> PolicyConfig:
        """The dense policy of an option.

        Raises:
            ConfigError: if it was not given.
        """
        directory = self.checkpoints.get(option, "")
        if not directory:
            raise ConfigError(
                f"--{option}: expected a checkpoint directory or shipped:<name>; got none. This "
                "table needs it"
            )
        return PolicyConfig(checkpoint_dir=directory, device=self.device, threads=1)


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table of docs/results.md.

    Attributes:
        name: Of the table; also of its marks in the document.
        conditions: Its rows.
        tokens: Visual tokens of an inference without pruning; 0 if the rows differ in it.
        identities: Option → what tells its checkpoint from others.
        notes: What has to be said below.
    """

    name: str
    conditions: tuple[Condition, ...]
    tokens: int
    identities: Mapping[str, str]
    notes: tuple[str, ...] = ()


def pruning_table(given: Given) -> Table:
    """Ways to drop visual tokens (SpecPrune-VLA, Tables 1, 3, 4 and 11), and two controls."""
    dense = given.policy("checkpoint")
    sizes = model_sizes(dense)
    spec = PruningConfig(method="specprune")
    plan = plan_of(spec, sizes)
    coarse, fine = MotionMode.COARSE, MotionMode.FINE
    same_count = replace(spec, budget_coarse=plan.budgets[coarse], budget_fine=plan.budgets[fine])
    pruned = {f"SpecPrune, α = {alpha}": replace(spec, alpha=alpha) for alpha in (1.0, 0.8, 0.6)}
    for method in ("random", "fastv", "divprune"):
        rival = replace(spec, method=method, rivals_start_dense=True)
        pruned[f"{method}, as many as α = 0.8"] = rival
    pruned["α = 0.8, no V_global"] = replace(same_count, global_count=0)
    if _weights_matter(plan):
        pruned["α = 0.8, uniform weights"] = replace(spec, layer_weights="uniform")
    early = replace(same_count, static_layer=1, local_layers=(1,))
    if not plan.dynamic_layers and plan_of(early, sizes).dynamic_layers:
        stages = ", ".join(map(str, plan_of(early, sizes).dynamic_layers))
        pruned[f"α = 0.8, static after 1, dynamic after {stages}"] = early
    looking_back = replace(given.loop, looks_back=True)

    def row(name: str, loop: LoopSetting, pruning: PruningConfig | None = None) -> Condition:
        policy = dense if pruning is None else replace(dense, pruning=pruning)
        return Condition(name=name, policy=policy, loop=loop, task=TRANSFER_CUBE.name)

    rows = [row("dense", given.loop)]
    rows += [
        row(name, looking_back if config.method == "specprune" else given.loop, config)
        for name, config in pruned.items()
    ]
    rows += [
        row(f"α = 0.8, always {mode.value}", replace(looking_back, mode=mode.value), spec)
        for mode in (coarse, fine)
    ]
    if not _weights_matter(plan) and plan.depth >= _SHALLOWEST:
        rows += _rows_of_weights(row("", looking_back), plan.depth, same_count, given.scratch)
    rows += [
        row("control: blank images", replace(given.loop, sight="blank")),
        replace(row("control: shuffled weights", given.loop), shuffled=True),
    ]
    return Table(
        name="pruning",
        conditions=tuple(rows),
        tokens=plan.vision,
        identities=_identities(given, "checkpoint"),
        notes=(*_layers_notes(plan), _counts_note(plan), _CONTROLS_NOTE),
    )


def language_table(given: Given) -> Table:
    """Picking the cube that is asked for, with and without FiLM."""
    with_film, without = given.policy("checkpoint"), given.policy("no-film")
    for option, policy, wanted in (("checkpoint", with_film, True), ("no-film", without, False)):
        if bool(model_sizes(policy).film) != wanted:
            raise ConfigError(
                f"--{option}: expected a checkpoint {'with' if wanted else 'without'} FiLM for "
                f"the table language; got {policy.checkpoint_dir}"
            )
    words = next(iter(PICK_CUBE.instructions))
    same_words = replace(given.loop, instruction=words)

    def row(name: str, policy: PolicyConfig | None, loop: LoopSetting) -> Condition:
        return Condition(name=name, policy=policy, loop=loop, task=PICK_CUBE.name)

    share = 1 / len(PICK_CUBE.instructions)
    return Table(
        name="language",
        conditions=(
            row("with FiLM", with_film, given.loop),
            row("without FiLM", without, given.loop),
            row(f"with FiLM, always told '{words}'", with_film, same_words),
            row(f"without FiLM, always told '{words}'", without, same_words),
            row("chance: scripted operator, always told the same", None, same_words),
            replace(row("control: shuffled weights", with_film, given.loop), shuffled=True),
        ),
        tokens=_tokens(given, "checkpoint", "no-film"),
        identities=_identities(given, "checkpoint", "no-film"),
        notes=(
            f"Chance is 1 in {len(PICK_CUBE.instructions)}, {100 * share:.1f} %: what a policy "
            "reaches that picks without fault but is deaf. The scripted operator who always hears "
            f"'{words}' measures it on these seeds.",
            "Highest reward 1 or 2: a wrong cube touched or lifted, and the right one never.",
        ),
    )


def joins_table(given: Given) -> Table:
    """How chunks are joined, at three latencies of inference."""
    policy = given.policy("checkpoint")
    return Table(
        name="joins",
        conditions=tuple(
            Condition(
                name=f"{join}, {latency_ms:.0f} ms",
                policy=policy,
                loop=replace(given.loop, queue=ChunkQueueConfig(join=join), latency_ms=latency_ms),
                task=TRANSFER_CUBE.name,
            )
            for latency_ms in LATENCIES_MS
            for join in JOINS
        ),
        tokens=_tokens(given, "checkpoint"),
        identities=_identities(given, "checkpoint"),
        notes=(
            "Latency is simulated: it does not depend on the machine. With sync the arms wait for "
            "every answer, as in the official evaluation.",
        ),
    )


def heads_table(given: Given) -> Table:
    """Action heads, and a diffusion head in fewer and fewer steps (OpenVLA-OFT, Tables I, II)."""
    kinds = {
        "checkpoint": HeadKind.L1,
        "discrete": HeadKind.DISCRETE,
        "diffusion": HeadKind.DIFFUSION,
    }
    present = {option: kind for option, kind in kinds.items() if given.checkpoints.get(option)}
    if len(present) < 2:
        raise ConfigError(
            "table heads: expected at least two of --checkpoint, --discrete and --diffusion; got "
            f"{', '.join(f'--{option}' for option in present) or 'none'}"
        )
    conditions = []
    for option, kind in present.items():
        policy = given.policy(option)
        head = model_sizes(policy).head
        if head is not kind:
            raise ConfigError(
                f"--{option}: expected a checkpoint with the head {kind.value} for the table "
                f"heads; got {head.value} in {policy.checkpoint_dir}"
            )
        steps = DIFFUSION_STEPS if kind is HeadKind.DIFFUSION else (0,)
        conditions += [
            Condition(
                name=f"{kind.value}, {count} step{'s' if count > 1 else ''}"
                if count
                else kind.value,
                policy=replace(policy, diffusion_steps=count) if count else policy,
                loop=given.loop,
                task=TRANSFER_CUBE.name,
            )
            for count in steps
        ]
    missing = [kind.value for option, kind in kinds.items() if option not in present]
    return Table(
        name="heads",
        conditions=tuple(conditions),
        tokens=_tokens(given, *present),
        identities=_identities(given, *present),
        notes=(f"Not measured: {', '.join(missing)}.",) if missing else (),
    )


TABLES: Mapping[str, Callable[[Given], Table]] = {
    "pruning": pruning_table,
    "language": language_table,
    "joins": joins_table,
    "heads": heads_table,
}


def model_sizes(policy: PolicyConfig) -> ModelConfig:
    """Sizes of a policy's network, from the headers of its files.

    Raises:
        ValueError: if there is no such checkpoint, or it cannot be loaded.
    """
    directory = checkpoint_path(policy.checkpoint_dir)
    return plan_checkpoint(directory, policy.unnorm_key, CheckpointRecord()).config


def plan_of(config: PruningConfig, sizes: ModelConfig) -> PruningPlan:
    """What a pruning configuration means for a network."""
    return PruningPlan.resolve(
        config, cameras=sizes.cameras, patches=sizes.dino.patches, depth=sizes.llm.layers
    )


def _identities(given: Given, *options: str) -> dict[str, str]:
    return {
        option: checkpoint_identity(checkpoint_path(given.checkpoints[option]))
        for option in options
    }


def _tokens(given: Given, *options: str) -> int:
    """Visual tokens of an inference; 0 if the checkpoints differ in it."""
    sizes = [model_sizes(given.policy(option)) for option in options]
    counts = {each.cameras * each.dino.patches for each in sizes}
    return counts.pop() if len(counts) == 1 else 0


def _rows_of_weights(
    like: Condition, depth: int, pruning: PruningConfig, scratch: Path
) -> Iterator[Condition]:
    """Both weights of importance, in the network with one layer more, which changes nothing."""
    assert like.policy is not None
    directory = scratch / "deepened"
    if not directory.is_dir():
        source = checkpoint_path(like.policy.checkpoint_dir)
        write_deepened(source, directory, layer=depth - 1)
    stage = PAPER_LAYERS * depth // (depth + 1)  # after layer `depth`: settings count of 32
    pruning = replace(pruning, static_layer=1, local_layers=(1,), dynamic_layers=(stage,))
    for weights in ("entropy", "uniform"):
        policy = replace(
            like.policy,
            checkpoint_dir=str(directory),
            pruning=replace(pruning, layer_weights=weights),
        )
        name = f"α = 0.8, {weights} weights, {depth + 1} layers"
        yield replace(like, name=name, policy=policy)


def _weights_matter(plan: PruningPlan) -> bool:
    """Whether layers are weighed against each other: one alone scales all tokens alike."""
    return sum(map(plan.is_weighed, range(1, plan.depth + 1))) > 1


def _layers_notes(plan: PruningPlan) -> Iterator[str]:
    """Which layers prune, and what the depth of the network leaves out of the paper's."""
    there = plan.dynamic_layers
    stages = (
        f"dynamic stages follow layers {', '.join(map(str, there))}"
        if len(there) > 1
        else f"one dynamic stage follows layer {there[0]}"
        if there
        else "there is no dynamic stage"
    )
    yield f"The network has {plan.depth} layers: static pruning follows layer " + (
        f"{plan.static_layer}, {stages}."
    )
    wanted = len(plan.config.dynamic_layers)
    if len(there) < wanted:
        yield (
            f"Of the paper's {wanted} dynamic stages {wanted - len(there)} are missing: scaled to "
            f"{plan.depth} layers, they would follow the last one, or no new one since the stage "
            "before. Layers can be set: pruning.static_layer, local_layers, dynamic_layers."
        )
    if _weights_matter(plan):
        return
    alike = (
        "Uniform and entropy weights give the same passes bit for bit here, since importance sums "
        "at most one layer"
    )
    if plan.depth < _SHALLOWEST:
        yield f"{alike}: not run."
        return
    yield (
        f"{alike}. Their two rows run on the same network with one layer more before layer "
        f"{plan.depth - 1}: its twin, with output projections of zero, so that nothing is "
        f"changed but what pruning reads. Static pruning follows layer 1, the dynamic stage layer "
        f"{plan.depth} of {plan.depth + 1}; layers 2 to {plan.depth - 1} are weighed."
    )


def _counts_note(plan: PruningPlan) -> str:
    coarse, fine = (plan.budgets[mode] for mode in (MotionMode.COARSE, MotionMode.FINE))
    return (
        f"At α = 0.8 static pruning leaves {coarse} of {plan.vision} tokens in coarse motion and "
        f"{fine} in fine motion, with every method. The first inference of an episode is dense, "
        "that of the rivals too. Without V_global its places go to the next best local scores. "
        "Always coarse, always fine: without the action-aware controller."
    )


_CONTROLS_NOTE = (
    "Controls, both must fail: every image grey; every weight tensor's values in random order."
)
