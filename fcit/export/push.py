"""An export to a hub, where and only where that is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from fcit.errors import ConfigError

#: What a hub that refuses, cannot be reached or is switched off (HF_HUB_OFFLINE) leads to: errors of the system and of
#: huggingface_hub's HTTP library, httpx or httpx2 by version, from which its own error derives.
_FAILED: tuple[type[BaseException], ...] = (*HfHubHTTPError.__bases__, HFValidationError)


def check_token(repository: str) -> None:
    """Check that there is a token, before anything is exported.

    Raises:
        ConfigError: there is none.
    """
    if get_token() is None:
        raise ConfigError(f"--push {repository}: no token of the hub; set HF_TOKEN, or `hf auth login`")


def push(folder: Path, repository: str, parts: Sequence[str], public: bool) -> str:
    """Upload the named parts of an export to a model repository, which is made if there is none; returns its address.

    The hub is huggingface_hub's (``HF_ENDPOINT``), so is the token (``HF_TOKEN`` or the login).

    Args:
        parts: names of files and folders.
        public: everybody may read it. Without it a new repository is private, and a public one is refused.

    Raises:
        ConfigError: the hub refuses, or cannot be reached; the export stays.
    """
    api = HfApi()
    try:
        made = api.create_repo(repository, private=not public, exist_ok=True)
        if not public and not api.model_info(made.repo_id).private:
            raise ConfigError(
                f"--push {repository}: is a public repository; name another one, or say --public if all may read the "
                f"export ({folder})"
            )
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            allow_patterns=[pattern for part in parts for pattern in (part, f"{part}/*")],
            commit_message="Export of fcit",
        )
    except _FAILED as error:
        token = get_token() or ""
        text = str(error).replace(token, "***") if token else str(error)
        raise ConfigError(f"--push {repository}: {text.strip()}; the export lies in {folder}") from None
    return str(made)
