"""The command line: `mesh-node` and `mesh-cli`."""

import sys
from types import TracebackType


def on_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ctrl-C while modules are still loaded, before a command could hear it, is a line as ever."""
    if issubclass(kind, KeyboardInterrupt):
        sys.stderr.write("error[interrupted]: interrupted\n")
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = on_error
