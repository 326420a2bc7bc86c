//! How much one connection may cost the collector.

use std::time::Duration;

/// Bounds on connections. The defaults are for a host; tests shorten the times.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Time until a connection must have asked its question.
    pub first_question: Duration,
    /// Time for which an asker may leave a finite answer unread: long, because a person may look at it in a pager.
    pub unread_answer: Duration,
    /// Time for which a follower, or the asker of SQL, may leave a part unread.
    pub unread_part: Duration,
    /// Time that one SQL statement may take.
    pub sql: Duration,
    /// Connections of all users but root and the collector's own, which have as many again for themselves.
    pub questions: usize,
    /// Connections of one such user.
    pub questions_per_user: usize,
    /// Connections that bring events.
    pub ingest: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            first_question: Duration::from_secs(10),
            unread_answer: Duration::from_secs(600),
            unread_part: Duration::from_secs(30),
            sql: Duration::from_secs(30),
            questions: 64,
            questions_per_user: 16,
            ingest: 8,
        }
    }
}
