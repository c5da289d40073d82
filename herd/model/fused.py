"""The language model's forward as one native call (herd/native/forward.cpp), over the weights of a Transformer.

At batch 1 a step of a small model takes a millisecond, of which PyTorch's calls, one for each operator, take most. So
the model is written twice: here, and in herd/model (attention.py, moe.py, transformer.py), whose forward with a cache
is the twin. That serves where `why_not` names a reason; a model with a field that fused_fields.py does not list is
refused. Whoever changes one changes the other: tests compare them, and agreement.py does so layer by layer whenever an
engine is started on a model. Values between products are fp32 here, so
that bf16 results differ by rounding; in fp32 those of a row depend neither on rows beside it, nor on the threads, nor
on how its prompt was cut.
"""

# N tokens, D width, R rows whose outputs are wanted, V vocabulary, J = mixture layers * top_k

import ctypes
from collections.abc import Iterator

import torch
from torch import Tensor

from herd import native
from herd.errors import HerdError
from herd.model.attention import Attention, rope_frequencies
from herd.model.cache import CacheView, KVCache
from herd.model.fused_fields import unknown_field
from herd.model.moe import MoE
from herd.model.pack import Pack
from herd.model.quantize import ACTIVATION_CAP, STORED, Packed
from herd.model.transformer import Layer, Transformer
from herd.native import forward as call
from herd.native.forward import Kind

KINDS = {"int8": Kind.INT8, "int4": Kind.INT4, "fp8": Kind.FP8}
"""Of quantised weights, by their scheme's name."""


def why_not(transformer: Transformer, cache: KVCache | None = None) -> str | None:
    """Why the kernel does not take this model, or this cache of its; None where it does."""
    embedding = transformer.embedding.weight
    if reason := native.why_not(embedding, native.FLOATS) or unknown_field(transformer):
        return reason
    config = transformer.config
    if odd := [size for size in (config.dim, config.dense_ffn_dim, config.moe.ffn_dim) if size % 2]:
        return f"a width is odd: {odd[0]}"
    for name, owner, shape in weights_of(transformer):
        if reason := why_unreadable(owner, shape, embedding.dtype):
            return f"{name} {reason}"
    attentions = [module for module in transformer.modules() if isinstance(module, Attention)]
    if any(one.rotates == one.is_global for one in attentions):
        return "a global layer rotates queries and keys"
    if cache is not None and cache.int8:
        return "the cache holds keys in 8 bits"
    return None


def weights_of(transformer: Transformer) -> Iterator[tuple[str, Tensor | torch.nn.Module, tuple[int, ...]]]:
    """What the kernel reads: name, tensor or what owns it, and the shape that the kernel takes it to have; of experts
    [E, in, out], of other matrices [out, in]."""
    config = transformer.config
    dim, table = config.dim, (config.vocab_size, config.dim)
    yield "embedding", transformer.embedding, table
    yield "norm", transformer.norm, (dim,)
    yield "unembedding", transformer.unembedding, table
    for index in range(config.num_layers):
        layer, here = transformer.layers[index], f"layers.{index}"
        assert isinstance(layer, Layer)
        heads, kv_heads, dense = config.num_heads, config.num_kv_heads, layer.ffn
        yield f"{here}.attention_norm", layer.attention_norm, (dim,)
        yield f"{here}.ffn_norm", layer.ffn_norm, (dim,)
        yield f"{here}.attention.qkv", layer.attention.qkv, ((heads + 2 * kv_heads) * config.head_dim, dim)
        yield f"{here}.attention.out", layer.attention.out, (dim, heads * config.head_dim)
        hidden = config.dense_ffn_dim
        if isinstance(dense, MoE):
            experts, hidden = config.moe.num_experts, config.moe.ffn_dim
            yield f"{here}.ffn.router", dense.router, (experts, dim)
            yield f"{here}.ffn.gate_up_EDF", dense.gate_up_EDF, (experts, dim, 2 * hidden)
            yield f"{here}.ffn.down_EFD", dense.down_EFD, (experts, hidden, dim)
            dense = dense.shared
        yield f"{here}.ffn.gate_up", dense.gate_up, (2 * hidden, dim)
        yield f"{here}.ffn.down", dense.down, (dim, hidden)


def why_unreadable(owner: Tensor | torch.nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> str | None:
    """Why the kernel would read these weights wrongly; None where it does not."""
    weight = owner if isinstance(owner, Tensor) else owner.weight
    assert isinstance(weight, Tensor)
    wanted = [(weight, shape, dtype)]
    if isinstance(owner, Packed):
        *before, num_out, num_in = shape if len(shape) == 2 else (shape[0], shape[2], shape[1])
        codes, scales = owner.scheme.row_shape(num_in)
        stored = STORED[owner.scheme.name]
        wanted = [
            (owner.weight, (*before, num_out, codes), stored),
            (owner.scale, (*before, num_out, scales), torch.bfloat16),
        ]
    for tensor, size, kind in wanted:
        if tensor.device.type != "cpu":
            return f"is on {tensor.device}"
        if tensor.dtype != kind:
            return f"is {tensor.dtype}, not {kind}"
        if tuple(tensor.shape) != size:
            return f"has the shape {tuple(tensor.shape)}, not {size}"
        if not tensor.is_contiguous():
            return "is not contiguous"
    return None


class FusedForward:
    """Calls the kernel; built once for a Transformer whose `why_not` is None. Weights may change in place."""

    def __init__(self, transformer: Transformer) -> None:
        if reason := why_not(transformer):
            raise HerdError(f"the native forward does not take this model: {reason}")
        config = transformer.config
        self._transformer = transformer
        self._cache: KVCache | None = None
        self._frequencies = rope_frequencies(config).contiguous()
        self._layers = (call.Layer * config.num_layers)()
        self._mixtures: list[tuple[call.Layer, MoE]] = []
        self._biases: list[Tensor] = []
        """Those of the last call: the kernel reads their memory."""
        self._model = call.Model(
            embedding=transformer.embedding.weight.data_ptr(),
            norm=transformer.norm.weight.data_ptr(),
            frequencies=self._frequencies.data_ptr(),
            layers=ctypes.cast(self._layers, ctypes.POINTER(call.Layer)),
            unembedding=matrix(transformer.unembedding),
            narrow=transformer.embedding.weight.dtype == torch.bfloat16,
            num_layers=config.num_layers,
            dim=config.dim,
            heads=config.num_heads,
            kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            experts=config.moe.num_experts,
            top_k=config.moe.top_k,
            qk_norm=config.qk_norm,
            temperature=config.temperature_tuning,
            eps=config.norm_eps,
            temperature_floor=config.temperature_floor,
            temperature_scale=config.temperature_scale,
        )
        for index, to in enumerate(self._layers):
            layer = transformer.layers[index]
            assert isinstance(layer, Layer)
            to.attention_norm, to.ffn_norm = (n.weight.data_ptr() for n in (layer.attention_norm, layer.ffn_norm))
            to.qkv, to.out = matrix(layer.attention.qkv), matrix(layer.attention.out)
            dense = layer.ffn
            if isinstance(dense, MoE):
                to.router = dense.router.weight.data_ptr()
                self._mixtures.append((to, dense))
                to.expert_gate_up, to.expert_down = matrix(dense.gate_up_EDF), matrix(dense.down_EFD)
                dense = dense.shared
            to.gate_up, to.down = matrix(dense.gate_up), matrix(dense.down)
            to.is_global = config.is_global(index)
        for weight in (*transformer.parameters(), *transformer.buffers()):
            if weight.is_contiguous():
                call.huge_pages(weight)

    def __call__(
        self,
        pack: Pack,
        *,
        cache: CacheView,
        rows_R: Tensor,
        embedded_ND: Tensor | None = None,
        routes_NJ: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [R, D], fp32, of the rows `rows_R` (ascending); all rows' keys and values go to the cache.

        `embedded_ND` replaces the embeddings of the tokens, where pictures are among them. `routes_NJ`, uint8, is
        filled with the experts of each token, in the last layer of the wanted rows alone.
        """
        self._use(cache.cache)
        return self._run(self._model, pack, cache, rows_R, embedded_ND, routes_NJ)

    def layer(self, index: int, x_ND: Tensor, pack: Pack, *, cache: CacheView) -> Tensor:
        """The final norm [N, D], fp32, of the output of layer `index` alone on the input `x_ND`; the pack's tokens are
        not read."""
        self._use(cache.cache)
        alone = call.Model.from_buffer_copy(self._model)
        alone.layers, alone.num_layers = ctypes.pointer(self._layers[index]), 1
        return self._run(alone, pack, cache, torch.arange(len(x_ND)), x_ND)

    def _run(
        self,
        model: call.Model,
        pack: Pack,
        cache: CacheView,
        rows_R: Tensor,
        embedded_ND: Tensor | None,
        routes_NJ: Tensor | None = None,
    ) -> Tensor:
        self._set_biases()
        hidden_RD = torch.empty(len(rows_R), model.dim)
        places = (cache.local_pages, cache.global_pages)
        tables = [place.table_SB.contiguous() for place in places]
        seen = [place.seen_S.contiguous() for place in places]
        tokens_N, positions_N, rows_R = (x.contiguous() for x in (pack.tokens_N, pack.positions_N, rows_R))
        starts_S = cache.starts_S.int().contiguous()
        if embedded_ND is not None:
            embedded_ND = embedded_ND.to(self._transformer.embedding.weight.dtype).contiguous()
        if routes_NJ is not None:
            assert routes_NJ.shape == (len(tokens_N), len(self._mixtures) * model.top_k)
            assert routes_NJ.dtype == torch.uint8 and routes_NJ.is_contiguous()
        batch = call.Batch(
            tokens=tokens_N.data_ptr(),
            embedded=None if embedded_ND is None else embedded_ND.data_ptr(),
            positions=positions_N.data_ptr(),
            starts=starts_S.data_ptr(),
            tables=tuple(table.data_ptr() for table in tables),
            seen=tuple(s.data_ptr() for s in seen),
            blocks=tuple(table.shape[1] for table in tables),
            wanted=rows_R.data_ptr(),
            hidden=hidden_RD.data_ptr(),
            routes=None if routes_NJ is None else routes_NJ.data_ptr(),
            rows=len(tokens_N),
            sequences=len(starts_S) - 1,
            num_wanted=len(rows_R),
        )
        call.forward(model, batch)
        return hidden_RD

    def _set_biases(self) -> None:
        """Where experts are chosen with a bias, as in training, the trainer replaces it between two calls."""
        self._biases.clear()
        for to, mixture in self._mixtures:
            to.router_bias = None
            if mixture.bias_E is not None:
                bias_E = mixture.bias_E.detach().to("cpu", torch.float32).contiguous()
                assert bias_E.shape == (mixture.config.num_experts,)
                self._biases.append(bias_E)
                to.router_bias = bias_E.data_ptr()

    def unembed(self, hidden_RD: Tensor) -> Tensor:
        """Logits [R, V], fp32."""
        hidden_RD = hidden_RD.contiguous()
        logits_RV = torch.empty(len(hidden_RD), self._model.unembedding.num_out)
        if len(hidden_RD):
            call.unembed(self._model, hidden_RD, logits_RV)
        return logits_RV

    def _use(self, cache: KVCache) -> None:
        if cache is self._cache:
            return
        self._cache = cache
        self._model.page_tokens = cache.page_tokens
        self._model.narrow_pages = cache.keys[0].dtype == torch.bfloat16
        for to, keys, values in zip(self._layers, cache.keys, cache.values, strict=True):
            to.keys, to.values = keys.data_ptr(), values.data_ptr()


def matrix(owner: Tensor | torch.nn.Module) -> call.Matrix:
    """A linear layer, the weights [E, in, out] of all experts, or either quantised."""
    if isinstance(owner, Packed):
        scheme = owner.scheme
        bits = 4 if scheme.name == "int4" else 8
        return call.Matrix(
            data=owner.weight.data_ptr(),
            scales=owner.scale.data_ptr(),
            kind=KINDS[scheme.name],
            num_in=owner.weight.shape[-1] * 8 // bits,
            num_out=owner.weight.shape[-2],
            detail={"int4": scheme.group or 0, "int8": 0, "fp8": ACTIVATION_CAP}[scheme.name],
        )
    weight = owner if isinstance(owner, Tensor) else owner.weight
    assert isinstance(weight, Tensor)
    assert weight.is_contiguous()
    narrow, transposed = weight.dtype == torch.bfloat16, weight.ndim == 3
    kind = (
        (Kind.BF16_TRANSPOSED if narrow else Kind.FP32_TRANSPOSED)
        if transposed
        else (Kind.BF16 if narrow else Kind.FP32)
    )
    num_out, num_in = weight.shape[-2:] if not transposed else (weight.shape[2], weight.shape[1])
    return call.Matrix(data=weight.data_ptr(), scales=None, kind=kind, num_in=num_in, num_out=num_out, detail=0)
