"""A tiny model folder with random weights, for tests of what stands around the model."""

from pathlib import Path

import pytest
import torch

from herd.config import preset
from herd.core.files import write_json
from herd.data.tokens.tokenizer import Tokenizer, train_tokenizer
from herd.model.formats import huggingface
from herd.model.transformer import Transformer


def random_tokenizer() -> Tokenizer:
    """A byte-level tokenizer with a few merges."""
    return train_tokenizer(["the cat sat on the mat, der Hund, बिल्ली, ねこ"] * 20, 400)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete folder of the tiny shape."""
    folder = tmp_path_factory.mktemp("models") / "random"
    folder.mkdir()
    tokenizer = random_tokenizer()
    torch.manual_seed(0)
    model = Transformer(preset("tiny", vocab_size=tokenizer.vocab_size, special=tokenizer.ids))
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if name.endswith("norm.weight") else 0.0, 0.05)
    huggingface.save(model, folder, dtype=torch.float32)
    huggingface.save_processor(model.config, folder)
    tokenizer.save(folder)
    write_json(folder / "herd.json", {"stage": "random"})
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of made-up packages."""
    import data_world

    import herd.stages.data as stage
    from herd.config import DataConfig

    config = DataConfig(
        english_bytes=60_000,
        other_bytes=10_000,
        heldout=0.2,
        heldout_bytes=2_000,
        picture_px=96,
        heldout_subjects=0.3,
        heldout_pairs=0.3,
        clips=8,
        vocab_size=400,
    )
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "fetch", lambda: data_world.fetched(cache))
        return stage.build_data(config, tmp_path_factory.mktemp("run") / "data")
