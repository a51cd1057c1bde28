//! Showing answers: tables with colours for people, JSON for programs.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use comfy_table::{Attribute, Cell, CellAlignment, Color, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::args::{Colour, Format};
use crate::failure::Failure;

/// An answer: its serde form is the JSON, whose field names are kept stable.
pub(crate) trait Present: Serialize {
    /// The form for people.
    fn present(&self, page: &mut Page);
}

/// Where answers go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    format: Format,
    colour: Colour,
}

impl Output {
    pub(crate) fn new(format: Format, colour: Colour) -> Self {
        Self { format, colour }
    }

    /// Shows an answer on standard output.
    pub(crate) fn show(&self, answer: &impl Present) -> Result<(), Failure> {
        let text = match self.format {
            Format::Json => {
                let mut json = serde_json::to_string_pretty(answer)
                    .map_err(|error| Failure::refused(format!("cannot write JSON: {error}")))?;
                json.push('\n');
                json
            }
            Format::Table => {
                let mut page = Page::new(self.coloured(&io::stdout()));
                answer.present(&mut page);
                page.text
            }
        };
        self.raw(text.as_bytes())
    }

    /// Writes bytes to standard output as they are. A reader that has seen enough is no error.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Result<(), Failure> {
        self.stream(bytes).map(drop)
    }

    /// The same, part by part: false once the reader has seen enough.
    pub(crate) fn stream(&self, bytes: &[u8]) -> Result<bool, Failure> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(Failure::refused(format!("cannot write to standard output: {error}"))),
        }
    }

    /// Whether programs read the answers.
    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// A remark for people, on standard error; programs that read JSON get none.
    pub(crate) fn note(&self, text: &str) {
        if self.format == Format::Table {
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// A warning: on standard error, in either form.
    pub(crate) fn warn(&self, text: &str) {
        let mut stderr = io::stderr().lock();
        let _ = match self.format {
            Format::Json => writeln!(stderr, "{}", serde_json::json!({ "warning": text })),
            Format::Table => {
                let ink = Ink(self.coloured(&stderr));
                writeln!(stderr, "{}: {text}", ink.paint(Tone::Warning, "warning"))
            }
        };
    }

    /// Tells of a failure on standard error, and gives its exit code.
    pub(crate) fn fail(&self, failure: &Failure) -> ExitCode {
        let mut stderr = io::stderr().lock();
        let _ = match self.format {
            Format::Json => {
                let error = serde_json::json!({ "error": {
                    "code": failure.code, "message": failure.message, "remedy": failure.remedy,
                } });
                writeln!(stderr, "{error}")
            }
            Format::Table => {
                let ink = Ink(self.coloured(&stderr));
                let remedy =
                    failure.remedy.as_ref().map(|r| format!("\n  {} {r}", ink.paint(Tone::Dim, "→")));
                let word = ink.paint(Tone::Bad, "error");
                writeln!(stderr, "{word}: {}{}", failure.message, remedy.unwrap_or_default())
            }
        };
        ExitCode::from(failure.exit)
    }

    fn coloured(&self, stream: &impl IsTerminal) -> bool {
        match self.colour {
            Colour::Always => true,
            Colour::Never => false,
            Colour::Auto => {
                let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
                stream.is_terminal()
                    && !set("NO_COLOR")
                    && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
            }
        }
    }
}

/// What a word wants to say by its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Plain,
    Good,
    Warning,
    Bad,
    Dim,
}

impl Tone {
    /// The tone of a word that the issuer or the host daemon uses for a state.
    pub(crate) fn of(word: &str) -> Self {
        match word {
            "ok" | "met" | "live" | "yes" | "accepted" | "impossible" | "issued" | "granted" => Self::Good,
            "warning" | "at-issuance" | "pending" | "simulated" | "tedious" => Self::Warning,
            "failure" | "unmet" | "refused" => Self::Bad,
            "-" | "expired" => Self::Dim,
            _ => Self::Plain,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Ink(bool);

impl Ink {
    fn paint(self, tone: Tone, text: &str) -> String {
        let style = match tone {
            Tone::Good => AnsiColor::Green.on_default(),
            Tone::Warning => AnsiColor::Yellow.on_default(),
            Tone::Bad => AnsiColor::Red.on_default().bold(),
            Tone::Dim => Style::new().dimmed(),
            Tone::Plain => Style::new(),
        };
        if !self.0 || tone == Tone::Plain || text.is_empty() {
            return text.to_owned();
        }
        format!("{style}{text}{style:#}")
    }
}

/// A page that is being written.
pub(crate) struct Page {
    text: String,
    ink: Ink,
}

/// One cell of a table.
pub(crate) struct Word {
    text: String,
    tone: Tone,
}

impl Page {
    fn new(coloured: bool) -> Self {
        Self { text: String::new(), ink: Ink(coloured) }
    }

    /// A line of text.
    pub(crate) fn line(&mut self, text: impl AsRef<str>) {
        self.text.push_str(&clean(text.as_ref()));
        self.text.push('\n');
    }

    /// A line that warns.
    pub(crate) fn warning(&mut self, text: impl AsRef<str>) {
        let line = format!("{} {}", self.ink.paint(Tone::Warning, "!"), clean(text.as_ref()));
        self.text.push_str(&line);
        self.text.push('\n');
    }

    /// An empty line.
    pub(crate) fn gap(&mut self) {
        self.text.push('\n');
    }

    /// Names and values, aligned; values that are empty are left out.
    pub(crate) fn facts(&mut self, facts: &[(&str, Word)]) {
        let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, value) in facts.iter().filter(|(_, value)| !value.text.is_empty()) {
            let name = self.ink.paint(Tone::Dim, &format!("{name:width$}"));
            self.text.push_str(&format!("{name}  {}\n", self.ink.paint(value.tone, &value.text)));
        }
    }

    /// A table; with no rows, the words of `empty` instead.
    pub(crate) fn table(&mut self, header: &[&str], rows: Vec<Vec<Word>>, empty: &str) {
        if rows.is_empty() {
            self.line(empty);
            return;
        }
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        if self.ink.0 {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        // On a terminal long cells wrap; in a file or pipe every row stays one line.
        if io::stdout().is_terminal() {
            table.set_content_arrangement(ContentArrangement::Dynamic);
        }
        let bold = |name: &&str| Cell::new(name.to_uppercase()).add_attribute(Attribute::Bold);
        table.set_header(header.iter().map(bold).collect::<Vec<_>>());
        for row in rows {
            table.add_row(row.into_iter().map(Cell::from).collect::<Vec<_>>());
        }
        for (i, column) in table.column_iter_mut().enumerate() {
            column.set_padding((if i == 0 { 0 } else { 1 }, 1)).set_cell_alignment(CellAlignment::Left);
        }
        for line in table.lines() {
            self.text.push_str(line.trim_end());
            self.text.push('\n');
        }
    }
}

/// A word toned by what it says.
pub(crate) fn word(text: impl ToString) -> Word {
    let text = clean(&text.to_string());
    Word { tone: Tone::of(&text), text }
}

/// A word in this tone.
pub(crate) fn toned(tone: Tone, text: impl ToString) -> Word {
    Word { tone, text: clean(&text.to_string()) }
}

/// `yes` or `no`.
pub(crate) fn yes_no(yes: bool) -> Word {
    word(if yes { "yes" } else { "no" })
}

/// Several words in one cell.
pub(crate) fn list(words: &[String]) -> Word {
    if words.is_empty() { word("-") } else { word(words.join(", ")) }
}

/// What comes over a socket may hold control characters; a terminal must not obey them.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

impl From<Word> for Cell {
    fn from(word: Word) -> Self {
        let cell = Cell::new(word.text);
        match word.tone {
            Tone::Plain => cell,
            Tone::Good => cell.fg(Color::Green),
            Tone::Warning => cell.fg(Color::Yellow),
            Tone::Bad => cell.fg(Color::Red).add_attribute(Attribute::Bold),
            Tone::Dim => cell.add_attribute(Attribute::Dim),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_reach_no_terminal() {
        let mut page = Page::new(false);
        page.facts(&[("name", word("a\u{1b}[31mb\u{7}"))]);
        page.line("x\u{1b}]0;title\u{7}");
        page.table(&["a"], vec![vec![word("\u{9b}31m")]], "");
        assert!(!page.text.chars().any(|c| c.is_control() && c != '\n'), "{:?}", page.text);
    }

    #[test]
    fn colours_only_when_wanted() {
        let mut plain = Page::new(false);
        plain.facts(&[("state", word("ok"))]);
        assert_eq!(plain.text, "state  ok\n");
        let mut coloured = Page::new(true);
        coloured.facts(&[("state", word("ok"))]);
        assert!(coloured.text.contains("\u{1b}[32mok"), "{:?}", coloured.text);
    }

    #[test]
    fn an_empty_table_says_so() {
        let mut page = Page::new(false);
        page.table(&["a"], vec![], "nothing yet");
        assert_eq!(page.text, "nothing yet\n");
    }
}
