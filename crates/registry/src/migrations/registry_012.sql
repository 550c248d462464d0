-- Time boxes: when a suspension or a quarantine ends by itself; who moved a device into its state, when and why.
ALTER TABLE devices ADD COLUMN suspended_until INTEGER;
ALTER TABLE devices ADD COLUMN quarantined_until INTEGER;
ALTER TABLE devices ADD COLUMN moved INTEGER;          -- NULL: it is as it was made
ALTER TABLE devices ADD COLUMN moved_by TEXT;
ALTER TABLE devices ADD COLUMN moved_why TEXT;
CREATE INDEX devices_suspended_until ON devices (suspended_until) WHERE suspended_until IS NOT NULL;
CREATE INDEX devices_quarantined_until ON devices (quarantined_until) WHERE quarantined_until IS NOT NULL;

-- What a change did to live sessions, as it was answered.
CREATE TABLE receipts (
    seq             INTEGER PRIMARY KEY,
    id              TEXT    NOT NULL UNIQUE,
    at              INTEGER NOT NULL,
    tenant          TEXT    NOT NULL,   -- empty for none
    state           TEXT    NOT NULL,   -- running, complete, partial
    idempotency_key TEXT,
    content         BLOB,               -- SHA-256 of what was asked with the key
    body            TEXT    NOT NULL    -- JSON
) STRICT;
CREATE UNIQUE INDEX receipts_by_key ON receipts (tenant, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX receipts_running ON receipts (seq) WHERE state = 'running';

-- The space that a quarantined device may publish to; a tenant that uses the name otherwise keeps it as it is.
UPDATE tenants SET spaces = json_insert(spaces, '$[#]',
        json('{"name":"diagnostics","filter":"devices/{id}/diagnostics/#"}'))
    WHERE json_array_length(spaces) < 64
    AND NOT EXISTS (SELECT 1 FROM json_each(spaces) WHERE json_extract(value, '$.name') = 'diagnostics');
