//! The table of what the kernel folds, read and cleared.

use agentwatch_common::{
    event::{Fold, FoldKey, fold_mark},
    limits,
};
use anyhow::Result;
use aya::maps::{Array, Map, MapData};

use super::{Maps, shared::Marks};

/// Folds by index, and what marks those that stand for something.
pub(super) struct Folds {
    marks: Marks,
    folds: Array<MapData, Fold>,
}

impl Folds {
    pub(super) fn new(marks: Map, folds: Map) -> Result<Self> {
        Ok(Self {
            marks: Marks::of_folds(marks)?,
            folds: folds.try_into()?,
        })
    }

    /// Only this process takes folds away: what has its mark stays what it is while it is read.
    fn iter(&self) -> impl Iterator<Item = (u32, Fold)> + '_ {
        (0..limits::FOLDS as u32)
            .filter(|index| self.marks.get(*index) >= fold_mark::LEAST)
            .filter_map(|index| match self.folds.get(&index, 0) {
                Ok(fold) => Some((index, fold)),
                Err(error) => {
                    tracing::warn!(%error, index, "a fold could not be read from the kernel");
                    None
                }
            })
    }
}

impl Maps {
    /// What has been folded so far. Counts only grow while a session lives.
    pub fn folds(&self) -> impl Iterator<Item = Fold> + '_ {
        self.folds.iter().map(|(_, fold)| fold)
    }

    pub fn remove_folds(&mut self, session: u32) {
        self.remove_folds_where(|key| key.session == session);
    }

    /// Of a policy that is no longer in force.
    pub fn remove_folds_of(&mut self, policy: u32) {
        self.remove_folds_where(|key| key.policy == policy);
    }

    pub fn remove_folds_of_other_epochs(&mut self, session: u32, epoch: u32) {
        self.remove_folds_where(|key| key.session == session && key.epoch != epoch);
    }

    fn remove_folds_where(&mut self, which: impl Fn(&FoldKey) -> bool) {
        for (index, fold) in self.folds.iter() {
            if which(&fold.key) {
                self.folds.marks.set(index, fold_mark::FREE);
            }
        }
    }
}
