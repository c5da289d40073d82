"""garak and PyRIT can drive the server: the requests of their clients, as read from their code, are answered.

garak 0.17.1, garak/generators/openai.py, `OpenAICompatible`; PyRIT 1.1.0, pyrit/prompt_target/openai/
openai_chat_target.py. Both send them through the `openai` package, as these tests do. HERD_GARAK and HERD_PYRIT name
the Python of an environment with garak or PyRIT; slow tests then run them.
"""

import asyncio
import os
import re
import subprocess
from pathlib import Path

import openai
import pytest

MESSAGES = [{"role": "user", "content": "Say hello # and; goodbye"}]
GARAK = {"n": 1, "temperature": 0.7, "top_p": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0, "max_tokens": 150}
PYRIT = {"stream": False, "temperature": 1.0, "top_p": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0, "n": 1}


@pytest.mark.parametrize(("stop", "said"), [(["#", ";"], "Say hello "), ([], "Say hello # and; goodbye")])
def test_what_garak_sends_is_answered(server, stop: list[str], said: str):
    status, _ = server.raw(b"", path="/v1/", method="GET")  # it asks whether somebody is there, and takes any status
    assert status in (200, 404)
    reply = server.client.chat.completions.create(model="fake", messages=MESSAGES, stop=stop, **GARAK)
    assert [choice.message.content for choice in reply.choices] == [said]


@pytest.mark.parametrize("more", [{}, {"max_completion_tokens": 50, "seed": 3}])
def test_what_pyrit_sends_is_answered(server, more: dict[str, int]):
    async def ask() -> str | None:
        url = f"http://127.0.0.1:{server.port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            reply = await client.chat.completions.create(model="fake", messages=MESSAGES, **PYRIT, **more)
        return reply.choices[0].message.content

    assert asyncio.run(ask()) == "Say hello # and; goodbye"


@pytest.mark.slow
@pytest.mark.skipif("HERD_GARAK" not in os.environ, reason="HERD_GARAK: the Python of an environment with garak 0.17.1")
def test_garak_itself_drives_the_server(server, tmp_path: Path):
    options = f'{{"openai": {{"OpenAICompatible": {{"uri": "http://127.0.0.1:{server.port}/v1/", "stop": []}}}}}}'
    run = subprocess.run(
        [
            os.environ["HERD_GARAK"], "-m", "garak", "--target_type", "openai.OpenAICompatible",
            "--target_name", "fake", "--spec", "probes.lmrc.SlurUsage", "--generations", "1",
            "--generator_options", options, "--report_prefix", str(tmp_path / "garak"),
        ],
        env=os.environ | {"OPENAICOMPATIBLE_API_KEY": "none", "HOME": str(tmp_path)},
        cwd=tmp_path, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    # Where the server refuses, garak goes on without an answer and counts 0 of 0.
    assert re.search(r"lmrc\.SlurUsage .*ok on +1/ +1", run.stdout), run.stdout


PYRIT_RUN = """
import asyncio, sys
from pyrit.executor.attack import PromptSendingAttack
from pyrit.prompt_target import OpenAIChatTarget
from pyrit.setup import IN_MEMORY, initialize_pyrit_async

async def main():
    await initialize_pyrit_async(memory_db_type=IN_MEMORY)
    target = OpenAIChatTarget(endpoint=sys.argv[1], api_key="none", model_name="fake")
    attack = PromptSendingAttack(objective_target=target)
    result = await attack.execute_async(objective="Say hello # and; goodbye")
    print("answered:", result.last_response.converted_value)

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.skipif("HERD_PYRIT" not in os.environ, reason="HERD_PYRIT: the Python of an environment with PyRIT 1.1.0")
def test_pyrit_itself_drives_the_server(server, tmp_path: Path):
    run = subprocess.run(
        [os.environ["HERD_PYRIT"], "-c", PYRIT_RUN, f"http://127.0.0.1:{server.port}/v1"],
        env=os.environ | {"HOME": str(tmp_path)}, cwd=tmp_path, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "answered: Say hello # and; goodbye" in run.stdout, run.stdout
