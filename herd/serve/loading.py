"""The models that `herd serve A NAME=B …` names: checked at once, opened when they are needed."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from herd.config import EngineConfig
from herd.engine.engine import Engine
from herd.engine.filters import Gate
from herd.engine.load import load
from herd.engine.model import LoadedModel
from herd.engine.pipeline import AnswerPipeline
from herd.errors import HerdError
from herd.model.formats.source import LOW_BIT, Source, find_source
from herd.plan.counts import count, usual_cache_bytes
from herd.serve.generation_config import default_params
from herd.serve.models import LocalModel, ModelSource


def named_paths(words: Sequence[str]) -> dict[str, Path]:
    """The models' names and paths, of `PATH` or `NAME=PATH`. Raises HerdError where two have one name."""
    found: dict[str, Path] = {}
    for word in words:
        given, equals, rest = word.partition("=")
        is_named = bool(equals and rest) and not Path(word).exists()
        path = Path(rest) if is_named else Path(word)
        name = given if is_named else path.resolve().name
        if not name or not name.isprintable():
            raise HerdError(f"{word}: the name {name!r} must be a text: write NAME=PATH")
        if name in found:
            raise HerdError(f"{found[name]} and {path} are both named {name!r}: write NAME={path}")
        found[name] = path
    return found


def model_sources(
    paths: dict[str, Path], config: EngineConfig, *, gate: Gate | None, base: Path | None, draft_model: Path | None
) -> list[ModelSource]:
    """What can be opened; `base` and `draft_model` are the first one's. Raises HerdError where a path is no model."""
    sources = []
    for number, (name, path) in enumerate(paths.items()):
        of_first = {"base": base, "draft_model": draft_model} if number == 0 else {"base": None, "draft_model": None}
        sources.append(_source(name, path, config, gate=gate, **of_first))
    return sources


def _source(
    name: str, path: Path, config: EngineConfig, *, gate: Gate | None, base: Path | None, draft_model: Path | None
) -> ModelSource:
    def open_model() -> LocalModel:
        model, draft = load(path, base=base), load(draft_model) if draft_model else None
        cache = config.kv_cache_memory_bytes or usual_cache_bytes(
            model.config, config, number_bytes=model.transformer.embedding.weight.itemsize
        )
        engine = Engine(model, dataclasses.replace(config, kv_cache_memory_bytes=cache), draft_model=draft)
        return LocalModel(
            name=name,
            pipeline=AnswerPipeline(model, engine, gate=gate),
            params=default_params(path, base=base),
            num_bytes=weight_bytes(model) + engine.cache_bytes + (weight_bytes(draft) if draft else 0),
        )

    size = _estimate(find_source(path, base=base), config)
    if draft_model:
        size += _estimate(find_source(draft_model), config)
    return ModelSource(name=name, open=open_model, num_bytes=size)


def _estimate(source: Source, config: EngineConfig) -> int:
    """Bytes that the weights and the cache will have, from the configuration and the sizes of files."""
    weights = source.weights()
    size = weights.dtype.itemsize
    cache = config.kv_cache_memory_bytes or usual_cache_bytes(weights.config, config, number_bytes=size)
    if source.kind == LOW_BIT:  # which stays packed
        return sum(file.stat().st_size for file in source.path.glob("*.safetensors")) + cache
    return count(weights.config).total * size + cache


def weight_bytes(model: LoadedModel) -> int:
    """Bytes of the weights in memory."""
    transformer = model.transformer
    return sum(one.nbytes for one in (*transformer.parameters(), *transformer.buffers()))
