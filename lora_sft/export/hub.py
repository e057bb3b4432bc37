"""Push an exported folder to the Hugging Face hub: private unless the person made it otherwise.

Asked before training, because a token that is missing is better known then than hours later. What
is uploaded names no path of this machine: the few JSON files that do are uploaded with each such
path cut to its last name. The token is read by huggingface_hub and is never looked at here.
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
from lora_sft.log import say

WITH_LOCAL_PATHS = (ORIGIN_FILE, MERGE_REPORT_FILE, ADAPTER_CONFIG_FILE)


def check_can_push(repo_id: str, where: str) -> None:
    """Ask the hub who we are, before anything is trained.

    Raises: ExportError for a name that no repository can have; CapabilityError where there is no
    token, the hub is out of reach, or it refuses the token.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ExportError(
            f"{repo_id!r} is no name of a repository", where, "write it as owner/name"
        ) from error
    if constants.is_offline_mode():
        raise CapabilityError(
            "the hub is switched off in this environment (HF_HUB_OFFLINE)",
            where,
            "unset HF_HUB_OFFLINE, or set export.push_to_hub: null",
        )
    if get_token() is None:
        raise CapabilityError(
            "there is no token for the hub", where, "run `hf auth login`, or set HF_TOKEN"
        )
    with _as_error(CapabilityError, where, "check the network and the token (`hf auth whoami`)"):
        HfApi().whoami()


def push_folder(folder: Path, repo_id: str) -> str:
    """Upload a folder and return the repository's address.

    A repository that does not exist is made, private; one that does keeps what its owner chose.

    Raises: ExportError where the hub refuses; the folder stays as it is.
    """
    command = f"hf upload {repo_id} {folder} --private --exclude '.*'"
    again = f"the folder is complete; upload it later: {command}"
    with _as_error(ExportError, str(folder), again):
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
        content: Path | bytes = path
        if name in WITH_LOCAL_PATHS:
            document = make_public(json.loads(path.read_text(encoding="utf-8")))
            content = (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
        yield CommitOperationAdd(name, content)


@contextmanager
def _as_error(
    kind: type[CapabilityError] | type[ExportError], where: str, fix: str
) -> Iterator[None]:
    """What the hub or the network answers, as one of our errors."""
    try:
        yield
    except (HTTPError, OSError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise kind(f"the hub does not take it: {first_line}", where, fix) from error
