"""Pack the wheels that a GPU host without a network lacks.

    python tools/gpu/pack.py

The tool downloads each wheel of `wheel_list.py` for the host's Python and system, which may differ
from this machine's. It removes unneeded files from the wheel and writes it below `.gpu_pack/`,
which git ignores. Wheels that are already packed are not downloaded again.

The tool fails if a wheel requires a package that is neither packed nor on the host. It also fails
if the pack and the source together are too large to be copied. Found later, these faults would cost
time on the host.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.record import PACKED_COMMIT, find_commit, hash_source  # noqa: E402
from tools.gpu.installed import SHARED_LIST  # noqa: E402
from tools.gpu.trimming import trim  # noqa: E402
from tools.gpu.wheel_list import (  # noqa: E402
    LEFT_OUT,
    PRESENT,
    TREES,
    Wheel,
    find_wheels_of,
    normalize,
)

PACK = ROOT / ".gpu_pack"
MANIFEST = ROOT / "tools" / "gpu" / "pack.json"  # committed: the packed wheels and their sizes
LIMIT_MIB = 62
HOST = {"python_version": "3.12", "python_full_version": "3.12.3", "extra": ""}
# pip compares these names as text, so all glibc versions up to the host's are listed.
PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in range(39, 4, -1)),
    "manylinux2014_x86_64",
    "manylinux2010_x86_64",
    "manylinux1_x86_64",
)


class PackError(Exception):
    """The pack is too large to copy, or would not work on the host."""


def main() -> int:
    """Pack all wheels. Return 1 if the pack is too large or would not work, else 0."""
    try:
        packed = {tree: pack_tree(tree, wheels) for tree, wheels in TREES.items()}
        write_shared_lists()
        write_manifest(packed)
        show(packed)
        check_requirements()
        total = check_size([PACK], list_source_files(), LIMIT_MIB)
    except PackError as error:
        print(f"pack: {error}", file=sys.stderr)
        return 1
    print(f"pack and source: {total / 2**20:.1f} MiB of at most {LIMIT_MIB} MiB")
    return 0


def pack_tree(tree: str, wheels: Sequence[Wheel]) -> list[dict[str, Any]]:
    """Pack the missing wheels of one tree and delete wheels that `wheel_list.py` does not list.

    Returns: The manifest's entries for the tree, the largest first.
    """
    folder = PACK / tree
    folder.mkdir(parents=True, exist_ok=True)
    known = {(each["name"], each["version"]): each for each in read_packed(tree)}
    kept = [each for each in (known.get((w.name, w.pinned)) for w in wheels) if each]
    kept = [each for each in kept if _is_up_to_date(folder, each, wheels)]
    names = {each["name"] for each in kept}
    missing = [wheel for wheel in wheels if wheel.name not in names]
    for path in folder.glob("*.whl"):
        if path.name not in {each["file"] for each in kept}:
            path.unlink()
    return sorted([*kept, *fetch(missing, folder)], key=lambda each: -each["bytes"])


def _is_up_to_date(folder: Path, packed: dict[str, Any], wheels: Sequence[Wheel]) -> bool:
    """Return whether the packed file has the manifest's size and the list's patterns."""
    wheel = next(each for each in wheels if each.name == packed["name"])
    path = folder / packed["file"]
    is_complete = path.exists() and path.stat().st_size == packed["bytes"]
    return is_complete and packed["cut"] == {"drop": [*wheel.drop], "keep": [*wheel.keep]}


def fetch(wheels: Sequence[Wheel], folder: Path) -> list[dict[str, Any]]:
    """Download or build wheels and write them, trimmed, to `folder`.

    Returns: The manifest's entry of each wheel.
    """
    with tempfile.TemporaryDirectory() as name:
        downloads = Path(name)
        published = [wheel for wheel in wheels if not wheel.built_here]
        if published:
            download(published, downloads)
        for wheel in wheels:
            if wheel.built_here:
                build(wheel, downloads)
        return [_trim(wheel, find_wheel(downloads, wheel.name), folder) for wheel in wheels]


def _trim(wheel: Wheel, source: Path, folder: Path) -> dict[str, Any]:
    target = folder / source.name
    dropped = trim(source, target, wheel.drop, wheel.keep)
    return {
        "name": wheel.name,
        "version": wheel.pinned,
        "file": target.name,
        "bytes": target.stat().st_size,
        "published_bytes": source.stat().st_size,
        "cut": {"drop": [*wheel.drop], "keep": [*wheel.keep]},
        "members_dropped": dropped,
    }


def download(wheels: Sequence[Wheel], folder: Path) -> None:
    """Download wheels for the host's CPython 3.12 on x86-64 Linux, on any machine."""
    platforms = [part for platform in PLATFORMS for part in ("--platform", platform)]
    _run_pip(
        "download", "--no-deps", "--only-binary=:all:", "--implementation", "cp",
        "--python-version", HOST["python_version"], *platforms, "--dest", str(folder),
        *(f"{wheel.name}=={wheel.pinned}" for wheel in wheels),
    )  # fmt: skip


def build(wheel: Wheel, folder: Path) -> None:
    """Build a wheel from a package's source, without compiled code.

    Raises: PackError if the wheel is not pure Python.
    """
    requirement = f"{wheel.name}=={wheel.pinned}"
    _run_pip("wheel", "--no-deps", "--no-binary", wheel.name, "--wheel-dir", folder, requirement)
    path = find_wheel(folder, wheel.name)
    if not path.name.endswith("-none-any.whl"):
        raise PackError(
            f"{path.name} contains code compiled for this machine; only pure Python works on the "
            "host"
        )


def _run_pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", *map(str, arguments)]
    environment = {**os.environ, "DS_BUILD_OPS": "0"}
    finished = subprocess.run(command, capture_output=True, text=True, env=environment)
    if finished.returncode:
        raise PackError(f"pip {arguments[0]} failed:\n{finished.stderr.strip()[-2000:]}")


def find_wheel(folder: Path, name: str) -> Path:
    """Return the wheel of a package in a folder.

    Raises: PackError if the folder does not hold exactly one wheel of the package.
    """
    paths = [p for p in folder.glob("*.whl") if normalize(p.name.split("-")[0]) == normalize(name)]
    if len(paths) != 1:
        raise PackError(f"{folder} holds {len(paths)} wheels of {name}, not one")
    return paths[0]


# --- requirements of the wheels -------------------------------------------------------------------


def check_requirements() -> None:
    """Check that all requirements of all wheels will be met on the host.

    Raises: PackError if a requirement will not be met.
    """
    gaps = [gap for tree in TREES for gap in find_gaps(tree)]
    if gaps:
        raise PackError(
            "requirements that the host will not meet (add them to TREES, PRESENT or LEFT_OUT in "
            "tools/gpu/wheel_list.py):\n  " + "\n  ".join(gaps)
        )


def find_gaps(tree: str) -> Iterator[str]:
    """Yield the requirements of a tree's wheels that neither the tree nor the host meets."""
    wheels = find_wheels_of(tree)
    versions = {**PRESENT, **{normalize(wheel.name): wheel.pinned for wheel in wheels}}
    for wheel in wheels:
        folder = PACK / (tree if wheel in TREES[tree] else "wheels")
        for requirement in read_requirements(find_wheel(folder, wheel.name)):
            problem = find_problem(requirement, versions)
            if problem:
                yield f"{tree}: {wheel.name} {wheel.pinned} requires {requirement}: {problem}"


def read_requirements(wheel: Path) -> list[Requirement]:
    """Return the requirements of a wheel on the host, without extras."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if re.match(r"^[^/]+\.dist-info/METADATA$", n))
        fields = HeaderParser().parsestr(archive.read(name).decode())
    parsed = map(Requirement, fields.get_all("Requires-Dist") or [])
    return [each for each in parsed if each.marker is None or each.marker.evaluate(HOST)]


def find_problem(requirement: Requirement, versions: dict[str, str]) -> str:
    """Return why a requirement is not met, or "". An unknown version ("") meets any requirement."""
    name = normalize(requirement.name)
    if name in LEFT_OUT:
        return ""
    if name not in versions:
        return "neither packed nor on the host"
    version = versions[name]
    if version and not requirement.specifier.contains(version, prereleases=True):
        return f"the host will have {version}"
    return ""


# --- files to copy --------------------------------------------------------------------------------


def list_source_files() -> list[Path]:
    """Return the source files to copy: tracked files, and new files that git does not ignore."""
    command = [
        "git",
        "-C",
        str(ROOT),
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    listed = subprocess.run(command, capture_output=True, text=True)
    if listed.returncode:
        raise PackError(f"git cannot list the source files: {listed.stderr.strip()}")
    return [ROOT / name for name in listed.stdout.split("\0") if name]


def check_size(folders: Iterable[Path], files: Iterable[Path], limit_mib: float) -> int:
    """Return the total size in bytes of `files` and of all files below `folders`.

    Raises: PackError if it is more than `limit_mib`.
    """
    paths = [*files, *(path for folder in folders for path in folder.rglob("*"))]
    total = sum(path.lstat().st_size for path in {*paths} if path.is_file())
    if total > limit_mib * 2**20:
        raise PackError(
            f"pack and source together have {total / 2**20:.1f} MiB; the limit is {limit_mib} MiB: "
            "add patterns to `drop` in tools/gpu/wheel_list.py, or move large files out of the "
            "working tree"
        )
    return total


def write_shared_lists() -> None:
    """Write into each tree the list of wheels that it shares with the first tree."""
    for tree, wheels in TREES.items():
        shared = [wheel for wheel in find_wheels_of(tree) if wheel not in wheels]
        lines = [f"../wheels/{find_wheel(PACK / 'wheels', wheel.name).name}\n" for wheel in shared]
        if lines:
            (PACK / tree / SHARED_LIST).write_text("".join(lines))


def write_manifest(packed: dict[str, list[dict[str, Any]]]) -> None:
    """Write the manifest of the packed wheels, and the commit of the source into the pack."""
    source = hash_source()
    _write_json(MANIFEST, {"trees": packed, "left_out": dict(LEFT_OUT)})
    _write_json(PACKED_COMMIT, {"commit": find_commit(source), "source": source})


def read_packed(tree: str) -> list[dict[str, Any]]:
    """Return the manifest's entries for a tree, or [] if there is no manifest."""
    if not MANIFEST.exists():
        return []
    return list(json.loads(MANIFEST.read_text())["trees"].get(tree, []))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def show(packed: dict[str, list[dict[str, Any]]]) -> None:
    """Print the packed wheels and their sizes, the largest first."""
    for tree, wheels in packed.items():
        print(f"\n{tree:<28}{'version':>12}{'MiB':>8}{'published':>11}")
        for each in wheels:
            sizes = (each["bytes"] / 2**20, each["published_bytes"] / 2**20)
            print(f"  {each['name']:<26}{each['version']:>12}{sizes[0]:>8.2f}{sizes[1]:>11.2f}")
        print(f"  {'total':<38}{sum(each['bytes'] for each in wheels) / 2**20:>8.2f}")


if __name__ == "__main__":
    sys.exit(main())
