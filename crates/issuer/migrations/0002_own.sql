-- What belongs to one issuer: its records and its log.

-- One row for each decision, allowed and refused; never changed, never deleted.
CREATE TABLE records (
    number          INTEGER PRIMARY KEY,
    at              INTEGER NOT NULL,
    kind            TEXT    NOT NULL,
    outcome         TEXT    NOT NULL,
    host_id         TEXT,
    agent           TEXT,
    serial          BLOB,
    certificate     BLOB,
    body            TEXT    NOT NULL
);
-- No index on `serial` or `certificate`, the SHA-256: both are random, and each entry of such an index costs a page
-- of the log it is written to.

-- One row, written again and again: whether the store still takes writes.
CREATE TABLE heartbeat (
    one             INTEGER PRIMARY KEY CHECK (one = 1),
    at              INTEGER NOT NULL
);
INSERT INTO heartbeat (one, at) VALUES (1, 0);

-- The log: record number n is entry n - 1 of its Merkle tree. Tiles are kept once they are full; what is not
-- full yet follows from the records.

CREATE TABLE log_tiles (
    level           INTEGER NOT NULL,
    number          INTEGER NOT NULL,
    -- What it stands for in the tile above; before the hashes, so that reading it reads none of them.
    root            BLOB    NOT NULL,
    hashes          BLOB    NOT NULL,
    PRIMARY KEY (level, number)
);

-- The newest checkpoint: changed in the commit that appends to the records.
CREATE TABLE log_checkpoint (
    one             INTEGER PRIMARY KEY CHECK (one = 1),
    size            INTEGER NOT NULL,
    root            BLOB    NOT NULL,
    note            BLOB    NOT NULL,
    -- Records up to this number are in `serials` and `certificates`.
    indexed         INTEGER NOT NULL
);

-- Records by serial and by certificate, filled many at once and in order: serials are random, and an index kept up with each commit
-- would write a page for each of them.
CREATE TABLE serials (
    serial          BLOB    NOT NULL PRIMARY KEY,
    number          INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE certificates (
    sha256          BLOB    NOT NULL PRIMARY KEY,
    number          INTEGER NOT NULL
) WITHOUT ROWID;
