"""A checkpoint's name -> its folder on this machine: a local one, or a snapshot from the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.stream import UserError

# Weights, configuration and tokenizer: nothing that runs.
DOWNLOADED = ["*.safetensors", "*.json", "*.txt", "tokenizer.model"]


def folder_of(name: str, others: Sequence[str] = (), example: str = "owner/model") -> Path:
    """The folder of that name, or the snapshot of that Hub id. UserError where there is none.

    others, example: names that are no folders and a Hub id, for the sentence.
    """
    return Path(name) if Path(name).is_dir() else _download(name, others, example)


def called(name: str) -> str:
    """What visitors see of a folder's or a model's name."""
    return Path(name).resolve().name if Path(name).is_dir() else name.split("/")[-1]


def _download(name: str, others: Sequence[str], example: str) -> Path:
    """A snapshot of a Hub model: weights, configuration and tokenizer, nothing that runs."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        raise UserError(
            f"There is no model called {name[:80]!r} here, so nothing was loaded; "
            f"use {', '.join([*others, 'a folder'])}, or a Hub id like {example}."
        )
    return snapshot(name, DOWNLOADED)


def snapshot(name: str, patterns: list[str]) -> Path:
    """A Hub repository's files of these patterns, on this machine; UserError where they cannot be had."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise UserError(
            f"The Hub shows no model {name[:80]!r}, so nothing was loaded; check its spelling or log in to the Hub."
        ) from error
    except Exception as error:  # requests, sockets, disks: the library raises what lies beneath
        raise UserError(
            f"The model {name[:80]!r} is not on this machine and could not be downloaded, so it was not loaded; "
            "connect to the internet once or give a local folder."
        ) from error
