//! The maps that outlive a daemon, and whether the programs of this version can work on those of another.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use aya::maps::MapInfo;

use super::{super::pin::Pins, load_object};

/// Maps that are pinned: all of them, so that programs of one daemon and the maps of the next are never strangers.
pub(super) const PINNED: [&str; 29] = [
    "VERDICTS",
    "BULK",
    "SESSIONS",
    "BINDINGS",
    "POLICIES",
    "CENSUS",
    "CGROUPS",
    "PROCESSES",
    "TAGS",
    "PLACES",
    "CHILDREN",
    "NAMES",
    "PREFIXES",
    "COMMANDS",
    "HOLDS",
    "HELD",
    "GRANTS",
    "DIRECTORIES",
    "SOCKETS",
    "OBJECTS",
    "OWNERS",
    "HOST",
    "IDENTIFIED",
    "OPENS",
    "URING_OPENS",
    "FOLDS",
    "FOLD_MARKS",
    "SCRATCH",
    "STATS",
];
/// Maps that hold nothing of a session: programs of another version get new ones where theirs differ.
const RENEWED: [&str; 6] = [
    "SCRATCH",
    "STATS",
    "DIRECTORIES",
    "IDENTIFIED",
    "OPENS",
    "URING_OPENS",
];

/// Makes sure that our programs can work on the maps of other ones.
pub(super) fn check_layout(pins: &Pins, object: &[u8]) -> Result<()> {
    let trial = pins.trial()?;
    load_object(object, Some(|name: &str| trial.map(name)))?;
    let shape = |path: PathBuf| {
        let info = MapInfo::from_pin(&path)
            .with_context(|| format!("look at the map {}", path.display()))?;
        anyhow::Ok((
            info.map_type().ok(),
            info.key_size(),
            info.value_size(),
            info.max_entries(),
            info.map_flags(),
        ))
    };
    for name in PINNED {
        // A map that only one of the two has is no obstacle.
        let (theirs, ours) = (pins.map(name), trial.map(name));
        if !theirs.exists() || !ours.exists() || shape(theirs)? == shape(ours)? {
            continue;
        }
        ensure!(
            RENEWED.contains(&name),
            "the programs in the kernel are another version's and keep {name} in another form: they hold their sessions on, \
             and this version cannot take them over; hint: `agentwatch release` ends the sessions, then start the daemon again"
        );
        pins.forget_map(name)?;
    }
    Ok(())
}
