"""What lora-sft costs and gains, measured side by side with its peers and the physical limit.

`docs/performance.md` explains each measure; `README.md` here is generated from `results/`.
Not part of the package: nothing in `lora_sft` imports from here.
"""
