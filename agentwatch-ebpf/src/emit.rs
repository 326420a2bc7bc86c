//! Recording: builds a record in scratch memory, numbers it, folds repetitions, and puts it into its ring.
//!
//! Nothing is dropped silently: a record that finds no room has taken a sequence number, which user space misses.

use core::{hint::black_box, ptr};

use agentwatch_common::{
    event::{Fold, FoldKey, FoldSpot, Record, Scratch, fold_mark, kind, state, verdict},
    limits,
    policy::{Session, flags},
    stats,
};
use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP, task_struct},
    helpers::{
        bpf_ktime_get_boot_ns,
        generated::{
            bpf_jiffies64, bpf_probe_read_kernel, bpf_probe_read_kernel_str, bpf_probe_read_user,
            bpf_probe_read_user_str, bpf_ringbuf_output, bpf_ringbuf_query,
        },
    },
};

use crate::{
    kernel::{self, Dentry, Entry, Task},
    maps::{BULK, FOLD_MARKS, FOLDS, SCRATCH, VERDICTS, count},
    memory,
    session::{Subject, add64, replace32, swap32, swap64},
};

/// Bytes of the ring of all that is not urgent; and behind each, how far records wake who reads it: several, because other processors
/// write meanwhile.
const EIGHTH: u64 = limits::BULK_RING as u64 / 8;
const TOLD: u64 = 32 << 10;

/// Scratch memory in use; given back by [`Draft::submit`].
pub struct Draft(*mut Scratch);

/// Takes a scratch slot and fills in who acts and when.
#[inline(always)]
pub fn begin(what: u32, subject: &Subject, task: Task) -> Option<Draft> {
    let Some(scratch) = take() else {
        count(stats::NO_SCRATCH);
        if what == kind::FORK {
            return None;
        }
        // The action happened: its number is taken, so that the gap shows.
        add64(unsafe { &raw mut (*subject.session).made }, 1);
        add64(unsafe { &raw mut (*subject.session).seq }, 1);
        add64(unsafe { &raw mut (*subject.session).dropped }, 1);
        return None;
    };
    fill(scratch, what, subject.number, task.0);
    // SAFETY: the slot is ours.
    unsafe { (*scratch).record.policy = subject.policy };
    Some(Draft(scratch))
}

/// Takes a slot of scratch memory; [`give_back`] ends that.
#[inline(always)]
pub fn take() -> Option<*mut Scratch> {
    for slot in 0..4 {
        let scratch = SCRATCH.get_ptr_mut(slot)?;
        // SAFETY: an aligned field of a map's value; this processor's own, but a program can preempt another.
        if swap64(unsafe { &raw mut (*scratch).busy }, 1) == 0 {
            return Some(scratch);
        }
    }
    None
}

#[inline(always)]
pub fn give_back(scratch: *mut Scratch) {
    // SAFETY: the slot was the caller's.
    unsafe { (&raw mut (*scratch).busy).write_volatile(0) };
}

#[inline(never)]
fn fill(scratch: *mut Scratch, kind: u32, session: u32, task: *mut task_struct) -> u64 {
    let task = Task(task);
    // SAFETY: the slot is ours.
    let record = unsafe { &mut (*scratch).record };
    memory::zero(record);
    record.kind = kind;
    record.verdict = verdict::ALLOWED;
    record.session = session;
    record.rule = u32::MAX;
    record.ktime = unsafe { bpf_ktime_get_boot_ns() };
    record.pid = task.pid();
    record.tid = task.tid();
    record.start = task.start();
    let parent = task.parent();
    record.ppid = parent.pid();
    record.parent_start = parent.start();
    record.cgroup = task.cgroup();
    let (uid, gid) = task.ids();
    record.uid = uid;
    record.gid = gid;
    record.comm = task.comm();
    0
}

impl Draft {
    #[inline(always)]
    pub fn record(&mut self) -> &mut Record {
        // SAFETY: the slot is ours until it is given back.
        unsafe { &mut (*self.0).record }
    }

    /// Adds a NUL-terminated string of kernel memory as the name.
    #[inline(always)]
    pub fn name_from_kernel(&mut self, address: u64) {
        let data = unsafe { &raw mut (*self.0).data }.cast();
        let len =
            unsafe { bpf_probe_read_kernel_str(data, limits::ARGV as u32, address as *const _) };
        self.named(len);
    }

    /// Adds a NUL-terminated string of the task's memory as the name.
    #[inline(always)]
    pub fn name_from_user(&mut self, address: u64) {
        let data = unsafe { &raw mut (*self.0).data }.cast();
        let len =
            unsafe { bpf_probe_read_user_str(data, limits::ARGV as u32, address as *const _) };
        self.named(len);
    }

    /// Adds a second string of the task's memory behind the first.
    #[inline(always)]
    pub fn second_name_from_user(&mut self, address: u64) {
        let first = self.record().name_len;
        if first > limits::ARGV as u32 {
            return;
        }
        let data = unsafe { (&raw mut (*self.0).data).cast::<u8>().add(first as usize) };
        let len = unsafe {
            bpf_probe_read_user_str(data.cast(), limits::ARGV as u32, address as *const _)
        };
        if len > 0 && len <= limits::ARGV as i64 {
            self.record().name_len = first + len as u32;
        } else {
            count(stats::READ_FAILED);
        }
    }

    #[inline(always)]
    fn named(&mut self, len: i64) {
        if len > 0 && len <= limits::ARGV as i64 {
            self.record().name_len = len as u32;
        } else {
            count(stats::READ_FAILED);
        }
    }

    /// Adds bytes of a kernel address as the name.
    #[inline(always)]
    pub fn name_bytes(&mut self, address: *const u8, len: u32) {
        let data = unsafe { &raw mut (*self.0).data }.cast();
        const MOST: u32 = limits::SOCKET_ADDRESS as u32;
        let len = if len > MOST { MOST } else { len };
        if unsafe { bpf_probe_read_kernel(data, len, address.cast()) } == 0 {
            self.record().name_len = len;
        } else {
            count(stats::READ_FAILED);
        }
    }

    /// Adds the arguments of the task, whose memory is the current one.
    #[inline(always)]
    pub fn arguments(&mut self, task: Task) {
        let (start, end) = task.arguments();
        let all = end.wrapping_sub(start);
        let len = if all > limits::ARGV as u64 {
            self.record().state |= state::ARGV_TRUNCATED;
            limits::ARGV as u64
        } else {
            all
        };
        let data = unsafe { &raw mut (*self.0).data }.cast();
        if unsafe { bpf_probe_read_user(data, len as u32, start as *const _) } == 0 {
            self.record().name_len = len as u32;
        } else {
            count(stats::READ_FAILED);
        }
    }

    /// Adds the components of a path.
    #[inline(always)]
    pub fn path(&mut self, dentry: impl Entry) {
        let offset = self.record().name_len;
        self.first(components::<_, 0>(self.0, dentry, offset));
    }

    /// The same where that is a working directory.
    #[inline(always)]
    pub fn cwd(&mut self, dentry: Dentry) {
        let offset = self.record().name_len;
        self.first(components::<_, 1>(self.0, dentry, offset));
    }

    #[inline(always)]
    fn first(&mut self, len: u64) {
        let record = self.record();
        record.path_len = len as u32;
        record.state |= (len >> 32) as u32;
    }

    /// Adds the components of the second path.
    #[inline(always)]
    pub fn second_path(&mut self, dentry: impl Entry) {
        let record = self.record();
        let offset = record.name_len + record.path_len;
        let len = components::<_, 1>(self.0, dentry, offset);
        self.record().second_len = len as u32;
    }

    /// Gives the record its number and puts it into the ring that its verdict belongs to. Gives back the number, 0 where
    /// the ring was full.
    #[inline(always)]
    pub fn submit(self, subject: &Subject) -> u64 {
        put(self.0, subject.session.cast())
    }

    /// The same of an action that those like it are folded into from now on.
    #[inline(always)]
    pub fn submit_first(mut self, subject: &Subject, key: &FoldKey, seal: u64) {
        let record = self.record();
        record.state |= state::FOLDED;
        let at_ns = record.ktime;
        let seq = self.submit(subject);
        remember(key, seq, seal, at_ns);
    }

    /// A record that is not an event: not numbered, and in no session's account.
    #[inline(always)]
    pub fn submit_unnumbered(self) {
        put(self.0, ptr::null_mut());
    }
}

/// Writes path components, leaf first, at `offset` of the data: those of the directory as they were written last, where it is the same.
/// Gives back their length, and state bits above bit 32.
#[inline(never)]
fn components<E: Entry, const WAY: usize>(scratch: *mut Scratch, dentry: E, offset: u32) -> u64 {
    if !E::IS_DISTINCT {
        return climb(scratch, dentry, offset);
    }
    let directory = dentry.parent();
    let moves = kernel::moves().unwrap_or(1);
    if moves & 1 != 0 || directory.address() == dentry.address() {
        return climb(scratch, dentry, offset);
    }
    let data = unsafe { &raw mut (*scratch).data }.cast::<u8>();
    let offset = u64::from(offset);
    if offset > (limits::DATA - limits::NAME) as u64 {
        return u64::from(state::PATH_TRUNCATED) << 32;
    }
    // SAFETY: at most NAME bytes below the end of the data.
    let len = unsafe { component(data.add(offset as usize), dentry) };
    // The verifier is to see both limits.
    let begin = black_box(offset + len as u64);
    if len <= 0 || len > limits::NAME as i64 || begin > (limits::DATA - limits::WAY) as u64 {
        count(stats::READ_FAILED);
        return u64::from(state::PATH_TRUNCATED) << 32;
    }
    // SAFETY: the slot is ours.
    let way = unsafe { &mut (*scratch).ways[WAY] };
    let mut difference = u64::from(way.moves ^ moves);
    for (word, asked) in directory.distinction().into_iter().enumerate() {
        // SAFETY: words of the slot.
        unsafe {
            (&raw mut way.asked[word]).write_volatile(asked);
            difference |= (&raw const way.asked[word]).read_volatile() ^ way.of[word];
        }
    }
    let known = way.len & (limits::WAY - 1) as u32;
    if difference == 0 && known != 0 {
        // SAFETY: at most WAY bytes below the end of the data.
        unsafe {
            let to = data.add(begin as usize);
            bpf_probe_read_kernel(to.cast(), known, (&raw const way.names).cast());
        }
        return len as u64 + u64::from(known);
    }
    let rest = climb(scratch, directory, begin as u32);
    // Nothing was left out, and nothing was moved meanwhile.
    if rest < limits::WAY as u64 && kernel::moves() == Some(moves) {
        way.of = way.asked;
        way.moves = moves;
        way.len = rest as u32;
        // SAFETY: at most WAY bytes of both.
        unsafe {
            let from = data.add(begin as usize);
            let to = (&raw mut way.names).cast();
            bpf_probe_read_kernel(to, rest as u32 & (limits::WAY - 1) as u32, from.cast());
        }
    }
    len as u64 + rest
}

/// Writes path components from an entry up to the root of its file system.
#[inline(always)]
fn climb<E: Entry>(scratch: *mut Scratch, dentry: E, offset: u32) -> u64 {
    let data = unsafe { &raw mut (*scratch).data }.cast::<u8>();
    let mut entry = dentry;
    let mut at = u64::from(offset);
    let end = u64::from(offset) + limits::PATH as u64;
    for _ in 0..limits::DEPTH {
        let parent = entry.parent();
        if parent.address() == entry.address() || parent.address() == 0 {
            return at - u64::from(offset);
        }
        if at > end || at > (limits::DATA - limits::NAME) as u64 {
            break;
        }
        // SAFETY: at most NAME bytes below the end of the data.
        let len = unsafe { component(data.add(at as usize), entry) };
        if len <= 0 || len > limits::NAME as i64 {
            count(stats::READ_FAILED);
            break;
        }
        at += len as u64;
        entry = parent;
    }
    (at - u64::from(offset)) | u64::from(state::PATH_TRUNCATED) << 32
}

/// Reads a name and its NUL. Gives back how many bytes that is, or an error.
#[inline(always)]
unsafe fn component<E: Entry>(to: *mut u8, entry: E) -> i64 {
    let sequence = entry.sequence();
    let (name, len) = (entry.name(), entry.name_len() & (limits::NAME - 1) as u32);
    // SAFETY: the caller has room for a name.
    unsafe {
        let error = bpf_probe_read_kernel(to.cast(), len, name as *const _);
        to.add(len as usize).write_volatile(0);
        // Renamed meanwhile, perhaps in the middle: byte by byte it costs more, and ends with a name whatever its length is.
        if error != 0 || sequence & 1 != 0 || entry.sequence() != sequence {
            return bpf_probe_read_kernel_str(
                to.cast(),
                limits::NAME as u32,
                entry.name() as *const _,
            );
        }
    }
    i64::from(len) + 1
}

#[inline(never)]
fn put(scratch: *mut Scratch, session: *mut Session) -> u64 {
    let record = unsafe { &mut (*scratch).record };
    let mut seq = 0;
    if !session.is_null() {
        add64(unsafe { &raw mut (*session).made }, 1);
        seq = add64(unsafe { &raw mut (*session).seq }, 1) + 1;
        record.seq = seq;
    }
    let strings =
        u64::from(record.name_len) + u64::from(record.path_len) + u64::from(record.second_len);
    let strings = if strings > limits::DATA as u64 {
        limits::DATA as u64
    } else {
        strings
    };
    let size = size_of::<Record>() as u64 + strings;
    let urgent = record.verdict == verdict::DENIED
        || record.verdict == verdict::HELD
        || record.verdict == verdict::AUDITED
        || record.verdict == verdict::UNDECIDED;
    let pointer = ptr::from_mut(record).cast();
    let full = if urgent {
        let ring = (&raw const VERDICTS).cast_mut().cast();
        (unsafe { bpf_ringbuf_output(ring, pointer, size, 0) } != 0)
            .then_some(stats::VERDICT_RING_FULL)
    } else {
        let ring = (&raw const BULK).cast_mut().cast();
        // User space looks at the ring at intervals anyway: waking it for each record would cost more than the record. So does waking it
        // again while it is on its way: it is told by the first records behind each eighth.
        let waiting = unsafe { bpf_ringbuf_query(ring, u64::from(BPF_RB_AVAIL_DATA)) };
        let wake = if waiting >= EIGHTH && waiting % EIGHTH < TOLD {
            BPF_RB_FORCE_WAKEUP
        } else {
            BPF_RB_NO_WAKEUP
        };
        (unsafe { bpf_ringbuf_output(ring, pointer, size, u64::from(wake)) } != 0).then_some(
            if session.is_null() {
                stats::FORK_RING_FULL
            } else {
                stats::BULK_RING_FULL
            },
        )
    };
    if let Some(counter) = full {
        count(counter);
        if !session.is_null() {
            add64(unsafe { &raw mut (*session).dropped }, 1);
        }
        seq = 0;
    }
    give_back(scratch);
    seq
}

/// What makes an action the same as another one, for folding.
#[inline(always)]
pub fn key(subject: &Subject, kind: u32, what: u32, verdict: u32, object: [u64; 3]) -> FoldKey {
    let image = if subject.tag.is_null() {
        // Or the compiler makes a loop over bytes of it and of what is zero behind it.
        black_box(0)
    } else {
        unsafe { (*subject.tag).image }
    };
    FoldKey {
        session: subject.number,
        what: what | verdict << 16 | kind << 24,
        image,
        object,
        policy: subject.policy,
        epoch: subject.flags >> flags::EPOCH_SHIFT,
    }
}

/// Whether an action like this one was seen before: then it is counted, and nothing more is to be done.
#[inline(always)]
pub fn fold(subject: &Subject, key: &FoldKey, seal: u64) -> bool {
    fold_into(subject.session, key, seal) != 0
}

/// The fold that stands at a spot, null where none does.
#[inline(always)]
fn find(spot: FoldSpot) -> *mut Fold {
    let Some(marks) = FOLD_MARKS.get_ptr(spot.group) else {
        return ptr::null_mut();
    };
    for place in 0..limits::FOLD_GROUP as u32 {
        // SAFETY: inside the group.
        let mark = unsafe { marks.cast::<u32>().add(place as usize).read_volatile() };
        if mark == spot.mark {
            return entry(spot.group, place);
        }
    }
    ptr::null_mut()
}

#[inline(always)]
fn entry(group: u32, place: u32) -> *mut Fold {
    FOLDS
        .get_ptr_mut(group * limits::FOLD_GROUP as u32 + place)
        .unwrap_or(ptr::null_mut())
}

/// A function of its own: what comes behind it is verified once, and not for each way through it.
#[inline(never)]
fn fold_into(session: *mut Session, key: &FoldKey, seal: u64) -> u32 {
    let entry = find(key.spot());
    if entry.is_null() {
        return 0;
    }
    // SAFETY: an entry of a map.
    unsafe {
        if (*entry).key.difference(key) != 0 {
            return 0;
        }
        (&raw mut (*entry).seal).write_volatile(seal);
        (&raw mut (*entry).at_ns).write_volatile(bpf_ktime_get_boot_ns());
        (&raw mut (*entry).at_tick).write_volatile(bpf_jiffies64());
    }
    add(session, entry);
    1
}

/// What is known of an action by the fold of those like it.
pub mod before {
    /// There was none.
    pub const NEVER: u32 = 0;
    /// It was allowed, and nothing has changed since: it is counted, and there is nothing to decide.
    pub const SAME: u32 = 1;
    /// It has to be decided again.
    pub const OTHER: u32 = 2;
}

/// Counts an action where one like it was allowed and nothing has changed since.
#[inline(always)]
pub fn fold_as_before(subject: &Subject, key: &FoldKey, seal: u64) -> u32 {
    let entry = find(key.spot());
    if entry.is_null() {
        return before::NEVER;
    }
    // SAFETY: an entry of a map.
    let (difference, kept) = unsafe {
        (
            (*entry).key.difference(key),
            (&raw const (*entry).seal).read_volatile(),
        )
    };
    // One branch for both, because behind each the verifier follows what comes for itself: another action of the same digest is decided
    // again, too.
    if black_box(difference | (kept ^ seal)) != 0 {
        return before::OTHER;
    }
    add(subject.session, entry);
    before::SAME
}

#[inline(always)]
fn add(session: *mut Session, entry: *mut Fold) {
    add64(unsafe { &raw mut (*entry).count }, 1);
    unsafe { (&raw mut (*entry).last_tick).write_volatile(bpf_jiffies64()) };
    add64(unsafe { &raw mut (*session).made }, 1);
    add64(unsafe { &raw mut (*session).folded }, 1);
}

/// Lets further actions like this one be folded into the event `seq`. A function of its own, for its share of the stack.
#[inline(never)]
fn remember(key: &FoldKey, seq: u64, seal: u64, at_ns: u64) -> u32 {
    if seq == 0 {
        return 0;
    }
    let spot = key.spot();
    let Some(marks) = FOLD_MARKS.get_ptr_mut(spot.group) else {
        return 0;
    };
    for place in 0..limits::FOLD_GROUP as u32 {
        // SAFETY: inside the group.
        let mark = unsafe { marks.cast::<u32>().add(place as usize) };
        let found = unsafe { mark.read_volatile() };
        // Another processor was first, or an action of the same mark: then this event stands beside it, and nothing is lost.
        if found == spot.mark {
            return 0;
        }
        if found == fold_mark::FREE && replace32(mark, fold_mark::FREE, fold_mark::TAKEN) {
            let entry = entry(spot.group, place);
            if entry.is_null() {
                return 0;
            }
            // SAFETY: an entry of a map, which is nobody else's before it has its mark.
            unsafe {
                memory::copy(key, &raw mut (*entry).key);
                let now = bpf_jiffies64();
                (*entry).count = 0;
                (*entry).at_ns = at_ns;
                (*entry).at_tick = now;
                (*entry).last_tick = now;
                (*entry).seq = seq;
                (*entry).seal = seal;
            }
            swap32(mark, spot.mark);
            return 0;
        }
    }
    count(stats::FOLD_FULL);
    0
}
