//! What is on the desk of a session, as it is written down for the next daemon.

use serde::{Deserialize, Serialize};

use super::{Desk, Given};
use crate::approval::pending::{About, Pending};

/// Everything that another daemon has to know of a session to go on where this one stopped.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Papers {
    pub pending: Vec<Pending>,
    pub given: Vec<Given>,
    /// What was rejected, with the rights that were asked for.
    pub rejected: Vec<(About, u32)>,
    /// When something was asked within the last hour.
    pub asked: Vec<u64>,
    /// What was decided, for people.
    pub decided: Vec<String>,
}

impl Papers {
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
            && self.given.is_empty()
            && self.rejected.is_empty()
            && self.asked.is_empty()
            && self.decided.is_empty()
    }
}

impl Desk {
    /// What is on the desk of a session.
    pub fn papers(&self, session: u32) -> Papers {
        Papers {
            pending: self.of_session(session).cloned().collect(),
            given: self
                .given
                .iter()
                .filter(|given| given.session == session)
                .cloned()
                .collect(),
            rejected: self
                .rejected
                .get(&session)
                .map(|rejected| rejected.iter().cloned().collect())
                .unwrap_or_default(),
            asked: self
                .asked
                .get(&session)
                .map(|times| times.iter().copied().collect())
                .unwrap_or_default(),
            decided: self.decided(session),
        }
    }

    /// Puts back what an earlier daemon had on its desk.
    pub fn restore(&mut self, session: u32, papers: Papers) {
        self.pending.extend(papers.pending);
        self.given.extend(papers.given);
        self.rejected
            .entry(session)
            .or_default()
            .extend(papers.rejected);
        self.asked.entry(session).or_default().extend(papers.asked);
        self.decided
            .entry(session)
            .or_default()
            .extend(papers.decided);
    }
}
