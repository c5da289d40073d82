"""lm-eval itself over HTTP, with tasks of a few lines and no network: its log-likelihoods are those of our own scorer,
and its answers are the engine's. lm-eval is no dependency: `pip install 'lm_eval[api]'` into an environment of its own,
and name its program in HERD_LM_EVAL.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROWS = [
    {"question": "the cat sat on the", "choices": [" mat", " moon", " der Hund"], "answer": 0},
    {"question": "der Hund", "choices": [" cat", " sat on"], "answer": 1},
    {"question": "ねこ und बिल्ली:", "choices": [" ねこ", " mat", " the", " sat"], "answer": 2},
] * 4
TASKS = {
    "herd_choice": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
target_delimiter: ""
metric_list:
  - metric: acc
""",
    "herd_answer": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs:
  until: ["zzz"]
  max_gen_toks: 12
  do_sample: false
metric_list:
  - metric: exact_match
""",
}


def lm_eval() -> str:
    program = os.environ.get("HERD_LM_EVAL") or shutil.which("lm_eval")
    if not program:
        pytest.skip("needs lm-eval (HERD_LM_EVAL)")
    return program


@contextmanager
def served(folder: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "herd", "serve", str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            yield re.findall(r"http://[0-9.:]+", server.stdout.readline())[0]
        finally:
            server.kill()


def run(kind: str, task: str, url: str, home: Path, *options: str, more: str = "") -> list[dict[str, Any]]:
    """The samples that lm-eval writes, in the order of the rows."""
    program = lm_eval()
    rows = home / "rows.jsonl"
    rows.write_text("".join(json.dumps({"row": n, **row}) + "\n" for n, row in enumerate(ROWS)), encoding="utf-8")
    source = f"task: {task}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {rows}\ntest_split: test\n"
    (home / f"{task}.yaml").write_text(source + TASKS[task], encoding="utf-8")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home / "hf"), "OPENAI_API_KEY": "none"}
    environment.pop("PYTHONPATH", None)  # it has packages of its own
    done = subprocess.run(
        [program, "--model", kind, "--model_args", f"model=random,base_url={url}{more}", "--tasks", task,
         "--include_path", str(home), "--log_samples", "--output_path", str(home / task), *options],
        env=environment, capture_output=True, text=True, check=False, cwd=home,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    [samples] = (home / task).rglob("samples_*.jsonl")
    found = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    return sorted(found, key=lambda one: one["doc"]["row"])


@pytest.mark.slow
def test_lm_eval_over_http_has_the_log_likelihoods_of_our_own_scorer(tiny_folder: Path, tmp_path: Path):
    from herd.engine.load import load
    from herd.engine.model import Prompt
    from herd.engine.score import log_likelihoods

    lm_eval()
    with served(tiny_folder) as url:
        address = f"{url}/v1/completions"
        samples = run("local-completions", "herd_choice", address, tmp_path, more=",tokenizer_backend=remote")
    model = load(tiny_folder)
    for sample, row in zip(samples, ROWS, strict=True):
        context = model.tokenizer.encode(row["question"])
        whole = [model.tokenizer.encode(row["question"] + choice) for choice in row["choices"]]
        asked = [(Prompt(token_ids=ids[: len(context)]), ids[len(context) :]) for ids in whole]
        own = log_likelihoods(model, asked)
        theirs = [float(one[0][0]) for one in sample["resps"]]
        assert theirs == pytest.approx(own, abs=1e-3)
        assert sample["acc"] == (max(range(len(own)), key=own.__getitem__) == row["answer"])


@pytest.mark.slow
def test_lm_eval_gets_the_answers_of_the_engine(tiny_folder: Path, tmp_path: Path):
    from herd.engine.load import load
    from herd.engine.sampler import SamplingParams

    lm_eval()
    with served(tiny_folder) as url:
        address = f"{url}/v1/chat/completions"
        samples = run("local-chat-completions", "herd_answer", address, tmp_path, "--apply_chat_template")
    model = load(tiny_folder)
    params = SamplingParams(max_tokens=12)
    for sample, row in zip(samples, ROWS, strict=True):
        own = model.chat([{"role": "user", "content": row["question"]}], params).text
        assert sample["resps"] == [[own]]
