"""Which block of the key-value cache belongs to whom: reference counts, prefix reuse, eviction.

Pure bookkeeping, no tensors. A block holds `block_size` tokens. A full block is known by a hash
that chains over everything before it: token ids, the pictures that its visual tokens come from, and
the rotary state (beyond a model's limit, the length of a sequence changes its keys).
Blocks that nobody uses stay known until they are needed, the least recently used first.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence as Rows

from internvl2.config import RotaryConfig
from internvl2.engine.sequence import Sequence


class BlockPool:
    """Blocks with reference counts; an unused block remembers its content until it is taken."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._references = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._by_hash: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))

    @property
    def num_free(self) -> int:
        """Blocks that nobody uses, whether their content is known or not."""
        return len(self._free)

    def references(self, block: int) -> int:
        """How many sequences use the block."""
        return self._references[block]

    def find(self, digest: bytes) -> int | None:
        """The block with this content, used or not."""
        return self._by_hash.get(digest)

    def take(self) -> int:
        """A block of one's own; what it held is forgotten."""
        block, _ = self._free.popitem(last=False)
        digest = self._hashes[block]
        if digest is not None:
            del self._by_hash[digest]
            self._hashes[block] = None
        self._references[block] = 1
        return block

    def share(self, block: int) -> None:
        """One more user of a block that was found."""
        if self._references[block] == 0:
            del self._free[block]
        self._references[block] += 1

    def release(self, block: int) -> None:
        """One user less; blocks without known content are the first to be taken again."""
        assert self._references[block] > 0, f"block {block} is released twice"
        self._references[block] -= 1
        if self._references[block]:
            return
        self._free[block] = None
        if self._hashes[block] is None:
            self._free.move_to_end(block, last=False)

    def remember(self, block: int, digest: bytes) -> None:
        """Makes a used block findable; of two equal blocks the first stays findable."""
        if self._hashes[block] is None and digest not in self._by_hash:
            self._hashes[block] = digest
            self._by_hash[digest] = block


class KVCache:
    """Blocks for whole sequences."""

    def __init__(
        self, num_blocks: int, block_size: int, rotary: RotaryConfig, *, reuse: bool = True
    ) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"a cache of {num_blocks} blocks of {block_size} tokens holds nothing")
        self.pool = BlockPool(num_blocks)
        self.block_size = block_size
        self._rotary = rotary
        self._reuse = reuse

    @property
    def capacity(self) -> int:
        """Longest sequence, in tokens, that fits when it is alone."""
        return self.pool.num_blocks * self.block_size

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold so many tokens."""
        return -(-num_tokens // self.block_size)

    def admit(self, sequence: Sequence, headroom: int = 0) -> bool:
        """Gives a sequence blocks for all its tokens, those known already shared, or says no.

        `headroom` blocks must stay free. At least the last token is left to compute, since its
        logits are needed.
        """
        assert not sequence.blocks, f"sequence {sequence.id} has blocks already"
        found = self._find_prefix(sequence)
        num_new = self.blocks_for(len(sequence.token_ids)) - len(found)
        num_taken = num_new + sum(self.pool.references(block) == 0 for block in found)
        if num_taken + headroom > self.pool.num_free:
            return False
        for block in found:
            self.pool.share(block)
        sequence.blocks = found + [self.pool.take() for _ in range(num_new)]
        sequence.num_computed = len(found) * self.block_size
        return True

    def extend(self, sequence: Sequence) -> bool:
        """Makes sure that the newest token has a block, or says no."""
        return self.extend_all([sequence], 0)

    def extend_all(self, sequences: Rows[Sequence], num_unread: int) -> bool:
        """Makes sure that all tokens and so many more have blocks, or says no for all of them."""
        needed = (self.blocks_for(len(s.token_ids) + num_unread) for s in sequences)
        missing = [max(0, n - len(s.blocks)) for s, n in zip(sequences, needed, strict=True)]
        if sum(missing) > self.pool.num_free:
            return False
        for sequence, count in zip(sequences, missing, strict=True):
            sequence.blocks.extend(self.pool.take() for _ in range(count))
        return True

    def commit(self, sequence: Sequence) -> None:
        """Makes the blocks findable that are full of computed tokens by now."""
        if not self._reuse:
            return
        first = len(sequence.block_hashes)
        for index in range(first, sequence.num_computed // self.block_size):
            self.pool.remember(sequence.blocks[index], self._hash(sequence, index))

    def free(self, sequence: Sequence) -> None:
        """Takes back all blocks of a sequence; the end of it is forgotten before its beginning."""
        for block in reversed(sequence.blocks):
            self.pool.release(block)
        sequence.blocks = []
        sequence.block_hashes = []
        sequence.num_computed = 0

    def _find_prefix(self, sequence: Sequence) -> list[int]:
        sequence.block_hashes = []
        found: list[int] = []
        if not self._reuse:
            return found
        for index in range((len(sequence.token_ids) - 1) // self.block_size):
            block = self.pool.find(self._hash(sequence, index))
            if block is None:
                break
            found.append(block)
        del sequence.block_hashes[len(found) :]
        return found

    def _hash(self, sequence: Sequence, index: int) -> bytes:
        """The chained hash of block `index`; made in order, kept with the sequence."""
        if index < len(sequence.block_hashes):
            return sequence.block_hashes[index]
        start = index * self.block_size
        stop = start + self.block_size
        digest = hashlib.blake2b(sequence.block_hashes[-1] if index else b"", digest_size=16)
        digest.update(array("q", sequence.token_ids[start:stop]).tobytes())
        if self._rotary.state(sequence.rotary_length(stop - 1)):
            lengths = map(sequence.rotary_length, range(start, stop))
            digest.update(array("q", map(self._rotary.state, lengths)).tobytes())
        for span in sequence.prompt.media:
            if span.start < stop and span.stop > start:
                digest.update(array("q", [span.start - start, span.stop - start]).tobytes())
                digest.update(hashlib.blake2b(span.digest, digest_size=16).digest())
        sequence.block_hashes.append(digest.digest())
        return sequence.block_hashes[index]
