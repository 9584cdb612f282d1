"""The configuration of a node: one table of settings, read from flags, environment and a TOML file.

Pure: text and mappings in, a `Config` or every fault at once out.  Files are read in
`node.settings.config_files`.  A key of the file has the name of its flag (`new-mesh` or `new_mesh`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    model_validator,
)

from mesh.limits import Rates, parse_rate
from mesh.membership import REPLACE_MS
from node.backup.destination import Destination, parse_destination
from node.consensus.compaction import KEEP_BYTES, KEEP_ENTRIES, Keep
from node.settings.addresses import API_DEFAULT, LOOPBACK_HOSTS, PORT_DEFAULT, split_endpoint
from node.settings.config_text import ConfigFault, ConfigFaultsError, Place, nearest, parse_toml
from node.settings.sections import (
    SLOTS_MAX,
    HistoryConfig,
    ScheduleConfig,
    Section,
    WorkConfig,
)

ENVIRONMENT = {
    "DARKSTREAM_HOME": "home",
    "DARKSTREAM_API": "api",
    "DARKSTREAM_FFMPEG": "ffmpeg",
    "DARKSTREAM_SEEDS": "seed",
}
CONFIG_VARIABLE = "DARKSTREAM_CONFIG"
SEEDS_MAX = 64
LogLevel = Literal["debug", "info", "warning", "error"]
COMPONENTS = (
    "backup",
    "consensus",
    "coordinator",
    "discovery",
    "gateway",
    "join",
    "ledger",
    "media",
    "mesh",
    "node",
    "owner",
    "requests",
    "transfer",
    "transport",
    "worker",
)
"""Everything that logs under a name of its own, and can be given a level of its own."""


def _endpoint(text: str) -> str:
    split_endpoint(text)
    return text


def _seed(text: str) -> str:
    _, port = split_endpoint(text, PORT_DEFAULT)
    if port == 0:
        raise ValueError(f"{text!r}: a seed needs the port that the other node listens on")
    return text


def _listen(text: str) -> str:
    _, port = split_endpoint(text)
    if port > 65_533:
        raise ValueError(f"port {port} leaves no room for bulk and join, the next two ports")
    return text


def _loopback(text: str) -> str:
    host, _ = split_endpoint(text)
    if host not in LOOPBACK_HOSTS:
        raise ValueError(
            f"{host} is no loopback address: the API is served to this machine only (127.0.0.1)"
        )
    return text


def _path(text: str) -> str:
    if not re.match(r"(/|~|[A-Za-z]:[\\/]|\\\\)", text) or "\x00" in text:
        raise ValueError(f"{text!r} is not absolute: begin with / or ~")
    return text


def _destination(text: str) -> str:
    parse_destination(text)
    return text


def _program(text: str) -> str:
    return _path(text) if "/" in text or "\\" in text else text


def _named_levels(levels: dict[str, str]) -> dict[str, str]:
    for name in levels:
        if name not in COMPONENTS:
            raise ValueError(f"unknown component {name!r}{nearest(name, COMPONENTS)}")
    return levels


def _as_tuple(value: Any) -> Any:  # noqa: ANN401 - a value of the file, judged by the field's own type
    return tuple(value) if isinstance(value, list) else value


AbsolutePath = Annotated[str, AfterValidator(_path)]
Texts = BeforeValidator(_as_tuple)
"""TOML has arrays only; the configuration is frozen."""


class LogConfig(Section):
    """What is told on stderr: a level, other levels for components, and the form."""

    level: LogLevel = "info"
    format: Literal["text", "json"] = "text"
    levels: Annotated[dict[str, LogLevel], AfterValidator(_named_levels)] = Field(
        default_factory=dict[str, LogLevel]
    )


class Timings(Section):
    """Durations in milliseconds; the relations between them are checked, change them together."""

    heartbeat_ms: int = Field(default=100, ge=10, le=60_000)
    """A leader's word to its followers."""
    election_min_ms: int = Field(default=500, ge=50, le=600_000)
    election_max_ms: int = Field(default=1_000, ge=100, le=1_200_000)
    worker_heartbeat_ms: int = Field(default=2_000, ge=50, le=600_000)
    worker_suspect_ms: int = Field(default=6_000, ge=100, le=600_000)
    """No new work for a worker that was silent for so long."""
    worker_silent_ms: int = Field(default=20_000, ge=200, le=3_600_000)
    """The coordinator takes the leases back."""
    hand_back_ms: int = Field(default=15_000, ge=100, le=3_600_000)
    """A worker hands nothing back later than this after the last heartbeat that was answered."""
    voter_silent_ms: int = Field(default=REPLACE_MS, ge=1_000, le=86_400_000)
    """A voter silent for so long is replaced by a node that does not vote yet; the coordinator's counts."""
    look_ms: int = Field(default=3_000, ge=0, le=600_000)
    """First start: how long a node looks for a mesh before it may form one."""
    shutdown_ms: int = Field(default=30_000, ge=0, le=3_600_000)
    """After SIGTERM, leases are given back at the latest then."""

    @model_validator(mode="after")
    def _related(self) -> Self:
        if self.election_min_ms < 3 * self.heartbeat_ms:
            raise ValueError("election_min_ms must be at least 3 times heartbeat_ms")
        if 2 * self.election_max_ms < 3 * self.election_min_ms:
            raise ValueError(
                "election_max_ms must be at least one and a half times election_min_ms"
            )
        if self.voter_silent_ms < 4 * self.election_max_ms:
            raise ValueError("voter_silent_ms must be at least 4 times election_max_ms")
        if self.worker_suspect_ms < 2 * self.worker_heartbeat_ms:
            raise ValueError("worker_suspect_ms must be at least twice worker_heartbeat_ms")
        if not self.worker_suspect_ms <= self.hand_back_ms < self.worker_silent_ms:
            raise ValueError(
                "worker_suspect_ms <= hand_back_ms < worker_silent_ms must hold,"
                " or a result could come back after its lease was given to another"
            )
        return self


class LedgerConfig(Section):
    """How much of the replicated log is kept behind the ledger.

    A node that was away for longer gets the whole ledger as a snapshot, so more costs disk and less
    costs transfers; whichever of the two is reached first counts.
    """

    keep_entries: int = Field(default=KEEP_ENTRIES, ge=16, le=10_000_000)
    """Entries kept behind what is applied; who lacks more gets the whole ledger as a snapshot."""
    keep_mib: int = Field(default=KEEP_BYTES >> 20, ge=1, le=1 << 20)
    """The same in MiB of commands, whichever is less."""

    @property
    def keep(self) -> Keep:
        """The two as the driver wants them."""
        return Keep(entries=self.keep_entries, bytes=self.keep_mib << 20)


def _rate(text: str) -> str:
    parse_rate(text)
    return text


class TransferConfig(Section):
    """How fast films come and go: `20MB/s`, `100Mbit/s`, `off`; `mesh-cli nodes limit` changes it while it runs."""

    up: Annotated[str, AfterValidator(_rate)] = "off"
    """To other nodes, all together."""
    down: Annotated[str, AfterValidator(_rate)] = "off"
    """From other nodes, all together."""
    cache_gib: int = Field(default=32, ge=0, le=1 << 20)
    """Fetched films, or parts of them, that are kept for the next attempt, profile or piece; 0: none."""
    cache_days: int = Field(default=7, ge=1, le=3_650)
    """And for how long after their last use."""

    compress: bool = True
    """Bytes that shrink travel compressed (zstd): ledgers and raw pictures do, films do not and are left alone."""

    @property
    def cache(self) -> dict[str, int]:
        """The bounds of the cache as `Films` wants them."""
        return {
            "cache_bytes_max": self.cache_gib << 30,
            "cache_age_max_ms": self.cache_days * 24 * 3_600_000,
        }

    @property
    def rates(self) -> Rates:
        """The two in bytes a second."""
        return Rates(up=parse_rate(self.up), down=parse_rate(self.down))


class BackupConfig(Section):
    """Backups that the node makes by itself while it works; see docs/backup.md."""

    archive: AbsolutePath | None = None
    """A folder for snapshots of the ledger and all that was decided since; nodes may share it."""
    archive_every_s: int = Field(default=60, ge=1, le=86_400)
    """What is new is archived so often."""
    litestream: Annotated[str, AfterValidator(_destination)] | None = None
    """A folder, `s3://BUCKET/PATH` or `sftp://USER@HOST/PATH`: the coordinator's node mirrors the ledger to it."""
    litestream_every_s: int = Field(default=10, ge=1, le=86_400)
    """What is new is mirrored so often."""
    litestream_program: Annotated[str, Field(min_length=1), AfterValidator(_program)] | None = None
    """The litestream to use; else the one that was installed with DarkStream, else the one in PATH."""
    sftp_key: AbsolutePath | None = None
    """The private key's file, for sftp."""
    sftp_host_key: str | None = Field(default=None, pattern=r"^[a-z0-9@.-]+ [A-Za-z0-9+/=]+$")
    """The host's public key, for sftp, as `ssh-keyscan HOST` prints it behind the name: `ssh-ed25519 AAAA...`."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        sftp = self.destination is not None and self.destination.kind == "sftp"
        if sftp and (self.sftp_key is None or self.sftp_host_key is None):
            raise ValueError("sftp needs sftp_key and sftp_host_key: a stranger is never trusted")
        return self

    @property
    def destination(self) -> Destination | None:
        """Where litestream writes."""
        return None if self.litestream is None else parse_destination(self.litestream)


class Config(Section):
    """Everything a node can be told.  Paths are absolute texts; `None` means: decide by yourself."""

    home: AbsolutePath
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    join: str | None = Field(default=None, min_length=1, max_length=512, repr=False)
    join_file: AbsolutePath | None = None
    seed: Annotated[tuple[Annotated[str, AfterValidator(_seed)], ...], Texts] = Field(
        default=(), max_length=SEEDS_MAX
    )
    new_mesh: bool = False
    open: bool = False
    admission: Literal["ask", "closed"] = "ask"
    """`closed`: strangers are heard only while an invitation is open."""
    role: Literal["full", "witness"] = "full"
    interface: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=64)], ...], Texts] = (
        Field(default=(), max_length=64)
    )
    listen: Annotated[str, AfterValidator(_listen)] = f"0.0.0.0:{PORT_DEFAULT}"
    api: Annotated[str, AfterValidator(_endpoint), AfterValidator(_loopback)] = API_DEFAULT
    allow: Annotated[tuple[AbsolutePath, ...], Texts] = Field(default=(), max_length=1_000)
    """Folders of films beside the home directory of the user."""
    slots: int | None = Field(default=None, ge=0, le=SLOTS_MAX)
    ffmpeg: Annotated[str, Field(min_length=1), AfterValidator(_program)] | None = None
    """A path, or a name that is looked up in PATH."""
    software_vulkan: bool = False
    """Lets a Vulkan device that is the processor itself encode: slow, and no GPU."""
    log: LogConfig = Field(default_factory=LogConfig)
    timings: Timings = Field(default_factory=Timings)
    ledger: LedgerConfig = Field(default_factory=LedgerConfig)
    backup: BackupConfig = Field(default_factory=BackupConfig)
    transfer: TransferConfig = Field(default_factory=TransferConfig)
    history: HistoryConfig = Field(default_factory=HistoryConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    work: WorkConfig = Field(default_factory=WorkConfig)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.open and self.admission == "closed":
            raise ValueError('open = true and admission = "closed" contradict each other')
        if self.new_mesh and (self.join or self.join_file):
            raise ValueError("new-mesh and join contradict each other: form a mesh, or join one")
        if self.join and self.join_file:
            raise ValueError("join and join-file: give one of them")
        return self

    @property
    def seeds(self) -> tuple[tuple[str, int], ...]:
        """Hosts and control ports of the seeds."""
        return tuple(split_endpoint(seed, PORT_DEFAULT) for seed in self.seed)

    @property
    def listen_host(self) -> str:
        """The address that control, bulk and join are bound to."""
        return split_endpoint(self.listen)[0]

    @property
    def ports(self) -> tuple[int, int, int]:
        """Control, bulk, join; three zeros: each takes a free one."""
        port = split_endpoint(self.listen)[1]
        return (port, port + 1, port + 2) if port else (0, 0, 0)

    @property
    def api_address(self) -> tuple[str, int]:
        """Host and port of the API; port 0 takes a free one."""
        return split_endpoint(self.api)


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What was found: flags by key (only those typed), environment, the file's name and text if any."""

    flags: Mapping[str, Any]
    environment: Mapping[str, str]
    file: str = ""
    text: str = ""


def read_config(given: Given, defaults: Mapping[str, Any]) -> Config:
    """The configuration by precedence flag, environment, file, default.

    `defaults` are those that only the machine knows (`home`, `name`).  Raises `ConfigFaultsError`
    with every fault of every source.
    """
    values, places, faults = parse_toml(given.text)
    origin = {key: (given.file, place) for key, place in places.items()}
    found = [ConfigFault(given.file, f.line, f.key, f.what, f.todo) for f in faults]
    merged: dict[str, Any] = {**defaults, **_canonical(values)}
    for variable, key in ENVIRONMENT.items():
        if text := given.environment.get(variable, ""):
            merged[key] = _seeds_of(text) if key == "seed" else text
            origin[(key,)] = (variable, Place(0, key))
    for key, value in given.flags.items():
        section, _, name = key.rpartition(".")
        if section and isinstance(merged.get(section, {}), dict):
            merged[section] = {**merged.get(section, {}), name: value}
        elif not section:
            merged[key] = value
        path = (section, name) if section else (key,)
        origin[path] = (f"--{key.replace('.', '-').replace('_', '-')}", Place(0, ""))
    try:
        config = Config.model_validate(merged)
    except ValidationError as error:
        found += _faults_of(error, origin, given.file)
    else:
        if not found:
            return config
    raise ConfigFaultsError(sorted(found))


def _seeds_of(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _canonical(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key.replace("-", "_"): _canonical(value) if isinstance(value, dict) else value
        for key, value in values.items()
    }


_SECTIONS: dict[str, type[Section]] = {
    "log": LogConfig,
    "timings": Timings,
    "ledger": LedgerConfig,
    "backup": BackupConfig,
    "transfer": TransferConfig,
    "history": HistoryConfig,
    "schedule": ScheduleConfig,
    "work": WorkConfig,
}
_HINTS = {
    "string_type": "write it as a text in quotes",
    "int_type": "write it as a whole number, without quotes",
    "bool_type": "write true or false, without quotes",
    "tuple_type": 'write it as a list, as in ["one", "two"]',
    "dict_type": "write it as a table",
    "model_type": "write it as a table, [section]",
}


def _faults_of(
    error: ValidationError, origin: Mapping[tuple[str, ...], tuple[str, Place]], file: str
) -> list[ConfigFault]:
    faults: list[ConfigFault] = []
    for fault in error.errors(include_url=False):
        path = tuple(str(part) for part in fault["loc"] if isinstance(part, str))
        source, place = _where(path, origin, file)
        key = ".".join(path).replace("_", "-") if not place.name else place.name
        what, todo = fault["msg"].removeprefix("Value error, "), _HINTS.get(fault["type"], "")
        if path and fault["type"] == "extra_forbidden":
            *section, name = path
            model = _SECTIONS.get(section[0], Config) if section else Config
            names = [known.replace("_", "-") for known in model.model_fields]
            what = f"unknown key{nearest(name.replace('_', '-'), names)}"
        elif fault["type"] == "string_too_short":
            what, todo = "it is empty", "give it a value, or leave it out"
        elif fault["type"] == "string_pattern_mismatch" and path == ("name",):
            what = f"{str(fault['input'])[:80]!r} is no name of a node"
            todo = "use up to 63 letters, digits, dots, hyphens; begin with a letter or digit"
        faults.append(ConfigFault(source, place.line, key, what, todo))
    return faults


def _where(
    path: tuple[str, ...], origin: Mapping[tuple[str, ...], tuple[str, Place]], file: str
) -> tuple[str, Place]:
    """The nearest place that is known for a key: its own line, else its table's."""
    for length in range(len(path), 0, -1):
        if path[:length] in origin:
            return origin[path[:length]]
    return (file or "configuration", Place(0, ""))
