//! Where metrics are served: a port that only this machine reaches, or a Unix socket.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

/// The table `[metrics]` as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawMetrics {
    listen: Option<String>,
    socket: Option<PathBuf>,
    mode: Option<String>,
    group: Option<String>,
}

/// Where metrics are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A loopback address: every user of this machine can read them.
    Tcp(SocketAddr),
    /// A Unix socket: its mode and group say who can.
    Unix {
        /// Its path.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// Its group, by name or number; the daemon's own where there is none.
        group: Option<String>,
    },
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Tcp(address) => write!(f, "http://{address}/metrics"),
            Endpoint::Unix { path, .. } => write!(f, "{} (/metrics)", path.display()),
        }
    }
}

/// Longest path of a socket: sun_path holds 108 bytes with its terminating zero (unix(7)).
const MAX_PATH: usize = 107;

impl RawMetrics {
    /// What is meant; none where no metrics are wanted. Each fault goes to `note` by its key.
    pub fn check(self, note: &mut dyn FnMut(&str, String)) -> Option<Endpoint> {
        match (self.listen, self.socket) {
            (Some(_), Some(_)) => {
                note("metrics", "give listen or socket, not both".to_owned());
                None
            }
            (None, None) => {
                if self.mode.is_some() || self.group.is_some() {
                    note("metrics", "mode and group are of a socket: give socket, too".to_owned());
                }
                None
            }
            (Some(listen), None) => {
                if self.mode.is_some() || self.group.is_some() {
                    note(
                        "metrics",
                        "mode and group are of a socket, and listen has none: remove them".to_owned(),
                    );
                }
                loopback(&listen).map_err(|problem| note("metrics.listen", problem)).ok().map(Endpoint::Tcp)
            }
            (None, Some(path)) => {
                if !path.is_absolute() || path.as_os_str().len() > MAX_PATH {
                    note("metrics.socket", format!("must be an absolute path of at most {MAX_PATH} bytes"));
                }
                let text = self.mode.as_deref().unwrap_or("0660");
                let mode = u32::from_str_radix(text, 8).ok().filter(|mode| mode & !0o660 == 0);
                if mode.is_none() {
                    note(
                        "metrics.mode",
                        format!("{text:?} is not an octal mode within 0660: name the reader's group instead"),
                    );
                }
                Some(Endpoint::Unix { path, mode: mode.unwrap_or(0o600), group: self.group })
            }
        }
    }
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr =
        text.parse().map_err(|_| format!("{text:?} is not ADDRESS:PORT, as in \"127.0.0.1:9464\""))?;
    if !address.ip().to_canonical().is_loopback() {
        return Err(format!(
            "{text:?} is not a loopback address: metrics are served without TLS or a password, to this machine alone; write 127.0.0.1 or [::1], and let a collector on this machine carry them on"
        ));
    }
    if address.port() == 0 {
        return Err("name a port, as in \"127.0.0.1:9464\"".to_owned());
    }
    Ok(address)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]
mod tests {
    use super::*;

    fn checked(text: &str) -> (Option<Endpoint>, Vec<String>) {
        let raw: RawMetrics = toml::from_str(text).unwrap();
        let mut faults = Vec::new();
        let endpoint = raw.check(&mut |key, _| faults.push(key.to_owned()));
        (endpoint, faults)
    }

    #[test]
    fn nothing_written_is_nothing_served() {
        assert_eq!(checked(""), (None, vec![]));
    }

    #[test]
    fn only_loopback_addresses_are_taken() {
        for good in ["127.0.0.1:9464", "[::1]:9464", "127.8.9.10:1", "[::ffff:127.0.0.1]:9464"] {
            assert_eq!(
                checked(&format!("listen = {good:?}")),
                (Some(Endpoint::Tcp(good.parse().unwrap())), vec![])
            );
        }
        for bad in [
            "0.0.0.0:9464",
            "[::]:9464",
            "192.0.2.1:9464",
            "[2001:db8::1]:9464",
            "[::ffff:192.0.2.1]:9464",
            "localhost:9464",
            "127.0.0.1",
            "127.0.0.1:0",
            "",
        ] {
            assert_eq!(
                checked(&format!("listen = {bad:?}")),
                (None, vec!["metrics.listen".to_owned()]),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_socket_is_closed_to_others() {
        let (endpoint, faults) = checked("socket = \"/run/x/m.sock\"\ngroup = \"prometheus\"");
        let group = Some("prometheus".to_owned());
        assert_eq!(endpoint, Some(Endpoint::Unix { path: "/run/x/m.sock".into(), mode: 0o660, group }));
        assert!(faults.is_empty());
        for mode in ["0666", "0777", "0670", "rw", ""] {
            let (_, faults) = checked(&format!("socket = \"/run/x/m.sock\"\nmode = {mode:?}"));
            assert_eq!(faults, ["metrics.mode"], "{mode}");
        }
        assert_eq!(checked("socket = \"m.sock\"").1, ["metrics.socket"]);
        assert_eq!(checked(&format!("socket = \"/{}\"", "x".repeat(107))).1, ["metrics.socket"]);
    }

    #[test]
    fn one_place_and_what_belongs_to_it() {
        assert_eq!(checked("socket = \"/m\"\nlisten = \"127.0.0.1:1\"").1, ["metrics"]);
        assert_eq!(checked("listen = \"127.0.0.1:1\"\nmode = \"0600\"").1, ["metrics"]);
        assert_eq!(checked("group = \"x\"").1, ["metrics"]);
        assert!(toml::from_str::<RawMetrics>("port = 1").is_err());
    }
}
