//! Cgroups below a session's own, and the walk over tasks that are there when a session begins.

use core::ffi::c_void;

use aya_ebpf::{bindings::task_struct, macros::btf_tracepoint, programs::BtfTracePointContext};

use crate::{
    kernel::{CgroupAt, Task},
    maps::CGROUPS,
    session,
};

/// A cgroup was made: below a session's, it is the session's.
#[btf_tracepoint(function = "cgroup_mkdir")]
pub fn cgroup_mkdir(ctx: BtfTracePointContext) -> i32 {
    session::inherit_cgroup(CgroupAt(ctx.arg(0)));
    0
}

/// A cgroup was removed.
#[btf_tracepoint(function = "cgroup_rmdir")]
pub fn cgroup_rmdir(ctx: BtfTracePointContext) -> i32 {
    let id = CgroupAt(ctx.arg(0)).id();
    if session::of_cgroup(id) != 0 {
        let _ = CGROUPS.remove(id);
    }
    0
}

/// Called for every task of the host: tags those that are in a session's cgroup already, and takes the census. User space reads the iterator
/// after it has entered the cgroup into the map; whoever forks or enters from then on is tagged by the hooks of process.rs.
#[unsafe(link_section = "iter/task")]
#[unsafe(no_mangle)]
pub extern "C" fn tag_tasks(ctx: *mut c_void) -> i32 {
    // struct bpf_iter__task: a pointer to the iterator's own state, then the task, null at the end.
    let task = unsafe { ctx.cast::<*mut task_struct>().add(1).read_volatile() };
    if task.is_null() {
        return 0;
    }
    let number = session::of_cgroup(Task(task).cgroup());
    if number != 0 && !Task(task).is_exiting() {
        session::tag(task, number, 0);
    }
    session::count_in_census(task);
    0
}
