-- Revocation lists of registered authorities. One that has a row here is asked for its list.
CREATE TABLE list_settings (
    authority  TEXT    PRIMARY KEY REFERENCES authorities (id),
    source     TEXT,                    -- a path, or an http URL; NULL: lists are uploaded
    interval_s INTEGER NOT NULL,        -- how often the source is looked at
    when_stale TEXT    NOT NULL,        -- refuse, last-known
    checked    INTEGER,                 -- when the source was last looked at, or a list uploaded
    fault      TEXT                     -- why that brought no list; NULL if it was well
) STRICT, WITHOUT ROWID;

-- Its own, and those of CAs below it.
CREATE TABLE revocation_lists (
    authority TEXT    NOT NULL REFERENCES list_settings (authority) ON DELETE CASCADE,
    issuer    BLOB    NOT NULL,         -- name, DER
    list      BLOB    NOT NULL,         -- DER
    taken     INTEGER NOT NULL,
    PRIMARY KEY (authority, issuer)
) STRICT, WITHOUT ROWID;

-- Registered certificates that are on one of these lists: not admitted while they are.
CREATE TABLE listed (
    fingerprint BLOB PRIMARY KEY REFERENCES credentials (fingerprint),
    authority   TEXT NOT NULL REFERENCES list_settings (authority) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
