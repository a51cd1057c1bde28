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
    -- Records up to this number are in `serials`.
    indexed         INTEGER NOT NULL
);

-- Records by serial, filled many at once and in order: serials are random, and an index kept up with each commit
-- would write a page for each of them.
CREATE TABLE serials (
    serial          BLOB    NOT NULL PRIMARY KEY,
    number          INTEGER NOT NULL
) WITHOUT ROWID;
