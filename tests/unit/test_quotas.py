"""A submission beyond what its tenant may have waiting: refused whole, with how many would fit."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from ledger import orders as o
from ledger.jobs import Tenant
from mesh.errors import QuotaError
from node.faces.quotas import check_quota, quota_of, within_quota
from tests.ledger_helper import job_spec
from tests.work_bench import Mesh


def tenant(jobs: int = o.NO_LIMIT, size: int = o.NO_LIMIT, name: str = "guests") -> Tenant:
    return Tenant(
        name=name, share=1, slots=-1, queued_jobs=jobs, queued_bytes=size, updated_at_ms=0
    )


@pytest.mark.parametrize(
    ("said", "waiting", "films", "fit"),
    [
        (tenant(5), (3, 0), [1, 1], None),
        (tenant(5), (3, 0), [1, 1, 1], "2 of these 3 films fit"),
        (tenant(5), (9, 0), [1, 1], "0 of these 2 films fit"),
        (tenant(0), (0, 0), [1], "this film does not fit"),
        (tenant(size=100), (9, 40), [30, 30], None),
        (tenant(size=100), (9, 41), [30, 30], "1 of these 2 films fit"),
        (tenant(size=100), (9, 0), [101, 1], "0 of these 2 films fit"),
        (tenant(2, 100), (0, 0), [40, 40, 40], "2 of these 3 films fit"),
        (tenant(9, 100), (0, 0), [40, 40, 40], "2 of these 3 films fit"),
        (tenant(), (10**6, 10**15), [1], None),
    ],
)
def test_how_many_fit(
    said: Tenant, waiting: tuple[int, int], films: list[int], fit: str | None
) -> None:
    if fit is None:
        check_quota(said, *waiting, films)
        return
    with pytest.raises(QuotaError, match=fit) as refused:
        check_quota(said, *waiting, films)
    assert refused.value.what.startswith("tenant guests may have ")
    assert refused.value.code == "quota"


def test_what_it_says_names_each_limit_and_what_is_taken() -> None:
    with pytest.raises(QuotaError) as refused:
        check_quota(tenant(2, 1_000, ""), 2, 900, [5])
    assert refused.value.what == (
        "tenant (none) may have 2 films (2 wait) and 1,000 bytes of films (900 wait) waiting:"
        " this film does not fit, nothing was taken"
    )


class Parts:
    """What the gate needs of a node; the replica hears of what was acknowledged elsewhere when it is asked to."""

    def __init__(self) -> None:
        self.mesh = Mesh("anna")
        self.mesh.ledger.formed()
        self.replica = self.mesh.replica
        self.read_index = self
        self.submitting = asyncio.Lock()
        self.elsewhere: list[str] = []

    async def catch_up(self) -> None:
        for job in self.elsewhere:
            self.mesh.ledger.submitted(job, tenant="guests")
        self.elsewhere.clear()

    async def submit(self, *names: str) -> None:
        jobs = [job_spec(name, tenant="guests") for name in names]
        some: Any = self
        said = await self.replica.read(lambda reader: quota_of(reader, "guests"))
        async with within_quota(some, said, jobs):
            for name in names:
                await asyncio.sleep(0)
                self.mesh.ledger.submitted(name, tenant="guests")


def test_two_at_once_share_what_is_left_and_none_is_taken_by_half() -> None:
    async def run() -> Parts:
        parts = Parts()
        parts.mesh.ledger.must(
            o.PutTenant(name="guests", share=1, slots=-1, by="me", queued_jobs=5)
        )
        parts.elsewhere = ["e1"]
        done = await asyncio.gather(
            parts.submit("a1", "a2", "a3"), parts.submit("b1", "b2"), return_exceptions=True
        )
        assert [type(one) for one in done] == [type(None), QuotaError]
        with suppress(QuotaError):
            await parts.submit("c1")
        return parts

    parts = asyncio.run(run())
    assert parts.mesh.ledger.reader.waiting_by_tenant() == {"guests": (5, 5_000)}
    assert parts.mesh.ledger.reader.job("b1") is None


def test_without_a_quota_nobody_waits_for_anybody() -> None:
    async def run() -> None:
        parts = Parts()
        await parts.submitting.acquire()
        await parts.submit("a1")
        parts.mesh.ledger.must(o.PutTenant(name="guests", share=2, slots=0, by="me"))
        await parts.submit("a2")

    asyncio.run(asyncio.wait_for(run(), 5))
