"""Transactions that let the rest of the process go on while the disk works."""

from collections.abc import Generator
from contextlib import contextmanager

import apsw


@contextmanager
def transaction(connection: apsw.Connection) -> Generator[None]:
    """All that is written inside, or nothing when it raises.

    As `with connection`, but for the interpreter's lock: that one (apsw 3.54) holds it while it commits,
    so that every sync of the log stood still the loop and all other threads; a statement lets it go.
    """
    connection.execute("BEGIN")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # some errors have ended it already
            connection.execute("ROLLBACK")
        raise
