"""What is minimised: L1, cross entropy over action tokens, or the error of predicted noise.

An `Objective` wraps the network, so that one forward call runs network and loss together, as
several processes need. It gives sums, not means: the mean is over the samples of all processes and
forward passes of one step, whose valid actions only the loop can count. Source: openvla-oft
`finetune.py` (run_forward_pass).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vla_oft_ros.model.action_head import DdimSchedule, HeadKind
from vla_oft_ros.model.film import mean_language_embedding
from vla_oft_ros.model.inputs import ModelInputs, action_labels
from vla_oft_ros.model.tokens import IGNORE_LABEL, TokenLayout
from vla_oft_ros.model.vla import Context, Modulations, OpenVLAOFT


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Samples of one forward pass.

    Attributes:
        inputs: For the network; `input_ids` hold the true action tokens.
        actions: (B, K, A) float32 normalised targets.
        valid: (B, K) bool, False where an episode had ended.
        noise: (B, K, A) float32, for diffusion only.
        timesteps: (B,) int64 noise levels, for diffusion only.
    """

    inputs: ModelInputs
    actions: Tensor
    valid: Tensor
    noise: Tensor
    timesteps: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on a device, floats as they are."""
        return Batch(
            inputs=self.inputs.to(device, torch.float32),
            **{
                item.name: getattr(self, item.name).to(device)
                for item in fields(self)
                if item.name != "inputs"
            },
        )


class Losses(NamedTuple):
    """Sums of one forward pass.

    Attributes:
        total: () float32, to be divided by the number of numbers that it sums, `Objective.count`.
        figures: Name → (2,) float32 sum and count, for the log; without gradients.
    """

    total: Tensor
    figures: dict[str, Tensor]


@dataclass(frozen=True)
class _LayoutWithStop(TokenLayout):
    """Reads one hidden state more: the one that predicts the stop token."""

    @property
    def head(self) -> slice:
        return slice(self.actions.start - 1, self.actions.stop)


class VisionProbe(nn.Module):
    """Reads the actions from the mean patch token and proprio alone; thrown away after training.

    In a network from random weights each patch is one of some six hundred tokens that action
    tokens mix evenly at first, so that hardly any gradient tells the vision towers where things
    are. This short way does. Not part of OpenVLA-OFT, whose towers come trained.

    Args:
        width: D.
        chunk_len: K.
        action_dim: A.
        proprio_dim: Numbers of the joint state; 0 where the network reads none.
    """

    def __init__(self, width: int, chunk_len: int, action_dim: int, proprio_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width + proprio_dim, 2 * width)
        self.fc2 = nn.Linear(2 * width, chunk_len * action_dim)
        self.action_dim = action_dim

    def forward(self, patches: Tensor, proprio: Tensor | None) -> Tensor:
        """Maps (B, N·P, D) patch tokens and (B, A) proprio to (B, K, A) normalised actions."""
        pooled = patches.float().mean(dim=1)  # (B, D)
        read = pooled if proprio is None else torch.cat([pooled, proprio], dim=1)
        actions: Tensor = self.fc2(F.gelu(self.fc1(read)))  # (B, K·A)
        return rearrange(actions, "b (k a) -> b k a", a=self.action_dim)


class Objective(nn.Module):
    """Network and loss.

    Args:
        model: The network; its configuration says which loss.
        autocast: Number format of the computation; None for that of the weights.
        pads_in_film_average: Official behaviour: padding tokens of a batch count in the language
            embedding that drives FiLM. They never occur when the policy acts.
        vision_probe: Weight of the L1 error of a `VisionProbe`, added to the loss; 0 is none.
    """

    def __init__(
        self,
        model: OpenVLAOFT,
        *,
        autocast: torch.dtype | None = None,
        pads_in_film_average: bool = False,
        vision_probe: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.probe_weight = vision_probe
        sizes = model.config
        self.probe = (
            VisionProbe(sizes.llm.width, sizes.chunk_len, sizes.action_dim, sizes.proprio_dim)
            if vision_probe
            else None
        )
        self.autocast = autocast
        self.pads_in_film_average = pads_in_film_average

    def count(self, batch: Batch) -> int:
        """How many numbers `Losses.total` sums."""
        config = self.model.config
        if config.head is HeadKind.DISCRETE:
            return int((self._labels(batch) != IGNORE_LABEL).sum())
        return int(batch.valid.sum()) * config.action_dim

    def forward(self, batch: Batch) -> Losses:
        """Runs the network and sums the loss over valid actions.

        Raises:
            ValueError: if the batch does not fit the network.
        """
        self.model.check(batch.inputs)
        device = batch.actions.device.type
        with torch.autocast(device, self.autocast, enabled=self.autocast is not None):
            context = self.model.embed(batch.inputs, self.film(batch.inputs))
            losses = self._losses(context, batch)
        if self.probe is None:
            return losses
        predicted = self.probe(context.patches, batch.inputs.proprio)  # (B, K, A)
        errors = ((predicted - batch.actions).abs() * batch.valid[..., None]).sum()
        figure = _figure(errors, int(batch.valid.sum()) * self.model.config.action_dim)
        total = losses.total + self.probe_weight * errors
        return Losses(total, {**losses.figures, "vision_probe_l1": figure})

    def _losses(self, context: Context, batch: Batch) -> Losses:
        """Those of the network itself, under autocast."""
        if self.model.config.head is HeadKind.DISCRETE:
            return self._cross_entropy(context, batch)
        if self.model.config.head is HeadKind.DIFFUSION:
            total = self.noise_squares(context, batch).sum()
            return Losses(total, {"noise_mse": _figure(total, self.count(batch))})
        hidden, _ = self.model.action_hidden(context)
        predicted = self._head(hidden)  # (B, K, A)
        errors = (predicted - batch.actions).abs() * batch.valid[..., None]  # (B, K, A)
        return Losses(errors.sum(), _l1_figures(errors, batch))

    def noise_squares(self, context: Context, batch: Batch) -> Tensor:
        """(B, K, A) squared errors of the noise that the diffusion head predicts, 0 where an
        episode had ended.
        """
        noisy = DdimSchedule(batch.actions.device).add_noise(
            batch.actions, batch.noise, batch.timesteps
        )
        hidden, _ = self.model.noisy_hidden(context, noisy, batch.timesteps)
        squares: Tensor = (self._head(hidden) - batch.noise).square() * batch.valid[..., None]
        return squares

    def _head(self, hidden: Tensor) -> Tensor:
        """The head computes in the format of its own weights, outside autocast, as officially."""
        assert self.model.action_head is not None
        with torch.autocast(hidden.device.type, enabled=False):
            weight = self.model.action_head.model.fc1.weight
            actions: Tensor = self.model.action_head(hidden.to(weight.dtype)).float()
        return actions

    def film(self, inputs: ModelInputs) -> Modulations | None:
        """What the instructions do to the vision towers; None without FiLM."""
        if not self.model.config.film or self.pads_in_film_average:
            return self.model.film(inputs)
        embeddings = self.model.language_model.model.embed_tokens(inputs.input_ids)  # (B, ids, D)
        starts = torch.tensor(inputs.prompt_lens, device=inputs.input_ids.device)[:, None]
        stops = starts + self.model.config.chunk_len * self.model.config.action_dim
        place = torch.arange(inputs.input_ids.shape[1], device=starts.device)  # (ids,)
        left_out = (place >= starts) & (place != stops)  # action slots and padding
        return self.model.vision_backbone.modulations(
            mean_language_embedding(embeddings, left_out)
        )

    def _labels(self, batch: Batch) -> Tensor:
        """(B, K·A + 1) int64 token ids to predict, ended steps ignored; the stop token last."""
        config = self.model.config
        layouts = [config.layout(length) for length in batch.inputs.prompt_lens]
        labels = action_labels(batch.inputs.input_ids, layouts)
        rows = torch.stack(
            [
                row[layout.prompt_len : layout.input_ids_len]
                for row, layout in zip(labels, layouts, strict=True)
            ]
        )
        slots = batch.valid.repeat_interleave(config.action_dim, dim=1)  # (B, K·A)
        always = slots.new_ones(len(slots), 1)
        # A row without any valid step only fills up a batch.
        kept = torch.cat([slots, always], dim=1) & batch.valid.any(dim=1, keepdim=True)
        return rows.masked_fill(~kept, IGNORE_LABEL)

    def _cross_entropy(self, context: Context, batch: Batch) -> Losses:
        layouts = tuple(
            _LayoutWithStop(**{item.name: getattr(layout, item.name) for item in fields(layout)})
            for layout in context.layouts
        )
        hidden, _ = self.model.action_hidden(replace(context, layouts=layouts))
        logits = self.model.language_model.lm_head(hidden).float()  # (B, K·A + 1, vocab)
        labels = self._labels(batch)
        total = F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_LABEL, reduction="sum"
        )
        actions, wanted = logits[:, :-1].argmax(dim=-1).detach(), labels[:, :-1]
        supervised = wanted != IGNORE_LABEL
        hits = ((actions == wanted) & supervised).sum()
        decoded = self.model.bins.decode(actions).float().reshape(batch.actions.shape)
        errors = (decoded - batch.actions).abs() * batch.valid[..., None]
        return Losses(
            total,
            {
                "cross_entropy": _figure(total, self.count(batch)),
                "token_accuracy": _figure(hits, int(supervised.sum())),
                **_l1_figures(errors, batch),
            },
        )


def _figure(total: Tensor, count: int) -> Tensor:
    return torch.stack([total.detach().float(), total.new_tensor(count, dtype=torch.float32)])


def _l1_figures(errors: Tensor, batch: Batch) -> dict[str, Tensor]:
    """L1 of the first action, of the later ones, and of all, as the official log has them.

    Args:
        errors: (B, K, A), 0 where an episode had ended.
        batch: Whose errors.
    """
    count = batch.valid.sum(dim=0) * errors.shape[-1]  # (K,)
    first, later = int(count[0]), int(count[1:].sum())
    return {
        "l1": _figure(errors.sum(), first + later),
        "curr_action_l1": _figure(errors[:, 0].sum(), first),
        "next_actions_l1": _figure(errors[:, 1:].sum(), later),
    }
