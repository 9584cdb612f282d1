"""Threads behind the rest of their process."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from node.threads import BACKGROUND_NICE, in_background


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has no priority of its own")
def test_a_thread_steps_back_and_its_process_does_not() -> None:
    def nice() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = nice()
    with ThreadPoolExecutor(1, initializer=in_background) as threads:
        assert threads.submit(nice).result() == min(19, before + BACKGROUND_NICE)
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(nice).result() == before
    assert nice() == before
