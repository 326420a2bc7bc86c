//! The daemon's configuration file.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use jiff::SignedDuration;
use serde::Deserialize;

use crate::{
    cli::metrics::Listen,
    event::redact::Custom,
    session::{managed, watch::WatchRule},
    sinks::{self, SinkConfig},
};

/// Where it is looked for when none is named.
pub const DEFAULT: &str = "/etc/agentwatch/daemon.toml";

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub collector: CollectorConfig,
    pub spool: SpoolConfig,
    /// Directory of the policies that hold for every session.
    pub managed_dir: ManagedDir,
    /// Who decides on actions that wait, and who is told of them.
    pub approvals: ApprovalsConfig,
    /// Cgroups that become sessions by themselves.
    pub watch: Vec<WatchRule>,
    /// Secrets that events must not show, beside those of known forms.
    pub redact: Vec<Custom>,
    /// Where events are sent.
    pub sink: Vec<SinkConfig>,
    pub metrics: MetricsConfig,
}

/// Figures for Prometheus.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// Where they are served; nowhere where it is absent.
    pub listen: Option<Listen>,
}

/// A directory, the usual one where none is named.
#[derive(Clone, Debug, Deserialize)]
pub struct ManagedDir(pub PathBuf);

impl Default for ManagedDir {
    fn default() -> Self {
        Self(managed::DEFAULT.into())
    }
}

/// Who may decide on actions that wait, beside root. Nobody inside a session can, whatever this says.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApprovalsConfig {
    /// The user that the session belongs to.
    pub owner: bool,
    /// Names of users, for all sessions.
    pub users: Vec<String>,
    /// Names of groups, for all sessions.
    pub groups: Vec<String>,
    /// A command that decides what it can, and leaves the rest to people.
    pub reviewer: Option<ReviewerConfig>,
    pub notify: NotifyConfig,
}

impl Default for ApprovalsConfig {
    fn default() -> Self {
        Self {
            owner: true,
            users: Vec::new(),
            groups: Vec::new(),
            reviewer: None,
            notify: NotifyConfig::default(),
        }
    }
}

/// A command that gets a request as JSON, and answers with a verdict as JSON.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReviewerConfig {
    /// The program's absolute path, and its arguments.
    pub command: Vec<String>,
    /// How long it may take.
    #[serde(default = "half_a_minute")]
    pub deadline: SignedDuration,
    /// How often it is asked at the most; what is beyond is left to people.
    #[serde(default = "sixty")]
    pub max_per_minute: u32,
    /// The longest time that it may approve for; zero: once only.
    #[serde(default)]
    pub longest: SignedDuration,
    /// User that it runs as; where absent an unused number.
    pub user: Option<String>,
}

/// What is told of requests and decisions.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NotifyConfig {
    /// Gets each as JSON on standard input: the program's absolute path, and its arguments.
    pub command: Vec<String>,
    /// Gets each by POST as JSON.
    pub webhook: Option<String>,
    /// How long each may take.
    pub deadline: SignedDuration,
    /// User that the command runs as; where absent an unused number.
    pub user: Option<String>,
}

impl Default for NotifyConfig {
    fn default() -> Self {
        Self {
            command: Vec::new(),
            webhook: None,
            deadline: SignedDuration::from_secs(10),
            user: None,
        }
    }
}

fn half_a_minute() -> SignedDuration {
    SignedDuration::from_secs(30)
}

fn sixty() -> u32 {
    60
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CollectorConfig {
    /// Whether the daemon starts its collector. One that is there already is used as it is.
    pub start: bool,
    /// User that the collector runs as; where absent, `agentwatch` if there is one, else an unused number.
    pub user: Option<String>,
    /// Days for which the history is kept; 0 is for ever.
    pub keep_days: u64,
    /// Bytes of history that are kept at the most; 0 is without limit.
    pub keep_bytes: u64,
}

impl Default for CollectorConfig {
    fn default() -> Self {
        Self {
            start: true,
            user: None,
            keep_days: 90,
            keep_bytes: 20 << 30,
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SpoolConfig {
    /// Bytes of events that wait on disk for the collector at the most; what is beyond is declared lost.
    pub max_bytes: u64,
}

impl Default for SpoolConfig {
    fn default() -> Self {
        Self {
            max_bytes: 256 << 20,
        }
    }
}

impl Config {
    /// Reads the file that was named, or the default one where there is one.
    pub fn load(named: Option<&Path>) -> Result<Self> {
        let path = named.unwrap_or(Path::new(DEFAULT));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        Self::parse(&text).with_context(|| format!("in {}", path.display()))
    }

    /// Reads the file's text, and what the files hold that its sinks name.
    pub fn parse(text: &str) -> Result<Self> {
        let mut config: Self = toml::from_str(text)?;
        for sink in &mut config.sink {
            sink.read_files()?;
        }
        sinks::config::check(&config.sink)?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_are_named() {
        let error = toml::from_str::<Config>("[spol]\nmax_bytes = 1\n")
            .unwrap_err()
            .to_string();
        assert!(error.contains("spol"), "{error}");
    }

    #[test]
    fn metrics_are_for_this_host() {
        let config = toml::from_str::<Config>("[metrics]\nlisten = '127.0.0.1:9464'\n").unwrap();
        assert!(config.metrics.listen.is_some());
        let error = toml::from_str::<Config>("[metrics]\nlisten = '0.0.0.0:9464'\n")
            .unwrap_err()
            .to_string();
        assert!(error.contains("hint: 127.0.0.1:9464"), "{error}");
    }

    #[test]
    fn the_reviewer_is_read() {
        let text = "[approvals]\ngroups = ['sre']\n[approvals.reviewer]\ncommand = ['/usr/bin/review', '-v']\n\
                    deadline = '20s'\nlongest = '10m'\nmax_per_minute = 5\n\
                    [approvals.notify]\nwebhook = 'http://127.0.0.1:8080/'\n";
        let config = toml::from_str::<Config>(text).unwrap().approvals;
        let reviewer = config.reviewer.unwrap();
        assert!(config.owner);
        assert_eq!(reviewer.deadline, SignedDuration::from_secs(20));
        assert_eq!(reviewer.longest, SignedDuration::from_mins(10));
        assert_eq!(config.notify.deadline, SignedDuration::from_secs(10));
        for wrong in [
            "[approvals.reviewer]\ndeadline = '20s'\n",
            "[approvals.reviewer]\ncommand = ['/x']\ndeadline = 'soon'\n",
            "[approvals.reviewer]\ncommand = ['/x']\nmax_per_minute = -1\n",
            "[approvals.notify]\nurl = 'http://127.0.0.1/'\n",
        ] {
            assert!(toml::from_str::<Config>(wrong).is_err(), "{wrong}");
        }
    }
}
