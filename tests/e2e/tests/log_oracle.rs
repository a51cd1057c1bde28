//! The log as others read it: `tlog` and `note` of golang.org/x/mod, which the Go toolchain carries with it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use hallmark_e2e::{Bed, BedOptions, skip, wait_until};

#[test]
fn gos_checksum_database_reads_the_log() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let Some(oracle) = oracle(dir.path())? else {
        skip("gos_checksum_database_reads_the_log (no Go toolchain with golang.org/x/mod in it)");
        return Ok(());
    };
    let bed = Bed::start(BedOptions { dev: true, ..BedOptions::default() })?;
    let log = bed.path("data/log");
    let size = || -> Option<u64> {
        std::fs::read_to_string(log.join("checkpoint")).ok()?.lines().nth(1)?.parse().ok()
    };
    wait_until("the first checkpoint", size)?;
    let old = bed.path("old-checkpoint");
    std::fs::copy(log.join("checkpoint"), &old)?;
    // Over the first full tile.
    for n in 0..270 {
        bed.hallmark_ok(&["join-token", "create", &format!("host-{n}")])?;
    }
    wait_until("the log's files", || (size()? > 270).then_some(()))?;
    let serial = serial_of_the_issuers_own(&bed)?;
    let evidence = bed.path("evidence").display().to_string();
    bed.hallmark_ok(&["log", "prove", "--serial", &serial, "--dir", &evidence])?;
    let evidence = Path::new(&evidence);
    let verifies = |record: &Path| -> Result<(bool, String)> {
        let output = Command::new(&oracle)
            .arg(&log)
            .arg(bed.hallmark_ok(&["log", "key"])?.trim())
            .arg(record)
            .arg(evidence.join("record.tlog-proof"))
            .arg(&old)
            .output()?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
    };
    let record = evidence.join("record.json");
    let (holds, said) = verifies(&record)?;
    assert!(holds && said.contains("verified"), "{said}");
    // It is no oracle that says yes to everything.
    let forged = evidence.join("forged.json");
    std::fs::write(&forged, std::fs::read_to_string(&record)?.replace("\"v\":1", "\"v\":2"))?;
    assert!(!verifies(&forged)?.0);
    std::fs::copy(evidence.join("record.tlog-proof"), &old)?;
    assert!(!verifies(&record)?.0);
    Ok(())
}

fn serial_of_the_issuers_own(bed: &Bed) -> Result<String> {
    let shown = bed.hallmark_ok(&["records", "--after", "1", "--limit", "1", "-o", "json"])?;
    let shown: serde_json::Value = serde_json::from_str(&shown)?;
    Ok(shown["records"][0]["body"]["serial"].as_str().context("serial")?.to_owned())
}

/// The oracle's program, made of Go's own code; none where there is no such code.
fn oracle(dir: &Path) -> Result<Option<PathBuf>> {
    let Ok(env) = Command::new("go").args(["env", "GOROOT", "GOVERSION"]).output() else { return Ok(None) };
    let env = String::from_utf8(env.stdout)?;
    let (root, version) = env.trim().split_once('\n').context("go env")?;
    let vendored = Path::new(root).join("src/cmd/vendor/golang.org/x/mod/sumdb");
    for package in ["note", "tlog"] {
        let Ok(files) = std::fs::read_dir(vendored.join(package)) else { return Ok(None) };
        std::fs::create_dir(dir.join(package))?;
        for file in files {
            let file = file?;
            std::fs::copy(file.path(), dir.join(package).join(file.file_name()))?;
        }
    }
    std::fs::write(
        dir.join("go.mod"),
        format!("module oracle\n\ngo {}\n", version.trim_start_matches("go")),
    )?;
    std::fs::write(dir.join("main.go"), include_str!("log_oracle/main.go"))?;
    let built = Command::new("go")
        .args(["build", "-o", "oracle", "."])
        .env("GOFLAGS", "-mod=mod")
        .env("GOTOOLCHAIN", "local")
        .env("GOCACHE", dir.join("cache"))
        .current_dir(dir)
        .output()?;
    anyhow::ensure!(built.status.success(), "go build: {}", String::from_utf8_lossy(&built.stderr));
    Ok(Some(dir.join("oracle")))
}
