//! A lab domain's certificates as PEM files.

use std::path::PathBuf;

use hallmark_core::tier::{Hierarchy, Tier};
use hallmark_kit::pki::{Identity, TestDomain, pem, serial};

/// A domain's certificates as files.
pub(crate) struct Files {
    pub(crate) domain: TestDomain,
    pub(crate) directory: tempfile::TempDir,
}

impl Files {
    pub(crate) fn new() -> Self {
        let domain =
            TestDomain::lab("example.org").unwrap().with_crl_url("http://crl.example.org/x").unwrap();
        let this = Self { domain, directory: tempfile::tempdir().unwrap() };
        for tier in Tier::ALL {
            let hierarchy = Hierarchy::Tier(tier);
            let trusted: String = Tier::ALL
                .into_iter()
                .filter(|t| *t >= tier)
                .map(|t| pem(this.domain.root(Hierarchy::Tier(t))))
                .collect();
            this.write(&format!("roots-{tier}.pem"), &trusted);
            this.write(&format!("root-{tier}.pem"), &pem(this.domain.root(hierarchy)));
            this.write(&format!("issuing-{tier}.pem"), &pem(this.domain.ca(hierarchy).certificate()));
            this.write(&format!("leaf-{tier}.pem"), &pem(&this.leaf(tier).chain[0]));
        }
        this.write("forged.pem", &pem(&this.forged()));
        this
    }

    pub(crate) fn leaf(&self, tier: Tier) -> Identity {
        self.domain.identity(Hierarchy::Tier(tier), "agent/mailer").unwrap()
    }

    /// What a foundation CA gone bad would sign: a leaf that asserts enterprise.
    pub(crate) fn forged(&self) -> Vec<u8> {
        let hierarchy = Hierarchy::Tier(Tier::Foundation);
        let key = rcgen::KeyPair::try_from(self.domain.ca_pkcs8(hierarchy)).unwrap();
        let issuer = rcgen::Issuer::from_ca_cert_der(self.domain.ca(hierarchy).certificate(), key).unwrap();
        let mut params = rcgen::CertificateParams::default();
        let at = |t| time::OffsetDateTime::from_unix_timestamp(t).unwrap();
        (params.not_before, params.not_after) = (at(self.domain.now - 30), at(self.domain.now + 600));
        params.serial_number = Some(rcgen::SerialNumber::from_slice(serial().as_bytes()));
        let id = self.domain.id("agent/mailer").unwrap().to_string();
        params.subject_alt_names = vec![rcgen::SanType::URI(id.try_into().unwrap())];
        params.is_ca = rcgen::IsCa::ExplicitNoCa;
        params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        // certificatePolicies: ARC.1.1 and ARC.1.2.
        let policy = |n| [0x30, 12, 6, 10, 0x2b, 6, 1, 4, 1, 0x81, 0xfd, 0x59, 1, n];
        let policies = [vec![0x30, 28], policy(1).to_vec(), policy(2).to_vec()].concat();
        params.custom_extensions = vec![rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 32], policies)];
        params.signed_by(&rcgen::KeyPair::generate().unwrap(), &issuer).unwrap().der().to_vec()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name)
    }
}
