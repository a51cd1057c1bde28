//! The checks on one registration. Each fault says where, what, and what to write instead; a fault in one
//! key does not keep the others from being checked.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::time::Duration;

use super::raw::{RawAgent, RawCapability, RawKey};
use super::{
    Fault, HostPattern, KeyDemand, MAX_DESCRIPTION, MAX_DNS_NAMES, MAX_HOSTS, MAX_OWNER, MAX_SELECTORS,
    MIN_LIFETIME, Registration,
};
use crate::capability::{Capability, CapabilitySet};
use crate::id::AgentName;
use crate::selector::{Selector, SelectorKind};
use crate::tier::{Custody, Tier};

/// The faults found so far, and where we are.
pub(super) struct Faults {
    pub(super) file: String,
    /// The table we are in, as in `agent "summarizer"`; empty at the top.
    pub(super) table: String,
    pub(super) list: Vec<Fault>,
}

impl Faults {
    pub(super) fn new(file: &str) -> Self {
        Self { file: file.to_owned(), table: String::new(), list: vec![] }
    }

    pub(super) fn add(&mut self, key: impl Display, problem: impl Display) {
        let key = format!("{} {key}", self.table).trim().to_owned();
        self.list.push(Fault { file: self.file.clone(), key, problem: problem.to_string() });
    }

    fn take<T, E: Display>(&mut self, key: impl Display, result: Result<T, E>) -> Option<T> {
        result.map_err(|e| self.add(key, e)).ok()
    }

    fn required<T>(&mut self, key: &str, value: Option<T>, example: &str) -> Option<T> {
        if value.is_none() {
            self.add(key, format_args!("missing: write {example}"));
        }
        value
    }
}

/// The registration, or `None` with at least one fault added.
pub(super) fn agent(raw: RawAgent, faults: &mut Faults) -> Option<Registration> {
    let before = faults.list.len();
    let name = faults.required("name", raw.name, "name = \"summarizer\"");
    let name = name.and_then(|n| faults.take("name", n.parse::<AgentName>()));
    let owner = faults.required("owner", raw.owner, "owner = \"mail-team@example.org\"");
    let owner = owner.and_then(|o| check_owner(o, faults));
    let tier = faults.required("tier", raw.tier, "tier = \"enterprise\"");
    let tier = tier.and_then(|t| faults.take("tier", t.parse::<Tier>()));
    let hosts =
        faults.required("hosts", raw.hosts, "hosts = [\"web-01\", \"web-*\"], or [\"*\"] for every host");
    let hosts = hosts.and_then(|h| check_hosts(&h, faults));
    let selectors = faults.required("selectors", raw.selectors, "selectors = [\"unix:user:mailbot\"]");
    let selectors = selectors.and_then(|s| check_selectors(&s, faults));
    if let (Some(tier), Some(selectors)) = (tier, &selectors) {
        check_code(tier, selectors, faults);
    }
    let lifetime = check_lifetime(raw.lifetime.as_deref(), tier, faults);
    let key = check_key(raw.key, tier, faults);
    let dns_names = check_dns_names(raw.dns_names, faults);
    let description = check_description(raw.description, faults);
    let capabilities = check_capabilities(&raw.capability, faults);
    if faults.list.len() > before {
        return None;
    }
    let registration = Registration {
        name: name?,
        owner: owner?,
        tier: tier?,
        hosts: hosts?,
        selectors: selectors?,
        lifetime: lifetime?,
        key: key?,
        dns_names: dns_names?,
        description: description?,
        capabilities: capabilities?,
        digest: [0; 32],
    };
    Some(registration.with_digest())
}

fn check_owner(owner: String, faults: &mut Faults) -> Option<String> {
    let halves =
        owner.split_once('@').is_some_and(|(l, r)| !l.is_empty() && !r.is_empty() && !r.contains('@'));
    let clean = !owner.chars().any(|c| c.is_whitespace() || c.is_control());
    if halves && clean && owner.len() <= MAX_OWNER {
        return Some(owner);
    }
    faults.add(
        "owner",
        format_args!(
            "{:?} is not the address of a person or a team: write one of at most {MAX_OWNER} bytes, as in \
             mail-team@example.org",
            cut(&owner)
        ),
    );
    None
}

fn check_hosts(raw: &[String], faults: &mut Faults) -> Option<BTreeSet<HostPattern>> {
    if raw.is_empty() || raw.len() > MAX_HOSTS {
        let n = raw.len();
        faults.add("hosts", format_args!("{n} entries: write 1 to {MAX_HOSTS}, or [\"*\"] for every host"));
        return None;
    }
    let mut hosts = BTreeSet::new();
    for (i, text) in raw.iter().enumerate() {
        let key = format!("hosts[{}]", i + 1);
        match text.parse::<HostPattern>() {
            Ok(pattern) => {
                if !hosts.insert(pattern) {
                    faults.add(key, format_args!("{text:?} stands there twice"));
                }
            }
            Err(e) => faults.add(key, format_args!("{e}; one '*' may stand at the end")),
        }
    }
    Some(hosts)
}

fn check_selectors(raw: &[String], faults: &mut Faults) -> Option<Vec<Selector>> {
    if raw.is_empty() || raw.len() > MAX_SELECTORS {
        faults.add("selectors", format_args!("{} entries: write 1 to {MAX_SELECTORS}", raw.len()));
        return None;
    }
    let mut selectors = BTreeSet::new();
    let mut of_kind: BTreeMap<SelectorKind, Selector> = BTreeMap::new();
    for (i, text) in raw.iter().enumerate() {
        let key = format!("selectors[{}]", i + 1);
        let Some(selector) = faults.take(&key, text.parse::<Selector>()) else { continue };
        if !selectors.insert(selector.clone()) {
            faults.add(key, format_args!("{selector} stands there twice"));
            continue;
        }
        // All selectors must match, and a process has one of each, supplementary groups excepted.
        let many = selector.kind() == SelectorKind::UnixSupplementaryGid;
        match of_kind.get(&selector.kind()) {
            Some(other) if !many => faults.add(
                key,
                format_args!(
                    "{selector} contradicts {other}: all selectors must match, so no process ever would; \
                     write two registrations instead"
                ),
            ),
            _ => drop(of_kind.insert(selector.kind(), selector)),
        }
    }
    Some(selectors.into_iter().collect())
}

/// Enterprise and advanced know the agent by its code, not only by its user.
fn check_code(tier: Tier, selectors: &[Selector], faults: &mut Faults) {
    if tier > Tier::Foundation && !selectors.iter().any(|s| s.kind().binds_code()) {
        faults.add(
            "selectors",
            format_args!(
                "{tier} demands one that binds the agent's code: add exe:sha256:…, systemd:unit:… or \
                 container:image-digest:…, or write tier = \"foundation\""
            ),
        );
    }
}

fn check_lifetime(raw: Option<&str>, tier: Option<Tier>, faults: &mut Faults) -> Option<Duration> {
    let Some(text) = raw else { return tier.map(Tier::default_lifetime) };
    let lifetime = match humantime::parse_duration(text) {
        Ok(lifetime) => lifetime,
        Err(e) => {
            faults.add("lifetime", format_args!("{:?} is no duration ({e}): write as in \"30m\"", cut(text)));
            return None;
        }
    };
    let max = tier?.max_lifetime();
    if lifetime.subsec_nanos() != 0 || lifetime < MIN_LIFETIME || lifetime > max {
        let (min, max) = (humantime::format_duration(MIN_LIFETIME), humantime::format_duration(max));
        faults.add(
            "lifetime",
            format_args!(
                "{:?}: write whole seconds between {min} and {max}, the most of its tier",
                cut(text)
            ),
        );
        return None;
    }
    Some(lifetime)
}

fn check_key(raw: Option<RawKey>, tier: Option<Tier>, faults: &mut Faults) -> Option<KeyDemand> {
    let raw = raw.unwrap_or(RawKey { custody: None, bind_pcrs: vec![] });
    let custody = match &raw.custody {
        Some(text) => faults.take("key.custody", parse_custody(text)),
        None => tier.map(|t| if t == Tier::Advanced { Custody::TpmCertified } else { Custody::Software }),
    };
    if tier == Some(Tier::Advanced) && custody == Some(Custody::Software) {
        faults.add(
            "key.custody",
            "advanced demands a key in hardware: write \"tpm-certified\" (or leave it out), or \
             \"pkcs11-asserted\" where the trust domain accepts it",
        );
    }
    if let Some(custody) = custody.filter(|&c| c != Custody::TpmCertified && !raw.bind_pcrs.is_empty()) {
        faults.add(
            "key.bind_pcrs",
            format_args!(
                "a key of custody {custody} cannot be bound to PCRs: write custody = \"tpm-certified\""
            ),
        );
    }
    let mut bind_pcrs = BTreeSet::new();
    for &pcr in &raw.bind_pcrs {
        // TCG PC Client Platform TPM Profile, section 4.6: PCR 0 to 23.
        match u8::try_from(pcr).ok().filter(|&pcr| pcr < 24) {
            None => faults.add("key.bind_pcrs", format_args!("{pcr} is no PCR: write 0 to 23")),
            Some(pcr) if !bind_pcrs.insert(pcr) => {
                faults.add("key.bind_pcrs", format_args!("{pcr} stands there twice"));
            }
            Some(_) => {}
        }
    }
    Some(KeyDemand { custody: custody?, bind_pcrs })
}

fn parse_custody(text: &str) -> Result<Custody, String> {
    match text.parse() {
        Ok(Custody::Simulated) => {
            Err("simulated is found out, never asked for: write \"tpm-certified\"".to_owned())
        }
        Ok(custody) => Ok(custody),
        Err(_) => Err(format!("{:?} is none of software, pkcs11-asserted, tpm-certified", cut(text))),
    }
}

fn check_dns_names(raw: Vec<String>, faults: &mut Faults) -> Option<BTreeSet<String>> {
    if raw.len() > MAX_DNS_NAMES {
        faults.add("dns_names", format_args!("{} entries, more than {MAX_DNS_NAMES}", raw.len()));
        return None;
    }
    let mut names = BTreeSet::new();
    for (i, name) in raw.into_iter().enumerate() {
        let key = format!("dns_names[{}]", i + 1);
        if !is_dns_name(&name) {
            faults.add(
                key,
                format_args!(
                    "{:?} is no DNS name: write labels of a-z, 0-9 and '-' with '.' between, without '*', \
                     without a '.' at the end, and no IP address",
                    cut(&name)
                ),
            );
        } else if let Some(name) = names.replace(name) {
            faults.add(key, format_args!("{name:?} stands there twice"));
        }
    }
    Some(names)
}

/// RFC 1123 section 2.1 host names, in lower case: labels of at most 63, at most 253 in all (RFC 1035
/// section 2.3.4); a last label of digits alone would read as an IP address.
fn is_dns_name(name: &str) -> bool {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    let numeric = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    name.len() <= 253 && name.split('.').all(label) && !numeric
}

fn check_description(text: String, faults: &mut Faults) -> Option<String> {
    if text.len() > MAX_DESCRIPTION || text.chars().any(char::is_control) {
        faults.add("description", format_args!("write one line of at most {MAX_DESCRIPTION} bytes"));
        return None;
    }
    Some(text)
}

fn check_capabilities(raw: &[RawCapability], faults: &mut Faults) -> Option<CapabilitySet> {
    let mut all = vec![];
    for (i, c) in raw.iter().enumerate() {
        let key = format!("capability[{}]", i + 1);
        let Some(capability) = faults.take(&key, Capability::parse(&c.action, &c.resource)) else { continue };
        if all.contains(&capability) {
            faults.add(key, format_args!("{capability} stands there twice"));
        }
        all.push(capability);
    }
    faults.take("capability", CapabilitySet::new(all))
}

fn cut(text: &str) -> String {
    text.chars().take(64).collect()
}
