-- What belongs to the trust domain. On PostgreSQL several issuers share it.
--
-- One schema for both databases: INTEGER is BIGINT and BLOB is BYTEA on PostgreSQL (see src/store/schema.rs).

-- What a trust domain is: fixed when it is made.
CREATE TABLE trust_domain (
    one             INTEGER PRIMARY KEY CHECK (one = 1),
    name            TEXT    NOT NULL,
    lab             INTEGER NOT NULL,
    dev             INTEGER NOT NULL,
    oid_arc         TEXT    NOT NULL,
    made_at         INTEGER NOT NULL
);

-- CAs. The keys are in a PKCS#11 token, under key_label; an offline root has none here. `generation` counts the CAs of
-- this kind in this hierarchy, whosesoever they are. Roots are all issuers' (issuer ''); an issuing CA is one issuer's own, and
-- `root` is the generation of the root that signed it (0: none has yet, and the certificate is empty).
CREATE TABLE authorities (
    hierarchy       TEXT    NOT NULL,
    kind            TEXT    NOT NULL CHECK (kind IN ('root', 'issuing')),
    generation      INTEGER NOT NULL,
    issuer          TEXT    NOT NULL,
    root            INTEGER NOT NULL,
    state           TEXT    NOT NULL CHECK (state IN
                    ('requested', 'prepared', 'published', 'active', 'retiring', 'retired', 'tainted')),
    key_label       TEXT    NOT NULL,
    certificate     BLOB    NOT NULL,
    made_at         INTEGER NOT NULL,
    published_at    INTEGER,
    activated_at    INTEGER,
    replaced_at     INTEGER,
    tainted_at      INTEGER,
    -- Of a tainted CA: seconds over which its holders renew; and when what it signed was revoked, or a root left the bundle.
    renew_within    INTEGER NOT NULL,
    withdrawn_at    INTEGER,
    retired_at      INTEGER,
    -- End of the last leaf that it signed; unknown while it signs for agents, whose credentials say it.
    last_not_after  INTEGER,
    PRIMARY KEY (hierarchy, kind, generation)
);

-- Hosts, each bound to one EK for ever. `standing` is versioned JSON: what the last attestation showed.
-- A removed host keeps its row: the binding outlives it. `last_removed` stays when it enrols anew: no credential
-- of before counts again. `simulated` is for ever, too: an EK that was once shown
-- to be a software TPM's is one.
CREATE TABLE hosts (
    host_id         TEXT    PRIMARY KEY,
    ek_digest       BLOB    UNIQUE,
    enrolled_at     INTEGER NOT NULL,
    simulated       INTEGER NOT NULL,
    standing        TEXT    NOT NULL,
    disabled        TEXT,
    removed_at      INTEGER,
    last_removed    INTEGER
);

-- EKs that an operator allows, each for one host id; `hardware` is the operator's word that it is no
-- software TPM, for one that no manufacturer's certificate vouches for.
CREATE TABLE allowed_eks (
    ek_digest       BLOB    PRIMARY KEY,
    host_id         TEXT    NOT NULL UNIQUE,
    hardware        INTEGER NOT NULL,
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

-- Credentials that may still be valid, by issuer and the number of the record each was issued under, which holds
-- the rest. All of an instance's are here until they expire: a renewal does not end the one before it.
CREATE TABLE credentials (
    issuer          TEXT    NOT NULL,
    number          INTEGER NOT NULL,
    instance_id     BLOB    NOT NULL,
    agent           TEXT    NOT NULL,
    host_id         TEXT    NOT NULL,
    tier            TEXT    NOT NULL,
    -- Generation of the issuing CA that signed it.
    ca              INTEGER NOT NULL,
    custody         TEXT    NOT NULL,
    serial          BLOB    NOT NULL,
    issued_at       INTEGER NOT NULL,
    not_after       INTEGER NOT NULL,
    PRIMARY KEY (issuer, number)
) WITHOUT ROWID;
-- Ids begin with the time: a new one comes at the end of the index.
CREATE INDEX credentials_of_instance ON credentials (instance_id);

-- Instances that have ended. An id that stands here is given no credential again.
CREATE TABLE ended_instances (
    instance_id     BLOB    PRIMARY KEY,
    agent           TEXT    NOT NULL,
    host_id         TEXT    NOT NULL,
    ended_at        INTEGER NOT NULL,
    reason          TEXT    NOT NULL
);

-- Certificates revoked before their end. Of one whose reason is 'superseded' the instance goes on with another.
CREATE TABLE revocations (
    serial          BLOB    PRIMARY KEY,
    issuer          TEXT    NOT NULL,
    instance_id     BLOB    NOT NULL,
    hierarchy       TEXT    NOT NULL,
    ca              INTEGER NOT NULL,
    host_id         TEXT    NOT NULL,
    not_after       INTEGER NOT NULL,
    revoked_at      INTEGER NOT NULL,
    reason          TEXT    NOT NULL
);
CREATE INDEX revocations_of_instance ON revocations (instance_id);

-- Who issues here. On PostgreSQL each has a namespace of its own, `issuer_ID`, for what 0002 makes.
CREATE TABLE issuers (
    issuer          TEXT    PRIMARY KEY,
    joined_at       INTEGER NOT NULL
);

-- What one issuer's commit changed for the others, in the order of the commits. Empty where there is one issuer.
CREATE TABLE changes (
    seq             INTEGER PRIMARY KEY,
    issuer          TEXT    NOT NULL,
    at              INTEGER NOT NULL,
    kind            TEXT    NOT NULL,
    subject         TEXT    NOT NULL
);
