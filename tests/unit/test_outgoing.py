"""What consensus need not say, because another word says it as well."""

import asyncio
from collections.abc import Awaitable, Callable

from mesh.ids import NodeId, RaftId
from mesh.log import Entry
from mesh.messages import Append, AppendAck, Message, Vote
from node.consensus.outgoing import NEWS_WAIT_S, Outgoing
from node.signals import Signal

A, B = RaftId("a.00000000"), RaftId("b.00000000")
ENTRY = Entry(index=8, term=1, kind="command", data=b"x")


def append(to: RaftId, commit: int, *entries: Entry) -> Append:
    return Append(
        sender=A, to=to, term=1, prev_index=7, prev_term=1, entries=entries, commit=commit
    )


def ack(index: int, *, to: RaftId = A, term: int = 1, ok: bool = True) -> AppendAck:
    return AppendAck(sender=B, to=to, term=term, ok=ok, index=index)


def said(body: Callable[[Outgoing, list[Message]], Awaitable[None]]) -> list[Message]:
    async def main() -> list[Message]:
        sent: list[Message] = []

        def send(_: NodeId, message: Message) -> bool:
            sent.append(message)
            return True

        outgoing = Outgoing(send)
        await body(outgoing, sent)
        outgoing.close()
        return sent

    return asyncio.run(main())


def test_the_news_of_a_commit_travels_with_the_next_entries() -> None:
    async def body(outgoing: Outgoing, sent: list[Message]) -> None:
        outgoing.say(append(B, 7))
        assert sent == []
        outgoing.say(append(B, 7, ENTRY))
        await Signal().wait(0, NEWS_WAIT_S * 4)

    assert said(body) == [append(B, 7, ENTRY)]


def test_without_entries_the_newest_news_leaves_after_a_moment_to_each() -> None:
    async def body(outgoing: Outgoing, sent: list[Message]) -> None:
        outgoing.say(append(B, 6))
        outgoing.say(append(B, 7))
        outgoing.say(append(A, 7))
        await Signal().wait(0, NEWS_WAIT_S * 4)
        assert len(sent) == 2
        outgoing.say(append(A, 8))
        await Signal().wait(0, NEWS_WAIT_S * 4)

    assert said(body) == [append(B, 7), append(A, 7), append(A, 8)]


def test_whoever_waits_for_the_news_hears_it_at_once_and_once() -> None:
    async def body(outgoing: Outgoing, sent: list[Message]) -> None:
        outgoing.tell(NodeId("b"))
        outgoing.say(append(B, 7))
        outgoing.tell(NodeId("b"))
        assert sent == [append(B, 7)]
        outgoing.tell(NodeId("b"))

    assert said(body) == [append(B, 7)]


def test_of_the_acknowledgements_of_a_batch_only_what_no_later_one_covers_is_said() -> None:
    vote = Vote(sender=B, to=A, term=1, granted=True, pre=False)
    refusal = ack(5, ok=False)
    other, later_term, lower = ack(4, to=RaftId("c.00000000")), ack(3, term=2), ack(7)
    batch = [ack(5), other, vote, ack(8), refusal, lower, later_term]

    async def body(outgoing: Outgoing, sent: list[Message]) -> None:
        outgoing.say_all(batch)

    assert said(body) == [other, vote, ack(8), refusal, lower, later_term]
