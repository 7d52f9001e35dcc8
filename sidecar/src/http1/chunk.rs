//! Chunked framing, byte by byte. Pure.

use super::strict::{Flaw, MAX_HEAD, ambiguous, too_large};

/// Most bytes of extensions that a message may carry, where they are taken at all.
const MAX_EXTENSIONS: u32 = 16 * 1024;

/// Where in a chunked body the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunk {
    /// In a chunk's size.
    Size {
        /// So far.
        value: u64,
        /// How many there were.
        digits: u8,
    },
    /// In what follows a size after `;`.
    Extension {
        /// The chunk's size.
        value: u64,
    },
    /// Before the LF of a size.
    SizeLf {
        /// The chunk's size.
        value: u64,
    },
    /// In data, of which so many bytes are left.
    Data(u64),
    /// Before the CR after data.
    DataCr,
    /// Before the LF after data.
    DataLf,
    /// In a trailer line, `bytes` into the trailers, `line` into the line.
    Trailer {
        /// Of all trailers.
        bytes: u32,
        /// Of this line.
        line: u32,
    },
    /// Before the LF of a trailer line.
    TrailerLf {
        /// Of all trailers.
        bytes: u32,
        /// It ends the message.
        empty: bool,
    },
}

/// Whether chunk extensions are skipped or refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extensions {
    /// They are refused: nobody needs them, and parsers differ.
    Refused,
    /// They are skipped; `bytes` of them so far.
    Skipped {
        /// In the whole message.
        bytes: u32,
    },
}

impl Chunk {
    /// Before the first chunk.
    pub const START: Self = Self::Size { value: 0, digits: 0 };

    /// The state after `byte`; `None`: the message is complete.
    /// # Errors
    /// What can be read in two ways, or is too large.
    pub fn next(self, byte: u8, extensions: &mut Extensions) -> Result<Option<Self>, Flaw> {
        Ok(Some(match (self, byte) {
            (Self::Size { value, digits }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                if digits == 15 {
                    return Err(ambiguous("chunk size of more than 15 digits"));
                }
                let digit = char::from(byte).to_digit(16).expect("the arm takes hexadecimal digits");
                Self::Size { value: value << 4 | u64::from(digit), digits: digits + 1 }
            }
            (Self::Size { digits: 0, .. }, _) => return Err(ambiguous("chunk size without digits")),
            (Self::Size { value, .. }, b'\r') => Self::SizeLf { value },
            (Self::Size { value, .. }, b';') => match extensions {
                Extensions::Refused => return Err(ambiguous("chunk extension")),
                Extensions::Skipped { .. } => Self::Extension { value },
            },
            (Self::Size { .. }, _) => return Err(ambiguous("chunk size with other than digits")),
            (Self::Extension { value }, b'\r') => Self::SizeLf { value },
            (Self::Extension { .. }, b'\n' | 0) => return Err(ambiguous("bare LF or NUL in a chunk extension")),
            (Self::Extension { value }, _) => {
                if let Extensions::Skipped { bytes } = extensions {
                    *bytes += 1;
                    if *bytes > MAX_EXTENSIONS {
                        return Err(too_large("chunk extensions over 16 KiB"));
                    }
                }
                Self::Extension { value }
            }
            (Self::SizeLf { value: 0 }, b'\n') => Self::Trailer { bytes: 0, line: 0 },
            (Self::SizeLf { value }, b'\n') => Self::Data(value),
            (Self::SizeLf { .. }, _) => return Err(ambiguous("CR without LF in a chunk line")),
            (Self::Data(left), _) => Self::Data(left),
            (Self::DataCr, b'\r') => Self::DataLf,
            (Self::DataLf, b'\n') => Self::START,
            (Self::DataCr | Self::DataLf, _) => return Err(ambiguous("chunk data longer than its size")),
            (Self::Trailer { bytes, line }, b'\r') => Self::TrailerLf { bytes, empty: line == 0 },
            (Self::Trailer { .. }, b'\n' | 0) => return Err(ambiguous("bare LF or NUL in a trailer")),
            (Self::Trailer { line: 0, .. }, b' ' | b'\t') => return Err(ambiguous("folded trailer")),
            (Self::Trailer { bytes, line }, _) if (bytes as usize) < MAX_HEAD => {
                Self::Trailer { bytes: bytes + 1, line: line + 1 }
            }
            (Self::Trailer { .. }, _) => return Err(too_large("trailers over 64 KiB")),
            (Self::TrailerLf { empty: true, .. }, b'\n') => return Ok(None),
            (Self::TrailerLf { bytes, .. }, b'\n') => Self::Trailer { bytes, line: 0 },
            (Self::TrailerLf { .. }, _) => return Err(ambiguous("CR without LF in a trailer")),
        }))
    }
}
