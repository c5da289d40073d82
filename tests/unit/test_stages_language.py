"""What the stages that train a language model share: which parameters change, and the held-out loss on the way."""

import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from herd.config import CheckpointConfig, PretrainConfig
from herd.core.lineage import Stage, read_lineage
from herd.core.tracker import Tracker, read_metrics
from herd.data.tokens.tokenizer import Tokenizer
from herd.engine.load import load
from herd.errors import HerdError, Stopped
from herd.model.formats import huggingface
from herd.model.parallel import ALONE
from herd.stages.pretrain import pretrain
from herd.train import dtype as dtype_module
from herd.train.dtype import training_dtype
from herd.train.heldout import CONTEXT, METRIC, HeldoutBatches, HeldoutLoss, heldout_texts
from herd.train.losses import language_loss
from herd.train.trainable import set_trainable

CONFIG = PretrainConfig(num_tokens=3000, batch_tokens=1000, context=128, picture_share=0.2)


def test_only_the_parameters_that_the_config_names_are_trained(
    tiny_folder: Path, tiny_data: Path, tmp_path: Path
) -> None:
    config = replace(CONFIG, trainable=("layers.*.attention.*", "norm.weight"), bias_update_rate=0.0)
    out = pretrain(config, tiny_folder, tiny_data, tmp_path / "out")
    before = dict(huggingface.load(tiny_folder, dtype=torch.bfloat16).named_parameters())
    after = dict(huggingface.load(out, dtype=torch.bfloat16).named_parameters())
    changed = {name for name, parameter in before.items() if not torch.equal(parameter, after[name])}
    assert changed == {name for name in before if ".attention." in name or name == "norm.weight"}


def test_a_pattern_that_matches_no_parameter_is_refused_with_the_names(tiny_folder: Path) -> None:
    model = huggingface.load(tiny_folder, dtype=torch.bfloat16)
    with pytest.raises(HerdError, match=r"trainable='layer\..*' matches no parameter.*embedding\.\*, vision\.\*"):
        set_trainable(model, ["norm.*", "layer.*"])
    with pytest.raises(HerdError, match="trainable is empty"):
        set_trainable(model, [])


def test_frozen_routers_are_not_changed_by_balancing_unasked(
    tiny_folder: Path, tiny_data: Path, tmp_path: Path
) -> None:
    config = replace(CONFIG, trainable=("layers.*.attention.*",))
    with pytest.raises(HerdError, match=r"bias_update_rate=0\.05 changes the routers.* set bias_update_rate=0, or add"):
        pretrain(config, tiny_folder, tiny_data, tmp_path / "out")


def test_the_heldout_loss_comes_every_so_many_steps_and_changes_nothing_of_the_training(
    tiny_folder: Path,
    tiny_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    watched = pretrain(replace(CONFIG, heldout_every=2), tiny_folder, tiny_data, tmp_path / "watched")
    assert "bits/byte" in capsys.readouterr().err
    plain = pretrain(CONFIG, tiny_folder, tiny_data, tmp_path / "plain")
    lines = read_metrics(watched / "metrics.jsonl")
    assert [METRIC in line for line in lines] == [step % 2 == 1 or step == len(lines) - 1 for step in range(len(lines))]
    clock = {METRIC, "seconds", "tokens_per_s", "data_wait_s"}
    one, other = (
        [{k: v for k, v in line.items() if k not in clock} for line in read_metrics(folder / "metrics.jsonl")]
        for folder in (watched, plain)
    )
    assert one == other
    weights = [dict(load(folder).transformer.named_parameters()) for folder in (watched, plain)]
    assert all(torch.equal(parameter, weights[1][name]) for name, parameter in weights[0].items())


def test_the_heldout_loss_is_the_bits_of_each_byte_of_the_slice(tiny_folder: Path, tiny_data: Path) -> None:
    tokenizer, model = Tokenizer.load(tiny_folder), huggingface.load(tiny_folder, dtype=torch.float32)
    batches = HeldoutBatches(tiny_data, tokenizer)
    hook = HeldoutLoss(model, batches, batches.num_bytes, language_loss(0.0), every=1, parallel=ALONE)
    nats, num_bytes = 0.0, 0
    texts = heldout_texts(tiny_data, 2, 1000)
    for text in texts:
        ids = torch.tensor([tokenizer.ids.bos, *tokenizer.encode(text)])
        num_bytes += len(text.encode())
        for begin in range(0, len(ids) - 1, CONTEXT - 1):
            piece = ids[begin : begin + CONTEXT]
            hidden = model(piece, positions_N=torch.arange(len(piece)), starts_S=torch.tensor([0, len(piece)]))
            logits = (hidden @ model.unembedding.weight.T)[:-1]
            nats += float(F.cross_entropy(logits, piece[1:], reduction="sum"))
    assert hook.bits_per_byte() == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)


def test_auto_trains_in_bf16_where_the_processor_multiplies_it_and_else_in_fp32(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage("pretrain", tmp_path / "out", config=CONFIG, parents={})
    for flags, dtype in (({"avx512_bf16"}, torch.bfloat16), ({"avx512f", "avx512_vnni"}, torch.float32)):
        monkeypatch.setattr(dtype_module, "processor_flags", lambda flags=flags: frozenset(flags))
        assert training_dtype("auto", stage) == dtype
        assert training_dtype("float32", stage) == torch.float32
        assert training_dtype("bfloat16", stage) == torch.bfloat16


def test_unfinished_work_goes_on_in_the_format_that_it_began_with_on_another_processor(
    tiny_folder: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dtype_module, "processor_flags", frozenset)
    whole = pretrain(CONFIG, tiny_folder, tiny_data, tmp_path / "whole")
    assert read_lineage(whole)["computed_in"] == "float32"

    log, out = Tracker.log, tmp_path / "out"

    def stop_after_the_first(tracker: Tracker, step: int, **metrics: object) -> None:
        log(tracker, step, **metrics)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Tracker, "log", stop_after_the_first)
    with pytest.raises(Stopped):
        pretrain(replace(CONFIG, checkpoint=CheckpointConfig(every_s=0.0)), tiny_folder, tiny_data, out)
    monkeypatch.setattr(Tracker, "log", log)
    monkeypatch.setattr(dtype_module, "processor_flags", lambda: frozenset({"avx512_bf16"}))
    with pytest.raises(HerdError, match=r"begun in float32, dtype=bfloat16 is asked for: set dtype=auto"):
        pretrain(replace(CONFIG, dtype="bfloat16"), tiny_folder, tiny_data, out)
    resumed = pretrain(CONFIG, tiny_folder, tiny_data, out)
    assert read_lineage(resumed)["computed_in"] == "float32"
    one, other = (dict(load(folder).transformer.named_parameters()) for folder in (whole, resumed))
    assert all(torch.equal(parameter, other[name]) for name, parameter in one.items())
