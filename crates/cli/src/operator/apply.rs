//! `hallmark apply`

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use hallmark_core::registration::{self, MAX_FILE};
use hallmark_proto::admin::{ApplyRequest, ApplyResponse, RegistrationFile};
use serde::Serialize;

use crate::admin::{connect, failed};
use crate::failure::{Failure, REFUSED};
use crate::output::{Output, Page, Present, Tone, toned, word};

/// All files are checked as a whole first, here and by the issuer; then all of them are applied or none.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hallmark apply mailer.toml --dry-run      what would change
  hallmark apply /etc/hallmark/agents.d     every *.toml of a directory
  hallmark apply agents/ --prune            and remove what is in none of them
  generate-agents | hallmark apply -        from standard input

Exit code 1 when a file has faults; nothing is applied then.")]
pub(crate) struct ApplyArgs {
    /// Files, directories (their *.toml), or - for standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Only say what would change
    #[arg(long)]
    dry_run: bool,
    /// Remove registrations that are in none of the files
    #[arg(long)]
    prune: bool,
}

pub(crate) async fn run(admin: &Path, args: ApplyArgs, output: &Output) -> Result<u8, Failure> {
    let files = read_all(&args.files)?;
    let named: Vec<(&str, &str)> =
        files.iter().map(|file| (file.name.as_str(), file.toml.as_str())).collect();
    let set = match registration::parse_files(&named) {
        Ok(set) => set,
        Err(faults) => {
            output.show(&Applied::refused(args.dry_run, faults))?;
            return Ok(REFUSED);
        }
    };
    for warning in registration::warnings(&set) {
        output.warn(&warning.problem);
    }
    let request = ApplyRequest { files, dry_run: args.dry_run, prune: args.prune };
    let answer = connect(admin).await?.apply(request).await.map_err(failed)?.into_inner();
    let view = Applied::new(args.dry_run, answer);
    output.show(&view)?;
    Ok(if view.faults.is_empty() { 0 } else { REFUSED })
}

fn read_all(paths: &[PathBuf]) -> Result<Vec<RegistrationFile>, Failure> {
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            let before = files.len();
            for file in toml_files(path)? {
                files.push(read(&file)?);
            }
            if files.len() == before {
                return Err(Failure::usage(format!("{} holds no *.toml file", path.display())));
            }
        } else {
            files.push(read(path)?);
        }
    }
    Ok(files)
}

fn toml_files(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let unreadable = |error| Failure::usage(format!("cannot read {}: {error}", dir.display()));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|e| e == "toml") && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn read(path: &Path) -> Result<RegistrationFile, Failure> {
    let stdin = path.as_os_str() == "-";
    let name = if stdin { "standard input".to_owned() } else { path.display().to_string() };
    let unreadable = |error: std::io::Error| Failure::usage(format!("cannot read {name}: {error}"));
    let mut toml = String::new();
    let read = if stdin {
        std::io::stdin().take(MAX_FILE as u64 + 1).read_to_string(&mut toml)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_FILE as u64 + 1).read_to_string(&mut toml))
    };
    if read.map_err(unreadable)? > MAX_FILE {
        return Err(Failure::usage(format!("{name} is larger than {MAX_FILE} bytes: split it")));
    }
    Ok(RegistrationFile { name, toml })
}

#[derive(Serialize)]
struct Applied {
    dry_run: bool,
    applied: bool,
    /// Of the registrations as they are now, or with --dry-run would be; none where the issuer was not asked.
    revision: Option<u64>,
    created: Vec<String>,
    changed: Vec<String>,
    unchanged: Vec<String>,
    removed: Vec<String>,
    faults: Vec<FaultView>,
}

#[derive(Serialize)]
struct FaultView {
    file: String,
    key: String,
    problem: String,
}

impl Applied {
    /// Faults found here: the issuer was not asked.
    fn refused(dry_run: bool, faults: Vec<registration::Fault>) -> Self {
        let faults = faults.into_iter().map(|f| FaultView { file: f.file, key: f.key, problem: f.problem });
        let none = Vec::new;
        Self {
            dry_run,
            applied: false,
            revision: None,
            created: none(),
            changed: none(),
            unchanged: none(),
            removed: none(),
            faults: faults.collect(),
        }
    }

    fn new(dry_run: bool, answer: ApplyResponse) -> Self {
        let faults: Vec<FaultView> = answer
            .faults
            .into_iter()
            .map(|f| FaultView { file: f.file, key: f.key, problem: f.problem })
            .collect();
        Self {
            dry_run,
            applied: !dry_run && faults.is_empty(),
            revision: Some(answer.revision),
            created: answer.created,
            changed: answer.changed,
            unchanged: answer.unchanged,
            removed: answer.removed,
            faults,
        }
    }
}

impl Present for Applied {
    fn present(&self, page: &mut Page) {
        if !self.faults.is_empty() {
            let rows = self.faults.iter().map(|f| {
                vec![
                    word(&f.file),
                    word(if f.key.is_empty() { "-" } else { &f.key }),
                    toned(Tone::Bad, &f.problem),
                ]
            });
            page.table(&["file", "key", "problem"], rows.collect(), "");
            page.line(format!("{} faults: nothing was applied.", self.faults.len()));
            return;
        }
        let mut rows = Vec::new();
        for (what, tone, agents) in [
            ("created", Tone::Good, &self.created),
            ("changed", Tone::Warning, &self.changed),
            ("removed", Tone::Bad, &self.removed),
            ("unchanged", Tone::Dim, &self.unchanged),
        ] {
            rows.extend(agents.iter().map(|agent| vec![toned(tone, what), word(agent)]));
        }
        page.table(&["change", "agent"], rows, "The files hold no registration.");
        let revision = self.revision.unwrap_or_default();
        page.line(if self.dry_run {
            format!(
                "Dry run: nothing was applied; applied, the registrations would be at revision {revision}."
            )
        } else {
            format!("Applied: registrations are at revision {revision}.")
        });
    }
}
