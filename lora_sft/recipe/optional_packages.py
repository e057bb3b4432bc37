"""The packages that a recipe may need and that lora-sft does not install itself.

`NEEDS` is the only list of them. A run checks it before it loads data or a model: the libraries
check late, each with another error.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from lora_sft.errors import CapabilityError, Fault
from lora_sft.recipe.resolved import Recipe


@dataclass(frozen=True)
class Package:
    """A package: its name on PyPI, the module to import, and the command that installs it.

    Attributes:
        minimum: The oldest version that the libraries use; "" for any.
    """

    name: str
    module: str = ""
    command: str = ""
    minimum: str = ""

    @property
    def fix(self) -> str:
        wanted = f"'{self.name}>={self.minimum}'" if self.minimum else self.name
        return self.command or f"pip install {wanted}"

    def find_problem(self) -> str:
        """Return why the package cannot be used, such as "is not installed", or ""."""
        if not _is_importable(self.module or self.name):
            return "is not installed"
        found = _find_version(self.name) if self.minimum else ""
        if found and _as_numbers(found) < _as_numbers(self.minimum):
            return f"is too old: {found} is installed, and {self.minimum} is needed"
        return ""


@dataclass(frozen=True)
class Need:
    """A field of the recipe, its values that need a package, and the packages that serve it.

    Attributes:
        field: The dotted field.
        values: Patterns of values, as in a shell. `*` is any value that is set.
        packages: One of these is enough. The first is the one that the error names.
    """

    field: str
    values: tuple[str, ...]
    packages: tuple[Package, ...]


BITSANDBYTES = Package("bitsandbytes", command="pip install 'lora-sft[qlora]'", minimum="0.46.1")
DEEPSPEED = Package("deepspeed", command="DS_BUILD_OPS=0 pip install 'lora-sft[deepspeed]'")
TRACKERS = "pip install 'lora-sft[track]'"


def _need(field: str, values: str, *packages: Package) -> Need:
    return Need(field, tuple(values.split()), packages)


# Source: transformers 5.23 `trainer_optimizer`, `integration_utils`, `_flash_attn_can_dispatch`,
# `apply_liger_kernel`; peft 0.21 `dispatch_megatron`. The minimum versions are theirs.
NEEDS = (
    _need("quantization", "*", BITSANDBYTES),
    _need("train.deepspeed", "*", DEEPSPEED),
    _need(
        "train.use_liger_kernel",
        "true",
        Package("liger-kernel", "liger_kernel", "pip install 'lora-sft[liger]'", "0.3.0"),
    ),
    _need(
        "train.optim",
        "adamw_bnb_8bit adamw_8bit paged_* ademamix* lion_* rmsprop_bnb* galore_adamw_8bit*",
        BITSANDBYTES,
    ),
    _need("train.optim", "galore_*", Package("galore-torch", "galore_torch")),
    _need("train.optim", "apollo_*", Package("apollo-torch", "apollo_torch")),
    _need("train.optim", "lomo adalomo", Package("lomo-optim", "lomo_optim")),
    _need("train.optim", "grokadamw", Package("grokadamw")),
    _need("train.optim", "stable_adamw", Package("torch-optimi", "optimi")),
    _need("train.optim", "adamw_torch_4bit adamw_torch_8bit", Package("torchao", minimum="0.15.0")),
    _need(
        "train.optim",
        "schedule_free_adamw schedule_free_sgd",
        Package("schedulefree", minimum="1.2.6"),
    ),
    _need("train.optim", "schedule_free_radam", Package("schedulefree", minimum="1.4.0")),
    _need("train.optim", "adamw_torch_xla", Package("torch-xla", "torch_xla")),
    _need("train.optim", "adamw_torch_npu_fused", Package("torch-npu", "torch_npu")),
    _need(
        "train.optim",
        "adamw_anyprecision",
        Package("torchdistx", command="pip install git+https://github.com/pytorch/torchdistx"),
    ),
    _need(
        "train.report_to",
        "tensorboard",
        Package("tensorboard", command=TRACKERS),
        Package("tensorboardX"),
    ),
    _need("train.report_to", "wandb", Package("wandb", command=TRACKERS)),
    _need("train.report_to", "trackio", Package("trackio", command=TRACKERS)),
    _need("train.report_to", "mlflow dagshub", Package("mlflow")),
    _need("train.report_to", "dagshub", Package("dagshub")),
    _need("train.report_to", "comet_ml", Package("comet-ml", "comet_ml", minimum="3.43.2")),
    _need("train.report_to", "azure_ml", Package("azureml-sdk", "azureml.core.run")),
    _need("train.report_to", "neptune", Package("neptune")),
    _need("train.report_to", "codecarbon", Package("codecarbon")),
    _need("train.report_to", "clearml", Package("clearml")),
    _need("train.report_to", "flyte", Package("flytekit")),
    _need("train.report_to", "dvclive", Package("dvclive")),
    _need("train.report_to", "swanlab", Package("swanlab")),
    _need(
        "model.attn_implementation",
        "flash_attention_2",
        Package("flash-attn", "flash_attn", "pip install flash-attn --no-build-isolation", "2.3.3"),
    ),
    _need(
        "model.attn_implementation",
        "flash_attention_3",
        Package("flash-attn-3", "flash_attn_interface"),
    ),
    _need(
        "model.attn_implementation",
        "flash_attention_4",
        Package("flash-attn-4", "flash_attn.cute"),
    ),
    _need("adapter.megatron_config", "*", Package("megatron-core", "megatron.core")),
)


def check_packages(recipe: Recipe) -> None:
    """Check that the packages are installed which this recipe needs.

    Raises: CapabilityError with one fault per missing package.
    """
    faults = list(_find_faults(recipe))
    if faults:
        raise CapabilityError.from_faults(faults)


@contextmanager
def explain_import_errors(recipe: Recipe) -> Iterator[None]:
    """Raise a CapabilityError in place of an ImportError in the block.

    A package may be installed and still not be importable, for example if it was built for another
    version of torch.
    """
    try:
        yield
    except ImportError as error:
        raise CapabilityError(
            f"a package that the recipe needs cannot be imported: {' '.join(str(error).split())}",
            recipe.where("train"),
            "install it again for the installed torch, or remove the setting that needs it",
        ) from error


def check_package(package: Package, user: str, where: str) -> None:
    """Check that one package is installed.

    Args:
        package: The package.
        user: What needs it, for the error.
        where: The place for the error.

    Raises: CapabilityError with the command that installs it.
    """
    problem = package.find_problem()
    if problem:
        raise CapabilityError(f"{user} needs {package.name}, which {problem}", where, package.fix)


def list_needs(field: str, value: Any) -> list[Need]:
    """Return what a value of a field needs."""
    found = _list_texts(value)
    return [
        need
        for need in NEEDS
        if need.field == field
        and any(fnmatchcase(text, pattern) for text in found for pattern in need.values)
    ]


def _find_faults(recipe: Recipe) -> Iterator[Fault]:
    document = recipe.to_dict()
    for field in dict.fromkeys(need.field for need in NEEDS):
        value = _find_value(document, field)
        for need in list_needs(field, value):
            problems = [package.find_problem() for package in need.packages]
            if all(problems):
                package, shown = need.packages[0], _show(field, value)
                what = f"{shown} needs {package.name}, which {problems[0]}"
                yield Fault(what, recipe.where(field), package.fix)


def _find_value(document: Mapping[str, Any], field: str) -> Any:
    found: Any = document
    for part in field.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _list_texts(value: Any) -> list[str]:
    """Return the values of a field as texts. A mapping is one value; a list has several."""
    if value is None or value is False:
        return []
    if isinstance(value, Mapping):
        return ["mapping"]
    values = value if isinstance(value, list | tuple) else [value]
    return [str(each).lower() for each in values]


def _show(field: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return field
    shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
    return f"{field}: {str(shown).lower() if isinstance(value, bool) else shown}"


def _is_importable(module: str) -> bool:
    """Return whether Python finds a module.

    A folder without code, such as the folder `wandb` that wandb writes, is not one.
    """
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):  # of the module that contains it
        return False
    return spec is not None and spec.origin is not None


def _find_version(name: str) -> str:
    from importlib.metadata import PackageNotFoundError, version  # 20 ms; `--help` needs none

    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _as_numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))
