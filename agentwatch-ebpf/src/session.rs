//! Who acts: membership by a tag in task storage, given on entering a session's cgroup and inherited at fork.

use core::{
    hint::black_box,
    intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd, atomic_xchg},
};

use agentwatch_common::{
    limits,
    policy::{Session, Tag, flags},
    stats,
};
use aya_ebpf::bindings::task_struct;

use crate::{
    kernel::{CgroupAt, Task},
    maps::{BINDINGS, CENSUS, CGROUPS, PROCESSES, SESSIONS, TAGS, count},
};

/// The acting task's session.
#[derive(Clone, Copy)]
pub struct Subject {
    pub session: *mut Session,
    pub number: u32,
    /// Null in cgroup programs, which cannot read task storage.
    pub tag: *mut Tag,
    pub policy: u32,
    pub flags: u32,
}

impl Subject {
    /// By the current task's tag. `None`, for nearly every task of a host, costs next to nothing.
    #[inline(always)]
    pub fn current() -> Option<Self> {
        let task = Task::current();
        if task.has_storage() {
            let tag = TAGS.get(task.0);
            if !tag.is_null() {
                // SAFETY: not null; the kernel keeps it until the task's end.
                return Self::of(unsafe { (*tag).session }, tag);
            }
        }
        // A process that enters a cgroup with many threads is announced by its leader alone.
        let leader = task.leader();
        if leader.0 == task.0 || !leader.has_storage() {
            return None;
        }
        let leader = TAGS.get(leader.0);
        if leader.is_null() {
            return None;
        }
        // SAFETY: as above.
        let (number, image) = unsafe { ((*leader).session, (*leader).image) };
        self::tag(task.0, number, image);
        let tag = TAGS.get(task.0);
        if tag.is_null() {
            None
        } else {
            Self::of(number, tag)
        }
    }

    /// By the current process, then by its cgroup, for programs that cannot read task storage.
    #[inline(always)]
    pub fn by_process() -> Option<Self> {
        let task = Task::current();
        let number = match of_process(task.pid()) {
            0 => of_cgroup(task.cgroup()),
            number => number,
        };
        Self::of(number, core::ptr::null_mut())
    }

    /// A session that is known by its number.
    #[inline(always)]
    pub fn of_session(number: u32) -> Option<Self> {
        Self::of(number, core::ptr::null_mut())
    }

    #[inline(always)]
    fn of(number: u32, tag: *mut Tag) -> Option<Self> {
        let slot = number & (limits::SESSIONS as u32 - 1);
        let session = SESSIONS.get_ptr_mut(slot)?;
        // SAFETY: a slot of an array map.
        let owner = unsafe { (*session).number };
        // One load: policy and flags belong together.
        // SAFETY: as above, eight aligned bytes.
        let binding = unsafe { BINDINGS.get_ptr(slot)?.cast::<u64>().read_volatile() };
        let (policy, flags) = (binding as u32, (binding >> 32) as u32);
        // A session that has ended leaves stale tags behind: they mean nothing. One that is being ended has no policy any more.
        (owner == number && number != 0 && policy != 0).then_some(Self {
            session,
            number,
            tag,
            policy,
            flags,
        })
    }

    /// Gives back what it was given, as numbers that the verifier knows nothing of: it would otherwise follow everything
    /// that comes after once for each combination.
    #[inline(always)]
    pub fn forget(&self, a: u32, b: u32) -> (u32, u32) {
        let both = self.forget_all(u64::from(a) | u64::from(b) << 32);
        (both as u32, (both >> 32) as u32)
    }

    /// The same of one number, or of an address that the verifier of older kernels takes for the pointer that it was.
    #[inline(always)]
    pub fn forget_all(&self, number: u64) -> u64 {
        // SAFETY: the subject was found by its tag.
        unsafe {
            let place = &raw mut (*self.tag).flags;
            place.write_volatile(number);
            place.read_volatile()
        }
    }

    #[inline(always)]
    pub fn monitors(&self) -> bool {
        self.flags & flags::MONITOR != 0
    }
}

/// What the kernel is told: `-errno`, or 0. The verifier has to see that it is one of the two, which it cannot once the compiler
/// has made arithmetic of the choice.
#[inline(always)]
pub fn answer(refused: bool, errno: i32) -> i32 {
    if refused {
        black_box(-i64::from(errno)) as i32
    } else {
        0
    }
}

/// The session of a task, 0 for none.
#[inline(always)]
pub fn of_task(task: *mut task_struct) -> u32 {
    let tag = TAGS.get(task);
    if !tag.is_null() {
        // SAFETY: not null.
        return unsafe { (*tag).session };
    }
    let tag = TAGS.get(Task(task).leader().0);
    if tag.is_null() {
        return 0;
    }
    // SAFETY: not null.
    unsafe { (*tag).session }
}

/// The session of a cgroup, 0 for none.
#[inline(always)]
pub fn of_cgroup(id: u64) -> u32 {
    // SAFETY: entries are changed only by user space, whole.
    unsafe { CGROUPS.get(id).map_or(0, |number| *number) }
}

/// Tags a task. A task that already has a tag keeps its session: leaving one by entering another is no way out.
/// `image` is what its program is known by for folding.
#[inline(always)]
pub fn tag(task: *mut task_struct, number: u32, image: u64) {
    if let Some(number) = inherit(task, number, image) {
        set_process(Task(task), number);
    }
}

/// The same for a task that has no process number yet. Gives back the session that it is in now.
#[inline(always)]
pub fn inherit(task: *mut task_struct, number: u32, image: u64) -> Option<u32> {
    let old = TAGS.get(task);
    if !old.is_null() {
        // SAFETY: not null.
        let owner = unsafe { (*old).session };
        if let Some(session) = SESSIONS.get(owner & (limits::SESSIONS as u32 - 1))
            && session.number == owner
            && owner != 0
        {
            return Some(owner);
        }
        // The old session has ended.
        // SAFETY: not null.
        unsafe { (*old).session = number }
        add_tasks(number, 1);
        return Some(number);
    }
    let tag = TAGS.get_or_insert(task, core::ptr::null());
    if tag.is_null() {
        // Out of memory. The task is outside the session now: user space sees the counter and reports it.
        count(stats::TAG_FAILED);
        return None;
    }
    // SAFETY: not null.
    unsafe {
        (*tag).image = image;
        (*tag).session = number;
    }
    add_tasks(number, 1);
    Some(number)
}

/// Where the session of a process stands, null for a number that none can have.
#[inline(always)]
fn place_of_process(pid: u32) -> *mut u32 {
    const GROUP: u32 = limits::PROCESS_GROUP as u32;
    match PROCESSES.get_ptr_mut(pid / GROUP) {
        // SAFETY: inside the group.
        Some(group) => unsafe { group.cast::<u32>().add((pid % GROUP) as usize) },
        None => core::ptr::null_mut(),
    }
}

/// The session of a process, 0 for none.
#[inline(always)]
pub fn of_process(pid: u32) -> u32 {
    let place = place_of_process(pid);
    if place.is_null() {
        return 0;
    }
    // SAFETY: an entry of a map.
    unsafe { place.read_volatile() }
}

#[inline(always)]
fn set_process(task: Task, number: u32) {
    let place = place_of_process(task.pid());
    if !place.is_null() {
        // SAFETY: as above.
        unsafe { place.write_volatile(number) }
    }
}

/// Lets programs that cannot read task storage know of the current process, which has a socket to decide on. They do, unless the program
/// that sees new tasks was left out when this one was made.
#[inline(always)]
pub fn make_known(subject: &Subject) {
    set_process(Task::current(), subject.number);
}

/// A process of nobody's: what is left of an earlier one with its number means nothing.
#[inline(always)]
pub fn forget_process(task: Task) {
    set_process(task, 0);
}

#[inline(always)]
fn add_tasks(number: u32, n: u32) {
    if let Some(session) = SESSIONS.get_ptr_mut(number & (limits::SESSIONS as u32 - 1)) {
        add32(unsafe { &raw mut (*session).tasks }, n);
    }
}

/// Counts a task for the census that user space takes.
#[inline(always)]
pub fn count_in_census(task: *mut task_struct) {
    let tag = TAGS.get(task);
    if tag.is_null() || Task(task).is_exiting() {
        return;
    }
    // SAFETY: not null.
    let number = unsafe { (*tag).session };
    if let Some(session) = SESSIONS.get(number & (limits::SESSIONS as u32 - 1))
        && session.number == number
        && number != 0
        && let Some(place) = CENSUS.get_ptr_mut(number & (limits::SESSIONS as u32 - 1))
    {
        add32(place, 1);
    }
}

/// A tagged task ends; `last` of its process.
#[inline(always)]
pub fn leave(subject: &Subject, task: Task, last: bool) {
    if last {
        set_process(task, 0);
    }
    add32(unsafe { &raw mut (*subject.session).tasks }, u32::MAX);
}

/// A cgroup below a session's belongs to the session.
#[inline(always)]
pub fn inherit_cgroup(cgroup: CgroupAt) {
    let number = of_cgroup(cgroup.parent_id());
    if number != 0 && CGROUPS.insert(cgroup.id(), number, 0).is_err() {
        count(stats::CGROUP_FULL);
    }
}

/// Atomic operations. `core::sync::atomic` leaves them out for this target, because the oldest BPF processors lack
/// some; the kernels that we run on (6.1 and later) have them all. Sequentially consistent, because LLVM makes an addition
/// that gives nothing back of a relaxed one, whether or not its result is used.
#[inline(always)]
pub fn add32(place: *mut u32, n: u32) {
    // SAFETY: an aligned field of a map's value.
    unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::SeqCst }>(place, n) };
}

#[inline(always)]
pub fn add64(place: *mut u64, n: u64) -> u64 {
    // SAFETY: as above.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(place, n) }
}

#[inline(always)]
pub fn swap64(place: *mut u64, value: u64) -> u64 {
    // SAFETY: as above.
    unsafe { atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(place, value) }
}

/// Puts a value where `expected` stands. Whether it stood there.
#[inline(always)]
pub fn replace32(place: *mut u32, expected: u32, value: u32) -> bool {
    // SAFETY: as above.
    unsafe {
        atomic_cxchg::<u32, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
            place, expected, value,
        )
        .1
    }
}

#[inline(always)]
pub fn swap32(place: *mut u32, value: u32) -> u32 {
    // SAFETY: as above.
    unsafe { atomic_xchg::<u32, { AtomicOrdering::SeqCst }>(place, value) }
}
