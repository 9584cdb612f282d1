"""nginx and sshd on loopback with keys and configuration of the bench's own, and how to fetch from them."""

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mesh.clock import monotonic_ms

HTTPS, SCP, RSYNC = "https (nginx, curl)", "scp (aes128-gcm)", "rsync (ssh, aes128-gcm)"
TOOLS: Final = ("nginx", "curl", "sshd", "scp", "ssh-keygen", "rsync", "openssl")
SET_UP: Final = "apt-get install -y nginx-light curl openssh-server openssh-client rsync openssl"
CIPHER: Final = "aes128-gcm@openssh.com"
"""The fastest of ssh's on processors with AES: the defaults are slower."""
START_MS: Final = 10_000

_NGINX = """
daemon off; user {user}; worker_processes auto; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 256; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  server {{
    listen {host}:{port} ssl; root {root};
    ssl_certificate {folder}/tls.pem; ssl_certificate_key {folder}/tls.key; ssl_protocols TLSv1.3;
  }}
}}
"""
_SSHD = """
Port {port}
ListenAddress {host}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
Subsystem sftp internal-sftp
"""


def missing() -> list[str]:
    """Tools that this machine lacks."""
    return [tool for tool in TOOLS if find(tool) is None]


def find(tool: str) -> str | None:
    """Servers lie where an ordinary user's path does not look."""
    return shutil.which(tool, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin:/sbin")


def needed(tool: str) -> str:
    """The tool's path, or the end of the bench with the line that installs it."""
    found = find(tool)
    if found is None:
        raise SystemExit(f"error[bench]: {tool} is missing; {SET_UP}")
    return found


@dataclass(frozen=True, slots=True)
class Rivals:
    """Both servers, serving one folder."""

    folder: Path
    root: Path
    host: str
    https_port: int
    ssh_port: int
    nginx: subprocess.Popen[bytes]
    sshd: subprocess.Popen[bytes]

    def server_of(self, way: str) -> int:
        """Process id of the server that this way uses."""
        return (self.nginx if way == HTTPS else self.sshd).pid

    def argv(self, way: str, what: str, to: Path) -> list[str]:
        """The command that brings `what`, a file or folder below the root, into the folder `to`."""
        source = self.root / what
        ssh = [*("-F", "none", "-i", str(self.folder / "user_key"), "-o", f"Port={self.ssh_port}")]
        ssh += [
            "-o",
            f"UserKnownHostsFile={self.folder / 'known_hosts'}",
            "-o",
            f"Ciphers={CIPHER}",
        ]
        match way:
            case _ if way == SCP:
                return [needed("scp"), *ssh, "-q", "-r", f"{self.host}:{source}", str(to)]
            case _ if way == RSYNC:
                # Whole files: both ends on one machine, and there is nothing to compare with.
                shell = " ".join([needed("ssh"), *ssh])
                return [needed("rsync"), "-rW", "-e", shell, f"{self.host}:{source}", str(to)]
            case _:
                return [needed("curl"), "-sS", "--fail", "-K", str(self._urls(what, to))]

    def _urls(self, what: str, to: Path) -> Path:
        source, config = self.root / what, self.folder / "urls"
        names = [what]
        if source.is_dir():
            (to / what).mkdir()
            names = [f"{what}/{path.name}" for path in source.iterdir()]
        lines = [f'cacert = "{self.folder / "tls.pem"}"', "tlsv1.3"]
        for name in names:
            lines += [f'url = "https://{self.host}:{self.https_port}/{name}"']
            lines += [f'output = "{to / name}"']
        config.write_text("\n".join(lines) + "\n")
        return config


def free_port(host: str) -> int:
    """A port that nobody has now."""
    with socket.create_server((host, 0)) as taken:
        return int(taken.getsockname()[1])


def _make_keys(folder: Path, host: str, ssh_port: int) -> None:
    for name in ("host_key", "user_key"):
        argv = [needed("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(argv, check=True)
    public = (folder / "host_key.pub").read_text()
    (folder / "known_hosts").write_text(f"[{host}]:{ssh_port} {public}")
    argv = [needed("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt"]
    argv += ["ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=bench"]
    argv += ["-addext", f"subjectAltName=IP:{host}", "-keyout", str(folder / "tls.key")]
    subprocess.run([*argv, "-out", str(folder / "tls.pem")], check=True, capture_output=True)


@contextlib.contextmanager
def rivals(
    folder: Path, root: Path, host: str = "127.0.0.1", prefix: list[str] | None = None
) -> Iterator[Rivals]:
    """Starts both servers (with `prefix` before their commands) and ends them."""
    https_port, ssh_port = free_port("127.0.0.1"), free_port("127.0.0.1")
    _make_keys(folder, host, ssh_port)
    user = "root" if os.geteuid() == 0 else "nobody"
    values = {"folder": folder, "root": root, "host": host, "user": user}
    (folder / "nginx.conf").write_text(_NGINX.format(port=https_port, **values))
    (folder / "sshd_config").write_text(_SSHD.format(port=ssh_port, **values))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(
            mode=0o755, exist_ok=True
        )  # sshd's own, made by its service elsewhere
    before = prefix or []
    nginx = [needed("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf")]
    sshd = [needed("sshd"), "-D", "-e", "-f", str(folder / "sshd_config")]
    with (folder / "servers.log").open("wb") as log:
        processes = [subprocess.Popen([*before, *argv], stderr=log) for argv in (nginx, sshd)]
    try:
        made = Rivals(folder, root, host, https_port, ssh_port, *processes)
        _wait_for(made, before)
        yield made
    finally:
        for process in processes:
            process.terminate()
            process.wait()


def _wait_for(made: Rivals, prefix: list[str]) -> None:
    deadline = monotonic_ms() + START_MS
    url = f"https://{made.host}:{made.https_port}/"
    check = [
        *prefix,
        needed("curl"),
        "-s",
        "-o",
        "/dev/null",
        "--cacert",
        str(made.folder / "tls.pem"),
    ]
    probe = [*prefix, needed("ssh-keyscan"), "-T", "1", "-p", str(made.ssh_port), made.host]
    for argv in ([*check, url], probe):
        while subprocess.run(argv, check=False, capture_output=True).returncode != 0:
            if monotonic_ms() > deadline:
                log = (made.folder / "servers.log").read_text(errors="replace")
                raise SystemExit(f"error[bench]: a server does not start:\n{log[-2_000:]}")
