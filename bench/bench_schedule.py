"""How well the scheduler places work: makespan beside a bound that no schedule beats, waits, shares.

    .venv/bin/python bench/bench_schedule.py [--quick]

The real scheduler on simulated machines whose speeds differ 20-fold (tests/simulator): 10,000 films
of mixed sizes and priorities on 1 to 64 nodes, without faults; then with nodes that come and go; then
urgent films for ever beside lowly ones; then three tenants with shares 1, 2 and 5.  Then one film in
pieces, steady and with a node that becomes ten times slower in its middle: how long with a second
attempt at its slowest parts and without, beside all work over all speed.  `ratio` is the worst
makespan by its bound (all work over all speed, or the longest film on the fastest node).
Aims: under 1.1, every film once, shares within 5 %.  Needs nothing but `make env`.
"""

import argparse
import json
import sys
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parent.parent))

from mesh.clock import monotonic_ms
from tests.simulator.film_simulation import FilmSimulation, machines, slowed
from tests.simulator.schedule_simulation import (
    SPEED,
    Film,
    ScheduleSimulation,
    films_of,
    machines_of,
)

SHARES = {"a": 1, "b": 2, "c": 5}


def placed(nodes: int, films: int, *, faults: bool) -> tuple[float, bool]:
    """The ratio to the bound, and whether every film ended exactly once."""
    random = Random(nodes)
    run = ScheduleSimulation(
        machines_of(nodes, random), films_of(films, random), seed=nodes, faults=faults
    )
    begun_ms = monotonic_ms()
    outcome = run.run()
    once = len(outcome.ends) == films and set(outcome.ends.values()) == {1}
    us = 1_000 * (monotonic_ms() - begun_ms) // films
    kind = "come and go" if faults else "steady"
    print(
        f"{nodes:5} {kind:12} {outcome.makespan_ms / 3_600_000:9.2f} h {outcome.ratio:8.3f}"
        f"   {'each once' if once else 'NOT EACH ONCE':14} {us} us a film"
    )
    return outcome.ratio, once


def lowly(films: int) -> tuple[int, int]:
    """Longest wait of the lowest priority under a tenth more urgent work than can be done; the backlog."""
    random, machines = Random(5), machines_of(8, Random(5))
    capacity = sum(machine.speed * machine.slots for machine in machines)
    made: list[Film] = []
    at_ms = 0.0
    for number in range(films):
        cost = int(SPEED * 10 * random.lognormvariate(0, 0.8)) + 1
        at_ms += 1_000 * cost / (1.1 * capacity)
        made.append(Film(f"f{number}", cost, 100 if number % 100 else -100, "", int(at_ms)))
    outcome = ScheduleSimulation(machines, made, seed=5).run()
    return outcome.longest_wait_ms[-100], int(outcome.makespan_ms - at_ms)


def shares_off(films: int) -> float:
    """The largest relative distance of a tenant's part from its share."""
    random = Random(7)
    made = [Film(f.name, f.cost, 0, f.tenant) for f in films_of(films, random, tuple(SHARES))]
    total = sum(film.cost for film in made)
    outcome = ScheduleSimulation(
        machines_of(12, random), made, seed=7, shares=SHARES, until_cost=total // 3
    ).run()
    done = sum(outcome.served.values())
    fair = {tenant: share / sum(SHARES.values()) for tenant, share in SHARES.items()}
    return max(abs(outcome.served[t] / done - part) / part for t, part in fair.items())


def film_ends(nodes: int, chunks: int) -> float:
    """What part of the time a film in pieces takes when its slowest parts run twice, with a node that becomes slow."""
    part = 1.0
    for kind in ("steady", "one becomes 10 times slower"):
        steady = machines(nodes, Random(nodes))
        once, twice = (
            FilmSimulation(
                slowed(steady, chunks) if kind != "steady" else machines(nodes, Random(nodes)),
                chunks,
                speculates=speculates,
            ).run()
            for speculates in (False, True)
        )
        part = twice.took_ms / once.took_ms
        print(
            f"{nodes:5} {chunks:6} {kind:28} {once.took_ms / 1_000:7.0f} s {twice.took_ms / 1_000:7.0f} s"
            f" {once.ideal_ms / 1_000:7.0f} s {twice.twice:6} {100 * (twice.work - once.work):6.1f} %"
        )
    return part


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the films, fewer nodes")
    quick = parser.parse_args().quick
    films = 1_000 if quick else 10_000
    print("nodes              makespan  of bound")
    found = [placed(n, films, faults=False) for n in ((1, 8) if quick else (1, 2, 5, 16, 64))]
    ratio = max(one for one, _ in found)
    found += [placed(n, films, faults=True) for n in ((3, 8) if quick else (3, 8, 20, 64))]
    wait_ms, backlog_ms = lowly(1_000 if quick else 4_000)
    print(f"lowest priority under overload: waits {wait_ms} ms, the backlog is {backlog_ms} ms")
    off = shares_off(1_000 if quick else 3_000)
    print(f"shares 1:2:5 are off by {100 * off:.1f} % at most")
    print("nodes chunks                              once only    twice  at best   twice  in vain")
    sizes = ((4, 12), (16, 48)) if quick else ((2, 8), (4, 12), (4, 40), (16, 48), (32, 128))
    parts = [film_ends(nodes, chunks) for nodes, chunks in sizes]
    once = all(one for _, one in found)
    print(
        json.dumps(
            {
                "bench": "schedule",
                "ratio": round(ratio, 3),
                "each_once": once,
                "lowest_priority_wait_ms": wait_ms,
                "shares_off_percent": round(100 * off, 2),
                "film_with_a_slow_node": [round(part, 3) for part in parts],
                "quick": quick,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
