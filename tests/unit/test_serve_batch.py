"""A file of answers: complete, in order, once each, whatever the kills, the slots and the guesses."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from herd.core.errors import HerdError
from herd.engine.load import Model, load
from herd.engine.sampler import SamplingParams
from herd.serve import batch
from herd.serve.batch import Done, generate

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
    engine = model.engine(num_slots=slots, capacity=600)
    try:
        return generate(model, engine, prompts, out, params, slots=slots)
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


def test_a_prompt_at_fault_has_its_error_and_is_tried_again(model: Model, tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    faulty = [
        '{"prompt": "x", "images": ["later.png"]}',
        "no json",
        '{"prompt": "x", "text": "y"}',
        '{"prompt": "x", "image": "a.png"}',
        '{"messages": [{"role": "robot", "content": "x"}]}',
        '{"messages": [3]}',
        json.dumps({"text": "the cat " * 900}),
        '{"prompt": "good"}',
    ]
    prompts.write_text("\n".join(faulty), encoding="utf-8")
    assert run(model, prompts, out).failed == 7
    errors = [answer.get("error", "") for answer in read(out)]
    told = ["later.png does not exist", "not JSON", "one of prompt", "image", "robot", "conversation", "context", ""]
    assert [says in error for says, error in zip(told, errors, strict=True)] == [True] * 8
    assert errors[7] == ""
    Image.new("RGB", (60, 40)).save(tmp_path / "later.png")
    done = run(model, prompts, out)
    assert (done.failed, done.reused) == (6, 1)
    assert "text" in read(out)[0]


def test_nothing_to_do_is_told(model: Model, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(HerdError, match="has no prompts"):
        run(model, tmp_path / "empty.jsonl", tmp_path / "out.jsonl")


@pytest.fixture
def many(tmp_path: Path) -> list[str]:
    prompts, out = tmp_path / "many.jsonl", tmp_path / "out.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"the cat {n}"}) + "\n" for n in range(60)))
    return [str(prompts), "--out", str(out), "--max-tokens", "30", "--temperature", "1", "--slots", "4"]


def test_a_killed_command_goes_on_without_repeating_or_losing_an_answer(tiny_folder: Path, many: list[str]) -> None:
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
    ended = subprocess.run([*command, "--guess", "3", "--json"], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert (told["prompts"], told["answered"], told["reused"]) == (60, 60, len(stood))
    assert len(stood) < 60
    assert stood <= set(out.read_bytes().splitlines(keepends=True))
    assert [answer["number"] for answer in read(out)] == list(range(60))
