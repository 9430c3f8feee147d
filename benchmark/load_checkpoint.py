"""Start-up: time and memory from a checkpoint on disk to a network on the device.

    python benchmark/load_checkpoint.py DIRECTORY --make --layers 16     # synthetic, 7B layout,
    random bytes python benchmark/load_checkpoint.py DIRECTORY [--device cpu|cuda] [--json FILE]

The synthetic checkpoint has every tensor of an official FiLM checkpoint at its official size and
format, live vision LoRA included, but only `--layers` of the 32 LLM layers, so that it fits a
machine without room for all of them. It is loaded in fresh processes: once with the files dropped
from the page cache, once with them in it. Peak host memory is VmHWM, which counts pages of mapped
files too; `anonymous` leaves those out, as the kernel can take them back at any time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from vla_oft_ros.aloha import CAMERAS
from vla_oft_ros.model.action_head import HeadKind
from vla_oft_ros.model.checkpoint import load_checkpoint
from vla_oft_ros.model.checkpoint_files import INDEX_FILE, part_key
from vla_oft_ros.model.checkpoint_record import CheckpointRecord
from vla_oft_ros.model.checkpoint_save import OFFICIAL_LORA_RANK, saved_parts
from vla_oft_ros.model.llm import LlamaConfig
from vla_oft_ros.model.small_checkpoint import SmallSize, make_random_checkpoint
from vla_oft_ros.model.vision import TowerConfig
from vla_oft_ros.model.vla import ModelConfig, OpenVLAOFT

FULL_LAYERS = 32
SHARD_BYTES = 5_000_000_000
"""Size of the shards of official checkpoints."""
GB = 1e9
DINO = TowerConfig(
    width=1024,
    depth=24,
    heads=16,
    mlp_hidden=4096,
    patch_px=14,
    grid=16,
    class_token=True,
    registers=4,
    layer_scale=True,
    pooling=False,
    film_width=4096,
)
SIGLIP = replace(
    DINO,
    width=1152,
    depth=27,
    mlp_hidden=4304,
    class_token=False,
    registers=0,
    layer_scale=False,
    pooling=True,
)


def model_config(layers: int) -> ModelConfig:
    """OFT+ on ALOHA at its official sizes, with fewer LLM layers."""
    return ModelConfig(
        dino=DINO,
        siglip=SIGLIP,
        llm=LlamaConfig(
            vocab=32064,
            width=4096,
            layers=layers,
            heads=32,
            kv_heads=32,
            mlp_hidden=11008,
            rms_eps=1e-6,
            rope_theta=1e4,
        ),
        projector_hidden=8704,
        head=HeadKind.L1,
        head_hidden=4096,
        head_blocks=2,
        cameras=len(CAMERAS),
        chunk_len=25,
        action_dim=14,
        proprio_dim=14,
        vocab_end=32000,
        action_bins=256,
    )


def make_checkpoint(directory: Path, layers: int) -> None:
    """Writes a synthetic checkpoint; small files are those of a random one."""
    make_random_checkpoint(directory, size=SmallSize(width=16, heads=2, layers=1))
    for path in directory.iterdir():
        if path.suffix in (".pt", ".safetensors") or path.name == "fingerprint.json":
            path.unlink()
    config = json.loads((directory / "config.json").read_text())
    config["vla_oft_ros"]["vision_heads"] = [DINO.heads, SIGLIP.heads]
    config["text_config"] = {"vocab_size": 32064}
    (directory / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        model = OpenVLAOFT(model_config(layers))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    parts = saved_parts(model)
    apart = tuple(f"{part}." for part in parts if part != "vision_backbone")
    write_shards(
        directory,
        {n: s for n, s in shapes.items() if ".film." not in n and not n.startswith(apart)},
    )
    for part in parts:
        named = {n: s for n, s in shapes.items() if n.startswith(f"{part}.")}
        torch.save(part_tensors(part, named), directory / f"{part}--0_checkpoint.pt")


def part_tensors(part: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """A part in its official format: heads and vision in bf16, FiLM and projectors in fp32."""
    wide = part == "proprio_projector"
    tensors = {}
    for name, shape in shapes.items():
        linear = part == "vision_backbone" and name.rsplit(".", 2)[1] in (
            "qkv proj fc1 fc2 q kv".split()
        )
        dtype = torch.float32 if wide or ".film." in name else torch.bfloat16
        key = part_key(part, name, diffusion=False, has_lora=linear)
        tensors[key] = torch.full(shape, 0.01, dtype=dtype)
        if linear and name.endswith(".weight"):
            stem = key.removesuffix(".base_layer.weight")
            ones = (1,) * (len(shape) - 2)
            a = torch.full((OFFICIAL_LORA_RANK, *shape[1:]), 0.01, dtype=dtype)
            b = torch.full((shape[0], OFFICIAL_LORA_RANK, *ones), 0.01, dtype=dtype)
            tensors |= {f"{stem}.lora_A.default.weight": a, f"{stem}.lora_B.default.weight": b}
    return tensors


def write_shards(directory: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Streams random bf16 numbers to safetensors shards, without ever holding one."""
    block = torch.randn(1 << 23, generator=torch.Generator().manual_seed(0)).bfloat16()
    noise = block.view(torch.uint8).numpy().tobytes()
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        if shards[-1] and filled + size > SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += size
    weight_map = {}
    for index, content in enumerate(shards, start=1):
        file = f"model-{index:05d}-of-{len(shards):05d}.safetensors"
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name, shape in content.items():
            end = offset + 2 * torch.Size(shape).numel()
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
            offset = end
        encoded = json.dumps(header).encode()
        with (directory / file).open("wb") as out:
            out.write(len(encoded).to_bytes(8, "little") + encoded)
            while offset > 0:
                out.write(noise[: min(offset, len(noise))])
                offset -= len(noise)
        weight_map.update(dict.fromkeys(content, file))
    (directory / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def memory_bytes() -> dict[str, int]:
    """Peak, current and anonymous resident memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = (line.split() for line in lines)
    return {
        f[0][:-1]: int(f[1]) * 1024 for f in fields if f[0] in ("VmHWM:", "VmRSS:", "RssAnon:")
    }


def measure(directory: Path, device: torch.device) -> dict[str, float]:
    """Loads once in this process and watches its memory."""
    if device.type == "cuda":
        torch.zeros(1, device=device)
    before = memory_bytes()
    peak_anonymous = before["RssAnon"]
    done = threading.Event()

    def watch() -> None:
        nonlocal peak_anonymous
        while not done.wait(0.02):
            peak_anonymous = max(peak_anonymous, memory_bytes()["RssAnon"])

    watcher = threading.Thread(target=watch)
    watcher.start()
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    checkpoint = load_checkpoint(
        directory,
        device=device,
        dtype=torch.bfloat16,
        record=CheckpointRecord(chunk_len=25, cameras=CAMERAS),
    )
    if device.type == "cuda":
        torch.cuda.synchronize()
    load_s, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    done.set()
    watcher.join()
    weights = sum(p.numel() * p.element_size() for p in checkpoint.model.parameters())
    gpu_peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    return {
        "layers": checkpoint.config.llm.layers,
        "load_s": load_s,
        "cpu_s": cpu_s,
        "weights_bytes": weights,
        "host_peak_bytes": memory_bytes()["VmHWM"] - before["VmRSS"],
        "host_anonymous_bytes": peak_anonymous - before["RssAnon"],
        "device_peak_bytes": gpu_peak or weights,
    }


def drop_from_page_cache(directory: Path) -> None:
    """Asks the kernel to forget the files, so that the next read comes from the disk."""
    for path in directory.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_speed(directory: Path) -> float:
    """Bytes per second of reading the largest file from the disk."""
    path = max(directory.iterdir(), key=lambda p: p.stat().st_size)
    drop_from_page_cache(directory)
    start_s = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 24):
            pass
    return path.stat().st_size / (time.perf_counter() - start_s)


def run(directory: Path, device: str) -> list[dict[str, Any]]:
    """Two fresh processes: files on disk only, files in the page cache."""
    files = [p.stat().st_size for p in directory.iterdir()]
    rows = []
    speed = read_speed(directory)
    for cache in ("cold", "warm"):
        if cache == "cold":
            drop_from_page_cache(directory)
        command = [sys.executable, __file__, str(directory), "--device", device, "--measure"]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        row = json.loads(answer.splitlines()[-1])
        extra = row["host_peak_bytes"] - (row["weights_bytes"] if device == "cpu" else 0)
        rows.append(
            {
                "cache": cache,
                **row,
                "files_bytes": sum(files),
                "largest_file_bytes": max(files),
                "host_peak_beyond_device_copy_over_largest_file": extra / max(files),
                "disk_bytes_per_s": speed,
            }
        )
    return rows


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """The table, and what 32 layers would need at the same rates."""
    table = Table(title="Loading, bf16")
    columns = [
        "cache",
        "files GB",
        "weights GB",
        "load s",
        "CPU s",
        "host peak GB",
        "anonymous GB",
    ]
    for column in [*columns, "device GB", "(host peak - copy) / largest file"]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row["cache"],
            f"{row['files_bytes'] / GB:.2f}",
            f"{row['weights_bytes'] / GB:.2f}",
            f"{row['load_s']:.1f}",
            f"{row['cpu_s']:.1f}",
            f"{row['host_peak_bytes'] / GB:.2f}",
            f"{row['host_anonymous_bytes'] / GB:.2f}",
            f"{row['device_peak_bytes'] / GB:.2f}",
            f"{row['host_peak_beyond_device_copy_over_largest_file']:.2f}",
        )
    console.print(table)
    console.print(f"plain reading from this disk: {rows[0]['disk_bytes_per_s'] / GB:.2f} GB/s")
    layers = int(rows[0]["layers"])
    if layers < FULL_LAYERS:
        with torch.device("meta"):
            full = sum(2 * p.numel() for p in OpenVLAOFT(model_config(FULL_LAYERS)).parameters())
        grown = rows[0]["files_bytes"] + full - rows[0]["weights_bytes"]
        console.print(
            f"extrapolated to {FULL_LAYERS} layers: {full / GB:.1f} GB of weights in "
            f"{grown / GB:.1f} GB of files; "
            + ", ".join(
                f"{r['cache']} {r['load_s'] * grown / r['files_bytes']:.0f} s" for r in rows
            )
        )


def main() -> None:
    """Makes a checkpoint or measures one."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else "")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--make", action="store_true", help="write a synthetic checkpoint there")
    parser.add_argument("--layers", type=int, default=8, help="LLM layers of --make, 1 to 32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    console = Console(width=140)
    if arguments.make:
        make_checkpoint(arguments.directory, arguments.layers)
        return
    if arguments.measure:
        row = measure(arguments.directory, torch.device(arguments.device))
        sys.stdout.write(json.dumps(row) + "\n")
        return
    rows = run(arguments.directory, arguments.device)
    show(rows, console)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
