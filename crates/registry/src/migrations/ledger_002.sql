-- Rows of known devices and of strangers have budgets of their own. A row is of a known device if the key was proven of a
-- certificate that is registered, or that a registered device's id was read from.
ALTER TABLE exchanges ADD COLUMN class INTEGER NOT NULL DEFAULT 0; -- 0 stranger, 1 known, 2 known and refused,
                                                                   -- 3 the last, or last refused, of its device
ALTER TABLE exchanges ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0; -- what it is counted with
ALTER TABLE exchanges ADD COLUMN owner TEXT;    -- the known device, if `device` does not say it: refused within TLS
ALTER TABLE exchanges ADD COLUMN source BLOB;   -- address, 16 bytes; IPv4 as ::ffff:a.b.c.d

UPDATE exchanges SET
    class = CASE WHEN device IS NULL OR tenant IS NULL THEN 0
                 WHEN outcome IN ('refused', 'refused-by-device') THEN 2 ELSE 1 END,
    bytes = length(record) + length(record) / 3 + 512;

CREATE INDEX exchanges_by_class ON exchanges (class);
CREATE INDEX exchanges_by_owner ON exchanges (owner, id) WHERE owner IS NOT NULL;
CREATE INDEX exchanges_by_source ON exchanges (source, id) WHERE outcome <> 'admitted';
CREATE INDEX exchanges_by_code ON exchanges (code, id) WHERE outcome <> 'admitted';

-- The last exchange of each known device, and its last refusal: nothing of others evicts them.
CREATE TABLE lasts (
    tenant  TEXT    NOT NULL,
    device  TEXT    NOT NULL,
    last    INTEGER NOT NULL,
    refused INTEGER,
    PRIMARY KEY (tenant, device)
) STRICT, WITHOUT ROWID;

INSERT INTO lasts
SELECT tenant, device, max(id), max(CASE WHEN class = 2 THEN id END)
FROM exchanges WHERE class > 0 GROUP BY tenant, device;

-- What is kept of each class of exchanges, and of sessions (4); `evicted` is the newest id that had to go.
CREATE TABLE budgets (
    class   INTEGER PRIMARY KEY,
    rows    INTEGER NOT NULL,
    bytes   INTEGER NOT NULL,
    evicted INTEGER NOT NULL
) STRICT;

INSERT INTO budgets VALUES (0, 0, 0, 0), (1, 0, 0, 0), (2, 0, 0, 0), (3, 0, 0, 0), (4, 0, 0, 0);
UPDATE budgets SET
    rows = (SELECT count(*) FROM exchanges WHERE exchanges.class = budgets.class),
    bytes = (SELECT coalesce(sum(bytes), 0) FROM exchanges WHERE exchanges.class = budgets.class);

-- Refusals that have one cause, and how many there were in each hour.
CREATE TABLE causes (
    id      INTEGER PRIMARY KEY,
    known   INTEGER NOT NULL,   -- 1: refusals of known devices
    tenant  TEXT    NOT NULL,   -- empty if it was not known yet
    code    TEXT    NOT NULL,
    stage   TEXT    NOT NULL,
    subject TEXT    NOT NULL,   -- the issuer, authority, policy, name … that it is about; empty if none
    first   INTEGER NOT NULL,
    last    INTEGER NOT NULL,
    example INTEGER NOT NULL,   -- the newest exchange
    UNIQUE (known, tenant, code, stage, subject)
) STRICT;

CREATE TABLE cause_hours (
    cause        INTEGER NOT NULL REFERENCES causes (id) ON DELETE CASCADE,
    hour         INTEGER NOT NULL,  -- since 1970
    exchanges    INTEGER NOT NULL,
    certificates BLOB    NOT NULL,  -- sketches of how many different ones
    devices      BLOB    NOT NULL,
    sources      BLOB    NOT NULL,
    PRIMARY KEY (cause, hour)
) STRICT, WITHOUT ROWID;
CREATE INDEX cause_hours_by_hour ON cause_hours (hour);

-- What sessions did; `record` is all of it.
CREATE TABLE sessions (
    id       INTEGER PRIMARY KEY,
    exchange INTEGER NOT NULL,  -- that admitted it
    kind     TEXT    NOT NULL,
    name     TEXT    NOT NULL,
    tenant   TEXT    NOT NULL,
    device   TEXT    NOT NULL,
    started  INTEGER NOT NULL,
    until    INTEGER NOT NULL,  -- the end, or the last time it was known to be live
    ended    INTEGER,
    bytes    INTEGER NOT NULL,
    record   TEXT    NOT NULL,  -- JSON
    UNIQUE (exchange, kind, name)
) STRICT;
CREATE INDEX sessions_by_device ON sessions (device, tenant, exchange);
