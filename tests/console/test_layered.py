"""Drawings of graphs: nothing overlaps, edges lead down, and where they need not cross they do not."""

from __future__ import annotations

from itertools import combinations, pairwise

from hypothesis import given, strategies as st

from streams.console.layered import Layout, Size, layered

SIZE = Size(100.0, 40.0)
GAP = 24.0


def chart(names: str, edges: str, **options: object) -> Layout:
    """Nodes are letters, edges pairs of them."""
    pairs = [(edge[0], edge[1]) for edge in edges.split()]
    return layered(dict.fromkeys(names, SIZE), pairs, gap=GAP, **options)  # type: ignore[arg-type] # as the test gives them


def ys(layout: Layout) -> dict[str, float]:
    return {name: place.y for name, place in layout.places.items()}


def order(layout: Layout, names: str) -> str:
    return "".join(sorted(names, key=lambda name: layout.places[name].x))


def test_a_chain_is_one_straight_column():
    layout = chart("abc", "ab bc")
    assert [place.y for place in layout.places.values()] == sorted(ys(layout).values())
    assert len({place.x for place in layout.places.values()}) == 1
    assert layout.routes["a", "b"] == [(50.0, 40.0), (50.0, layout.places["b"].y)]


def test_edges_that_need_not_cross_do_not():
    # In the order of their declaration, each edge would cross all others.
    layout = chart("abcdwxyz", "az by cx dw")
    assert order(layout, "wxyz") == "".join(
        {"a": "z", "b": "y", "c": "x", "d": "w"}[name] for name in order(layout, "abcd")
    )


def test_an_edge_through_layers_passes_beside_their_nodes():
    layout = chart("abcd", "ab bc cd ad")
    points = layout.routes["a", "d"]
    assert len(points) == 6
    for (upper_x, upper_y), (lower_x, _) in list(pairwise(points))[1::2]:
        assert upper_x == lower_x
        node = next(name for name in "bc" if layout.places[name].y == upper_y)
        assert abs(layout.places[node].x - upper_x) >= SIZE.width / 2


def test_what_is_last_is_in_the_last_layer():
    layout = chart("abcd", "ab ac cd", last="b")
    assert ys(layout)["b"] == ys(layout)["d"]


def test_a_late_root_is_just_above_what_follows_it():
    assert ys(chart("abcx", "ab bc xc", late_roots=True))["x"] == ys(chart("abcx", "ab bc xc"))["b"]
    assert ys(chart("abcx", "ab bc xc"))["x"] == 0


def test_a_cycle_is_drawn_with_an_edge_that_leads_up():
    layout = chart("ab", "ab ba")
    (down, up) = layout.routes["a", "b"], layout.routes["b", "a"]
    assert down[0][1] < down[-1][1]
    assert up[0][1] > up[-1][1]


def test_ports_decide_where_an_edge_is_attached_and_what_is_beside_what():
    sizes = {"x": SIZE, "y": SIZE, "wide": Size(600.0, 40.0)}
    ports = {("x", "wide"): (0.0, 200.0), ("y", "wide"): (0.0, -200.0)}
    layout = layered(sizes, list(ports), ports=ports)
    assert order(layout, "xy") == "yx"
    assert layout.routes["x", "wide"][-1][0] == layout.places["wide"].x + 200


def test_nothing_is_drawn_of_nothing():
    assert layered({}, []) == Layout({}, {}, 0.0, 0.0)


@given(
    st.integers(1, 25).flatmap(
        lambda count: st.tuples(
            st.lists(st.floats(20, 300), min_size=count, max_size=count),
            st.lists(st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)), max_size=60),
        )
    )
)
def test_whatever_the_graph_nothing_overlaps_and_every_edge_has_a_route(graph):
    widths, edges = graph
    sizes = {str(number): Size(width, 40.0) for number, width in enumerate(widths)}
    pairs = {(str(above), str(below)) for above, below in edges if above != below}
    layout = layered(sizes, pairs, gap=GAP)
    assert layout.routes.keys() == pairs
    for one, other in combinations(sizes, 2):
        if layout.places[one].y == layout.places[other].y:
            distance = abs(layout.places[one].x - layout.places[other].x)
            assert distance >= (sizes[one].width + sizes[other].width) / 2 + GAP - 1e-6
    for name, size in sizes.items():
        place = layout.places[name]
        assert place.x - size.width / 2 >= -1e-6
        assert place.x + size.width / 2 <= layout.width + 1e-6
        assert 0 <= place.y <= layout.height - size.height + 1e-6
    for (above, below), points in layout.routes.items():
        for name, (x, _) in ((above, points[0]), (below, points[-1])):
            assert abs(x - layout.places[name].x) <= sizes[name].width / 2
