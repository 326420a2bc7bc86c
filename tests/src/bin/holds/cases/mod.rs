//! The cases, by what they are about.

pub(crate) mod actions;
pub(crate) mod deciders;
pub(crate) mod processes;
pub(crate) mod reviewer;
pub(crate) mod signals;
pub(crate) mod volume;
