"""Meta's own folder of Llama 4: `params.json` and `consolidated.0N.pth`, one file a rank of tensor parallelism.

Layouts are those that the reference's loaders take apart (llama-models 0.3.0, llama4/*.py `load_hook`, checkpoint.py
`reshard_mp`): q, k, v in one `wqkv` that also names the norm before it; gate and up of a dense layer in one `fc1`;
experts as matrices whose rows are those of all experts. A rank holds its heads, its part of the hidden width, of the
vocabulary, of the vision encoder; norms, the router and biases after a sum are whole in every file. Nothing is
computed: weights come back to the bit.

params.json has no place for ids of special tokens, the context claimed and the limit of tiles: they are under its key
`herd`, which the reference passes over, and are taken from what is published where it is missing. Left out on reading:
what the reference drops too (DROPPED).
"""

# D width, F hidden width, E experts, n ranks

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from herd.config import ModelConfig, VisionConfig
from herd.core.files import naming_full_disk, read_json, write_json
from herd.errors import HerdError
from herd.model.formats.meta_params import config_from_params, params_of
from herd.model.formats.stored import Stored, open_pth
from herd.model.formats.weights import Weights, check, common_dtype, skeleton

DROPPED = re.compile(r"\._extra_state$|_gate_stats_3E$|expert_activation_DE$|rope\.freqs$")
"""What the files hold beside weights: buffers of training."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How a tensor is split across the ranks: along `axis`, or whole in each (None).

    `rows`, for axis 0: the tensor is several blocks of rows, each of which is cut by itself.
    """

    axis: int | None
    rows: tuple[int, ...] = ()

    def split(self, whole: Tensor, ranks: int) -> list[Tensor]:
        """The part of each rank."""
        if self.axis is None:
            return [whole] * ranks
        if self.axis == 1:
            return list(whole.chunk(ranks, dim=1))
        blocks = [block.chunk(ranks) for block in whole.split(list(self.rows) or len(whole))]
        return [torch.cat([block[rank] for block in blocks]) for rank in range(ranks)]

    def join(self, parts: list[Tensor]) -> Tensor:
        """`split`, undone."""
        if self.axis is None or len(parts) == 1:
            return parts[0]
        if self.axis == 1:
            return torch.cat(parts, dim=1)
        sizes = [rows // len(parts) for rows in self.rows] or [len(parts[0])]
        blocks = [part.split(sizes) for part in parts]
        return torch.cat([block[i] for i in range(len(sizes)) for block in blocks])


WHOLE, COLUMNS, ROWS = Cut(axis=None), Cut(axis=1), Cut(axis=0)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How one of our parameters is stored in Meta's files: names, the way there and back, and the cut of each
    tensor."""

    names: tuple[str, ...]
    cut: Cut = WHOLE
    split: Callable[[Tensor], list[Tensor]] = lambda x: [x]
    join: Callable[[list[Tensor]], Tensor] = lambda xs: xs[0]


def _apart(names: tuple[str, ...], cut: Cut, dim: int = 0) -> Rule:
    """Equal parts along `dim`, a tensor each."""
    return Rule(
        names=names, cut=cut, split=lambda x: list(x.chunk(len(names), dim)), join=lambda xs: torch.cat(xs, dim)
    )


def rules(config: ModelConfig) -> dict[str, Rule]:
    """For every parameter of `Transformer`, where it is in Meta's files."""
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    table = {
        "embedding.weight": Rule(names=("tok_embeddings.weight",), cut=ROWS),
        "norm.weight": Rule(names=("norm.weight",)),
        "unembedding.weight": Rule(names=("output.weight",), cut=ROWS),
    }
    for layer in range(config.num_layers):
        here = f"layers.{layer}"
        attention, forward = f"{here}.attention", f"{here}.feed_forward"
        table[f"{here}.attention_norm.weight"] = Rule(names=(f"{attention}.wqkv.layer_norm_weight",))
        table[f"{here}.attention.qkv.weight"] = Rule(
            names=(f"{attention}.wqkv.weight",), cut=Cut(axis=0, rows=(q, kv, kv))
        )
        table[f"{here}.attention.out.weight"] = Rule(names=(f"{attention}.wo.weight",), cut=COLUMNS)
        table |= _mixture(config, here, forward) if config.is_moe(layer) else _dense(config, here, forward)
    return table | (_vision(config.vision) if config.vision else {})


def _dense(config: ModelConfig, here: str, forward: str) -> dict[str, Rule]:
    hidden = config.dense_ffn_dim
    return {
        f"{here}.ffn_norm.weight": Rule(names=(f"{forward}.mlp.layer_norm_weight",)),
        f"{here}.ffn.gate_up.weight": Rule(
            names=(f"{forward}.mlp.fc1_weight",), cut=Cut(axis=0, rows=(hidden, hidden))
        ),
        f"{here}.ffn.down.weight": Rule(names=(f"{forward}.mlp.fc2_weight",), cut=COLUMNS),
    }


def _mixture(config: ModelConfig, here: str, forward: str) -> dict[str, Rule]:
    experts, hidden, dim = config.moe.num_experts, config.moe.ffn_dim, config.dim
    return {
        f"{here}.ffn_norm.weight": Rule(names=(f"{forward}.norm.weight",)),
        f"{here}.ffn.router.weight": Rule(
            names=(f"{forward}.router_DE",), split=lambda x: [x.T], join=lambda xs: xs[0].T.contiguous()
        ),
        f"{here}.ffn.gate_up_EDF": Rule(
            names=(f"{forward}.experts.moe_w_in_eD_F", f"{forward}.experts.moe_w_swiglu_eD_F"),
            cut=COLUMNS,
            split=lambda x: [half.reshape(experts * dim, hidden) for half in x.chunk(2, dim=-1)],
            join=lambda xs: torch.cat([x.view(experts, dim, hidden) for x in xs], dim=-1),
        ),
        f"{here}.ffn.down_EFD": Rule(
            names=(f"{forward}.experts.moe_w_out_eF_D",),
            cut=Cut(axis=0, rows=(hidden,) * experts),
            split=lambda x: [x.flatten(0, 1)],
            join=lambda xs: xs[0].view(experts, hidden, dim),
        ),
        f"{here}.ffn.shared.gate_up.weight": _apart(
            (f"{forward}.w_in_shared_FD.weight", f"{forward}.w_swiglu_FD.weight"), ROWS
        ),
        f"{here}.ffn.shared.down.weight": Rule(names=(f"{forward}.w_out_shared_DF.weight",), cut=COLUMNS),
    }


def _vision(vision: VisionConfig) -> dict[str, Rule]:
    encoder, adapter = "vision_embeddings.vision_encoder", "vision_embeddings.vision_adapter.mlp"
    table = {
        "vision.patches.weight": Rule(names=(f"{encoder}.conv1._linear.weight",), cut=ROWS),
        "vision.class_token": Rule(names=(f"{encoder}.class_embedding",)),
        "vision.positions": Rule(names=(f"{encoder}.positional_embedding_vlm",)),
        "vision.adapter_in.weight": Rule(names=(f"{adapter}.c_fc.weight",), cut=ROWS),
        "vision.adapter_out.weight": Rule(names=(f"{adapter}.c_proj.weight",), cut=COLUMNS),
        "vision.projector.weight": Rule(names=("vision_projection.weight",), cut=ROWS),
    }
    for kind in ("weight", "bias"):
        # The bias after a sum over ranks is added once: it is whole.
        summed = COLUMNS if kind == "weight" else WHOLE
        table[f"vision.norm_before.{kind}"] = Rule(names=(f"{encoder}.ln_pre.{kind}",))
        table[f"vision.norm_after.{kind}"] = Rule(names=(f"{encoder}.ln_post.{kind}",))
        for layer in range(vision.num_layers):
            here, there = f"vision.layers.{layer}", f"{encoder}.transformer.resblocks.{layer}"
            table[f"{here}.attention_norm.{kind}"] = Rule(names=(f"{there}.ln_1.{kind}",))
            table[f"{here}.mlp_norm.{kind}"] = Rule(names=(f"{there}.ln_2.{kind}",))
            table[f"{here}.qkv.{kind}"] = _apart(tuple(f"{there}.attn.w{x}.{kind}" for x in "qkv"), ROWS)
            table[f"{here}.out.{kind}"] = Rule(names=(f"{there}.attn.wo.{kind}",), cut=summed)
            table[f"{here}.up.{kind}"] = Rule(names=(f"{there}.mlp.c_fc.{kind}",), cut=ROWS)
            table[f"{here}.down.{kind}"] = Rule(names=(f"{there}.mlp.c_proj.{kind}",), cut=summed)
    return table


def write(weights: Weights, folder: Path, *, ranks: int, dtype: torch.dtype) -> None:
    """Write params.json and `ranks` files, holding one of them in memory at a time."""
    config = weights.config
    check_export(config, ranks)
    table = rules(config)
    assert table.keys() == {name for name, _ in skeleton(config).named_parameters()}
    for rank in range(ranks):
        state = {}
        for name, rule in table.items():
            for theirs, whole in zip(rule.names, rule.split(weights.read(name)), strict=True):
                # Own memory: a view would be saved with all that it is a view of.
                state[theirs] = (
                    rule.cut.split(whole, ranks)[rank].to(dtype).clone(memory_format=torch.contiguous_format)
                )
        path = folder / f"consolidated.{rank:02d}.pth"
        with naming_full_disk(path):
            torch.save(state, path)
    write_json(folder / "params.json", params_of(config))


def check_export(config: ModelConfig, ranks: int) -> None:
    """Refuse what Meta's format cannot express, or not in so many files."""
    check_ranks(config, ranks)
    params_of(config)


def check_ranks(config: ModelConfig, ranks: int) -> None:
    """Refuse a number of ranks that a width is not divisible by."""
    widths = {"num_kv_heads": config.num_kv_heads, "vocab_size": config.vocab_size, "moe.ffn_dim": config.moe.ffn_dim}
    widths |= {"dim": config.dim, "dense_ffn_dim": config.dense_ffn_dim}
    if config.vision:
        widths |= {"vision.num_heads": config.vision.num_heads, "vision.adapter_dim": config.vision.adapter_dim}
    for name, width in widths.items():
        if ranks < 1 or width % ranks:
            raise HerdError(f"{name}={width} cannot be cut for {ranks} shards: take --shards 1, or another divisor")


def open_folder(folder: Path) -> Weights:
    """The folder's weights, checked by name, shape and place in each file before any is read."""
    config = config_from_params(read_json(folder / "params.json"), folder / "params.json")
    paths = sorted(folder.glob("consolidated.*.pth"))
    names = [f"consolidated.{rank:02d}.pth" for rank in range(len(paths))]
    if not paths or [path.name for path in paths] != names:
        there = ", ".join(path.name for path in paths) or "none"
        raise HerdError(f"{folder} has not all of consolidated.00.pth, .01, … ({there}): copy the folder again, whole")
    check_ranks(config, len(paths))
    table, shapes = rules(config), dict(skeleton(config).named_parameters())
    ranks: list[dict[str, Stored]] = []
    for rank, path in enumerate(paths):
        wanted = {
            theirs: rule.cut.split(whole, len(paths))[rank].shape
            for name, rule in table.items()
            for theirs, whole in zip(rule.names, rule.split(shapes[name]), strict=True)
        }
        # A buffer, or the empty bias of a layer that has none.
        found = {
            name: stored
            for name, stored in open_pth(path).items()
            if not DROPPED.search(name) and (name in wanted or stored.num_bytes)
        }
        check(path, found, wanted)
        ranks.append(found)
    kinds = {stored.dtype for found in ranks for stored in found.values()}

    def read(name: str) -> Tensor:
        rule = table[name]
        used = ranks[:1] if rule.cut.axis is None else ranks
        return rule.join([rule.cut.join([found[theirs].read() for found in used]) for theirs in rule.names])

    embedding = ranks[0][table["embedding.weight"].names[0]].dtype
    return Weights(config=config, dtype=common_dtype(kinds, {}, embedding), read=read)
