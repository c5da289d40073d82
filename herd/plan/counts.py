"""What a model's shape holds: parameters, bytes of weights, bytes of the KV cache.

Nothing is built and torch is not imported; `tests/unit/test_plan.py` holds the counts against models on the meta
device. Activations, the runtime's own memory and training are left out.
"""

from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from typing import Literal, get_args

from herd.config import EngineConfig, LoraConfig, ModelConfig
from herd.config.engine import DEFAULT_MAX_MODEL_LEN
from herd.errors import HerdError

Precision = Literal["bf16", "fp8", "int8", "int4"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
INT4_GROUP = 128
"""Weights that share one scale in int4."""
CACHE_BYTES = 2
"""Of one number in the KV cache: bf16."""
WHOLE_REQUESTS = 8
"""The cache has room for so many requests of 8,192 tokens if not set; most are shorter, and more run."""
CARD_BYTES = 80_000_000_000
"""The memory of one 80 GB GPU, in decimal gigabytes: what is left of its 80 GiB is the runtime's."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Parameters by component."""

    embedding: int
    """Embedding and unembedding, which are not tied."""
    attention: int
    routed: int
    shared: int
    dense: int
    """Feed-forwards of layers that are no mixtures."""
    other: int
    """Routers and norms."""
    vision: int
    """Encoder, adapter and projector."""
    active: int
    """What one token of text meets: all but the encoder and the experts that it does not visit."""

    @property
    def total(self) -> int:
        return sum(asdict(self).values()) - self.active


def count(config: ModelConfig) -> Counts:
    """Parameters of `Transformer(config)`."""
    moe, dim = config.moe, config.dim
    mixtures = sum(config.is_moe(layer) for layer in range(config.num_layers))
    expert = 3 * dim * moe.ffn_dim
    routed = mixtures * moe.num_experts * expert
    text = {
        "embedding": 2 * config.vocab_size * dim,
        "attention": config.num_layers * 2 * dim * config.head_dim * (config.num_heads + config.num_kv_heads),
        "routed": routed,
        "shared": mixtures * expert,
        "dense": (config.num_layers - mixtures) * 3 * dim * config.dense_ffn_dim,
        "other": mixtures * dim * moe.num_experts + (2 * config.num_layers + 1) * dim,
    }
    active = sum(text.values()) - routed + mixtures * moe.top_k * expert
    return Counts(**text, vision=count_vision(config), active=active)


def count_adapters(config: ModelConfig, lora: LoraConfig) -> int:
    """Parameters of the adapters of a rank: q, k, v and gate, up have a pair each, the stacks of experts one an expert.
    Raises HerdError for a rank that a matrix does not have."""
    dim, moe, rank = config.dim, config.moe, lora.rank or 0
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    mixtures = sum(config.is_moe(layer) for layer in range(config.num_layers))
    sides = {  # of every matrix of a layer, inputs and outputs
        "attention": (config.num_layers, [(dim, heads), (dim, kv_heads), (dim, kv_heads), (heads, dim)]),
        "dense": (config.num_layers - mixtures, [(dim, config.dense_ffn_dim)] * 2 + [(config.dense_ffn_dim, dim)]),
        "shared": (mixtures, [(dim, moe.ffn_dim)] * 2 + [(moe.ffn_dim, dim)]),
        "experts": (mixtures * moe.num_experts, [(dim, 2 * moe.ffn_dim), (moe.ffn_dim, dim)]),
    }
    chosen = [sides[target] for target in lora.targets if sides[target][0]]
    least = min(min(pair) for _, pairs in chosen for pair in pairs)
    if rank > least:
        raise HerdError(f"--lora {rank} is larger than a side of a matrix: take at most {least}")
    return sum(number * rank * sum(map(sum, pairs)) for number, pairs in chosen)


def count_vision(config: ModelConfig) -> int:
    """Parameters of the encoder with its adapter, and of the projector to the text width."""
    vision = config.vision
    if vision is None:
        return 0
    dim, adapter, norm = vision.dim, vision.adapter_dim, 2 * vision.dim
    attention = 4 * (dim * dim + dim)
    mlp = 2 * dim * vision.mlp_dim + dim + vision.mlp_dim
    before = 3 * vision.patch_size**2 * dim + dim + (vision.grid**2 + 1) * dim
    after = 4 * dim * adapter + adapter * adapter + adapter * config.dim
    return before + norm + vision.num_layers * (attention + mlp + 2 * norm) + norm + after


def products(config: ModelConfig) -> list[tuple[int, int, int]]:
    """The text model's weight matrices but the routers': how many, their rows (outputs), their inputs."""
    moe, dim, layers = config.moe, config.dim, config.num_layers
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    mixtures = sum(config.is_moe(layer) for layer in range(layers))
    experts = mixtures * (moe.num_experts + 1)
    return [
        (1, config.vocab_size, dim),
        (layers, heads + 2 * kv_heads, dim),
        (layers, dim, heads),
        *feed_forwards(experts, dim, moe.ffn_dim),
        *feed_forwards(layers - mixtures, dim, config.dense_ffn_dim),
    ]


def feed_forwards(number: int, dim: int, hidden: int) -> list[tuple[int, int, int]]:
    """As `products`."""
    return [(number, 2 * hidden, dim), (number, dim, hidden)]


def weight_bytes(config: ModelConfig, precision: Precision) -> int:
    """Bytes of the folder's weights; what a scheme leaves alone, and every scale, is bf16 (see docs/quantize.md).

    fp8: routed experts of all mixtures but those in the first and the last layer, a scale for each row (output).
    int8: all products but the routers and the encoder, a scale for each row.
    int4: the same, a scale for each group of 128 inputs.
    """
    moe, saved = config.moe, Fraction(0)
    taken = products(config)
    if precision == "bf16":
        taken = []
    elif precision == "fp8":
        inner = sum(config.is_moe(layer) for layer in range(1, config.num_layers - 1))
        taken = feed_forwards(inner * moe.num_experts, config.dim, moe.ffn_dim)
    for number, rows, inputs in taken:
        if precision == "int4" and inputs % INT4_GROUP:
            raise HerdError(
                f"{inputs} inputs are not a multiple of {INT4_GROUP}, int4's group: choose int8, fp8 or a smaller group"
            )
        scales = inputs // INT4_GROUP if precision == "int4" else 1
        bits = 4 if precision == "int4" else 8
        saved += number * rows * (2 * inputs - Fraction(inputs * bits, 8) - 2 * scales)
    return int(2 * count(config).total - saved)


def page_bytes(config: ModelConfig, *, number_bytes: int = CACHE_BYTES, int8: bool = False) -> tuple[int, int]:
    """Bytes of a page of keys and values in all global layers, and in all local ones.

    With `int8`, those of global layers have a byte a number, and scales in bf16: of each channel of the keys, and of
    each token of the values.
    """
    heads, width, size = config.num_kv_heads, config.head_dim, config.page_tokens
    wide = 2 * heads * size * width * number_bytes
    packed = 2 * heads * size * width + 2 * heads * (width + size)
    num_global = sum(config.is_global(layer) for layer in range(config.num_layers))
    return num_global * (packed if int8 else wide), (config.num_layers - num_global) * wide


def cache_bytes(config: ModelConfig, context: int, *, number_bytes: int = CACHE_BYTES, int8: bool = False) -> int:
    """Bytes of keys and values of one request of `context` tokens, in whole pages: local layers keep one chunk."""
    of_global, of_local = page_bytes(config, number_bytes=number_bytes, int8=int8)
    size = config.page_tokens
    return -(-context // size) * of_global + -(-min(context, config.chunk_size) // size) * of_local


def usual_cache_bytes(model: ModelConfig, config: EngineConfig, *, number_bytes: int) -> int:
    """Bytes of a cache that is not set: room for WHOLE_REQUESTS of the usual context, and for one of `max_model_len` at
    least."""
    room = partial(cache_bytes, model, number_bytes=number_bytes, int8=config.kv_cache_dtype == "int8")
    usual = min(model.max_positions, DEFAULT_MAX_MODEL_LEN)
    longest = config.max_model_len or usual
    return max(room(longest), min(config.max_num_seqs, WHOLE_REQUESTS) * room(min(usual, longest)))


def longest_context(config: ModelConfig, budget: int) -> int:
    """Tokens of one request whose cache fits in `budget` bytes, at most what the model claims to hold."""
    low, high = 0, config.max_positions
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cache_bytes(config, middle) <= budget else (low, middle - 1)
    return low


ADAPTER_BYTES = 2 + 2 + 2 + 8
"""Of a parameter of an adapter in training: weight, gradient, the rest of its fp32 master, AdamW's two moments."""


def plan(
    config: ModelConfig, *, context: int | None = None, quantize: Precision | None = None, lora: int | None = None
) -> dict[str, object]:
    """All figures, as `herd plan --json` prints them; see docs/model.md for their meaning."""
    context = config.max_positions if context is None else context
    if not 0 < context <= config.max_positions:
        raise HerdError(f"--context {context} is not between 1 and the model's {config.max_positions}")
    counts = count(config)
    weights: dict[str, int | None] = {}
    for precision in PRECISIONS:
        try:
            weights[precision] = weight_bytes(config, precision)
        except HerdError:
            if precision == quantize:
                raise
            weights[precision] = None  # a shape whose widths are no multiples of int4's group
    chosen: Precision = quantize or "bf16"
    cache = cache_bytes(config, context)
    trained = 0 if lora is None else count_adapters(config, LoraConfig(rank=lora))
    adapters = {"rank": lora, "parameters": trained, "training_bytes": 2 * counts.total + ADAPTER_BYTES * trained}
    return {
        "total_parameters": counts.total,
        "active_parameters": counts.active,
        "vision_parameters": counts.vision,
        "parameters": {name: value for name, value in asdict(counts).items() if name not in {"active", "vision"}},
        "bytes": weights,
        "precision": chosen,
        "context": context,
        "cache_bytes": cache,
        "cache_bytes_int8": cache_bytes(config, context, int8=True),
        "serving_bytes": (weights[chosen] or 0) + cache,
        "card_bytes": CARD_BYTES,
        "context_on_one_card": {
            precision: None if size is None or size > CARD_BYTES else longest_context(config, CARD_BYTES - size)
            for precision, size in weights.items()
        },
        **({"lora": adapters} if lora is not None else {}),
    }


def amount(value: object) -> str:
    """108641793536 as `108.64 G`."""
    assert isinstance(value, int)
    for power, prefix in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if value >= 10**power:
            return f"{value / 10**power:.2f} {prefix}"
    return f"{value} "
