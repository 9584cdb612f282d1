"""The composition root: makes the parts of a node and tells them of each other; it alone knows adapters."""

import asyncio
import secrets
from collections.abc import Iterator, Mapping
from functools import partial
from importlib.metadata import version as package_version
from pathlib import Path
from random import SystemRandom
from typing import Final

import structlog

from ledger.log_sqlite import LogStore
from ledger.queries import Reader
from ledger.schema import SCHEMA_VERSION
from ledger.store_sqlite import LedgerStore
from mesh import clock
from mesh.bulk_client_zmq import ZmqBulkClient
from mesh.bulk_server_zmq import ZmqBulkServer
from mesh.control_zmq import ZmqControl
from mesh.discovery import Advert
from mesh.discovery_mdns import MdnsDiscovery
from mesh.errors import UnreachableError
from mesh.forming import FormingTimes
from mesh.ids import MeshId, NodeId, raft_id
from mesh.join_zmq import ZmqJoinCall, ZmqJoinListener
from mesh.joining import JOIN, Facts, Place
from mesh.limits import LinkRates
from mesh.messages import PeerAddress
from mesh.protocol import Timing, founding_entries
from mesh.transfer import Source
from mesh.transport import Counters
from mesh.trust import JOIN_KEY, Identity, mesh_fingerprint, mesh_tag
from mesh.trust_files import PromiseFile
from node.backup.assembling import duties_of
from node.backup.duties import Duties
from node.consensus.replica import Replica
from node.consensus.snapshots import HANDLE_PREFIX, SnapshotShelf, recover_installation
from node.faces.feed import Feed
from node.faces.mesh_view import Parts
from node.faces.service import Service
from node.gateway.events import EventRing
from node.gateway.models import SubmitRequest
from node.gateway.server import Gateway, address_of, bind_api
from node.machine import Machine
from node.member import MemberNode, Membership, grant_of, granted_members
from node.membership.address_book_files import AddressFile
from node.membership.admission import Admission
from node.membership.admission_ports import AdmissionSettings, Formed
from node.membership.former_files import has_former
from node.membership.left_behind_files import write_left_behind
from node.membership.mesh_port import LedgerMesh
from node.membership.neighbours import OwnFacts
from node.membership.voters import LEAVE_S
from node.settings.config import Config
from node.settings.config_files import token_of
from node.settings.home_files import write_api_files
from node.settings.home_paths import CACHE_FOLDER, SNAPSHOTS_FOLDER, TRASH_FOLDER
from node.threads import resolve
from node.work.allowed_files import Allowed, default_folders
from node.work.assembling import keep, keeping_of, limiting_of, prepared, watchable, watcher_of
from node.work.conversion import MediaConverter
from node.work.films import Films
from node.work.leases import LeaseTiming
from node.work.limiting import Limiting
from node.work.output_files import room_at
from node.work.owner import Owner
from node.work.restoring import Restoring
from node.work.sharing import Contact
from node.work.standing import told_standing
from node.work.submission import Submission
from node.work.traffic import Traffic
from node.work.worker import Worker

_log = structlog.get_logger("node")

VERSION: Final = package_version("darkstream")
PEERS_FILE: Final = "peers.json"
AGAIN_S: Final = 1.0
"""Time for one call, should a coordinator have come meanwhile."""


class Assembly:
    """The parts of one node and how they know each other."""

    gateway: Gateway
    _owner: Owner | None = None

    def __init__(
        self, config: Config, *, identity: Identity, log: LogStore, ledger: LedgerStore
    ) -> None:
        self._config, self._home = config, (home := Path(config.home))
        self._cache = cache = home / CACHE_FOLDER
        self._identity, self._log, self._ledger = identity, log, ledger
        self._reader = reader = Reader(ledger.path)
        self._raft_id = raft_id(identity.node_id, log.incarnation)
        self._incarnation = secrets.token_hex(4)
        self._member: MemberNode | None = None
        self._worker: Worker | None = None
        self._duties: Duties | None = None
        self._machine = Machine(config, cache)
        self._replica = Replica(reader)
        (control_port, bulk_port, join_port), host = config.ports, config.listen_host
        self._control = ZmqControl(identity.keys, host=host, port=control_port)
        self._client = ZmqBulkClient(identity.keys, compress=config.transfer.compress)
        self._allowed = Allowed(default_folders(config.allow))
        self._films = Films(
            own=identity.node_id,
            folder=cache,
            trash=home / TRASH_FOLDER,
            allowed=self._allowed,
            reader=reader,
            client=self._client,
            contacts=self._contact,
            media=self._machine.media,
            labels_of=lambda n: self._member.standing_of(NodeId(n)).labels if self._member else (),
            **config.transfer.cache,
        )
        self._shelf = SnapshotShelf(
            folder=home / SNAPSHOTS_FOLDER,
            log=log,
            ledger=ledger,
            client=self._client,
            contacts=self._contact,
        )
        self._bulk = ZmqBulkServer(identity.keys, self._source_for, host=host, port=bulk_port)
        self._limiting, self._traffic = self._limits_and_traffic()
        self._mesh = LedgerMesh(reader, identity.node_id)
        self._discovery = MdnsDiscovery(
            on_heard=self._heard,
            on_gone=lambda _: None,
            report=_log.info,
            interfaces=config.interface,
            listen_host=host,
        )
        self._admission = Admission(
            identity=identity,
            incarnation=self._incarnation,
            facts=self._facts,
            mesh=self._mesh,
            call=ZmqJoinCall(identity.keys, JOIN_KEY.public),
            resolve=resolve,
            promises=PromiseFile(home),
            announce=self._discovery.announce,
            settings=self._admission_settings(),
        )
        self._join = ZmqJoinListener(JOIN_KEY, self._admission.on_frame, host=host, port=join_port)
        # Microseconds since 1970: above every id that an earlier process gave.
        self._ring = EventRing(clock.wall_ms() * 1_000)
        self._service = Service(
            node=identity.node_id,
            name=config.name,
            version=VERSION,
            open_to_all=config.open,
            ring=self._ring,
            detection=self._machine.detection,
        )
        self._service.serve(self._admission)

    def _limits_and_traffic(self) -> tuple[Limiting, Traffic]:
        config, home, machine = self._config, self._home, self._machine
        self._keeper, self._working = keeping_of(
            config, home, machine, lambda: len(self._worker.running) if self._worker else 0
        )
        limiting = limiting_of(config, home, self._use_rates, machine.use_slots)
        traffic = Traffic(
            own=self._identity.node_id,
            sent=self._bulk.counters,
            received=self._client.counters,
            speeds=self._client.speeds,
            rates=lambda: limiting.rates,
            status_of=self._status_of,
        )
        return limiting, traffic

    def _admission_settings(self) -> AdmissionSettings:
        config, mesh = self._config, self._log.get_value("mesh")
        returns_to = _fingerprint(self._log.get_value("return_to"))
        # Who belongs needs no invitation, and its file may be gone by now.
        token = token_of(config, returns_to) if mesh is None else None
        return AdmissionSettings(
            token=token,
            mesh=returns_to,
            seeds=config.seeds,
            new_mesh=config.new_mesh and returns_to is None,
            belonged=mesh is not None or has_former(self._home),
            admission="open" if config.open else config.admission,
            times=FormingTimes(look_ms=config.timings.look_ms),
        )

    # --- starting ---------------------------------------------------------------------------------

    async def start(self, group: asyncio.TaskGroup) -> None:
        """Opens every port, then finds the mesh in the background.  Raises what a start can meet."""
        await self._control.start()
        await asyncio.to_thread(self._bulk.start)
        await self._join.start()
        listener = bind_api(*self._config.api_address)
        address = address_of(listener)
        token = write_api_files(self._home, address)
        self.gateway = Gateway(self._service, listener, token=token, version=VERSION)
        group.create_task(self.gateway.serve(), name="gateway")
        group.create_task(self._discovery.run(), name="discovery")
        group.create_task(self._admission.run(), name="admission")
        group.create_task(self._machine.detect(), name="detect")
        group.create_task(self._belong(group), name="belong")
        _log.info(
            "started",
            node=self._identity.node_id,
            name=self._config.name,
            ports=f"{self._control.port},{self._bulk.port},{self._join.port}",
            api=address,
            version=VERSION,
        )

    async def _belong(self, group: asyncio.TaskGroup) -> None:
        if self._log.get_value("mesh") is None:
            for place in AddressFile(self._home / PEERS_FILE).load():
                self._admission.hint(Place(hosts=place.hosts, join_port=place.join_port))
            outcome = await self._admission.find_mesh()
            if isinstance(outcome, Formed):
                self._log.set_value("founder", value=True)
                self._log.set_value("mesh", outcome.mesh)
            else:
                self._log.set_value("grant", JOIN.encode(outcome.grant).hex())
                self._log.set_value("mesh", outcome.grant.mesh)
        else:
            self._admission.announce()
        self._begin(group)

    def _membership(self) -> Membership:
        founder = self._log.get_value("founder") is True
        if founder and self._log.last_index() == 0:
            self._log.persist(*founding_entries(self._raft_id))
        grant = self._log.get_value("grant")
        members, places = granted_members(grant_of(str(grant))) if grant is not None else ((), ())
        return Membership(
            raft_id=self._raft_id,
            name=self._config.name,
            role=self._config.role,
            public_key=self._identity.public_key,
            mesh=MeshId(str(self._log.get_value("mesh"))),
            founder=founder,
            epoch=max(
                grant_of(str(grant)).epoch if grant is not None else 0,
                int(str(self._log.get_value("epoch") or 0)),
            ),
            granted=members,
            places=places,
        )

    def _begin(self, group: asyncio.TaskGroup) -> None:
        recover_installation(self._log, self._ledger)
        membership, timings = self._membership(), self._config.timings
        leases = LeaseTiming(
            heartbeat_ms=timings.worker_heartbeat_ms,
            suspect_ms=timings.worker_suspect_ms,
            fence_ms=timings.hand_back_ms,
            expiry_ms=timings.worker_silent_ms,
        )
        member = MemberNode(
            membership=membership,
            facts=OwnFacts(
                node=self._identity.node_id,
                raft_id=self._raft_id,
                mesh=membership.mesh,
                incarnation=self._incarnation,
                name=membership.name,
                hosts=self._discovery.addresses,
                control_port=self._control.port,
                bulk_port=self._bulk.port,
                join_port=self._join.port,
            ),
            log=self._log,
            ledger=self._ledger,
            applied_index=self._ledger.applied_index,
            replica=self._replica,
            shelf=self._shelf,
            keep=self._config.ledger.keep,
            control=self._control,
            trust_users=(self._bulk.set_trust, self._members_changed),
            book=AddressFile(self._home / PEERS_FILE),
            timing=Timing(
                heartbeat_ms=timings.heartbeat_ms,
                election_min_ms=timings.election_min_ms,
                election_max_ms=timings.election_max_ms,
            ),
            leases=leases,
            voter_silent_ms=timings.voter_silent_ms,
            history=self._config.history,
            status=self._told,
            random=SystemRandom(),
        )
        self._member = member
        self._limiting.listen(member.requests)
        self._working.listen(member.requests)
        self._keeper.hand_over = lambda: group.create_task(member.leave(), name="hand over")
        self._mesh.begin(member.proposer, member.neighbours, lambda: member.leader)
        group.create_task(member.run(), name="member")
        group.create_task(self._machine.report(member, VERSION), name="report")
        self._work(group, member, leases)
        if (former := self._log.get_value("former")) is not None:
            group.create_task(self._tell_left_behind(member, Path(str(former))), name="left behind")

    async def _tell_left_behind(self, member: MemberNode, former: Path) -> None:
        """Once the replica holds this node's own return, it holds all that happened before it."""
        await member.returned()
        path, count = await asyncio.to_thread(write_left_behind, self._home, former, self._reader)
        # Between two writes of the log, which runs now.
        await member.driver.on_log_thread(lambda: self._log.set_value("former", value=None))
        if count:
            _log.warning("jobs that only this node knew", jobs=count, file=str(path))

    def _work(self, group: asyncio.TaskGroup, member: MemberNode, leases: LeaseTiming) -> None:
        self._films.pieces.serve(member.requests)
        self._worker = worker = self._worker_of(member, leases)
        self._owner = owner = Owner(
            own=member.own,
            name=self._config.name,
            driver=member.driver,
            proposer=member.proposer,
            replica=self._replica,
            board=member.board,
            planner=self._films,
            intake=self._films,
        )
        feed = Feed(
            ring=self._ring,
            driver=member.driver,
            replica=self._replica,
            board=member.board,
            neighbours=member.neighbours,
            status=self._service.status,
        )
        self._duties = duties = duties_of(self._config, member)
        watcher = watcher_of(member, self._films, self._service.submit)
        self._service.begin(
            Parts(
                driver=member.driver,
                proposer=member.proposer,
                requests=member.requests,
                replica=self._replica,
                read_index=member.read_index,
                quarantine=member.quarantine,
                neighbours=member.neighbours,
                coordinator=member.coordinator,
                board=member.board,
                worker=worker,
                prepare=self._prepare,
                submit=owner.submit,
                traffic=self._traffic,
                refusals=self._refusals,
                backups=duties.states,
                disk_free_bytes=lambda: min(room_at(self._home), room_at(self._cache)),
                standing_of=member.standing_of,
                digest_of=self._films.digest_of,
                own=member.own,
                folder_of=partial(watchable, self._allowed),
                watched=lambda: watcher.states,
                restoring=Restoring(
                    member.own, self._replica, member.requests, self._films.restore
                ),
            )
        )
        group.create_task(worker.run(), name="worker")
        keeping = keep(self._config, member, self._machine, self._keeper, worker)
        group.create_task(keeping, name="keeper")
        group.create_task(owner.run(), name="owner")
        group.create_task(feed.run(), name="feed")
        group.create_task(watcher.run(), name="watcher")
        group.create_task(duties.run(), name="backup")

    def _worker_of(self, member: MemberNode, leases: LeaseTiming) -> Worker:
        converter = MediaConverter(self._machine.media, self._films, lambda: self._keeper.threads)
        worker = Worker(
            own=member.own,
            name=self._config.name,
            driver=member.driver,
            proposer=member.proposer,
            requests=member.requests,
            replica=self._replica,
            board=member.board,
            converter=converter,
            sources=self._films,
            results=self._films,
            folder=self._home / CACHE_FOLDER / "attempts",
            timing=leases,
            fit=lambda: not member.quarantine.fault,
            closed=lambda: self._keeper.closed,
        )
        converter.to_processor = worker.to_processor
        return worker

    # --- ending -----------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Hands over lead and vote, then finishes or gives back what this node works on.

        The lead goes first, so that others decide while this node still works, and once more at the
        end, should it have come back.  Where nobody could take it then, nobody is waited for again.
        """
        if self._member is None or self._worker is None or self._duties is None:
            return
        gone = await self._member.leave()
        await self._worker.drain(self._config.timings.shutdown_ms / 1000)
        await self._member.leave(LEAVE_S if gone else AGAIN_S)
        await self._duties.finish()

    async def close(self) -> None:
        """Closes ports and threads; every task is over."""
        self._ring.close()
        self._client.close()
        await self._join.stop()
        await self._control.stop()
        await asyncio.to_thread(self._bulk.stop)
        await asyncio.to_thread(self._films.close)
        await asyncio.to_thread(self._shelf.close)
        await asyncio.to_thread(self._replica.close)

    # --- what the parts ask of each other -----------------------------------------------------------

    def _facts(self) -> Facts:
        return Facts(
            raft_id=self._raft_id,
            name=self._config.name,
            role=self._config.role,
            hosts=self._discovery.addresses(),
            control_port=self._control.port,
            bulk_port=self._bulk.port,
            join_port=self._join.port,
            ledger_schema=SCHEMA_VERSION,
        )

    def _heard(self, advert: Advert) -> None:
        self._admission.heard(advert)
        mesh, member = self._mesh.mesh(), self._member
        if mesh is None or member is None or advert.mesh_tag is None:
            return
        if advert.mesh_tag != mesh_tag(mesh_fingerprint(*mesh)):
            self._service.other_mesh(advert.mesh_tag)
            return
        member.neighbours.hint(
            PeerAddress(
                node=advert.node,
                hosts=advert.hosts,
                control_port=advert.control_port,
                bulk_port=advert.bulk_port,
                join_port=advert.join_port,
            )
        )

    def _members_changed(self, members: Mapping[bytes, NodeId]) -> None:
        self._mesh.members_are(members)
        self._admission.announce()

    def _contact(self, node: NodeId) -> Contact:
        if self._member is None:
            raise UnreachableError("this node belongs to no mesh yet", "wait until it does")
        return self._member.contact(node)

    def _source_for(self, peer: NodeId, handle: str) -> Source:
        """What the bulk server hands out: ledgers to members, films to those who hold a lease."""
        serving = self._shelf if handle.startswith(HANDLE_PREFIX) else self._films
        return serving.source_for(peer, handle)

    async def _prepare(self, request: SubmitRequest) -> Submission:
        return await prepared(request, self._identity.node_id, self._allowed, self._replica)

    def _use_rates(self, rates: LinkRates) -> None:
        self._bulk.set_rates(rates)
        self._client.set_rates(rates)

    def _status_of(self, node: NodeId) -> Mapping[str, object]:
        return self._member.neighbours.status_of(node) if self._member is not None else {}

    def _told(self) -> dict[str, object]:
        """What this node's hellos tell of it."""
        closed = self._worker.closed if self._worker is not None else "has only just started"
        waits = self._owner.waits if self._owner is not None else ""
        # Work lies in the cache, which may be a disk of its own.
        standing = told_standing(closed, room_at(self._cache), self._working.labels, waits)
        return {**self._service.told(), **self._traffic.told(), **standing}

    def _refusals(self) -> Iterator[tuple[str, str, int]]:
        sockets: tuple[tuple[str, Counters], ...] = (
            ("control", self._control.counters()),
            ("bulk", self._bulk.counters()),
            ("join", self._join.counters()),
        )
        for name, counters in sockets:
            for reason, count in counters.refused.items():
                yield name, reason, count
        for reason, count in (self._member.refused if self._member else {}).items():
            yield "control", reason, count
        yield "discovery", "advert", self._discovery.refused


def _fingerprint(kept: object) -> bytes | None:
    return bytes.fromhex(kept) if isinstance(kept, str) else None
