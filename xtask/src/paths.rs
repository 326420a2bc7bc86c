//! Where things are: the repository, and the cache that outlives `cargo clean`.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// The repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the repository")
}

/// Cargo's target directory.
pub fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => repository().join(dir),
        None => repository().join("target"),
    }
}

/// A folder of the cache, made where it is missing: `$AGENTWATCH_CACHE`, else `agentwatch` in the user's cache directory.
pub fn cache(folder: &str) -> Result<PathBuf> {
    let set = |name: &str| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let root = set("AGENTWATCH_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("agentwatch")))
        .or_else(|| set("HOME").map(|dir| dir.join(".cache/agentwatch")))
        .context("none of AGENTWATCH_CACHE, XDG_CACHE_HOME and HOME is set: there is no place to cache downloads")?;
    let dir = root.join(folder);
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    Ok(dir)
}
