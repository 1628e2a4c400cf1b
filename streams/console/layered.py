"""A layered drawing of a graph: edges lead down, few of them cross, and nothing overlaps.

Layers by the longest path, an order within them by sweeps of barycenters, and places by an isotonic
regression for each layer, which is the closest to what its neighbours want that keeps order and distances.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

ORDER_SWEEPS: Final = 12
PLACE_SWEEPS: Final = 24
BEND_WIDTH: Final = 14.0
"""The width that an edge has in the layers that it passes."""

STRAIGHT: Final = 6.0
"""How much more a straight edge counts that passes layers, or is in a chain."""


class Size(NamedTuple):
    """What a node takes."""

    width: float
    height: float


class Spot(NamedTuple):
    """The middle of a node's upper edge."""

    x: float
    y: float


class Layout(NamedTuple):
    """Where nodes are, and which points an edge passes: first the end of its source, last its target's."""

    places: Mapping[str, Spot]
    routes: Mapping[tuple[str, str], Sequence[tuple[float, float]]]
    """From each second point on to the next one, an edge passes a layer, so it is straight there."""
    width: float
    height: float


def layered(
    sizes: Mapping[str, Size],
    edges: Collection[tuple[str, str]],
    *,
    last: Collection[str] = (),
    late_roots: bool = False,
    gap: float = 24.0,
    layer_gap: float = 46.0,
    ports: Mapping[tuple[str, str], tuple[float, float]] | None = None,
) -> Layout:
    """Lay out a graph, in the order of ``sizes`` where nothing else decides.

    Nodes in ``last`` are in the last layer. With ``late_roots``, a node without predecessors is just above
    the first that follows it. ``ports`` are where an edge is attached, as distances from the middle of its
    source and of its target.
    """
    if not sizes:
        return Layout({}, {}, 0.0, 0.0)
    return _Drawing(sizes, edges, last, gap, layer_gap, ports or {}, late_roots=late_roots).layout()


class _Edge(NamedTuple):
    """An edge between two neighbouring layers, and where it is attached."""

    upper: int
    lower: int
    upper_port: float
    lower_port: float


class _Drawing:
    """The work on one graph. Nodes are numbers; those from ``len(names)`` on are bends of long edges."""

    def __init__(
        self,
        sizes: Mapping[str, Size],
        edges: Collection[tuple[str, str]],
        last: Collection[str],
        gap: float,
        layer_gap: float,
        ports: Mapping[tuple[str, str], tuple[float, float]],
        *,
        late_roots: bool,
    ) -> None:
        self._names = list(sizes)
        self._sizes = list(sizes.values())
        self._gap, self._layer_gap = gap, layer_gap
        numbers = {name: number for number, name in enumerate(self._names)}
        self._wanted = [
            (numbers[above], numbers[below]) for above, below in dict.fromkeys(edges) if above != below
        ]
        turned = _back_edges(len(self._names), self._wanted)
        self._down = [
            (below, above) if (above, below) in turned else (above, below) for above, below in self._wanted
        ]
        self._layer = _layers(
            len(self._names), self._down, {numbers[name] for name in last}, late_roots=late_roots
        )
        self._edges: list[_Edge] = []
        self._chains: list[list[int]] = []
        """The nodes that each edge passes, from the upper to the lower end."""
        self._bend_edges(ports)
        self._order = self._initial_order()

    def _bend_edges(self, ports: Mapping[tuple[str, str], tuple[float, float]]) -> None:
        for wanted, (above, below) in zip(self._wanted, self._down, strict=True):
            source, target = ports.get((self._names[wanted[0]], self._names[wanted[1]]), (0.0, 0.0))
            if wanted != (above, below):
                source, target = target, source
            chain = [above]
            for layer in range(self._layer[above] + 1, self._layer[below]):
                chain.append(len(self._layer))
                self._layer.append(layer)
                self._sizes.append(Size(BEND_WIDTH, 0.0))
            chain.append(below)
            self._chains.append(chain)
            for number, (upper, lower) in enumerate(pairwise(chain)):
                self._edges.append(
                    _Edge(
                        upper,
                        lower,
                        source if number == 0 else 0.0,
                        target if number == len(chain) - 2 else 0.0,
                    )
                )

    def layout(self) -> Layout:
        self._reduce_crossings()
        middles = self._middles()
        heights = [max(self._sizes[node].height for node in layer) for layer in self._order]
        tops, top = [], 0.0
        for height in heights:
            tops.append(top)
            top += height + self._layer_gap
        left = min(x - size.width / 2 for x, size in zip(middles, self._sizes, strict=True))
        right = max(x + size.width / 2 for x, size in zip(middles, self._sizes, strict=True))
        places = {
            name: Spot(middles[number] - left, tops[self._layer[number]])
            for number, name in enumerate(self._names)
        }
        attached = self._attached(middles)
        routes = {}
        for number, chain in enumerate(self._chains):
            first, final = chain[0], chain[-1]
            points = [
                (
                    attached[number, True] - left,
                    tops[self._layer[first]] + self._sizes[first].height,
                )
            ]
            for bend in chain[1:-1]:
                layer = self._layer[bend]
                x = middles[bend] - left
                points += [(x, tops[layer]), (x, tops[layer] + heights[layer])]
            points.append((attached[number, False] - left, tops[self._layer[final]]))
            above, below = self._wanted[number]
            if self._down[number] != (above, below):
                points.reverse()
            routes[self._names[above], self._names[below]] = points
        return Layout(places, routes, right - left, top - self._layer_gap)

    def _attached(self, middles: Sequence[float]) -> dict[tuple[int, bool], float]:
        """Where the edges begin and end: those of one node beside each other, in the order of their ends."""
        groups: defaultdict[tuple[int, bool], list[tuple[float, int]]] = defaultdict(list)
        found = {}
        begin = 0
        for number, chain in enumerate(self._chains):
            first, final = self._edges[begin], self._edges[begin + len(chain) - 2]
            begin += len(chain) - 1
            found[number, True] = middles[chain[0]] + first.upper_port
            found[number, False] = middles[chain[-1]] + final.lower_port
            if not first.upper_port:
                groups[chain[0], True].append((middles[chain[1]], number))
            if not final.lower_port:
                groups[chain[-1], False].append((middles[chain[-2]], number))
        for (node, upper), group in groups.items():
            distance = min(22.0, self._sizes[node].width * 0.6 / len(group))
            for position, (_, number) in enumerate(sorted(group)):
                found[number, upper] = middles[node] + (position - (len(group) - 1) / 2) * distance
        return found

    # --- the order in the layers

    def _initial_order(self) -> list[list[int]]:
        """The order in which a walk from the roots finds them: what belongs together is together."""
        below: defaultdict[int, list[int]] = defaultdict(list)
        for edge in self._edges:
            below[edge.upper].append(edge.lower)
        order: list[list[int]] = [[] for _ in range(max(self._layer) + 1)]
        seen: set[int] = set()
        for root in sorted(range(len(self._layer)), key=lambda node: (self._layer[node], node)):
            waiting = [root]
            while waiting:
                node = waiting.pop()
                if node not in seen:
                    seen.add(node)
                    order[self._layer[node]].append(node)
                    waiting += reversed(below[node])
        return order

    def _reduce_crossings(self) -> None:
        best, fewest = [list(layer) for layer in self._order], self._crossings()
        for sweep in range(ORDER_SWEEPS):
            if not fewest:
                break
            downward = sweep % 2 == 0
            indexes = range(1, len(self._order)) if downward else range(len(self._order) - 2, -1, -1)
            for index in indexes:
                self._sort_by_neighbours(index, upward=not downward)
            crossings = self._crossings()
            if crossings < fewest:
                best, fewest = [list(layer) for layer in self._order], crossings
        self._order = best

    def _sort_by_neighbours(self, index: int, *, upward: bool) -> None:
        """Order a layer by the mean position of its neighbours in the one above, or below (``upward``)."""
        neighbour = self._order[index + 1 if upward else index - 1]
        position = {node: float(number) for number, node in enumerate(neighbour)}
        found: defaultdict[int, list[float]] = defaultdict(list)
        for edge in self._edges:
            near, far, port = (
                (edge.upper, edge.lower, edge.lower_port)
                if upward
                else (edge.lower, edge.upper, edge.upper_port)
            )
            if far in position and self._layer[near] == index:
                found[near].append(position[far] + port / max(1.0, self._sizes[far].width))
        layer = self._order[index]
        here = {node: number * len(neighbour) / len(layer) for number, node in enumerate(layer)}
        layer.sort(key=lambda node: sum(found[node]) / len(found[node]) if found[node] else here[node])

    def _crossings(self) -> int:
        position = {node: number for layer in self._order for number, node in enumerate(layer)}
        by_layer: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
        for edge in self._edges:
            by_layer[self._layer[edge.upper]].append(
                (
                    position[edge.upper] + edge.upper_port / max(1.0, 2 * self._sizes[edge.upper].width),
                    position[edge.lower] + edge.lower_port / max(1.0, 2 * self._sizes[edge.lower].width),
                )
            )
        count = 0
        for ends in by_layer.values():
            ends.sort()
            passed: list[float] = []
            for _, lower in ends:
                # Those to the left above that are to the right below.
                count += len(passed) - bisect_left(passed, lower + 1e-9)
                insort(passed, lower)
        return count

    # --- the places in the layers

    def _middles(self) -> list[float]:
        middles = [0.0] * len(self._layer)
        for layer in self._order:
            for node, x in zip(layer, self._packed(layer), strict=True):
                middles[node] = x
        above: defaultdict[int, list[tuple[int, float, float]]] = defaultdict(list)
        below: defaultdict[int, list[tuple[int, float, float]]] = defaultdict(list)
        names = len(self._names)
        leaving = Counter(edge.upper for edge in self._edges)
        entering = Counter(edge.lower for edge in self._edges)
        for edge in self._edges:
            alone = leaving[edge.upper] == 1 and entering[edge.lower] == 1
            weight = STRAIGHT if alone or edge.upper >= names or edge.lower >= names else 1.0
            above[edge.lower].append((edge.upper, edge.upper_port - edge.lower_port, weight))
            below[edge.upper].append((edge.lower, edge.lower_port - edge.upper_port, weight))
        for sweep in range(PLACE_SWEEPS):
            downward = sweep % 2 == 0
            both = sweep >= PLACE_SWEEPS // 3
            for layer in self._order if downward else reversed(self._order):
                desired, weights = [], []
                for node in layer:
                    near = [*above[node], *below[node]] if both else (above if downward else below)[node]
                    total = sum(weight for _, _, weight in near)
                    desired.append(
                        sum((middles[other] + port) * weight for other, port, weight in near) / total
                        if total
                        else middles[node]
                    )
                    weights.append(total or 0.1)
                for node, x in zip(layer, self._spread(layer, desired, weights), strict=True):
                    middles[node] = x
        return middles

    def _packed(self, layer: Sequence[int]) -> list[float]:
        offsets = self._offsets(layer)
        return [offset - offsets[-1] / 2 for offset in offsets]

    def _offsets(self, layer: Sequence[int]) -> list[float]:
        """The least distances of the middles of a layer's nodes from that of its first."""
        offsets = [0.0]
        for left, right in pairwise(layer):
            offsets.append(offsets[-1] + (self._sizes[left].width + self._sizes[right].width) / 2 + self._gap)
        return offsets

    def _spread(
        self, layer: Sequence[int], desired: Sequence[float], weights: Sequence[float]
    ) -> list[float]:
        """Places closest to the desired ones, by least squares, with enough distance between them."""
        offsets = self._offsets(layer)
        blocks: list[tuple[float, float, int]] = []
        for wanted, offset, weight in zip(desired, offsets, weights, strict=True):
            mean, total, count = wanted - offset, weight, 1
            while blocks and blocks[-1][0] > mean:
                other, other_total, other_count = blocks.pop()
                mean = (mean * total + other * other_total) / (total + other_total)
                total, count = total + other_total, count + other_count
            blocks.append((mean, total, count))
        means = [mean for mean, _, count in blocks for _ in range(count)]
        return [mean + offset for mean, offset in zip(means, offsets, strict=True)]


def _back_edges(count: int, edges: Sequence[tuple[int, int]]) -> set[tuple[int, int]]:
    """Edges without which there is no cycle."""
    following: list[list[int]] = [[] for _ in range(count)]
    for above, below in edges:
        following[above].append(below)
    found: set[tuple[int, int]] = set()
    state = [0] * count
    for root in range(count):
        if state[root]:
            continue
        state[root] = 1
        walk = [(root, iter(following[root]))]
        while walk:
            node, rest = walk[-1]
            for other in rest:
                if state[other] == 1:
                    found.add((node, other))
                elif not state[other]:
                    state[other] = 1
                    walk.append((other, iter(following[other])))
                    break
            else:
                state[node] = 2
                walk.pop()
    return found


def _layers(
    count: int, edges: Sequence[tuple[int, int]], last: Collection[int], *, late_roots: bool
) -> list[int]:
    """The layer of each node: one below its lowest predecessor."""
    following: list[list[int]] = [[] for _ in range(count)]
    missing = [0] * count
    for above, below in edges:
        following[above].append(below)
        missing[below] += 1
    layers = [0] * count
    ready = [node for node in range(count) if not missing[node]]
    roots = list(ready)
    for node in ready:
        for other in following[node]:
            layers[other] = max(layers[other], layers[node] + 1)
            missing[other] -= 1
            if not missing[other]:
                ready.append(other)
    if late_roots:
        for node in roots:
            if following[node]:
                layers[node] = min(layers[other] for other in following[node]) - 1
    lowest = max(layers)
    for node in last:
        if not following[node]:
            layers[node] = lowest
    # Late roots may leave the first layers without a node.
    used = {layer: number for number, layer in enumerate(sorted(set(layers)))}
    return [used[layer] for layer in layers]
