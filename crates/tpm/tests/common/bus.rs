//! A listener on the bus: a TCP relay between the library and a software TPM that sees every command and answer.

#![allow(unreachable_pub)]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// What went over the bus, and what is done to it.
pub struct Bus {
    port: u16,
    pub log: Arc<Mutex<Vec<Message>>>,
}

pub struct Message {
    pub command: Vec<u8>,
    pub answer: Vec<u8>,
}

impl Message {
    /// TPM_CC of the command.
    pub fn code(&self) -> u32 {
        u32::from_be_bytes(self.command[6..10].try_into().unwrap())
    }
}

impl Bus {
    /// Relays to the software TPM at `target`. `after` is called with each message before the answer is passed on, and
    /// may send commands of its own through the function it is given.
    pub fn listen(target: u16, mut after: impl FnMut(&Message, &dyn Fn(&[u8])) + Send + 'static) -> Self {
        let (commands, control, port) = loop {
            let commands = TcpListener::bind(("127.0.0.1", rand::random_range(10_000..32_000))).unwrap();
            let port = commands.local_addr().unwrap().port();
            if let Ok(control) = TcpListener::bind(("127.0.0.1", port + 1)) {
                break (commands, control, port);
            }
        };
        let log = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&log);
        thread::spawn(move || {
            for client in commands.incoming() {
                relay(&mut client.unwrap(), target, &seen, &mut after);
            }
        });
        thread::spawn(move || {
            for client in control.incoming() {
                let (client, tpm) = (client.unwrap(), TcpStream::connect(("127.0.0.1", target + 1)).unwrap());
                copy_one_way(client.try_clone().unwrap(), tpm.try_clone().unwrap());
                copy_one_way(tpm, client);
            }
        });
        Self { port, log }
    }

    pub fn tcti(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.port)
    }
}

/// A software TPM serves one client at a time on each port, so a connection must end at both sides.
fn copy_one_way(mut from: TcpStream, mut to: TcpStream) {
    thread::spawn(move || {
        std::io::copy(&mut from, &mut to).ok();
        to.shutdown(Shutdown::Both).ok();
    });
}

fn relay(
    client: &mut TcpStream,
    target: u16,
    log: &Mutex<Vec<Message>>,
    after: &mut impl FnMut(&Message, &dyn Fn(&[u8])),
) {
    while let Some(command) = frame(client) {
        let message = Message { answer: exchange(target, &command), command };
        after(&message, &|command| drop(exchange(target, command)));
        client.write_all(&message.answer).ok();
        log.lock().unwrap().push(message);
    }
}

fn exchange(target: u16, command: &[u8]) -> Vec<u8> {
    let mut tpm = TcpStream::connect(("127.0.0.1", target)).unwrap();
    tpm.write_all(command).unwrap();
    frame(&mut tpm).unwrap()
}

/// One command or answer: tag, size of the whole, code, and the rest (Part 3, 4.4).
fn frame(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 10];
    stream.read_exact(&mut bytes).ok()?;
    let size = u32::from_be_bytes(bytes[2..6].try_into().unwrap()) as usize;
    bytes.resize(size, 0);
    stream.read_exact(&mut bytes[10..]).ok()?;
    Some(bytes)
}
