"""Downloads: checked, whole or absent, and honest about what could not be had. Made-up archives, no network."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import time
import zipfile
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import herd.data.sources.clients as clients
import herd.data.sources.fetch as module
from herd.core.files import cache_folder
from herd.data.sources.clients import ClientError, members
from herd.data.sources.fetch import fetch
from herd.data.sources.package_list import SOURCES, Source
from herd.errors import HerdError

Usage = namedtuple("Usage", "total used free")


def wheel(**files: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name.replace("_", ".")), content)
    return out.getvalue()


ARCHIVE = wheel(a_txt="first", b_txt="second", c_bin="not kept")


def source(name: str = "little", **changes: object) -> Source:
    made = Source(
        name=name,
        client="pip",
        version="1.0",
        sha256=hashlib.sha256(ARCHIVE).hexdigest(),
        bytes=len(ARCHIVE),
        licence="CC0-1.0",
        what="two lines",
        role="text",
        keep=("*.txt",),
    )
    return replace(made, **changes)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Contents by package's name; what is asked for is counted in `asked`."""
    served: dict[str, bytes] = {}

    def run_client(source: Source, work: Path) -> tuple[Path, str]:
        if source.name not in served:
            raise ClientError("ERROR: no matching distribution")
        folder = work / source.slug
        folder.mkdir()
        (folder / "archive").write_bytes(served[source.name])
        return folder / "archive", source.version

    monkeypatch.setattr(module, "run_client", run_client)
    monkeypatch.setattr(module, "prepare", lambda names, work: {})
    return served


def test_a_package_is_fetched_once_and_then_read_from_the_cache(
    tmp_path: Path, registry: dict[str, bytes], said: list[str]
) -> None:
    registry["little"] = ARCHIVE
    first = fetch([source()], cache=tmp_path, report=said.append)
    assert first.packs["little"].names(".txt") == ["a.txt", "b.txt"]
    assert first.packs["little"].read("a.txt") == b"first"
    del registry["little"]
    again = fetch([source()], cache=tmp_path, report=said.append)
    assert again.packs["little"].read("b.txt") == b"second" and not again.missing
    assert len(said) == 1


def test_only_what_the_table_keeps_is_in_the_cache(tmp_path: Path, registry: dict[str, bytes]) -> None:
    registry["little"] = ARCHIVE
    pack = fetch([source(drop=("b*",))], cache=tmp_path, report=lambda line: None).packs["little"]
    assert pack.names() == ["a.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["little-1.0.zip"]


def test_a_pack_is_made_anew_when_the_table_keeps_other_members(
    tmp_path: Path, registry: dict[str, bytes], said: list[str]
) -> None:
    registry["little"] = ARCHIVE
    fetch([source()], cache=tmp_path, report=said.append)
    for changed, names in (
        (source(keep=("*.txt", "*.bin")), ["a.txt", "b.txt", "c.bin"]),
        (source(drop=("a*",)), ["b.txt"]),
    ):
        said.clear()
        assert fetch([changed], cache=tmp_path, report=said.append).packs["little"].names() == names
        assert "other members" in said[0]
    path = tmp_path / "little-1.0.zip"
    with zipfile.ZipFile(path, "a") as pack:  # as written before packs said what was kept
        facts = json.loads(pack.comment)
        del facts["members"]
        pack.comment = json.dumps(facts).encode()
    said.clear()
    fetch([source()], cache=tmp_path, report=said.append)
    assert not said


@pytest.mark.parametrize("served", [ARCHIVE[:-1], wheel(a_txt="other"), b""])
def test_an_archive_with_another_checksum_is_not_used(
    tmp_path: Path, registry: dict[str, bytes], served: bytes, said: list[str]
) -> None:
    registry["little"], registry["whole"] = served, ARCHIVE
    fetched = fetch([source(), source("whole")], cache=tmp_path, report=said.append)
    assert list(fetched.packs) == ["whole"]
    assert "sha256" in fetched.missing["little"] and "\n" not in fetched.missing["little"]
    assert any(line.startswith("left out little 1.0: ") for line in said)
    assert not (tmp_path / "little-1.0.zip").exists()


def test_a_damaged_file_in_the_cache_is_named_and_fetched_again(
    tmp_path: Path, registry: dict[str, bytes], said: list[str]
) -> None:
    registry["little"] = ARCHIVE
    path = fetch([source()], cache=tmp_path, report=said.append).packs["little"].path
    whole = path.read_bytes()
    for damaged in (whole[:40], whole.replace(b"first", b"fIrst"), b"", whole.replace(b"sha256", b"sha255")):
        path.write_bytes(damaged)
        said.clear()
        fetched = fetch([source()], cache=tmp_path, report=said.append)
        assert str(path) in said[0] and "corrupt" in said[0]
        assert fetched.packs["little"].read("a.txt") == b"first"


def test_a_new_pin_in_the_table_is_not_served_from_an_old_archive(tmp_path: Path, registry: dict[str, bytes]) -> None:
    registry["little"] = ARCHIVE
    fetch([source()], cache=tmp_path, report=lambda line: None)
    other = wheel(a_txt="newer")
    registry["little"] = other
    pinned = source(sha256=hashlib.sha256(other).hexdigest())
    assert fetch([pinned], cache=tmp_path, report=lambda line: None).packs["little"].read("a.txt") == b"newer"


def test_an_interrupted_download_leaves_nothing_that_looks_whole(
    tmp_path: Path, registry: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry["little"] = ARCHIVE

    def killed(archive: Path, source: Source) -> object:
        yield "a.txt", b"first"
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "members", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch([source()], cache=tmp_path, report=lambda line: None)
    assert list(tmp_path.iterdir()) == []
    assert fetch([source()], cache=tmp_path, report=lambda line: None).packs["little"].read("b.txt") == b"second"


def test_a_mirror_s_other_version_is_used_and_reported_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    def run_client(source: Source, work: Path) -> tuple[Path, str]:
        (work / "archive").write_bytes(wheel(a_txt="newer"))
        return work / "archive", "1.1"

    monkeypatch.setattr(module, "run_client", run_client)
    monkeypatch.setattr(module, "prepare", lambda names, work: {})
    for _ in range(2):
        fetched = fetch([source()], cache=tmp_path, report=said.append)
        assert fetched.packs["little"].version == "1.1"
        assert "1.0" in fetched.notes["little"] and "1.1" in fetched.notes["little"]
        assert fetched.notes["little"] in said[-1]


def test_a_missing_client_leaves_out_its_packages_alone(
    tmp_path: Path, registry: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    registry.update(little=ARCHIVE, other=ARCHIVE)
    monkeypatch.setattr(module, "prepare", clients.prepare)
    monkeypatch.setattr(clients.shutil, "which", lambda name: None)
    sources = [source(), source("other", client="npm"), source("third", client="apt")]
    fetched = fetch(sources, cache=tmp_path, report=said.append)
    assert list(fetched.packs) == ["little"]
    assert fetched.missing["other"] == "npm is not installed"
    assert "apt-get" in fetched.missing["third"]


def test_with_no_text_or_no_pictures_the_packages_are_listed(tmp_path: Path, registry: dict[str, bytes]) -> None:
    registry["little"] = ARCHIVE
    sources = [source(), source("drawings", role="pictures"), source("photographs", role="pictures")]
    with pytest.raises(HerdError, match=r"no pictures to train on: none of drawings, photographs .*no matching"):
        fetch(sources, cache=tmp_path, report=lambda line: None)
    with pytest.raises(HerdError, match="no text to train on: none of words"):
        fetch([source("words")], cache=tmp_path, report=lambda line: None)


def test_a_full_disk_is_reported_with_the_cache_and_the_bytes(
    tmp_path: Path, registry: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 1_000))
    with pytest.raises(HerdError, match=f"{tmp_path} needs 60,000 bytes .* 1,000 left"):
        fetch([source(bytes=30_000)], cache=tmp_path, report=lambda line: None)


def test_a_disk_that_fills_up_on_the_way_is_reported_too(
    tmp_path: Path, registry: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Source, cache: Path, work: Path) -> object:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_download", full)
    with pytest.raises(HerdError, match=f"{tmp_path} needs "):
        fetch([source()], cache=tmp_path, report=lambda line: None)


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERD_CACHE", str(tmp_path / "elsewhere"))
    assert cache_folder() == tmp_path / "elsewhere"
    monkeypatch.delenv("HERD_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "herd"


def make_tarball(folder: Path) -> Path:
    path = folder / "little.tgz"
    with tarfile.open(path, "w:gz") as tarball:
        for name in ("package/a.txt", "package/deep/b.txt", "package/c.bin"):
            info = tarfile.TarInfo(name)
            info.size = 5
            tarball.addfile(info, io.BytesIO(name[-5:].encode()))
    return path


def make_deb(folder: Path) -> Path:
    root = folder / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN/control").write_text(
        "Package: little\nVersion: 1.0\nArchitecture: all\nMaintainer: a <a@b>\nDescription: x\n"
    )
    (root / "deep").mkdir()
    for name in ("a.txt", "deep/b.txt", "c.bin"):
        (root / name).write_text(name[-5:])
    subprocess.run(["dpkg-deb", "--build", str(root), str(folder / "little.deb")], check=True, capture_output=True)
    return folder / "little.deb"


needs_dpkg = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="dpkg-deb is not here")


@pytest.mark.parametrize(("client", "make"), [("npm", make_tarball), pytest.param("apt", make_deb, marks=needs_dpkg)])
def test_members_have_the_same_names_whatever_brought_them(
    tmp_path: Path, client: str, make: Callable[[Path], Path]
) -> None:
    got = dict(members(make(tmp_path), source(client=client)))
    assert got == {"a.txt": b"a.txt", "deep/b.txt": b"b.txt"}


def test_a_client_s_own_error_is_passed_on_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ClientError, match=r"^npm error the registry is away$"):
        clients._run(["sh", "-c", "echo some talk >&2; echo 'npm error the registry is away' >&2; exit 1"], tmp_path)
    with pytest.raises(ClientError, match="cannot be run"):
        clients._run(["no-such-client"], tmp_path)


def test_a_version_that_the_mirror_has_forgotten_gives_way_to_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def run(command: list[str], folder: Path) -> str:
        asked.append(command[-1])
        if command[0] == "dpkg-deb":
            return "1.1\n"
        if command[-1] == "little=1.0":
            raise ClientError("E: Version '1.0' for 'little' was not found")
        (folder / "little_1.1.deb").write_bytes(b"")
        return ""

    monkeypatch.setattr(clients, "_run", run)
    archive, version = clients.run_client(source(client="apt"), tmp_path)
    assert (archive.name, version) == ("little_1.1.deb", "1.1")
    assert asked == ["little=1.0", "little", "Version"]


@pytest.mark.parametrize("others_work", [True, False])
def test_one_broken_repository_does_not_take_the_others_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others_work: bool
) -> None:
    def run(command: list[str], folder: Path) -> str:
        if others_work:
            (tmp_path / clients.LISTS / "mirror_Packages").write_bytes(b"")
        raise ClientError("E: Failed to fetch something")

    monkeypatch.setattr(clients.shutil, "which", lambda name: name)
    monkeypatch.setattr(clients, "_run", run)
    expected = {} if others_work else {"apt": "E: Failed to fetch something"}
    assert clients.prepare({"apt"}, tmp_path) == expected


def test_leavings_of_a_killed_fetch_are_swept_after_a_day(tmp_path: Path, registry: dict[str, bytes]) -> None:
    registry["little"] = ARCHIVE
    for name, age_s in (("old", 100_000), ("new", 100)):
        folder = tmp_path / f"{module.WORK_PREFIX}{name}"
        folder.mkdir()
        os.utime(folder, (time.time() - age_s,) * 2)
    fetch([source()], cache=tmp_path, report=lambda line: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{module.WORK_PREFIX}new", "little-1.0.zip"]


def test_the_table_is_in_order() -> None:
    assert len({source.name for source in SOURCES}) == len(SOURCES)
    for entry in SOURCES:
        assert entry.client in {"pip", "npm", "apt"} and len(entry.sha256) == 64 and entry.bytes > 0
        assert entry.licence and "unchecked" not in entry.licence
        assert entry.role in {"text", "pictures", "names", "clips", "chats", "book"}
