-- An issuer may divide what it revokes among lists of several distribution points: one for each is kept.
CREATE TABLE revocation_lists_2 (
    authority TEXT    NOT NULL REFERENCES list_settings (authority) ON DELETE CASCADE,
    issuer    BLOB    NOT NULL,         -- name, DER
    point     BLOB    NOT NULL,         -- names of the distribution point, DER; empty: it is the only one
    list      BLOB    NOT NULL,         -- DER
    taken     INTEGER NOT NULL,
    PRIMARY KEY (authority, issuer, point)
) STRICT, WITHOUT ROWID;
-- Of which point a list is was not written down; the next one of that point replaces it all the same.
INSERT INTO revocation_lists_2 SELECT authority, issuer, x'', list, taken FROM revocation_lists;
DROP TABLE revocation_lists;
ALTER TABLE revocation_lists_2 RENAME TO revocation_lists;
