-- What is not here and is known not to be: refusals of known devices that were only counted, and records that were lost.
CREATE TABLE gaps (
    tenant TEXT    NOT NULL,    -- empty: of several devices, or of nobody that is known
    device TEXT    NOT NULL,
    count  INTEGER NOT NULL,
    first  INTEGER NOT NULL,
    last   INTEGER NOT NULL,
    PRIMARY KEY (tenant, device)
) STRICT, WITHOUT ROWID;
