"""Turn an error inside the computation of a model into one that names the model.

A number in a damaged config may be possible for transformers when it builds the model, and
impossible when the model computes: a dropout above one, or heads that do not divide the width.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lora_sft.errors import LoraSftError, ModelError
from lora_sft.file_names import MODEL_CONFIG_FILE
from lora_sft.processes.watch import is_about_others

MODULE_CALL: Any = torch.nn.Module.__call__


@contextmanager
def computing_errors(location: str) -> Iterator[None]:
    """Raise a ModelError in place of an error inside the call of a module in the block.

    Other errors pass, and so do those about memory, packages and other processes. The place of the
    error stays in the message, because it may also be a defect of lora-sft or of a library.

    Args:
        location: The base model, or the folder of the model.
    """
    try:
        yield
    except (LoraSftError, ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # each layer raises another class
        codes = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
        if is_about_others(error) or MODULE_CALL.__code__ not in codes:
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"the model fails when it computes: {type(error).__name__} in "
            f"{Path(last.filename).name}:{last.lineno}: {reason}",
            location,
            f"its {MODEL_CONFIG_FILE} may be damaged: download the model again. If the model works "
            "with transformers alone, please report this error",
        ) from error
