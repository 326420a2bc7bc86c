//! The daemon's configuration file.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::{
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
    /// Who decides on actions that wait.
    pub approvals: Deciders,
    /// Cgroups that become sessions by themselves.
    pub watch: Vec<WatchRule>,
    /// Secrets that events must not show, beside those of known forms.
    pub redact: Vec<Custom>,
    /// Where events are sent.
    pub sink: Vec<SinkConfig>,
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
pub struct Deciders {
    /// The user that the session belongs to.
    pub owner: bool,
    /// Names of users, for all sessions.
    pub users: Vec<String>,
    /// Names of groups, for all sessions.
    pub groups: Vec<String>,
}

impl Default for Deciders {
    fn default() -> Self {
        Self {
            owner: true,
            users: Vec::new(),
            groups: Vec::new(),
        }
    }
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
}
