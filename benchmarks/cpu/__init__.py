"""What lora-sft costs on a CPU, beside its peers and the floor: the same work for all, one thread.

Each measure is a file with `MEASURE` and `measure(toy)`; what it measures runs in processes of its
own (the `*_worker` files), because imports, caches and peak memory of one contestant must not help
or burden the next. This package itself imports no heavy library: a child's peak memory, as the
kernel counts it, is never below that of the process that started it.
"""
