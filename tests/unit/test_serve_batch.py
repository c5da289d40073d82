"""A file of answers: complete, in order, once each, whatever the kills, the slots and the guesses."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from openai.types.chat import ChatCompletion
from PIL import Image

from herd.config import EngineConfig
from herd.engine.load import Model, load
from herd.engine.pipeline import AnswerPipeline
from herd.engine.sampler import SamplingParams
from herd.errors import HerdError
from herd.serve import batch
from herd.serve.batch import Done, generate
from herd.serve.batch_file import answer_key, digest_of

PARAMS = SamplingParams(max_tokens=6, temperature=1.0, seed=3)


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Model:
    return load(tiny_folder, dtype=torch.float32)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    Image.new("RGB", (60, 40), "red").save(tmp_path / "red.png")
    picture = {"role": "user", "content": [{"type": "image", "image": "red.png"}, {"type": "text", "text": "?"}]}
    lines: list[dict[str, Any]] = [{"prompt": f"the cat {n}", "id": n} for n in range(5)]
    lines += [{"text": "the cat sat\u2028on"}, {"prompt": "what", "images": ["red.png"]}, {"messages": [picture]}]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")
    return path


def run(model: Model, prompts: Path, out: Path, params: SamplingParams = PARAMS, *, slots: int = 3) -> Done:
    engine = model.engine(max_num_seqs=slots, max_model_len=600)
    try:
        return generate(AnswerPipeline(model, engine), prompts, out, params, slots=slots, name="small")
    finally:
        engine.close()


def read(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def test_every_prompt_has_its_answer_in_order_whatever_the_slots(model: Model, prompts: Path, tmp_path: Path) -> None:
    one, three = tmp_path / "one.jsonl", tmp_path / "three.jsonl"
    done = run(model, prompts, one, slots=1)
    assert (done.prompts, done.answered, done.failed, done.reused) == (8, 8, 0, 0)
    run(model, prompts, three)
    assert one.read_bytes() == three.read_bytes()
    answers = read(one)
    assert [answer["number"] for answer in answers] == list(range(0, 16, 2))  # empty lines lie between
    assert done.tokens == sum(answer["tokens"] for answer in answers)
    assert answers[6]["prompt_tokens"] > answers[0]["prompt_tokens"]  # the picture
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".lock")]


@pytest.mark.parametrize("torn", ["", '{"number": 6, "ke', '{"number": 6}', "\x00\x00"])
def test_what_was_written_before_a_kill_is_kept_and_the_rest_made(
    model: Model, prompts: Path, tmp_path: Path, torn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    run(model, prompts, whole)
    lines = whole.read_text(encoding="utf-8").splitlines(keepends=True)
    out.write_text(lines[4] + lines[1] + torn, encoding="utf-8")
    answered: list[Any] = []
    one = batch._Work._one

    async def counted(work: Any, number: int) -> None:
        answered.append(number)
        await one(work, number)

    monkeypatch.setattr(batch._Work, "_one", counted)
    done = run(model, prompts, out)
    assert done.reused == 2 and sorted(answered) == [0, 4, 6, 10, 12, 14]
    assert out.read_bytes() == whole.read_bytes()
    assert run(model, prompts, out).tokens == 0


def test_answers_to_something_else_are_not_mixed_with_these(model: Model, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(model, prompts, out)
    before = out.read_bytes()
    with pytest.raises(HerdError, match="other settings"):
        run(model, prompts, out, SamplingParams(max_tokens=7, seed=3))
    prompts.write_text(prompts.read_text(encoding="utf-8").replace("cat 0", "dog 0"), encoding="utf-8")
    with pytest.raises(HerdError, match="other prompts"):
        run(model, prompts, out)
    assert out.read_bytes() == before


def test_a_model_that_was_trained_again_in_place_answers_again(
    tiny_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / "model", tmp_path / "out.jsonl"
    shutil.copytree(tiny_folder, folder)
    prompts.write_text(json.dumps({"text": "the cat"}))
    params = SamplingParams(max_tokens=2)
    batch.run(folder, prompts, out, params, EngineConfig())
    before = out.read_bytes()
    (folder / "herd.json").write_text(json.dumps({"stage": "sft", "hash": "another"}))
    with pytest.raises(HerdError, match="answers of another model"):
        batch.run(folder, prompts, out, params, EngineConfig())
    folder.rename(tmp_path / "moved")  # the same model at another place answers the same
    (tmp_path / "moved" / "herd.json").write_bytes((tiny_folder / "herd.json").read_bytes())
    batch.run(tmp_path / "moved", prompts, out, params, EngineConfig())
    assert out.read_bytes() == before


@pytest.mark.parametrize("form", ["images", "messages"])
def test_another_picture_under_the_same_name_is_another_prompt(form: str, tmp_path: Path) -> None:
    path, asked = tmp_path / "a.png", [{"type": "image", "image": "a.png"}, {"type": "text", "text": "?"}]
    line: dict[str, Any] = {"prompt": "?", "images": ["a.png"]}
    if form == "messages":
        line = {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": asked}]}
    keys = set()
    for colour in ("red", "blue"):
        Image.new("RGB", (6, 4), colour).save(path)
        keys.add(answer_key("hash", json.dumps(line), 0, PARAMS, tmp_path, digest_of))
    path.rename(tmp_path / "b.png")
    moved = json.dumps(line).replace("a.png", "b.png")
    keys |= {
        answer_key("hash", json.dumps(line), 0, PARAMS, tmp_path, digest_of),
        answer_key("hash", moved, 0, PARAMS, tmp_path, digest_of),
    }
    assert len(keys) == 4


@pytest.mark.parametrize("content", ['{"prompt": "the cat"}\n', "my notes", "1\n2\n", '{"number": 0}\n'])
def test_a_file_that_holds_no_answers_is_not_written_over(
    model: Model, prompts: Path, tmp_path: Path, content: str
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text(content)
    with pytest.raises(HerdError, match=r"out\.jsonl:1 is no answer of herd generate: give another --out"):
        run(model, prompts, out)
    assert out.read_text() == content


def test_a_prompt_at_fault_has_its_error_and_is_tried_again(model: Model, tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    faulty = [
        '{"prompt": "x", "images": ["later.png"]}',
        "no json",
        '{"prompt": "x", "text": "y"}',
        '{"prompt": "x", "image": "a.png"}',
        '{"messages": [{"role": "robot", "content": "x"}]}',
        '{"messages": [3]}',
        '{"prompt": null}',
        '{"text": ["a"]}',
        '{"messages": []}',
        '{"messages": null}',
        '{"messages": [{"role": "user"}]}',
        '{"prompt": "x", "images": "a.png"}',
        '{"messages": [{"role": "user", "content": "x"}], "images": []}',
        '{"prompt": "x", "tokens": 3}',
        '{"prompt": "a\\ud800"}',
        json.dumps({"text": "the cat " * 900}),
        '{"prompt": "good"}',
    ]
    prompts.write_text("\n".join(faulty), encoding="utf-8")
    assert run(model, prompts, out).failed == 16
    errors = [answer.get("error", "") for answer in read(out)]
    reported = [
        *("later.png does not exist", "not JSON", "one of prompt", "did you mean 'images'?", "robot"),
        *("messages[0] is 3", "prompt is null", 'text is ["a"]', "messages is []", "messages is null"),
        *(
            "messages[0]: content is null",
            "images is no list",
            "'images' is only for prompt",
            "'tokens' is the answer's",
        ),
        *("not Unicode at character 1", "context", ""),
    ]
    assert [error for says, error in zip(reported, errors, strict=True) if says not in error] == []
    assert errors[-1] == ""
    Image.new("RGB", (60, 40)).save(tmp_path / "later.png")
    done = run(model, prompts, out)
    assert (done.failed, done.reused) == (15, 1)
    assert "text" in read(out)[0]


def test_further_fields_of_a_line_are_passed_on_to_its_answer(model: Model, tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    extra = {"custom_id": "a", "label": {"x": [1, None]}, "id": 7, "url": "http://x"}
    lines = [{"prompt": "the cat", **extra}, {"text": "the", "label": "\ud800"}, {"prompt": 3, "custom_id": "b"}]
    prompts.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert run(model, prompts, out).failed == 1
    first, second, third = read(out)
    assert first.items() >= extra.items() and first["tokens"] > 0
    assert second["label"] == "\ud800"
    assert (third["custom_id"], "error" in third) == ("b", True)


def request(custom_id: str, **body: Any) -> dict[str, Any]:
    """A line as OpenAI's guide to its batch API has it."""
    asked = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "the cat"}], "max_tokens": 5, **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": asked}


def test_openais_batch_file_is_read_and_written(model: Model, tmp_path: Path) -> None:
    prompts, out = tmp_path / "requests.jsonl", tmp_path / "out.jsonl"
    tool = {"type": "function", "function": {"name": "clock"}}
    lines = [
        request("a"),
        request("b", n=2, logprobs=True, top_p=0),
        request("c", tools=[tool], tool_choice="required", max_tokens=None),
        request("d", temprature=1),
        request("e", stream=True),
        {**request("f"), "url": "/v1/embeddings"},
        request("g", messages="x" * 10_000),
        {"custom_id": "h", "method": "POST", "url": "/v1/chat/completions", "body": 3},
    ]
    prompts.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    done = run(model, prompts, out, SamplingParams(max_tokens=40, seed=3))
    assert (done.prompts, done.failed) == (8, 5)
    answers = read(out)
    assert [answer["custom_id"] for answer in answers] == list("abcdefgh")
    assert all(answer["error"] is None and answer["id"] and answer["response"]["request_id"] for answer in answers)
    assert [answer["response"]["status_code"] for answer in answers] == [200] * 3 + [400] * 5
    whole = [ChatCompletion.model_validate(answer["response"]["body"], strict=True) for answer in answers[:3]]
    assert (len(whole[1].choices), whole[0].model, whole[0].usage.completion_tokens) == (2, "small", 5)  # type: ignore[union-attr]
    assert whole[2].choices[0].message.tool_calls[0].function.name == "clock"  # type: ignore[index,union-attr]
    errors = [answer["response"]["body"]["error"] for answer in answers[3:]]
    assert [error["param"] for error in errors] == ["temprature", "stream", "url", "messages", None]
    before = out.read_bytes().splitlines()[:3]
    again = run(model, prompts, out, SamplingParams(max_tokens=40, seed=3))
    assert (again.reused, again.failed) == (3, 5) and out.read_bytes().splitlines()[:3] == before


def test_two_requests_of_one_id_are_refused(model: Model, tmp_path: Path) -> None:
    prompts = tmp_path / "requests.jsonl"
    prompts.write_text("\n\n".join(json.dumps(request("a")) for _ in range(2)))
    with pytest.raises(HerdError, match="lines 1 and 3 have one custom_id: 'a'"):
        run(model, prompts, tmp_path / "out.jsonl")


def test_prompts_that_are_not_utf8_are_refused_with_file_and_line(model: Model, tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_bytes('{"prompt": "größe"}\n'.encode() + '{"prompt": "größe"}\n'.encode("latin-1"))
    with pytest.raises(HerdError, match=r"prompts\.jsonl line 2: the byte 0xf6 is not UTF-8"):
        run(model, prompts, out)
    assert not out.exists()
    prompts.write_bytes(b"\xef\xbb\xbf" + b'{"prompt": "the cat"}\n')  # the mark that Windows puts before
    assert run(model, prompts, out).failed == 0


def test_nothing_to_do_is_reported(model: Model, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(HerdError, match="has no prompts"):
        run(model, tmp_path / "empty.jsonl", tmp_path / "out.jsonl")


@pytest.fixture
def many(tmp_path: Path) -> list[str]:
    prompts, out = tmp_path / "many.jsonl", tmp_path / "out.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"the cat {n}"}) + "\n" for n in range(60)))
    return [str(prompts), "--out", str(out), "--max-tokens", "30", "--temperature", "1", "--max-num-seqs", "4"]


def test_a_killed_command_resumes_without_repeating_or_losing_an_answer(tiny_folder: Path, many: list[str]) -> None:
    command = [sys.executable, "-m", "herd", "generate", str(tiny_folder), *many]
    out = Path(many[2])
    killed = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not out.exists() or out.read_bytes().count(b"\n") < 8:
        assert time.monotonic() < deadline and killed.poll() is None
        time.sleep(0.02)
    killed.kill()
    killed.communicate()
    stood = {line for line in out.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")}
    ended = subprocess.run(
        [*command, "--num-speculative-tokens", "3", "--json"], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    reported = json.loads(ended.stdout)
    assert (reported["prompts"], reported["answered"], reported["reused"]) == (60, 60, len(stood))
    assert len(stood) < 60
    assert stood <= set(out.read_bytes().splitlines(keepends=True))
    assert [answer["number"] for answer in read(out)] == list(range(60))
