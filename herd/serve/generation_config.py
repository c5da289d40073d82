"""The sampling that a model folder asks for."""

from pathlib import Path

from herd.core.files import read_json
from herd.engine.sampler import SamplingParams
from herd.model.formats.source import find_source


def default_params(folder: Path, *, base: Path | None = None) -> SamplingParams:
    """The defaults in the folder's generation_config.json; greedy where it has none, as in transformers."""
    path = folder / "generation_config.json"
    path = path if path.exists() else find_source(folder, base=base).beside(path.name)  # that of an adapter's base
    config = read_json(path) if path.exists() else {}
    if not config.get("do_sample"):
        return SamplingParams()
    fields = {"temperature": float, "top_p": float, "top_k": int, "min_p": float, "repetition_penalty": float}
    given = {name: kind(config[name]) for name, kind in fields.items() if config.get(name) is not None}
    return SamplingParams(**{"temperature": 1.0, **given})
