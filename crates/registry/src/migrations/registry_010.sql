-- A journal that is registered over several transactions is known from the first one on: `begun` until the last.
ALTER TABLE station_journals ADD COLUMN begun INTEGER NOT NULL DEFAULT 0 CHECK (begun IN (0, 1));

-- How many devices have a certificate on it: counted where one is issued, not each time it is asked.
ALTER TABLE claims ADD COLUMN enrolled INTEGER NOT NULL DEFAULT 0 CHECK (enrolled >= 0);
UPDATE claims SET enrolled = (SELECT count(DISTINCT device) FROM credentials
    WHERE credentials.tenant = claims.tenant AND credentials.claim = claims.id);
