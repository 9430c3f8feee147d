"""Every recorded quantity of the official code within its tolerance (test/golden/README.md).

`pytest test/test_reference_parity.py --golden DIR` runs the same test on another folder of the
same form; observed and allowed errors are listed at the end of the run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_cases import Arrays, Case, Taps, make_variant, read_image
from parity_report import parity_rows

from vla_oft_ros.config import PreprocessingConfig
from vla_oft_ros.model import image_ops
from vla_oft_ros.model.action_head import ActionBins, DdimSchedule, timestep_embedding
from vla_oft_ros.model.inputs import ModelInputs, action_labels, sequence_ids
from vla_oft_ros.model.tokens import PAD_ID
from vla_oft_ros.model.vla import _is_action
from vla_oft_ros.normalization import NormStats, normalize, unnormalize

EXACT = 0.0
FORWARD = {
    "input_ids": EXACT,
    "pixel_values_sub8": 1e-6,
    "state_after": 1e-6,
    "proprio_in": 1e-6,
    "film_avg_lang_embedding": 1e-6,
    "proprio_embedding": 1e-6,
    "vision_features": 5e-5,
    "projected_patches": 3e-5,
    "inputs_embeds": 3e-5,
    "hidden_after_layer0": 1e-4,
    "last_hidden_state": 1e-4,
    "actions_hidden_states": 1e-4,
    "normalized_actions": 5e-5,
    "actions": 5e-5,
    "env_actions": 5e-5,
}
SPARSE = FORWARD.keys() - {
    "film_avg_lang_embedding",
    "vision_features",
    "inputs_embeds",
    "hidden_after_layer0",
    "last_hidden_state",
}
"""Quantities that cases other than the main one record."""
DISCRETE = {
    **FORWARD,
    "token_ids": EXACT,
    "normalized_actions": 1e-6,
    "actions": 1e-6,
    "env_actions": 1e-6,
}
LIBERO_DISCRETE = (
    "input_ids actions_hidden_states token_ids normalized_actions actions env_actions".split()
)


def only(allowed: dict[str, float], names: Iterable[str]) -> dict[str, float]:
    return {name: tolerance for name, tolerance in allowed.items() if name in set(names)}


STEPWISE = {
    "input_ids": EXACT,
    "pixel_values_sub8": 1e-6,
    "proprio_in": 1e-6,
    "proprio_embedding": 1e-6,
    "timesteps": EXACT,
    "alphas_cumprod": 1e-6,
    "time_embedding_first": 1e-6,
    "noise_pred_per_step": 1e-4,
    "x_per_step": 1e-4,
}
TRAINING = {
    "input_ids": EXACT,
    "labels": EXACT,
    "attention_mask": EXACT,
    "action_mask_on_labels_1": EXACT,
    "pixel_values_sub8": 1e-6,
    "film_avg_lang_embedding": 1e-6,
    "actions_hidden_states": 1e-4,
    "predicted_actions": 5e-5,
    "loss": 1e-5,
    "curr_action_l1": 5e-5,
    "next_actions_l1": 5e-5,
    "gradients": 1e-4,  # of each tensor's largest value
}
ALLOWED = {
    "aloha_film_l1": only(FORWARD, FORWARD.keys() - {"env_actions"}),
    "aloha_nofilm_l1": only(FORWARD, SPARSE - {"env_actions"}),
    "libero_l1": only(FORWARD, {*SPARSE, "inputs_embeds"} - {"pixel_values_sub8", "state_after"}),
    "aloha_nofilm_discrete": only(
        DISCRETE, {*LIBERO_DISCRETE, "pixel_values_sub8"} - {"env_actions"}
    ),
    "libero_discrete": only(DISCRETE, LIBERO_DISCRETE),
    "aloha_nofilm_diffusion10": {**STEPWISE, "inputs_embeds": 3e-5, "free_running": 2e-3},
    # Running freely, a random network is chaotic over 50 steps.
    "aloha_nofilm_diffusion50": STEPWISE,
    "train_film_l1": TRAINING,
    "unit_norm_aloha": {"unnorm": 1e-6, "proprio_norm": 1e-6},
    "images": {
        "pil256": EXACT,
        "jpeg256": EXACT,
        "policy224 levels": 1.0,
        "policy224 share of values": 1e-3,
        "crop224": EXACT,
    },
}
UNCERTAIN_MARGIN = 1e-3
"""Token choices whose two best logits are nearer than this may differ."""


def error(observed: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference; infinite if shapes differ or a value is not finite."""
    if np.shape(observed) != np.shape(expected):
        return float("inf")
    gap = np.abs(np.asarray(observed, dtype=np.float64) - np.asarray(expected, dtype=np.float64))
    return float(np.max(gap, initial=0.0)) if np.all(np.isfinite(gap)) else float("inf")


def compare(observed: Arrays, expected: Arrays) -> dict[str, float]:
    return {key: error(observed[key], expected[key]) for key in observed if key in expected}


def run_forward(case: Case) -> dict[str, float]:
    checkpoint, expected = case.checkpoint, case.expected
    inputs = case.inputs()
    taps = Taps(checkpoint.model)
    with torch.inference_mode():
        output = checkpoint.model(inputs)
    taps.close()
    normalized = output.actions[0].numpy()
    actions = unnormalize(normalized, checkpoint.action_stats)
    observed = {name: value.numpy() for name, value in taps.values.items()}
    observed |= _inputs_observed(case, inputs)
    observed |= {
        "actions_hidden_states": output.action_hidden.numpy(),
        "normalized_actions": normalized,
        "actions": actions,
        "env_actions": libero_gripper(actions),
    }
    if output.token_ids is not None:
        certain = expected["top1_top2_margin"] >= UNCERTAIN_MARGIN
        observed["token_ids"] = np.where(
            certain, output.token_ids[0].numpy(), expected["token_ids"]
        )
        assert certain.mean() > 0.9, "too few certain tokens to compare"
        skip = ~certain.reshape(normalized.shape)
        for key in ("normalized_actions", "actions", "env_actions"):
            if key in expected:
                observed[key] = np.where(skip, expected[key], observed[key])
    return compare(observed, expected)


def _inputs_observed(case: Case, inputs: ModelInputs) -> Arrays:
    """What the package itself makes of images, instruction and joint state."""
    checkpoint = case.checkpoint
    prompt = checkpoint.tokenizer.prompt_ids(case.instruction)
    observed: Arrays = {
        "input_ids": prompt[None, :-1],  # the processor's ids lack the closing empty token
        "pixel_values_sub8": inputs.pixel_values[:, :, ::8, ::8].numpy(),
    }
    if checkpoint.proprio_stats is not None:
        normalized = normalize(case.robot_state, checkpoint.proprio_stats)
        observed["state_after"] = normalized
        observed["proprio_in"] = normalized.astype(np.float32)[None]
    return observed


def libero_gripper(actions: np.ndarray) -> np.ndarray:
    """LIBERO's environment wants +1 to close where the data set stores 0, and -1 to open where it
    stores 1.
    """
    turned = actions.copy()
    turned[:, -1] = -np.sign(2 * actions[:, -1] - 1)
    return turned


def run_diffusion(case: Case) -> dict[str, float]:
    """Teacher-forced: every step starts from the recorded sample, so errors cannot grow over the
    run.
    """
    checkpoint, expected = case.checkpoint, case.expected
    steps = len(expected["timesteps"])
    inputs = case.inputs()
    schedule = DdimSchedule(torch.device("cpu"))
    start = torch.from_numpy(expected["init_noise"])
    samples = [start, *torch.from_numpy(expected["x_per_step"])[:-1, None]]
    noises, results = [], []
    taps = Taps(checkpoint.model)
    with torch.inference_mode():
        context = checkpoint.model.embed(inputs)
        for sample, timestep in zip(samples, expected["timesteps"], strict=True):
            hidden, _ = checkpoint.model.noisy_hidden(context, sample, torch.tensor([timestep]))
            noise = checkpoint.model.action_head(hidden)
            noises.append(noise[0].numpy())
            results.append(schedule.step(sample, noise, int(timestep), steps)[0].numpy())
    taps.close()
    first = torch.tensor([expected["timesteps"][0]])
    observed = {name: value.numpy() for name, value in taps.values.items()}
    observed |= _inputs_observed(case, inputs)
    observed |= {
        "timesteps": np.array(schedule.timesteps(steps)),
        "alphas_cumprod": schedule.alphas_cumprod.numpy(),
        "time_embedding_first": timestep_embedding(first, checkpoint.config.llm.width).numpy(),
        "noise_pred_per_step": np.stack(noises),
        "x_per_step": np.stack(results),
    }
    errors = compare(observed, expected)
    if "free_running" in ALLOWED[case.name]:
        with torch.inference_mode():
            output = checkpoint.model(inputs, noise=start, diffusion_steps=steps)
        errors["free_running"] = error(output.actions[0].numpy(), expected["normalized_actions"])
    return errors


def run_training(case: Case) -> dict[str, float]:
    """The batch of two with right padding, as the official collator makes it, forward and
    backward.
    """
    checkpoint, expected = case.checkpoint, case.expected
    model, config = checkpoint.model, checkpoint.config
    bins = ActionBins(config.action_bins, config.vocab_end)
    prompts = [checkpoint.tokenizer.prompt_ids(str(text)) for text in expected["instructions"]]
    targets = torch.from_numpy(expected["actions_gt"])
    ids = sequence_ids(prompts, list(bins.encode(targets).flatten(1).numpy()))
    layouts = [config.layout(len(prompt)) for prompt in prompts]
    images = checkpoint.images
    first = [images.crop(image) for image in case.policy_images()]
    second = [image[::-1] for image in case.policy_images()]
    inputs = ModelInputs(
        pixel_values=torch.from_numpy(
            np.stack([images.pixel_values(sample) for sample in (first, second)])
        ),
        input_ids=ids,
        prompt_lens=tuple(len(prompt) for prompt in prompts),
        proprio=torch.from_numpy(expected["proprio"]),
    )
    taps = Taps(model)
    model.requires_grad_(True)
    try:
        output = model(inputs)
        loss = torch.nn.functional.l1_loss(output.actions, targets)
        loss.backward()
        gradients = [
            error(_gradient(case, name), grad) / max(float(np.abs(grad).max()), 1e-12)
            for name, grad in expected.items()
            if name.startswith("grad__")
        ]
    finally:
        taps.close()
        model.zero_grad(set_to_none=True)
        model.requires_grad_(False)
    step_error = (output.actions - targets).detach().abs().numpy()
    film = taps.values["film_avg_lang_embedding"].detach().numpy()
    observed = {
        "input_ids": ids.numpy(),
        "labels": action_labels(ids, layouts).numpy(),
        "attention_mask": (ids != PAD_ID).numpy(),
        "action_mask_on_labels_1": _is_action(layouts, ids)[:, 1:].numpy(),
        "pixel_values_sub8": inputs.pixel_values[:, :, ::8, ::8].numpy(),
        "film_avg_lang_embedding": film,
        "actions_hidden_states": output.action_hidden.detach().numpy(),
        "predicted_actions": output.actions.detach().numpy(),
        "loss": loss.detach().numpy(),
        "curr_action_l1": step_error[:, 0].mean(),
        "next_actions_l1": step_error[:, 1:].mean(),
    }
    return {**compare(observed, expected), "gradients": max(gradients)}


def _gradient(case: Case, name: str) -> np.ndarray:
    parts = {
        "head.": "action_head.",
        "proprio.": "proprio_projector.",
        "dino.": "vision_backbone.featurizer.",
        "siglip.": "vision_backbone.fused_featurizer.",
        "projector.": "projector.",
    }
    short = name.removeprefix("grad__")
    prefix = next(prefix for prefix in parts if short.startswith(prefix))
    full = parts[prefix] + short.removeprefix(prefix)
    full = full.replace(".scale.", ".film.scale.").replace(".shift.", ".film.shift.")
    gradient = case.checkpoint.model.get_parameter(full).grad
    assert gradient is not None
    return gradient.numpy()


def run_unit_norm(case: Case) -> dict[str, float]:
    content = case.expected

    def stats(kind: str) -> NormStats:
        lower = content[f"{kind}_min"]
        return NormStats(
            lower=lower, upper=content[f"{kind}_max"], mask=np.ones(lower.shape, bool)
        )

    observed = {
        "unnorm": unnormalize(content["x_norm"], stats("action")),
        "proprio_norm": normalize(content["proprio_raw"], stats("proprio")),
    }
    return compare(observed, content)


def run_images(case: Case) -> dict[str, float]:
    """Every stage of the preprocessing from its recorded input."""
    folder = case.golden_dir / "golden"
    images = replace(case.checkpoint.images, options=PreprocessingConfig())
    errors: dict[str, list[float]] = {name: [] for name in ALLOWED["images"]}
    sources = [(p, "raw480x640", "policy224") for p in sorted(folder.glob("img_raw480x640_*.png"))]
    sources += [
        (p, "libero_env256", "libero_policy224")
        for p in sorted(folder.glob("img_libero_env256_*.png"))
    ]
    for path, before, after in sources:
        policy = read_image(folder / path.name.replace(before, after))
        gap = np.abs(images.resize(read_image(path)).astype(int) - policy)
        errors["policy224 levels"].append(gap.max())
        errors["policy224 share of values"].append((gap > 0).mean())
    for path in sorted(folder.glob("img_pil256_*.png")):
        raw = read_image(folder / path.name.replace("pil256", "raw480x640"))
        errors["pil256"].append(error(image_ops.resize_bicubic(raw, 256), read_image(path)))
        decoded = read_image(folder / path.name.replace("pil256", "jpeg256"))
        errors["jpeg256"].append(error(image_ops.jpeg_round_trip(read_image(path)), decoded))
    for path in sorted(folder.glob("img_crop224_*.png")):
        policy = read_image(folder / path.name.replace("crop224", "policy224"))
        errors["crop224"].append(error(images.crop(policy), read_image(path)))
    return {name: float(max(values)) for name, values in errors.items() if values}


RUNS: dict[str, Callable[[Case], dict[str, float]]] = {
    "images": run_images,
    "unit_norm_aloha": run_unit_norm,
    "train_film_l1": run_training,
    "aloha_nofilm_diffusion10": run_diffusion,
    "aloha_nofilm_diffusion50": run_diffusion,
}


@pytest.fixture(scope="module")
def results(
    golden_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, float]]:
    """Case name → error of each of its quantities; every case runs once."""
    done: dict[str, dict[str, float]] = {}

    def run(name: str) -> dict[str, float]:
        if name not in done:
            npz = "aloha_film_l1" if name == "images" else name
            if not (golden_dir / "golden" / f"{npz}.npz").is_file():
                pytest.skip(f"{npz}.npz is not in {golden_dir}")
            directory = make_variant(
                golden_dir, npz, tmp_path_factory.mktemp("variant", numbered=True) / npz
            )
            done[name] = RUNS.get(name, run_forward)(Case(golden_dir, npz, directory))
        return done[name]

    return run


@pytest.mark.parametrize(
    ("case", "quantity", "allowed"),
    [(case, *item) for case, quantities in ALLOWED.items() for item in quantities.items()],
    ids=lambda value: str(value).replace(" ", "_"),
)
def test_package_computes_what_the_official_code_computes(
    case: str,
    quantity: str,
    allowed: float,
    results: Callable[[str], dict[str, float]],
    request: pytest.FixtureRequest,
) -> None:
    errors = results(case)
    if quantity not in errors:
        pytest.skip(f"{case}.npz does not record {quantity}")
    request.config.stash[parity_rows].append((case, quantity, errors[quantity], allowed))
    assert errors[quantity] <= allowed, (
        f"{case}: {quantity}: {errors[quantity]:.2e} > {allowed:.0e}"
    )


def test_golden_folder_has_every_case(golden_dir: Path) -> None:
    """A folder that lost its files must not pass by skipping."""
    assert json.loads((golden_dir / "tiny_arch.json").read_text())
    assert (golden_dir / "golden" / "aloha_film_l1.npz").is_file()
