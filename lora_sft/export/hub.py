"""Push an exported folder to the Hugging Face hub. A new repository is private.

Access to the hub is checked before training, so that a missing token is found early.
The upload names no path of this machine: in JSON files that hold paths, each path is cut to its
last part. This module checks that there is a token; only huggingface_hub reads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from lora_sft.errors import CapabilityError, ExportError
from lora_sft.export.public_text import make_public
from lora_sft.file_names import ADAPTER_CONFIG_FILE, MERGE_REPORT_FILE, ORIGIN_FILE
from lora_sft.folder_links import leads_outside
from lora_sft.log import say

FILES_WITH_LOCAL_PATHS = (ORIGIN_FILE, MERGE_REPORT_FILE, ADAPTER_CONFIG_FILE)


def check_can_push(repo_id: str, where: str) -> None:
    """Check that the name of a repository is valid and that the hub accepts the token.

    Args:
        repo_id: The repository's name.
        where: The place in the recipe that an error names.

    Raises:
        ExportError: If no repository can have this name.
        CapabilityError: If there is no token, or the hub cannot be reached or refuses the token.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ExportError(
            f"{repo_id!r} is not a valid name of a repository", where, "write it as owner/name"
        ) from error
    if constants.is_offline_mode():
        raise CapabilityError(
            "the environment variable HF_HUB_OFFLINE switches the hub off",
            where,
            "unset HF_HUB_OFFLINE, or set export.push_to_hub: null",
        )
    if get_token() is None:
        raise CapabilityError(
            "there is no token for the hub", where, "run `hf auth login`, or set HF_TOKEN"
        )
    with _convert_errors(
        CapabilityError, where, "check the network and the token (`hf auth whoami`)"
    ):
        HfApi().whoami()


def push_folder(folder: Path, repo_id: str) -> str:
    """Upload a folder and return the URL of its repository.

    A new repository is private. An existing repository keeps its visibility.

    Raises: ExportError if the hub refuses the upload. The folder stays unchanged.
    """
    command = f"hf upload {repo_id} {folder} --private --exclude '.*'"
    again = f"the folder is complete; upload it later with: {command}"
    with _convert_errors(ExportError, str(folder), again):
        api = HfApi()
        url = api.create_repo(repo_id, private=True, exist_ok=True)
        if not api.repo_info(repo_id).private:
            say(f"note: {repo_id} exists and is public")
        api.create_commit(
            repo_id, list(_list_uploads(folder)), commit_message="Upload with lora-sft"
        )
    say(f"pushed to {url}")
    return str(url)


def _list_uploads(folder: Path) -> Iterator[CommitOperationAdd]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or name.startswith("."):
            continue
        if leads_outside(path, folder):
            say(f"warning: {path} is not uploaded: it is a link to a file elsewhere")
            continue
        content: Path | bytes = path
        if name in FILES_WITH_LOCAL_PATHS:
            document = make_public(json.loads(path.read_text(encoding="utf-8")))
            content = (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
        yield CommitOperationAdd(name, content)


@contextmanager
def _convert_errors(
    kind: type[CapabilityError] | type[ExportError], where: str, fix: str
) -> Iterator[None]:
    """Raise an error of the hub or of the network as `kind`.

    The uploader of large files raises RuntimeError (hf_xet). An answer that is not JSON, for
    example of a proxy, is a ValueError.
    """
    try:
        yield
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise kind(f"the request to the hub failed: {first_line}", where, fix) from error
