//! An agent that does what each line of its standard input says, and says what came of it. It uses the
//! plain API, so that it can also do what the client library would not.
//!
//! ```text
//! stub_agent SOCKET watch [AGENT [TRACEPARENT…]]    holds one stream of identities until its input ends
//! stub_agent SOCKET sign HANDLE      asks for one signature by a key it may not own
//! ```
#![forbid(unsafe_code)]

use std::io::BufRead;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};
use hallmark_proto::agent::agent_identity_client::AgentIdentityClient;
use hallmark_proto::agent::{Identity, SignRequest, WatchIdentityRequest, WhoAmIRequest, identity::Key};
use hallmark_proto::tls::unix_channel;
use tokio::sync::mpsc;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

type Client = AgentIdentityClient<Channel>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [socket, verb, rest @ ..] = words.as_slice() else { bail!("stub_agent SOCKET watch|sign …") };
    let client = AgentIdentityClient::new(unix_channel(socket));
    let mut orders = orders();
    match *verb {
        "watch" => {
            let [agent, traceparents @ ..] = rest else {
                return watch(client, socket, ("", &[]), &mut orders).await;
            };
            watch(client, socket, (agent, traceparents), &mut orders).await
        }
        "sign" => {
            sign(client, rest.first().context("sign HANDLE")?, &"07".repeat(32), None).await;
            while orders.recv().await.is_some() {}
            Ok(())
        }
        other => bail!("{other}: watch or sign"),
    }
}

/// The lines of standard input.
fn orders() -> mpsc::UnboundedReceiver<String> {
    let (send, orders) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                return;
            }
        }
    });
    orders
}

async fn watch(
    mut client: Client,
    socket: &str,
    (agent, traceparents): (&str, &[&str]),
    orders: &mut mpsc::UnboundedReceiver<String>,
) -> Result<()> {
    let mut request = tonic::Request::new(WatchIdentityRequest { agent: agent.to_owned() });
    for value in traceparents {
        request.metadata_mut().append("traceparent", value.parse()?);
    }
    let mut stream = match client.watch_identity(request).await {
        Ok(stream) => Some(stream.into_inner()),
        Err(status) => {
            ended(&status);
            None
        }
    };
    loop {
        tokio::select! {
            shown = next(&mut stream) => match shown {
                Ok(Some(identity)) => show(&identity),
                Ok(None) => ended(&Status::ok("closed")),
                Err(status) => ended(&status),
            },
            order = orders.recv() => match order {
                Some(order) => obey(&client, socket, &order).await?,
                None => return Ok(()),
            },
        }
    }
}

/// The stream's next message; after its end, nothing for ever.
async fn next(stream: &mut Option<Streaming<Identity>>) -> Result<Option<Identity>, Status> {
    let Some(open) = stream else { return std::future::pending().await };
    let message = open.message().await;
    if !matches!(message, Ok(Some(_))) {
        *stream = None;
    }
    message
}

async fn obey(client: &Client, socket: &str, order: &str) -> Result<()> {
    let words: Vec<&str> = order.split(' ').collect();
    match words[..] {
        ["sign", handle, digest] => sign(client.clone(), handle, digest, None).await,
        ["sign", handle, digest, traceparent] => {
            sign(client.clone(), handle, digest, Some(traceparent)).await
        }
        ["whoami"] => who_am_i(client.clone()).await,
        // Same process, same pid, another image.
        ["exec", handle] => {
            let error = Command::new(std::env::current_exe()?).args([socket, "sign", handle]).exec();
            bail!("exec: {error}");
        }
        _ => bail!("not understood: {order}"),
    }
    Ok(())
}

async fn sign(mut client: Client, handle: &str, digest: &str, traceparent: Option<&str>) {
    let (Ok(key_handle), Ok(digest)) = (hex::decode(handle), hex::decode(digest)) else {
        return println!("refused not hex");
    };
    let mut request =
        tonic::Request::new(SignRequest { key_handle: key_handle.into(), digest: digest.into() });
    if let Some(value) = traceparent.and_then(|value| value.parse().ok()) {
        request.metadata_mut().insert("traceparent", value);
    }
    match client.sign(request).await {
        Ok(answer) => println!("signed {}", hex::encode(answer.into_inner().signature)),
        Err(status) => println!("refused {:?}: {}", status.code(), status.message()),
    }
}

async fn who_am_i(mut client: Client) {
    match client.who_am_i(WhoAmIRequest {}).await {
        Ok(answer) => {
            let answer = answer.into_inner();
            let host = answer.host.unwrap_or_default();
            let matches = answer.matches.iter().filter(|m| m.matches).map(|m| m.agent.as_str());
            println!(
                "whoami connected={} highest={} matches={} unmet={}",
                host.issuer_connected,
                host.highest_tier,
                matches.collect::<Vec<_>>().join(","),
                host.unmet.join("; ")
            );
        }
        Err(status) => println!("whoami refused {:?}: {}", status.code(), status.message()),
    }
}

fn show(identity: &Identity) {
    let handle = match &identity.key {
        Some(Key::KeyHandle(handle)) => hex::encode(handle),
        _ => "-".to_owned(),
    };
    let chain: Vec<String> = identity.chain.iter().map(hex::encode).collect();
    println!(
        "identity {} {} {} {} {handle} {}",
        identity.tier,
        identity.custody,
        hex::encode(&identity.instance_id),
        identity.not_after,
        chain.join(",")
    );
}

fn ended(status: &Status) {
    println!("ended {:?}: {}", status.code(), status.message());
}
