//! Capabilities: what an agent may do to what, and the one relation between them, *covers*.
//!
//! A capability is a pair of patterns, an action and a resource.
//!
//! - An **action** is a dotted path of words (`mail.read`). In a pattern the last word may be `*`, which
//!   stands for one or more further words: `mail.*` covers `mail.read` and `mail.draft.send`, not `mail`.
//! - A **resource** is a path of segments (`mailbox/alice/message/123`). In a pattern a segment may be `*`,
//!   which stands for exactly one segment, and the last may be `**`, which stands for one or more.
//!
//! A pattern without `*` is concrete: it stands for itself alone. `a.covers(b)` is true exactly when every
//! concrete pair that `b` stands for is one that `a` stands for. There is no negation, no alternation and
//! no `*` inside a word, so that this can be decided by one walk from left to right.
//!
//! **Not in scope:** granting. A registration's capabilities are a ceiling; what is granted below it is
//! decided elsewhere, and can use nothing but `covers`.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// Longest action pattern, in bytes.
pub const MAX_ACTION: usize = 128;
/// Longest resource pattern, in bytes.
pub const MAX_RESOURCE: usize = 512;
/// Most words or segments in one pattern.
pub const MAX_DEPTH: usize = 16;
/// Most capabilities in one set.
pub const MAX_CAPABILITIES: usize = 256;

/// Why a text is no capability.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CapabilityError {
    /// Nothing there.
    #[error("the {part} is empty")]
    Empty {
        /// `action` or `resource`.
        part: &'static str,
    },
    /// Too many bytes.
    #[error("the {part} has {len} bytes, more than {max}")]
    TooLong {
        /// `action` or `resource`.
        part: &'static str,
        /// Bytes found.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// Too many words or segments.
    #[error("the {part} has more than {MAX_DEPTH} parts")]
    TooDeep {
        /// `action` or `resource`.
        part: &'static str,
    },
    /// A word or segment that is not of the form allowed.
    #[error("the {part} {text:?} holds {found:?}: {allowed}")]
    Segment {
        /// `action` or `resource`.
        part: &'static str,
        /// The whole pattern.
        text: String,
        /// The part that is wrong.
        found: String,
        /// What is allowed, in words.
        allowed: &'static str,
    },
    /// The text form has not two parts.
    #[error("{text:?} is not of the form ACTION RESOURCE, as in `mail.read mailbox/alice/*`")]
    Form {
        /// The text read, cut to 128 characters.
        text: String,
    },
    /// More capabilities than a set may hold.
    #[error("{found} capabilities, more than {MAX_CAPABILITIES}")]
    TooMany {
        /// How many there were.
        found: usize,
    },
}

/// An action pattern and a resource pattern. Its text form is the two with one space between.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Capability {
    action: Pattern,
    resource: Pattern,
}

impl Capability {
    /// A capability of these two patterns.
    ///
    /// # Errors
    /// The first pattern that is not of the form above.
    pub fn parse(action: &str, resource: &str) -> Result<Self, CapabilityError> {
        Ok(Self { action: ACTION.parse(action)?, resource: RESOURCE.parse(resource)? })
    }

    /// The action pattern's text.
    pub fn action(&self) -> String {
        ACTION.text(&self.action)
    }

    /// The resource pattern's text.
    pub fn resource(&self) -> String {
        RESOURCE.text(&self.resource)
    }

    /// Whether this stands for one action on one resource.
    pub fn is_concrete(&self) -> bool {
        self.action.is_concrete() && self.resource.is_concrete()
    }

    /// Whether everything that `other` stands for is something that this stands for.
    pub fn covers(&self, other: &Capability) -> bool {
        self.action.covers(&other.action) && self.resource.covers(&other.resource)
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.action(), self.resource())
    }
}

impl FromStr for Capability {
    type Err = CapabilityError;
    fn from_str(s: &str) -> Result<Self, CapabilityError> {
        let (action, resource) =
            s.split_once(' ').ok_or_else(|| CapabilityError::Form { text: s.chars().take(128).collect() })?;
        Self::parse(action, resource)
    }
}

/// A bounded set of capabilities, in order, each once.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct CapabilitySet(BTreeSet<Capability>);

impl CapabilitySet {
    /// The set of these.
    ///
    /// # Errors
    /// There are more than [`MAX_CAPABILITIES`].
    pub fn new(capabilities: impl IntoIterator<Item = Capability>) -> Result<Self, CapabilityError> {
        let set: BTreeSet<Capability> = capabilities.into_iter().collect();
        if set.len() > MAX_CAPABILITIES {
            return Err(CapabilityError::TooMany { found: set.len() });
        }
        Ok(Self(set))
    }

    /// Whether each capability of `other` is covered by one of this set. Sound, and stricter than need be:
    /// where only several together would cover one (`x/*` and `x/*/**` for `x/**`) the answer is no.
    pub fn covers(&self, other: &CapabilitySet) -> bool {
        other.0.iter().all(|theirs| self.0.iter().any(|ours| ours.covers(theirs)))
    }

    /// Those of `other` that no capability of this set covers.
    pub fn uncovered<'a>(&self, other: &'a CapabilitySet) -> Vec<&'a Capability> {
        other.0.iter().filter(|theirs| !self.0.iter().any(|ours| ours.covers(theirs))).collect()
    }

    /// The capabilities, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Capability> {
        self.0.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A path with `*` for one part anywhere (`None`) and, at the end, an open tail of one or more parts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Pattern {
    parts: Vec<Option<String>>,
    open: bool,
}

impl Pattern {
    fn is_concrete(&self) -> bool {
        !self.open && self.parts.iter().all(Option::is_some)
    }

    fn covers(&self, other: &Pattern) -> bool {
        let depth = match (self.open, other.open) {
            (false, false) => self.parts.len() == other.parts.len(),
            (false, true) => false,
            // An open tail takes at least one part: either a fixed one of `other` is left over for it, or
            // `other` is open too and its tail begins no earlier.
            (true, false) => other.parts.len() > self.parts.len(),
            (true, true) => other.parts.len() >= self.parts.len(),
        };
        depth && self.parts.iter().zip(&other.parts).all(|(ours, theirs)| ours.is_none() || ours == theirs)
    }
}

/// What sets the two kinds of pattern apart: separator, limits, characters, and how wildcards are written.
struct Grammar {
    part: &'static str,
    separator: char,
    max: usize,
    tail: &'static str,
    /// How one part of any value is written, where that is allowed.
    any: Option<&'static str>,
    character: fn(char) -> bool,
    allowed: &'static str,
}

const ACTION: Grammar = Grammar {
    part: "action",
    separator: '.',
    max: MAX_ACTION,
    tail: "*",
    any: None,
    character: |c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_'),
    allowed: "words of a-z, 0-9, '-' and '_' with '.' between; only the last may be *",
};

const RESOURCE: Grammar = Grammar {
    part: "resource",
    separator: '/',
    max: MAX_RESOURCE,
    tail: "**",
    any: Some("*"),
    // No '%', '\\' or '?': a relying party may decode or cut there, and then mean something else.
    character: |c| {
        c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '~' | '@' | '+' | '=' | ':' | ',')
    },
    allowed: "segments of letters, digits and - _ . ~ @ + = : , with '/' between, none of them empty, '.' or \
              '..'; a segment may be *, and the last may be **",
};

impl Grammar {
    fn parse(&self, text: &str) -> Result<Pattern, CapabilityError> {
        let part = self.part;
        if text.is_empty() {
            return Err(CapabilityError::Empty { part });
        }
        if text.len() > self.max {
            return Err(CapabilityError::TooLong { part, len: text.len(), max: self.max });
        }
        let mut words: Vec<&str> = text.split(self.separator).collect();
        if words.len() > MAX_DEPTH {
            return Err(CapabilityError::TooDeep { part });
        }
        let open = words.last() == Some(&self.tail);
        if open {
            words.pop();
        }
        let parts = words.iter().map(|word| self.word(text, word)).collect::<Result<_, _>>()?;
        Ok(Pattern { parts, open })
    }

    fn word(&self, text: &str, word: &str) -> Result<Option<String>, CapabilityError> {
        if Some(word) == self.any {
            return Ok(None);
        }
        let fine = !word.is_empty() && word != "." && word != ".." && word.chars().all(self.character);
        fine.then(|| Some(word.to_owned())).ok_or_else(|| CapabilityError::Segment {
            part: self.part,
            text: text.to_owned(),
            found: word.to_owned(),
            allowed: self.allowed,
        })
    }

    fn text(&self, pattern: &Pattern) -> String {
        let words = pattern.parts.iter().map(|p| p.as_deref().or(self.any).unwrap_or_default());
        let words: Vec<&str> = words.chain(pattern.open.then_some(self.tail)).collect();
        words.join(&self.separator.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cap(s: &str) -> Capability {
        s.parse().unwrap()
    }

    #[test]
    fn text_survives_a_round_trip() {
        for text in ["mail.read mailbox/alice/*", "* **", "mail.* a/*/c/**", "a b", "x.y-z_1 a.b/C@d:1"] {
            assert_eq!(cap(text).to_string(), text);
        }
    }

    #[test]
    fn other_forms_are_refused() {
        let deep = format!("a {}", vec!["x"; MAX_DEPTH + 1].join("/"));
        let long = format!("a {}", "x".repeat(MAX_RESOURCE + 1));
        for text in [
            "", "a", " ", "a ", " b", "a  b", "a b c", "A b", "a..b c", ".a b", "a. b", "*.a b", "a* b",
            "a.** b", "a /b", "a b/", "a b//c", "a **/b", "a b/*c", "a b/../c", "a ./b", "a b%2fc", "a b\\c",
            "a b?c", "a b\0", "a é", &deep, &long,
        ] {
            assert!(text.parse::<Capability>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn covering_is_as_written() {
        for (wide, narrow, covers) in [
            ("* **", "mail.read a", true),
            ("* **", "* **", true),
            ("mail.* a", "mail.read a", true),
            ("mail.* a", "mail.draft.send a", true),
            ("mail.* a", "mail a", false),
            ("mail a", "mail.* a", false),
            ("mail.* a", "* a", false),
            ("mail.read a/*", "mail.read a/b", true),
            ("mail.read a/*", "mail.read a/b/c", false),
            ("mail.read a/*", "mail.read a", false),
            ("mail.read a/**", "mail.read a/b/c", true),
            ("mail.read a/**", "mail.read a/*/c", true),
            ("mail.read a/**", "mail.read a", false),
            ("mail.read a/**", "mail.read a/*", true),
            ("mail.read a/*", "mail.read a/**", false),
            ("mail.read a/b", "mail.read a/*", false),
            ("mail.read a/*/**", "mail.read a/**", false),
            ("mail.read a/**", "mail.read a/*/**", true),
            ("mail.read a", "mail.write a", false),
        ] {
            assert_eq!(cap(wide).covers(&cap(narrow)), covers, "{wide} covers {narrow}");
        }
    }

    #[test]
    fn a_set_covers_member_by_member() {
        let set = |caps: &[&str]| CapabilitySet::new(caps.iter().map(|c| cap(c))).unwrap();
        let ceiling = set(&["mail.read mailbox/alice/*", "mail.send **"]);
        assert!(ceiling.covers(&set(&[])));
        assert!(ceiling.covers(&set(&["mail.read mailbox/alice/1", "mail.send a/b"])));
        let over = set(&["mail.read mailbox/bob/1", "mail.send a"]);
        assert!(!ceiling.covers(&over));
        assert_eq!(ceiling.uncovered(&over), [&cap("mail.read mailbox/bob/1")]);
        let many = (0..=MAX_CAPABILITIES).map(|i| cap(&format!("a r{i}")));
        assert_eq!(CapabilitySet::new(many), Err(CapabilityError::TooMany { found: MAX_CAPABILITIES + 1 }));
    }

    // A small alphabet, so that patterns meet often.
    fn action() -> impl Strategy<Value = String> {
        (prop::collection::vec("[ab]", 0..3), any::<bool>()).prop_map(|(mut words, open)| {
            if open || words.is_empty() {
                words.push("*".to_owned());
            }
            words.join(".")
        })
    }

    fn resource() -> impl Strategy<Value = String> {
        (prop::collection::vec("[ab*]", 0..4), any::<bool>()).prop_map(|(mut words, open)| {
            if open || words.is_empty() {
                words.push("**".to_owned());
            }
            words.join("/")
        })
    }

    fn capability() -> impl Strategy<Value = Capability> {
        (action(), resource()).prop_map(|(a, r)| Capability::parse(&a, &r).unwrap())
    }

    fn concrete() -> impl Strategy<Value = Capability> {
        (prop::collection::vec("[ab]", 1..5), prop::collection::vec("[ab]", 1..6))
            .prop_map(|(a, r)| Capability::parse(&a.join("."), &r.join("/")).unwrap())
    }

    /// All paths over {a, b, c} up to `depth`: `c` stands for every value that no pattern names.
    fn universe(depth: usize) -> Vec<Vec<&'static str>> {
        let mut all: Vec<Vec<&str>> = vec![];
        let mut last: Vec<Vec<&str>> = vec![vec![]];
        for _ in 0..depth {
            last = last
                .iter()
                .flat_map(|p| ["a", "b", "c"].map(|w| p.iter().copied().chain([w]).collect()))
                .collect();
            all.extend(last.clone());
        }
        all
    }

    proptest! {
        #[test]
        fn covers_is_reflexive(a in capability()) {
            prop_assert!(a.covers(&a));
            prop_assert_eq!(cap(&a.to_string()), a);
        }

        #[test]
        fn covers_is_transitive(a in capability(), b in capability(), c in capability()) {
            if a.covers(&b) && b.covers(&c) {
                prop_assert!(a.covers(&c), "{} ⊇ {} ⊇ {}", a, b, c);
            }
        }

        #[test]
        fn what_the_smaller_allows_the_larger_allows(a in capability(), b in capability(), x in concrete()) {
            if a.covers(&b) && b.covers(&x) {
                prop_assert!(a.covers(&x), "{} ⊇ {} ∋ {}", a, b, x);
            }
        }

        #[test]
        fn covers_is_exactly_inclusion(a in resource(), b in resource()) {
            // Patterns here have at most five parts: paths up to six tell any two apart.
            let (a, b) = (RESOURCE.parse(&a).unwrap(), RESOURCE.parse(&b).unwrap());
            let included = universe(6).iter().all(|path| {
                let path = Pattern { parts: path.iter().map(|w| Some((*w).to_owned())).collect(), open: false };
                !b.covers(&path) || a.covers(&path)
            });
            prop_assert_eq!(a.covers(&b), included, "{:?} ⊇ {:?}", a, b);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            if let Ok(c) = text.parse::<Capability>() {
                prop_assert_eq!(c.to_string(), text);
            }
        }
    }
}
