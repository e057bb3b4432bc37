"""List the wheels to copy to a GPU host without a network, and the packages that it already has.

The host has torch and older Hugging Face libraries. The wheels for lora-sft form one tree (a
folder). unsloth needs older versions of the same libraries, so its wheels form another tree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = ROOT / "constraints.txt"


@dataclass(frozen=True)
class Wheel:
    """One wheel to copy to the host.

    Attributes:
        version: The version, or "" for the version in constraints.txt.
        drop: Patterns of the files that are removed from the wheel.
        keep: Patterns of files that stay although they match `drop`.
        built_here: True if the package is published only as source, so this machine builds it.
    """

    name: str
    version: str = ""
    drop: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    built_here: bool = False

    @property
    def pinned(self) -> str:
        """The exact version to copy."""
        return self.version or read_constraints()[normalize(self.name)]


BITSANDBYTES = Wheel(
    "bitsandbytes",
    drop=("bitsandbytes/libbitsandbytes_*",),
    keep=("*_cuda130.so", "*_cpu.so"),
)

# The sources of kernels for inference and for other fields are removed. Those of the optimizers
# stay, because they are compiled at their first use.
DEEPSPEED = Wheel(
    "deepspeed",
    "0.19.8",
    drop=(
        "deepspeed/ops/csrc/deepspeed4science/*",
        "deepspeed/ops/csrc/transformer/*",
        "deepspeed/ops/csrc/spatial/*",
        "deepspeed/ops/csrc/random_ltd/*",
        "deepspeed/ops/csrc/xpu/*",
        "deepspeed/inference/v2/kernels/*.cu",
        "deepspeed/inference/v2/kernels/*.cuh",
        "deepspeed/inference/v2/kernels/*.h",
    ),
    built_here=True,
)

TREES: Mapping[str, tuple[Wheel, ...]] = {
    "wheels": (
        Wheel("transformers"),
        Wheel("trl"),
        Wheel("peft"),
        Wheel("datasets"),
        BITSANDBYTES,
        Wheel("tokenizers"),
        Wheel("huggingface_hub"),
        Wheel("httpx2"),
        Wheel("httpcore2"),
        Wheel("truststore"),
        Wheel("h11"),
        Wheel("anyio"),
        Wheel("idna"),
        Wheel("fsspec"),
        Wheel("typing_extensions"),
        Wheel("dill"),
        Wheel("multiprocess"),
        Wheel("liger-kernel", "0.8.5"),
        DEEPSPEED,
        Wheel("hjson", "3.1.0"),
        Wheel("pydantic"),
        Wheel("pydantic_core"),
        Wheel("annotated-types"),
        Wheel("typing-inspection"),
    ),
    "unsloth": (
        Wheel("unsloth", "2026.10.9", drop=("studio/*", "unsloth_cli/*")),
        Wheel("unsloth_zoo", "2026.10.9"),
        Wheel("trl", "1.15.0"),
        Wheel("datasets", "4.8.5"),
        Wheel("fsspec", "2026.2.0"),
        Wheel("cut_cross_entropy", "25.1.1"),
        Wheel("xformers", "0.0.35"),
        Wheel(
            "nvidia-cuda-runtime-cu12",
            "12.8.90",
            drop=("nvidia/*",),
            keep=("*/libcudart.so.12",),
        ),
    ),
}

# Wheels of the tree "wheels" that another tree uses too. They are copied only once.
SHARED: Mapping[str, tuple[str, ...]] = {
    "unsloth": (
        "bitsandbytes", "dill", "multiprocess", "peft", "pydantic", "pydantic_core",
        "annotated-types", "typing-inspection", "typing_extensions",
    ),
}  # fmt: skip

# The packages on the host that a wheel above requires, with the version if it is known.
PRESENT: Mapping[str, str] = {
    "accelerate": "1.15.0", "aiohttp": "", "certifi": "", "click": "", "einops": "",
    "filelock": "", "hf-xet": "", "httpx": "", "huggingface-hub": "1.33.0", "jinja2": "",
    "msgpack": "", "ninja": "", "numpy": "2.5.2", "packaging": "", "pandas": "", "pillow": "",
    "protobuf": "", "psutil": "", "py-cpuinfo": "", "pyarrow": "", "pyyaml": "", "regex": "",
    "requests": "", "rich": "", "safetensors": "0.8.0", "sentencepiece": "0.2.2",
    "tokenizers": "0.23.2", "torch": "2.11.0", "torchvision": "0.26.0", "tqdm": "",
    "transformers": "5.17.0", "triton": "3.6.0", "typer": "", "wheel": "", "xxhash": "",
}  # fmt: skip

# Packages that a wheel requires but that a training run never imports, with their purpose. Checked
# with torch 2.11.
LEFT_OUT: Mapping[str, str] = {
    "diffusers": "image models",
    "hf-transfer": "downloads",
    "json5": "unsloth's web app",
    "msgspec": "tool-calling servers",
    "nest-asyncio": "notebooks",
    "structlog": "unsloth's web app",
    "torchao": "quantisation-aware training and float8",
    "tyro": "unsloth's command line",
}


def normalize(name: str) -> str:
    """Return the normal form of a package name: `pydantic_core` and `Pydantic-Core` are equal."""
    return name.lower().replace("_", "-").replace(".", "-")


def read_constraints(path: Path = CONSTRAINTS) -> dict[str, str]:
    """Return the version of each package in constraints.txt."""
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    pairs = (line.split("==") for line in lines if "==" in line)
    return {normalize(name): version for name, version in pairs}


def find_wheels_of(tree: str) -> tuple[Wheel, ...]:
    """Return the wheels of a tree, with those that it shares with the first tree."""
    shared = set(map(normalize, SHARED.get(tree, ())))
    return (*TREES[tree], *(each for each in TREES["wheels"] if normalize(each.name) in shared))
