"""List the private names of other libraries that this package uses, and check that they exist.

A library may rename a private name in any release. If it renames a method that this package
overrides, our method is never called, and no error appears. So one group of tests compares the list
with the installed libraries. Another group compares the code of the package with the list.
"""

import ast
import enum
import importlib
import inspect
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import lora_sft

PACKAGE = Path(lora_sft.__file__).parent
LIBRARIES = ("trl", "transformers", "peft", "accelerate", "datasets", "deepspeed", "bitsandbytes")

OVERRIDDEN, USED, IMPORTED, PASSED = "overridden", "used", "imported", "passed"


@dataclass(frozen=True)
class PrivateName:
    """A private name of another library.

    Attributes:
        owner: The class, the module or (for a parameter) the function that has the name.
        name: The private name.
        how: How this package uses the name: OVERRIDDEN, USED, IMPORTED or PASSED as a parameter.
    """

    owner: str
    name: str
    how: str

    def __str__(self) -> str:
        return f"{self.owner}.{self.name}"


TEMPLATES = "transformers.utils.chat_template_utils"
HANDLERS = (
    "transformers.cli.serving.chat_completion.ChatCompletionHandler",
    "transformers.cli.serving.completion.CompletionHandler",
    "transformers.cli.serving.response.ResponseHandler",
)
FILES = "transformers.utils.hub.cached_files"

PRIVATE_NAMES = (
    PrivateName("transformers.Trainer", "_save", OVERRIDDEN),
    PrivateName("transformers.Trainer", "_get_train_sampler", OVERRIDDEN),
    PrivateName("transformers.Trainer", "_save_checkpoint", OVERRIDDEN),
    PrivateName("transformers.Trainer", "_finalize_training", OVERRIDDEN),
    PrivateName("transformers.Trainer", "_get_grad_norm", OVERRIDDEN),
    *(
        PrivateName(handler, name, USED)
        for handler in HANDLERS
        for name in ("_streaming", "_non_streaming", "_build_generation_config")
    ),
    PrivateName(HANDLERS[-1], "_normalize_input", USED),
    PrivateName(HANDLERS[-1], "_normalize_tools", USED),
    PrivateName("transformers.Trainer", "_load_callback_state", OVERRIDDEN),
    PrivateName("transformers.Trainer", "_run_epoch", OVERRIDDEN),
    PrivateName("transformers.Trainer", "_tr_loss", USED),
    PrivateName("transformers.Trainer", "_total_loss_scalar", USED),
    PrivateName("transformers.Trainer", "_globalstep_last_logged", USED),
    PrivateName("trl.SFTTrainer", "_send_telemetry", OVERRIDDEN),
    PrivateName("trl.SFTTrainer", "_metrics", USED),
    PrivateName("trl.SFTTrainer", "_total_train_tokens", USED),
    PrivateName("transformers.TrainingArguments", "_n_gpu", USED),
    PrivateName("transformers.PreTrainedConfig", "_attn_implementation", USED),
    PrivateName("datasets.Dataset", "_fingerprint", USED),
    PrivateName("datasets.Dataset", "_indices", USED),
    PrivateName("deepspeed.ops", "__compatible_ops__", USED),
    PrivateName(TEMPLATES, "_alias_reasoning_fields", IMPORTED),
    PrivateName(TEMPLATES, "_plain_template_data", IMPORTED),
    PrivateName(TEMPLATES, "_compile_jinja_template", IMPORTED),
    PrivateName("transformers.Trainer.save_model", "_internal_call", PASSED),
    PrivateName(FILES, "_raise_exceptions_for_missing_entries", PASSED),
    PrivateName(FILES, "_raise_exceptions_for_connection_errors", PASSED),
    PrivateName(FILES, "_raise_exceptions_for_gated_repo", PASSED),
)

# These names are public although they begin with an underscore: their libraries document them.
DOCUMENTED = frozenset({"os._exit", "transformers.__version__", "tokenizers.__version__"})
# The methods of every named tuple, which Python documents too.
NAMED_TUPLE_NAMES = frozenset({"_asdict", "_fields", "_make", "_replace"})
PYTHON_NAMES = NAMED_TUPLE_NAMES.union(
    *map(dir, (object, type, enum.EnumType, BaseException)),
    *map(dir, (types.FunctionType, types.MethodType, types.ModuleType)),
)


def is_private(name: str) -> bool:
    return name.startswith("_") and name.strip("_") != "" and name not in PYTHON_NAMES


# --- the list against the installed libraries ----------------------------------------------------


def find_owner(path: str) -> Any:
    """Return the module, class or function of a dotted path. Skip the test without its library."""
    pytest.importorskip(path.split(".")[0])
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            owner = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            owner = getattr(owner, part)
        return owner
    raise AssertionError(f"{path} cannot be imported")


def has_name(owner: type, name: str) -> bool:
    """Return whether a class has an attribute of this name or uses one in its methods."""
    return hasattr(owner, name) or any(uses_name(kind, name) for kind in owner.__mro__[:-1])


def uses_name(kind: type, name: str) -> bool:
    return re.search(rf"\bself\.{name}\b", read_source(kind)) is not None


@cache
def read_source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # written in C
        return ""


@pytest.mark.parametrize("listed", PRIVATE_NAMES, ids=str)
def test_the_installed_library_has_the_name(listed):
    owner = find_owner(listed.owner)
    if listed.how == PASSED:
        assert listed.name in inspect.signature(owner).parameters
    elif isinstance(owner, type) and listed.how == USED:
        assert has_name(owner, listed.name)
    else:
        assert hasattr(owner, listed.name)


def test_a_missing_name_is_found():
    trainer = find_owner("trl.SFTTrainer")
    assert not has_name(trainer, "_no_such_method")
    assert not has_name(trainer, "_metric")  # the class has `_metrics`


# --- classes of the package against their base classes in the libraries ---------------------------


def list_modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_module(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_ours(kind: type) -> bool:
    return kind.__module__.split(".")[0] == "lora_sft"


def is_from_library(kind: type) -> bool:
    return kind.__module__.split(".")[0] in LIBRARIES


@cache
def list_derived_classes() -> tuple[type, ...]:
    """Return the classes of this package that derive from a class of one of the libraries."""
    found = []
    for file in list_modules():
        classes = [node for node in ast.parse(file.read_text("utf-8")).body if has_bases(node)]
        module = importlib.import_module(name_module(file)) if classes else None
        kinds = [getattr(module, node.name) for node in classes]
        found += [kind for kind in kinds if any(map(is_from_library, kind.__mro__))]
    return tuple(found)


def has_bases(node: ast.stmt) -> bool:
    return isinstance(node, ast.ClassDef) and bool(node.bases)


def find_library_classes(kind: type) -> list[type]:
    return [base for base in kind.__mro__ if is_from_library(base)]


def list_private_names(kind: type) -> set[str]:
    """Return the private names that a class itself defines: methods, fields, and uses of `self`."""
    set_by_methods = set(re.findall(r"\bself\.(_\w+)(?:\s*:[^=\n]+)?\s*=(?!=)", read_source(kind)))
    names = {*vars(kind), *set_by_methods}
    return {name for name in names if is_private(name) and not name.startswith(("__", "_abc_"))}


def list_shared_names() -> Iterator[tuple[type, type, str]]:
    """Yield each private name that a class of this package shares with a base class of a library.

    Yields: The class of this package, the base class, and the name.
    """
    for kind in list_derived_classes():
        own = set().union(*(list_private_names(each) for each in kind.__mro__ if is_ours(each)))
        for base in find_library_classes(kind):
            yield from ((kind, base, name) for name in sorted(own) if has_name(base, name))


def test_a_private_name_that_hides_one_of_a_library_is_listed_as_overridden():
    listed = {(find_owner(each.owner), each.name) for each in PRIVATE_NAMES if is_overridden(each)}
    assert len(list_derived_classes()) >= 14
    shared = list(list_shared_names())
    assert len(shared) >= 7
    for kind, base, name in shared:
        known = any(name == each and issubclass(kind, owner) for owner, each in listed)
        assert known, f"{kind.__qualname__}.{name} hides the {name} of {base.__qualname__}"


def is_overridden(listed: PrivateName) -> bool:
    return listed.how == OVERRIDDEN


@pytest.mark.parametrize("listed", filter(is_overridden, PRIVATE_NAMES), ids=str)
def test_an_overriding_method_takes_the_arguments_of_the_library(listed):
    owner, num_pairs = find_owner(listed.owner), 0
    for kind in list_derived_classes():
        theirs = [vars(base)[listed.name] for base in kind.__mro__ if defines(base, listed.name)]
        ours = inspect.getattr_static(kind, listed.name, None)
        if not issubclass(kind, owner) or ours in theirs:
            continue
        for method in theirs:
            num_pairs += 1
            check_accepts(inspect.signature(ours), inspect.signature(method))
    assert num_pairs >= 1, f"no class of this package overrides {listed}"


def defines(kind: type, name: str) -> bool:
    return is_from_library(kind) and name in vars(kind)


def check_accepts(ours: inspect.Signature, theirs: inspect.Signature) -> None:
    """Raise TypeError if `ours` refuses a call that `theirs` accepts.

    Arguments are tried by position and by name, with and without the optional ones.
    """
    given = list(theirs.parameters.values())[1:]
    by_name = [each.name for each in given if each.kind is each.KEYWORD_ONLY]
    by_position = [each.name for each in given if each.kind is each.POSITIONAL_OR_KEYWORD]
    required = [each.name for each in given if each.default is each.empty]
    ours.bind("self", *by_position, **dict.fromkeys(by_name))
    ours.bind("self", **dict.fromkeys([*by_position, *by_name]))
    ours.bind("self", **dict.fromkeys(name for name in required if name in by_position + by_name))
    kinds = {each.kind for each in ours.parameters.values()}
    for each in given:
        if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD) and each.kind not in kinds:
            raise TypeError(f"our method does not take {each}")


def test_a_method_with_different_parameters_is_found():
    def theirs(self, model, trial, metrics=None): ...

    def without(self, model, trial): ...

    def renamed(self, model, run, metrics=None): ...

    def general(self, model, *args, **kwargs): ...

    for ours in (without, renamed):
        with pytest.raises(TypeError):
            check_accepts(inspect.signature(ours), inspect.signature(theirs))
    check_accepts(inspect.signature(general), inspect.signature(theirs))


# --- the package against the list ----------------------------------------------------------------


class PrivateUses(ast.NodeVisitor):
    """Collects the private names of foreign objects that a module uses, with their lines.

    A name is foreign if it is imported from another package. An attribute, of `self` or of another
    object, is foreign if the class around the line does not define it.
    """

    def __init__(self, inherited: dict[str, set[str]]) -> None:
        self.found: list[tuple[str, int]] = []
        self._inherited = inherited  # the names that each class has from its bases in this package
        self._own: list[set[str]] = [set()]

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        inherited = self._inherited.get(node.name, set())
        self._own.append(self._own[-1] | inherited | list_defined_names(node))
        self.generic_visit(node)
        self._own.pop()

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = node.module or ""
        if node.level or module.split(".")[0] in ("lora_sft", "__future__"):
            return
        self._note([*module.split("."), *(alias.name for alias in node.names)], node)

    def visit_Import(self, node: ast.Import) -> None:
        self._note([part for alias in node.names for part in alias.name.split(".")], node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        of_super = isinstance(node.value, ast.Call) and ast.unparse(node.value) == "super()"
        is_own = node.attr in self._own[-1] and not of_super
        if not is_own and ast.unparse(node) not in DOCUMENTED:
            self._note([node.attr], node)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name in ("getattr", "setattr", "hasattr", "delattr"):
            self._note([each.value for each in node.args[1:2] if is_text(each)], node)
        self._note([keyword.arg for keyword in node.keywords if keyword.arg], node)
        self.generic_visit(node)

    def _note(self, names: list[str], node: ast.AST) -> None:
        self.found += [(name, node.lineno) for name in names if is_private(name)]


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def list_defined_names(node: ast.ClassDef) -> set[str]:
    """Return the names of a class's methods and fields, and of the attributes that it sets."""
    names = set()
    for each in ast.walk(node):
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(each.name)
        elif isinstance(each, ast.Assign | ast.AnnAssign):  # `+=` does not define a name
            targets = each.targets if isinstance(each, ast.Assign) else [each.target]
            names |= {name for target in targets for name in list_assigned_names(target)}
    return names


def list_assigned_names(target: ast.expr) -> Iterator[str]:
    for each in ast.walk(target):
        if not isinstance(getattr(each, "ctx", None), ast.Store):
            continue  # `self._metrics["train"] = ...` reads `_metrics`
        if isinstance(each, ast.Name):
            yield each.id
        elif isinstance(each, ast.Attribute) and ast.unparse(each.value) in ("self", "cls"):
            yield each.attr


def find_private_uses(source: str, inherited: dict[str, set[str]]) -> list[tuple[str, int]]:
    uses = PrivateUses(inherited)
    uses.visit(ast.parse(source))
    return uses.found


@cache
def list_inherited_names() -> dict[str, set[str]]:
    """Return the names that each class of this package has from its bases in this package."""
    classes = {
        node.name: node
        for file in list_modules()
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
    }
    inherited: dict[str, set[str]] = {}

    def collect(name: str) -> set[str]:
        if name not in inherited:
            inherited[name] = set()
            bases = {ast.unparse(base).split(".")[-1] for base in classes[name].bases}
            for base in bases & classes.keys():
                inherited[name] |= collect(base) | list_defined_names(classes[base])
        return inherited[name]

    for name in classes:
        collect(name)
    return inherited


def test_every_private_name_that_the_package_uses_is_listed():
    uses = [
        (name, f"{file.relative_to(PACKAGE.parent)}:{line}")
        for file in list_modules()
        for name, line in find_private_uses(file.read_text("utf-8"), list_inherited_names())
    ]
    assert len(uses) >= 20
    listed = {each.name for each in PRIVATE_NAMES}
    missing = [f"{place} {name}" for name, place in uses if name not in listed]
    assert not missing, f"add to PRIVATE_NAMES, or use public names: {missing}"
    overridden = {each.name for each in PRIVATE_NAMES if is_overridden(each)}
    unused = listed - {name for name, _ in uses} - overridden
    assert not unused, f"remove from PRIVATE_NAMES, no longer used: {sorted(unused)}"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from trl.trainer import _secret", ["_secret"]),
        ("from trl._internal import thing", ["_internal"]),
        ("import trl._internal", ["_internal"]),
        ("model.config._attn_implementation", ["_attn_implementation"]),
        ("def run(trainer):\n    trainer._inner_training_loop()", ["_inner_training_loop"]),
        ("getattr(model, '_tied', None)", ["_tied"]),
        ("trainer.save_model(folder, _internal_call=True)", ["_internal_call"]),
        ("class A(B):\n    def run(self):\n        self._counted += 1", ["_counted"]),
        ("class A(B):\n    def run(self):\n        self._kept['x'] = 1", ["_kept"]),
        ("class A(B):\n    def _save(self):\n        super()._save()", ["_save"]),
        ("class A(B):\n    def _one(self): ...\n    def two(self, a):\n        a._one()", []),
        ("class A(B):\n    def __init__(self):\n        self._own = 1\n        self._own += 1", []),
        ("class A(B):\n    _own: int = 0\n    def two(self):\n        return self._own", []),
        ("from lora_sft.data import _ours\nerror.__cause__", []),
    ],
)
def test_private_names_of_foreign_objects_are_found(source, found):
    assert [name for name, _ in find_private_uses(source, {})] == found
