"""Makes a node's duties of its configuration; knows litestream's files and the runner of children."""

import sys
from pathlib import Path
from random import SystemRandom

from node.backup.duties import Archiver, Duties, Means, Mirroring
from node.backup.litestream import SftpKeys
from node.backup.litestream_files import MirrorFolder, find_litestream
from node.media.run_ffmpeg import FFmpegRunner
from node.member import MemberNode
from node.settings.config import Config
from node.settings.home_paths import MIRROR_FOLDER


def duties_of(config: Config, member: MemberNode) -> Duties:
    """What `[backup]` asks of this member."""
    wanted = config.backup
    home = Path(config.home)
    means = Means(
        home=home,
        python=sys.executable,
        runner=FFmpegRunner(),
        host=member.driver,
        replica=member.replica,
        random=SystemRandom(),
        fault=lambda: member.quarantine.fault,
    )
    duties: list[Archiver | Mirroring] = []
    if wanted.archive is not None:
        duties.append(Archiver(means, wanted.archive, wanted.archive_every_s))
    if wanted.destination is not None:
        duties.append(
            Mirroring(
                means,
                own=member.own,
                destination=wanted.destination,
                keys=SftpKeys(key=wanted.sftp_key, host_key=wanted.sftp_host_key),
                every_s=wanted.litestream_every_s,
                find=lambda: find_litestream(wanted.litestream_program),
                mirrors=MirrorFolder(home / MIRROR_FOLDER),
            )
        )
    return Duties(duties)
