"""Workers that die, freeze, come back and exchange partitions: each alert is raised and cleared in turn."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from streams import AlertRule, Alerts, Webhook, seconds
from streams.alerts.alert import AlertState
from tests.alerts.receiving import hook_server
from tests.alerts.test_watch import BEHIND, Site
from tests.support.logs import capture_logs

if TYPE_CHECKING:
    from streams.alerts.watch import AlertWatch

NAMES = ["w1", "w2", "w3"]


class Faults:
    """What happens to the workers of a site, by a seed."""

    def __init__(self, site: Site, seed: int) -> None:
        self.site = site
        self.random = random.Random(seed)
        self.frozen: dict[str, AlertWatch] = {}

    def happen(self) -> None:
        """Let one thing happen."""
        site, alive = self.site, sorted(self.site.watches)
        match self.random.choice(
            ["kill", "freeze", "thaw", "start", "start", "load", "load", "assign", "assign"]
        ):
            case "kill" if alive:
                site.kill(self.random.choice(alive))
            case "freeze" if alive:
                name = self.random.choice(alive)
                # Until the next assignment nobody has its partitions.
                self.frozen[name] = site.watches.pop(name)
            case "thaw" if self.frozen:
                name = self.random.choice(sorted(self.frozen))
                watch = self.frozen.pop(name)
                if name not in site.watches:
                    site.watches[name] = watch
            case "start":
                gone = [name for name in NAMES if name not in site.watches and name not in self.frozen]
                if gone:
                    site.start(self.random.choice(gone), [])
            case "load":
                site.waiting = self.random.choice([0.0, 45.0])
            case "assign":
                self.assign()
            case _:
                pass

    def assign(self) -> None:
        """Divide the partitions among the workers that run."""
        alive = sorted(self.site.watches)
        for name in alive:
            self.site.owned[name] = []
        for number in range(4) if alive else ():
            self.site.owned[self.random.choice(alive)].append(number)


@pytest.mark.parametrize("seed", range(12))
def test_raises_and_clearings_alternate_whatever_happens_to_workers(seed: int):
    rule = AlertRule(lasting=seconds(20), clearing=seconds(20))
    with hook_server() as hook, capture_logs() as lines:
        site = Site(Alerts(receivers=[Webhook(hook.url)], rules={BEHIND: rule}))
        faults = Faults(site, seed)
        site.start("w1", [0, 1, 2, 3])
        for _ in range(120):
            faults.happen()
            site.run(faults.random.choice([5, 10, 30]))
        # In the end all is well, and nothing stays raised.
        site.waiting = 0.0
        site.watches |= faults.frozen
        for name in NAMES:
            if name not in site.watches:
                site.start(name, [])
        faults.assign()
        site.run(120)
        site.close()
    events = [line["event"] for line in lines if line["event"] in {"alert raised", "alert cleared"}]
    assert events == (["alert raised", "alert cleared"] * len(events))[: len(events)]
    assert len(events) % 2 == 0
    states = [item.state for item in site.current().values()]
    assert AlertState.FIRING not in states
    assert "alerts failed" not in [line["event"] for line in lines]
    assert events
