//! What becomes of a decision on a file: what the kernel is told, what a person is asked, what is recorded.

use agentwatch_common::{
    event::{access, kind, state, verdict},
    hold::RESTART,
    policy::{flags, rule},
};

use super::{DENIED, EACCES};
use crate::{
    emit, hold,
    kernel::{Dentry, Entry, SuperBlock, Task},
    session::{self, Subject},
    verdict::{self as policy, Decision},
};

/// Remembers whether a file that is decided on is shown by an overlay that the host mounted, and to whom.
#[inline(always)]
pub(super) fn note_overlay(subject: &Subject, super_block: SuperBlock) {
    if !super_block.is_overlay() {
        return;
    }
    let shown_to = if policy::is_own(super_block.at(), subject.number) {
        0
    } else {
        Task::current().acting_credentials()
    };
    // SAFETY: the subject was found by its tag.
    unsafe { (*subject.tag).shown_to = shown_to };
}

/// Whether this is what an overlay of the host's does in its layers: that has been decided on what it shows. An overlay of the
/// session's over the same layers acts as whom the decision was made for, or after a decision on a file of its own.
#[inline(always)]
pub(super) fn is_behind(subject: &Subject, dentry: Dentry) -> bool {
    let task = Task::current();
    // SAFETY: the subject was found by its tag.
    let shown_to = unsafe { (*subject.tag).shown_to };
    shown_to != 0
        && task.acts_for_another()
        && shown_to != task.acting_credentials()
        && policy::is_layer(subject, dentry)
}

/// What is recorded, and what the kernel is told.
#[inline(always)]
pub(super) fn outcome(subject: &Subject, decision: &Decision) -> (u32, i32) {
    if decision.allows() {
        (verdict::ALLOWED, 0)
    } else if subject.monitors() {
        (verdict::AUDITED, 0)
    } else {
        (verdict::DENIED, -EACCES)
    }
}

/// Asks a person for one file.
#[inline(always)]
pub(super) fn ask(
    subject: &Subject,
    what: u32,
    bits: u32,
    rule: u32,
    dentry: Dentry,
    last: bool,
) -> u32 {
    let request = hold::Request {
        what,
        rights: hold::rights_of(what, bits),
        rule,
        // A descriptor that is being received is gone with the message, and what is mapped in the middle of an execution has no way back.
        repeatable: bits & (access::RECEIVE | access::MAP) == 0,
        last,
    };
    hold::file(subject, &request, dentry.address())
}

/// What is recorded of a person's word, what the kernel is told, and what is noted in the record.
#[inline(always)]
pub(super) fn heard(word: u32) -> (u32, i32, u32) {
    match word {
        hold::GRANTED => (verdict::ALLOWED, 0, state::GRANTED),
        hold::PARKED | hold::PARKED_AGAIN => (verdict::HELD, -RESTART, 0),
        hold::REJECTED => (verdict::DENIED, -EACCES, state::REJECTED),
        _ => (verdict::DENIED, -EACCES, state::NOT_HELD),
    }
}

/// The verifier has to see that it is one of three numbers. That of 6.1 loses, in a function that is called in between, which of a caller's
/// registers have to be equal for two paths to be the same: it takes two of the numbers for one, and leaves out the branch for the other.
/// What comes out of memory is no number that it follows.
#[inline(always)]
pub(super) fn refusal(subject: &Subject, result: i32) -> i32 {
    let (result, _) = subject.forget(result as u32, 0);
    if result as i32 == -RESTART {
        session::answer(true, RESTART)
    } else {
        session::answer(result != 0, EACCES)
    }
}

/// Records the decision, folding repetitions, and gives it to the kernel.
#[inline(always)]
pub(super) fn answer(
    subject: &Subject,
    what: u32,
    dentry: Dentry,
    access: u32,
    flags: u32,
    decision: Decision,
) -> i32 {
    let (mut outcome, mut result) = outcome(subject, &decision);
    let mut state = 0;
    if decision.holds() && outcome == verdict::DENIED {
        let word = ask(subject, what, access, decision.rule, dentry, true);
        if word == hold::PARKED_AGAIN {
            return session::answer(true, RESTART);
        }
        (outcome, result, state) = heard(word);
    }
    if result != 0 && (what == kind::OPEN || what == kind::EXEC) {
        // SAFETY: the subject was found by its tag.
        unsafe { (*subject.tag).denied = DENIED };
    }
    record_file(
        subject,
        &Action {
            what,
            verdict: outcome,
            rule: decision.rule,
            access,
            flags,
            errno: -result,
            dentry,
            inode: dentry.inode(),
            device: dentry.device(),
            state,
        },
    );
    refusal(subject, result)
}

/// An action on one file, as it is recorded.
pub struct Action<E> {
    pub what: u32,
    pub verdict: u32,
    pub rule: u32,
    pub access: u32,
    pub flags: u32,
    pub errno: i32,
    pub dentry: E,
    pub inode: u64,
    pub device: u32,
    /// Bits of the record's state.
    pub state: u32,
}

/// Records an action on one file; used by both backends. A function of its own, for its share of the stack.
#[inline(never)]
pub fn record_file<E: Entry>(subject: &Subject, action: &Action<E>) -> u32 {
    // What was refused, or would have been, is recorded whatever is asked for; without the LSM that is worked out later.
    let judged_later = subject.flags & flags::LANDLOCK != 0 && subject.monitors();
    let allowed_open = action.what == kind::OPEN
        && action.verdict == verdict::ALLOWED
        && action.state == 0
        && !judged_later;
    if allowed_open
        && subject.flags & flags::OPENS_WRITES != 0
        && action.access & !(access::READ | access::LIST) == 0
    {
        return 0;
    }
    // A name without a file has no identity to fold by, and each time that a person is asked counts.
    let folds = action.inode != 0
        && action.verdict != verdict::HELD
        && action.state == 0
        && !(allowed_open && subject.flags & flags::OPENS_ALL != 0);
    let key = emit::key(
        subject,
        action.what,
        action.access,
        action.verdict,
        [
            u64::from(action.device),
            action.inode,
            u64::from(action.flags),
        ],
    );
    // What was let pass because a file is about a process of the session's holds for that process alone.
    let seal =
        if allowed_open && !judged_later && action.rule != rule::OWN && !subject.tag.is_null() {
            // SAFETY: the subject was found by its tag.
            unsafe { (*subject.tag).seal }
        } else {
            0
        };
    // Looked for already, by the program that asks whether it has to be decided at all.
    // SAFETY: as above.
    let unseen = allowed_open && seal != 0 && unsafe { (*subject.tag).unseen } != 0;
    if folds && !unseen && emit::fold(subject, &key, seal) {
        return 0;
    }
    let Some(mut draft) = emit::begin(action.what, subject, Task::current()) else {
        return 0;
    };
    draft.path(action.dentry);
    let record = draft.record();
    record.verdict = action.verdict;
    record.rule = action.rule;
    record.dev = action.device;
    record.inode = action.inode;
    record.access = action.access;
    record.flags = action.flags;
    record.errno = action.errno;
    record.state |= action.state;
    if folds {
        draft.submit_first(subject, &key, seal);
    } else {
        draft.submit(subject);
    }
    0
}
