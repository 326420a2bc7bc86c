//! The hash of rows, the same from a batch that is being sealed and from a segment that is being checked.
//!
//! For each column in the order of the table: one byte 0 where there is no value, else one byte 1 and the value, a number as
//! eight bytes and a text as four bytes of length and its UTF-8, all little endian. A group's hash is BLAKE3 of its rows.

use super::columns::{ALL, COLUMNS, Row};

/// Rows of one hash.
pub(super) const GROUP_ROWS: usize = 64;

/// Hashes rows group by group.
#[derive(Default)]
pub(super) struct Groups {
    buffer: Vec<u8>,
    held: usize,
    hashes: String,
}

impl Groups {
    pub(super) fn add(&mut self, row: &impl Row) {
        for (column, described) in ALL.iter().zip(&COLUMNS) {
            if described.is_text() {
                self.text(row.text(*column));
            } else {
                self.number(row.number(*column));
            }
        }
        self.end_row();
    }

    /// The next column of a row.
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

    /// The next column of a row.
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

    /// Columns of a row, as [`Groups::since`] gave them for a row that says the same.
    pub(super) fn bytes(&mut self, columns: &[u8]) {
        self.buffer.extend_from_slice(columns);
    }

    /// Where the next column goes.
    pub(super) fn here(&self) -> usize {
        self.buffer.len()
    }

    /// The columns of a row that is not at its end.
    pub(super) fn since(&self, here: usize) -> &[u8] {
        self.buffer.get(here..).unwrap_or_default()
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
        self.buffer.clear();
        self.held = 0;
    }
}
