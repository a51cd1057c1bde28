//! The command `hallmark` against real daemons: what operators and agents do by hand.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use hallmark_e2e::{Bed, BedOptions, Daemon, Host, binary, skip, wait_until};

/// Runs `hallmark` as an agent of this host.
fn agent(host: &Host, args: &[&str]) -> Result<Output> {
    Ok(Command::new(binary("hallmark")?).arg("--socket").arg(host.socket()).args(args).output()?)
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn json(output: &Output) -> Result<serde_json::Value> {
    serde_json::from_slice(&output.stdout).with_context(|| text(output))
}

/// Registrations for the command itself.
fn registrations(owner: &str, agents: &[(&str, &str)]) -> Result<String> {
    let uid = rustix::process::getuid().as_raw();
    let digest = Command::new("sha256sum").arg(binary("hallmark")?).output()?;
    let digest = String::from_utf8(digest.stdout)?[..64].to_owned();
    let registration = |(name, tier): &(&str, &str)| {
        format!(
            "[[agent]]\nname = \"{name}\"\nowner = \"{owner}\"\ntier = \"{tier}\"\nhosts = [\"host-1\"]\n\
             selectors = [\"unix:uid:{uid}\", \"exe:sha256:{digest}\"]\n\n"
        )
    };
    Ok(agents.iter().map(registration).collect())
}

fn bed_with_host() -> Result<(Bed, Host)> {
    let mut bed = Bed::start(BedOptions { dev: true, ..BedOptions::default() })?;
    let mut host = Host::with_tpm(&bed, "host-1")?;
    host.start(&bed)?;
    let policy = bed.hallmark_ok(&["host", "pcrs", "host-1"])?;
    bed.add_policy(&policy)?;
    Ok((bed, host))
}

const AGENTS: [(&str, &str); 2] = [("plain", "foundation"), ("sealed", "advanced")];

#[test]
fn what_is_fetched_is_verified_by_the_tier_demanded() -> Result<()> {
    let (bed, host) = bed_with_host()?;
    bed.apply(&registrations("team@test.example", &AGENTS)?)?;
    let bundle = bed.path("bundle");
    bed.hallmark_ok(&["bundle", "--dir", &bundle.display().to_string()])?;
    let dir = bed.path("fetched");
    let sealed = wait_until("the registration to reach the host", || {
        let fetched = agent(&host, &["fetch", "--agent", "sealed", "-o", "json", dir.to_str()?]).ok()?;
        fetched.status.success().then_some(fetched)
    })?;
    let sealed = json(&sealed)?;
    assert_eq!((&sealed["custody"], &sealed["key_written"]), (&"simulated".into(), &false.into()));
    assert!(!dir.join("key.pem").exists());

    let chain = dir.join("chain.pem").display().to_string();
    let verify = |more: &[&str]| -> Result<Output> {
        let base = ["verify", "-o", "json", &chain, "--bundle", bundle.to_str().context("a path")?];
        agent(&host, &[&base[..], more].concat())
    };
    let lab = verify(&["--min-tier", "advanced", "--accept-simulated"])?;
    assert_eq!(lab.status.code(), Some(0), "{}", text(&lab));
    assert_eq!(json(&lab)?["spiffe_id"], "spiffe://test.example/agent/sealed");
    let production = verify(&["--min-tier", "advanced"])?;
    assert_eq!(production.status.code(), Some(1));
    assert!(json(&production)?["reason"].as_str().context("a reason")?.contains("simulated TPM"));

    // The same file before an independent judge: the root is the tier.
    let judged = |roots: &str| -> Result<bool> {
        let roots = bundle.join(roots);
        let mut openssl = Command::new("openssl");
        openssl.arg("verify").arg("-CAfile").arg(roots).arg("-untrusted").arg(&chain).arg(&chain);
        Ok(openssl.output()?.status.success())
    };
    assert!(judged("at-least-enterprise.pem")? && judged("tier-advanced.pem")?);
    assert!(!judged("tier-enterprise.pem")? && !judged("tier-foundation.pem")?);
    Ok(())
}

#[test]
fn a_program_keeps_its_identity_over_a_change_and_ends_with_it() -> Result<()> {
    if !Path::new("/dev/shm").is_dir() {
        skip("no tmpfs at /dev/shm");
        return Ok(());
    }
    let (bed, host) = bed_with_host()?;
    bed.apply(&registrations("team@test.example", &AGENTS)?)?;
    wait_until("the registration to reach the host", || {
        let who = json(&agent(&host, &["whoami", "-o", "json"]).ok()?).ok()?;
        who["matches"].as_array()?.iter().any(|m| m["agent"] == "plain" && m["matches"] == true).then_some(())
    })?;
    // The program's own view: key and certificate are a pair, and the chain leads to the bundle.
    let script = "openssl verify -CAfile $HALLMARK_BUNDLE_FILE -untrusted $HALLMARK_CHAIN_FILE $HALLMARK_CHAIN_FILE; \
        test \"$(openssl x509 -in $HALLMARK_CHAIN_FILE -noout -pubkey)\" = \"$(openssl pkey -in $HALLMARK_KEY_FILE -pubout)\" && echo a pair; \
        trap 'echo renewed' HUP; trap 'echo asked to end; exit 4' TERM; echo ready; while :; do sleep 0.05; done";
    let mut command = Command::new(binary("hallmark")?);
    command.arg("--socket").arg(host.socket());
    command.args(["exec", "--agent", "plain", "--renew-signal", "HUP", "--", "sh", "-c", script]);
    let mut program = Daemon::start(&mut command, &bed.path("program.log"))?;
    program.wait_for_log("ready", 0)?;
    let log = program.log();
    assert!(log.contains("OK") && log.contains("a pair"), "{log}");

    // Another owner: the daemon withdraws the identity and gives the new one; the program lives on.
    bed.apply(&registrations("other@test.example", &AGENTS)?)?;
    program.wait_for_log("renewed", 0)?;
    assert!(program.is_alive() && !program.log().contains("asked to end"), "{}", program.log());

    let rest = bed.path("rest.toml");
    std::fs::write(&rest, registrations("other@test.example", &AGENTS[1..])?)?;
    bed.hallmark_ok(&["apply", "--prune", &rest.display().to_string()])?;
    program.wait_for_log("asked to end", 0)?;
    wait_until("the program to end", || (!program.is_alive()).then_some(()))?;
    let records = bed.hallmark_ok(&["records", "--agent", "plain", "-o", "json"])?;
    ensure!(records.contains("instance-end"), "{records}");
    Ok(())
}

#[test]
fn operators_see_what_there_is() -> Result<()> {
    let (bed, host) = bed_with_host()?;
    bed.apply(&registrations("team@test.example", &AGENTS)?)?;
    let status: serde_json::Value = serde_json::from_str(&bed.hallmark_ok(&["status", "-o", "json"])?)?;
    assert_eq!(
        (&status["lab"], &status["dev"], &status["hosts_connected"]),
        (&true.into(), &true.into(), &1.into())
    );
    let explained = bed.hallmark_ok(&["explain", "sealed", "--host", "host-1"])?;
    assert!(explained.contains("advanced: reachable, the registered tier"), "{explained}");
    let config = bed.path("issuer.toml").display().to_string();
    let mut doctor = Command::new(binary("hallmark")?);
    doctor.arg("--admin-socket").arg(bed.admin_socket()).arg("--socket").arg(host.socket());
    doctor.args(["doctor", "-o", "json", "--issuer-config", &config, "--hostd-config", "/nonexistent"]);
    let report = json(&doctor.output()?)?;
    let checks = report["checks"].as_array().context("checks")?;
    let result = |name: &str| checks.iter().find(|c| c["name"] == name).map(|c| c["result"].clone());
    assert_eq!(result("issuer answers"), Some("ok".into()), "{report}");
    assert_eq!(result("host daemon answers"), Some("ok".into()), "{report}");
    assert_eq!(result("issuer link"), Some("ok".into()), "{report}");
    Ok(())
}

/// A certificate, its proof, the log it is in, and what is said once each of them was changed.
#[test]
fn what_was_issued_is_proven_from_files_alone() -> Result<()> {
    let (bed, host) = bed_with_host()?;
    bed.apply(&registrations("team@test.example", &AGENTS)?)?;
    let (dir, evidence) = (bed.path("fetched"), bed.path("evidence"));
    wait_until("the registration to reach the host", || {
        let fetched = agent(&host, &["fetch", "--agent", "plain", dir.to_str()?]).ok()?;
        fetched.status.success().then_some(())
    })?;
    let chain = dir.join("chain.pem").display().to_string();
    let evidence = evidence.display().to_string();
    let key = bed.hallmark_ok(&["log", "key"])?.trim().to_owned();
    assert!(key.starts_with("test.example/log/issuer-1+"), "{key}");
    let proven = bed.hallmark(&["log", "prove", &chain, "--dir", &evidence, "-o", "json"])?;
    let proven = json(&proven)?;
    assert_eq!(
        (&proven["record"]["agent"], &proven["record"]["owner"]),
        (&"plain".into(), &"team@test.example".into())
    );

    // From here on nobody is asked.
    let offline = |args: &[&str]| -> Result<Output> {
        Ok(Command::new(binary("hallmark")?).args(["--admin-socket", "/nonexistent"]).args(args).output()?)
    };
    let check = |more: &[&str]| offline(&[&["log", "check", &evidence, "--key", &key], more].concat());
    let held = check(&["--certificate", &chain])?;
    assert!(held.status.success(), "{}", text(&held));
    let ca = bed.path("data/public/infrastructure.pem").display().to_string();
    assert!(!check(&["--certificate", &ca])?.status.success());
    let log = bed.path("data/log");
    let shown = log.display().to_string();
    let verify = |more: &[&str]| offline(&[&["log", "verify", &shown, "--key", &key], more].concat());
    wait_until("the log's files to be written", || {
        let size =
            std::fs::read_to_string(log.join("checkpoint")).ok()?.lines().nth(1)?.parse::<u64>().ok()?;
        (size >= proven["size"].as_u64()?).then_some(())
    })?;
    let whole = verify(&["-o", "json"])?;
    assert!(whole.status.success(), "{}", text(&whole));
    assert!(json(&whole)?["counts"].to_string().contains("host-attestation"));

    let kept = bed.path("kept");
    std::fs::copy(log.join("checkpoint"), &kept)?;
    let since = kept.display().to_string();
    let size = json(&whole)?["size"].as_u64().context("size")?;
    bed.hallmark_ok(&["join-token", "create", "host-9"])?;
    wait_until("the log to grow", || {
        let now = json(&verify(&["--since", &since, "-o", "json"]).ok()?).ok()?;
        (now["size"].as_u64()? > size && now["since"].as_u64()? == size).then_some(())
    })?;

    // One byte of one record.
    let record = Path::new(&evidence).join("record.json");
    let honest = std::fs::read_to_string(&record)?;
    std::fs::write(&record, honest.replace("team@", "else@"))?;
    let forged = check(&[])?;
    assert!(
        !forged.status.success() && text(&forged).contains("does not have this entry"),
        "{}",
        text(&forged)
    );
    drop(host);
    let bundle = walk(&log.join("tile/entries"))?;
    let mut bytes = std::fs::read(&bundle)?;
    bytes[40] ^= 1;
    std::fs::write(&bundle, bytes)?;
    let forged = verify(&[])?;
    assert!(
        !forged.status.success() && text(&forged).contains("entry 0: what tile/entries/000"),
        "{}",
        text(&forged)
    );
    Ok(())
}

/// The widest bundle of the first 256 entries.
fn walk(entries: &Path) -> Result<std::path::PathBuf> {
    let width = |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().parse().unwrap_or(0_u32);
    let bundles = std::fs::read_dir(entries.join("000.p"))?.collect::<Result<Vec<_>, _>>()?;
    Ok(bundles.iter().max_by_key(|entry| width(entry)).context("no bundle")?.path())
}

#[test]
fn a_store_that_was_put_back_does_not_serve() -> Result<()> {
    let mut bed = Bed::start(BedOptions::default())?;
    bed.stop_issuer()?;
    let (data, old) = (bed.path("data"), bed.path("old"));
    std::fs::create_dir(&old)?;
    for entry in std::fs::read_dir(&data)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            std::fs::copy(entry.path(), old.join(entry.file_name()))?;
        }
    }
    bed.start_issuer()?;
    bed.hallmark_ok(&["join-token", "create", "host-9"])?;
    let size = |bed: &Bed| -> Option<u64> {
        std::fs::read_to_string(bed.path("data/log/checkpoint")).ok()?.lines().nth(1)?.parse().ok()
    };
    // What was there, what this start recorded, and the token: more than the store that is put back has.
    wait_until("the log to be published", || (size(&bed) >= Some(4)).then_some(()))?;
    bed.stop_issuer()?;
    // All of it: SQLite would take a newer write-ahead log beside an older database for that database's own.
    for entry in std::fs::read_dir(&data)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            std::fs::remove_file(entry.path())?;
        }
    }
    for entry in std::fs::read_dir(&old)? {
        let entry = entry?;
        std::fs::copy(entry.path(), data.join(entry.file_name()))?;
    }
    let refused = bed.start_issuer().err().context("it serves")?;
    assert!(format!("{refused:#}").contains("older copy"), "{refused:#}");
    let (log, before) = (bed.path("data/log"), bed.path("log-of-before"));
    std::fs::rename(&log, &before)?;
    bed.start_issuer()?;

    // It goes on otherwise from there, past what was published: now there are two histories.
    for n in 0..8 {
        bed.hallmark_ok(&["join-token", "create", &format!("other-{n}")])?;
    }
    bed.stop_issuer()?;
    let after = bed.path("log-of-after");
    std::fs::rename(&log, &after)?;
    std::fs::rename(&before, &log)?;
    let refused = bed.start_issuer().err().context("it serves another history")?;
    assert!(format!("{refused:#}").contains("another history"), "{refused:#}");

    // A checkpoint that cannot be read is no reason to begin anew, either.
    std::fs::remove_dir_all(&log)?;
    std::fs::rename(&after, &log)?;
    std::fs::write(log.join("checkpoint"), "nothing")?;
    let refused = bed.start_issuer().err().context("it serves")?;
    assert!(format!("{refused:#}").contains("damaged"), "{refused:#}");
    Ok(())
}

#[test]
fn a_second_issuer_on_the_same_store_does_not_disturb_the_first() -> Result<()> {
    let bed = Bed::start(BedOptions { dev: true, ..BedOptions::default() })?;
    for command in ["run", "init"] {
        let second = Command::new(binary("hallmark-issuer")?)
            .args([command, "--dev", "--config"])
            .arg(bed.path("issuer.toml"))
            .output()?;
        assert!(!second.status.success() && text(&second).contains("stop it first"), "{}", text(&second));
    }
    bed.hallmark_ok(&["join-token", "create", "host-9"])?;
    Ok(())
}
