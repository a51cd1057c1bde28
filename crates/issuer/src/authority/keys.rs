//! Making CAs: a key in the token, a certificate by the root.

use std::time::Duration;

use anyhow::{Context, bail};
use hallmark_core::id::{IssuerId, TrustDomain};
use hallmark_core::rotation::{Role, Stage};
use hallmark_core::tier::Hierarchy;
use hallmark_core::x509::{CaKey, CaParams, OidArc, Serial, issuing, root};
use hallmark_hsm::{HsmError, Pkcs11Key, Token};
use rand::TryRngCore;

use crate::config::{Config, Roots};
use crate::store::{Authority, TrustDomainRow};
use crate::token;

/// How long a key may be seen half made.
const HALF_MADE: Duration = Duration::from_secs(2);

/// Label of a root's key in its token. Roots are all issuers'.
pub fn root_label(trust_domain: &TrustDomain, hierarchy: Hierarchy, generation: u32) -> String {
    format!("hallmark {trust_domain} {hierarchy} root {generation}")
}

/// Label of an issuing CA's key in the token, which several issuers may share.
pub fn issuing_label(
    trust_domain: &TrustDomain,
    issuer: &IssuerId,
    hierarchy: Hierarchy,
    generation: u32,
) -> String {
    format!("hallmark {trust_domain} {hierarchy} issuing {issuer} {generation}")
}

/// Makes CAs of one trust domain in this token.
#[derive(Debug, Clone, Copy)]
pub struct Maker<'a> {
    /// The configuration in force.
    pub config: &'a Config,
    /// The trust domain.
    pub trust_domain: &'a TrustDomainRow,
    /// The token of the issuing CAs' keys.
    pub token: &'a Token,
}

impl Maker<'_> {
    /// The token of the roots' keys, opened for this use where it is another.
    ///
    /// # Errors
    /// It cannot be opened, or the roots are offline.
    pub fn roots(&self) -> anyhow::Result<Token> {
        match &self.config.roots {
            Roots::Here => Ok(self.token.clone()),
            Roots::Token(other) => token::open_as("ca.root_token", other),
            Roots::Offline => bail!("ca.root = \"offline\": the roots' keys are not here"),
        }
    }

    /// A new root.
    ///
    /// # Errors
    /// The token refuses.
    pub fn root(&self, hierarchy: Hierarchy, generation: u32, now: i64) -> anyhow::Result<Authority> {
        let key_label = root_label(&self.trust_domain.name, hierarchy, generation);
        let key = self.key(&self.roots()?, &key_label)?;
        let arc = self.arc()?;
        let params = self.params(hierarchy, &arc, now, self.config.root_lifetime)?;
        let certificate = root(&params, &key)?.to_vec();
        let made = Authority::new(hierarchy, Role::Root, generation, Stage::Prepared, now);
        Ok(Authority { key_label, certificate, ..made })
    }

    /// A new issuing CA of this issuer under `root`.
    ///
    /// # Errors
    /// A token refuses, or the root has ended.
    pub fn issuing(&self, generation: u32, by: &Authority, now: i64) -> anyhow::Result<Authority> {
        let requested = self.request(by.hierarchy, generation, now)?;
        let key = self.token.ca_key(&requested.key_label)?;
        let root_key = self.roots()?.ca_key(&by.key_label).with_context(|| by.name())?;
        let arc = self.arc()?;
        let params = self.params(by.hierarchy, &arc, now, self.config.issuing_lifetime)?;
        let certificate =
            issuing(&params, key.spki_der(), &by.certificate, &root_key as &dyn CaKey)?.to_vec();
        Ok(Authority { stage: Stage::Prepared, root: by.generation, certificate, ..requested })
    }

    /// A new issuing CA's key, whose certificate is to come from an offline root.
    ///
    /// # Errors
    /// The token refuses.
    pub fn request(&self, hierarchy: Hierarchy, generation: u32, now: i64) -> anyhow::Result<Authority> {
        let issuer = &self.config.issuer_id;
        let key_label = issuing_label(&self.trust_domain.name, issuer, hierarchy, generation);
        self.key(self.token, &key_label)?;
        let made = Authority::new(hierarchy, Role::Issuing, generation, Stage::Requested, now);
        Ok(Authority { key_label, issuer: issuer.to_string(), ..made })
    }

    /// A key of this label. One that is there and in no store was made by a turn that ended before its commit; a half of
    /// one was left by a turn that ended amid the making, and is made anew.
    fn key(&self, token: &Token, label: &str) -> anyhow::Result<Pkcs11Key> {
        let make = || token.generate_ca_key(label, &crate::sha256(label.as_bytes())[..16], self.config.curve);
        let half = |found: &Result<Pkcs11Key, HsmError>| {
            matches!(found, Err(HsmError::KeyNotFound { .. } | HsmError::PublicKeyMissing { .. }))
        };
        let found = match make() {
            Err(HsmError::KeyExists { .. }) => token.ca_key(label),
            other => return other.with_context(|| format!("making {label:?}")),
        };
        if !half(&found) {
            return found.with_context(|| format!("taking up {label:?}"));
        }
        // Another issuer may be making this very root: then it is whole in a moment.
        std::thread::sleep(HALF_MADE);
        match token.ca_key(label) {
            found if half(&found) => {
                tracing::warn!(
                    label,
                    "half of a key was left by an issuer that ended amid its making: made anew"
                );
                token.destroy_key(label).and_then(|()| make())
            }
            found => found,
        }
        .with_context(|| format!("making {label:?}"))
    }

    fn arc(&self) -> anyhow::Result<OidArc> {
        Ok(OidArc::parse(&self.trust_domain.oid_arc)?)
    }

    fn params<'a>(
        &'a self,
        hierarchy: Hierarchy,
        arc: &'a OidArc,
        now: i64,
        lifetime: Duration,
    ) -> anyhow::Result<CaParams<'a>> {
        let mut bytes = [0; 16];
        rand::rngs::OsRng.try_fill_bytes(&mut bytes).context("random bytes")?;
        Ok(CaParams {
            trust_domain: &self.trust_domain.name,
            hierarchy,
            lab: self.trust_domain.lab,
            arc,
            serial: Serial::from_random(bytes),
            now,
            lifetime,
        })
    }
}
