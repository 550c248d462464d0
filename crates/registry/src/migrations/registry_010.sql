-- A journal that is registered over several transactions is known from the first one on: `begun` until the last.
ALTER TABLE station_journals ADD COLUMN begun INTEGER NOT NULL DEFAULT 0 CHECK (begun IN (0, 1));
