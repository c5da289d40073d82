"""A cache for tests: empty but for the C++ kernels, which take ten seconds to build."""

from pathlib import Path

from herd import native
from herd.core.files import cache_folder

# Now, while the cache is still the user's own.
KERNELS = cache_folder() / "native"
native.find()


def fresh_cache(path: Path) -> Path:
    """Make the folder `path`, with the kernels of this machine's own cache."""
    path.mkdir(parents=True)
    KERNELS.mkdir(parents=True, exist_ok=True)
    (path / "native").symlink_to(KERNELS)
    return path
