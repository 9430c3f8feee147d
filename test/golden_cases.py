"""Runs the cases of a golden folder through the package: what `test_reference_parity` compares.

Everything is derived from the folder: sizes, number of cameras, prompts, chunk length.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vla_oft_ros.model.checkpoint import Checkpoint, load_checkpoint
from vla_oft_ros.model.checkpoint_record import CheckpointRecord
from vla_oft_ros.model.inputs import ModelInputs, close_prompt, sequence_ids

Arrays = dict[str, np.ndarray]

FILM_CHECKPOINT = "ckpt_aloha_film_l1"
OVERLAYS = {"diffusion": "overlay_aloha_diffusion", "libero": "overlay_libero_l1"}


def read_image(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def make_variant(golden_dir: Path, case: str, target: Path) -> Path:
    """Puts a case's checkpoint together, as golden/README.md says: base files, then the files of
    an overlay.
    """
    target.mkdir()
    film = "film" in case and "nofilm" not in case
    for path in (golden_dir / FILM_CHECKPOINT).iterdir():
        if film or not (
            path.name.endswith("_checkpoint.pt") or path.name == "dataset_statistics.json"
        ):
            shutil.copyfile(path, target / path.name)
    if film:
        return target
    parts = [
        p for p in (golden_dir / FILM_CHECKPOINT).iterdir() if not p.name.startswith("vision_")
    ]
    if "diffusion" in case or "libero" in case:
        parts = list(
            (golden_dir / OVERLAYS["libero" if "libero" in case else "diffusion"]).iterdir()
        )
    for path in parts:
        is_part = path.name.endswith("_checkpoint.pt")
        if path.name == "dataset_statistics.json" or (is_part and "discrete" not in case):
            shutil.copyfile(path, target / path.name)
    return target


@dataclass(frozen=True)
class Case:
    """One npz of a golden folder, with its checkpoint."""

    golden_dir: Path
    name: str
    checkpoint_dir: Path

    @cached_property
    def expected(self) -> Arrays:
        with np.load(self.golden_dir / "golden" / f"{self.name}.npz") as content:
            return {key: content[key] for key in content.files}

    @cached_property
    def cameras(self) -> tuple[str, ...]:
        if "libero" in self.name:
            found = ["full", "wrist"]
        else:
            images = (self.golden_dir / "golden").glob("img_policy224_*.png")
            found = sorted(p.stem.removeprefix("img_policy224_") for p in images)
            found.sort(key=lambda name: "wrist" in name)  # main view first, then left before right
        return tuple(found[: self.camera_count])

    @cached_property
    def camera_count(self) -> int:
        if "pixel_values_sub8" in self.expected:
            return int(self.expected["pixel_values_sub8"].shape[1]) // 6
        chunk = self.expected["normalized_actions"].size
        length = self.expected["lm_attention_mask"].shape[1]
        inserted = length - self.expected["input_ids"].shape[1] - 1 - chunk - 1
        return int(inserted) // 256

    @cached_property
    def chunk_len(self) -> int:
        key = "actions_gt" if "actions_gt" in self.expected else "normalized_actions"
        return int(self.expected[key].shape[-2])

    @cached_property
    def checkpoint(self) -> Checkpoint:
        arch = json.loads((self.golden_dir / "tiny_arch.json").read_text())
        return load_checkpoint(
            self.checkpoint_dir,
            device=torch.device("cpu"),
            dtype=torch.float32,
            record=CheckpointRecord(
                vision_heads=(arch["dino"]["heads"], arch["siglip"]["heads"]),
                chunk_len=self.chunk_len,
                cameras=self.cameras,
            ),
        )

    @cached_property
    def instruction(self) -> str:
        return str(self.raw_inputs["instruction"])

    @cached_property
    def raw_inputs(self) -> Arrays:
        kind = "libero" if "libero" in self.name else "aloha"
        with np.load(self.golden_dir / "golden" / f"inputs_{kind}.npz") as content:
            return {key: content[key] for key in content.files}

    @cached_property
    def robot_state(self) -> np.ndarray:
        return self.raw_inputs["state" if "libero" in self.name else "qpos"]

    def policy_images(self) -> list[np.ndarray]:
        prefix = "img_libero_policy224_" if "libero" in self.name else "img_policy224_"
        return [
            read_image(self.golden_dir / "golden" / f"{prefix}{camera}.png")
            for camera in self.cameras
        ]

    def inputs(self) -> ModelInputs:
        """From images at policy size and the recorded prompt ids."""
        checkpoint = self.checkpoint
        images = checkpoint.images
        prompt = close_prompt(self.expected["input_ids"][0])
        pixels = images.pixel_values(images.prepare(self.policy_images()))
        proprio = self.expected.get("proprio_in") if checkpoint.config.proprio_dim else None
        count = checkpoint.config.chunk_len * checkpoint.config.action_dim
        return ModelInputs(
            pixel_values=torch.from_numpy(pixels)[None],
            input_ids=sequence_ids([prompt], count),
            prompt_lens=(len(prompt),),
            proprio=None if proprio is None else torch.from_numpy(proprio),
        )


class Taps:
    """Records what passes through named modules during a forward pass."""

    def __init__(self, model: nn.Module) -> None:
        self.values: dict[str, Tensor] = {}
        llm = model.get_submodule("language_model.model")
        self._handles = [
            model.get_submodule("vision_backbone").register_forward_hook(
                self._output("vision_features")
            ),
            model.get_submodule("projector").register_forward_hook(
                self._output("projected_patches")
            ),
            llm.register_forward_pre_hook(self._first_input("inputs_embeds")),
            llm.get_submodule("layers.0").register_forward_hook(
                self._output("hidden_after_layer0")
            ),
            llm.register_forward_hook(self._output("last_hidden_state")),
        ]
        proprio = model.get_submodule("proprio_projector") if model.config.proprio_dim else None
        if proprio is not None:
            self._handles.append(proprio.register_forward_hook(self._output("proprio_embedding")))
        if model.config.film:
            block = model.get_submodule("vision_backbone.featurizer.blocks.0.film")
            self._handles.append(
                block.register_forward_pre_hook(self._first_input("film_avg_lang_embedding"))
            )

    def _output(self, name: str):
        def hook(module: nn.Module, args: tuple, output) -> None:
            self.values[name] = output if isinstance(output, Tensor) else output[0]

        return hook

    def _first_input(self, name: str):
        def hook(module: nn.Module, args: tuple) -> None:
            self.values[name] = args[0]

        return hook

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
