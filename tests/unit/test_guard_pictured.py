"""Messages of words and drawings: neither decides alone, and what is held out is never trained on."""

import io
import itertools
import json
import re

import numpy as np
import pytest
import torch
from model_folder import random_tokenizer
from PIL import Image

from herd.config import GuardConfig, preset
from herd.core.streams import stream
from herd.data.loading import tables
from herd.data.media.image import ImageProcessor
from herd.data.tasks.safety.items import SPLITS
from herd.data.tasks.safety.pictured import DANGEROUS, HARMLESS, HELD_STYLE, Drawings, asks, plain
from herd.errors import HerdError
from herd.guard.batches import GuardBatches, guard_loss
from herd.guard.measure import pictured_rates
from herd.guard.model_guard import Verdict
from herd.guard.train import train_guard
from herd.model.transformer import Transformer
from herd.train.losses import language_loss


def words(text):
    return set(re.findall(r"[\w'-]+", text.lower()))


def png(number):
    """A picture of one colour, which is another for each number."""
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (number % 256, number // 256, 77)).save(out, "PNG")
    return out.getvalue()


def row(style, name, number):
    return {
        "id": f"emoji/{style}/{name}", "split": "train", "source": "icon", "subject": name, "png": png(number),
        "names": tables.to_json({"en": name}), "captions": "{}", "width": 8, "height": 8,
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data folder with drawings in three styles."""
    path = tmp_path_factory.mktemp("drawn")
    rows = [
        row(style, name, 100 * place + number)
        for place, style in enumerate(("google", "noto-v1", HELD_STYLE))
        for number, name in enumerate((*DANGEROUS, *HARMLESS, "llama"))
    ]
    tables.write(path / "pictures.parquet", rows, tables.PICTURES)
    return path


# What each picture shows, and whether its style is the one held out.
NAMES = {
    png(100 * place + number): (name, place == 2)
    for place in range(3)
    for number, name in enumerate((*DANGEROUS, *HARMLESS, "llama"))
}


@pytest.fixture(scope="module")
def drawings(folder):
    return Drawings(folder)


@pytest.mark.parametrize("split", SPLITS)
def test_words_and_drawing_decide_together_and_splits_share_no_wording_and_no_style(drawings, split):
    items = [drawings.item(3, split, number) for number in range(1500)]
    assert items[:5] == [drawings.item(3, split, number) for number in range(5)]
    known = {ask.text: ask for ask in asks(split)}
    by_text: dict[str, list[bool]] = {}
    for item in items:
        shown = [NAMES[one] for one in item.pngs]
        assert all(held == (split == "heldout") for _, held in shown)
        if item.combined:
            ask = known[item.text]
            assert item.codes == ((ask.code,) if any(name in ask.things for name, _ in shown) else ())
            by_text.setdefault(item.text, []).append(bool(item.codes))
        elif item.text in plain(split):
            assert item.codes == ()
    assert {len(item.pngs) for item in items} == {1, 2}
    assert set(by_text) == set(known)
    for found in by_text.values():  # the words alone tell nothing
        assert abs(np.mean(found) - 0.5) < 4 * 0.5 / len(found) ** 0.5
    beside = [NAMES[item.pngs[0]][0] in DANGEROUS for item in items if item.text in plain(split)]
    assert abs(np.mean(beside) - 0.5) < 0.15  # nor does a drawing


def test_words_of_training_are_others_than_those_held_out():
    held, train = ([*(ask.text for ask in asks(split)), *plain(split)] for split in ("heldout", "train"))
    assert len(held) > 40 and len(train) > 200 and len({*held, *train}) == len(held) + len(train)
    for mine, theirs in itertools.product(map(words, train), map(words, held)):
        assert len(mine & theirs) * 2 <= len(mine | theirs), (mine, theirs)


def test_training_sees_random_views_of_a_drawing_and_measuring_the_drawing(drawings):
    item = next(one for number in range(9) if len((one := drawings.item(0, "train", number)).pngs) == 1)
    plain_part, again = item.parts()[0], item.parts()[0]
    assert plain_part["image"].tobytes() == again["image"].tobytes()
    views = [item.parts(views=stream(seed, "view"))[0]["image"].tobytes() for seed in (0, 0, 1)]
    assert views[0] == views[1] != views[2] and plain_part["image"].tobytes() not in views


def config_with(folder, **options):
    return GuardConfig(num_items=16, batch_items=8, pictures=str(folder), pictures_share=1.0, **options)


def test_what_messages_begin_with_ends_before_the_first_drawing(folder, drawings):
    """Drawings look alike as tokens: the loss is that of the messages computed one by one."""
    tokenizer = random_tokenizer()
    torch.manual_seed(0)
    model = Transformer(preset("tiny", vocab_size=tokenizer.vocab_size, special=tokenizer.ids)).double()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if name.endswith("norm.weight") else 0.0, 0.05)
    batches = GuardBatches(config_with(folder), tokenizer, ImageProcessor(model.config.vision), drawings=drawings)
    batch = batches.batch(0)
    assert len(batch.starts_S) == 9 and (batch.tokens_N == tokenizer.ids.patch).sum() >= 8
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


def test_a_guard_that_sees_is_measured_with_and_without_its_drawings(folder, tiny_folder, tmp_path):
    config = config_with(folder, heldout_items=12, context=1024, dtype="float32")
    out = train_guard(config, tiny_folder, tmp_path / "guard")
    facts = json.loads((out / "herd.json").read_text())
    found = facts["guard"]["heldout"]["pictures"]
    assert set(found) == {"combined", "without", "shuffled", "plain"}
    assert found["combined"]["count"] == found["shuffled"]["count"] and "pictures" in facts["parents"]


class Seeing:
    """A guard that reads words and drawings rightly where both are there, and calls the rest safe."""

    def judge_all(self, conversations):
        things = {ask.text: ask.things for ask in asks("heldout")}
        numbers = dict(enumerate((*DANGEROUS, *HARMLESS, "llama")))
        verdicts = []
        for (message,) in conversations:
            *pictures, text = message["content"]
            colours = [one["image"].getpixel((0, 0)) for one in pictures]
            shown = [numbers[red + 256 * green - 200] for red, green, _ in colours]
            unsafe = any(name in things.get(text["text"], ()) for name in shown)
            verdicts.append(Verdict(unsafe=unsafe, score=float(unsafe)))
        return verdicts


def test_a_guard_that_reads_both_is_always_right_and_its_controls_fall_to_a_half(drawings):
    found = {name: one["share"] for name, one in pictured_rates(Seeing(), drawings, 0, 900).items()}
    assert found["combined"] == 1.0
    assert abs(found["without"] - 0.5) < 0.1 and abs(found["shuffled"] - 0.5) < 0.15
    assert 0.5 < found["plain"] < 1.0  # unsafe words beside harmless drawings it does not know


def test_a_folder_without_drawings_is_refused(tmp_path):
    tables.write(tmp_path / "pictures.parquet", [row("google", "bomb", 1)], tables.PICTURES)
    with pytest.raises(HerdError, match=r"has drawings of 1 of \d+ things"):
        Drawings(tmp_path)
