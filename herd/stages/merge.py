"""`herd merge`: a LoRA adapter added to its base, as a model folder of its own.

What was two products becomes one: the sums are made in fp32 and rounded to the base's number format, or to `dtype`.
Files beside the weights are the adapter's where it has them (tokenizer, chat template), else the base's.
"""

from dataclasses import dataclass
from pathlib import Path

from herd.core.lineage import Stage, remove_leftovers
from herd.errors import HerdError, unknown
from herd.model.formats import huggingface
from herd.model.formats.floats import FLOATS, dtype_of
from herd.model.formats.source import ADAPTER, find_source
from herd.stages.convert import carry, shown


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """How to merge."""

    dtype: str = ""
    """bfloat16, float16 or float32; the base's if empty."""

    def __post_init__(self) -> None:
        if self.dtype and self.dtype not in FLOATS:
            raise unknown("dtype", self.dtype, FLOATS)


def merge(config: MergeConfig, adapter: Path, out: Path, *, base: Path | None = None) -> Path:
    """Write the adapter folder `adapter` merged into its base, which is `base` if given, as the model folder `out`."""
    if out.exists():
        raise HerdError(f"{out} is there already: give another path, or remove it first")
    source = find_source(adapter, base=base)
    if source.kind != ADAPTER or source.base is None:
        raise HerdError(f"{adapter} is a model, no adapter: there is nothing to merge")
    weights = source.weights(dtype_of(config.dtype))
    remove_leftovers(out)
    stage = Stage("merge", out, config=config, parents={"model": adapter, "base": source.base.path})
    huggingface.save_processor(weights.config, stage.work)
    carry(source, stage.work)
    with shown(weights) as reading:
        huggingface.write(reading, stage.work, dtype=dtype_of(config.dtype) or weights.dtype)
    if not (stage.work / "tokenizer.json").exists():
        source.tokenizer(weights.config.special).save(stage.work)
    return stage.finish()
