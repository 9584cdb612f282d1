"""Compares the JSON lines of two bench runs.

    .venv/bin/python bench/bench_idle.py | tee -a old.txt     # then change something
    .venv/bin/python bench/bench_idle.py | tee -a new.txt
    .venv/bin/python bench/compare.py old.txt new.txt

Machines differ and neighbours make noise: only `ratio` (ours by a peer's in the same run) can be
compared between machines.  Several lines of one bench count by their median.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

Figures = dict[str, dict[str, float]]


def read(path: Path) -> Figures:
    """Medians by bench and name of the figure, from every line that is a bench's JSON."""
    found: dict[str, dict[str, list[float]]] = {}
    for line in path.read_text("utf-8").splitlines():
        if not line.startswith("{"):
            continue
        try:
            record: Any = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("bench"), str):
            figures = found.setdefault(record["bench"], {})
            for name, value in record.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    figures.setdefault(name, []).append(float(value))
    return {
        b: {n: statistics.median(v) for n, v in figures.items()} for b, figures in found.items()
    }


def main() -> int:
    """Prints old, new and the change of each figure; 2 when the runs have no bench in common."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    given = parser.parse_args()
    old, new = read(given.old), read(given.new)
    common = sorted(set(old) & set(new))
    if not common:
        print("error[usage]: the two files have no bench in common; give two outputs of one bench")
        return 2
    print(f"{'bench':16}{'figure':24}{'old':>12}{'new':>12}{'change':>10}")
    for bench in common:
        for figure in sorted(set(old[bench]) & set(new[bench])):
            before, after = old[bench][figure], new[bench][figure]
            change = f"{(after / before - 1) * 100:+.1f} %" if before else ""
            print(f"{bench:16}{figure:24}{before:>12.3f}{after:>12.3f}{change:>10}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
