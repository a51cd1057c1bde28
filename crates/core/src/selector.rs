//! Selectors: facts about a process that the kernel, systemd or a container runtime reports.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// Longest selector, in bytes.
pub const MAX_SELECTOR: usize = 4096 + 32;

/// What a selector speaks about. The set is closed: an unknown kind in a registration is a fault, not
/// a fact that never matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SelectorKind {
    /// `unix:uid:NUMBER`: the effective uid at connect (SO_PEERCRED).
    UnixUid,
    /// `unix:gid:NUMBER`: the effective gid at connect (SO_PEERCRED).
    UnixGid,
    /// `unix:supplementary-gid:NUMBER`: one of the supplementary groups.
    UnixSupplementaryGid,
    /// `unix:user:NAME`: the user's name on that host.
    UnixUser,
    /// `exe:path:/ABSOLUTE/PATH`: where the running image was started from.
    ExePath,
    /// `exe:sha256:HEX`: digest of the running image.
    ExeSha256,
    /// `systemd:unit:NAME`: the system unit whose control group holds the process.
    SystemdUnit,
    /// `cgroup:path:/PATH`: the process's control group (v2).
    CgroupPath,
    /// `container:id:HEX`: the container id found in the control group's path.
    ContainerId,
    /// `container:image-digest:sha256:HEX`: the image a container was started from.
    ContainerImageDigest,
}

impl SelectorKind {
    /// All kinds.
    pub const ALL: [SelectorKind; 10] = [
        SelectorKind::UnixUid,
        SelectorKind::UnixGid,
        SelectorKind::UnixSupplementaryGid,
        SelectorKind::UnixUser,
        SelectorKind::ExePath,
        SelectorKind::ExeSha256,
        SelectorKind::SystemdUnit,
        SelectorKind::CgroupPath,
        SelectorKind::ContainerId,
        SelectorKind::ContainerImageDigest,
    ];

    /// The prefix, with its trailing colon.
    pub fn prefix(self) -> &'static str {
        match self {
            SelectorKind::UnixUid => "unix:uid:",
            SelectorKind::UnixGid => "unix:gid:",
            SelectorKind::UnixSupplementaryGid => "unix:supplementary-gid:",
            SelectorKind::UnixUser => "unix:user:",
            SelectorKind::ExePath => "exe:path:",
            SelectorKind::ExeSha256 => "exe:sha256:",
            SelectorKind::SystemdUnit => "systemd:unit:",
            SelectorKind::CgroupPath => "cgroup:path:",
            SelectorKind::ContainerId => "container:id:",
            SelectorKind::ContainerImageDigest => "container:image-digest:",
        }
    }

    /// Whether this kind ties an agent to its code or to the unit that runs it, as the enterprise and
    /// advanced tiers demand: executable digest, systemd unit or container image digest.
    pub fn binds_code(self) -> bool {
        matches!(
            self,
            SelectorKind::ExeSha256 | SelectorKind::SystemdUnit | SelectorKind::ContainerImageDigest
        )
    }
}

/// One fact, such as `unix:uid:1001`, in canonical form.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Selector {
    kind: SelectorKind,
    value: String,
}

/// Why a text is not a selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// No known prefix.
    #[error(
        "{text:?} begins with none of unix:uid:, unix:gid:, unix:supplementary-gid:, unix:user:, exe:path:, exe:sha256:, systemd:unit:, cgroup:path:, container:id:, container:image-digest:"
    )]
    Kind {
        /// The text read, cut to 64 characters.
        text: String,
    },
    /// The value is not of its kind's form.
    #[error("{text:?}: the value must be {expected}")]
    Value {
        /// The text read, cut to 128 characters.
        text: String,
        /// The form expected.
        expected: &'static str,
    },
}

impl Selector {
    /// A selector of this kind and value.
    ///
    /// # Errors
    /// The value is not in the kind's canonical form.
    pub fn new(kind: SelectorKind, value: impl Into<String>) -> Result<Self, SelectorError> {
        let value = value.into();
        check_value(kind, &value).map_err(|expected| SelectorError::Value {
            text: format!("{}{value}", kind.prefix()).chars().take(128).collect(),
            expected,
        })?;
        Ok(Self { kind, value })
    }

    /// What it speaks about.
    pub fn kind(&self) -> SelectorKind {
        self.kind
    }

    /// The value after the prefix.
    pub fn value(&self) -> &str {
        &self.value
    }
}

fn check_value(kind: SelectorKind, v: &str) -> Result<(), &'static str> {
    let hex64 = |s: &str| s.len() == 64 && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let clean = !v.is_empty() && v.len() <= 4096 && !v.chars().any(char::is_control);
    match kind {
        SelectorKind::UnixUid | SelectorKind::UnixGid | SelectorKind::UnixSupplementaryGid => {
            let canonical = v.parse::<u32>().is_ok_and(|n| n.to_string() == v);
            canonical.then_some(()).ok_or("a decimal number below 4294967296 without leading zeros")
        }
        SelectorKind::UnixUser => (clean && !v.contains([':', '/', ' ']))
            .then_some(())
            .ok_or("a user name without ':', '/' or spaces"),
        SelectorKind::ExePath => (clean && v.starts_with('/')).then_some(()).ok_or("an absolute path"),
        SelectorKind::ExeSha256 => hex64(v).then_some(()).ok_or("64 lower-case hexadecimal digits"),
        SelectorKind::SystemdUnit => (clean && v.contains('.') && !v.contains('/'))
            .then_some(())
            .ok_or("a unit name with its suffix, as in mailer.service"),
        SelectorKind::CgroupPath => {
            (clean && v.starts_with('/')).then_some(()).ok_or("an absolute control group path")
        }
        SelectorKind::ContainerId => hex64(v).then_some(()).ok_or("64 lower-case hexadecimal digits"),
        SelectorKind::ContainerImageDigest => v
            .strip_prefix("sha256:")
            .is_some_and(hex64)
            .then_some(())
            .ok_or("sha256: and 64 lower-case hexadecimal digits"),
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.kind.prefix(), self.value)
    }
}

impl FromStr for Selector {
    type Err = SelectorError;
    fn from_str(s: &str) -> Result<Self, SelectorError> {
        SelectorKind::ALL
            .into_iter()
            .find_map(|kind| s.strip_prefix(kind.prefix()).map(|value| (kind, value)))
            .ok_or_else(|| SelectorError::Kind { text: s.chars().take(64).collect() })
            .and_then(|(kind, value)| Self::new(kind, value))
    }
}

/// The facts observed about one process.
pub type SelectorSet = BTreeSet<Selector>;

/// Those of `demanded` that `observed` lacks; empty when all match.
pub fn unmatched<'a>(demanded: &'a [Selector], observed: &SelectorSet) -> Vec<&'a Selector> {
    demanded.iter().filter(|s| !observed.contains(*s)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_forms_only() {
        let digest = "ab".repeat(32);
        for good in [
            "unix:uid:0".to_owned(),
            "unix:user:mail-bot".to_owned(),
            "exe:path:/usr/bin/python3.11".to_owned(),
            format!("exe:sha256:{digest}"),
            "systemd:unit:mailer@1.service".to_owned(),
            format!("container:image-digest:sha256:{digest}"),
        ] {
            assert_eq!(good.parse::<Selector>().unwrap().to_string(), good);
        }
        for bad in [
            "unix:uid:01",
            "unix:uid:-1",
            "unix:uid:4294967296",
            "unix:uid:",
            "unix:user:",
            "exe:path:bin/sh",
            "exe:sha256:AB",
            "uid:0",
            "systemd:unit:mailer",
            "cgroup:path:x",
        ] {
            assert!(bad.parse::<Selector>().is_err(), "{bad}");
        }
    }

    #[test]
    fn all_must_match() {
        let observed: SelectorSet = ["unix:uid:1", "unix:gid:1"].iter().map(|s| s.parse().unwrap()).collect();
        let demanded: Vec<Selector> =
            ["unix:uid:1", "unix:gid:2"].iter().map(|s| s.parse().unwrap()).collect();
        assert_eq!(unmatched(&demanded, &observed), [&demanded[1]]);
    }
}
