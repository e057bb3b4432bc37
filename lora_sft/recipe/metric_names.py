"""The metrics that `evaluate.metrics` may name, and the file that computes each of them.

This is the only list of metrics. The rule about `evaluate.metrics` reads the names here, and the
package `lora_sft.evaluate.metrics` reads here which file to import. The list is in the folder
`recipe` because a recipe is checked without torch and without the libraries that compute metrics.
"""

from __future__ import annotations

from collections.abc import Mapping

# Each metric's name, and its family: the file in lora_sft/evaluate/metrics/ that has a function of
# this name.
METRIC_FAMILIES: Mapping[str, str] = {
    "exact_match": "exact_match",
}
