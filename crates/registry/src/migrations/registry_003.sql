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
