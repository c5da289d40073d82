"""Training, engine, scores and stages on a device that is not there: no operator mixes devices, and how often a step
waits for the device is an exact small number."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from parallel_world import SHAPE, RandomBatches, small_model
from PIL import Image
from pretended_device import MixedDevices, PretendedDevice, pretended_device
from torch.utils._pytree import tree_leaves

from herd.config import CheckpointConfig, OptimizerConfig, PretrainConfig, SftConfig, VisionStageConfig
from herd.core.batch import split_batch
from herd.core.lineage import Stage
from herd.core.tracker import read_metrics
from herd.data.tokens.tokenizer import Tokenizer
from herd.engine.engine import Engine
from herd.engine.load import Model, load
from herd.engine.model import LoadedModel, Prompt
from herd.engine.reader import Reader
from herd.engine.sampler import SamplingParams
from herd.engine.score import log_likelihoods, token_losses
from herd.engine.structure import Structure
from herd.model.formats import huggingface
from herd.model.moe import MoE
from herd.stages.pretrain import pretrain
from herd.stages.sft import sft
from herd.stages.vision import vision
from herd.train.balance import Balancer
from herd.train.checkpoint import Checkpoints
from herd.train.loop import train
from herd.train.losses import language_loss
from herd.train.optimizer import Optimizer

pytestmark = pytest.mark.usefixtures("one_thread")
ONE = "copy to the host"


def test_the_pretended_device_refuses_what_a_card_refuses_and_counts_what_waits() -> None:
    with pretended_device() as device:
        here, there = torch.arange(4.0), device.send(torch.arange(4.0))
        assert there.device == torch.device("cuda", 0) and (there * 2 + torch.tensor(1.0)).device == there.device
        assert torch.zeros(2, device=device.device).device == there.device
        with pytest.raises(MixedDevices):
            there + here
        with pytest.raises(MixedDevices):
            there[torch.tensor([0, 1])]
        assert not device.reads
        assert (there.sum().item(), there.tolist(), there.cpu().device.type) == (6.0, [0.0, 1.0, 2.0, 3.0], "cpu")
        there[there > 1]
        torch.nonzero(there)
        there.copy_(here)
        waits = {"_local_scalar_dense": 1, ONE: 2, "index by a mask": 1, "nonzero": 1}
        assert device.reads == Counter(waits) and device.uploads == 1
    with pretended_device(fp64=False) as device, pytest.raises(AssertionError, match="fp64"):
        device.send(here).double()


class Enough(Exception):
    """Ends a training whose first steps are all that is asked about."""


class Reads:
    """A hook that notes how often the device was waited for until the end of each of two steps, and ends the run."""

    def __init__(self, device: PretendedDevice | None) -> None:
        self.device, self.after = device, [Counter[str]()]

    def after_step(self, step: int, optimizer: Optimizer, *, updated: bool) -> dict[str, object]:
        self.after.append(self.device.reads.copy() if self.device else Counter())
        if step == 2:  # the line of the step before it is written
            raise Enough
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def losses(
    folder: Path, batches: RandomBatches, reads: Reads, dtype: torch.dtype, settings: dict[str, Any]
) -> list[float]:
    """Of two steps of training, on the CPU or on the device that `reads` watches."""
    model = small_model(dtype=dtype)
    if reads.device is not None:
        reads.device.send(model)
    config = PretrainConfig(checkpoint=CheckpointConfig(every_s=3600.0), **settings)
    model.recompute = config.recompute
    loss_fn = language_loss(config.balance_coefficient)
    stage = Stage("test", folder, config=config, parents={})
    hooks, parts = [Balancer(model, config.bias_update_rate, batches, loss_fn), reads], config.micro_batches
    with pytest.raises(Enough):
        train(model, batches, loss_fn, config, stage, hooks=hooks, split=lambda batch: split_batch(batch, parts))
    return [line["loss"] for line in read_metrics(stage.work / "metrics.jsonl")]


ADAMW = OptimizerConfig(matrix="adamw", moments="8bit")


MIXTURES, PRODUCTS = 2, 2
"""Of the model, and of a mixture."""


@pytest.mark.parametrize(
    ("pictures", "dtype", "fp64", "settings"),
    [
        (True, torch.bfloat16, True, {}),
        (True, torch.float32, False, {}),
        (False, torch.bfloat16, True, {"micro_batches": 2, "recompute": True}),
        (False, torch.bfloat16, True, {"balance_coefficient": 0.01, "bias_update_rate": 0.0, "optimizer": ADAMW}),
    ],
    ids=["pictures", "fp32, without fp64", "micro-batches", "AdamW in 8 bits"],
)
def test_a_step_of_training_waits_for_the_device_twice(
    pictures: bool, dtype: torch.dtype, fp64: bool, settings: dict[str, Any], tmp_path: Path
) -> None:
    """Once for the loss, the gradient norm and all figures, once for the experts' load. In fp32 each product of experts
    waits for the number of their rows too."""
    batches = RandomBatches(pictures=pictures)
    with pretended_device(fp64=fp64) as device:
        reads = Reads(device)
        found = losses(tmp_path / "device", batches, reads, dtype, settings)
    waits = 2 + (MIXTURES * PRODUCTS if dtype == torch.float32 else 0)
    assert [after - before for before, after in pairwise(reads.after)][:2] == [Counter({ONE: waits})] * 2
    wanted = losses(tmp_path / "cpu", batches, Reads(None), dtype, settings)
    assert found == pytest.approx(wanted, rel=2e-5 if dtype == torch.float32 else 2e-3) and len(found) == 2


def test_a_save_is_one_copy_of_every_tensor_to_the_host(tmp_path: Path) -> None:
    config = PretrainConfig(checkpoint=CheckpointConfig(every_s=3600.0))
    with pretended_device() as device:
        optimizer = Optimizer(device.send(small_model(dtype=torch.bfloat16)), config.optimizer, 10)
        stage = Stage("test", tmp_path / "out", config=config, parents={})
        before = device.reads.copy()
        with Checkpoints(stage, config.checkpoint, {"optimizer": optimizer}) as checkpoints:
            checkpoints.save(1)
        tensors = [t for t in tree_leaves(optimizer.state_dict()) if t.device.type == "cuda"]
        assert device.reads - before == Counter({ONE: len(tensors)})
        state = optimizer.state_dict()
        wanted = {name: tensor.cpu() for name, tensor in state["low_bits"].items()}
        for tensor in state["low_bits"].values():
            tensor.zero_()
        with Checkpoints(stage, config.checkpoint, {"optimizer": optimizer}) as checkpoints:
            assert checkpoints.resume() == 1
        assert all(torch.equal(tensor.cpu(), wanted[name]) for name, tensor in state["low_bits"].items())


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Model:
    return load(tiny_folder, dtype=torch.float32, device="cpu")


@pytest.fixture
def there(tiny_folder: Path) -> Iterator[tuple[PretendedDevice, Model]]:
    """The same model on the device."""
    with pretended_device() as device:
        opened = load(tiny_folder, dtype=torch.float32, device="cpu")
        device.send(opened.transformer)
        yield device, opened


class NoThread:
    """In place of the engine's thread: the test makes its steps, as a mode is a thread's own."""

    def __init__(self, **_: Any) -> None:
        pass

    def start(self) -> None:
        pass

    def join(self) -> None:
        pass


def waits_of_experts(model: Model, forwards: int = 1) -> Counter[str]:
    """In fp32 each product of experts waits for the number of their rows."""
    mixtures = sum(isinstance(module, MoE) for module in model.transformer.modules())
    return Counter({ONE: forwards * mixtures * PRODUCTS})


def steps(engine: Engine, device: PretendedDevice) -> list[Counter[str]]:
    """Have the engine answer all that was asked; what each step waited for."""
    found = []
    with torch.inference_mode():
        engine._process_inbox()
        while not engine._scheduler.idle:
            before = device.reads.copy()
            engine._step()
            found.append(device.reads - before)
    return found


def answers(engine: Engine, prompts: list[Prompt], params: SamplingParams) -> list[Any]:
    return [engine.submit(prompt, params) for prompt in prompts]


OBJECT = Structure.from_schema({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
DRAWN = {"temperature": 1.0, "seed": 3}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "greedy": ({}, {}, 1),
    "drawn": (DRAWN | {"top_k": 30, "min_p": 0.01}, {}, 1),
    "penalties": (DRAWN | {"repetition_penalty": 1.3, "presence_penalty": 0.4, "logit_bias": {40: 1.0}}, {}, 1),
    "top_p, which asks whether the likeliest fill it": (DRAWN | {"top_p": 0.8}, {}, 2),
    "structure": (DRAWN | {"structure": OBJECT}, {}, 1),
    "log-probabilities of two answers": (DRAWN | {"logprobs": 4}, {}, 3),
    "keys in 8 bits": ({}, {"kv_cache_dtype": "int8"}, 1),
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_of_the_engine_waits_for_the_device_once(
    case: str, model: Model, there: tuple[PretendedDevice, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    device, opened = there
    settings, options, waits = CASES[case]
    params = SamplingParams(max_tokens=5, **settings)
    monkeypatch.setattr("herd.engine.sampler.LIKELIEST", 16)
    noise = np.random.default_rng(0).integers(0, 255, (90, 150, 3), dtype=np.uint8)
    picture = {"type": "image", "image": Image.fromarray(noise)}
    prompts = [
        opened.render([{"role": "user", "content": content}])
        for content in ("the cat sat on the mat", [picture, {"type": "text", "text": "sat"}])
    ]
    with closing(model.engine(max_num_seqs=2, max_model_len=700, **options)) as engine:
        wanted = [request.result()[0].token_ids for request in answers(engine, prompts, params)]
    threads = SimpleNamespace(Lock=threading.Lock, Thread=NoThread)
    monkeypatch.setattr("herd.engine.engine.threading", threads)
    engine = opened.engine(max_num_seqs=2, max_model_len=700, **options)
    requests = answers(engine, prompts, params)
    found = steps(engine, device)
    assert [request.result()[0].token_ids for request in requests] == wanted
    assert found[:4] == [waits_of_experts(opened) + Counter({ONE: waits})] * 4  # the prompts first, then token by token


def test_drafted_tokens_are_read_once_each_and_scored_prompts_once(
    model: Model, there: tuple[PretendedDevice, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    device, opened = there
    prompt, params = opened.prompt_of_text("the cat sat on the cat sat on the"), SamplingParams(max_tokens=12)
    with closing(model.engine(max_num_seqs=2, max_model_len=700)) as plain:
        wanted = plain.submit(prompt, params).result()[0].token_ids
    monkeypatch.setattr("herd.engine.engine.threading", SimpleNamespace(Lock=threading.Lock, Thread=NoThread))
    engine = opened.engine(max_num_seqs=2, max_model_len=700, num_speculative_tokens=3)
    request = engine.submit(prompt, params)
    found = steps(engine, device)
    output = request.result()[0]
    assert output.token_ids == wanted
    experts = waits_of_experts(opened, forwards=len(found))
    assert sum(found, Counter()) == experts + Counter({ONE: len(output.token_ids)})  # each token is drawn once
    scored = engine.submit(prompt, replace(params, max_tokens=1, prompt_logprobs=True))
    assert steps(engine, device) == [waits_of_experts(opened) + Counter({ONE: 2})]
    assert len(scored.result()[0].prompt_logprobs) == len(prompt.token_ids) - 1


def test_scores_are_read_once_a_pack_and_once_a_piece_of_a_continuation(
    model: Model, there: tuple[PretendedDevice, Model]
) -> None:
    device, opened = there
    texts = ["the cat sat on the mat", "der Hund", "mat mat mat"]
    documents = [model.tokenizer.encode(text) for text in texts]
    wanted = token_losses(model, documents, context=16)
    found = token_losses(opened, documents, context=16)
    assert device.reads == waits_of_experts(opened) + Counter({ONE: 1})
    for ours, plain in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-5)
    noise = np.random.default_rng(0).integers(0, 255, (90, 150, 3), dtype=np.uint8)
    content = [{"type": "image", "image": Image.fromarray(noise)}, {"type": "text", "text": "sat"}]
    prompt = model.render([{"role": "user", "content": content}])
    before = device.reads.copy()
    likely = log_likelihoods(opened, [(prompt, document) for document in documents])
    assert likely == pytest.approx(log_likelihoods(model, [(prompt, document) for document in documents]), rel=1e-4)
    assert device.reads - before == waits_of_experts(opened, forwards=2) + Counter({ONE: 2})


def test_the_reader_waits_once_for_each_token_of_an_answer(model: Model, there: tuple[PretendedDevice, Model]) -> None:
    device, opened = there
    chunk = model.config.chunk_size
    text = torch.randint(10, 300, (2 * chunk + 7,), generator=torch.Generator().manual_seed(0))

    def ask(one: LoadedModel, epsilon: float | None = None) -> list[int]:
        reader = Reader(one, context=3 * chunk)
        reader.read(text)
        if epsilon is not None:
            reader.arrange()
        given = reader.answer([5, 6, 7], at=2 * chunk, max_tokens=4, epsilon=epsilon)
        assert one is model or epsilon is not None or device.reads["_local_scalar_dense"] == len(given)
        return given

    assert ask(opened) == ask(model)
    assert ask(opened, 0.01) == ask(model, 0.01)


@pytest.fixture(scope="module")
def small_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tokenizer of `tiny_folder` and the smallest model with every kind of layer."""
    folder, tokenizer = tmp_path_factory.mktemp("small"), Tokenizer.load(tiny_folder)
    shape = replace(SHAPE, vocab_size=tokenizer.vocab_size, special=tokenizer.ids)
    huggingface.save(small_model(shape), folder, dtype=torch.float32)
    huggingface.save_processor(shape, folder)
    tokenizer.save(folder)
    return folder


@pytest.mark.parametrize("kind", ["vision", "pretrain", "sft"])
def test_a_stage_trains_on_the_device_that_is_chosen(
    kind: str, small_folder: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small: dict[str, Any] = {"num_tokens": 300, "batch_tokens": 150, "context": 64, "dtype": "float32"}
    stages: dict[str, tuple[Any, Any]] = {
        "vision": (vision, VisionStageConfig(num_views=4, batch_pictures=2, dtype="float32")),
        "pretrain": (pretrain, PretrainConfig(**small, picture_share=0.2, heldout_every=2)),
        "sft": (sft, SftConfig(**small)),
    }
    monkeypatch.setattr("herd.train.heldout.CHARACTERS", 40)
    stage, config = stages[kind]
    stage(config, small_folder, tiny_data, tmp_path / "cpu")
    with pretended_device() as device, monkeypatch.context() as patch:
        for module in ("language", "vision"):
            patch.setattr(f"herd.stages.{module}.choose_device", lambda: device.device)
        stage(config, small_folder, tiny_data, tmp_path / "device")
    assert device.uploads
    plain, found = (
        [line["loss"] for line in read_metrics(tmp_path / name / "metrics.jsonl")] for name in ("cpu", "device")
    )
    assert found == pytest.approx(plain, rel=1e-4) and len(found) > 1
