"""A node that serves one film over real sockets, and nothing else of a node."""

from dataclasses import dataclass, field
from pathlib import Path

from mesh.bulk_client_zmq import ZmqBulkClient
from mesh.bulk_server_zmq import ZmqBulkServer
from mesh.errors import NotAllowedError
from mesh.ids import NodeId
from mesh.transfer import Manifest, Source
from mesh.transfer_files import FileSource, PartialFile, make_manifest
from mesh.transport import KeyPair, Traffic
from tests.meshwork import key_pair, node_of
from tests.strangers import LOOPBACK


@dataclass
class Owner:
    """A node that serves one film under the handle `film`."""

    film: Path
    keys: KeyPair = field(default_factory=key_pair)
    member: KeyPair = field(default_factory=key_pair)
    asked: list[tuple[NodeId, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tables = self.film.with_name("tables")
        self.manifest = make_manifest(self.film, tables=self.tables)
        self.server = ZmqBulkServer(self.keys, self.source_for, host=LOOPBACK)
        self.server.set_trust({self.member.public: node_of(self.member)})

    def source_for(self, node: NodeId, handle: str) -> Source:
        self.asked.append((node, handle))
        if handle != "film":
            raise NotAllowedError("this handle is not yours", "ask for another")
        return FileSource(self.film, self.manifest, self.tables / self.manifest.digest)

    def fetch(self, to: Path, fetcher: ZmqBulkClient, **more: object) -> Manifest:
        arguments: dict[str, object] = {
            "peer": node_of(self.keys),
            "public_key": self.keys.public,
            "hosts": [LOOPBACK],
            "port": self.server.port,
            "handle": "film",
            "target": PartialFile(to),
            **more,
        }
        return fetcher.fetch(**arguments)  # type: ignore[arg-type]  # keywords by name, each typed where it is given

    @property
    def sent(self) -> Traffic:
        return self.server.counters().peers.get(node_of(self.member), Traffic())
