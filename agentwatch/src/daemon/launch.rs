//! Whether a policy can be held here: which backends enforce it, and what is missing.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    event::{Mode, model::Coverage},
    kernel::load::Backend,
    policy::model::Compiled,
    session::landlock,
};

/// How a session's processes came to be in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    Run,
    Attach,
    Watch,
}

impl Origin {
    pub fn name(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Attach => "attach",
            Self::Watch => "watch",
        }
    }
}

/// How well a policy is held.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Holding {
    pub coverage: Coverage,
    pub missing: Vec<String>,
    /// Whether the command is to confine itself by Landlock before it starts.
    pub landlock: bool,
}

impl Holding {
    /// Adds what cannot be held.
    pub fn lacks(&mut self, gaps: Vec<String>) {
        if !gaps.is_empty() {
            self.coverage = Coverage::Degraded;
            self.missing.extend(gaps);
        }
    }
}

pub fn holding(
    backend: Backend,
    landlock_abi: i64,
    origin: Origin,
    mode: Mode,
    policy: &Arc<Compiled>,
) -> Holding {
    if mode == Mode::Monitor {
        return Holding {
            coverage: Coverage::Off,
            missing: Vec::new(),
            landlock: false,
        };
    }
    let (missing, landlock) = match (backend, origin) {
        (Backend::BpfLsm, _) => (Vec::new(), false),
        (Backend::Landlock, _) if landlock_abi == 0 => {
            (vec!["file rules: the kernel has neither BPF LSM nor Landlock".to_owned()], false)
        }
        (Backend::Landlock, Origin::Run) => (landlock::plan(policy).missing, true),
        (Backend::Landlock, _) => (
            vec!["file rules: without BPF LSM they hold only for what `agentwatch run` starts; files are traced".to_owned()],
            false,
        ),
    };
    let coverage = if missing.is_empty() {
        Coverage::Enforcing
    } else {
        Coverage::Degraded
    };
    Holding {
        coverage,
        missing,
        landlock,
    }
}
