//! Syslog over a stream, over datagrams.
//!
//! Syslog has no acknowledgement. Over a stream there is one thing that a receiver does only after it has read: it
//! closes the connection because the sender has. So each delivery has a connection of its own. All of it is written,
//! our side is closed, and it counts once the receiver closes its side too, with no byte left unread: a receiver that
//! goes away before that resets the connection, since its system answers so for what nobody read.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hallmark_core::log::siem::{Event, Form, Origin, octet_counted};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use super::target::Receiver;
use crate::failure::Failure;

/// Longest event in a UDP datagram: of its 65,507 bytes, less the header.
const MAX_UDP: usize = 60_000;
/// Longest event to a socket.
const MAX_UNIX: usize = 100_000;
/// Between two looks at whether a connection is at its end.
const LOOK: Duration = Duration::from_millis(5);

fn origin() -> Origin {
    let system = rustix::system::uname();
    Origin { host: system.nodename().to_string_lossy().into_owned(), process: std::process::id() }
}

/// TCP, with TLS or without.
pub(super) struct Stream {
    host: String,
    port: u16,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    timeout: Duration,
    origin: Origin,
}

impl Stream {
    pub(super) fn new(
        host: &str,
        port: u16,
        tls: Option<Arc<ClientConfig>>,
        timeout: Duration,
    ) -> Result<Self, Failure> {
        let name = || {
            ServerName::try_from(host.to_owned())
                .map_err(|_| Failure::usage(format!("{host:?} is no name that a certificate could have")))
        };
        let tls = tls.map(|config| name().map(|name| (config, name))).transpose()?;
        Ok(Self { host: host.to_owned(), port, tls, timeout, origin: origin() })
    }

    fn connect(&self) -> io::Result<TcpStream> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in (self.host.as_str(), self.port).to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, self.timeout) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(self.timeout))?;
                    stream.set_write_timeout(Some(self.timeout))?;
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn send(&self, frames: &[u8]) -> io::Result<()> {
        let mut stream = self.connect()?;
        match &self.tls {
            None => {
                stream.write_all(frames)?;
                still_open(&stream)?;
                stream.shutdown(Shutdown::Write)?;
                to_the_end(&mut stream)?;
            }
            Some((config, name)) => {
                let connection =
                    ClientConnection::new(config.clone(), name.clone()).map_err(io::Error::other)?;
                let mut secure = rustls::StreamOwned::new(connection, stream);
                secure.write_all(frames)?;
                // RFC 5425 section 4.4: close_notify, before the connection is closed.
                secure.conn.send_close_notify();
                secure.flush()?;
                still_open(&secure.sock)?;
                secure.sock.shutdown(Shutdown::Write)?;
                match to_the_end(&mut secure) {
                    // Not every receiver answers with a close_notify of its own, as it should.
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                    ended => ended?,
                }
                stream = secure.sock;
            }
        }
        self.closed(&stream)
    }

    /// Waits until both sides are closed and all is acknowledged, and not reset.
    fn closed(&self, stream: &TcpStream) -> io::Result<()> {
        let begun = Instant::now();
        loop {
            let open = stream.peer_addr().is_ok();
            if let Some(error) = stream.take_error()? {
                return Err(error);
            }
            if !open {
                return Ok(());
            }
            if begun.elapsed() > self.timeout {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the receiver did not take all that was sent",
                ));
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// A side that is closed before ours says nothing of what was read: what is not, is not even reset.
fn still_open(stream: &TcpStream) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let peeked = stream.peek(&mut [0]);
    stream.set_nonblocking(false)?;
    match peeked {
        Ok(0) => Err(io::Error::new(
            io::ErrorKind::ConnectionAborted,
            "the receiver closed its side before it was sent everything",
        )),
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(()),
    }
}

/// Reads until the other side has closed. Receivers of syslog say nothing; what they say is not looked at.
fn to_the_end(stream: &mut impl Read) -> io::Result<()> {
    let mut ignored = [0; 4096];
    loop {
        match stream.read(&mut ignored) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the receiver did not close the connection: whether it read is not known",
                ));
            }
            Err(error) => return Err(error),
        }
    }
}

impl Receiver for Stream {
    fn deliver(&mut self, events: &[Event<'_>], form: Form) -> Result<(), String> {
        let frame = |event: &Event<'_>| octet_counted(&self.origin.message(event, &event.line(form)));
        let frames: String = events.iter().map(frame).collect();
        self.send(frames.as_bytes()).map_err(|error| error.to_string())
    }
}

/// One message a datagram.
pub(super) struct Datagrams {
    to: Peer,
    origin: Origin,
}

enum Peer {
    Udp { host: String, port: u16 },
    Unix { path: PathBuf, timeout: Duration },
}

impl Datagrams {
    pub(super) fn udp(host: &str, port: u16) -> Self {
        Self { to: Peer::Udp { host: host.to_owned(), port }, origin: origin() }
    }

    pub(super) fn unix(path: &Path, timeout: Duration) -> Self {
        Self { to: Peer::Unix { path: path.to_owned(), timeout }, origin: origin() }
    }

    fn send(&self, messages: impl Iterator<Item = String>) -> io::Result<()> {
        match &self.to {
            Peer::Udp { host, port } => {
                let none = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                let address = (host.as_str(), *port).to_socket_addrs()?.next().ok_or_else(none)?;
                let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = UdpSocket::bind(any)?;
                // Connected, it hears of a machine that has nobody there.
                socket.connect(address)?;
                for message in messages {
                    socket.send(message.as_bytes())?;
                }
            }
            Peer::Unix { path, timeout } => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(path)?;
                socket.set_write_timeout(Some(*timeout))?;
                for message in messages {
                    socket.send(message.as_bytes())?;
                }
            }
        }
        Ok(())
    }
}

impl Receiver for Datagrams {
    fn deliver(&mut self, events: &[Event<'_>], form: Form) -> Result<(), String> {
        let most = match self.to {
            Peer::Udp { .. } => MAX_UDP,
            Peer::Unix { .. } => MAX_UNIX,
        };
        let message = |event: &Event<'_>| self.origin.message(event, &event.short_line(form, most));
        self.send(events.iter().map(message)).map_err(|error| error.to_string())
    }
}
