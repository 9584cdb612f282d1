"""A node's home without a node: a ledger, and the log that it was applied from."""

from pathlib import Path

from ledger import commands as c
from ledger.log_sqlite import LogStore
from ledger.schema import SCHEMA_VERSION
from ledger.store_sqlite import LedgerStore
from mesh.ids import raft_id
from mesh.log import Base, Entry, HardState
from mesh.trust import Identity
from mesh.trust_files import load_or_create_identity
from node.settings.home_paths import LEDGER_FILE, RAFT_FILE
from tests.ledger_helper import entry, job_spec, node_report

INCARNATION = "00000001"


class Home:
    """As a stopped node leaves it: a mesh of this node alone with some jobs."""

    def __init__(self, path: Path, jobs: int = 3, schema: int = SCHEMA_VERSION) -> None:
        path.mkdir(mode=0o700)
        self.path = path
        self.identity: Identity = load_or_create_identity(path)
        self.raft_id = raft_id(self.identity.node_id, INCARNATION)
        self.open()
        self.log.set_value("mesh", "m" * 32)
        self.do(
            c.FormMesh(
                mesh="m" * 32,
                founder=c.MemberSpec(
                    node=self.identity.node_id,
                    raft_id=self.raft_id,
                    public_key=self.identity.public_key,
                    name="anna",
                    role="full",
                ),
                schema=schema,
            ),
            node_report(self.identity.node_id),
            self.submission(*(f"j{n}" for n in range(jobs))),
        )

    def submission(self, *jobs: str) -> c.SubmitJobs:
        return c.SubmitJobs(jobs=tuple(job_spec(job, owner=self.identity.node_id) for job in jobs))

    def open(self) -> None:
        self.log = LogStore(str(self.path / RAFT_FILE), incarnation=INCARNATION)
        self.ledger = LedgerStore(str(self.path / LEDGER_FILE))

    def do(self, *commands: c.Command) -> None:
        """Through the log into the ledger."""
        first = self.log.last_index() + 1
        entries: list[Entry] = [entry(n, one) for n, one in enumerate(commands, first)]
        self.log.persist(HardState(term=1, commit=entries[-1].index), entries)
        for _, _, outcome in self.ledger.apply(entries):
            assert outcome is not None
            assert outcome.ok, outcome

    def compact(self, index: int) -> None:
        self.log.compact(Base(index, 1, b"c"))

    def stop(self) -> "Home":
        self.ledger.close()
        self.log.close()
        return self

    @property
    def ledger_path(self) -> str:
        return str(self.path / LEDGER_FILE)

    @property
    def log_path(self) -> str:
        return str(self.path / RAFT_FILE)
