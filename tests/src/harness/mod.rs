//! Runs scenarios: a policy, actions, and what must come of them, against a daemon that was started for the purpose.
//!
//! Everything goes through the `agentwatch` command as documented. The harness reads no state of the daemon's, and a
//! scenario never passes because something could not be checked.

pub mod agentwatch;
pub mod capability;
pub mod compare;
pub mod conformance;
pub mod container;
pub mod explained;
pub mod fixture;
pub mod probe;
pub mod run;
pub mod scenario;
