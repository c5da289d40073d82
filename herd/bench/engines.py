"""Who `herd bench engine` measures: Herd, llama.cpp and transformers, each alone in a process of its own.

A process opens one model and answers questions through a pipe: how long does a prompt of N tokens take, how long a step
of B sequences after a past of P tokens, how long a token of B requests that are served at a time, from prompt to text,
how much memory is resident. Between questions it sleeps. All take the likeliest token. Of prompts and steps llama.cpp
reports its times itself: those of its server, without HTTP, in the build of the `xllamacpp`
wheel; or where LLAMA_CPP names a folder of programs built for this processor, those of llama-bench and
llama-batched-bench, which are started anew for each measurement.
"""

# N tokens, B sequences

import asyncio
import json
import os
import resource
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

PIECE = 512
"""Tokens of a prompt that are read at one time; llama.cpp's default too."""
LLAMA_CPP = "HERD_LLAMA_CPP"
"""The environment variable that names the folder of llama.cpp's own programs."""
WARM = 4
"""Steps before those that are timed."""


class Measured(Protocol):
    """An opened model. Token ids are below `vocabulary`, all ordinary."""

    def prefill(self, count: int) -> float:
        """Seconds to read a new prompt of `count` tokens, to the logits behind it."""

    def decode(self, sequences: int, past: int, steps: int) -> float:
        """Seconds a step of `sequences` sequences, behind prompts of `past` tokens each."""


def prompt(count: int, seed: int) -> list[int]:
    """Ordinary tokens of the bench's tokenizer."""
    return [300 + (seed * 7919 + i * 104_729) % 15_000 for i in range(count)]


class Herd:
    """Our folder: prompts and steps by the engine's forward alone, requests by the whole engine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        import torch

        from herd.errors import HerdError
        from herd.model.formats.source import find_source
        from herd.model.fused import FusedForward, why_not
        from herd.model.pack import pack_sequences

        self._torch, self._pack = torch, pack_sequences
        model = find_source(folder).transformer()
        if reason := why_not(model):
            raise HerdError(f"the native forward does not serve: {reason}")
        self._model, self._call = model, FusedForward(model)

    def _slots(self, sequences: int, capacity: int) -> Any:
        from herd.model.cache import Slots

        torch = self._torch
        return Slots(
            self._model.config,
            num_slots=sequences,
            capacity=capacity,
            dtype=torch.bfloat16,
            device=torch.device("cpu"),
        )

    def _read(self, slots: Any, slot: int, ids: list[int]) -> int:
        torch, hidden_RD = self._torch, self._torch.empty(0)
        for begin in range(0, len(ids), PIECE):
            pack = self._pack([ids[begin : begin + PIECE]], num_cached=[begin])
            rows_R = pack.last_S if begin + PIECE >= len(ids) else torch.zeros(0, dtype=torch.int64)
            hidden_RD = self._call(pack, cache=slots.view(pack, [slot]), rows_R=rows_R)
        return int(self._call.unembed(hidden_RD).argmax())

    def prefill(self, count: int) -> float:
        with self._torch.inference_mode():
            ids, slots = prompt(count, 1), self._slots(1, count)
            begin = time.perf_counter()
            self._read(slots, 0, ids)
            return time.perf_counter() - begin

    def decode(self, sequences: int, past: int, steps: int) -> float:
        with self._torch.inference_mode():
            slots = self._slots(sequences, past + steps + WARM)
            tokens = [self._read(slots, slot, prompt(past, slot)) for slot in range(sequences)]
            for step in range(WARM + steps):
                if step == WARM:
                    begin = time.perf_counter()
                pack = self._pack([[token] for token in tokens], num_cached=[past + step] * sequences)
                hidden_RD = self._call(pack, cache=slots.view(pack, range(sequences)), rows_R=pack.last_S)
                tokens = self._call.unembed(hidden_RD).argmax(-1).tolist()
            return (time.perf_counter() - begin) / steps

    def served(self, sequences: int, past: int, steps: int) -> float:
        from herd.engine.load import load
        from herd.engine.model import Prompt
        from herd.engine.sampler import SamplingParams

        async def answer(engine: Any, seed: int) -> int:
            params = SamplingParams(max_tokens=steps)
            asked = Prompt(token_ids=prompt(past, seed))
            return sum([len(piece.token_ids) async for piece in engine.generate(asked, params)])

        async def answers(engine: Any, first: int) -> int:
            return sum(await asyncio.gather(*(answer(engine, first + seed) for seed in range(sequences))))

        with closing(
            load(self._folder, device="cpu").engine(max_num_seqs=sequences, max_model_len=past + steps)
        ) as engine:
            asyncio.run(answers(engine, sequences))  # warm, with prompts of its own
            begin = time.perf_counter()
            count = asyncio.run(answers(engine, 0))
            return (time.perf_counter() - begin) / count


class LlamaCpp:
    """The GGUF of the same weights, in llama.cpp's server."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._server: Any = None
        self._room = (0, 0)

    def _ask(self, sequences: int, context: int, past: int, predict: int) -> list[dict[str, float]]:
        if self._room[0] != sequences or self._room[1] < context:
            self._server = None  # its memory goes before the next one's comes
            self._server, self._room = self._open(sequences, context), (sequences, context)

        def ask(slot: int) -> dict[str, float]:
            answer = self._server.handle_completions(
                {
                    "prompt": prompt(past, slot),
                    "n_predict": predict,
                    "temperature": 0,
                    "samplers": ["temperature"],
                    "ignore_eos": True,
                    "cache_prompt": False,
                    "timings_per_token": False,
                }
            )
            if "timings" not in answer:
                raise RuntimeError(str(answer)[:300])
            return dict(answer["timings"])

        with ThreadPoolExecutor(sequences) as pool:
            return list(pool.map(ask, range(sequences)))

    def _open(self, sequences: int, context: int) -> Any:
        xllamacpp = import_module("xllamacpp")  # without types
        params = xllamacpp.CommonParams()
        params.model.path = str(self._path)
        params.n_ctx, params.n_parallel = sequences * (-(-context // 256) * 256), sequences
        params.warmup, params.fit_params, params.kv_unified = True, False, False
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = os.cpu_count() or 1
        params.verbosity = -1
        return xllamacpp.Server(params)

    def prefill(self, count: int) -> float:
        [answer] = self._ask(1, count + 16, count, 1)
        return answer["prompt_ms"] / 1e3

    def decode(self, sequences: int, past: int, steps: int) -> float:
        answer = self._ask(sequences, past + steps + 16, past, steps)
        # All run together but for the first prompts: what the one that began last saw is a full batch's pace.
        return min(one["predicted_ms"] / one["predicted_n"] for one in answer) / 1e3

    def served(self, sequences: int, past: int, steps: int) -> float:
        self._ask(sequences, past + steps + 16, past, steps)  # warm
        begin = time.perf_counter()
        answer = self._ask(sequences, past + steps + 16, past, steps)
        return (time.perf_counter() - begin) / sum(one["predicted_n"] for one in answer)


class LlamaCppPrograms:
    """The GGUF of the same weights in llama.cpp's own benchmarks, of a build that is at hand."""

    def __init__(self, path: Path) -> None:
        self._path, self._folder = path, Path(os.environ[LLAMA_CPP])

    def _run(self, program: str, *arguments: object) -> dict[str, float]:
        command = [self._folder / program, "-m", self._path, "-t", os.cpu_count() or 1, *arguments]
        for _ in range(3):  # about one run in forty ends well without any output
            done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
            answer = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
            if answer:
                return dict(answer[0])
        raise RuntimeError(f"{program} printed nothing: {(done.stdout + done.stderr)[-2000:]}")

    def prefill(self, count: int) -> float:
        return count / self._run("llama-bench", "-p", count, "-n", 0, "-r", 1, "-o", "jsonl")["avg_ts"]

    def decode(self, sequences: int, past: int, steps: int) -> float:
        room = sequences * (past + steps)
        answer = self._run(
            "llama-batched-bench", "-c", -(-room // 256) * 256, "-npp", past, "-ntg", steps, "-npl", sequences,
            "--output-format", "jsonl",
        )  # fmt: skip
        return answer["t_tg"] / steps

    def resident(self) -> int:
        """The most that one of them held."""
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


class Transformers:
    """The same folder in transformers, with its sdpa attention."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoConfig, Llama4ForCausalLM
        from transformers.utils import logging

        logging.set_verbosity_error()
        self._torch = torch
        config = AutoConfig.from_pretrained(folder)
        self._model = Llama4ForCausalLM.from_pretrained(
            folder,
            config=getattr(config, "text_config", config),
            dtype=torch.bfloat16,
            attn_implementation="sdpa",
            key_mapping={"^language_model.": ""},
        ).eval()

    def prefill(self, count: int) -> float:
        torch = self._torch
        with torch.inference_mode():
            ids = torch.tensor([prompt(count, 1)])
            begin = time.perf_counter()
            self._model(input_ids=ids, use_cache=True, logits_to_keep=1).logits.argmax(-1)
            return time.perf_counter() - begin

    def decode(self, sequences: int, past: int, steps: int) -> float:
        torch = self._torch
        with torch.inference_mode():
            ids = torch.tensor([prompt(past, slot) for slot in range(sequences)])
            answer = self._model(input_ids=ids, use_cache=True, logits_to_keep=1)
            for step in range(WARM + steps):
                if step == WARM:
                    begin = time.perf_counter()
                tokens = answer.logits[:, -1:].argmax(-1)
                answer = self._model(input_ids=tokens, past_key_values=answer.past_key_values, use_cache=True)
            return (time.perf_counter() - begin) / steps


SERVER = "llama.cpp's server"
ENGINES = {"Herd": Herd, "llama.cpp": LlamaCpp, SERVER: LlamaCpp, "transformers": Transformers}


def wheel_build() -> str:
    """The widest instructions that the library in xllamacpp's wheel is built for, such as AVX2."""
    answer = import_module("xllamacpp").get_system_info()
    widest = [name for name in ("SSE3", "AVX", "AVX2", "AVX512") if f"{name} = 1" in answer]
    return f"the wheel's build for {widest[-1] if widest else 'an unknown processor'}"


def resident() -> int:
    """Bytes of this process in memory now."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def serve(pipe: Connection, name: str, path: Path) -> None:
    """The child: open, then answer (method, arguments) with (value, resident bytes) until None comes."""
    try:
        programs = name == "llama.cpp" and LLAMA_CPP in os.environ
        engine = LlamaCppPrograms(path) if programs else ENGINES[name](path)
        held = getattr(engine, "resident", resident)
        pipe.send((None, held()))
        while (asked := pipe.recv()) is not None:
            method, arguments = asked
            pipe.send((getattr(engine, method)(*arguments), held()))
    except Exception as error:  # sent to the parent, which ends the bench
        pipe.send((f"{type(error).__name__}: {error}", 0))


class Child:
    """A process with one engine; `memory` is the most it was seen to hold."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.memory = name, 0
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, name, path), daemon=True)
        self._process.start()
        theirs.close()
        self._receive()

    def ask(self, method: str, *arguments: int) -> float:
        """One measurement, in seconds."""
        self._pipe.send((method, arguments))
        return self._receive()

    def _receive(self) -> float:
        from herd.errors import HerdError

        try:
            value, memory = self._pipe.recv()
        except EOFError:
            raise HerdError(f"{self.name} died while it was measured") from None
        if isinstance(value, str):
            raise HerdError(f"{self.name}: {value}")
        self.memory = max(self.memory, memory)
        return value or 0.0

    def close(self) -> None:
        with suppress(BrokenPipeError):
            self._pipe.send(None)
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
