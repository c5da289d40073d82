"""How long the documents were that a model was trained on, as recorded in its folder.

A folder of Herd's names the stage that made it, with its settings, and the folder that it was made from: the longest
document of all those stages counts. Other folders have only what they are made for: the positions before their RoPE was
scaled, else those that they claim or the chunk of their local layers, whichever is less.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from herd.config import ModelConfig
from herd.core.lineage import read_lineage
from herd.errors import HerdError

FIRST = ("model", "vision")
"""Stages that a model of Herd's begins with."""


def training_length(folder: Path, config: ModelConfig) -> tuple[int, str]:
    """Tokens of the longest document of training, and where it is written.

    Raises HerdError where a folder that it was made from is not there any more.
    """
    lengths: list[tuple[int, str]] = []
    stage = ""
    for name, lineage in ancestors(folder):
        stage, settings = lineage.get("stage", ""), lineage.get("config") or {}
        if tokens := max((settings.get("context", 0), *settings.get("lengths", ()))):
            lengths.append((tokens, f"the settings of {name}"))
    if not lengths or stage not in FIRST:  # trained elsewhere before
        lengths.append(claimed_length(config))
    return max(lengths, key=lambda length: length[0])


def claimed_length(config: ModelConfig) -> tuple[int, str]:
    """What the model's own configuration claims."""
    if config.rope_scaling is not None:
        return config.rope_scaling.original_max_positions, "the positions before RoPE was scaled"
    if config.chunk_size < config.max_positions:
        return config.chunk_size, "the chunk of the local layers"
    return config.max_positions, "the positions that the model claims"


def ancestors(folder: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The name and lineage of a model folder, and of those that it was made from, as far as they are Herd's."""
    while (folder / "herd.json").is_file():
        lineage = read_lineage(folder)
        yield folder.name, lineage
        parent = lineage.get("parents", {}).get("model")
        if parent is None:
            return
        folder = find_parent(folder, parent)


def find_parent(folder: Path, parent: Mapping[str, str]) -> Path:
    """The parent's folder at its path, or beside the folder that was made from it, where the run has been moved."""
    path = Path(parent["path"])
    for place in (path, folder.parent / path.name):
        if place.is_file() or (place.is_dir() and not (place / "herd.json").exists()):
            return place  # of others: no lineage to compare
        if place.is_dir() and read_lineage(place).get("hash") == parent["hash"]:
            return place
    raise HerdError(
        f"{folder} was made from {path}, which is not there, so the length of its training documents is not known: "
        "give --long.trained"
    )
