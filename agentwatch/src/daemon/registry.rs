//! What is known of each live session, on disk: a file each below `STATE_DIR/sessions`, so that the next daemon can take
//! the session over. The kernel holds the sessions; a file here only says what they are.
//!
//! A file is replaced whole and begins with its digest: one that was cut short or changed is noticed, put aside and
//! reported, never half believed.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result, bail, ensure};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::launch::{Holding, Origin};
use crate::{
    approval::Papers,
    event::{Event, model::SessionRef},
    kernel::bind::Concerned,
    policy::model::Compiled,
};

const VERSION: u32 = 1;
const SUFFIX: &str = "session";
const APPROVALS: &str = "approvals";

/// A session as it is written down.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    pub version: u32,
    pub boot_id: String,
    pub number: u32,
    pub name: String,
    pub id: String,
    pub uid: u32,
    pub origin: Origin,
    pub command: Vec<String>,
    pub backends: Vec<String>,
    pub started: Timestamp,
    pub cgroup: PathBuf,
    pub cgroup_id: u64,
    pub exit_code: Option<i32>,
    /// Why it ended, where somebody else than a daemon ended it.
    pub ended: Option<String>,
    /// Policies that may be in force, the newest last: the kernel says which one is.
    pub policies: Vec<Policy>,
    /// The events of its start and of what has changed since, the newest of them: they are told again, because the daemon
    /// that first told them may have been killed.
    pub told: Vec<Event>,
}

/// A policy as it was put in force.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Policy {
    /// Key of its rules in the kernel.
    pub number: u32,
    pub reference: SessionRef,
    pub policy: Arc<Compiled>,
    pub holding: Holding,
    /// Places that named nothing, by their index, and what of the policy is not in force.
    pub missing: Vec<usize>,
    pub gaps: Vec<String>,
    /// The host's mounts that it was worked out with, and where its paths led by links.
    #[serde(default)]
    pub mounts: Option<Vec<Concerned>>,
    #[serde(default)]
    pub links: Vec<String>,
}

/// A file that cannot be believed.
#[derive(Debug)]
pub struct Damaged {
    /// Where it is now.
    pub path: PathBuf,
    pub why: String,
}

/// The files.
pub struct Registry {
    dir: PathBuf,
}

impl Registry {
    pub fn open(state: &Path) -> Result<Self> {
        let dir = state.join("sessions");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .with_context(|| format!("make {}", dir.display()))?;
        Ok(Self { dir })
    }

    /// Everything that is written down. What cannot be read is put aside.
    pub fn load(&self) -> Result<(Vec<Record>, Vec<Damaged>)> {
        let (mut records, mut damaged) = (Vec::new(), Vec::new());
        let entries =
            fs::read_dir(&self.dir).with_context(|| format!("list {}", self.dir.display()))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            // What is left of a write that did not end is nothing: the file before it still stands.
            if path.extension().is_none_or(|suffix| suffix != SUFFIX) {
                if path.extension().is_some_and(|suffix| suffix == "new") {
                    let _ = fs::remove_file(&path);
                }
                continue;
            }
            match read(&path) {
                Ok(record) => records.push(record),
                Err(error) => {
                    let aside = path.with_extension("damaged");
                    fs::rename(&path, &aside)
                        .with_context(|| format!("put {} aside", path.display()))?;
                    damaged.push(Damaged {
                        path: aside,
                        why: format!("{error:#}"),
                    });
                }
            }
        }
        Ok((records, damaged))
    }

    /// Writes a session down; on disk when this returns.
    pub fn write(&self, record: &Record) -> Result<()> {
        let path = self.path(&record.id);
        let new = path.with_extension("new");
        let json = serde_json::to_vec(record).context("encode the session")?;
        self.replace(&path, &new, &json)
    }

    fn replace(&self, path: &Path, new: &Path, json: &[u8]) -> Result<()> {
        let write = || -> std::io::Result<()> {
            let mut file = File::options()
                .create(true)
                .write(true)
                .truncate(true)
                .mode(0o600)
                .open(new)?;
            file.write_all(digest(json).as_bytes())?;
            file.write_all(b"\n")?;
            file.write_all(json)?;
            file.sync_all()?;
            fs::rename(new, path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().with_context(|| format!("write {}", path.display()))
    }

    pub fn remove(&self, id: &str) {
        let path = self.path(id);
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(file = %path.display(), %error, "the file of an ended session stays");
        }
    }

    /// Writes down what was asked and decided in a session.
    pub fn write_approvals(&self, id: &str, papers: &Papers) -> Result<()> {
        if papers.is_empty() {
            self.remove_approvals(id);
            return Ok(());
        }
        let path = self.dir.join(id).with_extension(APPROVALS);
        let json = serde_json::to_vec(papers).context("encode what waits")?;
        self.replace(&path, &path.with_extension("approvals-new"), &json)
    }

    /// What was asked and decided in a session; `None` where there was nothing.
    pub fn read_approvals(&self, id: &str) -> Result<Option<Papers>> {
        let path = self.dir.join(id).with_extension(APPROVALS);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        let json = checked(&bytes).with_context(|| format!("in {}", path.display()))?;
        serde_json::from_slice(json)
            .with_context(|| format!("{} is another version's", path.display()))
            .map(Some)
    }

    pub fn remove_approvals(&self, id: &str) {
        let path = self.dir.join(id).with_extension(APPROVALS);
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(
                session = id,
                file = %path.display(),
                %error,
                "what no longer waits or is granted in a session stays on disk: the next daemon believes it if the session lives then; \
                 hint: remove the file"
            );
        }
    }

    fn path(&self, id: &str) -> PathBuf {
        self.dir.join(id).with_extension(SUFFIX)
    }
}

fn read(path: &Path) -> Result<Record> {
    let bytes = fs::read(path).context("read it")?;
    let json = checked(&bytes)?;
    let record: Record = serde_json::from_slice(json).context("it is another version's")?;
    ensure!(
        record.version == VERSION,
        "it has version {}, and {VERSION} is known here",
        record.version
    );
    ensure!(!record.policies.is_empty(), "it names no policy");
    Ok(record)
}

/// What stands behind the digest that a file begins with.
fn checked(bytes: &[u8]) -> Result<&[u8]> {
    let Some((sum, json)) = bytes.split_at_checked(65) else {
        bail!("it has {} bytes", bytes.len());
    };
    ensure!(
        sum == format!("{}\n", digest(json)).as_bytes(),
        "its content does not have the digest that it begins with"
    );
    Ok(json)
}

fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

impl Record {
    pub const VERSION: u32 = VERSION;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::{Kind, Mode, model::Coverage, samples::sample},
        policy,
    };

    fn record(id: &str) -> Record {
        let context = policy::model::Context {
            cwd: "/w".into(),
            home: "/root".into(),
            ..Default::default()
        };
        let text = b"[files]\nread = ['/usr', '/nowhere']\n[network]\nallow = ['192.0.2.0/24']\n";
        let policy = policy::examine("p.toml", text, &context)
            .compiled
            .expect("a policy");
        let reference = SessionRef {
            id: id.to_owned(),
            name: "name".to_owned(),
            policy: policy.digest.clone(),
            mode: Mode::Enforce,
        };
        Record {
            version: VERSION,
            boot_id: "boot".to_owned(),
            number: 7,
            name: "name".to_owned(),
            id: id.to_owned(),
            uid: 1,
            origin: Origin::Run,
            command: vec!["true".to_owned()],
            backends: vec!["cgroup".to_owned()],
            started: Timestamp::now(),
            cgroup: "/sys/fs/cgroup/x".into(),
            cgroup_id: 9,
            exit_code: None,
            ended: None,
            policies: vec![Policy {
                number: 7,
                reference,
                policy: Arc::new(policy),
                holding: Holding {
                    coverage: Coverage::Enforcing,
                    missing: Vec::new(),
                    landlock: false,
                },
                missing: vec![1],
                gaps: Vec::new(),
                mounts: Some(Vec::new()),
                links: vec!["/mnt/work".to_owned()],
            }],
            told: vec![sample(Kind::Session)],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).unwrap();
        registry.write(&record("a")).unwrap();
        registry.write(&record("b")).unwrap();
        registry.remove("a");
        let (records, damaged) = registry.load().unwrap();
        assert!(damaged.is_empty(), "{damaged:?}");
        let [read] = records.as_slice() else {
            panic!("{records:?}");
        };
        let expected = Record {
            started: read.started,
            told: read.told.clone(),
            ..record("b")
        };
        assert_eq!(
            serde_json::to_value(read).unwrap(),
            serde_json::to_value(expected).unwrap()
        );
    }

    #[test]
    fn damage_is_noticed_and_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).unwrap();
        registry.write(&record("whole")).unwrap();
        let whole = fs::read(registry.path("whole")).unwrap();
        for cut in [0, 10, 65, 66, whole.len() / 2, whole.len() - 1] {
            fs::write(registry.path("broken"), &whole[..cut]).unwrap();
            let (records, damaged) = registry.load().unwrap();
            assert_eq!((records.len(), damaged.len()), (1, 1), "cut at {cut}");
            assert!(damaged[0].path.exists());
            assert!(!registry.path("broken").exists());
        }
        for at in [0, 64, 70, whole.len() - 2] {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            fs::write(registry.path("broken"), &changed).unwrap();
            assert_eq!(registry.load().unwrap().1.len(), 1, "changed at {at}");
        }
    }

    fn approvals() -> Papers {
        let about = crate::approval::About {
            kind: 3,
            dev: 0,
            inode: 0,
            detail: 443,
            name: vec![1, 2, 3],
        };
        let pending = crate::approval::Pending {
            id: "0a1b2c3d".to_owned(),
            session: 7,
            about: about.clone(),
            rights: 1,
            event: sample(Kind::Connect),
            rule_text: "198.51.100.4:443".to_owned(),
            ancestry: Vec::new(),
            before: vec!["exec git".to_owned()],
            since: 5,
            deadline: 9,
            on_timeout: policy::model::OnTimeout::Deny,
            tasks: Vec::new(),
            tries: 2,
            finding: None,
            review: Some("odd".to_owned()),
            shown: true,
            urged: false,
            excused: 0,
            excused_until: 0,
            restarted: 0,
        };
        let given = crate::approval::Given {
            id: "4e5f6071".to_owned(),
            session: 7,
            about,
            rights: 1,
            scope: crate::event::model::Scope::Session,
            until: u64::MAX,
            summary: "connect".to_owned(),
            by: crate::event::model::Decider {
                kind: crate::event::model::DeciderKind::User,
                uid: Some(1000),
                name: Some("user".to_owned()),
            },
            reason: None,
            event: sample(Kind::Connect),
        };
        Papers {
            rejected: vec![(pending.about.clone(), 1)],
            asked: vec![5],
            decided: vec!["rejected: connect".to_owned()],
            pending: vec![pending],
            given: vec![given],
        }
    }

    #[test]
    fn what_waits_and_what_was_granted_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).unwrap();
        assert!(registry.read_approvals("a").unwrap().is_none());
        let papers = approvals();
        registry.write(&record("a")).unwrap();
        registry.write_approvals("a", &papers).unwrap();
        let read = registry.read_approvals("a").unwrap().expect("it is there");
        assert_eq!(
            serde_json::to_value(&read).unwrap(),
            serde_json::to_value(&papers).unwrap()
        );
        // It is no session's record, and none that is damaged.
        let (records, damaged) = registry.load().unwrap();
        assert_eq!((records.len(), damaged.len()), (1, 0), "{damaged:?}");
        registry.write_approvals("a", &Papers::default()).unwrap();
        assert!(registry.read_approvals("a").unwrap().is_none());
        registry.remove_approvals("a");
    }

    #[test]
    fn damage_to_what_waits_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).unwrap();
        registry.write_approvals("a", &approvals()).unwrap();
        let path = registry.dir.join("a").with_extension(APPROVALS);
        let whole = fs::read(&path).unwrap();
        for cut in [0, 10, 64, 65, 66, whole.len() / 2, whole.len() - 1] {
            fs::write(&path, &whole[..cut]).unwrap();
            assert!(registry.read_approvals("a").is_err(), "cut at {cut}");
        }
        for at in [0, 64, 70, whole.len() / 2, whole.len() - 2] {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            fs::write(&path, &changed).unwrap();
            assert!(registry.read_approvals("a").is_err(), "changed at {at}");
        }
        // Whole, and of another shape.
        registry
            .replace(&path, &path.with_extension("new"), b"[1,2]")
            .unwrap();
        let error = registry.read_approvals("a").unwrap_err();
        assert!(
            format!("{error:#}").contains("another version"),
            "{error:#}"
        );
    }
}
