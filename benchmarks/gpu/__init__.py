"""The lanes: groups of measurements for a GPU host. `tools/gpu/run.py` runs them.

With toy shapes they also run on a machine without a GPU.
"""
