-- What has ended, in the order in which it did: by revision, which grows with every commit, as no clock does. A CA in a
-- process of its own is told by it.
ALTER TABLE credentials ADD COLUMN ended_revision INTEGER;      -- of the change that ended it; NULL while it has not
UPDATE credentials SET ended_revision = revision WHERE ended IS NOT NULL;
CREATE INDEX credentials_by_end ON credentials (authority, ended_revision, serial) WHERE ended_revision IS NOT NULL;
