"""The metrics that `evaluate.metrics` may name, and the file that computes each.

The one list: the rule about `evaluate.metrics` reads the names here, and `evaluate.metrics` reads
which of its files to import. It stands in the recipe's room because a recipe is checked without
torch and without the libraries that compute metrics.
"""

from __future__ import annotations

from collections.abc import Mapping

# The name in a recipe, and its family: the file below lora_sft/evaluate/metrics/ whose function of
# that name computes it.
METRIC_FAMILIES: Mapping[str, str] = {
    "exact_match": "exact_match",
}
