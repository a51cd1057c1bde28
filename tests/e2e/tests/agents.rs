//! Agents that lie, change or end, against real daemons: an identity belongs to one process, and to
//! that process as it was when it was looked at.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use hallmark_e2e::{Agent, Bed, BedOptions, Host, example, registration, skip, wait_until};

const DIGEST: &str = "0707070707070707070707070707070707070707070707070707070707070707";

/// A host in the advanced tier, with an agent of each tier registered for the stub.
fn bed() -> Result<(Bed, Host)> {
    let mut bed = Bed::start(BedOptions::default())?;
    let mut host = Host::with_tpm(&bed, "host-1")?;
    host.start(&bed)?;
    let policy = bed.hallmark_ok(&["host", "pcrs", "host-1"])?;
    bed.add_policy(&policy)?;
    let program = example("stub_agent")?;
    let mut toml = String::new();
    for tier in ["foundation", "enterprise", "advanced"] {
        toml.push_str(&registration(&format!("agent-{tier}"), tier, &program, "")?);
    }
    bed.apply(&toml)?;
    Ok((bed, host))
}

/// What the issuer says of an instance: its state and its serial.
fn instance(bed: &Bed, agent: &str, id: &str) -> Option<(String, String)> {
    let out = bed.hallmark_ok(&["agent", "show", agent, "--output", "json"]).ok()?;
    let json: serde_json::Value = serde_json::from_str(&out).ok()?;
    let found = json["instances"].as_array()?.iter().find(|i| i["instance_id"] == id)?;
    Some((found["state"].as_str()?.to_owned(), found["serial"].as_str()?.to_owned()))
}

fn until_state(bed: &Bed, agent: &str, id: &str, state: &str) -> Result<String> {
    let mut last = None;
    wait_until(&format!("instance {id} to be {state}"), || {
        last = instance(bed, agent, id);
        last.clone().filter(|(now, _)| now == state).map(|(_, serial)| serial)
    })
    .with_context(|| format!("last seen as {last:?}"))
}

#[test]
fn another_users_process_gets_nothing() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        skip("another_users_process_gets_nothing (needs root, to run a process as nobody)");
        return Ok(());
    }
    let (mut bed, mut host) = bed()?;
    for wanted in ["", "agent-foundation", "agent-advanced"] {
        let stranger = Agent::watching_as(&host, wanted, 65534)?;
        let end = stranger.says("ended")?;
        assert!(end.starts_with("PermissionDenied"), "{end}");
        ensure!(wanted.is_empty() || end.contains("unix:uid:0"), "what it lacks is not named: {end}");
    }
    // The host daemon did not even ask: nothing was issued, or refused, by the issuer.
    let issued = bed.hallmark_ok(&["agent", "show", "agent-foundation", "--output", "json"])?;
    assert!(issued.contains("\"instances\": []") || issued.contains("\"instances\":[]"), "{issued}");
    assert!(!bed.issuer()?.log().contains("issued"));
    assert!(host.daemon()?.log().contains("uid=65534"), "the attempt is not in the log");
    // The same program, run by the user registered, is served: it was the user that was refused.
    Agent::watching(&host, "agent-foundation")?.identity()?;
    Ok(())
}

#[test]
fn a_process_that_executes_another_image_loses_its_identity_and_its_key() -> Result<()> {
    let (bed, host) = bed()?;
    let mut agent = Agent::watching(&host, "agent-advanced")?;
    let shown = agent.identity()?;
    let handle = shown.handle.clone().context("a handle")?;
    agent.tell(&format!("sign {handle} {DIGEST}"))?;
    agent.says("signed")?;

    // Its connection is held open here: what ends the stream is the exec alone.
    let held = agent.sockets()?;
    ensure!(!held.is_empty(), "the agent has no socket");
    agent.tell(&format!("exec {handle}"))?;
    // The new image, same process and same pid, connects anew and presents the handle at once.
    let refused = agent.says("refused")?;
    assert!(refused.starts_with("PermissionDenied"), "{refused}");
    until_state(&bed, "agent-advanced", &shown.instance, "image-replaced")?;
    assert!(agent.is_alive(), "the process itself lives on");
    drop(held);
    Ok(())
}

#[test]
fn a_handle_is_of_use_to_its_own_process_alone() -> Result<()> {
    let (_bed, host) = bed()?;
    let mut owner = Agent::watching(&host, "agent-advanced")?;
    let mut other = Agent::watching(&host, "agent-advanced")?;
    let handle = owner.identity()?.handle.context("a handle")?;
    let others = other.identity()?.handle.context("a handle")?;
    assert_ne!(handle, others);
    // Same program, same user, same registration: another process.
    other.tell(&format!("sign {handle} {DIGEST}"))?;
    let stolen = other.says("refused")?;
    let unknown = {
        other.tell(&format!("sign {} {DIGEST}", "00".repeat(16)))?;
        other.says("refused")?
    };
    assert!(stolen.starts_with("PermissionDenied"), "{stolen}");
    assert_eq!(stolen, unknown, "the answer tells whether a handle exists");
    let thief = Agent::signing(&host, &handle)?;
    assert_eq!(thief.says("refused")?, stolen);

    for length in [0, 1, 31, 33, 48, 64] {
        owner.tell(&format!("sign {handle} {}", "07".repeat(length)))?;
        let refused = owner.says("refused")?;
        assert!(refused.starts_with("InvalidArgument") && refused.contains("32"), "{length}: {refused}");
    }
    owner.tell(&format!("sign {handle} {DIGEST}"))?;
    owner.says("signed")?;
    other.tell(&format!("sign {others} {DIGEST}"))?;
    other.says("signed")?;
    Ok(())
}

#[test]
fn the_end_of_a_process_is_recorded_and_its_certificate_revoked() -> Result<()> {
    let (bed, host) = bed()?;
    let mut agent = Agent::watching(&host, "agent-enterprise")?;
    let stays = Agent::watching(&host, "agent-enterprise")?;
    let (shown, other) = (agent.identity()?, stays.identity()?);
    // The connection outlives the process: it is the process's end that counts.
    let held = agent.sockets()?;
    agent.kill()?;
    let serial = until_state(&bed, "agent-enterprise", &shown.instance, "process-exited")?;
    let (state, live) = instance(&bed, "agent-enterprise", &other.instance).context("the other instance")?;
    assert_eq!(state, "live");

    let crl = bed.path("data/public/crl/enterprise-1.crl");
    let read = || {
        let out = Command::new("openssl")
            .args(["crl", "-inform", "DER", "-noout", "-text", "-in"])
            .arg(&crl)
            .output();
        let text = String::from_utf8(out.ok()?.stdout).ok()?.replace(':', "").to_lowercase();
        text.contains(serial.trim_start_matches('0')).then_some(text)
    };
    let text = wait_until("the serial to appear in the CRL", read)?;
    assert!(!text.contains(live.trim_start_matches('0')), "the other's serial is in it, too: {text}");
    drop(held);
    Ok(())
}

/// Frames that are no gRPC, or too much of it, harm nobody but their sender.
#[test]
fn garbage_on_the_socket_disturbs_nobody() -> Result<()> {
    let (_bed, mut host) = bed()?;
    let mut agent = Agent::watching(&host, "agent-advanced")?;
    let handle = agent.identity()?.handle.context("a handle")?;

    // Endless noise, from many connections at once, until the daemon hangs up.
    let noise: Vec<_> = (0..8)
        .map(|seed| {
            let socket = host.socket();
            std::thread::spawn(move || -> Result<u64> {
                let mut stream = UnixStream::connect(socket)?;
                // A good beginning for every other one: the HTTP/2 preface and empty settings.
                if seed % 2 == 0 {
                    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")?;
                }
                let block: Vec<u8> = (0..4096u32).map(|i| (i.wrapping_mul(31 + seed) >> 3) as u8).collect();
                let mut sent = 0;
                while sent < 64 << 20 && stream.write_all(&block).is_ok() {
                    sent += block.len() as u64;
                }
                let mut rest = Vec::new();
                let _ = stream.read_to_end(&mut rest);
                Ok(sent)
            })
        })
        .collect();
    // A message beyond the limit, over a connection that is otherwise good.
    agent.tell(&format!("sign {handle} {}", "07".repeat(1 << 20)))?;
    let refused = agent.says("refused")?;
    assert!(refused.starts_with("OutOfRange") || refused.starts_with("ResourceExhausted"), "{refused}");

    // Meanwhile, others are served as before.
    Agent::watching(&host, "agent-foundation")?.identity()?;
    agent.tell(&format!("sign {handle} {DIGEST}"))?;
    agent.says("signed")?;
    for thread in noise {
        let sent = thread.join().map_err(|_| anyhow::anyhow!("a noisy thread panicked"))??;
        ensure!(sent < 64 << 20, "the daemon swallowed {sent} bytes of noise");
    }
    Agent::watching(&host, "agent-enterprise")?.identity()?;
    agent.tell(&format!("sign {handle} {DIGEST}"))?;
    agent.says("signed")?;
    assert!(host.daemon()?.is_alive());
    Ok(())
}

#[test]
fn a_pkcs11_modules_word_counts_where_the_trust_domain_says_so() -> Result<()> {
    let key = "key = { custody = \"pkcs11-asserted\" }";
    for accepted in [true, false] {
        let attestation = if accepted { "accept_pkcs11_asserted = true".to_owned() } else { String::new() };
        let mut bed = Bed::start(BedOptions { attestation, ..BedOptions::default() })?;
        let mut host = Host::with_tpm(&bed, "host-1")?.with_token()?;
        host.start(&bed)?;
        let policy = bed.hallmark_ok(&["host", "pcrs", "host-1"])?;
        bed.add_policy(&policy)?;
        bed.apply(&registration("vault", "advanced", &example("stub_agent")?, key)?)?;
        let mut agent = Agent::watching(&host, "vault")?;
        if !accepted {
            let end = agent.says("ended")?;
            assert!(end.starts_with("PermissionDenied"), "{end}");
            assert!(end.contains("pkcs11"), "{end}");
            continue;
        }
        let shown = agent.identity()?;
        assert_eq!((shown.tier.as_str(), shown.custody.as_str()), ("advanced", "pkcs11-asserted"));
        let handle = shown.handle.clone().context("a handle")?;
        agent.tell(&format!("sign {handle} {DIGEST}"))?;
        agent.says("signed")?;
        // What the certificate says to relying parties is what it was: asserted, not attested.
        let chain = bed.path("chain.pem");
        std::fs::write(&chain, shown.pem())?;
        let verdict = bed.hallmark(&["verify", &chain.display().to_string()])?;
        let text = String::from_utf8_lossy(&verdict.stdout).into_owned();
        assert!(text.contains("pkcs11-asserted"), "{text}{}", String::from_utf8_lossy(&verdict.stderr));
        agent.wait()?;
        wait_until("the instance to be retired", || {
            instance(&bed, "vault", &shown.instance).filter(|(state, _)| state != "live")
        })?;
    }
    Ok(())
}
