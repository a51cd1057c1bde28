-- What a trust domain is: fixed when it is made.
CREATE TABLE trust_domain (
    one             INTEGER PRIMARY KEY CHECK (one = 1),
    name            TEXT    NOT NULL,
    lab             INTEGER NOT NULL,
    dev             INTEGER NOT NULL,
    oid_arc         TEXT    NOT NULL,
    made_at         INTEGER NOT NULL
);

-- CA certificates. The keys are in the PKCS#11 token, under key_label.
CREATE TABLE authorities (
    hierarchy       TEXT    NOT NULL,
    kind            TEXT    NOT NULL CHECK (kind IN ('root', 'issuing')),
    generation      INTEGER NOT NULL,
    key_label       TEXT    NOT NULL,
    certificate     BLOB    NOT NULL,
    PRIMARY KEY (hierarchy, kind, generation)
);

-- Hosts, each bound to one EK for ever. `standing` is versioned JSON: what the last attestation showed.
CREATE TABLE hosts (
    host_id         TEXT    PRIMARY KEY,
    ek_digest       BLOB    UNIQUE,
    enrolled_at     INTEGER NOT NULL,
    standing        TEXT    NOT NULL
);

-- EKs that an operator allows, each for one host id.
CREATE TABLE allowed_eks (
    ek_digest       BLOB    PRIMARY KEY,
    host_id         TEXT    NOT NULL UNIQUE,
    note            TEXT    NOT NULL,
    allowed_at      INTEGER NOT NULL
);

-- Join tokens, by SHA-256; a token is spent by setting spent_at.
CREATE TABLE join_tokens (
    token_sha256    BLOB    PRIMARY KEY,
    host_id         TEXT    NOT NULL,
    expires_at      INTEGER NOT NULL,
    spent_at        INTEGER
);

-- Registrations in canonical JSON; `revision` is that of the whole set when this one last changed.
CREATE TABLE registrations (
    agent           TEXT    PRIMARY KEY,
    revision        INTEGER NOT NULL,
    body            TEXT    NOT NULL
);

-- The set's revision: grows with every change, removals included.
CREATE TABLE registration_set (
    one             INTEGER PRIMARY KEY CHECK (one = 1),
    revision        INTEGER NOT NULL
);
INSERT INTO registration_set (one, revision) VALUES (1, 0);

-- One row for each decision, allowed and refused; never changed, never deleted.
CREATE TABLE records (
    number          INTEGER PRIMARY KEY,
    at              INTEGER NOT NULL,
    kind            TEXT    NOT NULL,
    outcome         TEXT    NOT NULL,
    host_id         TEXT,
    agent           TEXT,
    serial          BLOB,
    body            TEXT    NOT NULL
);
-- No index on `serial`: serials are random, and each entry of such an index costs a page of the log it is
-- written to. What is live is found in `instances`.

-- Runs of agents: the newest credential of each. Ids are random: rows lie in the order they came, and only
-- the small index over the ids is written all over.
CREATE TABLE instances (
    instance_id     BLOB    PRIMARY KEY,
    agent           TEXT    NOT NULL,
    host_id         TEXT    NOT NULL,
    tier            TEXT    NOT NULL,
    custody         TEXT    NOT NULL,
    serial          BLOB    NOT NULL,
    first_issued_at INTEGER NOT NULL,
    issued_at       INTEGER NOT NULL,
    not_after       INTEGER NOT NULL,
    ended_at        INTEGER,
    end_reason      TEXT
);
CREATE INDEX instances_live ON instances (not_after) WHERE ended_at IS NULL;

-- Certificates revoked before their end.
CREATE TABLE revocations (
    serial          BLOB    PRIMARY KEY,
    hierarchy       TEXT    NOT NULL,
    not_after       INTEGER NOT NULL,
    revoked_at      INTEGER NOT NULL,
    reason          TEXT    NOT NULL
) WITHOUT ROWID;
