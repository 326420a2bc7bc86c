//! The tasks that wait: telling them what was decided, and looking after those that go away, are sent a signal, or that nobody has
//! told of.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use agentwatch_common::{
    hold::{Grant, GrantKey, Hold, object},
    policy::effect,
};
use anyhow::Result;
use nix::sys::signal::Signal;

use super::Word;
use crate::{
    approval::Waiting,
    daemon::engine::Engine,
    event::{
        host::boottime_ns,
        model::{DeciderKind, Step},
    },
    session::{cgroup, signal},
};

/// How long a task may take to hear what was said to it.
const HEARING: Duration = Duration::from_secs(60);
/// How long what a task has heard stays, for the rest of its system call.
const REST: Duration = Duration::from_secs(2);
/// After which time a task is asked about of which no record has come.
const UNTOLD: Duration = Duration::from_secs(1);
/// Threads beside those that wait that are looked at for signals, each time.
const LOOKS: usize = 1024;
/// How long the end of a session waits for its tasks to hear that they may not.
const DISMISSAL: Duration = Duration::from_millis(500);

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// What has become of tasks that wait, and of their requests.
#[derive(Default)]
struct Seen {
    /// Requests that nothing waits for any more.
    over: Vec<String>,
    /// Requests of which a task went on by itself, for the first time.
    urged: Vec<String>,
    /// Commands with a signal that would end them.
    doomed: Vec<Waiting>,
    /// Tasks with a signal that they can hear.
    called: Vec<Waiting>,
}

impl Engine {
    /// Tells a task that it may go on, or that it may not.
    ///
    /// # Errors
    /// When the kernel does not take it: the task waits on.
    pub(super) fn say(
        &mut self,
        key: GrantKey,
        rights: u32,
        task: Waiting,
        allowed: bool,
    ) -> Result<()> {
        let is_command = key.object.kind == object::COMMAND;
        if !is_command {
            let now = boottime_ns();
            let grant = Grant {
                effect: u32::from(if allowed { effect::ALLOW } else { effect::DENY }),
                rights,
                until: now.saturating_add(nanoseconds(HEARING)),
                start: task.start,
                used: 0,
                _pad: 0,
            };
            if let Some(oldest) = self.told.note(key, now) {
                self.kernel.maps.revoke(&oldest);
            }
            self.kernel.maps.grant(&key, grant)?;
        }
        let signal = if is_command && !allowed {
            Signal::SIGKILL
        } else {
            Signal::SIGCONT
        };
        // A command that is to end does so while it is stopped.
        if signal == Signal::SIGCONT {
            self.kernel.maps.forget_hold(task.tid);
        }
        if is_command && allowed {
            self.thaw(task.pid);
        }
        if let Err(error) = signal::send(task.pid, task.start, signal) {
            tracing::error!(
                pid = task.pid,
                error = format!("{error:#}"),
                "a process does not hear what was decided"
            );
        }
        if is_command && !allowed {
            self.thaw(task.pid);
            self.kernel.maps.forget_hold(task.tid);
        }
        // Its other tasks go on with it, and those that wait are parked again.
        self.desk
            .excuse(task.pid, boottime_ns() + nanoseconds(REST));
        Ok(())
    }

    fn thaw(&self, pid: u32) {
        if let Some(path) = cgroup::frozen_in(&self.kernel.cgroup_root, pid) {
            cgroup::thaw(&path, pid);
        }
    }

    pub(super) fn look_after_tasks(&mut self, now: u64) {
        let Seen {
            over,
            urged,
            doomed,
            called,
        } = self.see_tasks(now);
        for task in doomed {
            // `timeout`, or an interrupt: the signal would reach it when it goes on, which it must not. It ends by one that reaches
            // it as it is.
            if let Err(error) = signal::send(task.pid, task.start, Signal::SIGKILL) {
                tracing::error!(
                    pid = task.pid,
                    error = format!("{error:#}"),
                    "a command that waits has a deadly signal and does not end; hint: kill it, or decide on its request"
                );
            }
            self.thaw(task.pid);
        }
        for task in called {
            // It hears the signal when it goes on; unless that ends it, its system call is done once more and parked again.
            self.desk.excuse(task.pid, now + nanoseconds(REST));
            if let Err(error) = signal::send(task.pid, task.start, Signal::SIGCONT) {
                tracing::warn!(
                    pid = task.pid,
                    error = format!("{error:#}"),
                    "a process that waits does not hear a signal"
                );
            }
        }
        for id in urged {
            if let Some(pending) = self.desk.get(&id) {
                let mut step = pending.step(Step::Requested, now);
                step.finding = Some("bypass_attempt".to_owned());
                let about = pending.event.clone();
                self.tell_step(&about, step);
            }
        }
        for id in over {
            if let Some(pending) = self.desk.take(&id) {
                let step = pending.step(Step::Withdrawn, now);
                self.tell_step(&pending.event, step);
                self.save_approvals(pending.session);
            }
        }
    }

    /// Takes off the requests what does not wait any more, and counts who went on by itself.
    fn see_tasks(&mut self, now: u64) -> Seen {
        let mut seen = Seen::default();
        let maps = &self.kernel.maps;
        // The threads of a process are looked at once, whoever of them waits, and of all processes so many.
        let mut called = HashMap::new();
        let mut looks = LOOKS;
        for pending in self.desk.pending_mut() {
            let mut tries = pending.restarted;
            let command = pending.about.is_command();
            pending.tasks.retain(|task| {
                let hold = maps.hold(task.tid);
                let waits = hold.is_some_and(|hold| hold.since == task.since);
                if waits && let Some(hold) = hold {
                    tries += hold.tries;
                    if command && signal::is_doomed(task.pid, task.start) {
                        seen.doomed.push(*task);
                        return true;
                    }
                    if !command
                        && *called.entry((task.pid, task.start)).or_insert_with(|| {
                            signal::is_called(task.pid, task.tid, task.start, &mut looks)
                        })
                    {
                        seen.called.push(*task);
                    }
                    // Where no program refuses it, others can tell a command to go on. It is frozen; that they tried is told once.
                    if command && pending.restarted == 0 && signal::stop_again(task.pid, task.start)
                    {
                        pending.restarted = 1;
                    }
                }
                waits
            });
            if tries > pending.tries + pending.excused {
                if now < pending.excused_until {
                    pending.excused = tries - pending.tries;
                } else {
                    pending.tries = tries - pending.excused;
                    if !std::mem::replace(&mut pending.urged, true) {
                        seen.urged.push(pending.id.clone());
                    }
                }
            }
            if pending.tasks.is_empty() {
                seen.over.push(pending.id.clone());
            }
        }
        seen
    }

    /// Takes back what was said to tasks that have heard it, or that never will.
    pub(super) fn look_after_answers(&mut self, now: u64) {
        let maps = &mut self.kernel.maps;
        self.told.retain(|key, at| {
            let age = now.saturating_sub(at);
            let over = age > nanoseconds(HEARING) || (age > nanoseconds(REST) && maps.is_used(key));
            if over {
                maps.revoke(key);
            }
            !over
        });
        let told = &self.told;
        self.desk.answers().retain(|tid, answer| {
            let key = GrantKey {
                session: answer.pending.session,
                task: *tid,
                object: answer.pending.about.object(),
            };
            // To a command nothing is said that it would hear.
            let is_said = told.knows(&key) || key.object.kind == object::COMMAND;
            is_said && now.saturating_sub(answer.at) <= nanoseconds(HEARING)
        });
    }

    /// Asks about tasks of which no record has come: the ring was full, or an earlier daemon had it.
    pub(super) fn find_untold(&mut self, now: u64) {
        let known: HashSet<u32> = self
            .desk
            .pending()
            .flat_map(|pending| pending.tasks.iter().map(|task| task.tid))
            .collect();
        let untold: Vec<Hold> = self
            .kernel
            .maps
            .holds()
            .into_iter()
            .filter(|hold| {
                !known.contains(&hold.tid)
                    && now.saturating_sub(hold.since) > nanoseconds(UNTOLD)
                    && self.sessions.contains_key(&hold.key.session)
            })
            .collect();
        for hold in untold {
            if let Some(mut event) = self.event_of(&hold) {
                self.ask(&hold, &mut event);
            }
        }
    }

    /// Lets nothing of a session wait any more: what waits is denied, before the session is out of the kernel.
    pub(in crate::daemon::engine) fn dismiss(&mut self, number: u32) {
        let ids: Vec<String> = self
            .desk
            .of_session(number)
            .map(|pending| pending.id.clone())
            .collect();
        let mut deaf = Vec::new();
        for id in ids {
            if let Some(pending) = self.desk.get(&id)
                && !pending.about.is_command()
            {
                deaf.extend(pending.tasks.iter().map(|task| {
                    (
                        *task,
                        GrantKey {
                            session: number,
                            task: task.tid,
                            object: pending.about.object(),
                        },
                    )
                }));
            }
            self.decide_by_itself(&id, Word::of(Step::Rejected, false, DeciderKind::Session));
        }
        let since = std::time::Instant::now();
        while since.elapsed() < DISMISSAL {
            deaf.retain(|(task, key)| {
                !self.kernel.maps.is_used(key)
                    && std::path::Path::new(&format!("/proc/{}", task.pid)).exists()
            });
            if deaf.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        // What could not be told waits no more for a person.
        let left: Vec<String> = self
            .desk
            .of_session(number)
            .map(|pending| pending.id.clone())
            .collect();
        for id in left {
            self.desk.take(&id);
        }
        self.desk.take_given(|given| given.session == number);
    }
}
