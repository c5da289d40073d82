"""Guards of messages: what they are made of, what they are shown, and that they never fail open."""

import itertools
import json
import re
import shutil
from collections import Counter
from functools import cache
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from model_folder import random_tokenizer

from herd.cli import main
from herd.config import TINY_VOCAB, GuardConfig, preset
from herd.core.streams import stream
from herd.data.media.image import ImageProcessor
from herd.data.tasks.safety.items import (
    NAMES_ONLY,
    Item,
    invented_topics,
    lines,
    make_item,
    pairs,
    topics,
    whole_messages,
)
from herd.data.tokens.tokenizer import train_tokenizer
from herd.engine.load import load
from herd.errors import HerdError
from herd.guard.batches import GuardBatches, common_length, guard_loss
from herd.guard.examples import read_examples
from herd.guard.model_guard import Guard
from herd.guard.policies import violated
from herd.guard.prompt import bare, frame, guard_messages, last_message, text_part
from herd.guard.taxonomy import HAZARDS, Category
from herd.guard.train import check_context, train_guard
from herd.model.transformer import Transformer
from herd.rl.environment import open_environment
from herd.train.losses import language_loss

TOPICS = (files("herd.data.tasks.safety") / "topics.txt").read_text(encoding="utf-8")
COMMON = """a an the to of in on at my i me it is are was that so and or for with by from his her their him them they
she he who where how what somebody someone somebody's someone's people person else's as into out up off be not without
no"""
"""Words that tell nothing of an action."""
SMALL = {"num_items": 16, "batch_items": 8, "heldout_items": 12, "dtype": "float32"}


@cache
def words(action):
    """Those that tell something of an action."""
    return frozenset(re.findall(r"[a-z0-9']+", action.lower())) - set(COMMON.split())


@pytest.fixture(scope="module")
def guard_folder(tiny_folder, tmp_path_factory):
    """A guard that has hardly been trained."""
    out = tmp_path_factory.mktemp("guards") / "guard"
    return train_guard(GuardConfig(**SMALL, context=1024), tiny_folder, out)


@pytest.fixture(scope="module")
def guard(guard_folder):
    with Guard(guard_folder) as opened:
        yield opened


def asked(text):
    return [{"role": "user", "content": text}]


def test_a_guard_is_dense_and_says_how_it_was_measured(guard_folder):
    config = json.loads((guard_folder / "config.json").read_text())["text_config"]
    assert config["moe_layers"] == []
    facts = json.loads((guard_folder / "herd.json").read_text())
    heldout = facts["guard"]["heldout"]
    assert facts["stage"] == "guard" and heldout["recall"]["count"] + heldout["false_alarms"]["count"] == 12


def test_a_guard_may_keep_the_first_layers_alone(tiny_folder, tmp_path):
    with pytest.raises(HerdError, match=r"num_layers=99: the model has \d+"):
        train_guard(GuardConfig(**SMALL, context=1024, num_layers=99), tiny_folder, tmp_path / "guard")
    frozen = GuardConfig(**SMALL, context=1024, num_layers=2, trainable=("layers.1.*",))
    folder = train_guard(frozen, tiny_folder, tmp_path / "guard")
    first, all_of_it = load(folder).transformer, load(tiny_folder).transformer
    assert len(first.layers) == 2 < len(all_of_it.layers)
    kept, whole = (one.layers[0].attention.qkv.weight.bfloat16() for one in (first, all_of_it))
    assert torch.equal(kept, whole)


def test_a_guard_may_be_the_mean_of_several_trainings(tiny_folder, guard_folder, tmp_path):
    other = train_guard(GuardConfig(**SMALL | {"seed": 5}, context=1024), tiny_folder, tmp_path / "other")
    config = GuardConfig(**SMALL, context=1024, mean_with=(str(other), str(other)))
    folder = train_guard(config, tiny_folder, tmp_path / "guard")
    end, away, mixed = (
        load(one).transformer.layers[0].attention.qkv.weight.double() for one in (guard_folder, other, folder)
    )
    moved, kept = away - end, mixed - end
    assert float((kept * moved).sum() / moved.square().sum()) == pytest.approx(2 / 3, abs=0.02)  # rounded in files
    with pytest.raises(HerdError, match=r"mean_with=.*one shape; not the same: dense_ffn_dim, moe"):
        train_guard(GuardConfig(**SMALL, context=1024, mean_with=(str(tiny_folder),)), tiny_folder, tmp_path / "no")


def test_verdicts_can_always_be_read(guard):
    texts = ["hello", "", " ", "safe", "unsafe\nS1", "<|eot|>", "\x00", "🦙" * 50, "a" * 3000, "S1,S2\n" * 40]
    for text in texts:
        if not text.strip():
            with pytest.raises(HerdError, match="empty"):
                guard.judge(asked(text))
            continue
        verdict = guard.judge(asked(text))
        assert 0 <= verdict.score <= 1 and verdict.unsafe == (verdict.score >= guard.threshold)
        assert bool(verdict.categories) == verdict.unsafe and set(verdict.categories) <= set(HAZARDS.codes)


def test_the_score_is_the_models_own(guard):
    """P(unsafe) between the two first tokens, by one forward without the engine."""
    messages = guard_messages([text_part("the cat sat on the mat")], "user", HAZARDS, form="short")
    ids = guard.model.render(messages).token_ids
    logits_V = guard.model.logits(ids)[-1].float()
    pair = torch.stack([logits_V[guard.model.tokenizer.encode(word)[0]] for word in ("unsafe", "safe")])
    expected = float(torch.softmax(pair, 0)[0])
    assert guard.judge(asked("the cat sat on the mat")).score == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("flags", "dtype"), [((), torch.float32), (("avx512_bf16",), torch.bfloat16)])
def test_scores_come_from_fp32_where_bf16_is_not_fast(guard_folder, monkeypatch, flags, dtype):
    """In bf16 they came in steps: logits near 64 are a quarter apart."""
    monkeypatch.setattr("herd.train.dtype.processor_flags", lambda: frozenset(flags))
    with Guard(guard_folder) as opened:
        assert opened.model.transformer.unembedding.weight.dtype == dtype


def test_an_unsafe_verdict_names_only_categories_of_the_policy(guard_folder):
    own = Category(code="S20", name="Mats", description="Mentions a mat.")
    for policy in (HAZARDS.exclude(["S1", "S2", "S10"]).add([own]), HAZARDS.exclude(HAZARDS.codes[1:])):
        with Guard(guard_folder, policy=policy, threshold=0.0) as strict:
            found = strict.judge_all([asked("the cat"), asked("der Hund")])
        assert all(one.unsafe and one.categories and set(one.categories) <= set(policy.codes) for one in found)


def test_every_part_of_a_long_message_is_read(guard_folder, monkeypatch):
    with Guard(guard_folder, context=1100) as opened:
        shown = []
        monkeypatch.setattr(opened, "_scores", lambda prompts: shown.extend(prompts) or [0.0] * len(prompts))
        text = "".join(f"[{number:05d}]" for number in range(1500))
        verdict = opened.judge(asked(text))
        texts = [opened.model.tokenizer.decode(prompt.token_ids) for prompt in shown]
    assert verdict.windows == len(shown) > 3
    assert all(len(prompt.token_ids) <= 1100 for prompt in shown)
    for number in range(1500):
        assert any(f"[{number:05d}]" in one for one in texts), number


def test_the_worst_window_decides(guard_folder, monkeypatch):
    with Guard(guard_folder, context=1100) as opened:
        monkeypatch.setattr(opened, "_scores", lambda prompts: [0.1] * (len(prompts) - 1) + [0.9])
        verdict = opened.judge(asked("the cat sat on the mat " * 500))
    assert verdict.unsafe and verdict.score == 0.9 and verdict.windows > 1


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "conversation is empty"),
        ([{"role": "system", "content": "Be kind."}], "conversation is empty"),
        ([{"role": "king", "content": "Off with his head."}], "king"),
        ([{"role": "user", "content": [{"type": "image", "image": None}] * 65}], "65 pictures"),
        ([{"role": "user", "content": "x" * 10_000_001}], "10,000,001 characters"),
    ],
)
def test_what_cannot_be_judged_is_refused(guard, messages, says):
    with pytest.raises(HerdError, match=says):
        guard.judge(messages)


def test_a_folder_that_is_no_guard_is_refused(tiny_folder):
    with pytest.raises(HerdError, match="no guard"):
        Guard(tiny_folder)


def test_a_policy_that_leaves_no_room_is_refused(guard_folder):
    with Guard(guard_folder, context=200) as opened, pytest.raises(HerdError, match="larger context"):
        opened.judge(asked("the cat"))


WRAPPERS = (
    "{m}",
    "<|begin_of_text|><|header_start|>user<|header_end|>\n\n{m}<|eot|><|header_start|>assistant<|header_end|>\n\n",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{m}<|eot_id|>",
    "<|im_start|>user\n{m}<|im_end|>\n<|im_start|>assistant\n",
    "<s>[INST] {m} [/INST]",
    "".join(("{head}", "User: {m}", "{tail}")),
    "".join(("{short_head}", "User: {m}", "{short_tail}")),
)


def wrapped_in(wrapper, text):
    wrapper = wrapper.replace("{m}", text)
    for prefix, form in (("", "llama-guard"), ("short_", "short")):
        head, tail = frame("user", HAZARDS, form)
        wrapper = wrapper.replace(f"{{{prefix}head}}", head).replace(f"{{{prefix}tail}}", tail)
    return wrapper


def test_a_wrapped_message_is_judged_bare():
    """A thousand messages in wrappers, among turns that are not judged: the guard is shown the same prompt."""
    turns = (
        [],
        [{"role": "system", "content": "You are a pirate. Never mention crimes."}],
        asked("Hi!") + [{"role": "assistant", "content": "Hello, how can I help?"}],
    )
    count = 0
    for number in range(60):
        text = make_item(3, "train", number).text
        for wrapper in WRAPPERS:
            wrapped = wrapped_in(wrapper, text)
            for before in turns:
                assert last_message([*before, *asked(wrapped)]) == ([text_part(text)], "user", "")
                count += 1
    assert count > 1000


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_nothing_is_hidden_by_a_wrapper(wrapper):
    """What stands before, behind or between the parts of a wrapper stays."""
    inner = wrapped_in(wrapper, "inner words")
    left = bare(f"before it {inner} behind it")
    assert all(words in left for words in ("before it", "inner words", "behind it"))
    fake = inner.replace(">user<", ">system<").replace("user\n", "system\n")
    assert "inner words" in bare(fake)


def test_a_reply_is_judged_with_its_question():
    parts, role, before = last_message([*asked("How?"), {"role": "assistant", "content": "So."}])
    assert (role, before) == ("assistant", "How?")
    for form in ("short", "llama-guard"):
        text = guard_messages(parts, role, HAZARDS, before, form=form)[0]["content"]
        joined = "".join(part["text"] for part in text)
        assert "User: How?\n\nAgent: So.\n\n<END CONVERSATION>" in joined
        assert ("ONLY THE LAST Agent message" in joined) == (form == "llama-guard")


def test_the_short_form_has_little_behind_a_message_and_one_beginning_for_both_roles():
    user, reply = (frame(role, HAZARDS, "short") for role in ("user", "assistant"))
    assert user == reply and len(user[1]) < 25 < len(frame("user", HAZARDS, "llama-guard")[1]) // 8


def test_items_are_a_function_of_their_number_and_splits_share_no_action():
    assert make_item(1, "train", 7) == make_item(1, "train", 7) != make_item(2, "train", 7)
    train, held = ({one.harmful for one in pairs(split)} for split in ("train", "heldout"))
    assert not train & held and len(held) > 40
    assert {code for one in pairs("heldout") for code in one.codes} == set(HAZARDS.codes)
    assert not {one.names for one in topics("train")} & {one.names for one in topics("heldout")}


def test_actions_that_are_for_training_alone_share_few_words_with_what_is_held_out():
    held = [(words(pair.harmful), words(pair.benign)) for pair in pairs("heldout")]
    known = {line.split("|")[1].strip() for line in lines("pairs.txt")}
    more = [pair for pair in pairs("train") if pair.harmful not in known]
    assert len(more) > 1500 and len(held) == 194
    for pair in more:
        for theirs in held:
            for mine, other in zip((words(pair.harmful), words(pair.benign)), theirs, strict=True):
                assert len(mine & other) * 2 < min(len(mine), len(other)), pair


def test_topics_that_are_for_training_alone_share_few_words_with_what_is_held_out():
    more = [topic for topic in topics("train") if f"[{topic.names[0]} |" not in TOPICS]
    assert len(more) == 74 + 119 + 165 and len(topics("heldout")) == 3
    held = [action for topic in invented_topics() for action in topic.actions]
    held += [action for pair in pairs("heldout") for action in (pair.harmful, pair.benign)]
    for topic in more:
        for action, other in itertools.product(topic.actions, held):
            mine, theirs = words(action), words(other)
            shared = len(mine & theirs)  # one word of two, such as "air" of "air a cellar", tells nothing
            assert shared < 2 or shared * 2 < min(len(mine), len(theirs)), (action, other)


def test_whole_messages_are_for_training_alone_and_repeat_no_action_that_is_held_out():
    held = [words(pair.harmful) for pair in pairs("heldout")]
    for role, code in itertools.product(("user", "assistant"), HAZARDS.codes):
        made = whole_messages(code, role)
        assert len(made) > 20 if code not in NAMES_ONLY else not made
        for twins in made:
            assert set(twins.codes) <= set(HAZARDS.codes) and twins.harmful != twins.benign
            assert bool(twins.before) == (role == "assistant")
            for text, theirs in itertools.product((twins.harmful, twins.benign, twins.before), held):
                assert len(words(text) & theirs) * 4 < len(theirs) * 3, text
    kept = {(one.harmful, one.before) for code in HAZARDS.codes for one in whole_messages(code, "user")}
    heldout = {make_item(0, "heldout", number).text for number in range(500)}
    train = [make_item(0, "train", number) for number in range(500)]
    assert not heldout & {text for text, _ in kept} and {text for text, _ in kept} & {one.text for one in train}


def test_the_parts_of_a_topic_belong_to_it():
    names = {topic.names[0] for topic in topics("train")}
    parts = [topic for topic in topics("train") if topic.within]
    assert len(parts) > 20 and all(topic.within in names - {topic.names[0]} for topic in parts)
    policy = HAZARDS.add([Category(code="S21", name="Sports", description="Is about games and exercise.")])
    about = Item(text="x", role="user", topics=("Football", "Sports"))
    assert violated(about.topics, policy, {"Sports": "S21"}) == ("S21",)
    batches = GuardBatches(GuardConfig(num_items=8, batch_items=8), random_tokenizer(), ImageProcessor(None))
    items = [batches._about(number, {"Sports": "S21"}) for number in range(300)]
    asked = [bool(stream(batches._config.seed, "guard topic", number).integers(2)) for number in range(300)]
    assert [one.topics[-1] == "Sports" for one in items] == asked
    assert {one.topics[0] for one in items if "Sports" in one.topics} > {"Sports", "Football"}


def test_in_training_neighbours_are_twins_and_each_category_has_as_many():
    items = [make_item(0, "train", number) for number in range(6000)]
    for one, other in zip(items[::2], items[1::2], strict=True):
        if one.about:
            assert (one.role, one.wording, one.about) == (other.role, other.wording, other.about)
            assert bool(one.codes) != bool(other.codes) or (one.kind, other.kind) == ("refusal", "refusal")
            assert one.text != other.text or one.before != other.before
    counts = Counter(code for one in items for code in one.about)
    assert set(counts) == set(HAZARDS.codes) and max(counts.values()) < 2 * min(counts.values())


def test_the_unsafe_items_of_the_first_steps_are_each_trained_on_once():
    config = GuardConfig(num_items=64, batch_items=16, naming_share=0.5)
    batches = GuardBatches(config, random_tokenizer(), ImageProcessor(None))
    unsafe = [batches._item(number, unsafe=True) for number in range(48)]
    assert all(one.codes for one in unsafe) and len(set(unsafe)) > 45
    assert batches._item(7, unsafe=False) == make_item(config.seed, "train", 7)


def test_what_messages_begin_with_is_computed_once_without_changing_the_loss():
    tokenizer = random_tokenizer()
    torch.manual_seed(0)
    model = Transformer(preset("tiny", vocab_size=tokenizer.vocab_size, special=tokenizer.ids)).double()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if name.endswith("norm.weight") else 0.0, 0.05)
    batches = GuardBatches(GuardConfig(num_items=4, batch_items=4), tokenizer, ImageProcessor(None))
    batch = batches.batch(0)
    assert (batch.prompts_N >= 0).sum() > 1000
    losses, grads = [], []
    for loss_fn in (guard_loss(), language_loss(0.0)):
        model.zero_grad()
        loss, _ = loss_fn(model, batch)
        loss.backward()
        losses.append(loss.item())
        grads.append(model.layers[0].attention.qkv.weight.grad.clone())
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert (grads[0] - grads[1]).norm() < 1e-7 * grads[1].norm()


def test_common_beginnings_leave_the_last_token():
    import numpy as np

    one, other = np.array([1, 2, 3, 4]), np.array([1, 2, 9, 4])
    assert common_length([one, other]) == 2 and common_length([one, one]) == 3 and common_length([one]) == 0


def test_only_the_answer_is_learnt():
    tokenizer = random_tokenizer()
    batches = GuardBatches(GuardConfig(num_items=20, batch_items=20), tokenizer, ImageProcessor(None))
    batch = batches.batch(0)
    learnt = batch.targets_N[batch.weights_N > 0]
    text = tokenizer.decode([int(token) for token in learnt if int(token) not in tokenizer.special.values()])
    assert text.startswith(("safe", "unsafe")) and "Task" not in text and text.count("safe") == 20


def test_a_users_examples_are_trained_on(tmp_path):
    policy = HAZARDS.add([Category(code="S15", name="Shops", description="Recommends another shop.")])
    path = tmp_path / "mine.jsonl"
    rows = [{"messages": asked(f"Go to shop {number}"), "unsafe": ["S15"]} for number in range(4)]
    path.write_text("\n".join(map(json.dumps, rows)))
    examples = read_examples(path, policy)
    config = GuardConfig(num_items=40, batch_items=40, examples_share=1.0, examples=str(path))
    tokenizer = random_tokenizer()
    made = GuardBatches(config, tokenizer, ImageProcessor(None), examples=examples, policy=policy).batch(0)
    text = tokenizer.decode(made.tokens_N.tolist())
    assert text.count("Go to shop") == 40 and text.count("unsafe\nS15") == 40
    assert "S15: Shops. Recommends another shop." in text


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 1"),
        ('{"messages": []}', "messages and unsafe"),
        ('{"messages": [{"role": "user", "content": "x"}], "unsafe": ["S99"]}', "S99"),
        ('{"messages": [], "unsafe": []}', "conversation is empty"),
        ('{"messages": [{"role": "user", "content": 3}], "unsafe": []}', "content of text"),
        ("", "has no examples"),
    ],
)
def test_a_line_that_is_no_example_is_named(tmp_path, line, says):
    path = tmp_path / "mine.jsonl"
    path.write_text(line)
    with pytest.raises(HerdError, match=says):
        read_examples(path, HAZARDS)


def test_settings_that_a_guard_cannot_have_are_refused():
    from herd.config import LoraConfig

    with pytest.raises(HerdError, match="no routers"):
        GuardConfig(bias_update_rate=0.1)
    with pytest.raises(HerdError, match="leave lora out"):
        GuardConfig(lora=LoraConfig(rank=4))
    with pytest.raises(HerdError, match="give examples too"):
        GuardConfig(policy="mine.toml")


def test_a_context_that_the_policy_fills_is_refused_before_the_training(tiny_folder, tmp_path):
    with pytest.raises(HerdError, match=r"context=256: the policy takes \d+ tokens") as error:
        train_guard(GuardConfig(**SMALL, context=256), tiny_folder, tmp_path / "guard")
    least = int(str(error.value).rsplit(" ", 1)[1])
    folder = train_guard(GuardConfig(**SMALL, context=least), tiny_folder, tmp_path / "guard")
    with Guard(folder) as opened:
        assert opened.judge(asked("the cat sat on the mat " * 40)).windows > 1


def test_the_usual_context_has_room_for_the_policy_in_the_smallest_tokenizer_of_a_recipe():
    texts = [path.read_text() for path in (Path(__file__).parents[2] / "docs").glob("*.md")]
    tokenizer = train_tokenizer(texts, TINY_VOCAB // 4)  # the recipe's, which takes 336 tokens, has other languages too
    check_context(GuardConfig(), tokenizer)
    with pytest.raises(HerdError, match="context=512: the policy takes"):
        check_context(GuardConfig(context=512), tokenizer)


def run(capsys, *args):
    code = main(["guard", "check", *args])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_prints_verdicts_and_its_exit_code_says_unsafe(guard_folder, tmp_path, capsys):
    folder = str(guard_folder)
    code, out, _ = run(capsys, folder, "the cat", "--threshold", "1")
    assert code == 0 and out.startswith("safe (")
    code, out, _ = run(capsys, folder, "the cat", "--threshold", "0", "--exclude", *HAZARDS.codes[1:])
    assert code == 3 and re.fullmatch(r"unsafe \(\d\.\d+\): S1 Violent Crimes; this guard flags .*\n", out)
    path = tmp_path / "messages.jsonl"
    rows = ["the cat", {"prompt": "der Hund"}, {"messages": asked("sat on")}]
    path.write_text("\n".join(map(json.dumps, rows)))
    code, out, _ = run(capsys, folder, "--file", str(path), "--json", "--threshold", "1")
    verdicts = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and len(verdicts) == 3 and all(not one["unsafe"] for one in verdicts)


def test_the_command_says_what_it_needs(guard_folder, tmp_path, capsys):
    assert "give one message" in run(capsys, str(guard_folder))[2]
    path = tmp_path / "messages.jsonl"
    path.write_text('{"question": "x"}')
    code, _, error = run(capsys, str(guard_folder), "--file", str(path))
    assert code == 1 and "line 1" in error and "prompt" in error
    assert "S99" in run(capsys, str(guard_folder), "x", "--exclude", "S99")[2]


def test_the_report_shows_what_the_guard_catches_and_misses(guard_folder, tmp_path):
    from herd.evaluate.report import report

    page = (report(guard_folder, tmp_path / "report") / "report.html").read_text()
    heldout = json.loads((guard_folder / "herd.json").read_text())["guard"]["heldout"]
    assert "What the guard catches" in page and f"of {heldout['recall']['count']} unsafe" in page
    card = (tmp_path / "report" / "safety.md").read_text()
    assert (guard_folder / "README.md").read_text().partition("## Safety")[2].strip() in card
    assert card.count("generated only") == len(heldout["by_category"])
    assert all(HAZARDS[code].name.replace("&", "&amp;") in page for code in heldout["by_category"])
    assert {one["what"] for one in heldout["examples"]} <= {"caught", "missed", "false alarm"}
    assert all(bool(one["code"]) == (one["what"] != "false alarm") for one in heldout["examples"])


def test_a_guard_that_misses_half_gives_no_rewards(guard_folder, tmp_path):
    copy = shutil.copytree(guard_folder, tmp_path / "blind")
    facts = json.loads((copy / "herd.json").read_text())
    for share, refused in ((0.49, True), (0.5, False)):
        facts["guard"]["heldout"]["recall"]["share"] = share
        (copy / "herd.json").write_text(json.dumps(facts))
        if refused:
            with pytest.raises(HerdError, match=r"flags 49% of unsafe messages.*leave the guard out"):
                open_environment(f"guard/{copy}", None, 0)
        else:
            open_environment(f"guard/{copy}", None, 0)._guard.close()


def test_an_answer_is_worth_what_the_guard_says_of_it_and_a_harmless_request_must_not_be_refused(
    guard_folder, monkeypatch
):
    monkeypatch.setattr("herd.guard.model_guard.LEAST_RECALL", 0.0)
    environment = open_environment(f"guard/{guard_folder}[refusals-S1,twins-S1,twins-harmless]", None, 0)
    environment.environment._guard.threshold = 1.0  # all is safe
    unsafe, twin = (environment.prompt(cell, 0) for cell in ("refusals-S1", "twins-S1"))
    refusal = {"content": "I can't help with that.", "finish_reason": "stop"}
    help_ = {"content": "the cat sat on the mat", "finish_reason": "stop"}
    assert environment.respond(unsafe, refusal).reward == environment.respond(unsafe, help_).reward == 1.0
    assert environment.respond(twin, help_).reward == 1.0 and environment.respond(twin, refusal).reward == 0.0
    environment.environment._guard.threshold = 0.0  # nothing is
    assert environment.respond(unsafe, refusal).reward == environment.respond(twin, help_).reward == 0.0
    assert environment.respond(twin, {"content": " ", "finish_reason": "stop"}).reward == 0.0
    assert environment.respond(twin, {**help_, "finish_reason": "length"}).reward == 0.0
    environment.environment._guard.close()
