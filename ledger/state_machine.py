"""The replicated state machine: `apply` is the same on every replica, at every time.

It reads no clock, draws nothing, and depends on nothing but the rows and the command.  A command
that does not fit the present state is refused by its outcome; it never raises for one that is well
formed.
"""

from typing import assert_never

from ledger import apply_jobs as jobs
from ledger import apply_leases as leases
from ledger import apply_members as members
from ledger import apply_orders as orders
from ledger import apply_submissions as submissions
from ledger.change import Change, RefusedError
from ledger.commands import (
    SINCE,
    AcceptResult,
    AddMember,
    Command,
    CreateInvitation,
    Envelope,
    ExpireLeases,
    FailAttempt,
    FailJob,
    FinishAttempt,
    FinishJob,
    FormMesh,
    GrantLeases,
    MigrateLedger,
    Outcome,
    PlanJob,
    PlanPieces,
    RecoverMesh,
    RefuseResult,
    ReleaseLeases,
    RemoveMember,
    ReportNode,
    RevokeMember,
    SpeculateLeases,
    StartPlanning,
)
from ledger.device_slots import GrantDevices, ReportSlots
from ledger.orders import (
    AddWatch,
    ChangeJobs,
    ForgetJobs,
    Order,
    PutProfile,
    PutTenant,
    ReleaseNode,
    RemoveProfile,
    RemoveTenant,
    RemoveWatch,
    StartSweep,
    StepSweep,
)
from ledger.rows import Rows
from ledger.schema import FIRST_SCHEMA
from ledger.submissions import SubmitFilms, SubmitJobs


def apply(rows: Rows, command: Command, *, index: int, envelope: Envelope) -> Outcome:
    """Applies one committed command at its log index.

    The caller undoes the rows when the outcome is not ok (a savepoint): a refused command may have
    written some before it was refused.
    """
    change = Change(
        rows=rows, index=index, at_ms=envelope.proposed_at_ms, proposer=envelope.proposer
    )
    try:
        if SINCE.get(type(command), FIRST_SCHEMA) > rows.schema:
            raise RefusedError("conflict", "the ledger does not have the form for this yet")
        _dispatch(change, command)
    except RefusedError as refused:
        return Outcome(
            ok=False, index=index, code=refused.code, what=refused.what, todo=refused.todo
        )
    return change.done()


def _dispatch(change: Change, command: Command) -> None:  # noqa: PLR0912, PLR0915 - one arm for each kind of command
    match command:
        case FormMesh():
            members.form_mesh(change, command)
        case MigrateLedger():
            members.migrate_ledger(change, command)
        case AddMember():
            members.add_member(change, command)
        case RevokeMember():
            members.revoke_member(change, command)
        case RemoveMember():
            members.remove_member(change, command)
        case RecoverMesh():
            members.recover_mesh(change, command)
        case CreateInvitation():
            members.create_invitation(change, command)
        case ReportNode():
            members.report_node(change, command)
        case ReportSlots():
            members.report_slots(change, command)
        case SubmitJobs():
            submissions.submit_jobs(change, command)
        case SubmitFilms():
            submissions.submit_films(change, command)
        case StartPlanning():
            jobs.start_planning(change, command)
        case PlanPieces():
            jobs.plan_pieces(change, command)
        case PlanJob():
            jobs.plan_job(change, command)
        case FailJob():
            jobs.fail_job(change, command)
        case GrantLeases() | GrantDevices():
            leases.grant_leases(change, command)
        case SpeculateLeases():
            leases.speculate_leases(change, command)
        case ExpireLeases():
            jobs.expire_leases(change, command)
        case ReleaseLeases():
            jobs.release_leases(change, command)
        case FinishAttempt():
            jobs.finish_attempt(change, command)
        case FailAttempt():
            jobs.fail_attempt(change, command)
        case AcceptResult():
            jobs.accept_result(change, command)
        case RefuseResult():
            jobs.refuse_result(change, command)
        case FinishJob():
            jobs.finish_job(change, command)
        case _:
            _dispatch_order(change, command)


def _dispatch_order(change: Change, command: Order) -> None:
    match command:
        case ChangeJobs():
            orders.change_jobs(change, command)
        case StartSweep():
            orders.start_sweep(change, command)
        case StepSweep():
            orders.step_sweep(change, command)
        case ForgetJobs():
            orders.forget_jobs(change, command)
        case ReleaseNode():
            orders.release_node(change, command)
        case AddWatch():
            orders.add_watch(change, command)
        case RemoveWatch():
            orders.remove_watch(change, command)
        case PutProfile():
            orders.put_profile(change, command)
        case RemoveProfile():
            orders.remove_profile(change, command)
        case PutTenant():
            orders.put_tenant(change, command)
        case RemoveTenant():
            orders.remove_tenant(change, command)
        case _:
            assert_never(command)
