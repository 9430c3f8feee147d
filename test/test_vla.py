"""Laws of the network on a model of a few thousand weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from vla_oft_ros.model.action_head import HeadKind
from vla_oft_ros.model.film import Modulation, mean_language_embedding, modulate
from vla_oft_ros.model.inputs import ModelInputs, sequence_ids
from vla_oft_ros.model.llm import LlamaConfig
from vla_oft_ros.model.small_checkpoint import _randomize
from vla_oft_ros.model.tokens import EMPTY_ID
from vla_oft_ros.model.vision import TowerConfig
from vla_oft_ros.model.vla import ModelConfig, OpenVLAOFT

WIDTH = 16
TOWER = TowerConfig(
    width=12,
    depth=3,
    heads=2,
    mlp_hidden=20,
    patch_px=4,
    grid=2,
    class_token=True,
    registers=2,
    layer_scale=True,
    pooling=False,
    film_width=WIDTH,
)
CONFIG = ModelConfig(
    dino=TOWER,
    siglip=replace(
        TOWER, width=8, class_token=False, registers=0, layer_scale=False, pooling=True
    ),
    llm=LlamaConfig(
        vocab=32064,
        width=WIDTH,
        layers=2,
        heads=2,
        kv_heads=2,
        mlp_hidden=24,
        rms_eps=1e-6,
        rope_theta=1e4,
    ),
    projector_hidden=24,
    head=HeadKind.L1,
    head_hidden=16,
    head_blocks=2,
    cameras=3,
    chunk_len=4,
    action_dim=5,
    proprio_dim=6,
    vocab_end=32000,
    action_bins=256,
)
PROMPTS = [np.array([1, 40, 50, 60, EMPTY_ID]), np.array([1, 70, EMPTY_ID])]


def make(config: ModelConfig = CONFIG) -> OpenVLAOFT:
    model = OpenVLAOFT(config)
    _randomize(model, torch.Generator().manual_seed(0))
    return model.double().eval()


def make_inputs(config: ModelConfig = CONFIG, rows: int = 1) -> ModelInputs:
    generator = torch.Generator().manual_seed(1)
    side = config.dino.image_px
    pixels = torch.randn(rows, 6 * config.cameras, side, side, generator=generator)
    proprio = torch.randn(rows, config.proprio_dim, generator=generator)
    prompts = PROMPTS[:rows]
    return ModelInputs(
        pixel_values=pixels.double(),
        input_ids=sequence_ids(prompts, config.chunk_len * config.action_dim),
        prompt_lens=tuple(len(prompt) for prompt in prompts),
        proprio=proprio.double() if config.proprio_dim else None,
    )


def without_film(config: ModelConfig) -> ModelConfig:
    return replace(
        config,
        dino=replace(config.dino, film_width=0),
        siglip=replace(config.siglip, film_width=0),
    )


@torch.inference_mode()
def test_chunk_has_the_configured_shape() -> None:
    output = make()(make_inputs())
    assert output.actions.shape == (1, 4, 5)
    assert output.action_hidden.shape == (1, 20, WIDTH)
    assert output.positions.tolist() == list(range(CONFIG.layout(5).length))


@torch.inference_mode()
def test_rows_of_a_padded_batch_do_not_touch_each_other() -> None:
    """Without FiLM, whose average counts PAD as the official code does, each row equals itself
    alone.
    """
    model = make(without_film(CONFIG))
    batch = make_inputs(rows=2)
    together = model(batch).actions
    for row, prompt in enumerate(PROMPTS):
        alone = ModelInputs(
            pixel_values=batch.pixel_values[row : row + 1],
            input_ids=sequence_ids([prompt], 20),
            prompt_lens=(len(prompt),),
            proprio=batch.proprio[row : row + 1] if batch.proprio is not None else None,
        )
        torch.testing.assert_close(model(alone).actions[0], together[row], atol=1e-6, rtol=0)


@torch.inference_mode()
def test_film_of_zeros_is_no_film() -> None:
    model = make()
    plain = make(without_film(CONFIG))
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if ".film." not in k})
    for name, parameter in model.named_parameters():
        if ".film." in name:
            parameter.zero_()
    assert torch.equal(model(make_inputs()).actions, plain(make_inputs()).actions)


@torch.inference_mode()
def test_stored_modulations_give_the_same_actions() -> None:
    model, inputs = make(), make_inputs()
    assert torch.equal(
        model(inputs, modulations=model.film(inputs)).actions, model(inputs).actions
    )


def test_film_scales_by_one_plus_gamma_and_shifts() -> None:
    x = torch.tensor([[[2.0, 3.0]]])
    modulation = Modulation(torch.tensor([[[0.5, 0.0]]]), torch.tensor([[[0.0, 1.0]]]))
    assert modulate(x, modulation).tolist() == [[[3.0, 4.0]]]


def test_language_average_leaves_action_slots_out() -> None:
    embeddings = torch.tensor([[[1.0], [100.0], [3.0]]])
    is_action = torch.tensor([[False, True, False]])
    assert mean_language_embedding(embeddings, is_action).tolist() == [[2.0]]


@torch.inference_mode()
def test_cameras_are_told_apart() -> None:
    model, inputs = make(), make_inputs()
    order = torch.arange(18).view(3, 6)[[0, 2, 1]].flatten()
    swapped = replace(inputs, pixel_values=inputs.pixel_values[:, order])
    assert (model(swapped).actions - model(inputs).actions).abs().max() > 1e-4


@torch.inference_mode()
def test_ids_of_action_slots_do_not_matter() -> None:
    model, inputs = make(), make_inputs()
    ids = inputs.input_ids.clone()
    ids[:, 5:-1] = 31800
    assert torch.equal(model(replace(inputs, input_ids=ids)).actions, model(inputs).actions)


@torch.inference_mode()
def test_last_vision_block_is_never_run() -> None:
    model, inputs = make(), make_inputs()
    before = model(inputs).actions
    for tower in (model.vision_backbone.featurizer, model.vision_backbone.fused_featurizer):
        for module in (tower.blocks[-1], tower.norm):
            for parameter in module.parameters():
                parameter.fill_(float("nan"))
    assert torch.equal(model(inputs).actions, before)


@torch.inference_mode()
def test_discrete_decoding_picks_the_likeliest_token_of_each_slot() -> None:
    config = replace(CONFIG, head=HeadKind.DISCRETE, head_hidden=0, head_blocks=0)
    model = make(config)
    output = model(make_inputs(config))
    logits = model.language_model.lm_head(output.action_hidden)
    assert output.token_ids is not None
    assert torch.equal(output.token_ids, logits.argmax(-1))
    assert torch.equal(output.actions.flatten(), model.bins.decode(output.token_ids).flatten())


@torch.inference_mode()
def test_diffusion_with_the_same_noise_gives_the_same_actions_and_others_else() -> None:
    config = replace(CONFIG, head=HeadKind.DIFFUSION)
    model, inputs = make(config), make_inputs(config)
    noise = torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(3))
    first, again = (model(inputs, noise=noise, diffusion_steps=5).actions for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, model(inputs, noise=-noise, diffusion_steps=5).actions)
    assert first.abs().max() <= 1.0  # the last step returns a clipped sample


@torch.inference_mode()
def test_diffusion_context_is_embedded_once_for_all_steps() -> None:
    config = replace(CONFIG, head=HeadKind.DIFFUSION)
    model = make(config)
    calls: list[Tensor] = []
    model.vision_backbone.register_forward_hook(lambda module, args, out: calls.append(out))
    model(make_inputs(config), diffusion_steps=10)
    assert len(calls) == 1


@torch.inference_mode()
def test_autoregressive_tokens_equal_those_of_full_causal_passes() -> None:
    config = replace(
        without_film(CONFIG),
        head=HeadKind.AUTOREGRESSIVE,
        head_hidden=0,
        head_blocks=0,
        cameras=1,
        chunk_len=1,
        proprio_dim=0,
    )
    model, inputs = make(config), make_inputs(config)
    output = model(inputs)
    llm = model.language_model
    patches = model.projector(model.vision_backbone(inputs.pixel_values))
    ids = PROMPTS[0].tolist()
    for _ in range(config.action_dim):
        prompt = llm.model.embed_tokens(torch.tensor([ids]))
        x = torch.cat([prompt[:, :1], patches, prompt[:, 1:]], dim=1)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        ids.append(int(llm.lm_head(llm.model(x, mask=mask).hidden[0, -1]).argmax()))
    assert output.token_ids is not None
    assert output.token_ids[0].tolist() == ids[len(PROMPTS[0]) :]
    assert output.actions.shape == (1, 1, config.action_dim)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values": torch.zeros(1, 12, 8, 8)}, "for 3 cameras"),
        ({"proprio": None}, "proprio: expected 6 numbers; got none"),
        ({"prompt_lens": (4,)}, "input_ids: expected"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()(replace(make_inputs(), **change))


def test_loss_falls_when_trained() -> None:
    model, inputs = make().float(), make_inputs(rows=2).to(torch.device("cpu"), torch.float32)
    targets = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(4)) * 2 - 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = torch.nn.functional.l1_loss(model(inputs).actions, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_official_7b_layout_has_the_official_number_of_tensors_and_weights() -> None:
    """982 tensors and 7 541 237 184 weights in the base model; FiLM adds 456 241 920 (oft training
    log).
    """
    dino = TowerConfig(
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
    )
    siglip = TowerConfig(
        width=1152,
        depth=27,
        heads=16,
        mlp_hidden=4304,
        patch_px=14,
        grid=16,
        class_token=False,
        registers=0,
        layer_scale=False,
        pooling=True,
    )
    llm = LlamaConfig(
        vocab=32064,
        width=4096,
        layers=32,
        heads=32,
        kv_heads=32,
        mlp_hidden=11008,
        rms_eps=1e-6,
        rope_theta=1e4,
    )
    config = replace(
        CONFIG,
        dino=dino,
        siglip=siglip,
        llm=llm,
        projector_hidden=8704,
        head=HeadKind.DISCRETE,
        proprio_dim=0,
    )
    film = replace(
        config, dino=replace(dino, film_width=4096), siglip=replace(siglip, film_width=4096)
    )
    with torch.device("meta"):
        base, wrapped = (list(OpenVLAOFT(c).parameters()) for c in (config, film))
    assert len(base) == 982
    assert sum(p.numel() for p in base) == 7_541_237_184
    assert sum(p.numel() for p in wrapped) - 7_541_237_184 == 456_241_920
