"""Models on the Hugging Face hub: downloading into its library's cache, and uploading a folder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nanogpt_cli.errors import UserError
from nanogpt_cli.extras import install_command

# The files of a GPT-2; other frameworks' weights are not downloaded.
_FILES = [
    "config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json",
    "tokenizer*.json", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json",
]  # fmt: skip
# For repositories without safetensors.
_PICKLES = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]
_LOG_IN = "log in with: hf auth login, or set HF_TOKEN"


def download(hub_id: str, report: Callable[[str], None]) -> Path:
    """The folder of a hub model, from the library's cache or downloaded into it.

    Raises:
        UserError: the hub, the network or the disk fails.
    """
    library = _library()
    fetch = library.snapshot_download
    with contextlib.suppress(library.errors.LocalEntryNotFoundError):
        folder = Path(fetch(hub_id, allow_patterns=_FILES, local_files_only=True))
        if _has_weights(folder):
            return folder
    report(f"fetching {hub_id} from the hub")
    try:
        folder = Path(fetch(hub_id, allow_patterns=_FILES))
        return folder if _has_weights(folder) else Path(fetch(hub_id, allow_patterns=_PICKLES))
    except Exception as error:  # whatever the hub, the network or the disk do
        raise UserError(
            f"cannot fetch {hub_id} from the hub: {_reason(error)}",
            "check the id and the network, or give the path of a local folder",
        ) from None


def _has_weights(folder: Path) -> bool:
    return any(any(folder.glob(name)) for name in ("model*.safetensors", "pytorch_model*.bin"))


def check_push(repository: str) -> None:
    """Check before any work that an upload is possible.

    Raises:
        UserError: the library is missing, ``repository`` is not a valid name, or nobody is logged
            in.
    """
    library = _library()
    try:
        library.utils.validate_repo_id(repository)
    except library.errors.HFValidationError as error:
        raise UserError(f"--push {repository}: {_reason(error)}", "write OWNER/NAME") from None
    if library.get_token() is None:
        raise UserError(f"--push {repository}: there is no token for the hub", _LOG_IN)


def push(folder: Path, repository: str) -> str:
    """Upload ``folder`` to ``repository``, created if necessary; returns its address.

    Raises:
        UserError: the hub or the network fails, or the token is not accepted.
    """
    api = _library().HfApi()
    try:
        api.create_repo(repository, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder))
    except Exception as error:  # whatever the hub, the network or the token do
        raise UserError(
            f"cannot upload to {repository}: {_reason(error)}",
            f"the folder {folder} is complete; {_LOG_IN}",
        ) from None


def _library() -> Any:
    try:
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError:
        raise UserError(
            "the hub needs the package huggingface_hub", install_command("hub")
        ) from None
    return huggingface_hub


def _reason(error: Exception) -> str:
    """The first line of an error's message that is not empty."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)
