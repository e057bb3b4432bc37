"""Start a run on several GPUs and machines: commands, files, and the launcher's supervision."""
