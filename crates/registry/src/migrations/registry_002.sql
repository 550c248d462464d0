-- First contact, proof of possession, rotation: what an authority may bring about, and who depends on it.
ALTER TABLE authorities ADD COLUMN admission TEXT NOT NULL DEFAULT '{"mode":"registered-only"}'; -- JSON
ALTER TABLE authorities ADD COLUMN code TEXT;           -- while unproven: what the proof must name
ALTER TABLE authorities ADD COLUMN code_expires INTEGER;

ALTER TABLE devices ADD COLUMN authority TEXT;          -- the one whose certificates may be learned for it
ALTER TABLE devices ADD COLUMN came_by TEXT;            -- the authority whose just-in-time template made it
CREATE INDEX devices_by_template ON devices (came_by) WHERE came_by IS NOT NULL;

ALTER TABLE credentials ADD COLUMN authority TEXT;      -- the one its chain ends in; NULL until that is known
CREATE INDEX credentials_by_authority ON credentials (authority, device);

-- Issuance that is safe to repeat.
ALTER TABLE credentials ADD COLUMN certificate BLOB;     -- DER, of those issued here
ALTER TABLE credentials ADD COLUMN profile TEXT;         -- of those issued here
ALTER TABLE credentials ADD COLUMN batch TEXT;
ALTER TABLE credentials ADD COLUMN supersede_at INTEGER; -- a newer one is in use: until then both are admitted
ALTER TABLE credentials ADD COLUMN ended INTEGER;        -- when it was superseded, revoked or lapsed
ALTER TABLE credentials ADD COLUMN reason INTEGER;       -- CRLReason, RFC 5280 section 5.3.1
CREATE INDEX credentials_unused ON credentials (created) WHERE state = 'issued';
CREATE INDEX credentials_overlapping ON credentials (supersede_at) WHERE supersede_at IS NOT NULL;
CREATE INDEX credentials_ended ON credentials (authority, ended) WHERE ended IS NOT NULL;

-- CA certificates between an anchor and its devices, for devices that send only their own.
CREATE TABLE intermediates (
    fingerprint BLOB    NOT NULL,
    tenant      TEXT    NOT NULL REFERENCES tenants (id),
    certificate BLOB    NOT NULL,       -- DER
    created     INTEGER NOT NULL,
    PRIMARY KEY (tenant, fingerprint)
) STRICT, WITHOUT ROWID;

-- A requester's own key for a request: the same key with other content is refused.
CREATE TABLE idempotency (
    tenant  TEXT    NOT NULL,
    key     TEXT    NOT NULL,
    content BLOB    NOT NULL,           -- SHA-256
    created INTEGER NOT NULL,
    PRIMARY KEY (tenant, key)
) STRICT, WITHOUT ROWID;

-- What a device without a certificate enrols with, once. For the key it was first used with it stays good until it
-- expires: a lost answer can be asked for again.
CREATE TABLE enrolment_secrets (
    hash     BLOB    PRIMARY KEY,       -- SHA-256
    tenant   TEXT    NOT NULL,
    device   TEXT    NOT NULL,
    expires  INTEGER NOT NULL,
    used_key BLOB,                      -- SHA-256 of the SubjectPublicKeyInfo
    created  INTEGER NOT NULL,
    FOREIGN KEY (tenant, device) REFERENCES devices (tenant, id)
) STRICT, WITHOUT ROWID;
