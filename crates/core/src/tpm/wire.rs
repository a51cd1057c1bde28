//! Reading TPM wire form: big-endian integers and `TPM2B` buffers with a 16-bit size (Part 2, clause 4.2
//! and 10.4), each with its bound.

/// Why bytes are not the structure they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The input ends inside a field.
    #[error("{field}: {wanted} bytes wanted at offset {offset}, {left} left")]
    Truncated {
        /// The field being read.
        field: &'static str,
        /// Where it begins.
        offset: usize,
        /// How many bytes it needs.
        wanted: usize,
        /// How many there are.
        left: usize,
    },
    /// Bytes are left over after the structure.
    #[error("{structure}: {left} bytes left over")]
    Trailing {
        /// The structure that was read.
        structure: &'static str,
        /// How many bytes follow it.
        left: usize,
    },
    /// The input or a buffer is larger than its bound.
    #[error("{field}: {found} bytes or entries, at most {max}")]
    TooLong {
        /// The field being read.
        field: &'static str,
        /// The size it states.
        found: usize,
        /// The bound.
        max: usize,
    },
    /// A selector or a constant that is not among those this verifier knows.
    #[error("{field}: value {found:#x} is not supported here")]
    Unsupported {
        /// The field being read.
        field: &'static str,
        /// Its value.
        found: u64,
    },
    /// A field whose value breaks a rule of the structure.
    #[error("{field}: {rule}")]
    Invalid {
        /// The field being read.
        field: &'static str,
        /// The rule it breaks.
        rule: &'static str,
    },
}

/// A cursor that never reads past its input.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    input: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// A cursor over `input`, which may have at most `max` bytes.
    pub(crate) fn new(structure: &'static str, input: &'a [u8], max: usize) -> Result<Self, ParseError> {
        if input.len() > max {
            return Err(ParseError::TooLong { field: structure, found: input.len(), max });
        }
        Ok(Self { input, at: 0 })
    }

    pub(crate) fn take(&mut self, field: &'static str, wanted: usize) -> Result<&'a [u8], ParseError> {
        let rest = self.input.get(self.at..).unwrap_or_default();
        match rest.get(..wanted) {
            Some(taken) => {
                self.at += wanted;
                Ok(taken)
            }
            None => Err(ParseError::Truncated { field, offset: self.at, wanted, left: rest.len() }),
        }
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], ParseError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(field, N)?);
        Ok(out)
    }

    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, ParseError> {
        Ok(u8::from_be_bytes(self.array(field)?))
    }

    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16, ParseError> {
        Ok(u16::from_be_bytes(self.array(field)?))
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, ParseError> {
        Ok(u32::from_be_bytes(self.array(field)?))
    }

    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64, ParseError> {
        Ok(u64::from_be_bytes(self.array(field)?))
    }

    /// A `TPM2B` of at most `max` bytes.
    pub(crate) fn sized(&mut self, field: &'static str, max: usize) -> Result<&'a [u8], ParseError> {
        let size = usize::from(self.u16(field)?);
        if size > max {
            return Err(ParseError::TooLong { field, found: size, max });
        }
        self.take(field, size)
    }

    /// Nothing may be left.
    pub(crate) fn end(self, structure: &'static str) -> Result<(), ParseError> {
        match self.input.len() - self.at {
            0 => Ok(()),
            left => Err(ParseError::Trailing { structure, left }),
        }
    }
}

/// Appends a `TPM2B`. The caller bounds `bytes`; every use here is of a digest, a key or a secret.
pub(crate) fn put_sized(out: &mut Vec<u8>, bytes: &[u8]) {
    debug_assert!(bytes.len() <= usize::from(u16::MAX));
    out.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_to_the_last_byte_and_no_further() {
        let mut r = Reader::new("test", &[0, 2, 7, 8, 9], 8).unwrap();
        assert_eq!(r.sized("buffer", 2).unwrap(), [7, 8]);
        assert_eq!(
            r.clone().u16("word"),
            Err(ParseError::Truncated { field: "word", offset: 4, wanted: 2, left: 1 })
        );
        assert_eq!(r.clone().end("test"), Err(ParseError::Trailing { structure: "test", left: 1 }));
        assert_eq!(r.u8("byte").unwrap(), 9);
        r.end("test").unwrap();
    }

    #[test]
    fn bounds_come_before_reading() {
        assert!(matches!(Reader::new("test", &[0; 9], 8), Err(ParseError::TooLong { found: 9, max: 8, .. })));
        let mut r = Reader::new("test", &[0xff, 0xff], 8).unwrap();
        assert_eq!(
            r.sized("buffer", 64),
            Err(ParseError::TooLong { field: "buffer", found: 65535, max: 64 })
        );
    }
}
