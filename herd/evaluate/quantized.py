"""`herd convert --quantize`: a low-bit copy of a model folder, and what it lost, measured against the original.

Size, bits per byte of held-out text, distance of the logits, and how many of the text's tokens each expert saw: an
expert that saw none has been quantised like the others (no scheme needs data), but nothing vouches for it.
"""

# N tokens, V vocabulary, E experts

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from herd.core.files import read_json, read_text, write_atomic
from herd.core.lineage import Stage, remove_leftovers
from herd.core.statistics import mean_interval
from herd.engine.load import Model, load
from herd.engine.score import LOGIT_ROWS
from herd.errors import HerdError
from herd.evaluate.bits import cap_documents
from herd.evaluate.inputs import DataFolder
from herd.model.formats import compressed
from herd.model.formats.config_json import config_from_json
from herd.model.formats.source import ADAPTER, find_source
from herd.model.moe import MoE
from herd.model.pack import pack_sequences
from herd.model.quantize import Scheme, why_kept
from herd.model.transformer import Transformer

CONTEXT = 512
"""Tokens of a document that are read together; each piece begins anew with begin-of-text."""
PACK = 16
"""Pieces of one forward."""


def quantize_folder(
    source: Path, target: Path, scheme: Scheme, *, data: Path | None = None, text: Path | None = None, max_bytes: int
) -> Path:
    """Write `target`, the model folder `source` quantised; gives `target`.

    It is measured on the held-out documents of the data folder `data`, up to `max_bytes` of each language, or on the
    file `text`, up to `max_bytes`; without either, the model card states that nothing was measured.
    """
    if target.exists():
        raise HerdError(f"{target} is there already: give another folder, or remove it first")
    if find_source(source).kind == ADAPTER:
        raise HerdError(f"{source} is an adapter: herd merge {source} --out O first, and quantise that")
    documents = heldout(data, text, max_bytes)
    remove_leftovers(target)
    parents = {name: path for name, path in (("model", source), ("data", data)) if path and has_hash(path)}
    stage = Stage("quantize", target, config=asdict(scheme) | {"max_bytes": max_bytes}, parents=parents)
    sizes = compressed.write(source, stage.work, scheme)
    facts: dict[str, Any] = {"bytes": sizes, "kept": kept_reasons(stage.work, scheme)}
    if documents:
        facts["measured"] = measure(load(source, dtype=torch.bfloat16), load(stage.work), documents)
        facts["measured"]["text"] = str(data or text)
    write_atomic(stage.work / "README.md", card(source, scheme, facts))
    return stage.finish(**facts)


def has_hash(folder: Path) -> bool:
    """Whether the folder records its hash; those of others (a released model) have no herd.json."""
    return (folder / "herd.json").exists() and "hash" in read_json(folder / "herd.json")


def heldout(data: Path | None, text: Path | None, max_bytes: int) -> list[str]:
    """The documents to measure on."""
    if data is not None and text is not None:
        raise HerdError("both data and text are given: measure on one of them")
    if text is not None:
        return cap_documents([read_text(text)], max_bytes)
    if data is None:
        return []
    texts = DataFolder(data).heldout_texts.values()
    if not any(texts):
        raise HerdError(f"{data} has no held-out text to measure on: give another data folder, or a text")
    return [cut for each in texts for cut in cap_documents(each, max_bytes)]


def kept_reasons(folder: Path, scheme: Scheme) -> dict[str, str]:
    """Our names of the matrices left in bf16, layers and vision taken together, each with the reason."""
    config = config_from_json(folder)
    with torch.device("meta"):
        parameters = Transformer(config).named_parameters()
    matrices = [name for name, parameter in parameters if parameter.ndim >= 2]
    return {name: reason for name in matrices if (reason := why_kept(name, scheme, config)) is not None}


@torch.inference_mode()
def measure(reference: Model, quantized: Model, documents: list[str]) -> dict[str, Any]:
    """Both models over the same documents, cut into pieces of CONTEXT tokens; the reference counts experts."""
    bos = reference.config.special.bos
    pieces: list[list[int]] = []
    document_of: list[int] = []
    for number, ids in enumerate(reference.tokenizer.encode_batch(documents)):
        for begin in range(0, len(ids), CONTEXT):
            pieces.append([bos, *ids[begin : begin + CONTEXT]])
            document_of.append(number)
    coverage, hooks = watch_experts(reference)
    nats = {name: torch.zeros(len(documents), dtype=torch.float64) for name in ("reference", "quantized")}
    sums = {"kl": 0.0, "mean_error": 0.0, "agree": 0.0}
    worst, count = 0.0, 0
    for begin in range(0, len(pieces), PACK):
        chosen = pieces[begin : begin + PACK]
        pack = pack_sequences(chosen)
        tokens_N = pack.tokens_N
        last_N = torch.zeros(len(tokens_N), dtype=torch.bool)
        last_N[pack.last_S] = True
        rows = torch.nonzero(~last_N)[:, 0]
        documents_N = torch.repeat_interleave(
            torch.tensor(document_of[begin : begin + PACK]), torch.tensor(pack.lengths)
        )
        hidden = [model.transformer.forward_packed(pack) for model in (reference, quantized)]
        for row in rows.split(LOGIT_ROWS):
            ours, theirs = (
                model.transformer.unembed(states[row]).float()
                for model, states in zip((quantized, reference), reversed(hidden), strict=True)
            )
            target = tokens_N[row + 1][:, None]
            log_ours, log_theirs = torch.log_softmax(ours, -1), torch.log_softmax(theirs, -1)
            for name, log in (("reference", log_theirs), ("quantized", log_ours)):
                nats[name].index_add_(0, documents_N[row], -log.gather(1, target)[:, 0].double())
            sums["kl"] += float((log_theirs.exp() * (log_theirs - log_ours)).sum())
            error = (ours - theirs).abs()
            sums["mean_error"] += float(error.mean(-1).sum())
            worst = max(worst, float(error.max()))
            sums["agree"] += float((ours.argmax(-1) == theirs.argmax(-1)).sum())
            count += len(row)
    for hook in hooks:
        hook.remove()
    sizes = [len(document.encode()) for document in documents]
    num_bytes = sum(sizes)
    bits = {name: values / math.log(2) for name, values in nats.items()}
    more = bits["quantized"] - bits["reference"]
    interval = mean_interval(more.tolist(), sizes, seed=0)
    return {
        "tokens": count,
        "bytes": num_bytes,
        "bits_per_byte_reference": float(bits["reference"].sum()) / num_bytes,
        "bits_per_byte": float(bits["quantized"].sum()) / num_bytes,
        "bits_per_byte_more": {"mean": float(more.sum()) / num_bytes, "interval": interval},
        "kl_nats": sums["kl"] / count,
        "top1_agreement": sums["agree"] / count,
        "mean_logit_error": sums["mean_error"] / count,
        "max_logit_error": worst,
        "tokens_of_experts": {layer: counts.tolist() for layer, counts in coverage.items()},
        "unseen_experts": [
            f"layer {layer}, expert {expert}"
            for layer, counts in coverage.items()
            for expert in torch.nonzero(counts == 0)[:, 0].tolist()
        ],
    }


def watch_experts(model: Model) -> tuple[dict[int, Tensor], list[Any]]:
    """Per layer, tokens that each expert sees [E] from now on; and the hooks to remove."""
    counts: dict[int, Tensor] = {}
    hooks = []
    for index, layer in enumerate(model.transformer.layers):
        if isinstance(layer.ffn, MoE):
            counts[index] = torch.zeros(layer.ffn.config.num_experts, dtype=torch.int64)

            def count(mixture: MoE, inputs: tuple[Tensor], total: Tensor = counts[index]) -> None:
                logits_NE = torch.nn.functional.linear(inputs[0].float(), mixture.router.weight.float())
                chosen = logits_NE.topk(mixture.config.top_k, dim=-1).indices.flatten()
                total += torch.bincount(chosen, minlength=len(total))

            hooks.append(layer.ffn.register_forward_pre_hook(count))
    return counts, hooks


def card(source: Path, scheme: Scheme, facts: dict[str, Any]) -> str:
    """README.md of the folder."""
    sizes = facts["bytes"]
    after = sizes["packed"] + sizes["kept"]
    group = f", group {scheme.group}, scales by {scheme.fit}" if scheme.group else ""
    lines = [
        f"# {source.name}, {scheme.name}",
        "",
        f"Quantised by Herd from `{source.name}`: {scheme.name}{group}. Weights {sizes['before'] / 1e6:,.1f} MB → "
        f"{after / 1e6:,.1f} MB, of them {sizes['kept'] / 1e6:,.1f} MB left in bf16. Open it with `herd.load`.",
        "",
        "The tensors are in the format of compressed-tensors: transformers opens the folder where that is installed.",
        "vLLM reads this layout by its documents; that was not tested"
        + ("." if scheme.keep_head or scheme.name == "fp8" else ", and it wants the unembedding left (`--keep-head`)."),
        "",
    ]
    if found := facts.get("measured"):
        bits = (found["bits_per_byte_reference"], found["bits_per_byte"])
        more = found["bits_per_byte_more"]
        interval = "–" if more["interval"] is None else "{:.4f} – {:.4f}".format(*more["interval"])
        lines += [
            f"| on {found['tokens']:,} held-out tokens | bf16 | {scheme.name} |",
            "|---|---|---|",
            f"| bits per byte | {bits[0]:.4f} | {bits[1]:.4f} |",
            f"| bits per byte more than bf16 (95 % interval over documents) | 0 | {more['mean']:.4f} ({interval}) |",
            f"| KL to bf16, nats a token | 0 | {found['kl_nats']:.5f} |",
            f"| same likeliest token | 100 % | {found['top1_agreement']:.2%} |",
            f"| logit error, mean / max | 0 | {found['mean_logit_error']:.4f} / {found['max_logit_error']:.3f} |",
            "",
        ]
        unseen = found["unseen_experts"]
        line = (
            f"no token of this text reached: {'; '.join(unseen)}" if unseen else "every expert saw tokens of this text"
        )
        lines += [f"Experts: {line}.", ""]
    else:
        lines += ["Nothing was measured: no held-out text was given.", ""]
    reasons: dict[str, int] = {}
    for reason in facts["kept"].values():
        reasons[reason] = reasons.get(reason, 0) + 1
    lines += ["Left in bf16:", "", *(f"* {count} matrices: {reason}" for reason, count in reasons.items())]
    return "\n".join(lines) + "\n"
