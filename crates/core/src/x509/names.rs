//! Subject names. They are for people and logs: authorisation reads the SPIFFE ID.

use rcgen::string::PrintableString;
use rcgen::{DistinguishedName, DnType, DnValue};

use super::oid::AT_SERIAL_NUMBER;
use super::serial::Serial;
use crate::id::{InstanceId, Subject, TrustDomain};
use crate::tier::Hierarchy;

/// Ends the commonName of every CA of a lab trust domain, so that no certificate viewer can miss it.
pub const LAB_MARK: &str = "(LAB: software TPMs accepted)";

/// A CA's name. serialNumber makes it unique: successive CAs of one hierarchy never share a name, so a
/// path or a CRL is never held against the wrong key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CaName {
    pub(super) organization: String,
    pub(super) common_name: String,
    pub(super) serial_number: String,
}

impl CaName {
    pub(super) fn new(td: &TrustDomain, hierarchy: Hierarchy, what: &str, lab: bool, serial: Serial) -> Self {
        let mark = if lab { format!(" {LAB_MARK}") } else { String::new() };
        Self {
            organization: td.as_str().to_owned(),
            common_name: format!("Hallmark {hierarchy} {what}{mark}"),
            serial_number: serial.to_string(),
        }
    }

    pub(super) fn is_lab(&self) -> bool {
        self.common_name.ends_with(LAB_MARK)
    }

    pub(super) fn to_rcgen(&self) -> Result<DistinguishedName, rcgen::Error> {
        name(&self.organization, &self.common_name, Some(&self.serial_number))
    }
}

/// A leaf's name: `O=trust domain, CN=agent, serialNumber=instance`; hosts and issuers have no instance.
pub(super) fn leaf_name(
    td: &TrustDomain,
    subject: &Subject,
    instance: Option<InstanceId>,
) -> Result<DistinguishedName, rcgen::Error> {
    let common_name = match subject {
        Subject::Agent(agent) | Subject::Task(agent, _) => agent.as_str(),
        Subject::Host(host) => host.as_str(),
        Subject::Issuer(issuer) => issuer.as_str(),
    };
    name(td.as_str(), common_name, instance.map(|i| i.to_string()).as_deref())
}

fn name(o: &str, cn: &str, serial_number: Option<&str>) -> Result<DistinguishedName, rcgen::Error> {
    let mut dn = DistinguishedName::new();
    dn.push(DnType::OrganizationName, o);
    dn.push(DnType::CommonName, cn);
    if let Some(text) = serial_number {
        // X.520 serialNumber is a PrintableString and nothing else (RFC 5280 appendix A.1).
        let value = DnValue::PrintableString(PrintableString::try_from(text)?);
        dn.push(DnType::CustomDnType(AT_SERIAL_NUMBER.to_vec()), value);
    }
    Ok(dn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ca_name_fits_x520() {
        let td: TrustDomain = "example.org".parse().unwrap();
        for hierarchy in Hierarchy::ALL {
            for what in ["root", "issuing CA"] {
                let name = CaName::new(&td, hierarchy, what, true, Serial::from_random([9; 16]));
                assert!(name.common_name.len() <= 64, "{}", name.common_name);
                assert!(name.is_lab());
                assert!(!CaName::new(&td, hierarchy, what, false, Serial::from_random([9; 16])).is_lab());
            }
        }
    }
}
