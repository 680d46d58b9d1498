"""In which order an epoch sees its samples: a permutation that needs no memory and no history.

Sample numbers pass through a Feistel network, whose rounds mix one half of the number's bits into
the other; results beyond the data set pass through again. So place 7 000 000 of epoch 3 is known at
once, on every machine alike, which is what resuming and sharing work need.
"""

ROUNDS = 6
_MASK = (1 << 64) - 1


def mix(*numbers: int) -> int:
    """64 bits that look random, the same for the same numbers (the finaliser of SplitMix64)."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = (state + number * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def shuffled(place: int, count: int, seed: int) -> int:
    """Which of `count` samples stands at `place` of an epoch; every sample stands at one place."""
    if not 0 <= place < count:
        raise IndexError(f"place {place} of an epoch of {count} samples")
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:
        left, right = place >> half, place & low
        for number in range(ROUNDS):
            left, right = right, left ^ (mix(seed, number, right) & low)
        place = left << half | right
        if place < count:
            return place


def sample_at(ordinal: int, count: int, seed: int, shuffle: bool = True) -> int:
    """Which sample the run sees as number `ordinal`, counted through all epochs."""
    epoch, place = divmod(ordinal, count)
    return shuffled(place, count, mix(seed, epoch)) if shuffle else place
