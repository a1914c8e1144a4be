"""A tokenizer from a SentencePiece model: InternLM2's folders hold tokenizer.model and no tokenizer.json.

The library does the cutting; what it does not know are the tokens that a chat format adds, which lie in the folder's
JSON files. Text between two of those is cut as one piece, as the published (slow) tokenizer does it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

from pipeline.stream import UserError

MODEL = "tokenizer.model"


class PieceTokenizer:
    """As much of a transformers tokenizer as `layers/decoding.py` and the prompts need.

    special: ids of added tokens by name. bos: put in front of every prompt (None: nothing is).
    """

    def __init__(self, pieces: SentencePieceProcessor, special: dict[str, int], bos: int | None):
        self._pieces, self._special, self.bos_token_id = pieces, special, bos
        self._names = {number: name for name, number in special.items()}
        longest_first = sorted(special, key=len, reverse=True)
        self._cut = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if special else None

    @classmethod
    def from_folder(cls, folder: Path) -> PieceTokenizer:
        """From tokenizer.model, tokenizer_config.json and added_tokens.json; UserError where it cannot be read."""
        try:
            pieces = SentencePieceProcessor(model_file=str(folder / MODEL))
        except (OSError, RuntimeError) as error:
            raise UserError(
                "The model's tokenizer.model cannot be read, so the model was not loaded; download it again."
            ) from error
        config, special = _read(folder / "tokenizer_config.json"), _read(folder / "added_tokens.json")
        added = config.get("added_tokens_decoder") or {}
        special |= {entry["content"]: int(number) for number, entry in added.items()}
        return cls(pieces, special, pieces.bos_id() if config.get("add_bos_token", True) else None)

    def get_vocab(self) -> dict[str, int]:
        """Ids of all pieces and added tokens by name."""
        pieces = self._pieces
        return {pieces.id_to_piece(n): n for n in range(pieces.get_piece_size())} | self._special

    def encode(self, text: str, add_special_tokens: bool = True, split_special_tokens: bool = False) -> list[int]:
        """Ids of the text. split_special_tokens: a token's name in it is letters like any other."""
        ids = [self.bos_token_id] if add_special_tokens and self.bos_token_id is not None else []
        parts = [text] if split_special_tokens or self._cut is None else self._cut.split(text)
        for number, part in enumerate(parts):
            if part:
                ids += [self._special[part]] if number % 2 else self._pieces.encode(part)
        return ids

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        """Text of the ids, added and control tokens left out."""
        known = [n for n in ids if n not in self._names and n < self._pieces.get_piece_size()]
        return self._pieces.decode([n for n in known if not self._pieces.is_control(n)])


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(
            f"The model's {file.name} cannot be read, so the model was not loaded; download it again."
        ) from error
    return found if isinstance(found, dict) else {}
