//! What outlives the daemon: maps and links, pinned below a directory of bpffs that belongs to one runtime directory.
//!
//! The directory is the only word on what is in the kernel. It is locked by the daemon that uses it, says whose it is
//! (`runtime`), what programs are attached (`current`, written when all of them are), and the last number that was given
//! to a session or a policy (`last`). bpffs has no files of text, but it has symbolic links, and their targets are
//! the text. Nothing here may detach a program while a session needs it: whoever calls says that none does.

use std::{
    fmt,
    fs::{self, File},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, symlink},
    path::{Path, PathBuf},
};

use agentwatch_common::policy::Session;
use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    maps::{Array, Map, MapData},
    programs::links::FdLink,
};
use nix::{
    fcntl::{Flock, FlockArg},
    mount::MsFlags,
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use sha2::{Digest as _, Sha256};

use super::load::Backend;

const BPFFS: &str = "/sys/fs/bpf";
/// Directory of all daemons, below bpffs.
const OURS: &str = "agentwatch";
const RUNTIME: &str = "runtime";
const CURRENT: &str = "current";
const LAST: &str = "last";
const MAPS: &str = "maps";
const TRIAL: &str = "trial";
/// Directories of links begin with this; a number follows. bpffs wants no dots in names.
const LINKS: &str = "links_";

/// One daemon's pins. Locked for as long as this lives.
pub struct Pins {
    dir: PathBuf,
    _lock: Flock<File>,
}

/// The programs that are attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Directory of their links.
    links: String,
    /// Digest of the object that they come from.
    pub object: String,
    pub backend: Backend,
    /// How many links there are.
    count: usize,
}

impl Pins {
    /// Opens the pins of a runtime directory, or makes a directory for them. Mounts bpffs where it is missing.
    pub fn open(runtime: &Path) -> Result<Self> {
        let root = Path::new(BPFFS);
        mount(root)?;
        let ours = root.join(OURS);
        make(&ours)?;
        let name = hex::encode(&Sha256::digest(runtime.as_os_str().as_encoded_bytes())[..8]);
        sweep(&ours, &name);
        let dir = ours.join(name);
        make(&dir)?;
        let lock = lock(&dir)?
            .with_context(|| format!("another process uses the pins in {}", dir.display()))?;
        let pins = Self { dir, _lock: lock };
        if pins.say(RUNTIME).is_none() {
            symlink(runtime, pins.dir.join(RUNTIME))
                .with_context(|| format!("mark {} as ours", pins.dir.display()))?;
        }
        Ok(pins)
    }

    /// Whether a runtime directory has anything in the kernel.
    pub fn exist(runtime: &Path) -> bool {
        let name = hex::encode(&Sha256::digest(runtime.as_os_str().as_encoded_bytes())[..8]);
        Path::new(BPFFS).join(OURS).join(name).exists()
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where a map is pinned.
    pub fn map(&self, name: &str) -> PathBuf {
        self.dir.join(MAPS).join(name)
    }

    /// The programs of the daemon before, where there are any. What one left that died while it loaded is removed: no
    /// session has begun by then.
    pub fn attached(&self) -> Result<Option<Attached>> {
        let attached = self.current();
        for entry in list(&self.dir)? {
            let name = name_of(&entry);
            if name.starts_with(LINKS) && attached.as_ref().is_none_or(|known| known.links != name)
            {
                remove_dir(&entry)?;
            }
        }
        let Some(attached) = attached else {
            remove_dir(&self.dir.join(MAPS))?;
            make(&self.dir.join(MAPS))?;
            return Ok(None);
        };
        Ok(Some(attached))
    }

    /// Whether all links of these programs are still there.
    pub fn is_complete(&self, attached: &Attached) -> bool {
        list(&self.dir.join(&attached.links)).is_ok_and(|links| links.len() == attached.count)
    }

    /// Whether a link is among those of these programs.
    pub fn has(&self, attached: &Attached, name: &str) -> bool {
        self.dir.join(&attached.links).join(name).exists()
    }

    /// The links in force, to add another.
    pub fn resume(&self) -> Result<Links> {
        let attached = self.current().context("no programs are attached")?;
        Ok(Links {
            dir: self.dir.join(&attached.links),
            name: attached.links,
            count: attached.count,
        })
    }

    /// Those that were added are in force too. Until then the links are not complete, and a daemon that begins attaches all anew.
    pub fn extend(&self, links: &Links) -> Result<()> {
        let mut attached = self.current().context("no programs are attached")?;
        attached.count = links.count;
        self.note(CURRENT, &attached.to_string())
    }

    fn current(&self) -> Option<Attached> {
        Attached::parse(&self.say(CURRENT)?)
    }

    /// A place for the links of programs that are about to be attached.
    pub fn begin(&self) -> Result<Links> {
        let taken: Vec<String> = list(&self.dir)?
            .iter()
            .map(|entry| name_of(entry))
            .collect();
        let name = (0..)
            .map(|number: u32| format!("{LINKS}{number}"))
            .find(|name| !taken.contains(name))
            .context("there are numbers")?;
        let dir = self.dir.join(&name);
        make(&dir)?;
        Ok(Links {
            dir,
            name,
            count: 0,
        })
    }

    /// The links are the ones in force from now on; those of before are let go of.
    pub fn complete(&self, links: &Links, object: &str, backend: Backend) -> Result<()> {
        let attached = Attached {
            links: links.name.clone(),
            object: object.to_owned(),
            backend,
            count: links.count,
        };
        self.note(CURRENT, &attached.to_string())?;
        for entry in list(&self.dir)? {
            let name = name_of(&entry);
            if name.starts_with(LINKS) && name != links.name {
                remove_dir(&entry)?;
            }
        }
        Ok(())
    }

    /// The last number that was given out, where that was written down.
    pub fn last_number(&self) -> Option<u32> {
        self.say(LAST)?.parse().ok()
    }

    pub fn set_last_number(&self, number: u32) -> Result<()> {
        self.note(LAST, &number.to_string())
    }

    /// Lets go of a map, so that a new one can take its place.
    pub fn forget_map(&self, name: &str) -> Result<()> {
        let path = self.map(name);
        fs::remove_file(&path).with_context(|| format!("unpin {}", path.display()))
    }

    /// A place for maps that are only looked at.
    pub fn trial(&self) -> Result<Trial> {
        let dir = self.dir.join(TRIAL);
        remove_dir(&dir)?;
        make(&dir)?;
        Ok(Trial(dir))
    }

    /// Takes everything out of the kernel.
    pub fn release(&self) -> Result<()> {
        release(&self.dir)
    }

    fn say(&self, name: &str) -> Option<String> {
        let target = fs::read_link(self.dir.join(name)).ok()?;
        target.into_os_string().into_string().ok()
    }

    fn note(&self, name: &str, text: &str) -> Result<()> {
        let path = self.dir.join(name);
        let new = self.dir.join(format!("new_{name}"));
        let _ = fs::remove_file(&new);
        symlink(text, &new)
            .and_then(|()| fs::rename(&new, &path))
            .with_context(|| format!("write {}", path.display()))
    }
}

/// Maps that are gone with this value.
pub struct Trial(PathBuf);

impl Trial {
    pub fn map(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        let _ = remove_dir(&self.0);
    }
}

/// Where links are pinned as they are made.
pub struct Links {
    dir: PathBuf,
    name: String,
    count: usize,
}

impl Links {
    pub fn keep<L>(&mut self, name: &str, link: L) -> Result<()>
    where
        L: TryInto<FdLink>,
    {
        let path = self.dir.join(name);
        let link: FdLink = link
            .try_into()
            .ok()
            .with_context(|| format!("the kernel gave no link for {name}"))?;
        link.pin(&path)
            .with_context(|| format!("pin {}", path.display()))?;
        self.count += 1;
        Ok(())
    }
}

impl Attached {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let attached = Self {
            links: parts.next()?.to_owned(),
            object: parts.next()?.to_owned(),
            backend: match parts.next()? {
                "bpf-lsm" => Backend::BpfLsm,
                "landlock" => Backend::Landlock,
                _ => return None,
            },
            count: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(attached)
    }
}

impl fmt::Display for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let backend = match self.backend {
            Backend::BpfLsm => "bpf-lsm",
            Backend::Landlock => "landlock",
        };
        write!(f, "{}:{}:{backend}:{}", self.links, self.object, self.count)
    }
}

fn mount(root: &Path) -> Result<()> {
    let is_bpffs =
        |path: &Path| statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC);
    if is_bpffs(root) {
        return Ok(());
    }
    nix::mount::mount(
        Some("bpf"),
        root,
        Some("bpf"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RELATIME,
        Some("mode=0700"),
    )
    .with_context(|| format!("mount bpffs; hint: mount -t bpf bpf {}", root.display()))
}

/// Removes what daemons left whose runtime directory is gone, unless something still lives in a session of theirs.
fn sweep(ours: &Path, own: &str) {
    for dir in list(ours).unwrap_or_default() {
        if name_of(&dir) == own {
            continue;
        }
        let gone = fs::read_link(dir.join(RUNTIME))
            .is_ok_and(|runtime| !runtime.exists() && runtime.is_absolute());
        // A daemon that runs holds the lock, whatever became of its directory.
        let Ok(Some(_lock)) = lock(&dir) else {
            continue;
        };
        if !gone {
            continue;
        }
        match sessions(&dir) {
            Ok(sessions) if sessions.iter().all(|session| session.tasks == 0) => {
                match release(&dir) {
                    Ok(()) => {
                        tracing::info!(pins = %dir.display(), "what a daemon left behind was taken out of the kernel")
                    }
                    Err(error) => {
                        tracing::warn!(pins = %dir.display(), error = format!("{error:#}"), "what a daemon left behind stays")
                    }
                }
            }
            Ok(_) => tracing::warn!(
                pins = %dir.display(),
                "sessions of a daemon whose runtime directory is gone are still enforced; hint: rm -r {} ends that", dir.display()
            ),
            Err(error) => {
                tracing::warn!(pins = %dir.display(), error = format!("{error:#}"), "what a daemon left behind cannot be read, and stays")
            }
        }
    }
}

/// The sessions that pins hold.
fn sessions(dir: &Path) -> Result<Vec<Session>> {
    let path = dir.join(MAPS).join("SESSIONS");
    if !path.exists() {
        return Ok(Vec::new());
    }
    let data = MapData::from_pin(&path).with_context(|| format!("open {}", path.display()))?;
    let map: Array<MapData, Session> = Map::Array(data)
        .try_into()
        .context("the map is another version's")?;
    Ok(map
        .iter()
        .flatten()
        .filter(|session| session.number != 0)
        .collect())
}

fn release(dir: &Path) -> Result<()> {
    // Without this what remains is taken for the rest of a start that did not finish.
    match fs::remove_file(dir.join(CURRENT)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", dir.join(CURRENT).display()));
        }
        _ => {}
    }
    for entry in list(dir)? {
        if name_of(&entry).starts_with(LINKS) {
            remove_dir(&entry)?;
        }
    }
    remove_dir(dir)
}

/// A directory's lock, `None` where another process has it.
fn lock(dir: &Path) -> Result<Option<Flock<File>>> {
    let file = File::open(dir).with_context(|| format!("open {}", dir.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => bail!("lock {}: {error}", dir.display()),
    }
}

/// Makes a directory that is root's alone. bpffs may be open to everyone: one that somebody else made is not used.
fn make(dir: &Path) -> Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("make {}", dir.display()));
        }
        _ => {}
    }
    let meta = fs::symlink_metadata(dir).with_context(|| format!("look at {}", dir.display()))?;
    ensure!(
        meta.is_dir() && meta.uid() == 0 && meta.mode() & 0o077 == 0,
        "{} is not a directory of root's alone; hint: somebody else made it, remove it",
        dir.display()
    );
    Ok(())
}

fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    Ok(fs::read_dir(dir)
        .with_context(|| format!("list {}", dir.display()))?
        .flatten()
        .map(|entry| entry.path())
        .collect())
}

fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_attached_can_be_written_down() {
        let attached = Attached {
            links: "links_1".to_owned(),
            object: "0123".to_owned(),
            backend: Backend::Landlock,
            count: 34,
        };
        assert_eq!(Attached::parse(&attached.to_string()), Some(attached));
        for broken in [
            "",
            "links_0",
            "links_0:00:bpf:1",
            "links_0:00:bpf-lsm:x",
            "links_0:00:bpf-lsm:1:2",
        ] {
            assert_eq!(Attached::parse(broken), None, "{broken}");
        }
    }
}
