"""What training does for each token: multiplications by kind, and how much memory it moves, from a shape alone.

FLOPs a token, forward: 2 per parameter that meets it in a matrix product (attention projections, router, shared
expert, `top_k` routed experts, dense feed-forwards, unembedding; the embedding is a look-up), and 4 x query channels x
keys seen for the scores and the weighted values. A token at position p sees p % chunk + 1 keys in a local layer and
p + 1 in a global one, so in documents of T tokens on average (T + 1) / 2 where nothing is cut. Backward costs twice the
forward. `tests/unit/test_plan_training.py` holds this against torch's FlopCounterMode. Recomputed activations are not
counted: these are the FLOPs that a model needs, as in "model FLOP/s utilisation" (PaLM, arXiv 2204.02311, appendix B).
"""

from dataclasses import dataclass

from herd.config import ModelConfig
from herd.plan.counts import count


@dataclass(frozen=True, kw_only=True)
class Work:
    """A model as the planner sees it; per token unless noted otherwise, sums over all layers."""

    dim: int
    num_layers: int
    num_moe_layers: int
    num_experts: int
    top_k: int
    dense_parameters: int
    """In the layers, all but routed experts: every token meets them."""
    routed_parameters: int
    """All routed experts."""
    head_parameters: int
    """Of the unembedding; the embedding has as many."""
    attention_flops: float
    """Forward, scores and values."""
    query_dim: int
    """Channels of all query heads of a layer."""
    key_dim: int
    """Channels of keys and values together, of a layer."""
    hidden: int
    """Sum over the layers of the feed-forward channels that a token visits."""
    global_layers: int
    """Layers that see past a chunk."""
    max_nodes: int | None = None
    """Machines that a token's experts may be on, where the router bounds it."""

    @property
    def routed_active(self) -> int:
        return self.routed_parameters * self.top_k // self.num_experts

    @property
    def matrix_parameters(self) -> int:
        """What a token meets in products inside the layers."""
        return self.dense_parameters + self.routed_active

    @property
    def total_parameters(self) -> int:
        return self.dense_parameters + self.routed_parameters + 2 * self.head_parameters

    @property
    def flops(self) -> float:
        """Of training, a token."""
        return 3 * (2 * (self.matrix_parameters + self.head_parameters) + self.attention_flops)

    @property
    def traffic_elements(self) -> float:
        """Elements that all but products read and write, a token, forward: norms, residuals, rotation, SwiGLU, and in
        mixtures the rows' way to their experts and back."""
        per_layer = 10 * self.dim + 2 * (self.query_dim + self.key_dim)
        return self.num_layers * per_layer + 3 * self.hidden + 4 * self.top_k * self.num_moe_layers * self.dim

    @property
    def kept_elements(self) -> float:
        """Elements a token that the backward needs, all layers: inputs of every product and norm."""
        per_layer = 4 * self.dim + 2 * self.query_dim + self.key_dim
        return self.num_layers * per_layer + 3 * self.hidden + 2 * self.top_k * self.num_moe_layers * self.dim


def mean_keys(length: int, chunk: int | None, *, causal: bool = True) -> float:
    """Keys that a token of a document of `length` tokens sees on average; `causal` False counts those masked too."""
    if chunk is None or length <= chunk:
        return (length + 1) / 2 if causal else length
    whole, rest = divmod(length, chunk)
    squares = whole * chunk * mean_keys(chunk, None, causal=causal) + rest * mean_keys(rest, None, causal=causal)
    return squares / length


def attention_flops(config: ModelConfig, length: int, *, causal: bool = True) -> float:
    """Forward FLOPs of scores and weighted values, a token of documents of `length` tokens, all layers."""
    keys = sum(
        mean_keys(length, None if config.is_global(layer) else config.chunk_size, causal=causal)
        for layer in range(config.num_layers)
    )
    return 4 * config.num_heads * config.head_dim * keys


def work_of(config: ModelConfig, length: int) -> Work:
    """The text model of `config`, trained on documents of `length` tokens."""
    counts, moe = count(config), config.moe
    mixtures = sum(config.is_moe(layer) for layer in range(config.num_layers))
    hidden = mixtures * (moe.top_k + 1) * moe.ffn_dim + (config.num_layers - mixtures) * config.dense_ffn_dim
    far = sum(config.is_global(layer) or length > config.chunk_size for layer in range(config.num_layers))
    return Work(
        dim=config.dim,
        num_layers=config.num_layers,
        num_moe_layers=mixtures,
        num_experts=moe.num_experts,
        top_k=moe.top_k,
        dense_parameters=counts.attention + counts.shared + counts.dense + mixtures * config.dim * moe.num_experts,
        routed_parameters=counts.routed,
        head_parameters=counts.embedding // 2,
        attention_flops=attention_flops(config, length),
        query_dim=config.num_heads * config.head_dim,
        key_dim=2 * config.num_kv_heads * config.head_dim,
        hidden=hidden,
        global_layers=min(far, sum(config.is_global(layer) for layer in range(config.num_layers))),
    )
