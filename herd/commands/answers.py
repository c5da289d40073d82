"""What has a model answer: `herd chat`, `herd generate`, `herd serve`."""

from pathlib import Path

from herd.commands.command import named
from herd.config import EngineConfig

CHAT_ENGINE = EngineConfig(max_num_seqs=1)
BATCH_ENGINE = EngineConfig(max_num_seqs=32)

DEFAULT_MODEL = Path("runs/tiny/sft")
"""What the demo trains."""


def default_model(folder: Path | None, *, yes: bool) -> Path:
    """The folder named, else the model that the demo trains, else the starter model."""
    if folder is not None:
        return folder
    path: Path = DEFAULT_MODEL if DEFAULT_MODEL.exists() else named("herd.stages.starter:starter")(yes=yes)
    return path


def chat(
    folder: Path | None = None,
    /,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    max_tokens: int = 512,
    seed: int | None = None,
    system: str | None = None,
    engine: EngineConfig = CHAT_ENGINE,
    draft_model: Path | None = None,
    yes: bool = False,
) -> None:
    """Talk to a model in the terminal, with pictures.

    Args:
        folder: Folder of a model, or a .gguf file; runs/tiny/sft if not given, else a small model from PyPI.
        temperature: 0 takes the likeliest token; 1 draws as the model believes.
        top_p: Draw only from the likeliest tokens that together have this probability.
        top_k: Draw only from so many likeliest tokens; 0: all.
        min_p: Draw only tokens at least this share as likely as the likeliest.
        repetition_penalty: Above 1, tokens that were there become less likely.
        max_tokens: Longest answer.
        seed: Makes what is drawn repeatable.
        system: What the model is told before the conversation.
        engine: Options of the engine.
        draft_model: Folder of a smaller model of the same tokenizer, which drafts ahead.
        yes: Fetch the small model without asking.
    """
    params = named("herd.engine.sampler:SamplingParams")(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        max_tokens=max_tokens,
        seed=seed,
    )
    model = default_model(folder, yes=yes)
    named("herd.serve.terminal:chat")(model, params, engine, system=system, draft_model=draft_model)


def generate(
    folder: Path,
    prompts: Path,
    /,
    *,
    out: Path,
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: tuple[str, ...] = (),
    seed: int = 0,
    schema: Path | None = None,
    engine: EngineConfig = BATCH_ENGINE,
    draft_model: Path | None = None,
    json: bool = False,
) -> None:
    """Answer a file of prompts; a kill loses nothing that is written.

    Args:
        folder: Folder of a model, or a .gguf file.
        prompts: JSON lines: {"prompt": …, "images": [PATH, …]}, {"messages": […]}, {"text": …} to go on with, or
            OpenAI's batch file.
        out: JSON lines to write; what stands there already is kept.
        max_tokens: Longest answer.
        temperature: 0 takes the likeliest token; 1 draws as the model believes.
        top_p: Draw only from the likeliest tokens that together have this probability.
        top_k: Draw only from so many likeliest tokens; 0: all.
        min_p: Draw only tokens at least this share as likely as the likeliest.
        repetition_penalty: Above 1, tokens that were there become less likely.
        stop: Texts that end an answer and are left out of it.
        seed: With the number of a prompt it gives what is drawn.
        schema: File with a JSON schema that every answer follows.
        engine: Options of the engine.
        draft_model: Folder of a smaller model of the same tokenizer, which drafts ahead.
        json: Print one JSON object at the end, for scripts.
    """
    params = named("herd.engine.sampler:SamplingParams")(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=stop,
        seed=seed,
    )
    named("herd.serve.batch:run")(
        folder, prompts, out, params, engine, schema=schema, draft_model=draft_model, as_json=json
    )


def serve(
    folder: Path | None = None,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    max_queued_requests: int = 128,
    engine: EngineConfig = BATCH_ENGINE,
    draft_model: Path | None = None,
    yes: bool = False,
) -> None:
    """Serve a model to OpenAI clients and browsers.

    Args:
        folder: Folder of a model, or a .gguf file; runs/tiny/sft if not given, else a small model from PyPI.
        host: Address to listen on; 0.0.0.0 lets other machines in.
        port: Port to listen on; 0 takes a free one.
        max_queued_requests: Requests that wait at most; one more is refused with 429.
        engine: Options of the engine.
        draft_model: Folder of a smaller model of the same tokenizer, which drafts ahead.
        yes: Fetch the small model without asking.
    """
    named("herd.serve.api:serve")(
        default_model(folder, yes=yes),
        host=host,
        port=port,
        config=engine,
        max_queued_requests=max_queued_requests,
        draft_model=draft_model,
    )
