-- Offline stations: what each may issue, and how far its journal was accepted.
CREATE TABLE stations (
    id          TEXT    PRIMARY KEY,        -- unique across tenants
    tenant      TEXT    NOT NULL REFERENCES tenants (id),
    authority   TEXT    NOT NULL REFERENCES authorities (id), -- the factory CA
    batch       TEXT    NOT NULL,
    state       TEXT    NOT NULL,           -- granted, closed, revoked
    terms       TEXT    NOT NULL,           -- JSON
    grant_file  BLOB    NOT NULL,           -- as it was handed out
    certificate BLOB    NOT NULL,           -- DER
    subject     BLOB    NOT NULL UNIQUE,    -- DER: the issuer of its certificates
    public_key  BLOB    NOT NULL UNIQUE,    -- SHA-256 of the SubjectPublicKeyInfo
    serial      TEXT    NOT NULL,           -- lower-case hex
    not_after   INTEGER NOT NULL,
    quota       INTEGER NOT NULL CHECK (quota > 0),
    accepted    INTEGER NOT NULL DEFAULT 0 CHECK (accepted BETWEEN 0 AND quota), -- of its certificates
    ended       INTEGER,                    -- when it was revoked
    reason      INTEGER,                    -- CRLReason
    revision    INTEGER NOT NULL,
    created     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX stations_by_batch ON stations (tenant, batch);

-- Where each accepted journal stood: a later one must contain all of them.
CREATE TABLE station_journals (
    station  TEXT    NOT NULL REFERENCES stations (id),
    records  INTEGER NOT NULL,
    head     BLOB    NOT NULL,              -- SHA-256 of the last record's line
    accepted INTEGER NOT NULL,              -- when
    PRIMARY KEY (station, records)
) STRICT, WITHOUT ROWID;

-- What a journal told of and was not accepted.
CREATE TABLE station_refusals (
    station     TEXT    NOT NULL REFERENCES stations (id),
    number      INTEGER NOT NULL,           -- of the record
    device      TEXT    NOT NULL,
    fingerprint BLOB    NOT NULL,
    code        TEXT    NOT NULL,
    message     TEXT    NOT NULL,
    at          INTEGER NOT NULL,
    PRIMARY KEY (station, number)
) STRICT, WITHOUT ROWID;

ALTER TABLE credentials ADD COLUMN station TEXT;        -- the one that issued it
CREATE INDEX credentials_by_station ON credentials (station) WHERE station IS NOT NULL;
