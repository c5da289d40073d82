"""What holds for all tests: two threads (one where xdist runs them in several processes), no network, shapes that are
checked, and a tiny model folder to stand on."""

import os
import signal

# Before torch and tokenizers are imported, which read these once.
if "PYTEST_XDIST_WORKER" in os.environ:  # set, as a worker inherits what its parent has set below
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HERD_DEVICE"] = "cpu"  # also where there is a card

import pytest
import shape_checks
from hypothesis import settings

# A busy machine is no failure.
settings.register_profile("herd", deadline=None)
settings.load_profile("herd")

# Where signatures have shapes, every call that a test makes is checked against them; never at run time.
CHECKED = ["herd.data.media.image", "herd.engine.sampler", "herd.model", "herd.rl.corrections", "herd.train.balance",
           "herd.train.losses"]  # fmt: skip
shape_checks.install(CHECKED)

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would every program that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["model_folder", "released"]  # the fixtures `tiny_folder`, `reference`, …


def threads(number):
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread():
    """For thousands of products too small to share: on a busy machine two threads wait for each other most of the
    time."""
    yield from threads(1)


@pytest.fixture
def two_threads():
    """For kernels, which share their work out among threads: also where a process of the tests has one."""
    yield from threads(2)


@pytest.fixture(scope="module")
def server():
    """A server in front of a model without weights, see serve_world."""
    from serve_world import running_server  # here, as it takes a second

    with running_server() as running:
        yield running
