"""Measure lora-sft, other libraries and limits on a CPU: the same work for all, on one thread.

Each measure is a file with `MEASURE` (its name) and `measure(toy)`. The measured work runs in
separate processes (the `*_worker` files), so that imports, caches and memory of one contestant do
not affect the next. This package imports no heavy library itself: in the kernel's count, the peak
memory of a child is at least that of its parent.
"""
