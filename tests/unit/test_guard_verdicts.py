"""What becomes of scores: windows, categories, notes, figures; with an engine that says what a test has it say."""

import itertools
import json
import shutil
from types import SimpleNamespace

import pytest
from model_folder import random_tokenizer
from PIL import Image

from herd.cli import main
from herd.config import GuardConfig
from herd.data.media.image import ImageProcessor
from herd.data.tasks.safety.items import make_item
from herd.engine.model import Prompt
from herd.errors import HerdError
from herd.guard import check
from herd.guard.batches import GuardBatches
from herd.guard.examples import Judged, read_examples
from herd.guard.measure import Row, rates
from herd.guard.model_guard import Guard, Verdict
from herd.guard.policies import make_policy, names_topics
from herd.guard.prompt import guard_messages, last_message, plain_text, text_part
from herd.guard.stream import open_gate
from herd.guard.taxonomy import HAZARDS, Category
from herd.guard.train import train_guard

PICTURE = {"tokens": 150}


@pytest.fixture(scope="module")
def folder(tiny_folder, tmp_path_factory):
    config = GuardConfig(
        num_items=8, batch_items=8, heldout_items=4, dtype="float32", context=1100, threshold=0.75, seed=3
    )
    return train_guard(config, tiny_folder, tmp_path_factory.mktemp("guards") / "guard")


@pytest.fixture(scope="module")
def opened(folder):
    with Guard(folder) as guard:
        yield guard


@pytest.fixture
def guard(opened, monkeypatch):
    """Its prompts are characters, 300 of them around a message, a picture as many as 150; everything is safe."""

    def prompt(parts, role, before):
        pictures = [part["image"] for part in parts if part["type"] != "text"]
        text = "".join(part["text"] for part in parts if part["type"] == "text")
        shown = f"{before}|{text}|{','.join(pictures)}"
        return Prompt(token_ids=[*map(ord, shown), *[0] * (300 + PICTURE["tokens"] * len(pictures) - len(pictures))])

    class Characters:
        @staticmethod
        def encode(text):
            return list(map(ord, text))

    class Model:
        tokenizer = Characters()

    monkeypatch.setattr(opened, "model", Model())
    monkeypatch.setattr(opened, "context", 900)
    monkeypatch.setattr(opened, "_prompt", prompt)
    shown = []
    monkeypatch.setattr(opened, "_scores", lambda prompts: shown.extend(prompts) or [0.1] * len(prompts))
    opened.shown = shown
    return opened


def texts(guard):
    return ["".join(chr(one) for one in prompt.token_ids if one) for prompt in guard.shown]


def asked(text):
    return [{"role": "user", "content": text}]


def test_a_guard_is_opened_as_it_was_trained(folder, opened):
    assert (opened.threshold, opened.context, opened.languages) == (0.75, 1100, {"en"})
    with Guard(folder, threshold=0.2, context=1050) as other:
        assert (other.threshold, other.context) == (0.2, 1050)


def test_a_score_at_the_threshold_is_unsafe(guard, monkeypatch):
    monkeypatch.setattr(guard, "_categories", lambda prompts: [("S3",)] * len(prompts))
    for score, unsafe in ((0.749, False), (0.75, True)):
        monkeypatch.setattr(guard, "_scores", lambda prompts, score=score: [score] * len(prompts))
        assert guard.judge(asked("hello")) == Verdict(unsafe=unsafe, score=score, categories=("S3",) if unsafe else ())


def test_categories_of_all_unsafe_windows_count_in_the_order_of_the_policy(guard, monkeypatch):
    monkeypatch.setattr(guard, "_scores", lambda prompts: [0.1, 0.9, 0.8, *[0.2] * (len(prompts) - 3)])
    monkeypatch.setattr(guard, "_categories", lambda prompts: [("S10",), ("S2", "S10")][: len(prompts)])
    verdict = guard.judge(asked("x" * 3000))
    assert verdict.windows > 3 and verdict.score == 0.9 and verdict.categories == ("S2", "S10")


def test_an_unsafe_message_has_a_category_even_where_its_answer_was_cut_off(opened, monkeypatch):
    class Cut:
        def submit(self, prompt, params):
            return SimpleNamespace(result=lambda: [SimpleNamespace(text="S")])

    monkeypatch.setattr(opened, "_engine", Cut())
    assert opened._categories([Prompt(token_ids=[1])]) == [("S1",)]


def test_several_conversations_get_their_own_windows_back(guard, monkeypatch):
    monkeypatch.setattr(guard, "_categories", lambda prompts: [("S1",)] * len(prompts))
    monkeypatch.setattr(
        guard, "_scores", lambda prompts: [0.9 if ord("p") in prompt.token_ids else 0.1 for prompt in prompts]
    )
    long = "x" * 2000
    verdicts = guard.judge_all([asked("fine"), asked(long + "p"), asked("ok"), asked("p"), asked(long)])
    assert [one.unsafe for one in verdicts] == [False, True, False, True, False]


def test_windows_overlap_and_leave_out_nothing(guard):
    text = "".join(chr(0x4E00 + number) for number in range(2000))
    guard.judge(asked(text))
    windows = [shown.strip("|") for shown in texts(guard)]
    assert all(len(prompt.token_ids) <= 900 for prompt in guard.shown)
    for before, after in itertools.pairwise(windows):
        overlap = before.index(after[0])
        assert len(before) - overlap >= len(before) // 5
    assert set("".join(windows)) == set(text)


def test_a_question_goes_with_each_window_of_its_answer_unless_it_fills_the_context(guard):
    reply = {"role": "assistant", "content": "r" * 1500}
    guard.judge([*asked("q" * 50), reply])
    assert len(guard.shown) > 2 and all(shown.startswith("q" * 50 + "|") for shown in texts(guard))
    guard.shown.clear()
    guard.judge([*asked("q" * 700), reply])
    assert len(guard.shown) > 2 and all(shown.startswith("|r") for shown in texts(guard))


def test_each_picture_of_a_long_message_is_shown_once_with_words_beside_it_if_they_fit(guard, monkeypatch):
    parts = [{"type": "image", "image": letter} for letter in "ABCDE"]
    guard.judge([{"role": "user", "content": [*parts, {"type": "text", "text": "caption"}]}])
    shown = texts(guard)
    assert [one for one in shown if one.endswith("|")] == ["|caption|"]
    assert [one.split("|")[1:] for one in shown if not one.endswith("|")] == [["caption", one] for one in "ABCDE"]
    guard.shown.clear()
    guard.judge([{"role": "user", "content": [*parts, {"type": "text", "text": "w" * 2000}]}])
    alone = [one.split("|")[1:] for one in texts(guard) if not one.endswith("|")]
    assert alone == [["", one] for one in "ABCDE"]  # the words are read in windows of their own
    monkeypatch.setitem(PICTURE, "tokens", 700)
    with pytest.raises(HerdError, match="give a larger one"):
        guard.judge([{"role": "user", "content": parts}])


def test_a_guard_that_misses_most_says_so_with_each_verdict_and_when_it_is_opened(folder, tmp_path, capsys):
    facts = json.loads((folder / "herd.json").read_text())
    for share, weak in ((0.027, True), (0.5, False), (None, False)):
        copy = shutil.copytree(folder, tmp_path / str(share))
        facts["guard"]["heldout"] = {} if share is None else {"recall": {"share": share}}
        (copy / "herd.json").write_text(json.dumps(facts))
        gate = open_gate(copy, None, None)
        (verdict,) = gate.guard.judge_all([[{"role": "user", "content": "the cat"}]])
        gate.guard.close()
        said = "flags 3% of unsafe messages (generated, held out)"
        assert verdict.notes == ((f"this guard {said}",) if weak else ())
        warned = capsys.readouterr().err
        assert warned == (f"warning: {copy} {said}: train it longer, or take another\n" if weak else "")


def test_a_language_that_it_was_not_trained_on_is_noted_where_it_can_be_told(opened, monkeypatch):
    german = "Wie backe ich ein Brot, das auch nach drei Tagen noch frisch ist und allen schmeckt?"
    english = "How do I bake a loaf of bread that is still fresh after three days and that everybody likes?"
    monkeypatch.setattr(opened, "facts", {})
    assert opened._notes([text_part(german)]) == ("the text seems to be in de, the guard was trained on en",)
    assert opened._notes([text_part(english)]) == opened._notes([text_part("Brot backen")]) == ()


def test_the_question_before_a_reply_is_bare_too_and_the_nearest_counts():
    wrapped = "<|header_start|>user<|header_end|>\n\nHow?<|eot|>"
    reply = {"role": "assistant", "content": "So."}
    assert last_message([*asked("First"), reply, *asked(wrapped), reply]) == ([text_part("So.")], "assistant", "How?")
    assert last_message([reply]) == ([text_part("So.")], "assistant", "")


def test_parts_of_a_message_are_bare_and_pictures_stay():
    picture = Image.new("RGB", (8, 8))
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "[INST] words [/INST]"}]
    parts, _, _ = last_message([{"role": "user", "content": content}])
    assert [part["type"] for part in parts] == ["image", "text"] and parts[1]["text"] == "words"


def test_known_categories_are_given_by_name_and_others_with_their_description():
    own = Category(code="S2", name="Shops", description="Recommends another shop.")
    policy = HAZARDS.exclude(["S2"]).add([own])
    prompt = "".join(
        part["text"] for part in guard_messages([text_part("x")], "user", policy, form="short")[0]["content"]
    )
    assert "S1: Violent Crimes.\n" in prompt and "S2: Shops. Recommends another shop.\n" in prompt
    assert HAZARDS["S1"].description not in prompt


def test_figures_are_those_that_are_counted_by_hand():
    def row(codes, named, kind="request"):
        return Row(codes=codes, kind=kind, verdict=Verdict(unsafe=bool(named), score=0.5, categories=named))

    found = rates(
        [
            row(("S1",), ("S1",)),
            row(("S1",), ("S2",)),
            row(("S1", "S2"), ("S1", "S2")),
            row(("S2",), ()),
            row((), ("S1",), "twin"),
            row((), ("S1",), "harmless"),
            row((), (), "twin"),
        ]
    )
    assert (found["recall"]["hits"], found["recall"]["count"]) == (3, 4)
    assert (found["false_alarms"]["hits"], found["false_alarms"]["count"]) == (2, 3)
    assert (found["exact"]["hits"], found["exact"]["count"]) == (3, 7)
    one, two = found["by_category"]["S1"], found["by_category"]["S2"]
    assert (one["recall"]["hits"], one["recall"]["count"]) == (2, 3)
    assert (one["false_alarms"]["hits"], one["false_alarms"]["count"]) == (2, 4)
    assert one["f1"] == pytest.approx(2 * 2 / (2 * 2 + 2 + 1)) and two["f1"] == pytest.approx(0.5)
    assert found["macro_f1"] == pytest.approx((4 / 7 + 0.5) / 2) and set(found["by_category"]) == {"S1", "S2"}
    assert found["flagged"]["twin"]["share"] == 0.5 and found["flagged"]["request"]["count"] == 4


def test_each_item_is_trained_on_once_under_the_policy_of_its_step():
    tokenizer = random_tokenizer()
    batches = GuardBatches(GuardConfig(num_items=20, batch_items=8), tokenizer, ImageProcessor(None))
    assert batches.num_steps == 3
    made = [batches.batch(step) for step in range(3)]
    documents = [tokenizer.decode(batch.tokens_N.tolist()) for batch in made]
    assert [text.count("<END CONVERSATION>") for text in documents] == [8, 8, 4]
    for number in range(20):
        assert make_item(0, "train", number).text in documents[number // 8]
    for batch in made:  # the short form begins alike for both roles
        assert set(batch.prompts_N.tolist()) == {-1, 0}


def test_in_steps_whose_policy_names_topics_three_of_four_items_are_of_topics_and_half_of_these_are_named():
    config = GuardConfig(num_items=3200, batch_items=16)
    seen: list[Judged] = []
    batches = GuardBatches(config, random_tokenizer(), ImageProcessor(None))
    batches.pack = lambda chosen, policy: seen.extend(chosen)
    steps = [step for step in range(200) if names_topics(make_policy(config.seed, "train", step)[1])]
    for step in steps:
        batches.batch(step)
    of_topics = sum(any(int(code[1:]) > 14 for code in one.codes) for one in seen)
    assert len(steps) > 40 and len(seen) == 16 * len(steps)
    assert 0.33 < of_topics / len(seen) < 0.45
    assert sum(not one.codes for one in seen) > 0.4 * len(seen)


def test_in_steps_whose_policy_has_hazards_under_other_numbers_no_item_is_chosen_for_its_topic():
    config = GuardConfig(num_items=3200, batch_items=16)
    batches = GuardBatches(config, random_tokenizer(), ImageProcessor(None))
    seen: list[Judged] = []
    batches.pack = lambda chosen, policy: seen.extend(chosen)
    drawn = {step: make_policy(config.seed, "train", step)[1] for step in range(200)}
    for step in (step for step, named in drawn.items() if named and not names_topics(named)):
        batches.batch(step)
    again = sum(any(int(code[1:]) > 14 for code in one.codes) for one in seen)
    assert again and sum(not one.codes for one in seen) > 0.5 * len(seen)


def test_in_steps_that_teach_categories_three_of_four_items_are_unsafe():
    seed = next(seed for seed in range(99) if all(make_policy(seed, "train", step) == (HAZARDS, {}) for step in (0, 1)))
    config = GuardConfig(num_items=48, batch_items=16, seed=seed, naming_share=0.4)
    batches = GuardBatches(config, tokenizer := random_tokenizer(), ImageProcessor(None))
    named = [tokenizer.decode(batches.batch(step).tokens_N.tolist()).count("unsafe\nS") for step in range(2)]
    usual = sum(bool(make_item(seed, "train", number).codes) for number in range(16, 32))
    assert named[0] >= 12 and named[1] == usual < 12
    again = GuardBatches(config, tokenizer, ImageProcessor(None)).batch(0)
    assert again.tokens_N.tolist() == batches.batch(0).tokens_N.tolist()


def test_in_the_form_of_llama_guard_messages_of_a_role_begin_alike():
    config = GuardConfig(num_items=20, batch_items=20, form="llama-guard")
    batch = GuardBatches(config, random_tokenizer(), ImageProcessor(None)).batch(0)
    roles = {make_item(0, "train", number).role for number in range(20)}
    assert len(set(batch.prompts_N.tolist()) - {-1}) == len(roles) == 2


def test_an_example_is_its_last_message_with_the_categories_in_the_order_of_the_policy(tmp_path):
    path = tmp_path / "mine.jsonl"
    chat = [*asked("How?"), {"role": "assistant", "content": "So."}]
    path.write_text(json.dumps({"messages": chat, "unsafe": ["S10", "S2"]}))
    (example,) = read_examples(path, HAZARDS)
    assert (example.parts, example.role, example.before) == ([text_part("So.")], "assistant", "How?")
    assert example.codes == ("S2", "S10")


seen: list[tuple[str, str]] = []


class Recorder:
    """A guard that notes who said what."""

    def __init__(self, folder, **options):
        self.options = options

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def judge_all(self, conversations):
        said = [(one[-1]["role"], plain_text(one[-1]["content"])) for one in conversations]
        seen.extend(said)
        return [Verdict(unsafe=text == "bad", score=0.5) for _, text in said]


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setattr(check, "Guard", Recorder)
    seen.clear()


def test_every_line_of_a_long_file_is_judged_in_order(recorder, tmp_path, capsys):
    path = tmp_path / "messages.jsonl"
    path.write_text("\n".join(json.dumps(f"message {number}") for number in range(3 * check.BATCH + 5)))
    assert main(["guard", "check", "G", "--file", str(path)]) == 0
    assert seen == [("user", f"message {number}") for number in range(3 * check.BATCH + 5)]
    assert len(capsys.readouterr().out.splitlines()) == 3 * check.BATCH + 5


def test_one_unsafe_line_among_many_decides_the_exit_code(recorder, tmp_path):
    path = tmp_path / "messages.jsonl"
    path.write_text("\n".join(["bad", *["good"] * 100]).replace("bad", '"bad"').replace("good", '"good"'))
    assert main(["guard", "check", "G", "--file", str(path)]) == 3
    assert main(["guard", "check", "G", "--file", str(path), "--role", "assistant"]) == 3
    assert {role for role, _ in seen[101:]} == {"assistant"}


def test_a_verdict_says_what_was_found_in_how_many_windows_and_what_limits_it():
    safe = Verdict(unsafe=False, score=0.1, windows=1)
    assert check.line_of(safe, HAZARDS) == "safe (0.100)"
    found = Verdict(unsafe=True, score=0.9, categories=("S1",), windows=2, notes=("unsure",))
    assert check.line_of(found, HAZARDS) == f"unsafe (0.900, 2 windows): S1 {HAZARDS['S1'].name}; unsure"


def test_pictures_of_a_file_lie_beside_it(recorder, tmp_path):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "red.png")
    path = tmp_path / "messages.jsonl"
    path.write_text(json.dumps({"prompt": "What is this?", "images": ["red.png"]}))
    ((message,),) = check.read_conversations(path, "user")
    picture, text = message["content"]
    assert picture["image"].getpixel((0, 0)) == (255, 0, 0) and text["text"] == "What is this?"


@pytest.mark.parametrize("named", ["red.png", [5], {"a": "b"}, None])
def test_pictures_that_are_no_list_of_files_are_refused(recorder, tmp_path, capsys, named):
    path = tmp_path / "messages.jsonl"
    path.write_text(json.dumps({"prompt": "What is this?", "images": named}))
    assert main(["guard", "check", "G", "--file", str(path)]) == 1
    assert "line 1: images must be a list of files" in capsys.readouterr().err
