"""Meta's folder: back to the bit, in 1 and 8 files, and the reference's own loader finds the same model in it."""

from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch

from herd.bench.oracles import meta_world, random_model
from herd.config import ModelConfig, MoEConfig, RopeScaling, SpecialIds, VisionConfig, preset
from herd.core.files import read_json, write_json
from herd.errors import HerdError
from herd.model.formats import huggingface, meta
from herd.model.formats.weights import Weights, assemble

SPECIAL = SpecialIds(bos=1, end_of_text=2, eom=3, eot=4, pad=5, image_start=6, image_end=7, patch=8)
SCALING = RopeScaling(factor=16.0, low_freq_factor=1.0, high_freq_factor=1.0, original_max_positions=8192)


def small(**changes: object) -> ModelConfig:
    """Widths that eight ranks can share."""
    base = replace(
        preset("tiny", vocab_size=320, special=SPECIAL),
        dim=64,
        num_heads=8,
        num_kv_heads=8,
        head_dim=8,
        dense_ffn_dim=128,
        moe=MoEConfig(num_experts=4, ffn_dim=64),
        vision=VisionConfig(
            image_size=32, patch_size=8, dim=64, num_layers=2, num_heads=8, adapter_dim=48, max_tiles=3
        ),
        chunk_size=16,
        temperature_floor=4,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


CONFIGS = {
    "scout-like": small(rope_scaling=SCALING),
    "maverick-like": small(moe=MoEConfig(num_experts=8, ffn_dim=96, every=2), qk_norm=False, num_heads=8),
    "top-2, grouped heads, no temperature": small(
        moe=MoEConfig(num_experts=4, ffn_dim=64, top_k=2), num_heads=16, head_dim=4, temperature_tuning=False
    ),
}


@pytest.mark.parametrize(("case", "ranks"), [(case, ranks) for case in CONFIGS for ranks in (1, 8)])
def test_a_model_goes_to_meta_and_back_to_the_bit(case: str, ranks: int, tmp_path: Path) -> None:
    model = random_model(CONFIGS[case], seed=0).bfloat16()
    meta.write(Weights.of(model), tmp_path, ranks=ranks, dtype=torch.bfloat16)
    assert len(list(tmp_path.glob("consolidated.*.pth"))) == ranks
    again = assemble(meta.open_folder(tmp_path))
    assert again.config == model.config
    for (name, one), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other) and one.dtype == other.dtype, name


@pytest.mark.parametrize(("case", "ranks"), zip(CONFIGS, [1, 8, 2], strict=True))
def test_the_reference_loads_our_folder_and_gives_our_logits(case: str, ranks: int, tmp_path: Path) -> None:
    pytest.importorskip("llama_models")
    pytest.importorskip("fairscale")
    from llama_models.checkpoint import maybe_reshard_state_dict
    from llama_models.llama4.args import ModelArgs
    from llama_models.llama4.datatypes import MaskedEmbedding, TransformerInput
    from llama_models.llama4.model import Transformer as Reference

    config = CONFIGS[case]
    model = random_model(config, seed=0)
    meta.write(Weights.of(model), tmp_path, ranks=ranks, dtype=torch.float32)
    count = 50
    ids = torch.randint(10, 300, (count,), generator=torch.Generator().manual_seed(2))
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1
    per_tile = config.vision.tokens_per_tile
    ids[3 : 3 + 2 * per_tile] = SPECIAL.patch
    with meta_world():
        args = ModelArgs(**read_json(tmp_path / "params.json"), max_seq_len=64, max_batch_size=1)
        theirs = Reference(args).float()
        with redirect_stdout(StringIO()):
            state = maybe_reshard_state_dict(
                sorted(tmp_path.glob("*.pth")),
                n_kv_heads=args.n_kv_heads,
                moe_num_experts=args.moe_args.num_experts,
            )
        torch.set_default_dtype(torch.float32)
        reported = theirs.load_state_dict(state, strict=True)
        assert not reported.missing_keys and not reported.unexpected_keys
        mask = (ids == SPECIAL.patch)[None, :, None]
        empty = torch.zeros(1, count, config.dim)
        images = theirs.vision_embeddings([[pixels]], mask, empty)
        wanted = theirs(
            TransformerInput(
                tokens=ids[None], tokens_position=0, image_embedding=MaskedEmbedding(embedding=images, mask=mask)
            )
        ).logits[0]
    from herd.core.batch import Images

    with torch.no_grad():
        hidden = model(
            ids,
            positions_N=torch.arange(count),
            starts_S=torch.tensor([0, count], dtype=torch.int32),
            images=Images(tiles=pixels, rows=torch.nonzero(ids == SPECIAL.patch)[:, 0]),
        )
        assert (model.unembed(hidden) - wanted).abs().max() <= 1e-5


def test_released_shapes_give_released_params() -> None:
    from herd.model.formats.meta_params import config_from_params, hidden_widths, params_of

    vision = VisionConfig(image_size=336, patch_size=14, dim=1408, num_layers=34, num_heads=16, adapter_dim=4096)
    scout = small(
        vocab_size=202_048,
        dim=5120,
        num_layers=48,
        num_heads=40,
        num_kv_heads=8,
        head_dim=128,
        dense_ffn_dim=16_384,
        moe=MoEConfig(num_experts=16, ffn_dim=8192),
        vision=vision,
        chunk_size=8192,
        temperature_floor=8192,
        rope_scaling=SCALING,
        special=meta_ids(),
    )
    params = params_of(scout)
    assert (params["ffn_dim_multiplier"], params["ffn_exp"], params["multiple_of"]) == (1.2, 4.0, 2048)
    released = {key: value for key, value in params.items() if key not in {"herd", "rope_scaling_factor"}}
    for key in ("attn_temperature_tuning", "floor_scale", "attn_scale", "rope_high_freq_factor"):
        released.pop(key)  # what the released file does not have
    read = config_from_params(released, Path("params.json"))
    assert replace(read, max_positions=scout.max_positions, vision=vision) == replace(scout, vision=vision)
    assert hidden_widths(5120, params | {"auto_scale_F": True}) == (16_384, 8192)


def meta_ids() -> SpecialIds:
    from herd.model.formats.meta_params import RELEASED_IDS

    return RELEASED_IDS


@pytest.mark.parametrize(("dense", "expert"), [(768, 384), (24, 16), (40, 24), (41, 41), (1000, 250), (128, 4096)])
def test_hidden_widths_survive_the_factors(dense: int, expert: int) -> None:
    from herd.model.formats.meta_params import config_from_params, params_of

    config = small(dense_ffn_dim=dense, moe=MoEConfig(num_experts=4, ffn_dim=expert))
    read = config_from_params(params_of(config), Path("params.json"))
    assert (read.dense_ffn_dim, read.moe.ffn_dim) == (dense, expert)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"head_dim": 16}, "head_dim=16 has no place"),
        ({"rope_scaling": replace(SCALING, original_max_positions=32)}, "original_max_positions=32 has no place"),
        ({"dense_ffn_dim": 127, "moe": MoEConfig(num_experts=4, ffn_dim=16)}, "cannot be cut for 8 shards"),
        ({"num_kv_heads": 2}, "num_kv_heads=2 cannot be cut for 8 shards"),
    ],
)
def test_what_meta_has_no_place_for_is_refused(change: dict[str, object], reason: str, tmp_path: Path) -> None:
    model = random_model(small(**change), seed=0)
    with pytest.raises(HerdError, match=reason):
        meta.write(Weights.of(model), tmp_path, ranks=8, dtype=torch.float32)
    assert list(tmp_path.iterdir()) == []


def test_folders_that_are_not_whole_are_refused_by_name(tmp_path: Path) -> None:
    meta.write(Weights.of(random_model(small(), seed=0)), tmp_path, ranks=2, dtype=torch.float32)
    second = tmp_path / "consolidated.01.pth"
    state = torch.load(second, weights_only=True)
    extras = {
        "rope.freqs": torch.ones(3),
        "layers.0.feed_forward.running_gate_stats_3E": torch.ones(3, 4),
        "layers.0.feed_forward.expert_activation_DE": torch.ones(4),
        "layers.0.attention.wo._extra_state": torch.ones(1),
        "vision_embeddings.vision_adapter.mlp.c_fc.bias": torch.ones(0),
    }
    torch.save(state | extras, second)
    meta.open_folder(tmp_path)  # buffers of training are passed over
    torch.save({**state, "surplus": torch.ones(1)}, second)
    with pytest.raises(HerdError, match=r"consolidated\.01\.pth: surplus is not a tensor"):
        meta.open_folder(tmp_path)
    torch.save({name: x for name, x in state.items() if name != "output.weight"}, second)
    with pytest.raises(HerdError, match=r"consolidated\.01\.pth: output\.weight is missing"):
        meta.open_folder(tmp_path)
    torch.save({**state, "output.weight": torch.ones(320, 64)}, second)
    with pytest.raises(HerdError, match=r"output\.weight has shape \(320, 64\), .* \(160, 64\)"):
        meta.open_folder(tmp_path)
    second.rename(tmp_path / "consolidated.02.pth")
    with pytest.raises(HerdError, match=r"has not all of consolidated\.00\.pth"):
        meta.open_folder(tmp_path)
    params = read_json(tmp_path / "params.json")
    write_json(tmp_path / "params.json", {key: value for key, value in params.items() if key != "moe_args"})
    with pytest.raises(HerdError, match=r"not a complete params\.json of Llama 4: KeyError"):
        meta.open_folder(tmp_path)


def test_hugging_face_meta_hugging_face_keeps_every_file(tmp_path: Path) -> None:
    first, between, last = (tmp_path / name for name in ("a", "b", "c"))
    for folder in (first, between, last):
        folder.mkdir()
    model = random_model(CONFIGS["maverick-like"], seed=0)
    huggingface.save(model, first)
    huggingface.save_processor(model.config, first)
    meta.write(huggingface.open_folder(first), between, ranks=8, dtype=torch.bfloat16)
    huggingface.write(meta.open_folder(between), last, dtype=torch.bfloat16)
    for path in [*first.glob("model*"), first / "config.json"]:
        assert path.read_bytes() == (last / path.name).read_bytes(), path.name
