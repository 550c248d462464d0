-- Every change of a tenant's policies or topic spaces that took effect. Append-only; what is in force is the one that the
-- tenant names.
CREATE TABLE policy_versions (
    tenant   TEXT    NOT NULL REFERENCES tenants (id),
    number   INTEGER NOT NULL CHECK (number > 0),
    at       INTEGER NOT NULL,          -- milliseconds since 1970, UTC
    actor    TEXT    NOT NULL,
    reason   TEXT    NOT NULL,
    policies TEXT    NOT NULL,          -- Cedar
    spaces   TEXT    NOT NULL,          -- JSON: [{name, filter}]
    sha256   BLOB,                      -- of `policies`; NULL for what was there before versions were kept
    reverts  INTEGER,                   -- the version that this one takes up again
    PRIMARY KEY (tenant, number)
) STRICT, WITHOUT ROWID;

INSERT INTO policy_versions (tenant, number, at, actor, reason, policies, spaces)
    SELECT id, 1, coalesce((SELECT at FROM revisions WHERE revision = tenants.revision), created), 'countersign',
           'in force when versions began to be kept', policies, spaces
    FROM tenants;

ALTER TABLE tenants ADD COLUMN policy_version INTEGER NOT NULL DEFAULT 1;
ALTER TABLE tenants DROP COLUMN policies;
ALTER TABLE tenants DROP COLUMN spaces;

CREATE TRIGGER policy_versions_are_append_only_update BEFORE UPDATE ON policy_versions
BEGIN SELECT RAISE (ABORT, 'policy versions are append-only'); END;
CREATE TRIGGER policy_versions_are_append_only_delete BEFORE DELETE ON policy_versions
BEGIN SELECT RAISE (ABORT, 'policy versions are append-only'); END;
