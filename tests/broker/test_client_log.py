"""librdkafka's log lines: the first of each kind at once, repetitions only from time to time."""

from __future__ import annotations

from streams.broker.kafka.client_log import MOST_KINDS, REPEAT_SECONDS, ClientLog

REFUSED = "FAIL [app#producer-{0}] [thrd:a:9092/{0}]: a:9092/{0}: Connect to ipv4#a:9092 failed (after {0}ms)"


def test_repetitions_are_written_now_and_then_with_their_number():
    now = 0.0
    log = ClientLog(lambda: now)
    assert log.admit(REFUSED.format(1)) == REFUSED.format(1)
    assert [log.admit(REFUSED.format(number)) for number in range(2, 40)] == [None] * 38
    now = REPEAT_SECONDS
    assert log.admit(REFUSED.format(40)) == f"{REFUSED.format(40)} (38 more lines like it)"
    assert log.admit(REFUSED.format(41)) is None
    now = 2 * REPEAT_SECONDS
    assert log.admit(REFUSED.format(42)) == f"{REFUSED.format(42)} (1 more lines like it)"


def test_other_addresses_and_other_reasons_are_lines_of_their_own():
    log = ClientLog(lambda: 0.0)
    lines = ["a: Connection refused", "b: Connection refused", "a: Timed out"]
    assert [log.admit(line) for line in [*lines, *lines]] == [*lines, None, None, None]


def test_what_is_remembered_is_bounded():
    log = ClientLog(lambda: 0.0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    texts = [first + second + third for first in letters for second in letters for third in "abcd"]
    assert len(texts) > 2 * MOST_KINDS
    assert all(log.admit(text) == text for text in texts)
