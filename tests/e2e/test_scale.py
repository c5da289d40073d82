"""A large corpus goes from its files to training in little memory: `HERD_SCALE_MB` megabytes, 1,000 by default, with
`HERD_SCALE_WORKERS` workers, 2 by default."""

import io
import json
import os
import random
import shutil
import string
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from herd.core.files import read_json
from herd.core.tracker import read_metrics
from herd.data.loading import tables
from herd.data.tokens.tokenizer import train_tokenizer

MEGABYTES = int(os.environ.get("HERD_SCALE_MB", "1000"))
WORKERS = os.environ.get("HERD_SCALE_WORKERS", "2")
LIMIT_BYTES = 1.5 * 2**30
FILE_BYTES = 50e6
GLUE = ("the", "of", "and", "to", "that", "have", "with", "in", "is", "for", "was", "this")


def write_corpus(folder: Path, megabytes: float) -> int:
    """Files of JSON lines, of sentences of made-up words; the number of documents."""
    folder.mkdir()
    rng = random.Random(0)
    words = ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 9))) for _ in range(30_000)]
    sentences = []
    for _ in range(100_000):
        chosen = rng.choices(words, k=rng.randint(6, 14))
        sentence = " ".join(word for one in chosen for word in (one, rng.choice(GLUE)))
        sentences.append(sentence[:1].upper() + sentence[1:] + ".")
    written, documents, file = 0.0, 0, None
    while written < megabytes * 1e6:
        if file is None or file.tell() > FILE_BYTES:
            if file is not None:
                file.close()
            file = (folder / f"part-{documents:09}.jsonl").open("w", encoding="utf-8")
        lines = rng.choices(sentences, k=rng.randint(3, 25))
        line = json.dumps({"text": "\n".join(lines)}) + "\n"
        written += file.write(line)
        documents += 1
    assert file is not None
    file.close()
    return documents


def family(pid: int) -> Iterator[int]:
    """A process and all below it."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from family(int(child))


def resident_bytes(pid: int) -> int:
    """Memory of a process and all below it, with what they share counted for each."""
    pages = 0
    with suppress(OSError):  # those that end meanwhile
        for one in family(pid):
            pages += int(Path(f"/proc/{one}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def herd(*arguments: str | Path) -> int:
    """Run a command; the peak of the memory of all its processes together."""
    peak = 0
    begin = time.monotonic()
    with subprocess.Popen([sys.executable, "-m", "herd", *map(str, arguments)]) as process:
        while process.poll() is None:
            peak = max(peak, resident_bytes(process.pid))
            time.sleep(0.1)
    assert process.returncode == 0
    print(f"herd {arguments[0]}: {time.monotonic() - begin:.0f} s, {peak / 2**20:.0f} MiB")
    return peak


@pytest.mark.slow
def test_a_large_corpus_is_read_and_trained_on_in_little_memory(tmp_path: Path) -> None:
    folder, data = tmp_path / "corpus", tmp_path / "data"
    documents = write_corpus(folder, MEGABYTES)
    recipe = tmp_path / "scale.toml"
    recipe.write_text(
        f"[data]\nvocab_size = 2048\n[[data.text]]\npath = {str(folder)!r}\nlanguage = 'en'\n"
        "[data.cleaning]\nlanguage = false\nboilerplate_documents = 4\n"
    )
    peaks = [herd("data", "build", "--recipe", recipe, "--out", data, "--workers", WORKERS)]
    shutil.rmtree(folder)
    herd("model", "--preset", "tiny", "--data", data, "--out", tmp_path / "model")
    train = ("pretrain", tmp_path / "model", "--data", data, "--out", tmp_path / "pretrain")
    peaks.append(herd(*train, "--num-tokens", "60K", "--picture-share", "0"))
    manifest = read_json(data / "tokens" / "manifest.json")
    assert manifest["documents"] > 0.9 * documents
    assert sum(group["bytes"] for group in manifest["groups"]) > 0.85 * MEGABYTES * 1e6
    lines = read_metrics(tmp_path / "pretrain" / "metrics.jsonl")
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert max(peaks) < LIMIT_BYTES


OPEN_CHATS = """
import sys
from pathlib import Path
from herd.config import SftConfig, preset
from herd.core.lineage import peak_memory_bytes
from herd.data.loading import picture_shelf, table_rows
from herd.data.loading.sft_batches import SftBatches
from herd.data.media.image import ImageProcessor
from herd.data.tokens.tokenizer import Tokenizer

folder = Path(sys.argv[1])
table_rows.CACHE_BYTES = picture_shelf.WHOLE_BYTES = picture_shelf.SMALL_BYTES = 2**22
tokenizer = Tokenizer.load(folder / "tokenizer")
processor = ImageProcessor(preset("tiny", vocab_size=tokenizer.vocab_size, special=tokenizer.ids).vision)
config = SftConfig(num_tokens=200_000, batch_tokens=4_000, context=2_000, replay_share=0.0)
batches = SftBatches(folder, config, tokenizer, processor)
assert any(batches.batch(step).images is not None for step in range(batches.num_steps))
print(peak_memory_bytes())
"""


def write_chats(folder: Path, count: int) -> None:
    """Chats of 2 kB, every twentieth of them about a picture of 100 kB, and their tables' sizes in bytes."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), size=6)) for _ in range(500)]
    train_tokenizer([" ".join(words)], 400).save(folder / "tokenizer")

    def pictures() -> Iterator[dict[str, object]]:
        for number in range(0, count, 20):
            png = io.BytesIO()
            Image.fromarray(rng.integers(256, size=(180, 180, 3), dtype=np.uint8)).save(png, "PNG")
            row = {"id": str(number), "split": "train", "source": "mine", "subject": "", "png": png.getvalue()}
            yield {**row, "names": "{}", "captions": "{}", "width": 180, "height": 180}

    def chats() -> Iterator[dict[str, object]]:
        for number in range(count):
            said = [{"type": "text", "text": " ".join(rng.choice(words, size=280))}]
            shown = [{"type": "image", "picture": str(number)}] if number % 20 == 0 else []
            messages = [{"role": "user", "content": [*shown, *said]}, {"role": "assistant", "content": "yes"}]
            yield {"id": str(number), "split": "train", "messages": json.dumps(messages), "tools": ""}

    tables.write(folder / "pictures.parquet", pictures(), tables.PICTURES)
    tables.write(folder / "chats.parquet", chats(), tables.CHATS)


@pytest.mark.slow
def test_the_memory_of_fine_tuning_does_not_grow_with_chats_and_pictures(tmp_path: Path) -> None:
    peaks = []
    for count in (2_000, 12_000):
        write_chats(tmp_path / str(count), count)
        run = subprocess.run(
            [sys.executable, "-c", OPEN_CHATS, str(tmp_path / str(count))], capture_output=True, text=True, check=True
        )
        peaks.append(int(run.stdout))
    print([f"{peak / 2**20:.0f} MiB" for peak in peaks])
    assert peaks[1] - peaks[0] < 24 * 2**20  # of 70 MB more on disk
