"""Start a run on several GPUs and machines: the commands, the files, and what came of them."""
