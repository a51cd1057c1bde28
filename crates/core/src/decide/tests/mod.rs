//! What the tests share: one host, one agent, one registration of each kind.

mod cases;
mod properties;

use super::*;
use crate::registration::parse_files;
use crate::selector::SelectorSet;

const NOW: i64 = 1_800_000_000;

fn registered(tier: Tier, key: &str) -> Registered {
    registered_with(tier, key, "[\"unix:uid:7\", \"systemd:unit:a.service\"]")
}

fn registered_with(tier: Tier, key: &str, selectors: &str) -> Registered {
    let text = format!(
        "[[agent]]\nname = \"a\"\nowner = \"a@example.org\"\ntier = \"{tier}\"\nhosts = [\"h-*\"]\n\
         selectors = {selectors}\nkey = {key}\ndns_names = [\"a.org\"]\n"
    );
    let registration = parse_files(&[("a.toml", text)]).unwrap().remove(0);
    Registered { registration, revision: 4 }
}

const SOFTWARE: &str = "{ custody = \"software\" }";
const TPM: &str = "{ custody = \"tpm-certified\" }";
const TPM_PCR: &str = "{ custody = \"tpm-certified\", bind_pcrs = [0, 7] }";
const PKCS11: &str = "{ custody = \"pkcs11-asserted\" }";

/// A host that meets every requirement.
fn host() -> HostStanding {
    HostStanding {
        host_id: "h-1".parse().unwrap(),
        proof: HostProof::Tpm { simulated: false, ek_trust: EkTrust::Certificate },
        pcr: PcrStanding::Met { policy: "web".to_owned() },
        attested_at: NOW - 600,
        quote_at: Some(NOW - 60),
        evidence_digest: [5; 32],
        disabled: None,
    }
}

fn join_token_host() -> HostStanding {
    HostStanding { proof: HostProof::JoinToken, pcr: PcrStanding::NoPolicy, quote_at: None, ..host() }
}

fn agent(key: KeyStanding) -> AgentStanding {
    let selectors: SelectorSet =
        ["unix:uid:7", "unix:gid:7", "systemd:unit:a.service"].iter().map(|s| s.parse().unwrap()).collect();
    AgentStanding { instance: InstanceId::from_bytes([1; 16]), selectors, spki: vec![1, 2, 3], key }
}

fn tpm_key(pcrs: &[u8]) -> KeyStanding {
    KeyStanding::Tpm { policy_pcrs: pcrs.iter().copied().collect() }
}

fn pkcs11_key() -> KeyStanding {
    KeyStanding::Pkcs11(Pkcs11Assertion {
        token_label: "agents".to_owned(),
        sensitive: true,
        always_sensitive: true,
        never_extractable: true,
        local: true,
    })
}

fn rules() -> TrustRules {
    TrustRules { accept_pkcs11_asserted: true, ..TrustRules::default() }
}

fn codes(decision: Result<Grant, Refusal>) -> Vec<&'static str> {
    decision.err().map(|r| r.unmet.iter().map(|u| u.requirement.code()).collect()).unwrap_or_default()
}
