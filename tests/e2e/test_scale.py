"""A large corpus goes from its files to training in little memory: `HERD_SCALE_MB` megabytes, 1,000 by default."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from herd.core.files import read_json
from herd.core.tracker import read_metrics

MEGABYTES = int(os.environ.get("HERD_SCALE_MB", "1000"))
LIMIT_BYTES = 1.5 * 2**30
FILE_BYTES = 50e6
GLUE = ("the", "of", "and", "to", "that", "have", "with", "in", "is", "for", "was", "this")


def write_corpus(folder: Path, megabytes: float) -> int:
    """Files of JSON lines, of sentences of made-up words; the number of documents."""
    folder.mkdir()
    rng = random.Random(0)
    syllables = [
        "ba",
        "ker",
        "lin",
        "to",
        "mar",
        "den",
        "sil",
        "ver",
        "ho",
        "pen",
        "ta",
        "ris",
        "con",
        "der",
        "al",
        "mo",
    ]
    words = ["".join(rng.choices(syllables, k=rng.randint(2, 4))) for _ in range(30_000)]
    written, documents, file = 0.0, 0, None
    while written < megabytes * 1e6:
        if file is None or file.tell() > FILE_BYTES:
            if file is not None:
                file.close()
            file = (folder / f"part-{documents:09}.jsonl").open("w", encoding="utf-8")
        lines = []
        for _ in range(rng.randint(3, 25)):
            chosen = rng.choices(words, k=rng.randint(6, 14))
            sentence = " ".join(word for one in chosen for word in (one, rng.choice(GLUE)))
            lines.append(sentence[:1].upper() + sentence[1:] + ".")
        line = json.dumps({"text": "\n".join(lines)}) + "\n"
        written += file.write(line)
        documents += 1
    assert file is not None
    file.close()
    return documents


def herd(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "herd", *map(str, arguments)], check=True)


@pytest.mark.slow
def test_a_large_corpus_is_read_and_trained_on_in_little_memory(tmp_path: Path) -> None:
    folder, data = tmp_path / "corpus", tmp_path / "data"
    documents = write_corpus(folder, MEGABYTES)
    recipe = tmp_path / "scale.toml"
    recipe.write_text(
        f"[data]\nvocab_size = 2048\n[[data.text]]\npath = {str(folder)!r}\nlanguage = 'en'\n"
        "[data.cleaning]\nlanguage = false\nnear_duplicates = 0.0\n"
    )
    herd("data", "build", "--recipe", recipe, "--out", data)
    shutil.rmtree(folder)
    herd("model", "--preset", "tiny", "--data", data, "--out", tmp_path / "model")
    herd(
        *("pretrain", tmp_path / "model", "--data", data, "--out", tmp_path / "pretrain"),
        *("--num-tokens", "60K", "--picture-share", "0"),
    )
    manifest = read_json(data / "tokens" / "manifest.json")
    assert manifest["documents"] > 0.9 * documents
    assert sum(group["bytes"] for group in manifest["groups"]) > 0.85 * MEGABYTES * 1e6
    lines = read_metrics(tmp_path / "pretrain" / "metrics.jsonl")
    assert lines[-1]["loss"] < lines[0]["loss"]
    peaks = {name: read_json(tmp_path / name / "herd.json")["peak_memory_bytes"] for name in ("data", "pretrain")}
    print({name: f"{peak / 2**20:.0f} MiB" for name, peak in peaks.items()})
    assert max(peaks.values()) < LIMIT_BYTES
