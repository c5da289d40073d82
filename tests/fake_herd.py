"""A model without weights, behind the interface of the real one, for the tests of what stands in front of it.

It repeats the user's last message word by word and says how many pictures came with it. "count" makes it count up, one
number a piece, as long as it is let; "fail" makes it fail. As a program it serves or chats:
`python fake_herd.py serve` and `python fake_herd.py chat`.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from model_folder import random_tokenizer

from herd.engine.answer import Piece, TokenLogprob
from herd.engine.filters import StopFilter
from herd.engine.load import Model
from herd.engine.model import Prompt
from herd.engine.pipeline import AnswerPipeline
from herd.engine.sampler import SamplingParams
from herd.engine.structure import Structures
from herd.errors import HerdError

CONTEXT = 2000


class FakeEngine:
    def __init__(self, *, delay_s: float) -> None:
        self.delay_s = delay_s
        self.max_model_len = CONTEXT
        self.seen: list[tuple[Prompt, SamplingParams]] = []
        self.callers: list[str] = []
        self.salts: list[str] = []
        self.running = 0
        self.most_running = 0
        self.num_cancelled = 0
        self.closed = False

    async def generate(
        self, prompt: Prompt, params: SamplingParams, *, caller: str = "", salt: str = ""
    ) -> AsyncIterator[Piece]:
        self.seen.append((prompt, params))
        self.callers.append(caller)
        self.salts.append(salt)
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        ended = False
        try:
            words, stop = self.words(prompt), StopFilter(params.stop)
            for number, word in enumerate(words[: params.max_tokens], start=1):
                await asyncio.sleep(self.delay_s)
                if word.strip() == "fail":
                    raise RuntimeError("the fake was made to fail")
                last = number == min(len(words), params.max_tokens)
                reason = ("length" if number < len(words) else "stop") if last else None
                ended = last
                text = stop.push(word)
                if stop.verdict:
                    reason = "stop"
                elif last:
                    text += stop.finish()
                logprob, top = -0.5 * number, ((number, -0.5 * number), (0, -9.0))
                reported = TokenLogprob(token_id=number, logprob=logprob, sampled_logprob=logprob, top=top)
                logprobs = () if params.logprobs is None else (reported,)
                piece = Piece(text=text, token_ids=[number], finish_reason=reason, logprobs=logprobs)
                if params.prompt_logprobs and number == 1:
                    of_prompt = range(1, len(prompt.token_ids))
                    top = [((token + 1, -0.25),) if params.logprobs else () for token in prompt.token_ids[1:]]
                    scores = tuple(-float(n) for n in of_prompt)
                    piece = replace(piece, prompt_logprobs=scores, prompt_top=tuple(top))
                yield replace(piece, stop_string=stop.found)
                if stop.verdict:
                    return
        finally:
            self.running -= 1
            self.num_cancelled += not ended

    def stream(self, prompt: Prompt, params: SamplingParams) -> Iterator[Piece]:
        pieces = self.generate(prompt, params)
        with asyncio.Runner() as runner:
            try:
                while (piece := runner.run(_next(pieces))) is not None:
                    yield piece
            finally:
                runner.run(pieces.aclose())

    def words(self, prompt: Prompt) -> list[str]:
        text = bytes(prompt.token_ids).decode()
        content = json.loads(text)[-1]["content"] if text.startswith("[{") else text
        parts = [{"text": content}] if isinstance(content, str) else content
        text = "".join(part.get("text", "") for part in parts)
        if text == "count":
            return [f"{n} " for n in range(1, CONTEXT)]
        num_pictures = sum("image" in part for part in parts)
        pictures = prompt.tiles[len(prompt.tiles) - num_pictures :]
        sizes = "".join(f"[{picture.width}x{picture.height}]" for picture in pictures)
        sizes += "".join(f"[video of {len(part['frames'])}]" for part in parts if part.get("type") == "video")
        return [sizes, *(word for word in text.replace(" ", "\0 ").split("\0"))]

    def embed(self, prompts: Sequence[Prompt]) -> list[list[float]]:
        for prompt in prompts:
            if len(prompt.token_ids) > CONTEXT:
                raise HerdError("too many tokens")
        return [[len(prompt.token_ids), *map(float, prompt.token_ids[:2])] for prompt in prompts]

    def stats(self) -> dict[str, int]:
        state = dict.fromkeys(("waiting", "preempted", "used_bytes", "shared_bytes", "cache_bytes"), 0)
        return state | {"running": self.running}

    def close(self) -> None:
        self.closed = True


async def _next(pieces: AsyncIterator[Piece]) -> Piece | None:
    return await anext(pieces, None)


class FakeModel:
    chat, chat_stream = Model.chat, Model.chat_stream

    def __init__(self, *, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.tokenizer = random_tokenizer()
        self.config = SimpleNamespace(vocab_size=self.tokenizer.vocab_size)
        self.structures = Structures(self.tokenizer, vocab_size=self.tokenizer.vocab_size, stop=(299,))

    @property
    def pipeline(self) -> AnswerPipeline:
        return AnswerPipeline(self, self.engine())

    def engine(self) -> FakeEngine:
        self.last_engine = FakeEngine(delay_s=self.delay_s)
        return self.last_engine

    def prompt_of_text(self, text: str) -> Prompt:
        return Prompt(token_ids=list(text.encode()))

    def render(
        self, messages: list[dict[str, Any]], *, tools: Sequence[Any] = (), add_generation_prompt: bool = True
    ) -> Prompt:
        self.last_tools = list(tools)
        parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
        images = tuple(part["image"] for part in parts if part["type"] == "image")
        text = json.dumps(messages, default=lambda image: "", ensure_ascii=False)
        return Prompt(token_ids=list(text.encode()), tiles=images)


if __name__ == "__main__":
    from herd.serve import server as api
    from herd.serve import terminal
    from herd.serve.models import one_model
    from herd.serve.session import ChatSession

    model = FakeModel(delay_s=0.02)
    if sys.argv[1] == "serve":
        listener = api.listen("127.0.0.1", 0)
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        engine = model.engine()
        api.Server(api.create_app(one_model(AnswerPipeline(model, engine), name="fake")), engine).run(
            sockets=[listener]
        )
    else:
        params = SamplingParams(max_tokens=CONTEXT)
        terminal.run_session(ChatSession(AnswerPipeline(model, model.engine()), params), name="fake")
