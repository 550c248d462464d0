-- The renewal lane: what it issued for an expired certificate, once.
CREATE TABLE renewal_lane (
    credential BLOB    PRIMARY KEY,     -- SHA-256 of the expired certificate
    key        BLOB    NOT NULL,        -- SHA-256 of the SubjectPublicKeyInfo that it issued for
    at         INTEGER NOT NULL,
    FOREIGN KEY (credential) REFERENCES credentials (fingerprint)
) STRICT, WITHOUT ROWID;

-- Claims: one secret or certificate for many devices, good for the ids on its list and for nothing else.
CREATE TABLE claims (
    tenant      TEXT    NOT NULL REFERENCES tenants (id),
    id          TEXT    NOT NULL,
    secret      BLOB,                   -- SHA-256; NULL if it goes by certificate
    certificate BLOB,                   -- SHA-256 of the certificate
    id_pattern  TEXT,                   -- in place of a list; then quota is set
    quota       INTEGER,
    profile     TEXT,
    model       TEXT,
    groups      TEXT    NOT NULL,       -- JSON: sorted names
    expires     INTEGER NOT NULL,
    created     INTEGER NOT NULL,
    revoked     INTEGER,
    reason      TEXT,
    PRIMARY KEY (tenant, id)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX claims_by_certificate ON claims (tenant, certificate) WHERE certificate IS NOT NULL;

CREATE TABLE claim_ids (
    tenant TEXT NOT NULL,
    claim  TEXT NOT NULL,
    device TEXT NOT NULL,
    PRIMARY KEY (tenant, claim, device),
    FOREIGN KEY (tenant, claim) REFERENCES claims (tenant, id)
) STRICT, WITHOUT ROWID;

ALTER TABLE credentials ADD COLUMN claim TEXT;          -- the claim that it was issued on
CREATE INDEX credentials_by_claim ON credentials (tenant, claim) WHERE claim IS NOT NULL;
