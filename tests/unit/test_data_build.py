"""A whole data folder from made-up packages: the same twice, nothing held out is trained on, killed and resumed."""

import html
import io
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import data_world
import pyarrow.parquet as parquet
import pytest
from data_world import EMOJI
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import herd.stages.data as stage
from herd.config import LANGUAGES
from herd.core.files import folder_hash, read_json, work_folder
from herd.data.packages import pictures
from herd.data.packages.pictures import all_pictures, clips, things
from herd.data.text.spelling import spellings
from herd.data.text.splits import groups
from herd.errors import HerdError
from herd.stages.data import DataConfig, build_data
from herd.stages.data_sources import OwnSources

CFG = DataConfig(
    english_bytes=60_000,
    other_bytes=10_000,
    heldout=0.2,
    heldout_bytes=2_000,
    picture_px=64,
    heldout_subjects=0.3,
    heldout_pairs=0.3,
    clips=8,
    vocab_size=300,
)


class FakePack:
    """Members without an archive."""

    def __init__(self, members: dict[str, str]) -> None:
        self.members = members

    def read(self, name: str) -> bytes:
        return self.members[name].encode()


class Killed(BaseException):
    """Stands for a kill, which no handler of errors sees."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def data(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "fetch", lambda: data_world.fetched(world))
        return build_data(CFG, tmp_path_factory.mktemp("run") / "data")


def rows(data: Path, name: str) -> list[dict[str, Any]]:
    return parquet.read_table(data / f"{name}.parquet").to_pylist()


def test_two_builds_are_the_same_bit_by_bit(
    data: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "fetch", lambda: data_world.fetched(world))
    again = build_data(CFG, tmp_path / "data")
    assert folder_hash(again) == folder_hash(data)
    assert (again / "tokenizer/tokenizer.json").read_bytes() == (data / "tokenizer/tokenizer.json").read_bytes()


def test_a_killed_build_resumes_after_its_last_step(
    data: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "fetch", lambda: data_world.fetched(world))

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setitem(stage.STEPS, "text", killed)
        with pytest.raises(Killed):
            build_data(CFG, tmp_path / "data")
    assert not (tmp_path / "data").exists()
    with monkeypatch.context() as patch:
        for done in ("pictures", "clips", "chats"):
            patch.setitem(stage.STEPS, done, killed)
        resumed = build_data(CFG, tmp_path / "data")
    assert folder_hash(resumed) == folder_hash(data)
    assert read_json(resumed / "herd.json")["card"] == read_json(data / "herd.json")["card"]


def test_steps_of_another_config_are_not_reused(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = data_world.fetched(world)
    work = work_folder(tmp_path / "data")
    work.mkdir()

    def steps(cfg: DataConfig) -> stage.Steps:
        key, own = stage.build_key(cfg, fetched.packs.values(), {}), OwnSources(cfg=cfg)
        return stage.Steps(stage.Build(cfg=cfg, work=work, fetched=fetched, own=own, novel=None, key=key))

    steps(CFG).run("text", lambda _: {"documents": "of CFG"})
    other = DataConfig(english_bytes=50_000)
    assert steps(other).run("text", lambda _: {"documents": "new"}) == {"documents": "new"}
    assert steps(other).run("text", lambda _: {}) == {"documents": "new"}


def test_every_document_is_there_once_and_some_are_held_out_in_every_language(data: Path) -> None:
    texts = rows(data, "text")
    assert len({row["text"] for row in texts}) == len({row["id"] for row in texts}) == len(texts)
    for language in data_world.ARTICLE:
        assert {row["split"] for row in texts if row["language"] == language} == {"train", "heldout"}


def test_held_out_subjects_styles_and_clips_are_in_no_training_chat(data: Path) -> None:
    drawn = {row["id"]: row for row in rows(data, "pictures")}
    moving = {row["id"]: row for row in rows(data, "clips")}
    seen = set()
    for row in rows(data, "chats"):
        parts = [part for message in json.loads(row["messages"]) for part in message["content"]]
        for part in parts:
            if isinstance(part, dict) and part["type"] in {"image", "video"} and row["kind"] != "flag":
                shown = drawn[part["picture"]] if part["type"] == "image" else moving[part["clip"]]
                assert (row["split"] == "train") == (shown["split"] == "train")
                seen.add((row["kind"], shown["split"]))
    assert {("name", "subjects"), ("name", "styles"), ("name", "train"), ("clip", "heldout")} <= seen


def test_the_other_drawing_of_a_held_out_style_is_trained_on_and_no_twitter_drawing_is(data: Path) -> None:
    pictures = rows(data, "pictures")
    google = {row["subject"] for row in pictures if row["split"] == "train" and row["source"] == "emoji"}
    styles = {row["subject"] for row in pictures if row["split"] == "styles"}
    assert styles and styles < google
    assert not any("twitter" in row["id"] for row in pictures if row["split"] == "train")


def test_other_drawing_styles_come_by_the_english_name_and_are_trained_on(data: Path) -> None:
    icons = {row["id"]: row for row in rows(data, "pictures") if row["source"] == "icon"}
    assert set(icons) == {f"emoji/openmoji/{code}" for code in EMOJI[:6]}
    assert {row["split"] for row in icons.values()} == {"train"}
    assert json.loads(icons[f"emoji/openmoji/{EMOJI[1]}"]["names"])["de"] == "dog de"
    widths = {id: Image.open(io.BytesIO(row["png"])).size for id, row in icons.items()}
    assert widths[f"emoji/openmoji/{EMOJI[0]}"] == (64, 32)
    assert widths[f"emoji/openmoji/{EMOJI[1]}"] == (64, 64)


def test_no_training_picture_or_clip_has_the_name_of_a_held_out_subject(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Emoji are called here as the stamps are, but for case, an article, and each in another language."""
    called = {
        chr(int(code, 16)): {"es": f"La {thing.upper()}"} if index % 2 else {"it": f"{thing}!"}
        for index, (code, thing) in enumerate(zip(EMOJI, data_world.THINGS, strict=True))
    }
    monkeypatch.setattr(pictures, "emoji_names", lambda _: called)
    packs = data_world.fetched(world).packs
    found = all_pictures(packs, longest_px=64, heldout=0.3, heldout_pairs=0.3)
    held = {name for p in found if p.split == "subjects" for name in spellings(p.names)}
    moving = clips(packs, num=8, heldout=0.3, kept_back=held)
    assert 0 < len(held & set(data_world.THINGS)) < len(data_world.THINGS)
    learnt = {name for p in [*found, *moving] if p.split != "subjects" for name in spellings(p.names)}
    assert not held & learnt
    assert {p.subject for p in found if p.source == "emoji"} == {
        code for code, thing in zip(EMOJI, data_world.THINGS, strict=True) if thing not in held
    }


def test_stamps_with_a_common_name_are_held_out_together() -> None:
    same = {"cat": {"cat", "katze"}, "kitten": {"katze", "kitten"}, "kitty": {"kitten"}, "dog": {"dog"}}
    assert groups(same) == {"cat": "cat", "kitten": "cat", "kitty": "cat", "dog": "dog"}


@given(st.dictionaries(st.integers(0, 30).map(str), st.sets(st.sampled_from("abcdefghijkl")), max_size=15))
def test_groups_are_what_shares_names_by_way_of_others(names: dict[str, set[str]]) -> None:
    found = groups(names)
    for thing, own in names.items():
        reached, words = {thing}, set(own)
        while more := {other for other in names if names[other] & words} - reached:
            reached |= more
            words |= set().union(*(names[other] for other in more))
        assert {other for other in names if found[other] == found[thing]} == reached
        assert found[thing] in reached


def test_signs_people_clocks_and_long_names_are_no_things() -> None:
    entries = [
        {"unified": "1F431", "category": "Animals & Nature"},
        {"unified": "1F468", "category": "People & Body"},
        {"unified": "2795", "category": "Symbols"},
        {"unified": "1F552", "category": "Travel & Places"},
        {"unified": "1F600", "category": "Smileys & Emotion"},
    ]
    names = {"\U0001f431": "cat", "\U0001f600": "a face that smiles with both eyes", "\U0001f552": "clock"}
    pack = {"annotations": {"annotations": {emoji: {"tts": [name]} for emoji, name in names.items()}}}
    packs = {
        "emoji-datasource-google": FakePack({"emoji.json": json.dumps(entries)}),
        "cldr-annotations-full": FakePack(
            {f"annotations/{lang}/annotations.json": json.dumps(pack) for lang in LANGUAGES}
        ),
    }
    assert list(things(packs)) == ["1f431"]  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["flag", "capital"])
def test_a_held_out_pair_of_country_and_language_is_never_trained_on(data: Path, kind: str) -> None:
    pairs = defaultdict(set)
    for row in rows(data, "chats"):
        if row["kind"] == kind:
            pairs[row["split"]].add((row["language"], row["answer"]))
    assert pairs["heldout"] and pairs["train"]
    assert not pairs["heldout"] & pairs["train"]


def test_names_of_held_out_flags_are_not_given_away_by_the_pictures(data: Path) -> None:
    names = {row["id"]: json.loads(row["names"]) for row in rows(data, "pictures") if row["source"] == "flag"}
    for row in rows(data, "chats"):
        if row["kind"] == "flag":
            picture = json.loads(row["messages"])[0]["content"][0]["picture"]
            assert (row["language"] in names[picture]) == (row["split"] == "train")


def test_dialogues_are_held_out_by_their_first_line(data: Path) -> None:
    first = defaultdict(set)
    for row in rows(data, "chats"):
        if row["kind"] == "chat":
            first[row["split"]].add((row["language"], json.loads(row["messages"])[0]["content"].casefold()))
    assert first["heldout"] and not first["heldout"] & first["train"]


def test_the_card_lists_sources_counts_and_what_is_left_out(data: Path) -> None:
    card = read_json(data / "herd.json")["card"]
    page = (data / "card.html").read_text(encoding="utf-8")
    assert all(source["licence"] in html.unescape(page) for source in card["sources"])
    status = {source["name"]: source["status"] for source in card["sources"]}
    assert status["udhr"] == "used" and status["reasoning-gym"] == "missing"
    assert any(line.startswith("reasoning-gym: not in this world") for line in card["left_out"])
    splits = {row["split"] for row in parquet.read_table(data / "pictures.parquet", columns=["split"]).to_pylist()}
    assert card["picture_splits"].keys() == splits - {"train"}  # what each is, for reports
    for language in ("en", "ja"):
        own = [row for row in rows(data, "text") if row["language"] == language]
        for split in ("train", "heldout"):
            texts = [row["text"] for row in own if row["split"] == split]
            expected = {"documents": len(texts), "bytes": sum(len(text.encode()) for text in texts)}
            assert card["documents"][language][split] == expected


def test_pictures_are_no_larger_than_asked_and_have_no_transparency(data: Path) -> None:
    import io

    from PIL import Image

    for row in rows(data, "pictures"):
        picture = Image.open(io.BytesIO(row["png"]))
        assert picture.mode == "RGB" and max(picture.size) <= CFG.picture_px


def test_clips_move_and_their_times_rise(data: Path) -> None:
    clips = rows(data, "clips")
    assert clips and "clip/" + data_world.EMOJI[0] not in {clip["id"] for clip in clips}
    for clip in clips:
        assert len(clip["frames"]) == len(clip["seconds"]) == 8
        assert clip["seconds"] == sorted(set(clip["seconds"]))


def test_every_answer_is_the_last_message(data: Path) -> None:
    for row in rows(data, "chats"):
        last = json.loads(row["messages"])[-1]
        assert last["role"] == "assistant" and row["answer"] in {"", last["content"]}


def test_without_pictures_the_build_stops(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    emoji = ("emoji-datasource-google", "emoji-datasource-twitter", "@lobehub/fluent-emoji-anim-1")
    pictures = ("tuxpaint-stamps-default", "svg-country-flags", *emoji)
    monkeypatch.setattr(stage, "fetch", lambda: data_world.fetched(world, left_out=pictures))
    with pytest.raises(HerdError, match="no pictures"):
        build_data(CFG, tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("wrong", [{"heldout": 0.0}, {"heldout_pairs": 1.5}, {"vocab_size": 10}, {"picture_px": 1}])
def test_an_impossible_config_is_refused_with_its_value(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(HerdError, match=f"{name}={value}"):
        DataConfig(**wrong)
