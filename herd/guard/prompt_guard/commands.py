"""What `herd guard train-prompt` and `herd guard check-prompt` do."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from herd.core.files import lock_folder, read_text, work_folder
from herd.data.sources.fetch import fetch
from herd.data.sources.guard_list import READER_SOURCE
from herd.errors import HerdError
from herd.guard.prompt_guard.examples import PromptGuardTraining
from herd.guard.prompt_guard.export import export_onnx
from herd.guard.prompt_guard.guard import PromptGuard, facts_of
from herd.guard.prompt_guard.reader import Reader, pretrained
from herd.guard.prompt_guard.sets import EMBEDDED, Sets, distinct, embedded_sets, own_sets
from herd.guard.prompt_guard.train import train_prompt_guard


def train(data: Sequence[str], out: Path, *, num_epochs: int, seed: int, onnx: bool, reader: bool) -> Path:
    """Train on files, on the embedded sets or on both, and write the folder."""
    with lock_folder(work_folder(out)):
        return _train(data, out, num_epochs=num_epochs, seed=seed, onnx=onnx, reader=reader)


def _train(data: Sequence[str], out: Path, *, num_epochs: int, seed: int, onnx: bool, reader: bool) -> Path:
    files = [Path(name) for name in data if name != EMBEDDED]
    parts = [own_sets(files)] if files else []
    if not files or EMBEDDED in data:
        parts.append(embedded_sets())
    sets = Sets(
        train=distinct(one for part in parts for one in part.train),
        valid=distinct(one for part in parts for one in part.valid),
        dropped=parts[-1].dropped,
    )
    config = PromptGuardTraining(num_epochs=num_epochs, seed=seed)
    parents = {f"data {number}": path for number, path in enumerate(files, 1)}
    read_by = pretrained_reader([one.text for one in sets.train]) if reader else None
    folder = train_prompt_guard(sets, config, out, parents, read_by)
    if onnx:
        export_onnx(PromptGuard(folder), folder.with_name(folder.name + ".onnx"))
    return folder


def pretrained_reader(texts: Sequence[str]) -> Reader:
    """The encoder that the reader of `texts` begins as, fetched if it is not in the cache. Raises HerdError where it is
    not to be had."""
    found = fetch([READER_SOURCE])
    if found.missing:
        ((name, reason),) = found.missing.items()
        raise HerdError(f"{name} cannot be had ({reason}): train without the reader (--no-reader)")
    return pretrained(found.packs[READER_SOURCE.name], texts)


def check(folder: Path, text: str, *, file: Path | None, as_json: bool) -> bool:
    """Print the verdict on a text, or on a file as a whole; whether it is flagged."""
    if file is not None:
        text = read_text(file)
    elif text == "-":
        text = sys.stdin.read()
    torch.set_num_threads(1)
    verdict = PromptGuard(folder).check(text)
    if as_json:
        print(json.dumps(facts_of(verdict), ensure_ascii=False))
    else:
        word = "injection or jailbreak" if verdict.flagged else "not flagged"
        print(f"{word}: score {verdict.score:.4f}, the highest of {verdict.num_windows} windows")
        if verdict.flagged:
            reading = ("as it is", "in plain letters", "decoded")[verdict.reading]
            print(f"read {reading}: {verdict.passage[:300]}")
        if verdict.note:
            print(f"note: {verdict.note}")
    return verdict.flagged
