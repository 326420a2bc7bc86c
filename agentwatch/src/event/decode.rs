//! Kernel bytes to a record and its strings. Trusts no length and no tag that the bytes hold.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _, path::PathBuf};

use agentwatch_common::{event::Record, limits};
use thiserror::Error;

/// A record with its strings taken apart.
#[derive(Debug)]
pub struct Decoded<'a> {
    pub record: Record,
    /// As the program gave it: a path as asked for, arguments, a UNIX socket's name.
    pub name: &'a [u8],
    /// Path inside its file system, from its root.
    pub path: PathBuf,
    pub second: PathBuf,
}

/// Bytes that are no record.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    #[error("a record of {0} bytes is shorter than its fixed part")]
    Short(usize),
    #[error("a record of {have} bytes says that it has {said} bytes of strings")]
    Strings { have: usize, said: u64 },
}

pub fn decode(bytes: &[u8]) -> Result<Decoded<'_>, DecodeError> {
    let (record, strings) = fixed(bytes)?;
    let said =
        u64::from(record.name_len) + u64::from(record.path_len) + u64::from(record.second_len);
    if said > strings.len() as u64 || said > limits::DATA as u64 {
        return Err(DecodeError::Strings {
            have: strings.len(),
            said,
        });
    }
    let (name, rest) = strings.split_at(record.name_len as usize);
    let (path, rest) = rest.split_at(record.path_len as usize);
    let second = &rest[..record.second_len as usize];
    Ok(Decoded {
        record,
        name,
        path: join(path),
        second: join(second),
    })
}

/// When a record was made, in nanoseconds of CLOCK_BOOTTIME; 0 of bytes that are none.
pub fn when(bytes: &[u8]) -> u64 {
    fixed(bytes).map_or(0, |(record, _)| record.ktime)
}

/// A record, and its strings.
fn fixed(bytes: &[u8]) -> Result<(Record, &[u8]), DecodeError> {
    let Some((fixed, strings)) = bytes.split_at_checked(size_of::<Record>()) else {
        return Err(DecodeError::Short(bytes.len()));
    };
    // SAFETY: a record is made of integers only, so every bit pattern is one; the length was checked.
    let record: Record = unsafe { std::ptr::read_unaligned(fixed.as_ptr().cast()) };
    Ok((record, strings))
}

/// Components, leaf first, to a path.
fn join(components: &[u8]) -> PathBuf {
    let mut path = PathBuf::from("/");
    let names: Vec<&[u8]> = components
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .collect();
    for name in names.iter().rev() {
        // A name cannot hold a slash; one that does is not taken for an absolute path.
        let clean: Vec<u8> = name
            .iter()
            .map(|byte| if *byte == b'/' { b'?' } else { *byte })
            .collect();
        path.push(OsStr::from_bytes(&clean));
    }
    path
}

/// A NUL-terminated string without its end.
pub fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(record: &Record, strings: &[u8]) -> Vec<u8> {
        // SAFETY: a record has no padding (asserted where it is defined).
        let fixed = unsafe {
            std::slice::from_raw_parts(std::ptr::from_ref(record).cast::<u8>(), size_of::<Record>())
        };
        [fixed, strings].concat()
    }

    #[test]
    fn components_become_a_path() {
        let record = Record {
            name_len: 3,
            path_len: 9,
            second_len: 2,
            ..Record::default()
        };
        let bytes = bytes(&record, b"ab\0passwd\0e\0x\0");
        let record = Record {
            path_len: 9,
            ..record
        };
        let decoded = decode(&bytes).unwrap();
        assert_eq!(decoded.record.path_len, record.path_len);
        assert_eq!(until_nul(decoded.name), b"ab");
        assert_eq!(decoded.path, PathBuf::from("/e/passwd"));
        assert_eq!(decoded.second, PathBuf::from("/x"));
    }

    #[test]
    fn lengths_are_not_trusted() {
        assert_eq!(decode(&[0; 10]).unwrap_err(), DecodeError::Short(10));
        let record = Record {
            name_len: u32::MAX,
            path_len: u32::MAX,
            second_len: u32::MAX,
            ..Record::default()
        };
        assert!(matches!(
            decode(&bytes(&record, b"abc")),
            Err(DecodeError::Strings { have: 3, .. })
        ));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..600)) {
            let _ = decode(&bytes);
        }
    }
}
