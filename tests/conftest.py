"""What holds for all tests: two threads, no network, and annotations that are checked."""

import os

# Before torch and tokenizers are imported, which read these once.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
