-- Services: backends of the fleet that ask about devices. Each is known by one certificate, which is never a device's.
CREATE TABLE services (
    id          TEXT    PRIMARY KEY,
    certificate BLOB    NOT NULL UNIQUE, -- SHA-256 of its DER
    public_key  BLOB    NOT NULL UNIQUE, -- SHA-256 of its SubjectPublicKeyInfo
    subject     TEXT    NOT NULL,
    not_after   INTEGER NOT NULL,        -- milliseconds since 1970, UTC
    created     INTEGER NOT NULL,
    revoked     INTEGER,
    reason      TEXT
) STRICT, WITHOUT ROWID;

-- What a service may do, tenant by tenant.
CREATE TABLE service_permissions (
    service    TEXT NOT NULL REFERENCES services (id) ON DELETE CASCADE,
    tenant     TEXT NOT NULL REFERENCES tenants (id),
    permission TEXT NOT NULL CHECK (permission IN ('introspect')),
    PRIMARY KEY (service, tenant, permission)
) STRICT, WITHOUT ROWID;
