"""Folders that Herd did not write, models of text alone and adopted ones go through every stage that trains."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dense_llama import CHATML, VOCABULARY, backend, dense_folder

import herd
from herd.cli import main
from herd.config import EvaluateConfig, LoraConfig, OptimizerConfig, PretrainConfig, SftConfig, preset
from herd.core.lineage import read_lineage
from herd.data.loading import tables
from herd.data.loading.pretrain_batches import PretrainBatches
from herd.data.loading.sft_batches import SftBatches
from herd.data.media.image import ImageProcessor
from herd.data.packages.wordings import NAME
from herd.data.tokens.tokenizer import Tokenizer
from herd.errors import HerdError
from herd.evaluate.harness import evaluate
from herd.stages.adopt import AdoptConfig, adopt
from herd.stages.pretrain import pretrain
from herd.stages.sft import sft

transformers = pytest.importorskip("transformers")

PRETRAIN = PretrainConfig(num_tokens=1500, batch_tokens=600, context=64)
SFT = SftConfig(num_tokens=1500, batch_tokens=600, context=128)


@pytest.fixture(scope="module")
def adopted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense Llama with ChatML, adopted."""
    work = tmp_path_factory.mktemp("adopted")
    dense_folder(work / "dense", num_hidden_layers=2, max_position_embeddings=1024)
    return adopt(AdoptConfig(), work / "dense", work / "home")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama 4 of text alone as transformers writes it, with a tokenizer and a chat template of its own."""
    folder = tmp_path_factory.mktemp("foreign") / "model"
    torch.manual_seed(0)
    config = transformers.Llama4TextConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, intermediate_size_mlp=32, num_hidden_layers=4,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, num_local_experts=2, max_position_embeddings=1024,
        attention_chunk_size=256, bos_token_id=1, eos_token_id=2, pad_token_id=2, interleave_moe_layer_step=1,
    )  # fmt: skip
    transformers.Llama4ForCausalLM(config).save_pretrained(folder)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend(), bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    assert not (folder / "herd.json").exists()
    return folder


@pytest.fixture(params=["adopted", "foreign"])
def model(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


def same_words(before: Path, after: Path) -> None:
    """The folder kept its tokens, their offices and its template."""
    one, other = herd.load(before), herd.load(after)
    chat = [{"role": "user", "content": "the cat <|im_end|>"}, {"role": "assistant", "content": "dogs"}]
    assert other.render(chat, add_generation_prompt=True) == one.render(chat, add_generation_prompt=True)
    assert other.config.special == one.config.special and other.tokenizer.template == CHATML
    theirs = [transformers.AutoTokenizer.from_pretrained(folder) for folder in (before, after)]
    assert theirs[0].special_tokens_map == theirs[1].special_tokens_map
    assert theirs[0].apply_chat_template(chat) == theirs[1].apply_chat_template(chat)


def test_it_is_pretrained_on_text_and_says_that_pictures_are_left_out(
    model: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = pretrain(PRETRAIN, model, tiny_data, tmp_path / "out")
    same_words(model, out)
    assert "pictures, as the model reads text alone: picture_share=0.45 counts as 0" in capsys.readouterr().out
    [(what, count)] = [(k, v) for k, v in read_lineage(out)["left_out"].items() if "pictures" in k]
    assert count > 10, what
    before, after = herd.load(model).transformer, herd.load(out).transformer
    assert not torch.equal(before.norm.weight.float(), after.norm.weight.float())


def test_it_is_midtrained(model: Path, tiny_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sizes = ["--num-tokens", "1500", "--batch-tokens", "750", "--lengths", "128", "--context", "64"]
    assert main(["midtrain", str(model), "--data", str(tiny_data), "--out", str(out), *sizes]) == 0
    same_words(model, out)
    assert read_lineage(out)["short_text"]["after"] > 0


def test_it_is_fine_tuned_by_its_own_template_and_evaluated(
    model: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = sft(SFT, model, tiny_data, tmp_path / "out")
    same_words(model, out)
    reported = capsys.readouterr().out
    assert "chats with pictures, as the model reads text alone" in reported
    assert "chats of more than context=128 tokens" in reported
    left_out = read_lineage(out)["left_out"]
    assert left_out["chats with pictures, as the model reads text alone"] > 10
    few = replace(EvaluateConfig(), heldout_bytes=200, chats=1, answer_tokens=2, sample_tokens=2)
    results = evaluate(few, out if model.name == "home" else model, tiny_data, tmp_path / "evaluation")
    assert (results / "results.json").exists()
    assert "naming: left out, the model reads text alone" in capsys.readouterr().out


def test_only_the_assistant_s_tokens_of_its_own_format_are_learnt(adopted: Path, tiny_data: Path) -> None:
    tokenizer = herd.load(adopted).tokenizer
    batches = SftBatches(tiny_data, replace(SFT, replay_share=0.0), tokenizer, ImageProcessor(None))
    batch = batches.batch(0)
    for begin, end in zip(batch.starts_S[:-1].tolist(), batch.starts_S[1:].tolist(), strict=True):
        ids, weights = batch.tokens_N[begin:end].tolist(), batch.weights_N[begin:end].tolist()
        text = tokenizer.decode(ids, skip_special=False)
        learnt = [ids[at + 1] for at, weight in enumerate(weights) if weight]
        answers = [turn.split("<|im_end|>")[0] + "<|im_end|>" for turn in text.split("<|im_start|>assistant\n")[1:]]
        assert tokenizer.decode(learnt, skip_special=False) == "".join(answers)


def test_an_adopted_model_with_an_encoder_sees_pictures_in_its_own_format(tiny_data: Path, tmp_path: Path) -> None:
    dense_folder(tmp_path / "dense", num_hidden_layers=2)
    model = herd.load(adopt(AdoptConfig(vision="tiny"), tmp_path / "dense", tmp_path / "home"))
    config = replace(PRETRAIN, picture_share=0.9, asked_share=0.5)
    batches = PretrainBatches(tiny_data, config, model.tokenizer, model.processor, questions=NAME)
    texts = [
        model.tokenizer.decode(piece.ids.tolist(), skip_special=False)
        for piece in batches.plan(batches.windows[0]).pictures
    ]
    asked = [text for text in texts if "<|im_start|>user\n<|image_start|>" in text]
    assert 0 < len(asked) < len(texts)
    assert all("<|im_start|>assistant\n" in text and text.count("<|patch|>") for text in asked)
    assert batches.batch(0).images is not None
    chats = SftBatches(tiny_data, replace(SFT, context=400), model.tokenizer, model.processor)
    assert any(chats.batch(step).images is not None for step in range(chats.num_steps))
    assert not any("reads text alone" in what for what in chats.left_out)


def with_rows(folder: Path, out: Path, table: str, rows: list[dict[str, Any]]) -> Path:
    """The data folder with these rows in one of its tables, as `out`."""
    out.mkdir()
    for path in folder.iterdir():
        (out / path.name).symlink_to(path)
    (out / f"{table}.parquet").unlink()
    tables.write(out / f"{table}.parquet", rows, {"chats": tables.CHATS, "pictures": tables.PICTURES}[table])
    return out


def chat(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"split": "train", "kind": "chat", "messages": json.dumps(messages)}


def test_chats_that_do_not_fit_are_counted_and_none_left_is_an_error(
    tiny_data: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    long = chat({"role": "user", "content": "the cat " * 400}, {"role": "assistant", "content": "mat"})
    silent = chat({"role": "user", "content": "hi"})
    short = chat({"role": "user", "content": "hi"}, {"role": "assistant", "content": "mat"})
    tokenizer, processor = Tokenizer.load(tiny_data / "tokenizer"), ImageProcessor(None)
    data = with_rows(tiny_data, tmp_path / "data", "chats", [long, silent])
    with pytest.raises(
        HerdError,
        match=r"no chat is left to train on \(1 chats of more than context=128 tokens; 1 chats without an answer",
    ):
        SftBatches(data, SFT, tokenizer, processor)
    with pytest.raises(HerdError, match="no chat is left"):
        sft(SFT, tiny_folder, data, tmp_path / "out")
    data = with_rows(tiny_data, tmp_path / "others", "chats", [long, long, short])
    assert SftBatches(data, SFT, tokenizer, processor).left_out["chats of more than context=128 tokens"] == 2


def test_calls_beside_null_are_fine_tuned_on(tiny_data: Path, tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"town": "Oslo"}'}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "how warm"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "cold", "tool_call_id": "c1"},
        {"role": "assistant", "content": "It is cold"},
    ]
    absent = [*messages[:1], {"role": "assistant", "tool_calls": [call]}, *messages[2:]]
    data = with_rows(tiny_data, tmp_path / "data", "chats", [chat(*messages), chat(*absent)])
    tokenizer = Tokenizer.load(tiny_data / "tokenizer")
    batches = SftBatches(data, replace(SFT, replay_share=0.0), tokenizer, ImageProcessor(None))
    batch = batches.batch(0)
    learnt = tokenizer.decode([t for t, w in zip(batch.targets_N.tolist(), batch.weights_N.tolist(), strict=True) if w])
    assert '[weather(town="Oslo")]' in learnt and "It is cold" in learnt and "how warm" not in learnt


def test_a_share_that_nothing_fills_is_an_error(tiny_data: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(tiny_data / "tokenizer")
    processor = ImageProcessor(preset("tiny", vocab_size=tokenizer.vocab_size, special=tokenizer.ids).vision)
    data = with_rows(tiny_data, tmp_path / "data", "pictures", [])
    with pytest.raises(HerdError, match="has no picture with a name to train on"):
        PretrainBatches(data, PRETRAIN, tokenizer, processor, questions=NAME)
    tables.write(tmp_path / "text.parquet", [], tables.TEXT)
    with pytest.raises(HerdError, match="has no text to train on"):
        PretrainBatches(tmp_path, replace(PRETRAIN, picture_share=0.5), tokenizer, processor, questions=NAME)


@pytest.mark.slow
def test_adapters_train_on_any_folder_and_peft_opens_them_on_it(model: Path, tiny_data: Path, tmp_path: Path) -> None:
    theirs = pytest.importorskip("peft")
    config = replace(SFT, lora=LoraConfig(rank=4), optimizer=OptimizerConfig(adamw_lr=0.01), dtype="float32")
    out = sft(config, model, tiny_data, tmp_path / "lora")
    same_words(model, out)
    ours, ids = herd.load(out, dtype=torch.float32), list(range(5, 60))
    base = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        plain = base(input_ids=torch.tensor([ids])).logits[0]
        found = theirs.PeftModel.from_pretrained(base, out).eval()(input_ids=torch.tensor([ids])).logits[0]
    assert (found - plain).abs().max() > 1e-3, "something was learnt"
    assert (ours.logits(ids) - found).abs().max() <= 1e-5
