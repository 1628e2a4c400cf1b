"""The default partitioner of the Java clients (murmur2), so that topics written by either can be joined."""

from __future__ import annotations

from struct import iter_unpack

_SEED = 0x9747B28C
_MULTIPLIER = 0x5BD1E995
_BITS_32 = 0xFFFFFFFF
_SIGN_BIT = 0x80000000
_POSITIVE = 0x7FFFFFFF


def murmur2(key: bytes) -> int:
    """The 32-bit hash of the Java clients, signed as Java returns it."""
    length = len(key)
    whole_words = length & ~3
    value = _SEED ^ length
    for (word,) in iter_unpack("<I", key[:whole_words]):
        mixed = (word * _MULTIPLIER) & _BITS_32
        mixed = ((mixed ^ (mixed >> 24)) * _MULTIPLIER) & _BITS_32
        value = ((value * _MULTIPLIER) & _BITS_32) ^ mixed
    if length > whole_words:
        value = ((value ^ int.from_bytes(key[whole_words:], "little")) * _MULTIPLIER) & _BITS_32
    value = ((value ^ (value >> 13)) * _MULTIPLIER) & _BITS_32
    value ^= value >> 15
    return value - (1 << 32) if value & _SIGN_BIT else value


def partition_for(key: bytes, partitions: int) -> int:
    """The partition, of ``partitions``, to which Java clients write a record with this key.

    A producer may write records without a key to any partition.
    """
    return (murmur2(key) & _POSITIVE) % partitions
