-- A factory's plan: so many identities of one model. `devices` is counted in the transaction that adds each.
CREATE TABLE batches (
    tenant        TEXT    NOT NULL REFERENCES tenants (id),
    id            TEXT    NOT NULL,
    model         TEXT    NOT NULL,
    profile       TEXT    NOT NULL,
    groups        TEXT    NOT NULL,     -- JSON: sorted names
    devices_start TEXT    NOT NULL,     -- active, pending
    authority     TEXT,                 -- NULL: the tenant's newest active one
    id_pattern    TEXT    NOT NULL,
    quota         INTEGER NOT NULL CHECK (quota > 0),
    not_before    INTEGER,              -- when its certificates may be signed
    not_after     INTEGER,
    state         TEXT    NOT NULL,     -- open, closed
    devices       INTEGER NOT NULL DEFAULT 0 CHECK (devices BETWEEN 0 AND quota),
    revision      INTEGER NOT NULL,
    created       INTEGER NOT NULL,
    PRIMARY KEY (tenant, id)
) STRICT, WITHOUT ROWID;

ALTER TABLE devices ADD COLUMN batch TEXT;              -- the one it was made in
CREATE INDEX devices_by_batch ON devices (tenant, batch, id) WHERE batch IS NOT NULL;

-- The same table with its rows in the order they came: a row holds a certificate, and in the order of fingerprints each
-- one would be a page of its own in every transaction. What is looked up by is as before, and smaller.
CREATE TABLE credentials_in_order (
    fingerprint  BLOB    NOT NULL UNIQUE, -- SHA-256 of the certificate
    tenant       TEXT    NOT NULL,
    device       TEXT    NOT NULL,
    kind         TEXT    NOT NULL,
    state        TEXT    NOT NULL,
    custody      TEXT    NOT NULL,
    serial       TEXT    NOT NULL,       -- lower-case hex
    issuer       TEXT    NOT NULL,       -- for people
    public_key   BLOB    NOT NULL,       -- SHA-256 of the SubjectPublicKeyInfo
    not_before   INTEGER NOT NULL,
    not_after    INTEGER NOT NULL,
    revision     INTEGER NOT NULL,
    created      INTEGER NOT NULL,
    authority    TEXT,                   -- the one its chain ends in; NULL until that is known
    certificate  BLOB,                   -- DER, of those issued here
    profile      TEXT,                   -- of those issued here
    batch        TEXT,                   -- the one it was issued in
    supersede_at INTEGER,                -- a newer one is in use: until then both are admitted
    ended        INTEGER,                -- when it was superseded, revoked or lapsed
    reason       INTEGER,                -- CRLReason, RFC 5280 section 5.3.1
    FOREIGN KEY (tenant, device) REFERENCES devices (tenant, id)
) STRICT;
INSERT INTO credentials_in_order
    SELECT fingerprint, tenant, device, kind, state, custody, serial, issuer, public_key, not_before, not_after, revision,
           created, authority, certificate, profile, batch, supersede_at, ended, reason
    FROM credentials ORDER BY revision;
DROP TABLE credentials;
ALTER TABLE credentials_in_order RENAME TO credentials;
CREATE INDEX credentials_by_device ON credentials (tenant, device);
CREATE INDEX credentials_by_serial ON credentials (serial);
CREATE INDEX credentials_by_public_key ON credentials (public_key);
CREATE INDEX credentials_by_authority ON credentials (authority, device);
CREATE INDEX credentials_unused ON credentials (created) WHERE state = 'issued';
CREATE INDEX credentials_overlapping ON credentials (supersede_at) WHERE supersede_at IS NOT NULL;
CREATE INDEX credentials_ended ON credentials (authority, ended) WHERE ended IS NOT NULL;
