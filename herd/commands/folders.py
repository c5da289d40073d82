"""Commands that write without training: `herd data fetch`, `data pairs`, `report`, `adopt`, `merge`, `convert`."""

from pathlib import Path

from herd.commands.command import load_object
from herd.core.console import traceback_log
from herd.errors import HerdError


def data_fetch() -> None:
    """Download the packages with the raw data into the cache."""
    fetched = load_object("herd.data.sources.fetch:fetch")()
    size = sum(pack.path.stat().st_size for pack in fetched.packs.values())
    folder = load_object("herd.core.files:cache_folder")()
    print(f"{len(fetched.packs)} packages, {size / 1e6:,.0f} MB, are in {folder}")


def data_pairs(run: Path, /, *, out: Path) -> None:
    """Write pairs of better and worse answers, for herd dpo, from what a run of herd rl has drawn.

    Args:
        run: Finished folder of herd rl.
        out: JSONL file to write, with prompt, chosen and rejected.
    """
    count, left_out = load_object("herd.rl.pairs:write_pairs")(run, out)
    for what, number in left_out.items():
        print(f"left out {number:,} {what}")
    print(f"wrote {out}: {count:,} pairs")


def report(
    run: Path,
    /,
    *,
    out: Path | None = None,
    against: tuple[Path, ...] = (),
    samples: bool = False,
    stage: str = "",
) -> None:
    """Write a report about a run: one HTML page.

    Args:
        run: Folder of a run or of one stage, finished or unfinished.
        out: Folder to write; RUN/report if not given, beside a single stage STAGE-report.
        against: Earlier runs or stages to compare with.
        samples: Have the last model continue held-out texts, where no evaluation did.
        stage: Stage whose model the report is about, with what it was made from and its evaluations; all if not given.
    """
    written = load_object("herd.evaluate.report:report")(run, out, against=against, samples=samples, stage=stage)
    print(f"wrote {written / 'report.html'}")


def adopt(
    source: Path,
    out: Path,
    /,
    *,
    experts: int = 1,
    nope_every: int | None = None,
    vision: str | None = None,
    dtype: str | None = None,
    seed: int = 0,
) -> None:
    """Convert a dense Llama to a Llama 4 model that computes the same function.

    Args:
        source: Folder of a dense Llama (Hugging Face), or a GGUF file of one.
        out: Folder to write.
        experts: Routed experts of each layer: 1 outputs zero until trained; several compute half of the feed-forward.
        nope_every: Remove positions from every N-th layer, as in Llama 4: another function, to be trained.
        vision: Add a new encoder, to be trained: tiny.
        dtype: float32 or bfloat16; lossless if not given.
        seed: Of new weights.
    """
    if out.exists():
        raise HerdError(f"{out} is there already: give another folder, or remove it first")
    settings = {"experts": experts, "nope_every": nope_every, "vision": vision, "dtype": dtype, "seed": seed}
    config = load_object("herd.stages.adopt:AdoptConfig")(**settings)
    print(f"wrote {load_object('herd.stages.adopt:adopt')(config, source, out)}")


def merge(adapter: Path, /, *, out: Path, base: Path | None = None, dtype: str = "") -> None:
    """Merge a LoRA adapter into its base: a model folder.

    Args:
        adapter: Folder of an adapter, as herd sft --lora 16 writes it, or PEFT.
        out: Folder to write.
        base: Folder of the model that it was trained on, if that is not where the adapter says.
        dtype: bfloat16, float16 or float32; the base's if not given.
    """
    traceback_log.set(out.with_name(out.name + ".log"))
    config = load_object("herd.stages.merge:MergeConfig")(dtype=dtype)
    print(f"wrote {load_object('herd.stages.merge:merge')(config, adapter, out, base=base)}")


def convert(
    source: Path,
    out: Path,
    /,
    *,
    shards: int = 8,
    dtype: str = "",
    text_only: bool = False,
    quantize: str | None = None,
    group: int | None = None,
    fit: str = "amax",
    everywhere: bool = False,
    keep_head: bool = False,
    data: Path | None = None,
    text: Path | None = None,
    max_bytes: int = 20_000,
) -> None:
    """Write a model in another format: Hugging Face, Meta, GGUF, or packed to 8 or 4 bits.

    Args:
        source: Folder of a model (Hugging Face's layout, packed or not, or Meta's), or a .gguf file.
        out: Folder to write, or a path that ends in .gguf.
        shards: Files of Meta's folder, one for each rank of tensor parallelism.
        dtype: bfloat16, float16 or float32; as stored if not given.
        text_only: Leave the vision encoder out; required for GGUF.
        quantize: int4, int8 or fp8: Hugging Face's layout with packed weights.
        group: int4: weights that share a scale: 128 (default), 64 or 32.
        fit: int4: amax as Meta does, or search for the scales of least error.
        everywhere: fp8: every product, not the routed experts alone.
        keep_head: Packed: leave the unembedding in bf16, as vLLM requires.
        data: Packed: data folder whose held-out documents are measured on.
        text: Packed: text file to measure on instead.
        max_bytes: Packed: text to measure on at most, of each language or of the file.
    """
    traceback_log.set(out.with_name(out.name + ".log"))
    if quantize is None:
        module = "herd.stages.convert"
        config = load_object(f"{module}:ConvertConfig")(shards=shards, dtype=dtype, text_only=text_only)
        print(f"wrote {load_object(f'{module}:convert')(config, source, out)}")
        return
    scheme = load_object("herd.model.quantize:Scheme")(
        name=quantize, group=group, fit=fit, everywhere=everywhere, keep_head=keep_head
    )
    written = load_object("herd.evaluate.quantized:quantize_folder")(
        source, out, scheme, data=data, text=text, max_bytes=max_bytes
    )
    print((written / "README.md").read_text(encoding="utf-8"))
    print(f"wrote {written}")
