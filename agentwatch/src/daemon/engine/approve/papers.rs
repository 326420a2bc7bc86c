//! What waits and what was granted, as it is written down for the next daemon.

use crate::daemon::engine::Engine;

impl Engine {
    pub(in crate::daemon::engine) fn save_approvals(&self, number: u32) {
        let Some(live) = self.sessions.get(&number) else {
            return;
        };
        if !self.kernel.outlives_us() {
            return;
        }
        let papers = self.desk.papers(number);
        if let Err(error) = self.registry.write_approvals(live.id(), &papers) {
            tracing::error!(
                session = live.id(),
                error = format!("{error:#}"),
                "what waits cannot be written down: another daemon would have to ask again"
            );
        }
    }

    /// Takes over what an earlier daemon had been asked for a session, where it still waits.
    pub(in crate::daemon::engine) fn resume_approvals(&mut self, number: u32, session: &str) {
        match self.registry.read_approvals(session) {
            Ok(Some(papers)) => {
                let ids: Vec<String> = papers.pending.iter().map(|it| it.id.clone()).collect();
                self.desk.restore(number, papers);
                // What the reviewer was asked by then, it was not heard to say.
                for id in ids {
                    self.consult(&id);
                }
            }
            Ok(None) => {}
            Err(error) => tracing::error!(
                session,
                error = format!("{error:#}"),
                "what was asked and granted before is not known: it is asked again"
            ),
        }
    }

    /// A session is out of the kernel.
    pub(in crate::daemon::engine) fn forget_approvals(&mut self, number: u32, id: &str) {
        self.kernel.maps.revoke_all(number);
        self.told.forget(number);
        self.desk.forget(number);
        self.registry.remove_approvals(id);
    }
}
