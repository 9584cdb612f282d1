-- The ledger of a mesh, version 2: the sum of all migrations (a test proves it).
-- Base tables have singular names and are nobody's interface; the views at the end are, and stay.
-- Every table is STRICT.  Times are milliseconds since 1970 by the clock of the node that proposed.

-- One row: how far the log is applied, and the rolling checksum over all row changes up to there.
-- Written in the transaction of the changes themselves.
CREATE TABLE state (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    applied_index INTEGER NOT NULL,
    applied_term INTEGER NOT NULL,
    checksum BLOB NOT NULL
) STRICT;

-- Outcomes of the latest commands by id, so that a repeated command answers the same and does nothing.
CREATE TABLE command (
    id TEXT PRIMARY KEY,
    log_index INTEGER NOT NULL,
    outcome BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX command_by_index ON command (log_index);

-- The one mesh that this ledger belongs to.
CREATE TABLE mesh (
    id TEXT PRIMARY KEY,
    founder TEXT NOT NULL,
    founder_key BLOB NOT NULL,
    epoch INTEGER NOT NULL,
    members_epoch INTEGER NOT NULL,
    formed_at_ms INTEGER NOT NULL
) STRICT;

-- Who may speak.  This table is the trust store of every node.
CREATE TABLE member (
    node TEXT PRIMARY KEY,
    raft_id TEXT NOT NULL,
    public_key BLOB NOT NULL,
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    state TEXT NOT NULL,
    since_ms INTEGER NOT NULL
) STRICT;

-- Verifiers of open tokens.  Secret: in no view.
CREATE TABLE invitation (
    id TEXT PRIMARY KEY,
    key BLOB NOT NULL,
    uses_left INTEGER NOT NULL,
    expires_at_ms INTEGER NOT NULL
) STRICT;

-- What each member can do, as it said last; strikes is a JSON list of jobs, quarantine why it gets no work,
-- device_slots JSON of [device, label, slots, encoders]; slots are the processor's.
CREATE TABLE node (
    node TEXT PRIMARY KEY,
    ffmpeg TEXT NOT NULL,
    encoders TEXT NOT NULL,
    slots INTEGER NOT NULL,
    cpus INTEGER NOT NULL,
    platform TEXT NOT NULL,
    version TEXT NOT NULL,
    devices TEXT NOT NULL,
    reported_at_ms INTEGER NOT NULL,
    strikes TEXT NOT NULL,
    quarantine TEXT NOT NULL,
    device_slots TEXT NOT NULL
) STRICT;

-- The texts of profiles, as they were when jobs were submitted; id is the seq of the first job.
CREATE TABLE definition (
    id INTEGER PRIMARY KEY,
    text TEXT NOT NULL UNIQUE
) STRICT;

-- One film, one profile, one output.  planned is 0 or 1.  place is a JSON list: where it may run.  seq grows with age and is the rowid, so
-- every index ends with it: log index * 2^10 + place in the command.
CREATE TABLE job (
    id TEXT NOT NULL UNIQUE,
    seq INTEGER PRIMARY KEY,
    state TEXT NOT NULL,
    planned INTEGER NOT NULL,
    owner TEXT NOT NULL,
    source TEXT NOT NULL,
    source_bytes INTEGER NOT NULL,
    source_mtime_ns INTEGER NOT NULL,
    source_inode INTEGER NOT NULL,
    output TEXT NOT NULL,
    overwrite INTEGER NOT NULL,
    profile TEXT NOT NULL,
    definition INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    tenant TEXT NOT NULL,
    split INTEGER NOT NULL,
    source_digest TEXT NOT NULL,
    probe_json TEXT NOT NULL,
    plan_json TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    updated_at_ms INTEGER NOT NULL,
    finished_at_ms INTEGER NOT NULL,
    error_code TEXT NOT NULL,
    error TEXT NOT NULL,
    todo TEXT NOT NULL,
    error_node TEXT NOT NULL
    -- As ALTER TABLE writes it.
    , place TEXT NOT NULL DEFAULT '[]') STRICT;
CREATE INDEX job_by_state ON job (state);
CREATE INDEX job_by_owner ON job (owner, state);
CREATE INDEX job_by_tenant ON job (tenant);
CREATE INDEX job_to_plan ON job (owner, priority DESC) WHERE state = 'queued' AND planned = 0;
-- The same by what they ask for, so that what waits for a node, a label or a quota hides no other.
CREATE INDEX job_to_plan_by_kind ON job (owner, tenant, definition, place, priority DESC) WHERE state = 'queued' AND planned = 0;
-- All jobs of a command were made at one time: its first stands for them.
CREATE INDEX job_by_creation ON job (created_at_ms) WHERE seq & 1023 = 0;
-- Two live jobs of an owner must never write one file: looked up at submission.
CREATE INDEX job_by_output ON job (output);
-- Films whose content was converted already, and what is old enough to be forgotten.
CREATE INDEX job_by_content ON job (source_bytes, source_digest) WHERE source_digest <> '';
CREATE INDEX job_by_end ON job (finished_at_ms) WHERE finished_at_ms > 0;

-- Units of leasable work.  needs and excluded are JSON lists.
CREATE TABLE task (
    id TEXT PRIMARY KEY,
    job TEXT NOT NULL,
    seq INTEGER NOT NULL,
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    owner TEXT NOT NULL,
    needs TEXT NOT NULL,
    cost INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    tries INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    backoff_ms INTEGER NOT NULL,
    excluded TEXT NOT NULL
) STRICT;
CREATE INDEX task_by_job ON task (job);
-- The next task to lease, and how many an owner has planned ahead.
CREATE INDEX task_ready ON task (needs, priority DESC, seq) WHERE state = 'ready';
CREATE INDEX task_ready_by_owner ON task (owner) WHERE state = 'ready';

-- Leases and what became of them, with the exact command line and the end of FFmpeg's stderr.
CREATE TABLE attempt (
    id TEXT PRIMARY KEY,
    task TEXT NOT NULL,
    job TEXT NOT NULL,
    node TEXT NOT NULL,
    number INTEGER NOT NULL,
    state TEXT NOT NULL,
    token INTEGER NOT NULL,
    granted_at_ms INTEGER NOT NULL,
    ended_at_ms INTEGER NOT NULL,
    command_line TEXT NOT NULL,
    stderr_tail TEXT NOT NULL,
    encoder TEXT NOT NULL,
    ffmpeg TEXT NOT NULL,
    started_at_ms INTEGER NOT NULL,
    fetch_ms INTEGER NOT NULL,
    encode_ms INTEGER NOT NULL,
    verify_ms INTEGER NOT NULL,
    fetched_bytes INTEGER NOT NULL,
    frames INTEGER NOT NULL,
    result_bytes INTEGER NOT NULL,
    result_digest TEXT NOT NULL,
    result_json TEXT NOT NULL,
    failure TEXT NOT NULL,
    error_code TEXT NOT NULL,
    error TEXT NOT NULL,
    todo TEXT NOT NULL
    -- As ALTER TABLE writes it.
    , device TEXT NOT NULL DEFAULT '') STRICT;
CREATE INDEX attempt_by_job ON attempt (job, number);
CREATE INDEX attempt_by_task ON attempt (task, state);
CREATE INDEX attempt_by_node ON attempt (node, state);
CREATE INDEX attempt_leased ON attempt (id) WHERE state = 'leased';
-- Whether a file is one of our own results.
CREATE INDEX attempt_by_result ON attempt (result_bytes, result_digest) WHERE state = 'accepted';
-- Statistics: everything that they read, so that long texts are never walked over.
CREATE INDEX attempt_counted ON attempt (granted_at_ms, node, state, job, frames, encode_ms, fetch_ms, fetched_bytes, result_bytes);

-- History: every change of state, with the log index that made it; a job's first line is the job itself.
CREATE TABLE event (
    id INTEGER PRIMARY KEY,
    log_index INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    kind TEXT NOT NULL,
    job TEXT NOT NULL,
    node TEXT NOT NULL,
    what TEXT NOT NULL
) STRICT;
CREATE INDEX event_by_job ON event (job, id);

-- The users' own profiles and watched folders; filled by the commands of those capabilities.
CREATE TABLE profile (
    name TEXT PRIMARY KEY,
    definition TEXT NOT NULL,
    updated_at_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE watch (
    id TEXT PRIMARY KEY,
    node TEXT NOT NULL,
    folder TEXT NOT NULL,
    profile TEXT NOT NULL,
    settings TEXT NOT NULL
) STRICT;

-- Orders about many jobs, each on its way from the newest to the oldest; cursor 0: done.
CREATE TABLE sweep (
    id TEXT PRIMARY KEY,
    action TEXT NOT NULL,
    value INTEGER NOT NULL,
    states TEXT NOT NULL,
    folder TEXT NOT NULL,
    node TEXT NOT NULL,
    profile TEXT NOT NULL,
    tenant TEXT NOT NULL,
    since_ms INTEGER NOT NULL,
    until_ms INTEGER NOT NULL,
    by TEXT NOT NULL,
    cursor INTEGER NOT NULL,
    changed INTEGER NOT NULL,
    skipped INTEGER NOT NULL,
    created_at_ms INTEGER NOT NULL,
    finished_at_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX sweep_open ON sweep (created_at_ms) WHERE cursor > 0;

-- What is said of tenants: their share beside others, slots that they may have at once, and how many
-- films, of how many bytes, may wait (-1: any).
CREATE TABLE tenant (
    name TEXT PRIMARY KEY,
    share INTEGER NOT NULL,
    slots INTEGER NOT NULL,
    queued_jobs INTEGER NOT NULL,
    queued_bytes INTEGER NOT NULL,
    updated_at_ms INTEGER NOT NULL
) STRICT;

-- What jobs that were forgotten had made, by the content of the source and the profile.
CREATE TABLE converted (
    id TEXT PRIMARY KEY,
    output TEXT NOT NULL,
    at_ms INTEGER NOT NULL
) STRICT;

-- ---- Views: the interface of `ledger query`; columns are only ever added. -----------------------

CREATE VIEW jobs AS
SELECT job.id, job.state, job.planned, job.owner AS owner_id,
       coalesce((SELECT name FROM member WHERE member.node = job.owner), job.owner) AS owner,
       job.source, job.source_bytes, job.source_digest, job.output, job.profile, job.priority,
       job.tenant, job.created_at_ms AS created_ms, job.updated_at_ms AS updated_ms,
       nullif(job.finished_at_ms, 0) AS finished_ms,
       (SELECT json_extract(attempt.result_json, '$.frames') FROM attempt
         WHERE attempt.job = job.id AND attempt.state = 'accepted'
           AND json_valid(attempt.result_json)) AS frames,
       (SELECT json_extract(attempt.result_json, '$.duration_ms') FROM attempt
         WHERE attempt.job = job.id AND attempt.state = 'accepted'
           AND json_valid(attempt.result_json)) AS duration_ms,
       (SELECT coalesce(member.name, attempt.node) FROM attempt
         LEFT JOIN member ON member.node = attempt.node
         WHERE attempt.job = job.id AND attempt.state = 'accepted') AS encoded_by,
       nullif(job.error_code, '') AS error_code, nullif(job.error, '') AS error
FROM job;

CREATE VIEW tasks AS
SELECT id, job, kind, state, needs, cost, priority, tries, attempts, backoff_ms, excluded FROM task;

CREATE VIEW attempts AS
SELECT attempt.id, attempt.task, attempt.job, attempt.number, attempt.state,
       attempt.node AS node_id,
       coalesce((SELECT name FROM member WHERE member.node = attempt.node), attempt.node) AS node,
       attempt.token, attempt.granted_at_ms AS granted_ms,
       nullif(attempt.ended_at_ms, 0) AS ended_ms, attempt.encoder, attempt.ffmpeg,
       attempt.command_line, attempt.stderr_tail, attempt.fetch_ms, attempt.encode_ms,
       attempt.verify_ms, attempt.fetched_bytes, attempt.frames, attempt.result_bytes,
       attempt.result_digest, attempt.result_json, nullif(attempt.failure, '') AS failure,
       nullif(attempt.error_code, '') AS error_code, nullif(attempt.error, '') AS error,
       nullif(attempt.device, '') AS device
FROM attempt;

CREATE VIEW nodes AS
SELECT node.node AS id, coalesce((SELECT name FROM member WHERE member.node = node.node), node.node)
       AS name, node.ffmpeg, node.encoders, node.slots, node.cpus, node.platform, node.version,
       node.devices, node.reported_at_ms AS reported_ms,
       nullif(node.quarantine, '') AS quarantine, node.device_slots
FROM node;

-- The sources of jobs, as they were when they were planned.
CREATE VIEW files AS
SELECT job.source AS path, job.owner AS owner_id,
       coalesce((SELECT name FROM member WHERE member.node = job.owner), job.owner) AS owner,
       job.source_bytes AS bytes, job.source_digest AS digest, job.probe_json, job.id AS job
FROM job WHERE job.planned = 1;

CREATE VIEW profiles AS SELECT name, definition, updated_at_ms AS updated_ms FROM profile;

CREATE VIEW tenants AS
SELECT name, share, nullif(slots, -1) AS slots, updated_at_ms AS updated_ms,
       nullif(queued_jobs, -1) AS queued_jobs, nullif(queued_bytes, -1) AS queued_bytes
FROM tenant;

CREATE VIEW watches AS SELECT id, node, folder, profile, settings FROM watch;

-- The first line of a job is the job itself.
CREATE VIEW events AS
SELECT id, log_index, at_ms, kind, nullif(job, '') AS job, nullif(node, '') AS node, what FROM event
UNION ALL
SELECT (seq >> 10 << 14) | (seq & 1023), seq >> 10, created_at_ms, 'job.queued', id, owner, ''
FROM job;

CREATE VIEW members AS
SELECT node AS id, name, role, state, hex(public_key) AS public_key, since_ms FROM member;
