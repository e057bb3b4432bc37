"""The list of metric names and the functions of the metric files belong together."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

from lora_sft.evaluate import metrics
from lora_sft.evaluate.metrics import load_metric
from lora_sft.recipe.metric_names import METRIC_FAMILIES

LEAST_METRICS = 1


def find_public_functions() -> set[tuple[str, str]]:
    """Return (name, family) of every public function in the metric files."""
    found = set()
    for module in pkgutil.iter_modules(metrics.__path__):
        file = importlib.import_module(f"{metrics.__name__}.{module.name}")
        for name, function in inspect.getmembers(file, inspect.isfunction):
            if function.__module__ == file.__name__ and not name.startswith("_"):
                found.add((name, module.name))
    return found


def test_every_metric_name_has_a_function_and_every_function_is_listed():
    functions = find_public_functions()
    assert functions == set(METRIC_FAMILIES.items())
    assert len(functions) >= LEAST_METRICS


def test_every_metric_is_computed_from_answers_and_references():
    for name in METRIC_FAMILIES:
        metric = load_metric(name)
        assert metric.__name__ == name
        assert list(inspect.signature(metric).parameters) == ["answers", "references"]
        assert metric(["Paris"], ["Paris"]) >= 0
