"""Keep libraries from fetching code of the hub that nobody asked for.

If the package `kernels` is installed, bitsandbytes fetches a kernel of the hub when it is imported
(0.50 on CPUs with AVX512-BF16), and PEFT imports it in every run. transformers 5.23 fetches kernels
for some models, and instead of a missing `flash_attn`. A kernel is code that runs with the user's
rights. A recipe cannot ask for one, so no command needs the package.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

PACKAGE = "kernels"
ASKING_LOGGER = "bitsandbytes.backends.cpu.ops"


@contextmanager
def without_hub_kernels() -> Iterator[None]:
    """Prevent the import of `kernels` inside the block, and hide the complaint that it is missing.

    A program that imported the package before has it again after the block.
    """
    before = {PACKAGE: sys.modules[PACKAGE]} if PACKAGE in sys.modules else {}
    sys.modules[PACKAGE] = None  # type: ignore[assignment]  # Python then refuses the import
    logger = logging.getLogger(ASKING_LOGGER)
    logger.addFilter(_is_not_about_kernels)
    try:
        yield
    finally:
        logger.removeFilter(_is_not_about_kernels)
        del sys.modules[PACKAGE]
        sys.modules.update(before)


def _is_not_about_kernels(record: logging.LogRecord) -> bool:
    return "from kernels-community" not in record.getMessage()
