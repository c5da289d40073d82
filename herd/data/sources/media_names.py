"""Pictures and videos by the suffixes of their names, and the files beside them that hold their captions."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
VIDEOS = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v", ".mpg", ".mpeg")
SUFFIXES = {"images": IMAGES, "videos": VIDEOS}
"""By kind of source."""
SIDECARS = (".txt", ".caption", ".json")
"""Files with the caption of the picture or the video of the same name, the first that is there."""


def media_kind(name: str) -> str:
    """`images` or `videos` by a file's name; empty if it is neither."""
    suffix = Path(name).suffix.lower()
    return next((kind for kind, suffixes in SUFFIXES.items() if suffix in suffixes), "")


def captions_of(paths: Iterable[Path]) -> dict[Path, Path]:
    """By picture or video: the file with its caption, where there is one beside it."""
    names, found = cache(_names), {}
    for path in paths:
        beside = names(path.parent)
        suffix = next((suffix for suffix in SIDECARS if f"{path.stem}{suffix}" in beside), None)
        if suffix is not None:
            found[path] = path.with_name(f"{path.stem}{suffix}")
    return found


def captions_among(paths: Iterable[Path]) -> set[Path]:
    """Those of the files that are captions of pictures or videos beside them."""

    @cache
    def stems(folder: Path) -> set[str]:
        return {Path(name).stem for name in _names(folder) if media_kind(name)}

    return {path for path in paths if path.suffix.lower() in SIDECARS and path.stem in stems(path.parent)}


def _names(folder: Path) -> frozenset[str]:
    return frozenset(path.name for path in folder.iterdir())
