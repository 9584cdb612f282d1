"""The real scheduler on machines of very different speed: how well, how fairly, and never stuck."""

from random import Random

import pytest

from tests.simulator.film_simulation import FilmSimulation, Worker, machines, slowed
from tests.simulator.schedule_simulation import (
    SPEED,
    Film,
    Machine,
    ScheduleSimulation,
    films_of,
    machines_of,
)

FILMS = 1_500
"""`bench/bench_schedule.py` does 10,000, on up to 64 nodes."""
RATIO_MAX = 1.1
"""Of the makespan to the bound that no schedule can beat."""


@pytest.mark.parametrize("nodes", [1, 5, 16])
def test_the_end_is_near_the_bound(nodes: int) -> None:
    random = Random(nodes)
    films = films_of(FILMS, random)
    outcome = ScheduleSimulation(machines_of(nodes, random), films, seed=nodes).run()
    print(f"{nodes} nodes: makespan {outcome.ratio:.3f} of the bound")
    assert set(outcome.ends.values()) == {1}
    assert len(outcome.ends) == len(films)
    assert outcome.ratio < RATIO_MAX


@pytest.mark.parametrize("seed", [1, 2])
def test_nodes_that_come_and_go_lose_nothing(seed: int) -> None:
    random = Random(seed)
    films = films_of(600, random)
    machines = machines_of(random.choice([3, 8, 20]), random)
    outcome = ScheduleSimulation(machines, films, seed=seed, faults=True).run()
    assert len(outcome.ends) == len(films)
    assert set(outcome.ends.values()) == {1}


def test_the_lowest_priority_waits_no_longer_than_its_bound() -> None:
    # Urgent films come for ever, a tenth more than the mesh can do; every hundredth is a lowly one.
    random, machines = Random(5), machines_of(8, Random(5))
    capacity = sum(machine.speed * machine.slots for machine in machines)
    films: list[Film] = []
    at_ms = 0.0
    for number in range(2_000):
        cost = int(SPEED * 10 * random.lognormvariate(0, 0.8)) + 1
        at_ms += 1_000 * cost / (1.1 * capacity)
        lowly = not number % 100
        films.append(Film(f"f{number}", cost, -100 if lowly else 100, "", int(at_ms)))
    outcome = ScheduleSimulation(machines, films, seed=5).run()
    longest = outcome.longest_wait_ms
    print(f"longest wait: lowest priority {longest[-100]} ms, highest {longest[100]} ms")
    # The backlog in the order of age is what nobody can wait less than when more comes than is done.
    backlog_ms = outcome.makespan_ms - at_ms
    assert longest[-100] < 2 * backlog_ms


def test_shares_are_kept() -> None:
    random, shares = Random(7), {"a": 1, "b": 2, "c": 5}
    films = films_of(1_200, random, ("a", "b", "c"))
    films = [Film(f.name, f.cost, 0, f.tenant) for f in films]
    total = sum(film.cost for film in films)
    machines = machines_of(12, random)
    outcome = ScheduleSimulation(
        machines, films, seed=7, shares=shares, until_cost=total // 3
    ).run()
    done = sum(outcome.served.values())
    for tenant, share in shares.items():
        part = outcome.served[tenant] / done
        print(f"{tenant}: {part:.3f} of {share / 8:.3f}")
        assert abs(part - share / 8) < 0.05 * share / 8 + 0.005


def test_who_comes_back_has_saved_nothing_up() -> None:
    # Tenant b comes when a has had the mesh alone for long: from then on halves, not b alone.
    films = [Film(f"a{n}", SPEED, 0, "a") for n in range(400)]
    films += [Film(f"b{n}", SPEED, 0, "b", 100_000) for n in range(100)]
    run = ScheduleSimulation([Machine("n", SPEED, 1)], films)
    run.until_cost = 150 * SPEED
    outcome = run.run()
    assert 20 <= outcome.served["b"] / SPEED <= 30


# --- the end of a film in pieces ----------------------------------------------------------------------


@pytest.mark.parametrize(("nodes", "chunks", "part_max"), [(4, 12, 0.85), (16, 48, 0.7)])
def test_a_node_that_becomes_slow_holds_up_no_film(
    nodes: int, chunks: int, part_max: float
) -> None:
    workers = slowed(machines(nodes, Random(nodes)), chunks)
    before = FilmSimulation(workers, chunks, speculates=False).run()
    after = FilmSimulation(slowed(workers, chunks), chunks).run()
    print(f"{nodes} nodes: {before.took_ms} ms, with second attempts {after.took_ms} ms")
    assert (before.twice, after.twice > 0) == (0, True)
    assert after.took_ms < part_max * before.took_ms
    # What was done in vain is a small part of all.
    assert after.work < 1.12


def test_on_steady_machines_nothing_is_done_twice() -> None:
    workers = [Worker(name, 5 * SPEED) for name in ("a", "b", "c")]
    end = FilmSimulation(workers, 10).run()
    assert (end.twice, end.work < 1.02) == (0, True)


@pytest.mark.parametrize("seed", range(8))
def test_whoever_vanishes_or_fails_each_part_is_kept_once(seed: int) -> None:
    random = Random(seed)
    chunks = random.choice([4, 8, 12])
    workers = slowed(machines(random.choice([2, 3, 8]), random), chunks)
    end = FilmSimulation(workers, chunks, seed=seed, faults=True).run()
    print(f"seed {seed}: {end}")
