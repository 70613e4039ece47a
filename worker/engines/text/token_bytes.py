"""The bytes that each token stands for, which may be a part of a character."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"


class TokenBytes:
    """Bytes of the tokens of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, added: Mapping[int, str]) -> None:
        """`added`: texts of the tokens that are not the model's own."""
        self._tokenizer, self._added = tokenizer, dict(added)
        self._is_byte_level = "ByteLevel" in _decoder_types(json.loads(tokenizer.to_str()).get("decoder"))

    def __getitem__(self, token: int) -> bytes:
        """Return the bytes of a token; none of an id that the tokenizer does not know."""
        added = self._added.get(token)
        if added is not None:
            return added.encode()
        text = self._tokenizer.id_to_token(token)
        if text is None:
            return b""
        if self._is_byte_level:
            return b"".join(_byte(char) for char in text)
        byte = _BYTE_TOKEN.fullmatch(text)
        return bytes([int(byte[1], 16)]) if byte else text.replace(_SPACE, " ").encode()


def _decoder_types(decoder: Any) -> set[str]:
    if not isinstance(decoder, dict):
        return set()
    inner = [_decoder_types(each) for each in decoder.get("decoders", ())]
    return {str(decoder.get("type")), *(name for names in inner for name in names)}


def _byte(char: str) -> bytes:
    byte = _BYTES.get(char)
    return char.encode() if byte is None else bytes([byte])


def _byte_alphabet() -> dict[str, int]:
    """Return the byte of each character of byte-level BPE: printable ones stand for themselves, others from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_alphabet()
