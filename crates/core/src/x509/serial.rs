//! Certificate serial numbers.

use std::fmt;
use std::str::FromStr;

/// A certificate's serial number as Hallmark makes them: 16 bytes, positive, first byte 0x40–0x7f.
///
/// RFC 5280 §4.1.2.2 demands a positive integer of at most 20 bytes. Fixing the two top bits leaves 126
/// random ones and makes the DER content, the wire's bytes and the hexadecimal text always the same 16
/// bytes: there is one way to write a serial, so it can be compared anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Serial([u8; 16]);

/// Bytes or text that are no serial number of Hallmark's form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("serial number {found} is not 16 bytes beginning with 0x40-0x7f")]
pub struct SerialError {
    /// What was read, as hexadecimal, cut to 40 digits.
    pub found: String,
}

impl Serial {
    /// A serial of these 16 random bytes, two bits of which are replaced.
    pub fn from_random(mut bytes: [u8; 16]) -> Self {
        bytes[0] = bytes[0] & 0x3f | 0x40;
        Self(bytes)
    }

    /// The serial that these bytes are: 16, in canonical form.
    ///
    /// # Errors
    /// Another length or form.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SerialError> {
        match <[u8; 16]>::try_from(bytes) {
            Ok(b) if b[0] & 0xc0 == 0x40 => Ok(Self(b)),
            _ => Err(SerialError { found: hex::encode(&bytes[..bytes.len().min(20)]) }),
        }
    }

    /// The 16 bytes: the content of the DER INTEGER.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for Serial {
    type Err = SerialError;
    fn from_str(s: &str) -> Result<Self, SerialError> {
        let bytes = hex::decode(s).map_err(|_| SerialError {
            found: s.chars().filter(char::is_ascii_graphic).take(40).collect(),
        })?;
        Self::from_bytes(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_form_only() {
        for bytes in [[0; 16], [0xff; 16], [0x80; 16]] {
            let serial = Serial::from_random(bytes);
            assert_eq!(Serial::from_bytes(serial.as_bytes()), Ok(serial));
            assert_eq!(serial.to_string().parse(), Ok(serial));
        }
        assert!(Serial::from_bytes(&[0x40; 15]).is_err());
        assert!(Serial::from_bytes(&[0x40; 17]).is_err());
        assert!(Serial::from_bytes(&[0; 16]).is_err(), "zero");
        assert!(Serial::from_bytes(&[0x80; 16]).is_err(), "negative");
        assert!("4g".repeat(16).parse::<Serial>().is_err());
    }
}
