-- Migration 3: orders about many jobs, nodes that fail too often, watched folders, forgotten jobs,
-- places of jobs, tenants, slots of devices.
-- See ../schema.sql for the prose.
DROP VIEW nodes;
DROP VIEW watches;
DROP VIEW attempts;

ALTER TABLE node RENAME TO node_2;
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
INSERT INTO node SELECT *, '[]', '', '[]' FROM node_2;
DROP TABLE node_2;

DROP TABLE watch;
CREATE TABLE watch (
    id TEXT PRIMARY KEY,
    node TEXT NOT NULL,
    folder TEXT NOT NULL,
    profile TEXT NOT NULL,
    settings TEXT NOT NULL
) STRICT;

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

CREATE TABLE converted (
    id TEXT PRIMARY KEY,
    output TEXT NOT NULL,
    at_ms INTEGER NOT NULL
) STRICT;

ALTER TABLE attempt ADD COLUMN device TEXT NOT NULL DEFAULT '';

ALTER TABLE job ADD COLUMN place TEXT NOT NULL DEFAULT '[]';
CREATE INDEX job_to_plan_by_kind ON job (owner, tenant, definition, place, priority DESC) WHERE state = 'queued' AND planned = 0;

CREATE TABLE tenant (
    name TEXT PRIMARY KEY,
    share INTEGER NOT NULL,
    slots INTEGER NOT NULL,
    queued_jobs INTEGER NOT NULL,
    queued_bytes INTEGER NOT NULL,
    updated_at_ms INTEGER NOT NULL
) STRICT;

CREATE INDEX job_by_content ON job (source_bytes, source_digest) WHERE source_digest <> '';
CREATE INDEX job_by_end ON job (finished_at_ms) WHERE finished_at_ms > 0;
CREATE INDEX attempt_by_result ON attempt (result_bytes, result_digest) WHERE state = 'accepted';
CREATE INDEX attempt_counted ON attempt (granted_at_ms, node, state, job, frames, encode_ms, fetch_ms, fetched_bytes, result_bytes);

CREATE VIEW nodes AS
SELECT node.node AS id, coalesce((SELECT name FROM member WHERE member.node = node.node), node.node)
       AS name, node.ffmpeg, node.encoders, node.slots, node.cpus, node.platform, node.version,
       node.devices, node.reported_at_ms AS reported_ms,
       nullif(node.quarantine, '') AS quarantine, node.device_slots
FROM node;

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

CREATE VIEW watches AS SELECT id, node, folder, profile, settings FROM watch;

CREATE VIEW tenants AS
SELECT name, share, nullif(slots, -1) AS slots, updated_at_ms AS updated_ms,
       nullif(queued_jobs, -1) AS queued_jobs, nullif(queued_bytes, -1) AS queued_bytes
FROM tenant;
