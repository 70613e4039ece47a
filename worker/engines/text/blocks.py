"""Blocks of the key-value cache: who holds which, and which prefixes of prompts they hold. Pure.

A full block is known by a hash of its tokens and of all before them, so that prompts that begin alike share it. A block
that no row holds stays known until its memory is needed; the one unused for longest goes first.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

#: Bytes of a block's hash: equal hashes of different texts cannot be made on purpose.
_HASH_BYTES = 16


def block_hash(previous: bytes, tokens: Sequence[int]) -> bytes:
    """Return the hash of a block of these tokens that follows the block with hash `previous`; empty for the first."""
    return hashlib.blake2b(previous + array("I", tokens).tobytes(), digest_size=_HASH_BYTES).digest()


class BlockManager:
    """Owner of all blocks, numbered from 0. A row holds each of its blocks once; several rows may hold one."""

    def __init__(self, blocks: int) -> None:
        self._holders = [0] * blocks
        self._empty = list(range(blocks - 1, -1, -1))
        self._hashes: dict[int, bytes] = {}
        self._by_hash: dict[bytes, int] = {}
        #: Blocks with a hash that no row holds; the one unused for longest is the first.
        self._unused: OrderedDict[int, None] = OrderedDict()

    def __repr__(self) -> str:
        return f"<BlockManager {self.used} of {len(self._holders)} used, {len(self._unused)} cached>"

    @property
    def used(self) -> int:
        """Number of blocks that rows hold."""
        return len(self._holders) - self.free

    @property
    def free(self) -> int:
        """Number of blocks that can be allocated."""
        return len(self._empty) + len(self._unused)

    def acquire(self, hashes: Sequence[bytes]) -> list[int]:
        """Hold the blocks with the first of these hashes, as many as are known without a gap, and return them."""
        found: list[int] = []
        for each in hashes:
            block = self._by_hash.get(each)
            if block is None:
                break
            self._unused.pop(block, None)
            self._holders[block] += 1
            found.append(block)
        return found

    def allocate(self, number: int) -> list[int] | None:
        """Hold and return so many blocks of no content; None, and no change, if there are not as many."""
        if number > self.free:
            return None
        blocks = [self._empty.pop() if self._empty else self._forget_oldest() for _ in range(number)]
        for block in blocks:
            self._holders[block] = 1
        return blocks

    def register(self, block: int, content: bytes) -> None:
        """Make a block that is held and full known by its hash. The first block of a hash stays the known one."""
        if content not in self._by_hash and block not in self._hashes:
            self._hashes[block] = content
            self._by_hash[content] = block

    def release(self, blocks: Sequence[int]) -> None:
        """End one row's hold of these blocks, given in the order of their tokens."""
        for block in reversed(blocks):  # the end of a text is forgotten before its beginning
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            if block in self._hashes:
                self._unused[block] = None
            else:
                self._empty.append(block)

    def knows(self, content: bytes) -> bool:
        """Return whether a block with this hash can be held."""
        return content in self._by_hash

    def forget(self, blocks: Sequence[int]) -> list[int]:
        """Make these blocks unknown; return those that no row holds."""
        for block in blocks:
            content = self._hashes.pop(block, None)
            if content is not None:
                del self._by_hash[content]
            if block in self._unused:
                del self._unused[block]
                self._empty.append(block)
        return [block for block in blocks if not self._holders[block]]

    def _forget_oldest(self) -> int:
        block, _ = self._unused.popitem(last=False)
        del self._by_hash[self._hashes.pop(block)]
        return block
