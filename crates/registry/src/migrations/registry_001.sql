-- Revisions are assigned in commit order, in the same transaction as what they change.
CREATE TABLE revisions (
    revision INTEGER PRIMARY KEY,
    at       INTEGER NOT NULL,          -- milliseconds since 1970, UTC
    kind     TEXT    NOT NULL,          -- tenant, authority, device, credential
    tenant   TEXT    NOT NULL,
    subject  TEXT    NOT NULL
) STRICT;

CREATE TABLE tenants (
    id             TEXT    PRIMARY KEY,
    client_id_mode TEXT    NOT NULL,
    policies       TEXT    NOT NULL,    -- Cedar
    spaces         TEXT    NOT NULL,    -- JSON: [{name, filter}]
    revision       INTEGER NOT NULL,
    created        INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE hosts (
    host   TEXT PRIMARY KEY,            -- lower case
    tenant TEXT NOT NULL REFERENCES tenants (id)
) STRICT, WITHOUT ROWID;

-- The devices hierarchy only: what may vouch for devices.
CREATE TABLE authorities (
    id            TEXT    PRIMARY KEY,
    tenant        TEXT    NOT NULL REFERENCES tenants (id),
    origin        TEXT    NOT NULL,     -- managed, registered
    state         TEXT    NOT NULL,
    identity_rule TEXT    NOT NULL,
    certificate   BLOB    NOT NULL,     -- DER
    fingerprint   BLOB    NOT NULL,
    revision      INTEGER NOT NULL,
    created       INTEGER NOT NULL,
    UNIQUE (tenant, fingerprint)
) STRICT, WITHOUT ROWID;

CREATE TABLE devices (
    tenant            TEXT    NOT NULL REFERENCES tenants (id),
    id                TEXT    NOT NULL,
    model             TEXT,
    groups            TEXT    NOT NULL, -- JSON: sorted names
    state             TEXT    NOT NULL,
    before_quarantine TEXT,
    revision          INTEGER NOT NULL,
    created           INTEGER NOT NULL,
    PRIMARY KEY (tenant, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE credentials (
    fingerprint BLOB    PRIMARY KEY,    -- SHA-256 of the certificate
    tenant      TEXT    NOT NULL,
    device      TEXT    NOT NULL,
    kind        TEXT    NOT NULL,
    state       TEXT    NOT NULL,
    custody     TEXT    NOT NULL,
    serial      TEXT    NOT NULL,       -- lower-case hex
    issuer      TEXT    NOT NULL,       -- for people
    public_key  BLOB    NOT NULL,       -- SHA-256 of the SubjectPublicKeyInfo
    not_before  INTEGER NOT NULL,
    not_after   INTEGER NOT NULL,
    revision    INTEGER NOT NULL,
    created     INTEGER NOT NULL,
    FOREIGN KEY (tenant, device) REFERENCES devices (tenant, id)
) STRICT, WITHOUT ROWID;

CREATE INDEX credentials_by_device ON credentials (tenant, device);
CREATE INDEX credentials_by_serial ON credentials (serial);
CREATE INDEX credentials_by_public_key ON credentials (public_key);

-- Append-only. hash = SHA-256 over the hash before and this entry's fields: a removed or changed entry is seen by
-- anyone who kept a later hash.
CREATE TABLE audit (
    seq     INTEGER PRIMARY KEY,
    at      INTEGER NOT NULL,
    actor   TEXT    NOT NULL,
    action  TEXT    NOT NULL,
    tenant  TEXT    NOT NULL,
    subject TEXT    NOT NULL,
    detail  TEXT    NOT NULL,           -- JSON
    hash    BLOB    NOT NULL
) STRICT;

CREATE TRIGGER audit_is_append_only_update BEFORE UPDATE ON audit
BEGIN SELECT RAISE (ABORT, 'the audit is append-only'); END;
CREATE TRIGGER audit_is_append_only_delete BEFORE DELETE ON audit
BEGIN SELECT RAISE (ABORT, 'the audit is append-only'); END;
