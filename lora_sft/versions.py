"""Find the installed versions of the libraries that affect a run, without importing them."""

from __future__ import annotations

__version__ = "0.1.0"

LIBRARIES = (
    "lora-sft",
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "tokenizers",
    "bitsandbytes",
    "deepspeed",
)


def read_versions() -> dict[str, str]:
    """Return the versions of Python and of each installed library of `LIBRARIES`, by name."""
    # importlib.metadata costs 20 ms and 5 MB, which `lora-sft --help` need not pay.
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
