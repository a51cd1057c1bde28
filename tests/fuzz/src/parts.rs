//! Inputs made of several parts.

/// The parts of an input: each but the last has its length before it (two bytes, big-endian); the last is
/// the rest. None if there are not `N`.
pub fn split<const N: usize>(data: &[u8]) -> Option<[&[u8]; N]> {
    let mut parts = [&data[..0]; N];
    let mut rest = data;
    for part in parts.iter_mut().take(N - 1) {
        let (len, after) = rest.split_first_chunk::<2>()?;
        (*part, rest) = after.split_at_checked(u16::from_be_bytes(*len).into())?;
    }
    *parts.last_mut()? = rest;
    Some(parts)
}

/// The input of these parts.
pub fn join(parts: &[&[u8]]) -> Vec<u8> {
    let (last, first) = parts.split_last().expect("at least one part");
    let mut data = vec![];
    for part in first {
        data.extend(u16::try_from(part.len()).expect("a part below 64 KiB").to_be_bytes());
        data.extend_from_slice(part);
    }
    data.extend_from_slice(last);
    data
}
