"""A program that does nothing but mDNS discovery: what it hears goes to stdout, a JSON line each.

    python -m tests.mdns_node SEED [--interface NAME]... [--tag HEX]

It advertises a node whose key follows from SEED (two digits), and what it reads on stdin is done:
`member` changes its advert.
"""

import argparse
import asyncio
import json
import sys
import threading
from typing import Any

from mesh import clock
from mesh.discovery import Advert
from mesh.discovery_mdns import MdnsDiscovery
from mesh.trust import identity_of


def advert_of(seed: int, *, member: bool = False) -> Advert:
    identity = identity_of(bytes([seed]) * 32)
    return Advert(
        node=identity.node_id,
        incarnation=f"{seed:08x}",
        public_key=identity.public_key,
        mesh_tag="0011223344556677" if member else None,
        state="member" if member else "forming",
        admission="ask",
        control_port=20_000 + seed,
        bulk_port=21_000 + seed,
        join_port=22_000 + seed,
    )


def say(**what: Any) -> None:
    sys.stdout.write(json.dumps({"at_ms": clock.monotonic_ms(), **what}) + "\n")
    sys.stdout.flush()


async def main(seed: int, interfaces: list[str]) -> None:
    loop = asyncio.get_running_loop()
    mdns = MdnsDiscovery(
        on_heard=lambda advert: say(
            event="heard",
            node=advert.node,
            state=advert.state,
            hosts=advert.hosts,
            join_port=advert.join_port,
        ),
        on_gone=lambda node: say(event="gone", node=node),
        report=lambda line: say(event="report", line=line),
        interfaces=interfaces,
    )
    ended = asyncio.Event()

    def obey() -> None:
        for line in sys.stdin:
            if line.strip() == "member":
                loop.call_soon_threadsafe(mdns.announce, advert_of(seed, member=True))
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=obey, daemon=True).start()
    mdns.announce(advert_of(seed))
    say(event="start", node=advert_of(seed).node)
    task = asyncio.create_task(mdns.run())
    await ended.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    say(event="end", refused=mdns.refused)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("seed", type=int)
    parser.add_argument("--interface", action="append", default=[])
    options = parser.parse_args()
    asyncio.run(main(options.seed, options.interface))
