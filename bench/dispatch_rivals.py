"""Celery with Redis and Dask distributed, with tasks that do nothing (bench_dispatch.py runs it).

    dispatch_rivals.py celery|dask REDIS_PORT TASKS ALONE

Prints one line of JSON: tasks a second, and milliseconds from submit to start of tasks sent one by one.
Runs in an environment of its own: `pip install "celery[redis]" distributed`.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

WORKERS = 8
PORT = os.environ.get("DISPATCH_PORT", "6379")


def nothing(number: int) -> int:
    del number
    return time.time_ns()


def celery(tasks: int, alone: int) -> dict[str, object]:
    from dispatch_celery import app, task  # noqa: PLC0415 - only there is it installed

    argv = [sys.executable, "-m", "celery", "-A", "dispatch_celery", "worker", "-c", str(WORKERS)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    folder = str(Path(__file__).parent)
    with subprocess.Popen([*argv, "-l", "ERROR"], cwd=folder, **quiet) as worker:  # type: ignore[call-overload]  # the two streams
        try:
            task.delay(0).get(timeout=60)
            begun = time.perf_counter_ns() / 1e9
            for result in [task.delay(n) for n in range(tasks)]:
                result.get(timeout=120)
            per_s = tasks / (time.perf_counter_ns() / 1e9 - begun)
            waits = []
            for n in range(alone):
                sent = time.time_ns()
                waits.append((task.delay(n).get(timeout=60) - sent) / 1e6)
            app.close()
        finally:
            worker.terminate()
    return {"per_s": per_s, "waits_ms": waits}


def dask(tasks: int, alone: int) -> dict[str, object]:
    from distributed import Client, LocalCluster  # noqa: PLC0415 - only there is it installed

    with (
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        client.submit(nothing, -1, pure=False).result()
        begun = time.perf_counter_ns() / 1e9
        client.gather([client.submit(nothing, n, pure=False) for n in range(tasks)])
        per_s = tasks / (time.perf_counter_ns() / 1e9 - begun)
        waits = []
        for n in range(alone):
            sent = time.time_ns()
            waits.append((client.submit(nothing, n, pure=False).result() - sent) / 1e6)
    return {"per_s": per_s, "waits_ms": waits}


if __name__ == "__main__":
    found = {"celery": celery, "dask": dask}[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps(found))
