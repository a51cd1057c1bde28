//! HTTP, as far as logs and receivers need it: bounded in size and time, over TLS where the address says so, and
//! never led elsewhere.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use ureq::Agent;
use ureq::http::Response;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

use crate::failure::Failure;

/// How often a file is asked for that a server does not answer for the moment.
const ATTEMPTS: u32 = 3;
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(500);
/// Longest that the text of an error is, of a server's own words.
const MAX_WORDS: u64 = 512;

/// Which roots a server is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trust {
    /// The system's.
    System,
    /// Those of a PEM file alone.
    File(PathBuf),
}

/// Bounds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// From the connection to the last byte.
    pub(super) whole: Duration,
}

/// A client.
pub(super) struct Web {
    agent: Agent,
}

impl Trust {
    pub(super) fn of(file: Option<&Path>) -> Self {
        file.map_or(Self::System, |file| Self::File(file.to_owned()))
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, Failure> {
        match self {
            // Those that cannot be read are left out, as everywhere on the system.
            Self::System => Ok(rustls_native_certs::load_native_certs().certs),
            Self::File(file) => {
                let certificates = CertificateDer::pem_file_iter(file)
                    .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                    .map_err(|error| Failure::usage(format!("cannot read {}: {error}", file.display())))?;
                if certificates.is_empty() {
                    return Err(Failure::usage(format!("{} has no certificate", file.display())));
                }
                Ok(certificates)
            }
        }
    }

    /// For TLS that is not HTTP's.
    pub(super) fn client_config(&self) -> Result<Arc<rustls::ClientConfig>, Failure> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(self.certificates()?);
        let config = rustls::ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| Failure::refused(format!("TLS: {error}")))?;
        Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

impl Web {
    /// A client with these roots and bounds. It follows no redirection: the address that was given is the one that
    /// was meant.
    pub(super) fn new(trust: &Trust, limits: Limits) -> Result<Self, Failure> {
        let roots = trust.certificates()?;
        let roots = roots.iter().map(|der| Certificate::from_der(der).to_owned());
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(provider())
            .root_certs(RootCerts::Specific(Arc::new(roots.collect())))
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .timeout_global(Some(limits.whole))
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .max_response_header_size(16 << 10)
            .user_agent(concat!("hallmark/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Self { agent: config.into() })
    }

    /// Reads a file of at most `most` bytes. What a server may have overcome in a moment is asked for again.
    pub(super) fn get(&self, url: &str, most: usize) -> Result<Vec<u8>, String> {
        let mut attempt = 1;
        loop {
            match self.get_once(url, most) {
                Err((error, true)) if attempt == ATTEMPTS => return Err(error),
                Err((_, true)) => {
                    std::thread::sleep(PAUSE * attempt);
                    attempt += 1;
                }
                Err((error, false)) => return Err(error),
                Ok(content) => return Ok(content),
            }
        }
    }

    /// The error, and whether it may be another at the next attempt.
    fn get_once(&self, url: &str, most: usize) -> Result<Vec<u8>, (String, bool)> {
        let mut answer = self.agent.get(url).call().map_err(|error| {
            let slow = matches!(error, ureq::Error::Timeout(_));
            (error.to_string(), !slow)
        })?;
        let status = answer.status().as_u16();
        if status != 200 {
            return Err((refusal(&mut answer), status >= 500 || status == 429));
        }
        let read = answer.body_mut().with_config().limit(most as u64).read_to_vec();
        read.map_err(|error| match error {
            ureq::Error::BodyExceedsLimit(_) => (format!("it has more than {most} bytes"), false),
            error => (error.to_string(), !matches!(error, ureq::Error::Timeout(_))),
        })
    }

    /// Hands something over; done only once the server has answered that it has it.
    pub(super) fn post(
        &self,
        url: &str,
        kind: &str,
        authorization: Option<&str>,
        body: &[u8],
    ) -> Result<(), String> {
        let mut request = self.agent.post(url).header("content-type", kind);
        if let Some(value) = authorization {
            request = request.header("authorization", value);
        }
        let mut answer = request.send(body).map_err(|error| error.to_string())?;
        if answer.status().is_success() { Ok(()) } else { Err(refusal(&mut answer)) }
    }
}

/// Why a server's answer is none.
fn refusal(answer: &mut Response<ureq::Body>) -> String {
    let status = answer.status();
    if status.is_redirection() {
        let location = answer.headers().get("location").and_then(|value| value.to_str().ok());
        let location = location.unwrap_or("somewhere else").to_owned();
        return format!(
            "the server answered {status} and points to {location:?}: give that address if it is the right one"
        );
    }
    let words = answer.body_mut().with_config().limit(MAX_WORDS).read_to_string().unwrap_or_default();
    let words: String = words.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if words.is_empty() || words.starts_with('<') {
        format!("the server answered {status}")
    } else {
        format!("the server answered {status}: {words}")
    }
}

/// What a header `Authorization` says, from a file that holds nothing else.
pub(super) fn authorization(file: &Path) -> Result<zeroize::Zeroizing<String>, Failure> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| Failure::usage(format!("cannot read {}: {error}", file.display())))?;
    let text = zeroize::Zeroizing::new(text);
    let value = zeroize::Zeroizing::new(text.trim().to_owned());
    if value.is_empty() || value.chars().any(|c| !(' '..='~').contains(&c)) {
        return Err(Failure::usage(format!("{} is no value of a header", file.display()))
            .remedy("it holds one line, as: Bearer TOKEN"));
    }
    Ok(value)
}

/// A secret goes over TLS, or stays on this machine.
pub(super) fn may_carry_secret(url: &str) -> bool {
    let Some(rest) = url.strip_prefix("http://") else { return true };
    let host = rest.split(['/', '?']).next().unwrap_or_default();
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    ["localhost", "127.0.0.1", "[::1]"].contains(&host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_leave_the_machine_over_tls_alone() {
        for (url, may) in [
            ("https://example.org/", true),
            ("http://127.0.0.1:8080/x", true),
            ("http://[::1]:80", true),
            ("http://localhost", true),
            ("http://example.org", false),
            ("http://localhost.example.org", false),
            ("http://localhost@example.org/", false),
        ] {
            assert_eq!(may_carry_secret(url), may, "{url}");
        }
    }
}
