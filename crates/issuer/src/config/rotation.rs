//! `[ca.rotation]`: when CAs are replaced, and `ca.root`: where the roots' keys are.

use std::time::Duration;

use serde::Deserialize;

use super::Pkcs11Config;
use super::check::Faults;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// Where the roots' keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    /// In the token of the issuing CAs' keys.
    Here,
    /// In another token, opened only to make or to sign a CA.
    Token(Pkcs11Config),
    /// Nowhere that this machine can reach: certificates of issuing CAs are installed by hand.
    Offline,
}

/// `ca.root` as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum RootKeys {
    Token,
    OtherToken,
    Offline,
}

/// When CAs are replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    /// The age at which an issuing CA is replaced by itself; none for never.
    pub issuing_after: Option<Duration>,
    /// The age at which a root is replaced by itself; none for never.
    pub root_after: Option<Duration>,
    /// How long a root is in the bundle before anything is signed under it.
    pub overlap: Duration,
    /// How long after the renewals of what a tainted CA signed the rest is revoked.
    pub taint_grace: Duration,
    /// How many agents a second are told to renew when a CA is tainted.
    pub renewals_per_second: u32,
    /// Keep the keys of CAs that are over.
    pub keep_keys: bool,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRotation {
    pub(super) issuing_after: Option<String>,
    pub(super) root_after: Option<String>,
    pub(super) overlap: Option<String>,
    pub(super) taint_grace: Option<String>,
    pub(super) renewals_per_second: Option<u32>,
    pub(super) keep_keys: Option<bool>,
}

impl Faults {
    pub(super) fn rotation(&mut self, raw: RawRotation, issuing_lifetime: Duration) -> Rotation {
        let half = issuing_lifetime.as_secs() / 2;
        let per_second = raw.renewals_per_second.unwrap_or(100);
        if per_second == 0 {
            self.note("ca.rotation.renewals_per_second", "must be at least 1");
        }
        let issuing_after = self.age("ca.rotation.issuing_after", raw.issuing_after, Some(half));
        let root_after = self.age("ca.rotation.root_after", raw.root_after, None);
        if issuing_after.is_some_and(|age| age >= issuing_lifetime) {
            self.note(
                "ca.rotation.issuing_after",
                "is no less than ca.issuing_lifetime: issuing CAs would end before they are replaced",
            );
        }
        Rotation {
            issuing_after,
            root_after,
            overlap: self.duration("ca.rotation.overlap", raw.overlap, DAY, 1..=365 * DAY),
            taint_grace: self.duration("ca.rotation.taint_grace", raw.taint_grace, MINUTE, 1..=DAY),
            renewals_per_second: per_second,
            keep_keys: raw.keep_keys.unwrap_or(false),
        }
    }

    /// An age, or `never`.
    fn age(&mut self, key: &str, text: Option<String>, default: Option<u64>) -> Option<Duration> {
        match text.as_deref() {
            None => default.map(Duration::from_secs),
            Some("never") => None,
            Some(_) => Some(self.duration(key, text, DAY, 10..=9131 * DAY)),
        }
    }

    pub(super) fn roots(
        &mut self,
        root: Option<RootKeys>,
        token: Option<Pkcs11Config>,
        software: bool,
    ) -> Roots {
        match (root.unwrap_or(RootKeys::Token), token) {
            (RootKeys::Token, None) => Roots::Here,
            (RootKeys::Offline | RootKeys::OtherToken, _) if software => {
                self.note("ca.root", "has no meaning with backend = \"software\": remove it");
                Roots::Here
            }
            (RootKeys::Offline, None) => Roots::Offline,
            (RootKeys::OtherToken, Some(token)) => Roots::Token(token),
            (RootKeys::OtherToken, None) => {
                self.note(
                    "ca.root_token",
                    "is missing: give module, token_label, and pin_file or pin_credential",
                );
                Roots::Here
            }
            (RootKeys::Token | RootKeys::Offline, Some(_)) => {
                self.note(
                    "ca.root_token",
                    "is used with ca.root = \"other-token\" alone: set that, or remove this",
                );
                Roots::Here
            }
        }
    }
}
