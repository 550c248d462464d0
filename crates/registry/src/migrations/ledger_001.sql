-- One row per exchange; `record` is all of it, the columns are what it is looked up by.
CREATE TABLE exchanges (
    id          INTEGER PRIMARY KEY,    -- starts with the time in milliseconds
    outcome     TEXT    NOT NULL,
    code        TEXT,                   -- of the denial
    tenant      TEXT,
    device      TEXT,                   -- only if possession of its certificate was proven
    fingerprint BLOB,
    serial      TEXT,
    record      TEXT    NOT NULL        -- JSON
) STRICT;

CREATE INDEX exchanges_by_device ON exchanges (device, tenant, id) WHERE device IS NOT NULL;
-- Of those that were admitted, fingerprint and serial are found through the device.
CREATE INDEX exchanges_by_fingerprint ON exchanges (fingerprint, id) WHERE outcome <> 'admitted';
CREATE INDEX exchanges_by_serial ON exchanges (serial, id) WHERE outcome <> 'admitted';
