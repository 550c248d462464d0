-- Devices that were enrolled after the backup that this registry was restored from, as the registry that went on says: a claim
-- that is made now does not enrol them for another key.
CREATE TABLE lost_enrolments (
    tenant      TEXT    NOT NULL,
    device      TEXT    NOT NULL,
    public_key  BLOB    NOT NULL,       -- SHA-256 of the SubjectPublicKeyInfo that it has a certificate for
    recorded    INTEGER NOT NULL,       -- by the restore
    PRIMARY KEY (tenant, device, public_key)
) STRICT, WITHOUT ROWID;
