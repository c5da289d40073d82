"""Our random models in two independent implementations: transformers, and Meta's reference.

A peer is a function from one request to its logits, made from the very parameters of our `Transformer`, in this process
and in fp32. Meta's reference (llama-models 0.3.0) is written for GPUs and fairscale; `meta_world` is what it needs on a
CPU. Only its prefill is an oracle: its decoding sees too much past a chunk edge. Its image preprocessing is not used.
"""

# N tokens, V vocabulary

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from herd.config import ModelConfig
from herd.core.batch import Images
from herd.data.media.image import ImageProcessor, Tiles, normalise
from herd.model.formats.config_json import config_to_json
from herd.model.formats.huggingface import rules
from herd.model.pack import pack_sequences
from herd.model.transformer import Transformer


@dataclass(frozen=True, kw_only=True)
class OracleRequest:
    """One document or request: its tokens, and the tiles of its pictures in the order of their patch tokens."""

    tokens_N: Tensor
    """int64."""
    tiles: Tensor | None = None
    """fp32 [tiles, 3, side, side], normalised."""


Peer = Callable[[OracleRequest], Tensor]
"""Logits [N, V] of a single request."""


def random_model(config: ModelConfig, seed: int, scale: float = 0.06) -> Transformer:
    """A model whose every parameter is drawn: norms around 1, all else around 0."""
    generator = torch.Generator().manual_seed(seed)
    model = Transformer(config)
    for name, parameter in model.named_parameters():
        is_norm = "norm" in name and name.endswith("weight")
        nn.init.normal_(parameter, 1.0 if is_norm else 0.0, scale, generator=generator)
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def ours(model: Transformer, requests: list[OracleRequest]) -> list[Tensor]:
    """Logits of requests that are packed into one forward."""
    pack = pack_sequences([request.tokens_N for request in requests])
    tiles = [request.tiles for request in requests if request.tiles is not None]
    patch = model.config.special.patch
    assert patch is not None, "parity is shown of models that see"
    rows = torch.nonzero(pack.tokens_N == patch)[:, 0]
    images = Images(tiles=torch.cat(tiles), rows=rows) if tiles else None
    return list(model.unembed(model.forward_packed(pack, images=images)).split(pack.lengths))


def to_transformers(model: Transformer) -> Any:
    """The same model as transformers' Llama4ForConditionalGeneration."""
    import transformers

    raw = config_to_json(model.config, torch.float32)
    theirs = transformers.Llama4ForConditionalGeneration(transformers.Llama4Config(**raw))
    parameters = dict(model.named_parameters())
    state = {
        name: part
        for mine, rule in rules(model.config).items()
        for name, part in zip(rule.names, rule.split(parameters[mine]), strict=True)
    }
    theirs.load_state_dict(state, strict=True)
    return theirs.eval().requires_grad_(False)


def transformers_peer(model: Transformer) -> Peer:
    theirs = to_transformers(model)

    @torch.inference_mode()
    def logits(request: OracleRequest) -> Tensor:
        seen = {} if request.tiles is None else {"pixel_values": request.tiles}
        return theirs(input_ids=request.tokens_N[None], use_cache=False, **seen).logits[0]

    return logits


@contextmanager
def meta_world() -> Iterator[None]:
    """One gloo rank without a network, and `Tensor.cuda` that stays on the CPU: Meta's KV cache calls it."""
    from fairscale.nn.model_parallel import initialize

    cuda = Tensor.cuda
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    with redirect_stdout(None):  # fairscale announces its groups
        initialize.initialize_model_parallel(1)
    Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    try:
        yield
    finally:
        Tensor.cuda = cuda  # type: ignore[method-assign]
        initialize.destroy_model_parallel()
        torch.distributed.destroy_process_group()


def to_meta(model: Transformer, longest: int) -> Any:
    """The same model as Meta's reference, for requests of at most `longest` tokens; within `meta_world`."""
    from llama_models.llama4 import args
    from llama_models.llama4.model import Transformer as Reference

    config, vision, scaling = model.config, model.config.vision, model.config.rope_scaling
    assert vision is not None, "Meta's model has an encoder always"
    assert config.head_dim * config.num_heads == config.dim, "the reference has no head width of its own"
    assert scaling is None or (scaling.low_freq_factor, scaling.original_max_positions) == (1.0, 8192)
    theirs = Reference(
        args.ModelArgs(
            dim=config.dim,
            n_layers=config.num_layers,
            n_heads=config.num_heads,
            n_kv_heads=config.num_kv_heads,
            vocab_size=config.vocab_size,
            ffn_dim_multiplier=1.0,
            ffn_exp=4.0,  # hidden widths come with the parameters below
            multiple_of=8,
            norm_eps=config.norm_eps,
            attention_chunk_size=config.chunk_size,
            rope_theta=config.rope_theta,
            use_scaled_rope=scaling is not None,
            rope_scaling_factor=scaling.factor if scaling else None,
            rope_high_freq_factor=scaling.high_freq_factor if scaling else None,
            nope_layer_interval=config.nope_every,
            use_qk_norm=config.qk_norm,
            attn_temperature_tuning=config.temperature_tuning,
            floor_scale=config.temperature_floor,
            attn_scale=config.temperature_scale,
            vision_args=args.VisionArgs(
                image_size=args.Size(height=vision.image_size, width=vision.image_size),
                patch_size=args.Size(height=vision.patch_size, width=vision.patch_size),
                dim=vision.dim,
                n_layers=vision.num_layers,
                n_heads=vision.num_heads,
                mlp_ratio=vision.mlp_dim / vision.dim,
                output_dim=vision.adapter_dim,
                pixel_shuffle_ratio=0.5,
            ),
            moe_args=args.MoEArgs(
                num_experts=config.moe.num_experts,
                top_k=config.moe.top_k,
                interleave_moe_layer_step=config.moe.every,
            ),
            max_batch_size=1,
            max_seq_len=longest,
        )
    ).float()
    left = set(dict(theirs.named_parameters()))
    for name, tensor in meta_parameters(model).items():
        left.remove(name)
        place, _, last = name.rpartition(".")
        setattr(theirs.get_submodule(place), last, nn.Parameter(tensor.contiguous(), requires_grad=False))
    assert not left, left
    return theirs.eval()


def meta_parameters(model: Transformer) -> dict[str, Tensor]:
    """Our parameters by the names of the reference's modules."""
    config = model.config
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    encoder = "vision_embeddings.vision_encoder"
    whole = {
        "embedding": "tok_embeddings",
        "unembedding": "output",
        "vision.patches": f"{encoder}.conv1._linear",
        "vision.class_token": f"{encoder}.class_embedding",
        "vision.positions": f"{encoder}.positional_embedding_vlm",
        "vision.norm_before": f"{encoder}.ln_pre",
        "vision.norm_after": f"{encoder}.ln_post",
        "vision.adapter_in": "vision_embeddings.vision_adapter.mlp.c_fc",
        "vision.adapter_out": "vision_embeddings.vision_adapter.mlp.c_proj",
        "vision.projector": "vision_projection",
    }
    parts = {
        "vision.layers.": {
            "attention_norm": "ln_1", "mlp_norm": "ln_2", "qkv": "attn.wq attn.wk attn.wv", "out": "attn.wo",
            "up": "mlp.c_fc", "down": "mlp.c_proj",
        },
        "layers.": {
            "attention.qkv": "attention.wq attention.wk attention.wv", "attention.out": "attention.wo",
            "ffn.router": "feed_forward.router_DE",
            "ffn.gate_up_EDF": "feed_forward.experts.w1 feed_forward.experts.w3",
            "ffn.down_EFD": "feed_forward.experts.w2",
            "ffn.shared.gate_up": "feed_forward.shared_expert.w1 feed_forward.shared_expert.w3",
            "ffn.shared.down": "feed_forward.shared_expert.w2",
            "ffn.gate_up": "feed_forward.w1 feed_forward.w3",
            "ffn.down": "feed_forward.w2",
        },
    }  # fmt: skip
    table: dict[str, Tensor] = {}
    parameters: Iterable[tuple[str, Tensor]] = model.named_parameters()
    for name, tensor in parameters:
        stem, dot, kind = name.rpartition(".")
        if kind not in {"weight", "bias"}:
            stem, dot, kind = name, "", ""
        places = [whole.get(stem, stem)]
        for prefix, names in parts.items():
            if stem.startswith(prefix):
                index, _, inner = stem.removeprefix(prefix).partition(".")
                there = prefix if prefix == "layers." else f"{encoder}.transformer.resblocks."
                places = [f"{there}{index}.{place}" for place in names.get(inner, inner).split()]
        if name.endswith("router.weight"):
            dot, kind, tensor = "", "", tensor.T
        # Gate and up share a matrix with us, as do q, k and v.
        axis = -1 if "gate_up_EDF" in name else 0
        sizes = [heads, kv_heads, kv_heads] if name.endswith("attention.qkv.weight") else len(places)
        split = tensor.split(sizes, axis) if isinstance(sizes, list) else tensor.chunk(sizes, axis)
        table |= {f"{place}{dot}{kind}": part for place, part in zip(places, split, strict=True)}
    return table


def meta_peer(model: Transformer, longest: int) -> Peer:
    from llama_models.llama4.datatypes import MaskedEmbedding, TransformerInput

    theirs, patch = to_meta(model, longest), model.config.special.patch
    assert patch is not None

    @torch.inference_mode()
    def logits(request: OracleRequest) -> Tensor:
        tokens = request.tokens_N[None]
        pictures = None
        if request.tiles is not None:
            mask = torch.eq(tokens, patch)[..., None]
            features = theirs.vision_embeddings([[request.tiles]], mask, theirs.tok_embeddings(tokens))
            pictures = MaskedEmbedding(embedding=features, mask=mask)
        output = theirs(TransformerInput(tokens=tokens, tokens_position=0, image_embedding=pictures))
        return output.logits[0]

    return logits


def random_request(config: ModelConfig, texts: list[int], pictures: list[tuple[int, int]], seed: int) -> OracleRequest:
    """Runs of `texts[i]` random tokens, each followed by a picture cut to `pictures[i]` (rows, columns) of tiles."""
    assert len(pictures) <= len(texts)
    generator = torch.Generator().manual_seed(seed)
    special = config.special
    assert config.vision is not None and special.patch is not None
    assert special.image_start is not None and special.image_end is not None
    side = config.vision.image_size
    processor = ImageProcessor(config.vision)
    ids = {"<|image_start|>": special.image_start, "<|image_end|>": special.image_end, "<|patch|>": special.patch}
    taken = max(index for index in asdict(special).values() if index is not None) + 1
    tokens: list[int] = []
    tiles: list[Tensor] = []
    for text, shape in zip_longest(texts, pictures):
        tokens += torch.randint(taken, config.vocab_size, (text,), generator=generator).tolist()
        if shape is not None:
            count = shape[0] * shape[1]
            pixels = torch.zeros(count + (count > 1), 3, side, side, dtype=torch.uint8).random_(generator=generator)
            # Separators are tokens like any other to the model: here, all are the first that is not special.
            names = processor.tokens(Tiles(pixels=pixels, rows=shape[0], columns=shape[1]))
            tokens += [ids.get(name, taken) for name in names]
            tiles.append(normalise(pixels))
    return OracleRequest(tokens_N=torch.tensor(tokens), tiles=torch.cat(tiles).float() if tiles else None)
