//! The trace that a request is part of, as W3C Trace Context writes it (`traceparent`, level 2), read strictly:
//! whoever calls can write anything there.

use std::fmt;
use std::str::FromStr;

/// Where a request stands in a trace: the trace, the step that it was made in, and whether that is kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceParent {
    trace_id: [u8; 16],
    parent_id: [u8; 8],
    flags: u8,
}

/// Why a text is no `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TraceParentError {
    /// Not as long as its version has it.
    #[error("{0} bytes; version 00 has 55, a later one at least as many")]
    Length(usize),
    /// Version `ff` (section 3.2.2.1), or what follows a later version's fields is not set off from them.
    #[error("no version that may be used")]
    Version,
    /// Its parts are not lower-case hex with dashes between.
    #[error("not lower-case hex in four parts")]
    Form,
    /// All-zero trace id or parent id (sections 3.2.2.3 and 3.2.2.4).
    #[error("an id of zeros alone")]
    Zero,
    /// There is more than one.
    #[error("given more than once")]
    Repeated,
}

impl TraceParentError {
    /// All of them, in one word each.
    pub const CODES: [&str; 5] = ["length", "version", "form", "zero", "repeated"];

    /// In one word.
    pub fn code(self) -> &'static str {
        match self {
            Self::Length(_) => "length",
            Self::Version => "version",
            Self::Form => "form",
            Self::Zero => "zero",
            Self::Repeated => "repeated",
        }
    }
}

/// Length of version 00, and of what is read of later ones.
const LENGTH: usize = 55;
/// The flags that level 2 knows: sampled, and that the trace id is random.
const KNOWN_FLAGS: u8 = 0x03;
const SAMPLED: u8 = 0x01;

impl TraceParent {
    /// From its parts; flags that level 2 does not know are left out.
    ///
    /// # Errors
    /// An id of zeros alone.
    pub fn new(trace_id: [u8; 16], parent_id: [u8; 8], flags: u8) -> Result<Self, TraceParentError> {
        if trace_id == [0; 16] || parent_id == [0; 8] {
            return Err(TraceParentError::Zero);
        }
        Ok(Self { trace_id, parent_id, flags: flags & KNOWN_FLAGS })
    }

    /// Reads the values of all headers of this name; none where there are none. With more than one the trace is
    /// nobody's (section 3.2.1: there is one).
    ///
    /// # Errors
    /// It is none.
    pub fn of<'a>(mut values: impl Iterator<Item = &'a [u8]>) -> Result<Option<Self>, TraceParentError> {
        match (values.next(), values.next()) {
            (None, _) => Ok(None),
            (Some(only), None) => Self::parse(only).map(Some),
            (Some(_), Some(_)) => Err(TraceParentError::Repeated),
        }
    }

    /// Reads one.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &[u8]) -> Result<Self, TraceParentError> {
        if text.len() < LENGTH {
            return Err(TraceParentError::Length(text.len()));
        }
        let [version] = octets(&text[..2])?;
        // Section 3.2.2.1 forbids ff. Section 4.3: of a later version the parts that are known are read, if a
        // dash sets off what follows.
        match (version, text.get(LENGTH)) {
            (0xff, _) => return Err(TraceParentError::Version),
            (0, Some(_)) => return Err(TraceParentError::Length(text.len())),
            (_, Some(next)) if *next != b'-' => return Err(TraceParentError::Version),
            _ => {}
        }
        if [2, 35, 52].into_iter().any(|dash| text[dash] != b'-') {
            return Err(TraceParentError::Form);
        }
        let [flags] = octets(&text[53..55])?;
        Self::new(octets(&text[3..35])?, octets(&text[36..52])?, flags)
    }

    /// The trace.
    pub fn trace_id(&self) -> &[u8; 16] {
        &self.trace_id
    }

    /// The step in it.
    pub fn parent_id(&self) -> &[u8; 8] {
        &self.parent_id
    }

    /// The flags.
    pub fn flags(&self) -> u8 {
        self.flags
    }

    /// Whether whoever sent it keeps the trace.
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// The trace in hex, as records and logs have it.
    pub fn trace_id_hex(&self) -> String {
        hex::encode(self.trace_id)
    }
}

/// Lower-case hex and nothing else (section 3.2.2: HEXDIGLC).
fn octets<const N: usize>(text: &[u8]) -> Result<[u8; N], TraceParentError> {
    let mut out = [0; N];
    if text.iter().any(u8::is_ascii_uppercase) || hex::decode_to_slice(text, &mut out).is_err() {
        return Err(TraceParentError::Form);
    }
    Ok(out)
}

impl FromStr for TraceParent {
    type Err = TraceParentError;
    fn from_str(text: &str) -> Result<Self, TraceParentError> {
        Self::parse(text.as_bytes())
    }
}

/// As version 00.
impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", hex::encode(self.trace_id), hex::encode(self.parent_id), self.flags)
    }
}

impl fmt::Debug for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn the_standards_own_example_is_read_and_written() {
        let read: TraceParent = GOOD.parse().unwrap();
        assert_eq!(read.trace_id_hex(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(hex::encode(read.parent_id()), "b7ad6b7169203331");
        assert!(read.is_sampled());
        assert_eq!(read.to_string(), GOOD);
        let unsampled: TraceParent = GOOD.replace("-01", "-00").parse().unwrap();
        assert!(!unsampled.is_sampled());
        // Level 2: the random flag is kept, flags that it does not know are not passed on.
        assert_eq!(
            GOOD.replace("-01", "-ff").parse::<TraceParent>().unwrap().to_string(),
            GOOD.replace("-01", "-03")
        );
    }

    #[test]
    fn what_is_none_is_refused_by_the_check_that_it_fails() {
        use TraceParentError as E;
        let zero_trace = format!("00-{}-b7ad6b7169203331-01", "0".repeat(32));
        let zero_parent = format!("00-0af7651916cd43dd8448eb211c80319c-{}-01", "0".repeat(16));
        let upper = GOOD.replace("0af7", "0AF7");
        let cases: Vec<(String, E)> = vec![
            (String::new(), E::Length(0)),
            (GOOD[..54].to_owned(), E::Length(54)),
            (format!("{GOOD} "), E::Length(56)),
            (format!("{GOOD}-"), E::Length(56)),
            (format!("{GOOD}-00"), E::Length(58)),
            (format!("{GOOD}\n"), E::Length(56)),
            ("x".repeat(100_000), E::Form),
            (format!("ff{}", &GOOD[2..]), E::Version),
            (format!("01{}x", &GOOD[2..]), E::Version),
            (upper, E::Form),
            (GOOD.replace("00-", "0g-"), E::Form),
            (GOOD.replace("00-", "+0-"), E::Form),
            (GOOD.replace('-', "_"), E::Form),
            (GOOD.replace("-01", "-0x"), E::Form),
            (format!(" {}", &GOOD[..54]), E::Form),
            (GOOD.replace("0af7", "0a\u{0}7"), E::Form),
            (zero_trace, E::Zero),
            (zero_parent, E::Zero),
        ];
        for (text, expected) in cases {
            assert_eq!(TraceParent::parse(text.as_bytes()), Err(expected), "{text:?}");
        }
        assert_eq!(TraceParent::parse(&[0xff; 55]), Err(E::Form));
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known() {
        let expected: TraceParent = GOOD.parse().unwrap();
        for later in [format!("01{}", &GOOD[2..]), format!("cc{}-what-comes-later", &GOOD[2..])] {
            assert_eq!(later.parse(), Ok(expected), "{later}");
        }
        assert_eq!(expected.to_string(), GOOD, "and written as what is known");
    }

    #[test]
    fn there_is_one_or_none() {
        let read = |texts: &[&str]| TraceParent::of(texts.iter().map(|t| t.as_bytes()));
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[GOOD]), Ok(Some(GOOD.parse().unwrap())));
        assert_eq!(read(&[GOOD, GOOD]), Err(TraceParentError::Repeated));
        assert_eq!(read(&["nonsense"]), Err(TraceParentError::Length(8)));
    }

    proptest! {
        #[test]
        fn whatever_is_made_is_read_again(trace: [u8; 16], parent: [u8; 8], flags: u8) {
            if let Ok(made) = TraceParent::new(trace, parent, flags) {
                prop_assert_eq!(made.to_string().parse(), Ok(made));
            }
        }

        #[test]
        fn whatever_is_read_is_written_in_the_form_known(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(read) = TraceParent::parse(&bytes) {
                prop_assert_eq!(read.to_string().len(), LENGTH);
                prop_assert_eq!(TraceParent::parse(read.to_string().as_bytes()), Ok(read));
            }
        }

        /// One byte of a good one changed: it is refused, or says what then stands there.
        #[test]
        fn one_byte_changed_is_never_taken_for_another(at in 0usize..55, byte: u8) {
            let mut bytes = GOOD.as_bytes().to_vec();
            bytes[at] = byte;
            if let Ok(read) = TraceParent::parse(&bytes) {
                let written = read.to_string();
                prop_assert_eq!(&bytes[3..52], &written.as_bytes()[3..52]);
            }
        }
    }
}
