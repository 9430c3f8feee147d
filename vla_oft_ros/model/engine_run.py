"""The engine: one request in, one answer out, by an eager pass or by the replay of a captured one.

Which it shall be, and in which precision, is decided by `engine.make_engine`; here it is done, and
given up for eager passes with a reason if the device refuses after all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from vla_oft_ros.model.engine_graph import Capture, LeastRecent, StaticPass
from vla_oft_ros.model.engine_pass import (
    Network,
    PassInputs,
    PassOutput,
    PassShape,
    Variant,
    host_tensors,
)
from vla_oft_ros.model.engine_request import Answer, EngineReport, Instruction, Request
from vla_oft_ros.model.inputs import ModelInputs, sequence_ids
from vla_oft_ros.model.pruner import PruningState, Stage
from vla_oft_ros.model.savings import Savings
from vla_oft_ros.model.stage_times import StageTimes
from vla_oft_ros.model.vla import Modulations
from vla_oft_ros.types import MotionMode

logger = logging.getLogger(__name__)

KEEP_GRAPHS = 12
"""Four prompts with three passes each: cold, warm and coarse, warm and fine."""
PRECISIONS = {torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64"}


Given = ParamSpec("Given")
Result = TypeVar("Result")


def _on_its_device(
    method: Callable[Concatenate[Engine, Given], Result],
) -> Callable[Concatenate[Engine, Given], Result]:
    """Runs a method in inference mode, with the engine's GPU as the current one: CUDA streams,
    events and captures belong to the current one, which need not be where the network is.
    """

    @wraps(method)
    def run(engine: Engine, /, *args: Given.args, **kwargs: Given.kwargs) -> Result:
        on_gpu = engine.device.type == "cuda"
        device: Any = torch.cuda.device  # torch gives it no types
        with torch.inference_mode(), device(engine.device) if on_gpu else nullcontext():
            return method(engine, *args, **kwargs)

    return run


class Engine:
    """Runs passes of one model; `make_engine` makes one. Not for several threads at once.

    Args:
        network: The pass.
        kind: eager, compiled or cuda_graph: what `network` was made for.
        savings: As `network`'s.
        keep_graphs: Captured passes kept.
        capture: Makes a pass replayable; None runs it as it is.
        fallback: Makes the eager network to go on with if `network` fails; None lets it fail.
        fallbacks: Of what was asked for already.
        times: Marks of `network`.
    """

    def __init__(
        self,
        network: Network,
        *,
        kind: str,
        savings: Savings,
        keep_graphs: int = KEEP_GRAPHS,
        capture: Capture | None = None,
        fallback: Callable[[], Network] | None = None,
        fallbacks: tuple[str, ...] = (),
        times: StageTimes | None = None,
    ) -> None:
        self._network = network
        self._fallback = fallback
        self._savings = savings
        self._capture = capture
        self._times = times
        self._graphs: LeastRecent[PassShape, StaticPass] = LeastRecent(keep_graphs)
        self._loaded: StaticPass | tuple[PassShape, PassInputs] | None = None
        self._output: PassOutput | None = None
        self._entropies: Tensor | None = None
        precision = "fp8" if network.fp8 else PRECISIONS.get(network.dtype, str(network.dtype))
        self.report = EngineReport(kind=kind, precision=precision, fallbacks=fallbacks)

    @property
    def device(self) -> torch.device:
        """Where passes run."""
        return self._network.device

    @_on_its_device
    def instruction(self, prompt_ids: np.ndarray, text: slice = slice(0, 0)) -> Instruction:
        """Embeds an instruction and computes its FiLM.

        Args:
            prompt_ids: (L,) int64 from `PromptTokenizer.prompt_ids`.
            text: Which of them are the operator's words; none is the whole prompt.
        """
        model, device = self._network.model, self._network.device
        config = model.config
        layout = config.layout(len(prompt_ids))
        input_ids = sequence_ids([prompt_ids], config.chunk_len * config.action_dim).to(device)
        ends = torch.cat([input_ids[:, : layout.prompt_len], input_ids[:, -1:]], dim=1)
        # Prompt ids count BOS, which stands before the images.
        first = layout.prompt.start - 1
        span = (layout.prompt.start, layout.prompt.stop)
        if text.stop > text.start:
            span = (first + text.start, first + text.stop)
        modulations: Modulations | None = None
        if self._savings.cache_film:
            inputs = ModelInputs(
                pixel_values=input_ids,
                input_ids=input_ids,
                prompt_lens=(layout.prompt_len,),
                proprio=None,
            )
            modulations = model.film(inputs)
        return Instruction(
            layout=layout,
            text=span,
            input_ids=input_ids,
            prompt=model.language_model.model.embed_tokens(ends),
            modulations=modulations,
        )

    def run(self, request: Request) -> Answer:
        """Answers one request; blocks until the numbers are on the host.

        Raises:
            ValueError: if the request does not fit the checkpoint.
        """
        self.load(request)
        self.replay()
        return self.fetch()

    @_on_its_device
    def load(self, request: Request) -> None:
        """Puts a request where the next `replay` reads it.

        The first one of a prompt length also captures every pass that others of this length and
        these image sizes can ask for, so that none is captured in the middle of an episode.
        """
        self._check(request)
        shape, inputs = self._shape(request), self._inputs(request)
        # Of an episode's first pass, also if one without reference images follows it.
        kept = request.state if shape.variant is Variant.COLD else None
        self._entropies = None if kept is None else kept.entropies
        if self._capture is not None and shape not in self._graphs:
            self._capture_all(request)
        graph = None if self._capture is None else self._graphs.get(shape)
        if graph is None:
            device = self._network.device
            self._loaded = (shape, inputs.map(lambda tensor: tensor.to(device)))
        else:
            graph.load(inputs)
            self._loaded = graph

    @_on_its_device
    def replay(self) -> None:
        """Runs the loaded pass, without waiting for the device.

        Raises:
            RuntimeError: if nothing was loaded.
        """
        if self._loaded is None:
            raise RuntimeError("Engine.replay: load a request first")
        if isinstance(self._loaded, StaticPass):
            self._loaded.replay()
            self._output = self._loaded.output
            return
        try:
            self._output = self._network(*self._loaded)
        except RuntimeError as error:
            if self.report.kind == "eager":
                raise
            self._fall_back(error)
            self._output = self._network(*self._loaded)

    @_on_its_device
    def fetch(self) -> Answer:
        """Waits for the device and gives the answer of the last `replay`.

        Raises:
            RuntimeError: if nothing was run.
        """
        if self._output is None:
            raise RuntimeError("Engine.fetch: run a pass first")
        output = self._output
        # To pinned memory, one after the other; one wait for all.
        actions, normalized = (
            part.to("cpu", non_blocking=True) for part in (output.actions, output.normalized)
        )
        stages = tuple(
            Stage(stage.layer, stage.patches.to("cpu", non_blocking=True))
            for stage in output.stages
        )
        reasons = output.reasons
        if reasons is not None:
            reasons = reasons.to("cpu", non_blocking=True)
        state = output.state
        if state is not None:
            entropies = state.entropies if self._entropies is None else self._entropies
            # Copies: the next replay writes over what this one left.
            state = PruningState(
                global_patches=state.global_patches.clone(), entropies=entropies.clone()
            )
        if self._network.device.type == "cuda":
            torch.cuda.current_stream(self._network.device).synchronize()
        return Answer(
            actions=actions.numpy(),
            normalized=normalized.numpy(),
            state=state,
            stages=stages,
            reasons=reasons,
        )

    def _capture_all(self, request: Request) -> None:
        """Captures the pass that is asked for and its siblings; falls back where that fails."""
        assert self._capture is not None
        try:
            siblings = self._siblings(request)
            if len(siblings) > self._graphs.capacity:  # they would drive each other out
                siblings = []
            for sibling in (*siblings, request):
                shape = self._shape(sibling)
                if shape not in self._graphs:
                    graph = StaticPass(
                        self._network, shape, self._inputs(sibling), self._capture, self._times
                    )
                    self._graphs.put(shape, graph)
        except RuntimeError as error:
            self._fall_back(error)

    def _siblings(self, request: Request) -> list[Request]:
        """Requests for the other passes of a prompt: cold, and warm in both modes."""
        plan = self._network.plan
        if plan is None or request.dense or plan.config.method != "specprune":
            return []
        blank = PruningState(
            global_patches=torch.zeros(plan.cameras, plan.patches, dtype=torch.bool),
            entropies=torch.ones(plan.depth, dtype=self._network.wide),
        )
        state, references = request.state or blank, request.references or request.images
        return [
            replace(request, state=None, references=None),
            *(
                replace(request, state=state, references=references, mode=mode)
                for mode in MotionMode
            ),
        ]

    def _fall_back(self, error: Exception) -> None:
        """Goes on eagerly, and says why."""
        if self._fallback is None:
            raise error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        note = f"{self.report.kind} → eager: {reason}"
        logger.warning("engine: %s", note)
        self.report = replace(self.report, kind="eager", fallbacks=(*self.report.fallbacks, note))
        self._network, self._fallback, self._capture = self._fallback(), None, None
        self._graphs.clear()

    def _variant(self, request: Request) -> Variant:
        if self._network.plan is None or request.dense:
            return Variant.DENSE
        if self._network.plan.config.method != "specprune":
            return Variant.COLD
        warm = request.state is not None and request.references is not None
        return Variant.WARM if warm else Variant.COLD

    def _shape(self, request: Request) -> PassShape:
        variant, plan = self._variant(request), self._network.plan
        # Where SpecPrune only looks, and where nothing does, all modes are one pass.
        prunes = variant is Variant.WARM or (
            variant is Variant.COLD and plan is not None and plan.config.method != "specprune"
        )
        sizes = tuple((int(i.shape[0]), int(i.shape[1])) for i in request.images)
        return PassShape(
            layout=request.instruction.layout,
            text=request.instruction.text,
            variant=variant,
            mode=request.mode if prunes else MotionMode.FINE,
            frames=sizes if self._prepares_on_device else (),
        )

    def _inputs(self, request: Request) -> PassInputs:
        network, instruction = self._network, request.instruction
        warm = self._variant(request) is Variant.WARM
        proprio: Tensor | None = None
        if request.proprio is not None:
            proprio = torch.from_numpy(np.asarray(request.proprio, dtype=np.float32))[None]
        return PassInputs(
            images=self._frames(request.images),
            references=self._frames(request.references or ()) if warm else None,
            proprio=None if proprio is None else proprio.to(network.wide),
            noise=request.noise,
            prompt=instruction.prompt,
            input_ids=instruction.input_ids,
            modulations=instruction.modulations,
            state=request.state if warm else None,
        )

    @property
    def _prepares_on_device(self) -> bool:
        device = self._network.device
        return self._savings.device_preprocessing and device.type == "cuda"

    def _frames(self, images: Sequence[np.ndarray]) -> tuple[Tensor, ...]:
        """Camera frames, or where the host prepares them, what the network sees."""
        if self._prepares_on_device:
            return host_tensors(tuple(images))
        return host_tensors((np.stack(self._network.images.prepare(images)),))

    def _check(self, request: Request) -> None:
        config = self._network.model.config
        if len(request.images) != config.cameras:
            raise ValueError(
                f"Request.images: expected {config.cameras}; got {len(request.images)}"
            )
        got = None if request.proprio is None else tuple(np.shape(request.proprio))
        wanted = (config.proprio_dim,) if config.proprio_dim else None
        if got != wanted:
            raise ValueError(f"Request.proprio: expected shape {wanted}; got {got}")
