"""How much a node does: what a person sets holds at once, over a restart, and gives way to the configuration again."""

import asyncio
from pathlib import Path

import pytest

from mesh.errors import UsageError, WireError
from mesh.ids import NodeId
from mesh.limits import RATE_BYTES_S_MAX, LinkRates, Rates, parse_rate, rate_text
from node.requests import Requests
from node.work.limiting import LIMITS, METHOD, Held, Limiting, NodeLimits, SetLimits
from node.work.limits_files import KeptFile

CONFIGURED = Rates(up=5, down=7)


class Stand:
    def __init__(self, file: Path) -> None:
        self.rates: list[LinkRates] = []
        self.slots: list[tuple[int | None, dict[str, int]]] = []
        self.limiting = Limiting(
            store=KeptFile(file, LIMITS, NodeLimits),
            configured=CONFIGURED,
            use_rates=self.rates.append,
            use_slots=lambda slots, devices: self.slots.append((slots, dict(devices))),
        )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "limits"


def test_a_fresh_node_does_as_configured(file: Path) -> None:
    stand = Stand(file)
    assert stand.rates == [LinkRates(node=CONFIGURED)]
    assert stand.slots == [(None, {})]
    assert not file.exists()


def test_what_is_set_holds_at_once_and_after_a_restart(file: Path) -> None:
    stand = Stand(file)
    assert stand.limiting.change(SetLimits(slots=3, up=20)) == Held(slots=3, up=20, down=7)
    assert stand.limiting.change(SetLimits(down=0)) == Held(slots=3, up=20, down=0)
    assert stand.rates[-1].node == Rates(up=20, down=0)
    again = Stand(file)
    assert again.rates == [LinkRates(node=Rates(up=20, down=0))]
    assert again.slots == [(3, {})]
    assert again.limiting.change(SetLimits(slots=-1, up=-1, down=-1)) == Held(
        slots=None, up=5, down=7
    )
    assert Stand(file).rates[-1].node == CONFIGURED


def test_a_link_has_rates_of_its_own_until_they_are_off(file: Path) -> None:
    stand = Stand(file)
    assert stand.limiting.change(SetLimits(link="anna", up=9)) == Held(slots=None, up=9, down=0)
    stand.limiting.change(SetLimits(link="anna", down=8))
    assert stand.rates[-1].links == {NodeId("anna"): Rates(up=9, down=8)}
    stand.limiting.change(SetLimits(link="anna", up=0, down=-1))
    assert stand.rates[-1].links == {}


@pytest.mark.parametrize(
    "wrong",
    [
        SetLimits(up=-2),
        SetLimits(down=RATE_BYTES_S_MAX + 1),
        SetLimits(slots=-2),
        SetLimits(slots=9_999),
    ],
)
def test_values_that_make_no_sense_change_nothing(file: Path, wrong: SetLimits) -> None:
    stand = Stand(file)
    with pytest.raises(UsageError):
        stand.limiting.change(wrong)
    assert len(stand.rates) == 1
    assert not file.exists()


@pytest.mark.parametrize("content", [b"", b"\xc1", LIMITS.encode(SetLimits(up=1))])
def test_a_damaged_file_is_no_limit(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert KeptFile(file, LIMITS, NodeLimits).load() == NodeLimits()


def test_others_are_heard_and_nonsense_is_refused(file: Path) -> None:
    async def main() -> None:
        stand = Stand(file)
        own = NodeId("own")
        requests = Requests(lambda _, message: (requests.receive(own, message), True)[1])  # type: ignore[arg-type]  # only calls and answers are sent
        stand.limiting.listen(requests)
        body = LIMITS.encode(SetLimits(up=11))
        answer = await requests.call(own, METHOD, body, timeout_s=5)
        assert LIMITS.decode(answer) == Held(slots=None, up=11, down=7)
        with pytest.raises(WireError):
            await requests.call(own, METHOD, LIMITS.encode(NodeLimits()), timeout_s=5)
        await requests.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("20MB/s", 20_000_000),
        ("20 M", 20_000_000),
        ("1.5MiB/s", 1_572_864),
        ("500k", 500_000),
        ("100Mbit/s", 12_500_000),
        ("1 Gbit", 125_000_000),
        ("7", 7),
        ("off", 0),
        ("0", 0),
    ],
)
def test_rates_as_people_write_them(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    "text", ["", "fast", "-1", "20MB/h", "1e9", "0.1", "999999999999G", "2 bit"]
)
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match=r"rate|less"):
        parse_rate(text)


def test_rates_for_people() -> None:
    assert [rate_text(rate) for rate in (0, 9, 12_500, 20_000_000, 1_250_000_000)] == [
        "off",
        "9 B/s",
        "12.5 kB/s",
        "20 MB/s",
        "1.25 GB/s",
    ]
