"""Laws of a captured pass, looked at without a GPU: tensors that have shapes and no numbers.

On the device `meta` a pass that asks for a number, or makes a tensor whose shape hangs on numbers,
fails; a dispatch mode around it sees every tensor of the host among those of the device. All of
these a CUDA graph refuses. Kernels that only a GPU has are held to their signatures by fake CUDA
tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vla_oft_ros.config import PreprocessingConfig, PruningConfig
from vla_oft_ros.model.attention import attend
from vla_oft_ros.model.engine import Engine, Request
from vla_oft_ros.model.engine_graph import WARM_UP_PASSES, GpuCapture
from vla_oft_ros.model.engine_pass import Network, PassOutput
from vla_oft_ros.model.engine_regions import PLAIN
from vla_oft_ros.model.engine_vision import Towers, run_block
from vla_oft_ros.model.fp8 import Fp8Weight, linear, rows_of
from vla_oft_ros.model.inputs import ImagePipeline
from vla_oft_ros.model.pruning_plan import PruningPlan
from vla_oft_ros.model.savings import Savings
from vla_oft_ros.model.small_checkpoint import SmallSize, _model_config
from vla_oft_ros.model.vla import OpenVLAOFT
from vla_oft_ros.normalization import NormStats

DEVICE = torch.device("meta")
PROMPT = np.array([1, *range(10, 24), 29871])
"""BOS, words, the empty token."""
CONFIG = _model_config(
    SmallSize(width=64, layers=8, heads=4, dino_width=32, siglip_width=32, depth=3, chunk_len=5)
)


class Watch(TorchDispatchMode):
    """Notes every operation that has tensors of the host and of the device."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed: list[str] = []
        self.operations = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
        self.operations += 1
        if len({tensor.device.type for tensor in tensors}) > 1:
            self.mixed.append(str(func))
        return out


class WatchedCapture:
    """Runs a pass as `GpuCapture` does, and watches the run that would be recorded."""

    def __init__(self) -> None:
        self.watched: list[Watch] = []

    def __call__(self, run: Callable[[], PassOutput]) -> tuple[Callable[[], None], PassOutput]:
        run()
        with Watch() as watch:
            output = run()
        self.watched.append(watch)
        return lambda: None, output


def model_on_device() -> OpenVLAOFT:
    with DEVICE:
        return OpenVLAOFT(CONFIG).to(torch.bfloat16).eval().requires_grad_(False)


def engine_of(
    capture: WatchedCapture, pruning: PruningConfig | None, monkeypatch: pytest.MonkeyPatch
) -> Engine:
    # Frames are prepared in the pass, as on a GPU.
    monkeypatch.setattr(Engine, "_prepares_on_device", True)
    half = np.full((2, 3), 0.5, dtype=np.float32)
    reach = np.ones(CONFIG.action_dim)
    sizes = {"cameras": CONFIG.cameras, "patches": CONFIG.dino.patches}
    network = Network(
        model_on_device(),
        images=ImagePipeline(
            size_px=CONFIG.dino.image_px, mean=half, std=half, options=PreprocessingConfig()
        ),
        action_stats=NormStats(lower=-reach, upper=reach, mask=reach > 0),
        plan=pruning and PruningPlan.resolve(pruning, **sizes, depth=CONFIG.llm.layers),
        savings=Savings(),
        regions=PLAIN,
        run=run_block,
    )
    return Engine(network, kind="cuda_graph", savings=Savings(), capture=capture)


def request_of(engine: Engine) -> Request:
    return Request(
        instruction=engine.instruction(PROMPT, slice(4, 10)),
        images=[np.zeros((480, 640, 3), dtype=np.uint8)] * 3,
        proprio=np.zeros(14, dtype=np.float32),
    )


@pytest.mark.parametrize(("method", "passes"), [("none", 1), ("specprune", 3)])
def test_a_warm_pass_asks_nothing_of_the_host(
    method: str, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture = WatchedCapture()
    pruning = None if method == "none" else PruningConfig(method=method)
    engine = engine_of(capture, pruning, monkeypatch)
    engine.load(request_of(engine))
    assert len(capture.watched) == passes
    for watch in capture.watched:
        assert watch.operations > 500
        assert watch.mixed == []


def test_the_watch_sees_what_counts_tokens_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's exact sets, whose sizes depend on the images."""
    engine = engine_of(
        WatchedCapture(), PruningConfig(method="specprune", preset="paper"), monkeypatch
    )
    with pytest.raises(NotImplementedError, match="nonzero"):
        engine.load(request_of(engine))


def test_recordings_run_on_the_stream_that_was_warmed_up_and_share_it_and_its_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    happened: list[str] = []

    def stream(name: str) -> SimpleNamespace:
        return SimpleNamespace(
            name=name,
            wait_stream=lambda other: happened.append(f"{name} waits for {other.name}"),
        )

    @contextmanager
    def within(what: str) -> Iterator[None]:
        happened.append(what)
        yield
        happened.append("done")

    def recording(
        _: object, *, pool: str, stream: SimpleNamespace, capture_error_mode: str
    ) -> AbstractContextManager[None]:
        return within(f"recording on {stream.name}, memory {pool}, {capture_error_mode}")

    names, pools = iter(["side", "one too many"]), iter(["shared", "one too many"])
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream(next(names)))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(pools))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream("current"))
    monkeypatch.setattr(torch.cuda, "stream", lambda entered: within(entered.name))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay="replay"))
    monkeypatch.setattr(torch.cuda, "graph", recording)
    capture = GpuCapture()
    for _ in range(2):
        happened.clear()
        assert capture(lambda: happened.append("pass"))[0] == "replay"
        assert happened == [
            *("side waits for current", "side", *["pass"] * WARM_UP_PASSES, "done"),
            *("current waits for side", "recording on side, memory shared, thread_local"),
            *("pass", "done"),
        ]


@torch.inference_mode()
def test_the_second_tower_waits_for_the_images_and_the_rest_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    happened: list[str] = []

    def stream(name: str) -> SimpleNamespace:
        def wait(other: SimpleNamespace) -> None:
            happened.append(f"{name} waits for {other.name}")

        return SimpleNamespace(name=name, wait_stream=wait)

    class Within:
        def __init__(self, entered: SimpleNamespace) -> None:
            self._name = entered.name

        def __enter__(self) -> None:
            happened.append(f"into {self._name}")

        def __exit__(self, *_: object) -> None:
            happened.append("back")

    monkeypatch.setattr(torch.cuda, "Stream", lambda _: stream("second"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: stream("first"))
    monkeypatch.setattr(torch.cuda, "stream", Within)
    model = model_on_device()
    towers = Towers(model.vision_backbone, Savings(), run_block, torch.device("cuda"))
    side = CONFIG.dino.image_px
    views = torch.empty(2, 3, 3, side, side, device=DEVICE, dtype=torch.bfloat16)
    assert towers(views, None).shape[:2] == (1, 3 * CONFIG.dino.patches)
    order = ["second waits for first", "into second", "back", "first waits for second"]
    assert happened == order


def test_the_flash_kernel_of_a_gpu_gives_a_normaliser_per_query_and_head() -> None:
    with torch.inference_mode(), FakeTensorMode():
        shape, gpu = (1, 4, 577, 128), torch.device("cuda")
        q, k, v = (torch.empty(shape, device=gpu, dtype=torch.bfloat16) for _ in range(3))
        mixed, normalizer = attend(q, k, v)
    assert (mixed.shape, mixed.dtype) == (shape, torch.bfloat16)
    assert normalizer is not None
    assert (normalizer.shape, normalizer.dtype) == (shape[:-1], torch.float32)


@pytest.mark.parametrize("rows", [350, 577])
def test_the_product_of_a_gpu_takes_rows_in_8_bits_and_their_scales_as_they_lie(
    rows: int,
) -> None:
    """Its signature checks sizes, layout and form of the scales."""
    with torch.inference_mode(), FakeTensorMode():
        gpu = torch.device("cuda")
        x = torch.empty(1, rows, 64, device=gpu, dtype=torch.bfloat16)
        weight = Fp8Weight(
            torch.empty(96, 64, device=gpu, dtype=torch.float8_e4m3fn),
            torch.empty(96, 1, device=gpu),
        )
        out = linear(x, weight)
    assert (out.shape, out.dtype, out.device.type) == ((1, rows, 96), torch.bfloat16, "cuda")


def test_a_part_of_an_8_bit_weight_lies_as_the_whole_does() -> None:
    weight = Fp8Weight(torch.empty(96, 64, dtype=torch.float8_e4m3fn), torch.empty(96, 1))
    part = rows_of(weight, 32, 64)
    assert isinstance(part, Fp8Weight)
    assert part.values.is_contiguous() and part.scale.t().is_contiguous()
    assert part.values.data_ptr() == weight.values.data_ptr() + 32 * 64


def test_every_call_makes_the_engines_gpu_the_current_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entered: list[torch.device] = []

    def device(one: torch.device) -> nullcontext[None]:
        entered.append(one)
        return nullcontext()

    engine = engine_of(WatchedCapture(), None, monkeypatch)
    request = request_of(engine)
    assert entered == []
    monkeypatch.setattr(torch.cuda, "device", device)
    second = torch.device("cuda", 1)
    monkeypatch.setattr(Engine, "device", second)
    engine.instruction(PROMPT)
    engine.load(request)
    engine.replay()
    assert entered == [second] * 3
