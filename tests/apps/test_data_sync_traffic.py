"""The generated traffic of the shop."""

from __future__ import annotations

from apps.data_sync.traffic import Traffic


def statements(seed: int, *, evolve_after: int = 10_000) -> list[tuple[str, tuple[object, ...]]]:
    traffic = Traffic(seed)
    found: list[tuple[str, tuple[object, ...]]] = []
    while len(found) < 4_000:
        traffic.evolved = len(found) >= evolve_after
        found += [(item[0], tuple(item[1])) for item in traffic.transaction(4_000 - len(found))]
    return found


def test_the_same_seed_makes_the_same_traffic():
    assert statements(1) == statements(1)
    assert statements(1) != statements(2)


def test_it_has_every_kind_of_change():
    verbs = {" ".join(sql.split()[:3]) for sql, _ in statements(1)}
    assert {f"delete from {table}" for table in ("customers", "orders", "order_lines")} <= verbs
    assert {f"insert into {table}" for table in ("customers", "orders", "order_lines")} <= verbs
    assert {f"update {table} set" for table in ("customers", "orders", "order_lines")} <= verbs
    changed = {sql for sql, _ in statements(1) if " set id = " in sql or " set line = " in sql}
    assert len(changed) == 3, "the keys of each table change"
    assert any(None in parameters for _, parameters in statements(1))
    assert any(len(str(value)) > 5_000 for _, parameters in statements(1) for value in parameters)


def test_new_columns_are_used_once_they_are_there():
    assert not any("tier" in sql for sql, _ in statements(1))
    assert any("tier" in sql for sql, _ in statements(1, evolve_after=2_000)[2_000:])
