-- Time: nothing is minted while the clock is behind the newest time that is known to have been.
CREATE TABLE clock (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    high_water INTEGER NOT NULL         -- milliseconds since 1970, UTC
) STRICT;
INSERT INTO clock (one, high_water) VALUES (1, max(
    coalesce((SELECT max(at) FROM audit), 0),
    coalesce((SELECT max(at) FROM revisions), 0)));

-- One more with each restore of a backup. Revisions of an epoch start where no earlier one can have been, so that what
-- was made under a revision that the backup does not know is never taken for one of now.
CREATE TABLE epochs (
    epoch          INTEGER PRIMARY KEY,
    started        INTEGER NOT NULL,
    first_revision INTEGER NOT NULL,
    restored_from  TEXT                 -- JSON: what the backup's manifest says; NULL for the first
) STRICT;
INSERT INTO epochs (epoch, started, first_revision)
    VALUES (1, coalesce((SELECT min(at) FROM revisions), 0), 1);

-- The number of each issuer's newest revocation list; it never goes back (RFC 5280 section 5.2.3).
CREATE TABLE list_numbers (
    issuer TEXT    PRIMARY KEY,         -- authority id
    number INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Revoked, and the certificate itself is not known here: it was issued after the backup that was restored.
CREATE TABLE lost_revocations (
    authority TEXT    NOT NULL,
    serial    TEXT    NOT NULL,         -- lower-case hex
    ended     INTEGER NOT NULL,
    reason    INTEGER,                  -- CRLReason, RFC 5280 section 5.3.1
    PRIMARY KEY (authority, serial)
) STRICT, WITHOUT ROWID;

-- An authority of ours never gives out a serial number twice (RFC 5280 section 4.1.2.2).
CREATE UNIQUE INDEX credentials_issued_serial ON credentials (authority, serial) WHERE certificate IS NOT NULL;
