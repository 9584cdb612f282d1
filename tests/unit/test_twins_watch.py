from mesh.ids import NodeId
from mesh.twins import MEMORY_MS, TwinWatch

A, B = NodeId("a"), NodeId("b")


def test_two_processes_that_speak_in_turn_are_twins() -> None:
    watch = TwinWatch()
    news = [watch.heard(A, name, ms) for ms, name in enumerate(["x", "y", "x", "y", "x"])]
    assert news == [False, False, False, True, False]
    assert watch.twins(10) == (A,)
    watch.heard(B, "x", 11)
    assert watch.twins(11) == (A,)


def test_restarts_are_no_twins() -> None:
    watch = TwinWatch()
    for ms, name in enumerate(["x", "x", "y", "y", "z", "w", "w"]):
        assert not watch.heard(A, name, ms)
    # One late hello of the process before.
    assert not any(watch.heard(B, name, 100) for name in ["x", "y", "x", "z", "z"])
    assert watch.twins(101) == ()


def test_a_twin_that_stopped_is_forgotten() -> None:
    watch = TwinWatch()
    for ms, name in enumerate(["x", "y", "x", "y"]):
        watch.heard(A, name, ms)
    assert watch.twins(MEMORY_MS) == (A,)
    watch.heard(A, "y", MEMORY_MS + 10)
    assert watch.twins(MEMORY_MS + 10) == ()
    # Two restarts hours apart with the same drawn name would be none either.
    assert not watch.heard(A, "x", 10 * MEMORY_MS)
    watch.members_are(frozenset({B}))
    assert watch.twins(3) == ()
