//! Where spans go, and how many.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::Deserialize;

/// The table `[traces]` as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawTraces {
    endpoint: Option<String>,
    ca: Option<PathBuf>,
    sample: Option<f64>,
}

/// Where spans go, and how many.
#[derive(Debug, Clone, PartialEq)]
pub struct TracesConfig {
    /// The collector, which speaks OTLP over gRPC: `http://` and a loopback address, or `https://`.
    pub endpoint: String,
    /// Roots that its certificate must chain to, PEM; given exactly with https.
    pub ca: Option<PathBuf>,
    /// The share of traces that is kept, above 0 and up to 1.
    pub sample: f64,
}

// A share that was checked is a number.
impl Eq for TracesConfig {}

impl RawTraces {
    /// What is meant; none where no traces are wanted. Each fault goes to `note` by its key.
    pub fn check(self, note: &mut dyn FnMut(&str, String)) -> Option<TracesConfig> {
        let Some(endpoint) = self.endpoint else {
            if self.ca.is_some() || self.sample.is_some() {
                note("traces", "ca and sample say nothing without endpoint: give it, too".to_owned());
            }
            return None;
        };
        let sample = self.sample.unwrap_or(1.0);
        if !(sample > 0.0 && sample <= 1.0) {
            note(
                "traces.sample",
                format!("{sample} is no share: write a number above 0 and up to 1, as in 0.1"),
            );
        }
        if let Err(problem) = endpoint_sound(&endpoint, self.ca.is_some()) {
            note("traces.endpoint", problem);
        }
        if self.ca.as_ref().is_some_and(|ca| ca.is_relative()) {
            note("traces.ca", "must be an absolute path".to_owned());
        }
        Some(TracesConfig { endpoint, ca: self.ca, sample })
    }
}

fn endpoint_sound(endpoint: &str, has_ca: bool) -> Result<(), String> {
    let form = || format!("{endpoint:?} is neither http://127.0.0.1:PORT nor https://HOST:PORT");
    let uri: http::Uri = endpoint.parse().map_err(|_| form())?;
    let (Some(host), Some(_)) = (uri.host(), uri.port_u16()) else { return Err(form()) };
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() || endpoint.contains('@') {
        return Err(form());
    }
    match (uri.scheme_str(), has_ca) {
        (Some("https"), true) => Ok(()),
        (Some("https"), false) => {
            Err("give ca, too: the PEM file of the roots that the collector's certificate chains to"
                .to_owned())
        }
        (Some("http"), false) => {
            let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
            match address.is_ok_and(|ip| ip.to_canonical().is_loopback()) {
                true => Ok(()),
                false => Err(format!(
                    "{host} is not a loopback address: spans name agents and hosts, and leave this machine by https alone"
                )),
            }
        }
        (Some("http"), true) => Err("ca is of https, and this is http: remove one of the two".to_owned()),
        _ => Err(form()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]
mod tests {
    use super::*;

    fn checked(text: &str) -> (Option<TracesConfig>, Vec<String>) {
        let raw: RawTraces = toml::from_str(text).unwrap();
        let mut faults = Vec::new();
        let config = raw.check(&mut |key, _| faults.push(key.to_owned()));
        (config, faults)
    }

    #[test]
    fn off_unless_there_is_an_endpoint() {
        assert_eq!(checked(""), (None, vec![]));
        assert_eq!(checked("sample = 0.5").1, ["traces"]);
        let (config, faults) = checked("endpoint = \"http://127.0.0.1:4317\"");
        assert!(faults.is_empty());
        assert_eq!(config.unwrap().sample, 1.0);
    }

    #[test]
    fn spans_leave_the_machine_by_tls_alone() {
        for good in ["http://127.0.0.1:4317", "http://[::1]:4317", "http://127.0.0.1:4317/"] {
            assert!(checked(&format!("endpoint = {good:?}")).1.is_empty(), "{good}");
        }
        assert!(checked("endpoint = \"https://otel.example.org:4317\"\nca = \"/etc/ca.pem\"").1.is_empty());
        for bad in [
            "http://192.0.2.1:4317",
            "http://localhost:4317",
            "http://otel.example.org:4317",
            "https://otel.example.org:4317",
            "http://127.0.0.1",
            "http://127.0.0.1:4317/v1/traces",
            "http://user:secret@127.0.0.1:4317",
            "http://127.0.0.1:4317?x=1",
            "127.0.0.1:4317",
            "ftp://127.0.0.1:4317",
            "",
        ] {
            assert_eq!(checked(&format!("endpoint = {bad:?}")).1, ["traces.endpoint"], "{bad}");
        }
        assert_eq!(checked("endpoint = \"http://127.0.0.1:1\"\nca = \"/ca\"").1, ["traces.endpoint"]);
        assert_eq!(checked("endpoint = \"https://a:1\"\nca = \"ca\"").1, ["traces.ca"]);
    }

    #[test]
    fn a_share_is_above_nothing_and_no_more_than_all() {
        for (sample, sound) in [
            ("1.0", true),
            ("0.001", true),
            ("0.0", false),
            ("-1.0", false),
            ("1.1", false),
            ("nan", false),
            ("inf", false),
        ] {
            let (_, faults) = checked(&format!("endpoint = \"http://127.0.0.1:1\"\nsample = {sample}"));
            assert_eq!(faults.is_empty(), sound, "{sample}: {faults:?}");
        }
    }
}
