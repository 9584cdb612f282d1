"""Who brings which chunk, where several may: each once, all in the end, whoever fails or dawdles."""

from hypothesis import given
from hypothesis import strategies as st

from mesh.download import GIVE_UP_MS, Download
from mesh.shares import HELPER_MS, OFFERED_MAX, Alone, HelpersShare, OwnersShare, Pool
from mesh.transfer import Manifest
from mesh.transport import CHUNK_BYTES


def manifest(chunks: int) -> Manifest:
    return Manifest(size=chunks * CHUNK_BYTES - 7, digest="0" * 64)


def pool(chunks: int, have: tuple[int, ...] = (), start: float = 0.0) -> Pool:
    there = bytearray(index in have for index in range(chunks))
    made = manifest(chunks)
    return Pool(made, made.whole, there, start)


def taken_by_owner(made: Pool, now_ms: int = 0) -> list[int]:
    found: list[int] = []
    while (index := made.next_of_owner(now_ms)) is not None:
        found.append(index)
    return found


def test_the_owner_alone_brings_all_that_is_missing_in_order() -> None:
    assert taken_by_owner(pool(6, have=(1, 4))) == [0, 2, 3, 5]


def test_each_receiver_begins_elsewhere() -> None:
    assert taken_by_owner(pool(6, start=2 / 3)) == [4, 5, 0, 1, 2, 3]
    assert taken_by_owner(pool(6, have=(4,), start=1 / 2)) == [3, 5, 0, 1, 2]


def test_a_helper_takes_what_it_has_and_nobody_else_does() -> None:
    made = pool(6, have=(1,))
    assert made.next_of_owner(0) == 0
    assert made.take(bytes([1, 1, 1, 0, 0, 1]), 0) == (2, 5)
    assert made.take(bytes([1, 1, 1, 0, 0, 1]), 0) == ()
    assert taken_by_owner(made) == [3, 4]


def test_a_helper_takes_a_window_at_most_and_what_it_says_is_bounded() -> None:
    made = pool(3 * OFFERED_MAX)
    assert len(made.take(b"\1" * 1_000, 0)) == OFFERED_MAX
    assert made.take(b"", 0) == ()


def test_what_a_helper_gives_back_the_owner_brings_first() -> None:
    made = pool(8)
    taken = made.take(bytes([0, 0, 0, 0, 0, 1, 1, 1]), 0)
    assert made.got(taken[0])
    made.give_back(taken)
    assert taken_by_owner(made) == [6, 7, 0, 1, 2, 3, 4]


def test_what_a_helper_keeps_too_long_the_owner_brings_as_well() -> None:
    made = pool(3)
    assert made.take(b"\1\1\1", 100) == (0, 1, 2)
    assert made.next_of_owner(100 + HELPER_MS - 1) is None
    assert taken_by_owner(made, 100 + HELPER_MS) == [0, 1, 2]
    assert made.got(1)
    assert not made.got(1)  # the helper's own, late
    assert made.left == 2
    made.give_back((0, 1, 2))
    assert taken_by_owner(made) == []  # it is asked of the owner already


def test_a_download_that_shares_is_over_when_others_brought_the_rest() -> None:
    film = manifest(4)
    have = bytearray(4)
    made = Pool(film, film.whole, have)
    owners = Download(film, film.whole, have, 0, OwnersShare(made))
    asked = owners.ask(0)
    assert asked is not None
    assert asked.index == 0
    share = HelpersShare(made, made.take(b"\0\1\1\1", 0))
    helpers = Download(film, film.whole, have, 0, share)
    for _ in range(3):
        ask = helpers.ask(0)
        assert ask is not None
        assert helpers.receive(ask.offset, ask.length, True, 1) == "write"
    assert helpers.done
    assert owners.ask(1) is None
    assert not owners.done
    assert owners.receive(asked.offset, asked.length, True, 2) == "write"
    assert owners.done
    assert (owners.bytes_done, owners.bytes_brought) == (film.size, CHUNK_BYTES)


def test_who_waits_for_a_helper_gives_nothing_up() -> None:
    film = manifest(2)
    have = bytearray(2)
    made = Pool(film, film.whole, have)
    made.take(b"\1\1", 0)
    owners = Download(film, film.whole, have, 0, OwnersShare(made))
    owners.tick(GIVE_UP_MS - 1)
    assert owners.ask(GIVE_UP_MS - 1) is not None  # by then it is asked of the owner


def test_a_chunk_that_two_bring_is_written_once() -> None:
    film = manifest(1)
    have = bytearray(1)
    made = Pool(film, film.whole, have)
    helpers = Download(film, film.whole, have, 0, HelpersShare(made, made.take(b"\1", 0)))
    owners = Download(film, film.whole, have, 0, OwnersShare(made))
    ask = helpers.ask(0)
    again = owners.ask(HELPER_MS)
    assert ask is not None
    assert again is not None
    assert owners.receive(again.offset, again.length, True, HELPER_MS + 1) == "write"
    assert helpers.receive(ask.offset, ask.length, True, HELPER_MS + 2) == "ignore"
    assert helpers.done


def test_alone_all_is_brought_in_order() -> None:
    film = manifest(5)
    have = bytearray([0, 1, 0, 0, 0])
    made = Alone(film, film.whole, have)
    assert (made.left, made.bytes_done) == (4, CHUNK_BYTES)
    assert [made.next(0) for _ in range(5)] == [0, 2, 3, 4, None]


@given(st.data())
def test_in_the_end_everything_is_there_and_was_written_once(data: st.DataObject) -> None:
    chunks = data.draw(st.integers(1, 40))
    film = manifest(chunks)
    have = bytearray(data.draw(st.lists(st.booleans(), min_size=chunks, max_size=chunks)))
    made = Pool(film, film.whole, have, data.draw(st.floats(0, 0.99)))
    before = sum(have)
    now_ms = written = 0
    helped: list[int] = []
    asked: list[int] = []
    for _ in range(20 * chunks):
        now_ms += data.draw(st.integers(0, HELPER_MS))
        match data.draw(st.integers(0, 3)):
            case 0 if (index := made.next_of_owner(now_ms)) is not None:
                asked.append(index)
            case 1 if asked:
                written += made.got(asked.pop(data.draw(st.integers(0, len(asked) - 1))))
            case 2:
                offered = data.draw(st.binary(min_size=0, max_size=chunks))
                helped += made.take(offered, now_ms)
            case 3 if helped:
                index = helped.pop()
                if data.draw(st.booleans()):
                    written += made.got(index)
                else:
                    made.give_back((index,))
            case _:
                pass
    made.give_back(helped)
    for index in (*asked, *taken_by_owner(made, now_ms + HELPER_MS)):
        written += made.got(index)
    assert (made.left, written) == (0, chunks - before)
    assert all(have)
    assert made.bytes_done == film.size
