import pytest

from streams.partitioning import murmur2, partition_for


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
        (b"", 275646681),
        (b"4", 0x5A4B5CA1),
        (b"34", 0x873930DA - 2**32),
        (b"234", 0xE7C009CA - 2**32),
        (b"1234", 0x9FC97B14 - 2**32),
    ],
)
def test_the_hash_is_the_one_of_the_java_clients(key, expected):
    assert murmur2(key) == expected


def test_a_negative_hash_gives_a_partition_in_range():
    assert murmur2(b"foobar") < 0
    assert partition_for(b"foobar", 7) == (murmur2(b"foobar") & 0x7FFFFFFF) % 7


def test_the_empty_key_has_a_partition_too():
    assert partition_for(b"", 1) == 0
    assert 0 <= partition_for(b"", 12) < 12


def test_keys_spread_over_all_partitions():
    counts = [0] * 8
    for number in range(8000):
        counts[partition_for(f"user-{number}".encode(), 8)] += 1
    assert min(counts) > 800
