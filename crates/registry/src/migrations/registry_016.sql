-- What devices stated of the end of their keys. Declared, not proven; append-only.
CREATE TABLE destructions (
    tenant      TEXT    NOT NULL,
    device      TEXT    NOT NULL,
    fingerprint BLOB    NOT NULL,       -- the certificate whose key is destroyed
    stated      INTEGER NOT NULL,       -- by the device's clock, milliseconds since 1970, UTC
    recorded    INTEGER NOT NULL,
    statement   TEXT    NOT NULL,       -- JSON, signed by that key
    PRIMARY KEY (tenant, device, fingerprint)
) STRICT, WITHOUT ROWID;
