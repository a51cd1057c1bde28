//! A test authority that certifies endorsement keys, in the shape real ones have.

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, SubjectPublicKeyInfo,
};
use std::fs;
use std::path::{Path, PathBuf};
use time::{Duration, OffsetDateTime};

/// What swtpm calls itself in an EK certificate (TCG vendor id of IBM's simulator).
pub const SWTPM_MANUFACTURER: &str = "id:00001014";

/// A root and an issuing CA, together with the configuration that makes `swtpm_setup` use them.
pub struct SwtpmCa {
    dir: PathBuf,
    root_der: Vec<u8>,
    issuer_der: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

/// What an EK certificate made by [`SwtpmCa::ek_certificate`] says besides the key.
#[derive(Debug, Clone)]
pub struct EkProfile {
    /// `tpmManufacturer` in the subject alternative name, e.g. `id:494E5443` for Intel.
    pub manufacturer: String,
    /// `tpmModel`.
    pub model: String,
    /// Start of validity.
    pub not_before: OffsetDateTime,
    /// End of validity.
    pub not_after: OffsetDateTime,
}

impl Default for EkProfile {
    fn default() -> Self {
        let now = OffsetDateTime::now_utc();
        Self {
            manufacturer: SWTPM_MANUFACTURER.into(),
            model: "swtpm".into(),
            not_before: now - Duration::HOUR,
            not_after: now + Duration::days(3650),
        }
    }
}

impl SwtpmCa {
    /// Makes a fresh root and issuing CA in `dir` (created if need be), named after the directory.
    ///
    /// # Errors
    /// Files that cannot be written.
    pub fn new(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref().to_path_buf();
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let name = dir.file_name().map_or_else(|| "kit".into(), |n| n.to_string_lossy().into_owned());

        let root_key = KeyPair::generate()?;
        let root_params = ca_params(&format!("TPM Root {name}"), BasicConstraints::Unconstrained);
        let root_der = root_params.self_signed(&root_key)?.der().to_vec();
        let root = Issuer::new(root_params, root_key);

        let key = KeyPair::generate()?;
        let key_pem = key.serialize_pem();
        let mut params = ca_params(&format!("TPM Issuer {name}"), BasicConstraints::Constrained(0));
        params.use_authority_key_identifier_extension = true;
        let issuer_der = params.signed_by(&key, &root)?.der().to_vec();
        let issuer = Issuer::new(params, key);

        let ca = Self { dir, root_der, issuer_der, issuer };
        fs::write(ca.root_path(), to_pem(&ca.root_der))?;
        fs::write(ca.issuer_path(), to_pem(&ca.issuer_der))?;
        fs::write(ca.dir.join("issuer-key.pem"), key_pem)?;
        ca.write_tool_configuration()?;
        Ok(ca)
    }

    /// The root certificate, PEM.
    #[must_use]
    pub fn root_path(&self) -> PathBuf {
        self.dir.join("root.pem")
    }

    /// The issuing certificate, PEM.
    #[must_use]
    pub fn issuer_path(&self) -> PathBuf {
        self.dir.join("issuer.pem")
    }

    /// The root certificate, DER.
    #[must_use]
    pub fn root_der(&self) -> &[u8] {
        &self.root_der
    }

    /// The issuing certificate, DER.
    #[must_use]
    pub fn issuer_der(&self) -> &[u8] {
        &self.issuer_der
    }

    /// Certifies an endorsement key as the TCG EK Credential Profile (2.6, part 3.2) asks: empty subject, critical
    /// directoryName SAN with manufacturer, model and version, EKU tcg-kp-EKCertificate.
    ///
    /// # Errors
    /// A key that is no SubjectPublicKeyInfo of a known algorithm.
    pub fn ek_certificate(&self, spki_der: &[u8], profile: &EkProfile) -> Result<Vec<u8>> {
        let key = SubjectPublicKeyInfo::from_der(spki_der).context("EK public key")?;
        let elliptic = spki_der.windows(7).any(|w| w == ID_EC_PUBLIC_KEY);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.not_before = profile.not_before;
        params.not_after = profile.not_after;
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages =
            vec![if elliptic { KeyUsagePurpose::KeyAgreement } else { KeyUsagePurpose::KeyEncipherment }];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(vec![2, 23, 133, 8, 1])];
        let mut san = CustomExtension::from_oid_content(
            &[2, 5, 29, 17],
            tpm_san(&profile.manufacturer, &profile.model),
        );
        san.set_criticality(true);
        params.custom_extensions = vec![san];
        Ok(params.signed_by(&key, &self.issuer)?.der().to_vec())
    }

    /// The configuration for `swtpm_setup --config`.
    pub(super) fn setup_conf(&self) -> PathBuf {
        self.dir.join("setup.conf")
    }

    fn write_tool_configuration(&self) -> Result<()> {
        let dir = self.dir.display();
        fs::write(
            self.dir.join("localca.conf"),
            format!(
                "statedir = {dir}\nsigningkey = {dir}/issuer-key.pem\nissuercert = {dir}/issuer.pem\n\
                 certserial = {dir}/certserial\n"
            ),
        )?;
        fs::write(
            self.dir.join("localca.options"),
            "--platform-manufacturer Kit\n--platform-version 1.0\n--platform-model Kit\n",
        )?;
        fs::write(
            self.setup_conf(),
            format!(
                "create_certs_tool = /usr/bin/swtpm_localca\ncreate_certs_tool_config = {dir}/localca.conf\n\
                 create_certs_tool_options = {dir}/localca.options\n"
            ),
        )?;
        Ok(())
    }
}

/// id-ecPublicKey, 1.2.840.10045.2.1 (RFC 5480 §2.1.1), without tag and length.
const ID_EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];

fn ca_params(name: &str, basic: BasicConstraints) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut dn = DistinguishedName::new();
    dn.push(DnType::CommonName, name);
    params.distinguished_name = dn;
    params.is_ca = IsCa::Ca(basic);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = OffsetDateTime::now_utc() - Duration::days(1);
    params.not_after = OffsetDateTime::now_utc() + Duration::days(7300);
    params
}

/// GeneralNames with one directoryName of tcg-at-tpmManufacturer, -Model and -Version.
fn tpm_san(manufacturer: &str, model: &str) -> Vec<u8> {
    let rdns: Vec<u8> = [(1u8, manufacturer), (2, model), (3, "id:00010001")]
        .into_iter()
        .flat_map(|(arc, value)| {
            let oid = tlv(0x06, &[0x67, 0x81, 0x05, 0x02, arc]);
            tlv(0x31, &tlv(0x30, &[oid, tlv(0x0c, value.as_bytes())].concat()))
        })
        .collect();
    tlv(0x30, &tlv(0xa4, &tlv(0x30, &rdns)))
}

/// DER with a short or one-byte long length: enough for names.
fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).unwrap_or(u8::MAX);
    let mut out = if length < 0x80 { vec![tag, length] } else { vec![tag, 0x81, length] };
    out.extend_from_slice(content);
    out
}

fn to_pem(der: &[u8]) -> String {
    pem::encode(&pem::Pem::new("CERTIFICATE", der))
}
