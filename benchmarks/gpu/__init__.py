"""The lanes that a GPU host runs (see tools/gpu/run.py); toy shapes run on any machine."""
