"""Which published messages the server has confirmed."""

from __future__ import annotations


class Confirms:
    """Follows the messages of a channel, which are numbered from 1 in the order of publishing."""

    def __init__(self) -> None:
        self.published = 0
        self.settled = 0
        """All up to this number are settled."""
        self.negative: list[int] = []
        """Those that the server did not take."""
        self._beyond: set[int] = set()

    @property
    def complete(self) -> bool:
        """Whether all that was published is settled."""
        return self.settled == self.published

    @property
    def count(self) -> int:
        """How many are settled."""
        return self.settled + len(self._beyond)

    def settle(self, tag: int, multiple: bool, positive: bool) -> None:
        """Take a confirm, of one message or of all up to it."""
        if not positive:
            first = self.settled + 1 if multiple else tag
            self.negative += [each for each in range(first, tag + 1) if each not in self._beyond]
        if multiple:
            self.settled = max(self.settled, tag)
            self._beyond = {each for each in self._beyond if each > self.settled}
        elif tag > self.settled:
            self._beyond.add(tag)
        while self.settled + 1 in self._beyond:
            self.settled += 1
            self._beyond.remove(self.settled)
