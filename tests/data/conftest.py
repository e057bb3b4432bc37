"""What the data tests share: the folder of real rows, where a machine has it."""

import os
from pathlib import Path

import pytest

FOLDER_VARIABLE = "LORA_SFT_DATA"
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets and tokenizers, kept beside the repository and never inside it."""
    default = REPOSITORY.parent / "shared" / "data"
    folder = Path(os.environ.get(FOLDER_VARIABLE, default))
    if not folder.is_dir():
        pytest.skip(f"NO REAL ROWS WERE TRIED: {folder} is missing (set {FOLDER_VARIABLE})")
    return folder
