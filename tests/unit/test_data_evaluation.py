"""Every evaluation set is kept out of what is trained on: its planted leaks are found, and clean documents are kept."""

import json
import random
from itertools import cycle
from pathlib import Path
from typing import Any

import data_world
import pytest
from test_data_books import pack_of
from test_text_contamination import CONFIG, NUM_WORDS, disguise, sentence

from herd.config import ChatSource, DataConfig, PromptSource, TextSource
from herd.core.files import read_json
from herd.data.loading import tables
from herd.data.packages.novel import SOURCE
from herd.data.sources.fetch import Pack
from herd.data.text.contamination import ANY, NUMBER, EvaluationIndex, Item, words_of
from herd.stages.data import build_data
from herd.stages.data_evaluation import evaluation_sets

NUM_LEAKS, NUM_CLEAN = 500, 2000
RNG = random.Random(3)
KNOWN = ["".join(RNG.choices("etainshdlucm", k=RNG.randint(2, 9))) for _ in range(NUM_WORDS)]
SETS = {
    "exam", "talk", "taste", "packages, task", "photos, captions", "clips, captions",
    "needles", "statements", "grammar", "novel, questions", "novel",
}  # fmt: skip


def words(number: int) -> str:
    return " ".join(sentence(RNG, KNOWN, number))


def said(*texts: str) -> str:
    roles = cycle(["user", "assistant"])
    return tables.to_json([{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)])


@pytest.fixture(scope="module")
def novel(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    chapters = {f"data/chapter_{n}.txt": f"CHAPTER {n}. Title.\n\n{words(800)}" for n in range(1, 6)}
    return pack_of(SOURCE, chapters, tmp_path_factory.mktemp("novel"))


@pytest.fixture(scope="module")
def sets(novel: Pack, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Item]]:
    """Of tables with rows that are held out and rows that are not."""
    work = tmp_path_factory.mktemp("work")
    both = [split for split in ("train", "heldout") for _ in range(20)]
    rows: dict[str, list[dict[str, Any]]] = {
        "chats": [
            {"split": split, "source": source, "kind": "task", "messages": said(words(12), words(9))}
            for split in both
            for source in ("packages", "talk")
        ],
        "prompts": [{"split": split, "source": "exam", "prompt": said(words(14)), "answer": "17"} for split in both],
        "preferences": [
            {"split": split, "source": "taste", "prompt": said(words(9)), "chosen": said(words(9))} for split in both
        ],
        "pictures": [
            {"split": split, "source": "photos", "names": "{}", "captions": json.dumps({"en": words(13)})}
            for split in [*both, "styles"]
        ],
        "clips": [{"split": split, "names": json.dumps({"en": words(10)})} for split in both],
    }
    schemas = [tables.CHATS, tables.PROMPTS, tables.PREFERENCES, tables.PICTURES, tables.CLIPS]
    for (name, of), schema in zip(rows.items(), schemas, strict=True):
        tables.write(work / f"{name}.parquet", of, schema)
    return evaluation_sets(work, novel)


def leak(item: Item, rng: random.Random) -> list[str] | None:
    """Words that are a passage of the item; None where it is too short to be looked for."""
    if isinstance(item, str):
        whole = words_of(item)
        size = min(rng.randint(13, 30), len(whole))
        begin = rng.randint(0, max(len(whole) - size, 0))
        return whole[begin : begin + size] if len(whole) >= 8 else None
    gaps = {ANY: lambda: rng.choice(KNOWN), NUMBER: lambda: str(rng.randint(10_000, 99_999))}
    return [gaps[word]() if word in gaps else word for word in item.words] if item.is_checked else None


def near_miss(item: Item, rng: random.Random) -> list[str]:
    """A passage of at most thirteen words with one changed that may not be another."""
    passage = (leak(item, rng) or [])[:13] if isinstance(item, str) else leak(item, rng) or []
    given = [place for place, word in enumerate(passage) if isinstance(item, str) or item.words[place] == word]
    passage[given[len(given) // 2]] = "never"
    return passage


def test_the_sets_are_what_is_held_out_and_what_long_texts_are_asked(sets: dict[str, list[Item]]) -> None:
    assert set(sets) == SETS
    for name in ("exam", "talk", "taste", "packages, task", "photos, captions", "clips, captions"):
        assert len(sets[name]) == 20  # half of the rows
    index = EvaluationIndex(sets, 13)
    assert set(index.checked) == SETS
    assert set(index.unchecked) == {"needles", "statements", "grammar", "novel, questions"}


@pytest.mark.parametrize("name", sorted(SETS))
def test_planted_leaks_of_each_set_are_found_and_clean_documents_are_kept(
    name: str, sets: dict[str, list[Item]]
) -> None:
    rng, index = random.Random(name), EvaluationIndex(sets, 13)
    articles = cycle(data_world.ARTICLE.values())

    def document(passage: list[str]) -> str:
        text = sentence(rng, KNOWN, rng.randint(50, 150))
        place = rng.randint(0, len(text))
        return " ".join([*text[:place], disguise(passage, rng), *text[place:], next(articles)])

    checked = [item for item in sets[name] if leak(item, rng)]
    leaks = [leak(item, rng) for item, _ in zip(cycle(checked), range(NUM_LEAKS), strict=False)]
    found = [index.find(document(passage or [])) for passage in leaks]
    assert sum(one is not None and one[0] == name for one in found) >= 0.99 * NUM_LEAKS
    misses = [near_miss(item, rng) for item, _ in zip(cycle(checked), range(NUM_CLEAN), strict=False)]
    assert sum(index.find(document(passage)) is not None for passage in misses) <= 0.001 * NUM_CLEAN


def test_what_is_held_out_of_prompts_and_chats_is_kept_out_of_the_text_of_a_data_folder(tmp_path: Path) -> None:
    asked = [words(20) for _ in range(60)]
    prompts = [{"prompt": text, "answer": "17"} for text in asked[:30]]
    chats = [{"messages": json.loads(said(text, "Yes."))} for text in asked[30:]]
    documents = [{"text": f"They asked: {text}"} for text in asked]
    for name, rows in {"exam": prompts, "talk": chats, "text": documents}.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    built = build_data(
        DataConfig(
            packages=False,
            text=(TextSource(path=str(tmp_path / "text.jsonl"), name="text"),),
            prompts=(PromptSource(path=str(tmp_path / "exam.jsonl"), name="exam"),),
            chats=(ChatSource(path=str(tmp_path / "talk.jsonl"), name="talk"),),
            heldout_pairs=0.3,
            cleaning=CONFIG,
            vocab_size=300,
        ),
        tmp_path / "out",
    )
    held = {row["prompt"] for row in tables.read(built, "prompts") if row["split"] == "heldout"}
    held |= {row["messages"] for row in tables.read(built, "chats") if row["split"] == "heldout"}
    texts = {json.loads(messages)[0]["content"] for messages in held}
    assert 4 < len(texts) < 40
    kept = {row["text"].removeprefix("They asked: ") for row in tables.read(built, "text")}
    assert kept == set(asked) - texts
    card = read_json(built / "herd.json")["card"]["cleaning"]
    assert set(card["contaminated"]) == {"exam", "talk"} == set(card["checked_items"]) & {"exam", "talk"}


def test_training_chats_with_a_held_out_prompt_are_left_out_and_counted(tmp_path: Path) -> None:
    asked = [words(20) for _ in range(40)]
    prompts = [{"prompt": text, "answer": "17"} for text in asked]
    chats = [{"messages": json.loads(said(f"{text} Why?", "Yes."))} for text in asked]
    for name, rows in {"exam": prompts, "talk": chats}.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    built = build_data(
        DataConfig(
            packages=False,
            prompts=(PromptSource(path=str(tmp_path / "exam.jsonl"), name="exam"),),
            chats=(ChatSource(path=str(tmp_path / "talk.jsonl"), name="talk"),),
            heldout_pairs=0.3,
            vocab_size=300,
        ),
        tmp_path / "out",
    )
    rows = tables.read(built, "chats")
    trained = {json.loads(row["messages"])[0]["content"] for row in rows if row["split"] == "train"}
    held = {json.loads(row["prompt"])[0]["content"] for row in tables.read(built, "prompts") if row["split"] != "train"}
    assert trained and held and not {f"{text} Why?" for text in held} & trained
    [source] = [one for one in read_json(built / "herd.json")["card"]["sources"] if one["name"] == "talk"]
    skipped = source["skipped"]["chats with a passage of an evaluation set"]
    assert skipped["count"] == len(asked) - len(rows) and skipped["places"][0].split(": ")[-2] == "exam"
    assert source["rows"]["train"] == len(trained)
