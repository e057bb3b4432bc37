"""Benchmarks: lora-sft, other libraries and physical limits, measured in the same run.

`docs/performance.md` explains each measure. `benchmarks/README.md` is generated from `results/`.
The benchmarks are not part of the package: `lora_sft` imports nothing from here.
"""
