"""Rows that wait in memory are the rows that SQL would hold, whatever is kept and undone."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from ledger.change import RefusedError
from ledger.jobs import Event, Job, Mesh, Node, Row
from ledger.pending import PendingRows
from ledger.rows import Alteration
from ledger.schema import SCHEMA_VERSION
from ledger.store_sqlite import LedgerStore, SqliteRows

KEYS = ("a", "b", "ä", "z", "Z", "")
OWNERS = ("anna", "bert")


def job(key: str, draw: random.Random) -> Job:
    return Job(
        id=key,
        seq=KEYS.index(key),
        state="queued",
        planned=0,
        owner=draw.choice(OWNERS),
        source="",
        source_bytes=draw.randrange(-(1 << 63), 1 << 63),
        source_mtime_ns=0,
        source_inode=0,
        output=draw.choice(("x", "y")),
        overwrite=0,
        profile="",
        profile_json="",
        priority=0,
        tenant="",
        split=0,
        created_at_ms=0,
        updated_at_ms=0,
    )


def node(key: str, draw: random.Random) -> Node:
    encoders = tuple(draw.sample(("x264", "svt", "é"), draw.randrange(3)))
    return Node(
        node=key,
        ffmpeg="",
        encoders=encoders,
        slots=1,
        cpus=1,
        platform="",
        version="",
        devices="",
        reported_at_ms=0,
    )


def event(key: int) -> Event:
    return Event(id=key, log_index=1, at_ms=1, kind="k", job="j", node="", what="")


def same(rows: PendingRows, plain: SqliteRows) -> None:
    def both(ask: str, *words: object, **equal: object) -> None:
        assert getattr(rows, ask)(*words, **equal) == getattr(plain, ask)(*words, **equal)

    for key in KEYS:
        both("get", Job, key)
        both("get", Node, key)
    for cls in (Job, Node, Event):
        both("where", cls)
    for owner in OWNERS:
        both("where", Job, owner=owner)
        for output in ("x", "y"):
            both("where", Job, output=output, owner=owner)
    both("where_any", Job, "id", KEYS)
    both("where_any", Job, "output", ["y", "z", "y"])


def steps(rows: PendingRows, plain: SqliteRows, draw: random.Random) -> None:
    for _ in range(draw.randrange(5)):
        key = draw.choice(KEYS)
        number = draw.randrange(1 << 40)
        altered: list[list[str]] = []
        for each in (rows, plain):
            match number % 6:
                case 5:
                    owners = OWNERS[: 1 + number % 2]
                    names = ("output", "priority") if number % 3 else ("output",)
                    change = Alteration(
                        only={"owner": owners, "planned": (0,)},
                        names=names,
                        values_of=lambda key, n=number, of=names: ("xyz"[n % 3], n)[: len(of)],  # type: ignore[misc]  # mypy infers no lambda with a default
                    )
                    altered.append([*each.alter(Job, (*KEYS, "a", "none"), change)])
                case 0:
                    each.put(job(key, random.Random(number)))
                case 4:
                    like = job("", random.Random(number))
                    seqs = range(2)
                    outputs = ("x", "y") if number % 2 else ("z", "x")
                    each.put_like(
                        like, ("id", "output", "seq"), zip(KEYS, outputs, seqs, strict=False)
                    )
                case 1:
                    each.put(node(key, random.Random(number)))
                case 2:
                    each.put(event(number % 7))
                case _:
                    each.delete(Job if number % 3 else Node, key)
        assert altered[:1] == altered[1:]
        if draw.random() < 0.2:
            same(rows, plain)


@pytest.mark.parametrize("seed", range(30))
def test_kept_and_undone_commands_leave_what_sql_would_hold(seed: int) -> None:
    draw = random.Random(seed)
    plain, stored = LedgerStore(":memory:"), LedgerStore(":memory:")
    base = SqliteRows(stored.connection)
    rows, reference = PendingRows(base), SqliteRows(plain.connection)
    for _ in range(40):
        plain.connection.execute("SAVEPOINT command")
        steps(rows, reference, draw)
        if draw.random() < 0.5:
            rows.keep()
        else:
            rows.undo()
            plain.connection.execute("ROLLBACK TO command")
        plain.connection.execute("RELEASE command")
        same(rows, reference)
        if draw.random() < 0.1:
            base.write(rows.take())
            assert rows.count == 0
    base.write(rows.take())
    same(PendingRows(base), reference)
    for store in (plain, stored):
        store.close()


def test_changes_are_told_in_their_order_and_of_kept_commands_only() -> None:
    store = LedgerStore(":memory:")
    rows = PendingRows(SqliteRows(store.connection))
    rows.put(event(2))
    rows.delete(Event, 2)
    assert [(table, key) for table, (key, *_) in rows.keep()] == [("event", 2), ("event", 2)]
    rows.put(event(3))
    rows.undo()
    assert rows.keep() == []
    assert rows.count == 1  # a removal of what may be stored
    store.close()


def test_a_table_that_is_read_whole_is_read_once() -> None:
    reads: list[type[Row]] = []

    class Stored:
        schema = SCHEMA_VERSION

        def get(self, cls: type, key: object) -> None:
            reads.append(cls)

        def where(self, cls: type, **equal: object) -> Sequence[Mesh]:
            reads.append(cls)
            return [MESH]

    rows = PendingRows(Stored())  # type: ignore[arg-type]  # knows one class alone
    assert rows.where(Mesh) == rows.where(Mesh) == [MESH]
    assert reads == [Mesh]
    rows.put(replace(MESH, epoch=2))
    assert [mesh.epoch for mesh in rows.where(Mesh)] == [2]
    rows.undo()
    assert rows.where(Mesh) == [MESH]


MESH = Mesh(id="m", founder="f", founder_key=b"", epoch=1, members_epoch=1, formed_at_ms=1)


def test_a_number_beyond_64_bit_is_refused_before_anything_is_taken() -> None:
    store = LedgerStore(":memory:")
    rows = PendingRows(SqliteRows(store.connection))
    for number in (1 << 63, -(1 << 63) - 1):
        with pytest.raises(RefusedError):
            rows.put(replace(event(1), at_ms=number))
    assert rows.keep() == []
    store.close()
