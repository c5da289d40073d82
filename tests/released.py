"""Meta's Llama 4 code and tokenizer, from the installed `llama-models`; tests that ask for them are skipped without."""

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from herd.data.tokens.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer_model() -> Path:
    """The released tokenizer.model."""
    found = importlib.util.find_spec("llama_models")
    if found is None or not found.submodule_search_locations:
        pytest.skip("llama-models is not installed: pip install 'herd-lm[oracle]'")
    return Path(found.submodule_search_locations[0]) / "llama4" / "tokenizer.model"


@pytest.fixture(scope="session")
def released(tokenizer_model: Path) -> Tokenizer:
    """It, opened by us."""
    return Tokenizer.load(tokenizer_model)


@pytest.fixture(scope="session")
def released_folder(released: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to which we saved it."""
    folder = tmp_path_factory.mktemp("released")
    released.save(folder)
    return folder


@pytest.fixture(scope="session")
def in_transformers(released_folder: Path) -> Any:
    """That folder, opened by transformers."""
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(released_folder)


@pytest.fixture(scope="session")
def reference(tokenizer_model: Path) -> Any:
    """It, opened by Meta's code over tiktoken."""
    pytest.importorskip("tiktoken")
    from llama_models.llama4.tokenizer import Tokenizer as Reference

    return Reference(tokenizer_model)


@pytest.fixture(scope="session")
def chat_format(reference: Any) -> Any:
    """Meta's ChatFormat of text. Its pictures need torchvision, so that an empty one stands in for its import."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
            module = types.ModuleType(name)
            module.__dict__.update(transforms=None, functional=None)
            patch.setitem(sys.modules, name, module)
        from PIL import ImageFile

        patch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)  # which the import sets for everyone
        from llama_models.llama4.chat_format import ChatFormat
    return ChatFormat(reference)
