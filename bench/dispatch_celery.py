"""The application that Celery's workers of `dispatch_rivals.py` import."""

import os
import time

from celery import Celery

_REDIS = f"redis://127.0.0.1:{os.environ['DISPATCH_PORT']}/0"
app = Celery("dispatch", broker=_REDIS, backend=_REDIS)


@app.task
def task(number: int) -> int:
    del number
    return time.time_ns()
