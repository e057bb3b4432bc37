"""What a GPU host without network lacks: the wheels that travel to it, and what it has already.

Such a host comes with torch and an older Hugging Face stack. lora-sft's own set goes into one
tree; unsloth, which holds to older versions of the same libraries, goes into another, so that
each runs with the versions that it asks for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = ROOT / "constraints.txt"


@dataclass(frozen=True)
class Wheel:
    """One wheel to carry: its version (as in constraints.txt where empty) and what to cut out.

    `drop` and `keep` are patterns of member paths; what matches both stays. `built_here` is for
    what is published as source only.
    """

    name: str
    version: str = ""
    drop: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    built_here: bool = False

    @property
    def pinned(self) -> str:
        """The exact version to carry."""
        return self.version or read_constraints()[normalize(self.name)]


BITSANDBYTES = Wheel(
    "bitsandbytes",
    drop=("bitsandbytes/libbitsandbytes_*",),
    keep=("*_cuda130.so", "*_cpu.so"),
)

# Sources of the kernels for inference and other fields; those of the optimizers stay, because they
# are compiled on first use.
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

# Wheels of the tree "wheels" that another tree takes as well; they travel once.
SHARED: Mapping[str, tuple[str, ...]] = {
    "unsloth": (
        "bitsandbytes", "dill", "multiprocess", "peft", "pydantic", "pydantic_core",
        "annotated-types", "typing-inspection", "typing_extensions",
    ),
}  # fmt: skip

# What the host has, with the version where it is known. Only what a wheel above asks for.
PRESENT: Mapping[str, str] = {
    "accelerate": "1.15.0", "aiohttp": "", "certifi": "", "click": "", "einops": "",
    "filelock": "", "hf-xet": "", "httpx": "", "huggingface-hub": "1.33.0", "jinja2": "",
    "msgpack": "", "ninja": "", "numpy": "2.5.2", "packaging": "", "pandas": "", "pillow": "",
    "protobuf": "", "psutil": "", "py-cpuinfo": "", "pyarrow": "", "pyyaml": "", "regex": "",
    "requests": "", "rich": "", "safetensors": "0.8.0", "sentencepiece": "0.2.2",
    "tokenizers": "0.23.2", "torch": "2.11.0", "torchvision": "0.26.0", "tqdm": "",
    "transformers": "5.17.0", "triton": "3.6.0", "typer": "", "wheel": "", "xxhash": "",
}  # fmt: skip

# What a wheel names and no import of a training run reaches; tried with torch 2.11.
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
    """`pydantic_core` and `Pydantic-Core` are one package."""
    return name.lower().replace("_", "-").replace(".", "-")


def read_constraints(path: Path = CONSTRAINTS) -> dict[str, str]:
    """Name -> version of every line of constraints.txt."""
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    pairs = (line.split("==") for line in lines if "==" in line)
    return {normalize(name): version for name, version in pairs}


def find_wheels_of(tree: str) -> tuple[Wheel, ...]:
    """The wheels of a tree, the shared ones of the first tree included."""
    shared = set(map(normalize, SHARED.get(tree, ())))
    return (*TREES[tree], *(each for each in TREES["wheels"] if normalize(each.name) in shared))
