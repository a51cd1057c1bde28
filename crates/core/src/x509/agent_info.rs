//! The `AgentInfo` certificate extension, ARC.2.1, non-critical.
//!
//! ```text
//! HallmarkAgentInfo DEFINITIONS EXPLICIT TAGS ::= BEGIN
//!
//! AgentInfo ::= SEQUENCE {
//!   version      INTEGER { v1(1) },
//!   tier         ENUMERATED { foundation(1), enterprise(2), advanced(3) },
//!   custody      ENUMERATED { software(1), pkcs11-asserted(2), tpm-certified(3), simulated(4) },
//!   owner        OCTET STRING (SIZE (16)),      -- opaque; the record says who it is
//!   evidence     Evidence,
//!   task         [0] IMPLICIT Task OPTIONAL,
//!   delegation   [1] IMPLICIT Delegation OPTIONAL }
//!
//! Evidence ::= SEQUENCE {
//!   attestedAt   GeneralizedTime,               -- YYYYMMDDHHMMSSZ
//!   digest       OCTET STRING (SIZE (32)) }     -- SHA-256 of the evidence in the record
//!
//! Task ::= SEQUENCE {
//!   taskId       UTF8String (SIZE (1..64)),
//!   grantDigest  OCTET STRING (SIZE (32)) }
//!
//! Delegation ::= SEQUENCE {
//!   parent       UTF8String (SIZE (1..255)),    -- SPIFFE ID of the delegating agent or task
//!   chainDigest  OCTET STRING (SIZE (32)),
//!   depth        INTEGER (1..255) }
//!
//! END
//! ```
//!
//! Digests only: the evidence, the grant and the chain themselves are in the record. Decoding is strict
//! DER; a later layout gets another version number, and this decoder refuses it.

use time::OffsetDateTime;
use yasna::models::GeneralizedTime;
use yasna::{ASN1Error, ASN1ErrorKind, ASN1Result, BERReader, DERWriter, Tag};

use crate::id::{SpiffeId, Subject, TaskId};
use crate::tier::{Custody, Tier};

/// What a certificate says of the agent beyond its name: where the grade comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentInfo {
    /// Version of the layout: [`AgentInfo::VERSION`].
    pub version: u8,
    /// The credential's grade. The root decides; a certificate whose word differs is refused.
    pub tier: Tier,
    /// Where the private key lives.
    pub custody: Custody,
    /// Names the accountable party to those who hold the record, and nobody else.
    pub owner_id: [u8; 16],
    /// When the evidence was appraised, seconds since 1970-01-01 UTC.
    pub attested_at: i64,
    /// SHA-256 of the evidence as recorded.
    pub evidence_digest: [u8; 32],
    /// For a task's certificate: which task, and what it was granted.
    pub task: Option<TaskInfo>,
    /// For a delegated agent: from whom.
    pub delegation: Option<Delegation>,
}

/// The task that a certificate was issued for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskInfo {
    /// The task's id, as in the SPIFFE ID.
    pub task_id: TaskId,
    /// SHA-256 of the grant as recorded.
    pub grant_digest: [u8; 32],
}

/// Whose authority a delegated agent acts under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delegation {
    /// The delegating agent or task.
    pub parent: SpiffeId,
    /// SHA-256 of the chain of delegations as recorded.
    pub chain_digest: [u8; 32],
    /// How many steps from the first: 1 or more.
    pub depth: u8,
}

/// Why bytes are not an `AgentInfo`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AgentInfoError {
    /// Over the limit.
    #[error("AgentInfo has {len} bytes, more than {max}")]
    TooLarge {
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// A layout this version does not know.
    #[error("AgentInfo version {found}, only {known} is known")]
    Version {
        /// The version found.
        found: u64,
        /// The version known.
        known: u8,
    },
    /// Not DER of the layout, or followed by other bytes.
    #[error("AgentInfo is not DER of its layout: {why}")]
    Der {
        /// What the decoder said.
        why: String,
    },
    /// A field outside its range.
    #[error("AgentInfo {field} is out of range")]
    Field {
        /// Which field.
        field: &'static str,
    },
}

const TASK: Tag = Tag { tag_class: yasna::TagClass::ContextSpecific, tag_number: 0 };
const DELEGATION: Tag = Tag { tag_class: yasna::TagClass::ContextSpecific, tag_number: 1 };

impl AgentInfo {
    /// The version of the layout above.
    pub const VERSION: u8 = 1;
    /// Longest encoding accepted, in bytes: all fields at their longest stay below it.
    pub const MAX_LEN: usize = 1024;

    /// DER of the layout above.
    ///
    /// # Errors
    /// The time of attestation is outside the years 1950–9999 or a delegation's depth is 0: such a value would not decode.
    pub fn encode(&self) -> Result<Vec<u8>, AgentInfoError> {
        if self.version != Self::VERSION {
            return Err(AgentInfoError::Version { found: self.version.into(), known: Self::VERSION });
        }
        let attested_at = time_of(self.attested_at)?;
        if let Some(delegation) = &self.delegation {
            check_delegation(delegation)?;
        }
        Ok(yasna::construct_der(|w| self.write(w, attested_at)))
    }

    fn write(&self, w: DERWriter<'_>, attested_at: OffsetDateTime) {
        w.write_sequence(|w| {
            w.next().write_u8(self.version);
            w.next().write_enum(tier_number(self.tier));
            w.next().write_enum(custody_number(self.custody));
            w.next().write_bytes(&self.owner_id);
            w.next().write_sequence(|w| {
                w.next().write_generalized_time(&GeneralizedTime::from_datetime(attested_at));
                w.next().write_bytes(&self.evidence_digest);
            });
            if let Some(task) = &self.task {
                w.next().write_tagged_implicit(TASK, |w| {
                    w.write_sequence(|w| {
                        w.next().write_utf8_string(task.task_id.as_str());
                        w.next().write_bytes(&task.grant_digest);
                    });
                });
            }
            if let Some(delegation) = &self.delegation {
                w.next().write_tagged_implicit(DELEGATION, |w| {
                    w.write_sequence(|w| {
                        w.next().write_utf8_string(&delegation.parent.to_string());
                        w.next().write_bytes(&delegation.chain_digest);
                        w.next().write_u8(delegation.depth);
                    });
                });
            }
        });
    }

    /// Reads DER of the layout above: nothing else, nothing after it.
    ///
    /// # Errors
    /// Another version, another layout, a field out of range, or trailing bytes.
    pub fn decode(der: &[u8]) -> Result<Self, AgentInfoError> {
        if der.len() > Self::MAX_LEN {
            return Err(AgentInfoError::TooLarge { len: der.len(), max: Self::MAX_LEN });
        }
        let mut why = None;
        let read = yasna::parse_der(der, |r| {
            read(r, &mut |e| {
                why = Some(e);
                ASN1Error::new(ASN1ErrorKind::Invalid)
            })
        });
        let info = match (read, why) {
            (_, Some(why)) => return Err(why),
            (Err(e), None) => return Err(AgentInfoError::Der { why: e.to_string() }),
            (Ok(info), None) => info,
        };
        // The reader allows a few spellings of times; DER allows one of each value.
        if info.encode()? != der {
            return Err(AgentInfoError::Der { why: "not the canonical encoding".to_owned() });
        }
        Ok(info)
    }
}

type Refuse<'r> = &'r mut dyn FnMut(AgentInfoError) -> ASN1Error;

fn read(r: BERReader<'_, '_>, refuse: Refuse<'_>) -> ASN1Result<AgentInfo> {
    r.read_sequence(|r| {
        let version = r.next().read_u64()?;
        if version != u64::from(AgentInfo::VERSION) {
            return Err(refuse(AgentInfoError::Version { found: version, known: AgentInfo::VERSION }));
        }
        let tier = r.next().read_enum()?;
        let tier = Tier::ALL.into_iter().find(|t| tier_number(*t) == tier);
        let tier = tier.ok_or_else(|| refuse(AgentInfoError::Field { field: "tier" }))?;
        let custody = r.next().read_enum()?;
        let custody = Custody::ALL.into_iter().find(|c| custody_number(*c) == custody);
        let custody = custody.ok_or_else(|| refuse(AgentInfoError::Field { field: "custody" }))?;
        let owner_id = octets(r.next(), "owner", refuse)?;
        let (attested_at, evidence_digest) = r.next().read_sequence(|r| {
            let at = r.next().read_generalized_time()?;
            Ok((at.datetime().unix_timestamp(), octets(r.next(), "evidence digest", refuse)?))
        })?;
        let task = r.read_optional(|r| {
            r.read_tagged_implicit(TASK, |r| {
                r.read_sequence(|r| {
                    let task_id = text(r.next(), "task id", refuse)?;
                    Ok(TaskInfo { task_id, grant_digest: octets(r.next(), "grant digest", refuse)? })
                })
            })
        })?;
        let delegation =
            r.read_optional(|r| r.read_tagged_implicit(DELEGATION, |r| read_delegation(r, refuse)))?;
        Ok(AgentInfo {
            version: AgentInfo::VERSION,
            tier,
            custody,
            owner_id,
            attested_at,
            evidence_digest,
            task,
            delegation,
        })
    })
}

fn read_delegation(r: BERReader<'_, '_>, refuse: Refuse<'_>) -> ASN1Result<Delegation> {
    r.read_sequence(|r| {
        let delegation = Delegation {
            parent: text(r.next(), "delegation parent", refuse)?,
            chain_digest: octets(r.next(), "chain digest", refuse)?,
            depth: r.next().read_u8()?,
        };
        check_delegation(&delegation).map_err(refuse)?;
        Ok(delegation)
    })
}

fn check_delegation(delegation: &Delegation) -> Result<(), AgentInfoError> {
    if delegation.depth == 0 {
        return Err(AgentInfoError::Field { field: "delegation depth" });
    }
    match delegation.parent.subject {
        Subject::Agent(_) | Subject::Task(..) => Ok(()),
        Subject::Host(_) | Subject::Issuer(_) => Err(AgentInfoError::Field { field: "delegation parent" }),
    }
}

fn octets<const N: usize>(
    r: BERReader<'_, '_>,
    field: &'static str,
    refuse: Refuse<'_>,
) -> ASN1Result<[u8; N]> {
    r.read_bytes()?.try_into().map_err(|_| refuse(AgentInfoError::Field { field }))
}

fn text<T: std::str::FromStr>(
    r: BERReader<'_, '_>,
    field: &'static str,
    refuse: Refuse<'_>,
) -> ASN1Result<T> {
    r.read_utf8string()?.parse().map_err(|_| refuse(AgentInfoError::Field { field }))
}

fn time_of(at: i64) -> Result<OffsetDateTime, AgentInfoError> {
    let field = AgentInfoError::Field { field: "attested at" };
    let time = OffsetDateTime::from_unix_timestamp(at).map_err(|_| field.clone())?;
    if (1950..=9999).contains(&time.year()) { Ok(time) } else { Err(field) }
}

fn tier_number(tier: Tier) -> i64 {
    match tier {
        Tier::Foundation => 1,
        Tier::Enterprise => 2,
        Tier::Advanced => 3,
    }
}

fn custody_number(custody: Custody) -> i64 {
    match custody {
        Custody::Software => 1,
        Custody::Pkcs11Asserted => 2,
        Custody::TpmCertified => 3,
        Custody::Simulated => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn full() -> AgentInfo {
        AgentInfo {
            version: 1,
            tier: Tier::Advanced,
            custody: Custody::TpmCertified,
            owner_id: [7; 16],
            attested_at: 1_700_000_000,
            evidence_digest: [8; 32],
            task: Some(TaskInfo { task_id: "t-1".parse().unwrap(), grant_digest: [9; 32] }),
            delegation: Some(Delegation {
                parent: "spiffe://example.org/agent/boss".parse().unwrap(),
                chain_digest: [10; 32],
                depth: 2,
            }),
        }
    }

    prop_compose! {
        fn any_info()(
            tier in prop::sample::select(Tier::ALL.to_vec()),
            custody in prop::sample::select(Custody::ALL.to_vec()),
            owner_id in any::<[u8; 16]>(),
            attested_at in -631_152_000i64..253_402_300_800,
            evidence_digest in any::<[u8; 32]>(),
            task in prop::option::of(("[a-z0-9][a-z0-9._-]{0,63}", any::<[u8; 32]>())),
            delegation in prop::option::of(("[a-z0-9][a-z0-9._-]{0,63}", any::<[u8; 32]>(), 1u8..)),
        ) -> AgentInfo {
            AgentInfo {
                version: 1, tier, custody, owner_id, attested_at, evidence_digest,
                task: task.map(|(id, grant_digest)| TaskInfo { task_id: id.parse().unwrap(), grant_digest }),
                delegation: delegation.map(|(name, chain_digest, depth)| Delegation {
                    parent: format!("spiffe://example.org/agent/{name}").parse().unwrap(), chain_digest, depth,
                }),
            }
        }
    }

    proptest! {
        #[test]
        fn survives_a_round_trip(info in any_info()) {
            let der = info.encode().unwrap();
            prop_assert!(der.len() <= AgentInfo::MAX_LEN);
            prop_assert_eq!(AgentInfo::decode(&der), Ok(info));
        }

        #[test]
        fn what_decodes_is_canonical(info in any_info(), at in any::<prop::sample::Index>(), bit in 0..8u8) {
            let mut der = info.encode().unwrap();
            let at = at.index(der.len());
            der[at] ^= 1u8 << bit;
            if let Ok(other) = AgentInfo::decode(&der) {
                prop_assert_ne!(&other, &info);
                prop_assert_eq!(other.encode().unwrap(), der);
            }
        }

        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = AgentInfo::decode(&bytes);
        }
    }

    #[test]
    fn longest_values_fit() {
        let mut info = full();
        let name = "a".repeat(64);
        info.task = Some(TaskInfo { task_id: name.parse().unwrap(), grant_digest: [1; 32] });
        info.delegation = Some(Delegation {
            parent: format!("spiffe://{name}/agent/{name}/task/{name}").parse().unwrap(),
            chain_digest: [1; 32],
            depth: 255,
        });
        let der = info.encode().unwrap();
        assert_eq!(AgentInfo::decode(&der), Ok(info));
    }

    #[test]
    fn each_fault_is_named() {
        let good = full().encode().unwrap();
        let with = |from: &[u8], to: &[u8]| {
            let at = good.windows(from.len()).position(|w| w == from).unwrap();
            let mut bad = good.clone();
            bad[at..at + from.len()].copy_from_slice(to);
            AgentInfo::decode(&bad).unwrap_err()
        };
        assert_eq!(with(&[2, 1, 1], &[2, 1, 2]), AgentInfoError::Version { found: 2, known: 1 });
        assert_eq!(with(&[10, 1, 3, 10], &[10, 1, 4, 10]), AgentInfoError::Field { field: "tier" });
        assert_eq!(with(&[10, 1, 3, 4], &[10, 1, 9, 4]), AgentInfoError::Field { field: "custody" });
        assert_eq!(with(b"t-1", b"T-1"), AgentInfoError::Field { field: "task id" });
        assert_eq!(with(b"/agent/", b"/agont/"), AgentInfoError::Field { field: "delegation parent" });
        assert_eq!(with(&[2, 1, 2], &[2, 1, 0]), AgentInfoError::Field { field: "delegation depth" });
        let trailing = [&good[..], &[0]].concat();
        assert!(matches!(AgentInfo::decode(&trailing), Err(AgentInfoError::Der { .. })));
        assert!(matches!(AgentInfo::decode(&good[..good.len() - 1]), Err(AgentInfoError::Der { .. })));
        assert!(matches!(AgentInfo::decode(&[0x30; 2000]), Err(AgentInfoError::TooLarge { len: 2000, .. })));
        let mut host_parent = full();
        if let Some(d) = &mut host_parent.delegation {
            d.parent = "spiffe://example.org/host/h".parse().unwrap();
        }
        assert_eq!(host_parent.encode(), Err(AgentInfoError::Field { field: "delegation parent" }));
    }

    #[test]
    fn extra_field_in_the_sequence_is_refused() {
        let mut bad = full().encode().unwrap();
        bad.extend([5, 0]);
        let len = bad.len();
        // 30 81 LL: the outer length grows by the two bytes of the NULL.
        assert_eq!(bad[1], 0x81);
        bad[2] = u8::try_from(len - 3).unwrap();
        assert!(matches!(AgentInfo::decode(&bad), Err(AgentInfoError::Der { .. })));
    }
}
