"""Settings for all tests."""

import os

from hypothesis import settings

# The same examples on every run: a red run shows the change that broke something.  Other examples,
# in search of new faults: DARKSTREAM_FUZZ=1.
settings.register_profile("repeatable", derandomize=True)
settings.register_profile("searching", print_blob=True)
settings.load_profile("searching" if os.environ.get("DARKSTREAM_FUZZ") else "repeatable")
