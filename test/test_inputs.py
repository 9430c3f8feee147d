from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from golden_cases import FILM_CHECKPOINT, read_image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vla_oft_ros.config import PreprocessingConfig
from vla_oft_ros.model import image_ops, image_ops_torch
from vla_oft_ros.model.inputs import (
    ImagePipeline,
    PromptTokenizer,
    action_labels,
    close_prompt,
    sequence_ids,
)
from vla_oft_ros.model.jpeg import jpeg_round_trip
from vla_oft_ros.model.small_tokenizer import CHARACTERS, WORDS, write_small_tokenizer
from vla_oft_ros.model.tokens import BOS_ID, EMPTY_ID, PAD_ID, STOP_ID, TokenLayout

MEAN = np.array([[0.48, 0.45, 0.40], [0.5, 0.5, 0.5]], dtype=np.float32)
STD = np.array([[0.23, 0.22, 0.22], [0.5, 0.5, 0.5]], dtype=np.float32)
TEMPLATE = [1, 512, 29901, 1724, 3158, 881, 278, 19964, 2125, 304]
"""BOS and the words before the instruction, as the real Llama-2 tokenizer numbers them."""
ENDING = [29973, 13, 3744, 29901, 29871]


def pipeline(size_px: int = 224, **options: bool) -> ImagePipeline:
    return ImagePipeline(
        size_px=size_px, mean=MEAN, std=STD, options=PreprocessingConfig(**options)
    )


def images_of_all_kinds() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    ramp = np.add.outer(np.arange(480), np.arange(640))[..., None] % 256
    return [
        generator.integers(0, 256, (480, 640, 3), dtype=np.uint8),
        (generator.integers(0, 2, (256, 256, 3)) * 255).astype(np.uint8),
        np.broadcast_to(ramp, (480, 640, 3)).astype(np.uint8),
        np.full((240, 320, 3), 255, dtype=np.uint8),
        np.zeros((128, 256, 3), dtype=np.uint8),
    ]


KINDS = ["noise", "black_and_white", "ramp", "white", "black"]


@pytest.fixture(params=range(len(KINDS)), ids=KINDS)
def image(request: pytest.FixtureRequest) -> np.ndarray:
    return images_of_all_kinds()[request.param]


def on_torch(image: np.ndarray) -> torch.Tensor:
    return torch.tensor(image)[None]


def test_torch_bicubic_equals_pil(image: np.ndarray) -> None:
    for size_px in (256, 96):
        actual = image_ops_torch.resize_bicubic(on_torch(image), size_px)[0].numpy()
        np.testing.assert_array_equal(actual, image_ops.resize_bicubic(image, size_px))


def test_torch_jpeg_equals_libjpeg_with_fast_decoding(image: np.ndarray) -> None:
    actual = jpeg_round_trip(on_torch(image))[0].numpy()
    np.testing.assert_array_equal(actual, image_ops.jpeg_round_trip(image))


def test_torch_jpeg_refuses_sizes_whose_edges_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        jpeg_round_trip(torch.zeros(1, 250, 256, 3, dtype=torch.uint8))


def test_torch_lanczos_and_crop_equal_numpy(image: np.ndarray) -> None:
    resized = image_ops.resize_lanczos(image, 224)
    np.testing.assert_array_equal(
        image_ops_torch.resize_lanczos(on_torch(image), 224)[0].numpy(), resized
    )
    np.testing.assert_array_equal(
        image_ops_torch.center_crop(on_torch(resized))[0].numpy(), image_ops.center_crop(resized)
    )


def test_torch_pipeline_equals_the_numpy_pipeline() -> None:
    images = images_of_all_kinds()[:3]
    for options in ({}, {"center_crop": False}, {"jpeg_roundtrip": False, "resize_to_256": False}):
        chain = pipeline(112, **options)
        expected = chain.pixel_values(chain.prepare(images))
        prepared = chain.prepare_on_device([torch.tensor(image) for image in images])
        actual = image_ops_torch.normalize_pixels(prepared, MEAN, STD)
        np.testing.assert_array_equal(actual.numpy(), expected)


def test_flat_image_stays_flat_through_every_step() -> None:
    flat = np.full((480, 640, 3), (200, 100, 50), dtype=np.uint8)
    prepared = pipeline().prepare([flat])[0].astype(int)
    assert prepared.shape == (224, 224, 3)
    assert np.ptp(prepared.reshape(-1, 3), axis=0).max() == 0
    assert np.abs(prepared[0, 0] - (200, 100, 50)).max() <= 2  # JPEG's colour space


def test_image_of_the_networks_size_is_not_resized_again() -> None:
    image = images_of_all_kinds()[0][:224, :224]
    assert pipeline().resize(image) is image


def test_resampling_weights_sum_to_one() -> None:
    for source, target in ((256, 224), (480, 224), (100, 224)):
        np.testing.assert_allclose(image_ops.lanczos_matrix(source, target).sum(axis=1), 1.0)
        total = image_ops_torch.bicubic_matrix(source, target).sum(axis=1) / 2**22
        np.testing.assert_allclose(total, 1.0, atol=1e-5)


def test_crop_keeps_the_centre_and_nine_tenths_of_the_area() -> None:
    lower, _, weight = image_ops.crop_grid(224)
    first, last = lower[0] + weight[0], lower[-1] + weight[-1]
    assert (last - first) / 223 == pytest.approx(np.sqrt(0.9), abs=1e-5)
    assert first + last == pytest.approx(223, abs=1e-4)


def test_pixel_values_hold_each_camera_twice_dino_first() -> None:
    images = [np.full((4, 4, 3), level, dtype=np.uint8) for level in (0, 255)]
    values = pipeline(4).pixel_values(images)
    assert values.shape == (12, 4, 4)
    np.testing.assert_allclose(
        values[:, 0, 0], [*(-MEAN / STD).flat, *((1 - MEAN) / STD).flat], rtol=1e-6
    )


@pytest.fixture(scope="module")
def golden_tokenizer(committed_golden_dir: Path) -> PromptTokenizer:
    return PromptTokenizer(committed_golden_dir / FILM_CHECKPOINT / "tokenizer.json")


@pytest.fixture(scope="module")
def small_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PromptTokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    write_small_tokenizer(directory)
    return PromptTokenizer(directory / "tokenizer.json")


@pytest.fixture(params=["golden_tokenizer", "small_tokenizer"])
def tokenizer(request: pytest.FixtureRequest) -> PromptTokenizer:
    chosen: PromptTokenizer = request.getfixturevalue(request.param)
    return chosen


def test_template_has_the_ids_of_the_real_tokenizer(tokenizer: PromptTokenizer) -> None:
    ids = tokenizer.prompt_ids("put the pepper into the pot").tolist()
    assert ids[: len(TEMPLATE)] == TEMPLATE
    assert ids[-len(ENDING) :] == ENDING


def test_instruction_is_lower_cased_and_nothing_else(tokenizer: PromptTokenizer) -> None:
    same = tokenizer.prompt_ids("Fold The SHIRT")
    assert same.tolist() == tokenizer.prompt_ids("fold the shirt").tolist()
    assert same.tolist() != tokenizer.prompt_ids("fold the shirt ").tolist()


def test_instruction_span_holds_the_tokens_that_the_instruction_changes(
    tokenizer: PromptTokenizer,
) -> None:
    ids = tokenizer.prompt_ids("fold the towel")
    span = tokenizer.instruction_span("fold the towel")
    assert ids[: span.start].tolist() == TEMPLATE
    assert ids[span.stop :].tolist() == ENDING


def test_empty_instruction_has_an_empty_span(tokenizer: PromptTokenizer) -> None:
    span = tokenizer.instruction_span("")
    assert span.start == span.stop


def test_small_tokenizer_knows_common_words_as_one_token(small_tokenizer: PromptTokenizer) -> None:
    for word in WORDS:
        span = small_tokenizer.instruction_span(word)
        assert span.stop - span.start == 1, word


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(min_size=1, max_size=30))
def test_small_tokenizer_gives_ids_of_its_vocabulary_for_any_text(
    text: str, small_tokenizer: PromptTokenizer
) -> None:
    ids = small_tokenizer.prompt_ids(text)
    assert ids.min() >= 1
    assert ids.max() < PAD_ID


def test_different_words_have_different_ids(small_tokenizer: PromptTokenizer) -> None:
    prompts = {tuple(small_tokenizer.prompt_ids(word)) for word in (*WORDS, *CHARACTERS.lower())}
    assert len(prompts) == len(set(WORDS) | set(CHARACTERS.lower()))


def test_prompt_is_closed_once() -> None:
    ids = np.array([1, 5])
    assert close_prompt(close_prompt(ids)).tolist() == [1, 5, EMPTY_ID]


def layout(prompt_len: int) -> TokenLayout:
    return TokenLayout(
        cameras=1,
        patches_per_camera=4,
        prompt_len=prompt_len,
        chunk_len=2,
        action_dim=3,
        has_proprio=True,
    )


def test_batch_is_padded_on_the_right_and_labels_actions_and_stop_only() -> None:
    prompts = [np.array([1, 7, 8, EMPTY_ID]), np.array([1, EMPTY_ID])]
    actions = [np.arange(31900, 31906), np.arange(31910, 31916)]
    ids = sequence_ids(prompts, actions)
    assert ids[0].tolist() == [1, 7, 8, EMPTY_ID, *actions[0], STOP_ID]
    assert ids[1].tolist() == [1, EMPTY_ID, *actions[1], STOP_ID, PAD_ID, PAD_ID]
    labels = action_labels(ids, [layout(4), layout(2)])
    assert labels[0].tolist() == [-100] * 4 + [*actions[0], STOP_ID]
    assert labels[1].tolist() == [-100] * 2 + [*actions[1], STOP_ID, -100, -100]


def test_inference_ids_need_no_actions() -> None:
    ids = sequence_ids([np.array([1, EMPTY_ID])], 3)
    assert ids.tolist() == [[1, EMPTY_ID, BOS_ID, BOS_ID, BOS_ID, STOP_ID]]


def test_recorded_images_and_live_images_are_prepared_by_the_same_code(
    committed_golden_dir: Path,
) -> None:
    """A camera image and its recording at policy size look the same to the network."""
    folder = committed_golden_dir / "golden"
    live = pipeline().prepare([read_image(folder / "img_raw480x640_cam_high.png")])[0]
    recorded = pipeline().prepare([read_image(folder / "img_policy224_cam_high.png")])[0]
    gap = np.abs(live.astype(int) - recorded.astype(int))
    assert gap.max() <= 1
    assert (gap > 0).mean() < 1e-3
