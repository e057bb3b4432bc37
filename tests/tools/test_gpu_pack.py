"""The pack of wheels for a GPU host: it is small enough to copy, and it is complete."""

from __future__ import annotations

import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tools.gpu import pack
from tools.gpu.installed import SHARED_LIST, install, list_library_folders
from tools.gpu.pack import PackError, check_size, find_problem, read_requirements
from tools.gpu.trimming import trim
from tools.gpu.wheel_list import LEFT_OUT, PRESENT, SHARED, TREES, find_wheels_of, normalize

ROOT = Path(__file__).resolve().parents[2]
# The extras that a run on a GPU host may need.
EXTRAS = ("qlora", "deepspeed", "liger")


def make_wheel(path: Path, members: Mapping[str, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


def list_files(folder: Path) -> set[str]:
    """Return the files below a folder, without the stamp file."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)) for path in files if not path.name.startswith(".")}


def test_trimming_drops_matching_files_and_keeps_the_metadata(tmp_path):
    members = {
        "box/__init__.py": "import os",
        "box/libbox_cuda128.so": "large",
        "box/libbox_cuda130.so": "needed",
        "box-1.0.dist-info/METADATA": "Name: box",
        "studio/box-1.0.dist-info/page.js": "web",
    }
    source = make_wheel(tmp_path / "source.whl", members)
    drop = ("box/libbox_*", "studio/*", "*METADATA")
    assert trim(source, tmp_path / "target.whl", drop, ("*_cuda130.so",)) == 2
    with zipfile.ZipFile(tmp_path / "target.whl") as archive:
        assert {name: archive.read(name).decode() for name in archive.namelist()} == {
            name: members[name]
            for name in (
                "box/__init__.py",
                "box/libbox_cuda130.so",
                "box-1.0.dist-info/METADATA",
            )
        }
    assert not list(tmp_path.glob("*.unfinished"))


def test_installing_unpacks_libraries_and_data_only_once(tmp_path):
    tree, site = tmp_path / "tree", tmp_path / "site"
    make_wheel(
        tree / "box-1.0-py3-none-any.whl",
        {
            "box/__init__.py": "",
            "box-1.0.data/purelib/box/pure.py": "",
            "box-1.0.data/platlib/box/compiled.so": "",
            "box-1.0.data/scripts/box": "",
            "box-1.0.data/headers/box.h": "",
            "box-1.0.dist-info/METADATA": "Name: box",
        },
    )
    make_wheel(tmp_path / "other" / "lid-2-py3-none-any.whl", {"lid.py": "first"})
    (tree / SHARED_LIST).write_text("../other/lid-2-py3-none-any.whl\n")
    install(tree, site)
    expected = {"box/__init__.py", "box/pure.py", "box/compiled.so", "lid.py"}
    assert list_files(site) == {*expected, "box-1.0.dist-info/METADATA"}
    (site / "lid.py").write_text("touched")
    install(tree, site)
    assert (site / "lid.py").read_text() == "touched", "the wheel was unpacked a second time"


def test_folders_of_shared_libraries_are_found(tmp_path):
    make_wheel(tmp_path / "tree" / "rt-1-py3-none-any.whl", {"nvidia/runtime/lib/librt.so.12": ""})
    install(tmp_path / "tree", tmp_path / "site")
    assert list_library_folders(tmp_path / "site") == [tmp_path / "site/nvidia/runtime/lib"]


def test_a_changed_tree_replaces_the_old_installation(tmp_path):
    tree, site = tmp_path / "tree", tmp_path / "site"
    make_wheel(tree / "box-1-py3-none-any.whl", {"box.py": "1", "old.py": ""})
    install(tree, site)
    (tree / "box-1-py3-none-any.whl").unlink()
    make_wheel(tree / "box-2-py3-none-any.whl", {"box.py": "2"})
    install(tree, site)
    assert list_files(site) == {"box.py"}
    assert (site / "box.py").read_text() == "2"


def test_installing_never_deletes_files_of_others(tmp_path):
    make_wheel(tmp_path / "tree" / "box-1-py3-none-any.whl", {"box.py": ""})
    site = tmp_path / "site"
    site.mkdir()
    (site / "mine").write_text("mine")
    with pytest.raises(FileExistsError, match="holds other files"):
        install(tmp_path / "tree", site)
    assert list_files(site) == {"mine"}


def test_installing_a_tree_without_wheels_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run tools/gpu/pack\.py"):
        install(tmp_path, tmp_path / "site")


def test_a_pack_that_is_too_large_to_copy_is_refused(tmp_path):
    folder, source = tmp_path / "pack", tmp_path / "source.py"
    make_wheel(folder / "wheels" / "box.whl", {"box.py": "x" * 1000})
    source.write_text("y" * 1000)
    total = check_size([folder], [source], 1)
    assert total == source.stat().st_size + (folder / "wheels" / "box.whl").stat().st_size
    limit = 1500 / 2**20  # each of the two would fit, but not both
    with pytest.raises(PackError, match=r"together have .* MiB; the limit is .* MiB"):
        check_size([folder], [source], limit)


def test_packing_more_than_the_limit_ends_with_code_1(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pack, "PACK", tmp_path / "pack")
    monkeypatch.setattr(pack, "MANIFEST", tmp_path / "pack.json")
    monkeypatch.setattr(pack, "PACKED_COMMIT", tmp_path / "commit.json")
    monkeypatch.setattr(pack, "TREES", {})
    monkeypatch.setattr(pack, "LIMIT_MIB", 0.001)
    monkeypatch.setattr(pack, "list_source_files", lambda: [ROOT / "README.md"])
    (tmp_path / "pack").mkdir()
    assert pack.main() == 1
    assert "the limit is" in capsys.readouterr().err


def test_every_dependency_is_packed_or_on_the_host_in_a_matching_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"]]
    for extra in EXTRAS:
        lines += project["optional-dependencies"][extra]
    packed = {normalize(wheel.name): wheel.pinned for wheel in TREES["wheels"]}
    problems = {line: find_problem(Requirement(line), {**PRESENT, **packed}) for line in lines}
    assert {line: problem for line, problem in problems.items() if problem} == {}


def test_no_dependency_of_lora_sft_is_left_out():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = sum(project["optional-dependencies"].values(), project["dependencies"])
    assert not {normalize(Requirement(line).name) for line in lines} & set(LEFT_OUT)


@pytest.mark.parametrize(
    ("requirement", "problem"),
    [
        ("box>=1", ""),
        ("box>=2", "the host will have 1.5"),
        ("of_unknown.version>=9", ""),
        ("lid", "neither packed nor on the host"),
        ("torchao>=1", ""),
    ],
)
def test_a_requirement_is_compared_with_the_versions_on_the_host(requirement, problem):
    assert (
        find_problem(Requirement(requirement), {"box": "1.5", "of-unknown-version": ""}) == problem
    )


def test_requirements_of_other_pythons_and_of_extras_are_ignored(tmp_path):
    metadata = """\
Name: box
Requires-Dist: lid>=1
Requires-Dist: old; python_version < "3.12"
Requires-Dist: web; extra == "web"
"""
    wheel = make_wheel(tmp_path / "box-1.whl", {"box-1.dist-info/METADATA": metadata})
    assert [str(each) for each in read_requirements(wheel)] == ["lid>=1"]


def test_a_tree_has_only_one_version_of_each_package():
    for tree in TREES:
        names = [normalize(wheel.name) for wheel in find_wheels_of(tree)]
        assert len(names) == len(set(names))
    first = {normalize(wheel.name) for wheel in TREES["wheels"]}
    assert all(set(map(normalize, names)) <= first for names in SHARED.values())


def test_the_manifest_matches_the_wheel_list_and_the_size_limit():
    sizes = []
    for tree, wheels in TREES.items():
        packed = {each["name"]: each for each in pack.read_packed(tree)}
        assert {name: each["version"] for name, each in packed.items()} == {
            wheel.name: wheel.pinned for wheel in wheels
        }, "run: python tools/gpu/pack.py"
        sizes += [each["bytes"] for each in packed.values()]
    source = sum(path.stat().st_size for path in pack.list_source_files() if path.is_file())
    assert sum(sizes) > 20 * 2**20
    assert sum(sizes) + source < pack.LIMIT_MIB * 2**20
