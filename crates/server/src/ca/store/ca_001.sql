-- What the CA remembers. Nothing here is ever told to un-happen: certificates end and stay ended, the log is append-only.
CREATE TABLE clock (
    one  INTEGER PRIMARY KEY CHECK (one = 1),
    seen INTEGER NOT NULL               -- the latest time at which something was written, milliseconds since 1970, UTC
) STRICT;
INSERT INTO clock VALUES (1, 0);

CREATE TABLE authorities (
    id          TEXT    PRIMARY KEY,
    tenant      TEXT    NOT NULL,
    state       TEXT    NOT NULL CHECK (state IN ('open', 'closed')),
    certificate BLOB    NOT NULL UNIQUE, -- DER
    root        BLOB    NOT NULL,       -- DER
    list_number INTEGER NOT NULL,       -- of the last revocation list
    created     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The CA operator's word that ids of a pattern may have so many certificates.
CREATE TABLE batches (
    id        TEXT    PRIMARY KEY,
    authority TEXT    NOT NULL REFERENCES authorities (id),
    profile   TEXT    NOT NULL,
    pattern   TEXT    NOT NULL,
    quota     INTEGER NOT NULL,
    used      INTEGER NOT NULL DEFAULT 0,
    expires   INTEGER NOT NULL,
    state     TEXT    NOT NULL CHECK (state IN ('open', 'closed')),
    created   INTEGER NOT NULL,
    CHECK (used BETWEEN 0 AND quota)
) STRICT, WITHOUT ROWID;

-- The CA operator's word that one device may have one certificate.
CREATE TABLE secrets (
    hash      BLOB    PRIMARY KEY,      -- SHA-256
    authority TEXT    NOT NULL REFERENCES authorities (id),
    device    TEXT    NOT NULL,
    profile   TEXT    NOT NULL,
    expires   INTEGER NOT NULL,
    used_key  BLOB,                     -- SHA-256 of the SubjectPublicKeyInfo it was used for
    created   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE certificates (
    authority   TEXT    NOT NULL REFERENCES authorities (id),
    serial      TEXT    NOT NULL,       -- lower-case hex
    fingerprint BLOB    NOT NULL UNIQUE,
    tenant      TEXT    NOT NULL,
    device      TEXT    NOT NULL,
    profile     TEXT    NOT NULL,
    kind        TEXT    NOT NULL,
    public_key  BLOB    NOT NULL,       -- SHA-256 of the SubjectPublicKeyInfo
    certificate BLOB    NOT NULL,       -- DER
    not_before  INTEGER NOT NULL,
    not_after   INTEGER NOT NULL,
    evidence    TEXT    NOT NULL,       -- on what it was issued
    created     INTEGER NOT NULL,
    state       TEXT    NOT NULL CHECK (state IN ('issued', 'lapsed', 'superseded', 'revoked')),
    ended       INTEGER,
    reason      INTEGER,                -- CRLReason, RFC 5280 section 5.3.1
    PRIMARY KEY (authority, serial),
    CHECK ((state = 'issued') = (ended IS NULL))
) STRICT, WITHOUT ROWID;

CREATE INDEX certificates_by_device ON certificates (tenant, device);
CREATE INDEX certificates_by_key ON certificates (public_key);
CREATE INDEX certificates_ended ON certificates (authority, ended) WHERE ended IS NOT NULL;

-- The store itself holds what no code may undo.
CREATE TRIGGER certificates_are_kept BEFORE DELETE ON certificates
BEGIN SELECT RAISE (ABORT, 'certificates are kept'); END;
CREATE TRIGGER certificates_stay_ended BEFORE UPDATE OF state ON certificates
WHEN (OLD.state = 'revoked' AND NEW.state <> 'revoked') OR (OLD.state <> 'issued' AND NEW.state = 'issued')
BEGIN SELECT RAISE (ABORT, 'an ended certificate stays ended'); END;
CREATE TRIGGER batches_are_not_refilled BEFORE UPDATE OF used, quota ON batches
WHEN NEW.used < OLD.used OR NEW.quota <> OLD.quota
BEGIN SELECT RAISE (ABORT, 'a batch is not refilled'); END;

-- Append-only. hash = SHA-256 over the hash before and this entry's fields.
CREATE TABLE log (
    seq     INTEGER PRIMARY KEY,
    at      INTEGER NOT NULL,
    actor   TEXT    NOT NULL,
    action  TEXT    NOT NULL,
    subject TEXT    NOT NULL,
    detail  TEXT    NOT NULL,           -- JSON
    hash    BLOB    NOT NULL
) STRICT;

CREATE TRIGGER log_is_append_only_update BEFORE UPDATE ON log
BEGIN SELECT RAISE (ABORT, 'the log is append-only'); END;
CREATE TRIGGER log_is_append_only_delete BEFORE DELETE ON log
BEGIN SELECT RAISE (ABORT, 'the log is append-only'); END;
