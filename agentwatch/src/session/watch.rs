//! Watch rules: existing cgroups that become sessions by their path.

use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};
use serde::Deserialize;

use super::cgroup;

/// A rule as the daemon's configuration has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchRule {
    /// Glob over cgroup paths below the mount, such as `/system.slice/agent-*.service`; `*` does not cross a `/`.
    pub cgroup: String,
    /// The policy's file. Relative paths in it start at `/`.
    pub policy: PathBuf,
    /// Name of the sessions; the cgroup's own name where absent.
    pub name: Option<String>,
    /// Whether sessions start although this kernel cannot enforce all of the policy.
    #[serde(default)]
    pub accept_degraded: bool,
}

/// A rule with its pattern compiled.
pub struct Watch {
    pub rule: WatchRule,
    matcher: GlobMatcher,
}

impl Watch {
    pub fn new(rule: WatchRule) -> Result<Self, globset::Error> {
        let matcher = GlobBuilder::new(&rule.cgroup)
            .literal_separator(true)
            .build()?
            .compile_matcher();
        Ok(Self { rule, matcher })
    }

    pub fn matches(&self, shown: &str) -> bool {
        self.matcher.is_match(shown)
    }
}

/// The cgroups that some rule names now, with the first rule that does. What is below such a cgroup belongs to it.
pub fn scan<'a>(root: &Path, watches: &'a [Watch]) -> Vec<(PathBuf, &'a Watch)> {
    let mut found: Vec<(PathBuf, &Watch)> = Vec::new();
    for path in cgroup::descendants(root).into_iter().skip(1) {
        if found.iter().any(|(above, _)| path.starts_with(above)) {
            continue;
        }
        let shown = cgroup::shown(root, &path);
        if let Some(watch) = watches.iter().find(|watch| watch.matches(&shown)) {
            found.push((path, watch));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stays_in_its_directory() {
        let rule = WatchRule {
            cgroup: "/system.slice/agent-*.service".to_owned(),
            policy: PathBuf::from("/p.toml"),
            name: None,
            accept_degraded: false,
        };
        let watch = Watch::new(rule).unwrap();
        assert!(watch.matches("/system.slice/agent-7.service"));
        assert!(!watch.matches("/system.slice/agent-7.service/child"));
        assert!(!watch.matches("/user.slice/agent-7.service"));
    }
}
