-- One index where there were two: by serial number, and no authority gives one out twice for what is issued here. Of what was
-- brought, and of what no authority is known, NULL differs from NULL, and a number may come again.
DROP INDEX credentials_issued_serial;
DROP INDEX credentials_by_serial;
CREATE UNIQUE INDEX credentials_by_serial ON credentials (serial, CASE WHEN certificate IS NOT NULL THEN authority END);

-- Eight octets of a hash tell keys apart as well as all of it, and a third of the pages has to be written for them. Whoever
-- looks for a key asks for both.
DROP INDEX credentials_by_public_key;
CREATE INDEX credentials_by_public_key ON credentials (substr(public_key, 1, 8));
