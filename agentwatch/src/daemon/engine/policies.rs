//! The policy of a session: what its asker sent, and the administrator's floor, which is read anew each time.

use std::{path::Path, sync::Arc};

use jiff::Timestamp;
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

use super::{Engine, orders::Refusal};
use crate::{
    daemon::launch::Origin,
    event::Mode,
    policy::{
        self,
        explain::managed_over,
        model::{Access, Admission, Compiled, Effect, Limits},
        sources::Sources,
    },
    session::{cgroup, managed},
    wire::control::PolicyText,
};

impl Engine {
    /// A policy with the floor of the user who asks; its name is the second value.
    pub(super) fn compile(
        &self,
        text: &PolicyText,
        uid: u32,
    ) -> Result<(Arc<Compiled>, Option<String>), Refusal> {
        let managed = managed::read(&self.managed_dir).map_err(|error| {
            Refusal::new(format!("the host's policies cannot be used: {error:#}")).hint(
                "no session starts without them: this is for the host's administrator to mend",
            )
        })?;
        let examined = policy::examine_all(&Sources {
            file: &text.file,
            text: text.text.as_bytes(),
            directory: &text.directory,
            included: &text.included,
            context: &text.context,
            managed: &managed,
            managed_context: &managed::context(uid),
        });
        match examined.compiled {
            Some(mut policy) => {
                follow_links(&mut policy);
                Ok((Arc::new(policy), examined.name))
            }
            None => {
                Err(Refusal::new(examined.report.render(false))
                    .hint("agentwatch policy check FILE"))
            }
        }
    }

    /// Whether the floor lets a user start one more session. Root may: it could change the floor.
    pub(super) fn admit(&self, uid: u32, policy: &Compiled) -> Result<(), Refusal> {
        if uid == 0 {
            return Ok(());
        }
        let own = self
            .sessions
            .values()
            .filter(|live| live.uid == uid)
            .count();
        for admission in &policy.floor.sessions {
            if !admits(admission, uid) {
                return Err(Refusal::new(format!(
                    "user {uid} may not start sessions on this host: {} names who may",
                    admission.source
                ))
                .hint("ask the host's administrator"));
            }
            if let Some((most, source)) = &admission.max_per_user
                && own >= *most as usize
            {
                return Err(Refusal::new(format!(
                    "user {uid} has {own} sessions, and {source} allows {most}"
                ))
                .hint("end some: agentwatch sessions, agentwatch detach"));
            }
        }
        Ok(())
    }
}

/// The mode of a session: the floor's, else the one that was asked for, else the policy's.
pub(super) fn mode_of(policy: &Compiled, asked: Option<Mode>) -> Mode {
    match &policy.floor.mode {
        Some((mode, _)) => *mode,
        None => asked.unwrap_or(policy.mode),
    }
}

/// What is to be said where the floor takes the mode that was asked for.
pub(super) fn mode_warning(policy: &Compiled, asked: Option<Mode>) -> Option<String> {
    let (mode, source) = policy.floor.mode.as_ref()?;
    asked
        .filter(|asked| asked != mode)
        .map(|_| format!("the mode is {}, as {source} says", mode.name()))
}

/// Why a session does not begin although a part of its policy cannot be held, if it does not.
pub(super) fn degraded(
    missing: &[String],
    accepted: bool,
    policy: &Compiled,
) -> Result<(), Refusal> {
    if missing.is_empty() {
        return Ok(());
    }
    let what = format!(
        "this kernel cannot hold the whole policy:\n  - {}",
        missing.join("\n  - ")
    );
    match &policy.floor.refuses_degraded {
        Some(source) => Err(Refusal::new(what).hint(format!(
            "{source} forbids sessions that are held in part; `agentwatch doctor` says what the kernel lacks"
        ))),
        None if accepted => Ok(()),
        None => Err(Refusal::new(what).hint(
            "--accept-degraded starts the session without that; `agentwatch doctor` says what the kernel lacks",
        )),
    }
}

/// What of a policy's limits does not hold for a session that came to be like this. In `monitor` mode nothing is held.
pub(super) fn limit_gaps(root: &Path, origin: Origin, mode: Mode, limits: &Limits) -> Vec<String> {
    if mode == Mode::Monitor || *limits == Limits::default() {
        return Vec::new();
    }
    if origin != Origin::Run {
        return vec![
            "limits: they hold for what `agentwatch run` starts; a cgroup of others has limits of its own".to_owned(),
        ];
    }
    cgroup::limit_gaps(root, limits)
}

impl Engine {
    /// Sets the limits of a session's own cgroup.
    pub(super) fn limit(
        &self,
        path: &Path,
        origin: Origin,
        mode: Mode,
        policy: &Compiled,
    ) -> anyhow::Result<()> {
        if origin != Origin::Run {
            return Ok(());
        }
        let none = Limits::default();
        let limits = match mode {
            Mode::Enforce => &policy.limits,
            Mode::Monitor => &none,
        };
        cgroup::limit(&self.kernel.cgroup_root, path, limits)
    }

    /// Kills what is left of a session whose time is over; says whether it is.
    pub(super) fn out_of_time(&mut self, number: u32) -> bool {
        let Some(live) = self.sessions.get(&number) else {
            return false;
        };
        let Some(most) = live.subject.policy.limits.wall_time else {
            return false;
        };
        let lived = Timestamp::now().duration_since(live.started);
        if live.origin != Origin::Run
            || live.subject.reference.mode == Mode::Monitor
            || u64::try_from(lived.as_secs()).unwrap_or(0) < most
        {
            return false;
        }
        if live.seen_tasks
            && let Err(error) = cgroup::kill(&live.cgroup)
        {
            tracing::error!(
                session = live.id(),
                error = format!("{error:#}"),
                "a session whose time is over goes on"
            );
        }
        // One that left the session's cgroup is still the session's.
        for pid in self.kernel.maps.processes_of(number) {
            let inside = cgroup::of_process(&self.kernel.cgroup_root, pid)
                .is_none_or(|path| path.starts_with(&live.cgroup));
            if !inside {
                let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
        }
        true
    }
}

/// The same policy, for what its paths name now.
pub(super) fn again(policy: &Compiled) -> Arc<Compiled> {
    let mut policy = policy.clone();
    follow_links(&mut policy);
    Arc::new(policy)
}

/// A place is bound to what its path names when the session starts. Where links lead into what the administrator denies,
/// that holds there too.
fn follow_links(policy: &mut Compiled) {
    let overs: Vec<_> = policy
        .places
        .iter()
        .enumerate()
        .filter_map(|(index, place)| {
            let target = place.path.canonicalize().ok()?;
            (target != place.path).then(|| (index, managed_over(policy, &target)))
        })
        .collect();
    for (index, over) in overs {
        for access in Access::ALL {
            let own = &mut policy.places[index].decisions[access as usize];
            if let Some(decision) = over[access as usize]
                && decision.effect >= own.effect
            {
                *own = decision;
            }
        }
    }
    let unix: Vec<bool> = policy
        .unix
        .iter()
        .map(|rule| match &rule.target {
            policy::model::UnixTarget::Path(path) => path.canonicalize().is_ok_and(|target| {
                managed_over(policy, &target)[Access::Write as usize]
                    .is_some_and(|over| over.effect == Effect::Deny)
            }),
            _ => false,
        })
        .collect();
    let mut denied = unix.into_iter();
    policy.unix.retain(|_| !denied.next().unwrap_or(false));
}

fn admits(admission: &Admission, uid: u32) -> bool {
    if admission.users.is_none() && admission.groups.is_none() {
        return true;
    }
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    let named = |names: &[String], name: Option<&str>, number: u32| {
        names
            .iter()
            .any(|wanted| Some(wanted.as_str()) == name || *wanted == number.to_string())
    };
    let by_user = admission
        .users
        .as_deref()
        .is_some_and(|users| named(users, user.as_ref().map(|user| user.name.as_str()), uid));
    by_user
        || admission.groups.as_deref().is_some_and(|groups| {
            let Some(user) = &user else {
                return false;
            };
            let Ok(name) = std::ffi::CString::new(user.name.as_str()) else {
                return false;
            };
            let own: Vec<Gid> = getgrouplist(&name, user.gid).unwrap_or_default();
            own.into_iter().any(|gid| {
                let group = Group::from_gid(gid).ok().flatten();
                named(
                    groups,
                    group.as_ref().map(|group| group.name.as_str()),
                    gid.as_raw(),
                )
            })
        })
}

/// The text of a watch rule's policy, which the administrator names, with what it extends.
pub(super) fn watched(file: &Path) -> anyhow::Result<PolicyText> {
    use anyhow::Context as _;
    let text = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
    let context = policy::model::Context {
        cwd: "/".into(),
        home: "/root".into(),
        ..Default::default()
    };
    let text =
        String::from_utf8(text).with_context(|| format!("{} is not UTF-8", file.display()))?;
    let directory = file.parent().unwrap_or(Path::new("/")).to_owned();
    let included = policy::sources::gather(&text, &directory, &context, |path| {
        std::fs::read_to_string(path).map_err(|error| error.to_string())
    });
    Ok(PolicyText {
        file: file.to_string_lossy().into_owned(),
        text,
        context,
        directory,
        included,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_admitted_by_name_number_and_group() {
        let root = User::from_uid(Uid::from_raw(0)).unwrap().unwrap();
        let group = Group::from_gid(root.gid).unwrap().unwrap();
        let some = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect());
        for (users, groups, expected) in [
            (None, None, true),
            (some(&[]), None, false),
            (some(&[root.name.as_str()]), None, true),
            (some(&["0"]), None, true),
            (some(&["1"]), some(&[]), false),
            (None, some(&[group.name.as_str()]), true),
            (some(&["nobody-there"]), some(&["0"]), true),
        ] {
            let admission = Admission {
                users: users.clone(),
                groups: groups.clone(),
                ..Admission::default()
            };
            assert_eq!(admits(&admission, 0), expected, "{users:?} {groups:?}");
        }
    }
}
