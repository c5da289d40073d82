"""Commands of the messengers: `herd channels serve`, `simulate` and `status`, and `herd bench channels`."""

from pathlib import Path
from typing import Literal

from herd.commands.answers import BATCH_ENGINE, CHAT_ENGINE, CHAT_SAMPLING, default_model, sampling_params
from herd.commands.command import load_object
from herd.config import EngineConfig, SamplingConfig


def channels_simulate(
    folder: Path | None = None,
    /,
    *,
    channel: Literal["whatsapp", "messenger", "instagram"] = "whatsapp",
    system: str = "",
    join_s: float = 0.5,
    sampling: SamplingConfig = CHAT_SAMPLING,
    engine: EngineConfig = CHAT_ENGINE,
    base: Path | None = None,
    yes: bool = False,
) -> None:
    """Try a messenger on this machine, without an account: a chat in the terminal, with a stand-in for Meta.

    Args:
        folder: Folder of a model, or a .gguf file; runs/tiny/sft if not given, else a small model from PyPI.
        channel: Which messenger.
        system: System message of the conversation.
        join_s: Messages that come within so many seconds are answered together.
        sampling: How answers are drawn.
        engine: Options of the engine.
        base: Folder of the model that an adapter was trained on, if that is not where the adapter says.
        yes: Fetch the small model without asking.
    """
    params = sampling_params(sampling)
    options = load_object("herd.serve.channels.config:Options")(
        system=system, join_s=join_s, max_tokens=sampling.max_tokens
    )
    load_object("herd.serve.channels.simulate:simulate")(
        default_model(folder, yes=yes), channel=channel, options=options, params=params, config=engine, base=base
    )


def channels_serve(
    config: Path,
    folder: Path | None = None,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    engine: EngineConfig = BATCH_ENGINE,
    base: Path | None = None,
    guard: Path | None = None,
    prompt_guard: Path | None = None,
    policy: Path | None = None,
    yes: bool = False,
) -> None:
    """Answer people on WhatsApp, Messenger and Instagram with a model; the webhooks are all that is served.

    Args:
        config: The channels.toml: accounts, limits, texts.
        folder: Folder of a model, or a .gguf file; runs/tiny/sft if not given, else a small model from PyPI.
        host: Address to listen on; 0.0.0.0 admits other machines.
        port: Port to listen on; 0 takes a free one.
        engine: Options of the engine.
        base: Folder of the model that an adapter was trained on, if that is not where the adapter says.
        guard: Folder of a guard (herd guard train) that judges what people write and what the model answers.
        prompt_guard: Folder of a prompt guard (herd guard train-prompt) that looks for injections in what people write.
        policy: File of the categories that are blocked, as TOML (docs/serve.md).
        yes: Fetch the small model without asking.
    """
    load_object("herd.serve.channels.serve:serve")(
        default_model(folder, yes=yes),
        config,
        host=host,
        port=port,
        config=engine,
        base=base,
        guard=guard,
        prompt_guard=prompt_guard,
        policy=policy,
    )


def channels_status(config: Path, /, *, release: str = "", json: bool = False) -> None:
    """Show what the channels of a channels.toml have counted, what may not have been sent, and who waits for a person.

    Args:
        config: The channels.toml.
        release: Number of a conversation that a person has; it is the model's again.
        json: Print one JSON object, for scripts.
    """
    load_object("herd.serve.channels.status:status")(config, release=release, as_json=json)


def bench_channels(
    *,
    channels: tuple[Literal["whatsapp", "messenger", "instagram"], ...] = ("whatsapp", "messenger", "instagram"),
    messages: int = 10_000,
    kills: int = 200,
    per_s: float = 20.0,
    controls: bool = True,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Storm the channels with duplicated and shuffled webhooks while servers are killed, and count what is lost.

    Args:
        channels: Which messengers.
        messages: Messages of people for each; further events come between them.
        kills: How often a server is killed.
        per_s: Most deliveries a second.
        controls: Send a smaller storm at a naive handler and at pywa too.
        seed: Of the storm.
        json: Print one JSON object, for scripts.
    """
    load_object("herd.bench.channels:bench_channels")(
        channels=channels, messages=messages, kills=kills, per_s=per_s, controls=controls, seed=seed, as_json=json
    )
