//! Which file a path names, and the links on the way to it that a session could have made.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;

use crate::{
    kernel::{
        container::Private,
        files::{Identifier, Identity},
    },
    policy::{
        explain,
        model::{Access, Compiled, Effect},
    },
};

/// What a path names.
#[derive(Clone)]
pub(in crate::kernel) struct Seen {
    pub(in crate::kernel) identity: Identity,
    /// Where a link that a session could have made is on the way.
    pub(in crate::kernel) led: Option<Led>,
    pub(super) is_block_device: bool,
}

/// What paths name, each looked up once.
pub(in crate::kernel) struct Looked<'a> {
    policy: &'a Compiled,
    pub(super) identifier: &'a Identifier,
    /// Where paths lead in a container, if that is what is asked.
    private: Option<&'a Private>,
    known: HashMap<PathBuf, Option<Seen>>,
    /// Where paths lead that have links on their way, whoever made them.
    links: HashSet<PathBuf>,
}

impl<'a> Looked<'a> {
    /// How often a path is looked at on whose way a link changes meanwhile.
    const TRIES: u32 = 3;

    pub(in crate::kernel) fn new(policy: &'a Compiled, identifier: &'a Identifier) -> Self {
        Self {
            policy,
            identifier,
            private: None,
            known: HashMap::new(),
            links: HashSet::new(),
        }
    }

    /// The same in a container, whose mounts are known.
    pub(super) fn within(
        policy: &'a Compiled,
        identifier: &'a Identifier,
        private: &'a Private,
    ) -> Self {
        let roots = private.mounts.iter();
        Self {
            private: Some(private),
            known: roots
                .map(|own| (own.mount.point.clone(), Some(Seen::unlinked(own.identity))))
                .collect(),
            ..Self::new(policy, identifier)
        }
    }

    /// Where paths lead by links, for people where that is not UTF-8.
    pub(super) fn links(&self) -> Vec<String> {
        let links = self.links.iter();
        links
            .map(|link| link.to_string_lossy().into_owned())
            .collect()
    }

    pub(super) fn at(&mut self, path: &Path) -> Result<Option<Identity>> {
        Ok(self.seen(path)?.map(|seen| seen.identity))
    }

    pub(in crate::kernel) fn seen(&mut self, path: &Path) -> Result<Option<Seen>> {
        if let Some(known) = self.known.get(path) {
            return Ok(known.clone());
        }
        let seen = match self.private {
            Some(private) if private.holds(path) => {
                let identity = private.identify(path, self.identifier)?;
                identity.map(Seen::unlinked)
            }
            _ => self.look(path)?,
        };
        self.known.insert(path.to_owned(), seen.clone());
        Ok(seen)
    }

    /// What is opened and the links on the way are looked at one after the other: they belong together where both lead to the same file.
    fn look(&mut self, path: &Path) -> Result<Option<Seen>> {
        for _ in 0..Self::TRIES {
            let Some(found) = self.identifier.identify(path)? else {
                return Ok(None);
            };
            let (to, link) = follow(self.policy, path);
            let there = self.identifier.identify_unlinked(&to)?;
            if there.is_some_and(|there| there.identity == found.identity) {
                if to != path {
                    self.links.insert(to.clone());
                }
                return Ok(Some(Seen {
                    identity: found.identity,
                    led: link.map(|link| Led { link, to }),
                    is_block_device: found.is_block_device,
                }));
            }
        }
        anyhow::bail!("a link on the way was changed while it was looked at")
    }

    /// Where a path leads by such links, the last part of which need not exist; `None` where there is none on the way.
    pub(super) fn leads(&mut self, path: &Path) -> Result<Option<Led>> {
        for above in path.ancestors() {
            if let Some(seen) = self.seen(above)? {
                let below = path.strip_prefix(above).unwrap_or(Path::new(""));
                return Ok(seen.led.map(|led| Led {
                    to: if above == path {
                        led.to
                    } else {
                        led.to.join(below)
                    },
                    ..led
                }));
            }
        }
        Ok(None)
    }

    /// The same of a name in the directory that a path stands in: if that is a link itself, it is not followed.
    pub(super) fn leads_by_name(&mut self, path: &Path) -> Result<Option<Led>> {
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(None);
        };
        let led = self.leads(above)?;
        Ok(led.map(|led| Led {
            to: led.to.join(name),
            ..led
        }))
    }
}

impl Seen {
    pub(super) fn unlinked(identity: Identity) -> Self {
        Self {
            identity,
            led: None,
            is_block_device: false,
        }
    }
}

/// A path that leads elsewhere by a link that a session under the same policy could have made.
#[derive(Clone, Debug)]
pub(in crate::kernel) struct Led {
    link: PathBuf,
    pub(super) to: PathBuf,
}

/// Follows a path as the kernel does: where it leads, and the first link on the way that a session under the policy could have made. Where
/// the last part of it does not exist, that is taken as it is.
fn follow(policy: &Compiled, path: &Path) -> (PathBuf, Option<PathBuf>) {
    /// Links that the kernel follows in one path (`MAXSYMLINKS`).
    const MOST: usize = 40;
    let parts = |path: &Path| -> Vec<OsString> {
        let parts = path.components().rev();
        parts.map(|part| part.as_os_str().to_owned()).collect()
    };
    let mut rest = parts(path);
    let (mut to, mut link) = (PathBuf::from("/"), None);
    let mut followed = 0;
    while let Some(part) = rest.pop() {
        match part.as_encoded_bytes() {
            b"." => continue,
            b".." => {
                to.pop();
                continue;
            }
            _ => {}
        }
        // That of an absolute path is the root.
        let next = to.join(&part);
        match fs::read_link(&next) {
            Ok(target) if followed < MOST => {
                followed += 1;
                let may_write = explain::decide_file(policy, Access::Write, &next).effect;
                if link.is_none() && may_write != Effect::Deny {
                    link = Some(next);
                }
                rest.extend(parts(&target));
            }
            _ => to = next,
        }
    }
    (to, link)
}

impl Led {
    pub(in crate::kernel) fn told(&self, path: &Path) -> String {
        format!(
            "{}: {} is a link that a session under this policy could have made; the rule gives no more than what the policy says of {}; \
             hint: name that",
            path.display(),
            self.link.display(),
            self.to.display()
        )
    }
}
