-- Migration 2: a job is kept once, in the order of its age, with the indexes that lists need.
-- See ../schema.sql for the prose.
DROP VIEW jobs;
DROP VIEW files;
DROP VIEW events;

CREATE TABLE definition (
    id INTEGER PRIMARY KEY,
    text TEXT NOT NULL UNIQUE
) STRICT;
INSERT INTO definition SELECT min(seq), profile_json FROM job GROUP BY profile_json;

DROP INDEX job_by_state;
DROP INDEX job_by_owner;
DROP INDEX job_by_seq;
DROP INDEX job_by_owner_age;
DROP INDEX job_by_owner_state;
DROP INDEX job_by_tenant;
DROP INDEX job_by_creation;
DROP INDEX job_by_output;
ALTER TABLE job RENAME TO job_1;
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
) STRICT;
INSERT INTO job
SELECT id, seq, state, planned, owner, source, source_bytes, source_mtime_ns, source_inode, output,
       overwrite, profile, (SELECT definition.id FROM definition WHERE text = profile_json), priority, tenant, split,
       source_digest, probe_json, plan_json, created_at_ms, updated_at_ms, finished_at_ms, error_code,
       error, todo, error_node
  FROM job_1 ORDER BY seq;
DROP TABLE job_1;
CREATE INDEX job_by_state ON job (state);
CREATE INDEX job_by_owner ON job (owner, state);
CREATE INDEX job_by_tenant ON job (tenant);
CREATE INDEX job_to_plan ON job (owner, priority DESC) WHERE state = 'queued' AND planned = 0;
CREATE INDEX job_by_creation ON job (created_at_ms) WHERE seq & 1023 = 0;
CREATE INDEX job_by_output ON job (output);
-- What the job itself tells from now on.
DELETE FROM event WHERE kind = 'job.queued'
   AND EXISTS (SELECT 1 FROM job WHERE job.id = event.job
                  AND event.id = (job.seq >> 10 << 14) | (job.seq & 1023));

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

CREATE VIEW files AS
SELECT job.source AS path, job.owner AS owner_id,
       coalesce((SELECT name FROM member WHERE member.node = job.owner), job.owner) AS owner,
       job.source_bytes AS bytes, job.source_digest AS digest, job.probe_json, job.id AS job
FROM job WHERE job.planned = 1;

CREATE VIEW events AS
SELECT id, log_index, at_ms, kind, nullif(job, '') AS job, nullif(node, '') AS node, what FROM event
UNION ALL
SELECT (seq >> 10 << 14) | (seq & 1023), seq >> 10, created_at_ms, 'job.queued', id, owner, ''
FROM job;
