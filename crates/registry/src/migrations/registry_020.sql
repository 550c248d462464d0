-- Whoever asks for CA certificates, lists or OCSP answers is told of ours; of those that were brought there may be many more.
CREATE INDEX authorities_ours ON authorities (tenant) WHERE origin <> 'registered';
