//! Where events go.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use hallmark_core::log::siem::{Event, Form};
use zeroize::Zeroizing;

use super::super::web::{Limits, Trust, Web, authorization, may_carry_secret};
use super::syslog;
use crate::failure::Failure;

/// The receiver, and how it is reached.
#[derive(Debug, Clone, Args)]
pub(super) struct TargetArgs {
    /// The receiver: https://…, syslog+tls://HOST:PORT, syslog+tcp://HOST:PORT, syslog+udp://HOST:PORT,
    /// syslog+unix:///dev/log
    #[arg(long, value_name = "URL")]
    pub(super) to: Target,
    /// PEM file: the roots that the receiver is known by, in place of the system's
    #[arg(long, value_name = "FILE")]
    to_ca: Option<PathBuf>,
    /// File with what the header Authorization says, as: Bearer TOKEN
    #[arg(long, value_name = "FILE")]
    authorization_file: Option<PathBuf>,
    /// Longest wait for the receiver to take one delivery
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    to_timeout: Duration,
}

/// A receiver's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// `http://…` or `https://…`
    Web(String),
    /// Host and port, over TLS or not
    Stream { host: String, port: u16, tls: bool },
    /// Host and port
    Udp { host: String, port: u16 },
    /// A socket's path
    Unix(PathBuf),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (scheme, rest) =
            text.split_once("://").ok_or("it has no scheme, as https:// or syslog+tls://")?;
        let stream = |tls| host_port(rest).map(|(host, port)| Self::Stream { host, port, tls });
        match scheme {
            "http" | "https" if !rest.is_empty() => Ok(Self::Web(text.to_owned())),
            "syslog+tcp" => stream(false),
            "syslog+tls" => stream(true),
            "syslog+udp" => host_port(rest).map(|(host, port)| Self::Udp { host, port }),
            "syslog+unix" if rest.starts_with('/') => Ok(Self::Unix(rest.into())),
            "syslog+unix" => Err("a socket has an absolute path, as syslog+unix:///dev/log".to_owned()),
            _ => Err(format!(
                "{scheme:?} is none of http, https, syslog+tls, syslog+tcp, syslog+udp and syslog+unix"
            )),
        }
    }
}

fn host_port(text: &str) -> Result<(String, u16), String> {
    let wrong = || format!("{text:?} is not HOST:PORT");
    let (host, port) = text.trim_end_matches('/').rsplit_once(':').ok_or_else(wrong)?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?;
    if host.is_empty() { Err(wrong()) } else { Ok((host.to_owned(), port)) }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Web(url) => f.write_str(url),
            Self::Stream { host, port, tls } => {
                write!(f, "syslog+{}://{host}:{port}", if *tls { "tls" } else { "tcp" })
            }
            Self::Udp { host, port } => write!(f, "syslog+udp://{host}:{port}"),
            Self::Unix(path) => write!(f, "syslog+unix://{}", path.display()),
        }
    }
}

/// Takes events.
pub(super) trait Receiver {
    /// Delivers all of them: an error says that the receiver may have some of them and counts none.
    fn deliver(&mut self, events: &[Event<'_>], form: Form) -> Result<(), String>;
}

impl TargetArgs {
    pub(super) fn open(&self) -> Result<Box<dyn Receiver>, Failure> {
        let trust = Trust::of(self.to_ca.as_deref());
        match &self.to {
            Target::Web(url) => {
                let authorization = self.authorization_file.as_deref().map(authorization).transpose()?;
                if authorization.is_some() && !may_carry_secret(url) {
                    return Err(Failure::usage("--authorization-file goes over https:// alone")
                        .remedy("the token would be readable on the network"));
                }
                let web = Web::new(&trust, Limits { whole: self.to_timeout })?;
                Ok(Box::new(Post { web, url: url.clone(), authorization }))
            }
            _ if self.authorization_file.is_some() => {
                Err(Failure::usage("--authorization-file is for http:// and https:// alone"))
            }
            Target::Stream { host, port, tls } => {
                let tls = tls.then(|| trust.client_config()).transpose()?;
                Ok(Box::new(syslog::Stream::new(host, *port, tls, self.to_timeout)?))
            }
            Target::Udp { host, port } => Ok(Box::new(syslog::Datagrams::udp(host, *port))),
            Target::Unix(path) => Ok(Box::new(syslog::Datagrams::unix(path, self.to_timeout))),
        }
    }
}

/// A web server that takes lines.
struct Post {
    web: Web,
    url: String,
    authorization: Option<Zeroizing<String>>,
}

impl Receiver for Post {
    fn deliver(&mut self, events: &[Event<'_>], form: Form) -> Result<(), String> {
        let mut body = String::new();
        for event in events {
            body.push_str(&event.line(form));
            body.push('\n');
        }
        let kind = if form == Form::Cef { "text/plain; charset=utf-8" } else { "application/x-ndjson" };
        let authorization = self.authorization.as_ref().map(|value| value.as_str());
        self.web.post(&self.url, kind, authorization, body.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for text in [
            "https://siem.example.org/x?y",
            "http://127.0.0.1:1",
            "syslog+tcp://siem:514",
            "syslog+tls://siem:6514",
            "syslog+udp://siem:514",
            "syslog+unix:///dev/log",
        ] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        let six: Target = "syslog+tcp://[::1]:514/".parse().unwrap();
        assert_eq!(six, Target::Stream { host: "::1".to_owned(), port: 514, tls: false });
        for text in [
            "siem:514",
            "https://",
            "syslog://a:1",
            "syslog+tcp://a",
            "syslog+tcp://a:0",
            "syslog+udp://:1",
            "syslog+unix://dev/log",
        ] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }
}
