"""Every broken checkpoint is refused with an error that names what is wrong; nothing runs, stays
or is written.
"""

from __future__ import annotations

import gc
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from vla_oft_ros.aloha import load_profile
from vla_oft_ros.config import PolicyConfig
from vla_oft_ros.model.small_checkpoint import DATASET, SmallSize, make_random_checkpoint
from vla_oft_ros.policy import load_policy

TINY = SmallSize(
    width=16, layers=2, heads=2, dino_width=16, siglip_width=16, depth=2, image_px=28, chunk_len=3
)
MODEL = "model.safetensors"
INDEX = "model.safetensors.index.json"
HEAD = "action_head--0_checkpoint.pt"
PROPRIO = "proprio_projector--0_checkpoint.pt"
VISION = "vision_backbone--0_checkpoint.pt"
STATISTICS = "dataset_statistics.json"
Break = Callable[[Path], object]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("healthy") / "checkpoint"
    make_random_checkpoint(directory, size=TINY)
    return directory


@pytest.fixture(scope="module", autouse=True)
def only_new_objects_are_counted(healthy: Path) -> Iterator[None]:
    """Everything alive before the first test is set aside: collecting garbage stays quick."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def copy(healthy: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(healthy, tmp_path / "checkpoint"))


def edit_json(name: str, edit: Callable[[dict[str, Any]], Any]) -> Break:
    def change(directory: Path) -> None:
        content = json.loads((directory / name).read_text())
        edit(content)
        (directory / name).write_text(json.dumps(content))

    return change


def edit_config(edit: Callable[[dict[str, Any]], Any]) -> Break:
    return edit_json("config.json", edit)


def edit_statistics(edit: Callable[[dict[str, Any]], Any]) -> Break:
    return edit_json(STATISTICS, lambda content: edit(content[DATASET]))


def edit_tensors(name: str, edit: Callable[[dict[str, torch.Tensor]], Any]) -> Break:
    def change(directory: Path) -> None:
        path = directory / name
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            edit(tensors)
            save_file(tensors, path)
        else:
            tensors = torch.load(path, weights_only=True)
            edit(tensors)
            torch.save(tensors, path)

    return change


def truncate(name: str, keep: float) -> Break:
    return lambda d: os.truncate(d / name, int((d / name).stat().st_size * keep))


def write(name: str, content: bytes) -> Break:
    return lambda d: [(d / name).write_bytes(content)]


def remove(name: str) -> Break:
    return lambda d: (d / name).unlink()


class Payload:
    """A pickle that creates a file when it is run."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def executed_marker(directory: Path) -> Path:
    return directory.parent / "executed"


def pickled_code(directory: Path) -> None:
    (directory / HEAD).write_bytes(pickle.dumps(Payload(executed_marker(directory)), protocol=2))


def pickled_code_in_zip(directory: Path) -> None:
    torch.save({"module.model.fc1.weight": Payload(executed_marker(directory))}, directory / HEAD)


def split(directory: Path) -> dict[str, str]:
    """Turns the single file into two shards with an index."""
    tensors = load_file(directory / MODEL)
    names = sorted(tensors)
    weight_map = {}
    for index, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{index:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, directory / file)
        weight_map.update(dict.fromkeys(part, file))
    (directory / MODEL).unlink()
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


def missing_shard(directory: Path) -> None:
    split(directory)
    (directory / "model-00002-of-00002.safetensors").unlink()


def shards_without_index(directory: Path) -> None:
    split(directory)
    (directory / INDEX).unlink()


def escaping_shard(directory: Path) -> None:
    split(directory)
    outside = directory.parent / "model-00002-of-00002.safetensors"
    shutil.move(directory / outside.name, outside)
    text = (directory / INDEX).read_text()
    (directory / INDEX).write_text(text.replace(outside.name, f"../{outside.name}"))


def tensor_in_two_shards(directory: Path) -> None:
    split(directory)
    first, second = (directory / f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    tensors = load_file(second)
    tensors |= dict(list(load_file(first).items())[:1])
    save_file(tensors, second)


def single_and_sharded(directory: Path) -> None:
    shutil.copy(directory / MODEL, directory / "copy")
    split(directory)
    shutil.move(directory / "copy", directory / MODEL)


def two_heads(directory: Path) -> None:
    shutil.copy(directory / HEAD, directory / "action_head--5000_checkpoint.pt")


def foreign_header(directory: Path) -> None:
    header = json.dumps({"a": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 6]}}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(6)
    (directory / MODEL).write_bytes(content)


def two_data_sets(directory: Path) -> None:
    content = json.loads((directory / STATISTICS).read_text())
    content["another"] = content[DATASET]
    (directory / STATISTICS).write_text(json.dumps(content))


def drop(prefix: str) -> Callable[[dict[str, Any]], None]:
    def edit(content: dict[str, Any]) -> None:
        for key in [key for key in content if key.startswith(prefix)]:
            del content[key]

    return edit


def zero(key: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: [tensors[key].zero_()]


def rank_mismatch(tensors: dict[str, torch.Tensor]) -> None:
    key = next(key for key in tensors if key.endswith("attn.qkv.lora_B.default.weight"))
    tensors[key] = tensors[key][:, :-1].contiguous()


def blind_projector(tensors: dict[str, torch.Tensor]) -> None:
    for name in ("fc3.weight", "fc3.bias"):
        tensors[f"projector.{name}"].zero_()


LAYER0 = "language_model.model.layers.0"
BROKEN: dict[str, tuple[Break, str]] = {
    # files of the merged model
    "no config": (remove("config.json"), "config.json: expected a readable file"),
    "config is no JSON": (write("config.json", b"{oops"), "config.json: expected JSON"),
    "config is a list": (write("config.json", b"[]"), "config.json: expected a JSON object"),
    "config is not text": (write("config.json", b"\xff\xfe\x00"), "config.json: expected JSON"),
    "no model": (remove(MODEL), "expected model.safetensors or"),
    "truncated model": (truncate(MODEL, 0.7), "model.safetensors: truncated"),
    "empty model": (write(MODEL, b""), "model.safetensors: expected a safetensors file"),
    "model is noise": (write(MODEL, os.urandom(999)), "expected a safetensors file"),
    "model with a tail": (lambda d: [(d / MODEL).open("ab").write(b"x")], "too long"),
    "offsets do not fit shape": (foreign_header, "do not fit"),
    "integer weights": (
        edit_tensors(
            MODEL, lambda t: t.update({f"{LAYER0}.mlp.up_proj.weight": torch.ones(2, 2).int()})
        ),
        "expected one of F64, F32, F16, BF16; got I32",
    ),
    "missing tensor": (
        edit_tensors(MODEL, drop(f"{LAYER0}.mlp.up_proj")),
        f"{LAYER0}.mlp.up_proj.weight: missing, expected shape",
    ),
    "missing layer": (edit_tensors(MODEL, drop(LAYER0)), "layers.0"),
    "no word embeddings": (
        edit_tensors(MODEL, drop("language_model.model.embed_tokens")),
        "embed_tokens.weight: missing",
    ),
    "unexpected tensor": (
        edit_tensors(MODEL, lambda t: t.update({"projector.fc9.weight": torch.ones(2)})),
        "projector.fc9.weight: unexpected tensor",
    ),
    "tensor of another shape": (
        edit_tensors(MODEL, lambda t: t.update({"projector.fc2.bias": torch.ones(7)})),
        "projector.fc2.bias: expected shape (16,); got (7,)",
    ),
    "missing shard": (missing_shard, "named in model.safetensors.index.json, but missing"),
    "shards without index": (shards_without_index, "2 shards are there"),
    "shard outside the directory": (escaping_shard, "expected plain file names"),
    "tensor in two shards": (tensor_in_two_shards, "already in"),
    "single and sharded": (single_and_sharded, "got both"),
    "index without map": (
        lambda d: (split(d), (d / INDEX).write_text("{}")),
        "expected a weight_map",
    ),
    # parts
    "missing head": (remove(HEAD), "action_head: its file is missing"),
    "missing proprio projector": (remove(PROPRIO), "proprio_projector: its file is missing"),
    "missing FiLM": (remove(VISION), "vision_backbone: its file is missing"),
    "two heads": (two_heads, "action_head: expected one file"),
    "truncated head": (truncate(HEAD, 0.5), "refused or unreadable"),
    "head is noise": (write(HEAD, os.urandom(999)), "refused or unreadable"),
    "empty head": (write(HEAD, b""), "refused or unreadable"),
    "pickle with code": (pickled_code, "refused or unreadable"),
    "zip with code": (pickled_code_in_zip, "refused or unreadable"),
    "head is a list": (lambda d: torch.save([torch.ones(2)], d / HEAD), "expected a mapping"),
    "integer head": (
        edit_tensors(HEAD, lambda t: t.update({"module.model.fc2.bias": torch.ones(14).long()})),
        "got torch.int64",
    ),
    "head for another robot": (
        edit_tensors(HEAD, lambda t: t.update({"module.model.fc2.weight": torch.ones(7, 16)})),
        "as the statistics have 14 dimensions",
    ),
    "FiLM of one block missing": (
        edit_tensors(VISION, drop("vision_backbone.featurizer.blocks.0.scale")),
        "film.scale",
    ),
    "half a LoRA": (
        edit_tensors(VISION, drop("vision_backbone.featurizer.blocks.0.block.attn.qkv.lora_B")),
        "its lora_B is missing",
    ),
    "LoRA of two ranks": (edit_tensors(VISION, rank_mismatch), "do not fit weight"),
    # statistics
    "no statistics": (remove(STATISTICS), "dataset_statistics.json: expected a readable file"),
    "statistics are a list": (write(STATISTICS, b"[1]"), "expected a mapping from data set names"),
    "two data sets, no key": (two_data_sets, "set unnorm_key"),
    "statistics without action": (edit_statistics(lambda s: s.pop("action")), "action: "),
    "statistics without proprio": (edit_statistics(lambda s: s.pop("proprio")), "proprio: "),
    "statistics without bounds": (
        edit_statistics(lambda s: s["action"].pop("min")),
        "expected min and max; min missing",
    ),
    "statistics of seven dimensions": (
        edit_statistics(lambda s: s["proprio"].update(min=[0.0] * 7, max=[1.0] * 7)),
        "expected 14 proprio dimensions",
    ),
    "NaN in statistics": (
        edit_statistics(lambda s: s["action"]["min"].__setitem__(0, float("nan"))),
        "expected finite bounds",
    ),
    "bounds the wrong way round": (
        edit_statistics(lambda s: s["action"]["min"].__setitem__(3, 9.0)),
        "expected lower ≤ upper",
    ),
    "words in statistics": (
        edit_statistics(lambda s: s["action"].update(max=["a"] * 14)),
        "dataset_statistics.json: action",
    ),
    "statistics of another robot": (
        edit_statistics(lambda s: s["action"]["max"].__setitem__(6, 60.0)),
        "statistics_fit_robot",
    ),
    # Interbotix' branch 2.0 records 41 … 113 where every other ALOHA has 0 … 1 (aloha#20).
    "statistics of a gripper seen in other units": (
        edit_statistics(lambda s: s["proprio"]["max"].__setitem__(6, 113.0)),
        "proprio, do not fit the robot: dimension 6 is a gripper",
    ),
    # tokenizer and image preparation
    "no tokenizer": (remove("tokenizer.json"), "tokenizer.json: expected a tokenizer.json"),
    "tokenizer is no JSON": (write("tokenizer.json", b"?"), "expected a tokenizer.json"),
    "no preprocessor": (remove("preprocessor_config.json"), "preprocessor_config.json: expected"),
    "no spread of colours": (
        edit_json(
            "preprocessor_config.json",
            lambda c: c["tvf_normalize_params"][0].update(std=[0.0, 1.0, 1.0]),
        ),
        "three positive deviations",
    ),
    # config.json against the tensors
    "no heads of the vision towers": (
        edit_config(lambda c: c["vla_oft_ros"].pop("vision_heads")),
        "cannot be read from shapes",
    ),
    "vision heads that do not divide": (
        edit_config(lambda c: c["vla_oft_ros"].update(vision_heads=[3, 2])),
        "cannot be shared by 3 heads",
    ),
    "heads that do not divide": (
        edit_config(lambda c: c["text_config"].update(num_attention_heads=3)),
        "num_attention_heads",
    ),
    "config of another width": (
        edit_config(lambda c: c["text_config"].update(hidden_size=4096)),
        "text_config.hidden_size is 4096; the tensors need 16",
    ),
    "scaled rotary embedding": (
        edit_config(lambda c: c["text_config"].update(rope_scaling={"type": "linear"})),
        "rope_scaling",
    ),
    "epsilon is a word": (
        edit_config(lambda c: c["text_config"].update(rms_norm_eps="tiny")),
        "rms_norm_eps: expected a positive number",
    ),
    "text_config is a list": (edit_config(lambda c: c.update(text_config=[])), "text_config"),
    "unknown key in our section": (
        edit_config(lambda c: c["vla_oft_ros"].update(chunk_length=25)),
        "unknown key(s) chunk_length",
    ),
    "chunk length is a word": (
        edit_config(lambda c: c["vla_oft_ros"].update(chunk_len="25")),
        "chunk_len: expected a positive whole number",
    ),
    "unknown decoding": (
        edit_config(lambda c: c["vla_oft_ros"].update(decoding="telepathy")),
        "telepathy",
    ),
    "one camera twice": (
        edit_config(lambda c: c["vla_oft_ros"].update(cameras=["cam_high"] * 3)),
        "different camera names",
    ),
    # loads, but must not be used
    "NaN weights": (
        edit_tensors(MODEL, lambda t: [t["projector.fc2.weight"].fill_(float("nan"))]),
        "weights_finite: NaN or infinity in projector.fc2.weight",
    ),
    "infinite head": (
        edit_tensors(HEAD, lambda t: [t["module.model.fc1.bias"].fill_(float("inf"))]),
        "NaN or infinity in action_head.model.fc1.bias",
    ),
    "projector that shows nothing": (
        edit_tensors(MODEL, blind_projector),
        "image_dependence: the actions do not depend on the image of cam_high",
    ),
    "proprio projector of zeros": (
        edit_tensors(PROPRIO, zero("module.fc2.weight")),
        "proprio_dependence: the actions do not depend on proprio",
    ),
    "weights changed after saving": (
        edit_tensors(HEAD, lambda t: [t["module.model.fc2.bias"].add_(0.5)]),
        "fingerprint: actions differ",
    ),
    "fingerprint is noise": (write("fingerprint.json", b"{}"), "expected a stored fingerprint"),
}


def snapshot(directory: Path) -> dict[str, tuple[int, int]]:
    paths = [p for p in directory.rglob("*") if p.is_file()]
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in paths}


def living_tensors() -> int:
    gc.collect()
    return sum(type(thing) in (torch.Tensor, torch.nn.Parameter) for thing in gc.get_objects())


def refusal(directory: Path, **settings: Any) -> str:
    """The message with which a checkpoint is refused; the exception and what it holds are gone
    after.
    """
    config = PolicyConfig(checkpoint_dir=str(directory), device="cpu", **settings)
    with pytest.raises(ValueError) as caught:
        load_policy(config, profile=load_profile("sim"))
    return str(caught.value)


def test_healthy_checkpoint_passes_every_self_test(healthy: Path) -> None:
    config = PolicyConfig(checkpoint_dir=str(healthy), device="cpu")
    policy = load_policy(config, profile=load_profile("sim"))
    assert len(policy.self_tests) == 7
    assert all(result.passed for result in policy.self_tests)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_checkpoint_is_refused_by_name_and_leaves_nothing(name: str, copy: Path) -> None:
    damage, expected = BROKEN[name]
    damage(copy)
    files, tensors = snapshot(copy), living_tensors()
    message = refusal(copy)
    assert expected in message
    assert str(copy) in message
    assert not executed_marker(copy).exists()
    assert snapshot(copy) == files
    assert living_tensors() == tensors


def test_one_error_lists_everything_that_is_wrong(copy: Path) -> None:
    for name in ("no tokenizer", "truncated head", "unexpected tensor", "NaN in statistics"):
        BROKEN[name][0](copy)
    message = refusal(copy)
    for name in ("no tokenizer", "truncated head", "NaN in statistics"):
        assert BROKEN[name][1] in message


def test_directory_that_is_missing_is_named(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nowhere")


def test_unknown_data_set_is_answered_with_the_known_ones(healthy: Path) -> None:
    assert DATASET in refusal(healthy, unnorm_key="aloha_real")


def test_cameras_may_get_other_names_but_not_each_others(healthy: Path) -> None:
    swapped = ("cam_high", "cam_right_wrist", "cam_left_wrist")
    assert "cameras: expected the order of training" in refusal(healthy, cameras=swapped)
    renamed = ("front", "left", "right")
    config = PolicyConfig(checkpoint_dir=str(healthy), device="cpu", cameras=renamed)
    assert load_policy(config).cameras == renamed


def test_unknown_self_test_is_answered_with_the_known_ones(healthy: Path) -> None:
    assert "image_dependence" in refusal(healthy, skip_self_tests=("image_dependance",))


def test_failing_self_test_can_be_left_out_by_name(copy: Path) -> None:
    BROKEN["weights changed after saving"][0](copy)
    config = PolicyConfig(checkpoint_dir=str(copy), device="cpu", skip_self_tests=("fingerprint",))
    assert "fingerprint" not in {result.name for result in load_policy(config).self_tests}


def test_official_looking_checkpoint_that_lost_its_head_is_not_taken_for_a_discrete_one(
    copy: Path,
) -> None:
    edit_config(lambda c: [c["vla_oft_ros"].pop(key) for key in ("parts", "decoding")])(copy)
    (copy / HEAD).unlink()
    assert "action_head: missing, though" in refusal(copy)


def test_checkpoint_trained_on_another_robot_is_refused(healthy: Path) -> None:
    config = PolicyConfig(checkpoint_dir=str(healthy), device="cpu")
    with pytest.raises(ValueError, match="trained with profile 'sim', runs on 'interbotix_2_0'"):
        load_policy(config, profile=load_profile("interbotix_2_0"))
