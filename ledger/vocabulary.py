"""The vocabulary of the ledger's commands, which several files fill."""

from typing import Final

from mesh.codec import Vocabulary

COMMANDS: Final = Vocabulary("command")
