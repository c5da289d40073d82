"""The Llama 4 transformer: one forward over flat packed tokens for training, prefill and decode.

x = embed(tokens), with vision features in place of <|patch|> tokens
for each layer:  x = x + attention(norm(x));  x = x + feed_forward(norm(x))
logits = unembed(norm(x))

Inference on a CPU has a second implementation of all this: herd/native/forward.cpp, called by fused.py. A change here
must be made there too; agreement.py compares the two whenever an engine is started on a model.
"""

# N tokens, D width, V vocabulary, S documents or requests, J = mixture layers * k, k = top_k

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from herd import native
from herd.config import ModelConfig
from herd.core.batch import Images
from herd.model.attention import Attention, AttentionPlan, Sharing, plan_attention
from herd.model.cache import CacheView
from herd.model.moe import OBSERVED, FeedForward, MoE
from herd.model.pack import Pack
from herd.model.precision import batch_invariant
from herd.model.vision import VisionEncoder


class RMSNorm(nn.Module):
    """Root-mean-square norm in fp32, times a learned weight."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x_ND: Tensor) -> Tensor:
        if native.why_not(x_ND, native.TRAINING) is None:
            return native.rms_norm(x_ND, self.weight, self.eps)
        return F.rms_norm(x_ND.float(), self.weight.shape, eps=self.eps).to(x_ND.dtype) * self.weight


class Layer(nn.Module):
    """Attention, then a mixture of experts or a dense feed-forward."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config, layer)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn: MoE | FeedForward = (
            MoE(config.dim, config.moe) if config.is_moe(layer) else FeedForward(config.dim, config.dense_ffn_dim)
        )

    def forward(
        self, x_ND: Tensor, shared: AttentionPlan, cache: CacheView | None, routes_Nk: Tensor | None = None
    ) -> Tensor:
        x_ND = x_ND + self.attention(self.attention_norm(x_ND), shared, cache)
        routes = () if routes_Nk is None else (routes_Nk,)
        return x_ND + self.ffn(self.ffn_norm(x_ND), *routes)


def recompute_layer(layer: nn.Module, x_ND: Tensor, shared: AttentionPlan, routes_Nk: Tensor | None = None) -> Tensor:
    """A layer's output, which keeps only its input for the backward; gradients have the same bits."""

    @contextmanager
    def keep_observed() -> Iterator[None]:
        # What training reads of a mixture is that of the first time: nothing is counted twice.
        ffn = layer.ffn
        kept = {name: getattr(ffn, name) for name in OBSERVED} if isinstance(ffn, MoE) else {}
        try:
            yield
        finally:
            for name, value in kept.items():
                setattr(ffn, name, value)

    out: Tensor = checkpoint(
        layer,
        x_ND,
        shared,
        None,
        routes_Nk,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), keep_observed()),
    )
    return out


class Transformer(nn.Module):
    """The whole model; it knows nothing of devices, precision or ranks."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.vision = VisionEncoder(config.vision, config.dim) if config.vision else None
        self.layers = nn.ModuleList([Layer(config, layer) for layer in range(config.num_layers)])
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.recompute = False
        """In training: keep each layer's input alone, and compute the layer again in the backward."""
        self.unembedding = nn.Linear(config.dim, config.vocab_size, bias=False)

    def forward(
        self,
        tokens_N: Int[Tensor, "n"],
        *,
        positions_N: Int[Tensor, "n"],
        starts_S: Int[Tensor, "s1"],
        images: Images | None = None,
        cache: CacheView | None = None,
        sharing: Sharing | None = None,
        routes_NJ: UInt8[Tensor, "n j"] | None = None,
    ) -> Float[Tensor, "n d"]:
        """Hidden states before the unembedding.

        `positions_N` count from 0 in each document or request; `starts_S` are the cumulative starts of the runs in the
        pack, the last entry N; both are on the host. With a `cache`, each run continues the request in its slot. With
        `sharing` what documents have in common at their beginning is computed once, but for attention. `routes_NJ`: the
        experts that an engine recorded (`record_routes`), which are used in place of the routers' choice.
        """
        x_ND = self.embed(tokens_N, images)
        if sharing is not None:
            x_ND = x_ND.index_select(0, sharing.pick_M)
            routes_NJ = routes_NJ if routes_NJ is None else routes_NJ.index_select(0, sharing.pick_M)
        shared = plan_attention(
            positions_N, starts_S, self.config, cached=cache is not None, device=x_ND.device, sharing=sharing
        )
        routes = iter(() if routes_NJ is None else routes_NJ.split(self.config.moe.top_k, dim=1))
        for index, layer in enumerate(self.layers):
            routes_Nk = next(routes, None) if self.config.is_moe(index) else None
            if self.recompute and torch.is_grad_enabled():
                x_ND = recompute_layer(layer, x_ND, shared, routes_Nk)
            else:
                x_ND = layer(x_ND, shared, cache, routes_Nk)
        assert next(routes, None) is None, "routes of more mixtures than the model has"
        hidden_ND = self.norm(x_ND)
        return hidden_ND if sharing is None else hidden_ND.index_select(0, sharing.expand_N)

    def forward_packed(self, pack: Pack, *, images: Images | None = None, cache: CacheView | None = None) -> Tensor:
        """Hidden states [N, D] of packed sequences."""
        hidden_ND: Tensor = self(
            pack.tokens_N, positions_N=pack.positions_N, starts_S=pack.starts_S, images=images, cache=cache
        )
        return hidden_ND

    def routers_choice(self) -> UInt8[Tensor, "n j"]:
        """The experts that the routers chose in the last forward, of each token and mixture layer in turn."""
        mixtures = [layer.ffn for layer in self.layers if isinstance(layer.ffn, MoE)]
        chosen = [one.expert_Nk for one in mixtures if one.expert_Nk is not None]
        assert len(chosen) == len(mixtures)
        return torch.cat(chosen, dim=1).to(torch.uint8)

    def fill_cache(self, pack: Pack, *, cache: CacheView) -> None:
        """Store the keys and values of tokens as `forward` does, with no output: the last layer attends to nothing.

        Where no other layer is global, the cost of a token does not grow with what was read before it.
        """
        x_ND = self.embed(pack.tokens_N, None)
        shared = plan_attention(pack.positions_N, pack.starts_S, self.config, cached=True, device=x_ND.device)
        for layer in self.layers[:-1]:
            x_ND = layer(x_ND, shared, cache)
        last = self.layers[-1]
        assert isinstance(last, Layer)
        last.attention.fill_cache(last.attention_norm(x_ND), shared, cache)

    def embed(self, tokens_N: Tensor, images: Images | None) -> Tensor:
        """The first layer's input [N, D]: tokens looked up, with the features of pictures in their places."""
        x_ND: Tensor = self.embedding(tokens_N)
        if images is not None:
            assert self.vision is not None, "ImageProcessor refuses pictures for a model of text alone"
            features = images.tiles if images.encoded else self.vision(images.tiles.to(x_ND.dtype)).flatten(0, 1)
            features = features if images.kept is None else features[images.kept]
            x_ND = x_ND.index_copy(0, images.rows, features.to(x_ND.dtype))
        return x_ND

    def unembed(self, hidden_ND: Float[Tensor, "n d"]) -> Float[Tensor, "n v"]:
        """Logits of the next token."""
        return batch_invariant(self.unembedding, hidden_ND)
