//! From files to registrations.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

use super::check::{self, Faults};
use super::raw::RawAgent;
use super::{Fault, Registration};
use crate::id::AgentName;

/// Largest registration file, in bytes.
pub const MAX_FILE: usize = 4 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    agent: Vec<Spanned<toml::Value>>,
}

/// Reads registration files, each a pair of name and TOML text, as one set.
///
/// # Errors
/// Every fault of every file, in their order; then nothing of the set may be applied.
pub fn parse_files<N: AsRef<str>, T: AsRef<str>>(files: &[(N, T)]) -> Result<Vec<Registration>, Vec<Fault>> {
    let mut registrations = vec![];
    let mut faults = vec![];
    // Where each name was first seen, whether or not that registration was free of faults.
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    for (name, text) in files {
        let mut here = Faults::new(name.as_ref());
        parse_file(text.as_ref(), &mut here, &mut seen, &mut registrations);
        faults.append(&mut here.list);
    }
    if faults.is_empty() { Ok(registrations) } else { Err(faults) }
}

fn parse_file(
    text: &str,
    faults: &mut Faults,
    seen: &mut BTreeMap<String, String>,
    registrations: &mut Vec<Registration>,
) {
    if text.len() > MAX_FILE {
        faults.add("file", format_args!("{} bytes, more than {MAX_FILE}: split it", text.len()));
        return;
    }
    let file: RawFile = match toml::from_str(text) {
        Ok(file) => file,
        Err(e) => {
            let at = e.span().map_or_else(|| "file".to_owned(), |span| position(text, span.start));
            return faults.add(at, e.message());
        }
    };
    if file.agent.is_empty() {
        faults.add("file", "it registers nothing: write at least one [[agent]] table");
    }
    for agent in file.agent {
        let line = line(text, agent.span().start);
        let value = agent.into_inner();
        // A registration is called by its name where it has a good one, else by its place.
        let name = value.get("name").and_then(|n| n.as_str()).filter(|n| n.parse::<AgentName>().is_ok());
        let name = name.map(ToOwned::to_owned);
        faults.table =
            name.as_ref().map_or_else(|| format!("agent at line {line}"), |n| format!("agent {n:?}"));
        let place = format!("{}, line {line}", faults.file);
        if let Some(first) = name.and_then(|n| seen.insert(n, place)) {
            faults.add("name", format_args!("already registered in {first}: names are unique, rename one"));
        }
        match RawAgent::deserialize(value) {
            Ok(raw) => registrations.extend(check::agent(raw, faults)),
            Err(e) => faults.add("", e.to_string().trim().replace('\n', ", ")),
        }
        faults.table.clear();
    }
}

fn line(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|&b| b == b'\n').count() + 1
}

fn position(text: &str, offset: usize) -> String {
    let before = text.get(..offset).unwrap_or(text);
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    format!("line {}, column {column}", line(text, offset))
}
