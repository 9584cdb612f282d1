"""`mesh-node doctor`: looks at this machine as a node would, and says what stands in its way.

It sends multicast to itself only (time to live 0) and opens a connection to each seed; nothing of
the mesh is changed.
"""

import asyncio
import errno
import shutil
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ifaddr

from mesh import clock
from mesh.errors import DarkStreamError
from node.backup.litestream_files import find_litestream
from node.cli.faults import Json
from node.detection import detect_here
from node.settings.addresses import split_endpoint
from node.settings.config import BackupConfig, Config
from node.settings.config_files import load_config
from node.settings.config_text import ConfigFaultsError
from node.settings.home_files import prepare_home
from node.settings.home_paths import API_ADDRESS_FILE, CACHE_FOLDER

DISK_BYTES_MIN = 5 << 30
"""Below it, a node can hardly hold one film and its result."""
SEED_S = 3.0
NODE_S = 1.0
"""For the node of this machine to take a connection."""
ECHO_S = 1.0
_PROBE_GROUP = "239.255.74.40"
"""Organization-local scope (RFC 2365); no mDNS responder listens there, so nobody is disturbed."""
_YEAR_MS = 31_557_600_000
YEARS = (2025, 2100)


def examine(flags: Mapping[str, Any], environment: Mapping[str, str], home: Path) -> list[Json]:
    """Every finding, good and bad: name, ok, what, todo."""
    try:
        config = load_config(flags, environment, default_home=home)
    except ConfigFaultsError as error:
        return [
            _finding("configuration", False, fault.text(), fault.todo) for fault in error.faults
        ]
    except DarkStreamError as error:
        return [_finding("configuration", False, error.what, error.todo)]
    findings = [_finding("configuration", True, "no faults"), _home(home), _disk(home), _clock()]
    findings += _ports(config, home)
    findings.append(_ffmpeg(config, home))
    findings += _backups(config.backup)
    findings += _interfaces()
    findings += [_seed(host, port) for host, port in config.seeds]
    return findings


def _finding(name: str, ok: bool, what: str, todo: str = "") -> Json:
    return {"name": name, "ok": ok, "what": what, "todo": "" if ok else todo}


def _home(home: Path) -> Json:
    try:
        prepare_home(str(home))
    except DarkStreamError as error:
        return _finding("home", False, error.what, error.todo)
    return _finding("home", True, f"{home} can be written")


def _disk(home: Path) -> Json:
    try:
        free = shutil.disk_usage(home).free
    except OSError as error:
        return _finding("disk", False, f"free space is unknown: {error.strerror}", "see home")
    what = f"{free / (1 << 30):.1f} GiB are free at {home}"
    return _finding("disk", free >= DISK_BYTES_MIN, what, "free some, or move the home with --home")


def _clock() -> Json:
    year = 1970 + clock.wall_ms() // _YEAR_MS
    what = f"the clock says {year}"
    good = YEARS[0] <= year < YEARS[1]
    return _finding("clock", good, what, "set the clock; records would carry wrong times")


def _runs(home: Path) -> bool:
    """Whether the node of this home answers."""
    with suppress(OSError, ValueError):
        host, port = split_endpoint((home / API_ADDRESS_FILE).read_text("utf-8").strip())
        with socket.create_connection((host, port), timeout=NODE_S):
            return True
    return False


def _ports(config: Config, home: Path) -> list[Json]:
    runs = _runs(home)
    wanted = [("control", config.ports[0]), ("bulk", config.ports[1]), ("join", config.ports[2])]
    places = [(name, config.listen_host, port) for name, port in wanted if port]
    host, port = config.api_address
    places += [("api", host, port)] if port else []
    findings: list[Json] = []
    for name, where, number in places:
        family = socket.AF_INET6 if ":" in where else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            try:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((where, number))
            except OSError as error:
                ours = runs and error.errno == errno.EADDRINUSE
                what = (
                    f"{name} {where}:{number} is in use, as it should be: the node of this home runs"
                    if ours
                    else f"{name} cannot be opened at {where}:{number}: {error.strerror}"
                )
                todo = "stop what uses it, or choose another port"
                findings.append(_finding("port", ours, what, todo))
            else:
                findings.append(_finding("port", True, f"{name} {where}:{number} is free"))
    return findings


def _ffmpeg(config: Config, home: Path) -> Json:
    try:
        found = asyncio.run(detect_here(config.ffmpeg, home / CACHE_FOLDER))
    except DarkStreamError as error:
        return _finding("ffmpeg", False, error.what, error.todo)
    working = [one.name for one in found.encoders if one.works]
    what = (
        f"{found.ffmpeg} {found.ffmpeg_version.split(' ')[0]}: {', '.join(working) or 'no encoder'}"
    )
    return _finding("ffmpeg", bool(working), what, "install a complete FFmpeg")


def _backups(wanted: BackupConfig) -> list[Json]:
    """Whether what `[backup]` names is there; nothing is written to it."""
    findings: list[Json] = []
    if wanted.archive is not None:
        there = Path(wanted.archive).is_dir()
        what = f"the archive's folder {wanted.archive} is {'there' if there else 'not there'}"
        findings.append(_finding("backup", there, what, "make it, or mount its disk"))
    if wanted.destination is not None:
        try:
            program = find_litestream(wanted.litestream_program)
        except DarkStreamError as error:
            findings.append(_finding("backup", False, error.what, error.todo))
        else:
            findings.append(_finding("backup", True, f"litestream is {program}"))
    return findings


def _interfaces() -> list[Json]:
    findings = [
        _multicast(str(adapter.nice_name), ip.ip)
        for adapter in ifaddr.get_adapters()
        for ip in adapter.ips
        if isinstance(ip.ip, str)
    ]
    return findings or [_finding("interface", False, "none has an IPv4 address", "connect one")]


def _multicast(name: str, address: str) -> Json:
    """Whether a datagram to a group comes back on this interface."""
    mark = f"darkstream doctor {address}".encode()
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ear,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mouth,
    ):
        try:
            ear.bind(("", 0))
            group = socket.inet_aton(_PROBE_GROUP) + socket.inet_aton(address)
            ear.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
            ear.settimeout(ECHO_S)
            mouth.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
            mouth.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)
            mouth.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
            mouth.sendto(mark, (_PROBE_GROUP, ear.getsockname()[1]))
            back = ear.recvfrom(256)[0] == mark
        except OSError as error:
            why = error.strerror or "no echo"
            todo = "use --seed with the address of another node, or allow multicast"
            what = f"{name} {address}: multicast does not come back ({why})"
            return _finding("interface", False, what, todo)
    return _finding("interface", back, f"{name} {address}: multicast comes back", "try again")


def _seed(host: str, port: int) -> Json:
    where = f"{host}:{port}"
    with suppress(OSError), socket.create_connection((host, port), timeout=SEED_S):
        return _finding("seed", True, f"{where} answers")
    todo = "start the node there, and let its firewall pass this port and the next two"
    return _finding("seed", False, f"{where} does not answer", todo)
