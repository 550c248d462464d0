-- Whose endorsement certificates a tenant trusts: TPM manufacturers.
CREATE TABLE endorsement_authorities (
    tenant      TEXT    NOT NULL REFERENCES tenants (id),
    id          TEXT    NOT NULL,
    certificate BLOB    NOT NULL,       -- DER
    created     INTEGER NOT NULL,       -- milliseconds since 1970, UTC
    PRIMARY KEY (tenant, id)
) STRICT, WITHOUT ROWID;

-- Which device a TPM is in. An endorsement key is one device's.
CREATE TABLE endorsement_keys (
    tenant      TEXT    NOT NULL REFERENCES tenants (id),
    fingerprint BLOB    NOT NULL,       -- SHA-256 of the SubjectPublicKeyInfo
    device      TEXT    NOT NULL,
    source      TEXT    NOT NULL,       -- registered: by an operator, lets the device enrol; attested: learned
    created     INTEGER NOT NULL,
    PRIMARY KEY (tenant, fingerprint)
) STRICT, WITHOUT ROWID;
CREATE INDEX endorsement_keys_of_device ON endorsement_keys (tenant, device);

-- What TPMs said of keys. Those that a certificate was issued on stay: they are the evidence of its custody.
CREATE TABLE attestations (
    nonce           BLOB    PRIMARY KEY,    -- each is good once
    token           BLOB    NOT NULL UNIQUE,-- SHA-256 of what cites it
    tenant          TEXT    NOT NULL,
    device          TEXT    NOT NULL,
    public_key      BLOB    NOT NULL,       -- SHA-256 of the SubjectPublicKeyInfo
    endorsement_key BLOB    NOT NULL,       -- as in endorsement_keys
    endorsed_by     TEXT,                   -- endorsement authority; NULL: the key itself is registered
    evidence        TEXT    NOT NULL,       -- JSON: what the TPM wrote, so that anybody can check it again
    created         INTEGER NOT NULL,
    expires         INTEGER NOT NULL,       -- until when it can be cited
    consumed        INTEGER,                -- when a certificate was issued on it
    credential      BLOB                    -- the fingerprint of the first such certificate
) STRICT, WITHOUT ROWID;
CREATE INDEX attestations_open ON attestations (expires) WHERE consumed IS NULL;
CREATE INDEX attestations_of_device ON attestations (tenant, device, consumed) WHERE consumed IS NOT NULL;
