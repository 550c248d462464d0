-- The CA operator's word that certificates of one authority are evidence at another one, which takes its place.
CREATE TABLE successions (
    authority TEXT    NOT NULL REFERENCES authorities (id), -- the newer one
    succeeds  TEXT    NOT NULL REFERENCES authorities (id),
    created   INTEGER NOT NULL,
    PRIMARY KEY (authority, succeeds),
    CHECK (authority <> succeeds)
) STRICT, WITHOUT ROWID;
