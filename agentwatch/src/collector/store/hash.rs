//! The hash of rows, the same from a batch that is being sealed and from a segment that is being checked.
//!
//! Of each row, part by part in the order of the table: one byte 2 where the part says what it said in the row before, in the same
//! group. Else, for each of its columns: one byte 0 where there is no value, else one byte 1 and the value, a number as eight
//! bytes and a text as four bytes of length and its UTF-8, all little endian. A group's hash is BLAKE3 of its rows.

use std::ops::Range;

use super::columns::{COLUMNS, PARTS, Part, Row};

/// Rows of one hash.
pub(super) const GROUP_ROWS: usize = 64;

/// Says that a part is as in the row before.
const AGAIN: u8 = 2;

/// Hashes rows group by group.
#[derive(Default)]
pub(super) struct Groups {
    buffer: Vec<u8>,
    /// The group before, from which its parts are taken that go on in this one.
    before: Vec<u8>,
    /// Where the columns of each part stand that were told last.
    told: [Told; PARTS.len()],
    /// Where the part begins that is being told.
    from: usize,
    held: usize,
    hashes: String,
}

/// Where the columns of a part stand.
#[derive(Clone, Default)]
struct Told {
    at: Range<usize>,
    /// In the group before.
    before: bool,
}

impl Groups {
    pub(super) fn add(&mut self, row: &impl Row) {
        for (part, columns) in Part::ALL.iter().zip(PARTS) {
            self.begin();
            for column in columns {
                if COLUMNS[*column as usize].is_text() {
                    self.text(row.text(*column));
                } else {
                    self.number(row.number(*column));
                }
            }
            self.end(*part);
        }
        self.end_row();
    }

    /// The next part of a row.
    pub(super) fn begin(&mut self) {
        self.from = self.buffer.len();
    }

    /// The next column of a part.
    pub(super) fn number(&mut self, value: Option<i64>) {
        match value {
            None => self.buffer.push(0),
            Some(number) => {
                let mut bytes = [1; 9];
                bytes[1..].copy_from_slice(&number.to_le_bytes());
                self.buffer.extend_from_slice(&bytes);
            }
        }
    }

    /// The next column of a part.
    pub(super) fn text(&mut self, value: Option<&str>) {
        match value {
            None => self.buffer.push(0),
            Some(text) => {
                let mut head = [1; 5];
                let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
                head[1..].copy_from_slice(&length.to_le_bytes());
                self.buffer.extend_from_slice(&head);
                self.buffer.extend_from_slice(text.as_bytes());
            }
        }
    }

    /// All columns of a part are told.
    pub(super) fn end(&mut self, part: Part) {
        let told = &mut self.told[part as usize];
        let at = self.from..self.buffer.len();
        if !told.before
            && !told.at.is_empty()
            && self.buffer[told.at.clone()] == self.buffer[at.clone()]
        {
            self.buffer.truncate(at.start);
            self.buffer.push(AGAIN);
        } else {
            *told = Told { at, before: false };
        }
    }

    /// A part says what it said in the row before.
    pub(super) fn again(&mut self, part: Part) {
        let told = &mut self.told[part as usize];
        if told.before {
            let from = self.buffer.len();
            self.buffer.extend_from_slice(&self.before[told.at.clone()]);
            *told = Told {
                at: from..self.buffer.len(),
                before: false,
            };
        } else {
            self.buffer.push(AGAIN);
        }
    }

    pub(super) fn end_row(&mut self) {
        self.held += 1;
        if self.held == GROUP_ROWS {
            self.close();
        }
    }

    /// The hashes, as hexadecimal digits.
    pub(super) fn finish(mut self) -> String {
        if self.held > 0 {
            self.close();
        }
        self.hashes
    }

    fn close(&mut self) {
        self.hashes.push_str(&blake3::hash(&self.buffer).to_hex());
        std::mem::swap(&mut self.buffer, &mut self.before);
        self.buffer.clear();
        for told in &mut self.told {
            told.before = true;
        }
        self.held = 0;
    }
}
