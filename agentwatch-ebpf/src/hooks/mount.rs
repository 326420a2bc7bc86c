//! Mounts: what is done at them is a session's own affair where the host sees none of it.

use core::ffi::c_void;

use agentwatch_common::policy::guard;
use aya_ebpf::{helpers::generated::bpf_loop, macros::lsm, programs::LsmContext};

use super::guard::decide;
use crate::{
    kernel::{self, MountAt, PathAt, SuperBlockAt, Task},
    maps::HOST,
    session::Subject,
};

#[inline(always)]
pub fn in_the_hosts_mounts() -> bool {
    let (number, _) = Task::current().mount_namespace();
    is_hosts(number)
}

/// Whether a mount namespace is the host's; what is not known is.
#[inline(always)]
fn is_hosts(number: u32) -> bool {
    HOST.get(0)
        .is_none_or(|host| host.mount_namespace == 0 || host.mount_namespace == number)
}

/// Whether a change at a mount would be seen by the host: in the host's own mounts, and in a copy of them whose changes go back.
#[inline(always)]
fn host_would_see(mount: MountAt) -> bool {
    let (number, hosts) = Task::current().mount_namespace();
    is_hosts(number) || (hosts && mount.is_shared())
}

#[lsm(hook = "sb_mount")]
pub fn sb_mount(ctx: LsmContext) -> i32 {
    const MS_REMOUNT: u64 = 32;
    const MS_BIND: u64 = 4096;
    const MS_SHARED: u64 = 1 << 20;
    /// `MS_UNBINDABLE`, `MS_PRIVATE`, `MS_SLAVE`: what keeps changes from the host.
    const APART: u64 = 7 << 17;
    let Some(subject) = Subject::current() else {
        return 0;
    };
    let path = PathAt(ctx.arg(1));
    let flags: u64 = ctx.arg(3);
    let task = Task::current();
    let (number, _) = task.mount_namespace();
    // In this order does the kernel look at them.
    let remounts = flags & MS_REMOUNT != 0;
    let spreads = !remounts && flags & MS_BIND == 0 && flags & (APART | MS_SHARED) != 0;
    // By a descriptor, of a mount in another namespace: with its owner's rights, and before 6.16 without.
    let elsewhere = spreads && path.mount().namespace() != task.mounts();
    let apart = remounts || (spreads && flags & APART != 0);
    if !is_hosts(number) && !elsewhere && (apart || !host_would_see(path.mount())) {
        return 0;
    }
    decide(&subject, guard::MOUNT, 0, flags, path.dentry().0, true)
}

#[lsm(hook = "move_mount")]
pub fn move_mount(ctx: LsmContext) -> i32 {
    let Some(subject) = Subject::current() else {
        return 0;
    };
    let path = PathAt(ctx.arg(1));
    let mount = path.mount();
    // At the root of a mount it may be put beneath that.
    let beneath = mount.root() == path.dentry().0 && host_would_see(mount.parent());
    if !host_would_see(mount) && !beneath {
        return 0;
    }
    decide(&subject, guard::MOUNT, 0, 0, path.dentry().0, true)
}

/// By force it ends what others do on the file system, wherever they have it mounted. Detached, it goes with all that is mounted below.
#[lsm(hook = "sb_umount")]
pub fn sb_umount(ctx: LsmContext) -> i32 {
    const MNT_FORCE: u32 = 1;
    const MNT_DETACH: u32 = 2;
    let Some(subject) = Subject::current() else {
        return 0;
    };
    let vfsmount: u64 = ctx.arg(0);
    let flags: u32 = ctx.arg(1);
    let forces = flags & MNT_FORCE != 0
        && !crate::verdict::is_own(kernel::super_block_of(vfsmount), subject.number);
    let mount = MountAt::of_vfsmount(vfsmount);
    let below = flags & MNT_DETACH != 0 && host_would_see_below(mount);
    if !forces && !below && !host_would_see(mount.parent()) {
        return 0;
    }
    decide(&subject, guard::MOUNT, 0, u64::from(flags), 0, true)
}

/// Mounts below one that are looked at; where there are more, the host may see it.
const MOST_MOUNTS: u32 = 65_536;

/// A way through the mounts below one, each before those on it.
#[repr(C)]
struct Below {
    top: u64,
    at: u64,
    /// Whether the mounts on this one have been seen.
    rises: u32,
    found: u32,
    done: u32,
}

/// Whether the host would see that what is mounted below a mount goes.
#[inline(always)]
fn host_would_see_below(mount: MountAt) -> bool {
    let (number, hosts) = Task::current().mount_namespace();
    if !hosts {
        return is_hosts(number);
    }
    let mut below = Below {
        top: mount.0,
        at: mount.0,
        rises: 0,
        found: 0,
        done: 0,
    };
    // SAFETY: the function has the shape that the kernel calls.
    unsafe {
        bpf_loop(
            MOST_MOUNTS,
            go_below as *mut c_void,
            (&raw mut below).cast(),
            0,
        )
    };
    below.found != 0 || below.done == 0
}

extern "C" fn go_below(_index: u32, context: *mut c_void) -> i64 {
    // SAFETY: the context that `host_would_see_below` gave.
    let below = unsafe { &mut *context.cast::<Below>() };
    let mount = MountAt(below.at);
    if below.rises == 0
        && let Some(child) = mount.first_child()
    {
        if mount.is_shared() {
            below.found = 1;
            return 1;
        }
        below.at = child.0;
        return 0;
    }
    if below.at == below.top {
        below.done = 1;
        return 1;
    }
    if let Some(next) = mount.next_sibling() {
        below.at = next.0;
        below.rises = 0;
    } else {
        below.at = mount.parent().0;
        below.rises = 1;
    }
    0
}

#[lsm(hook = "sb_pivotroot")]
pub fn sb_pivotroot(_ctx: LsmContext) -> i32 {
    let Some(subject) = Subject::current() else {
        return 0;
    };
    if !in_the_hosts_mounts() {
        return 0;
    }
    decide(&subject, guard::MOUNT, 0, 0, 0, true)
}

/// Other options for a whole file system: for one's own only.
#[lsm(hook = "sb_remount")]
pub fn sb_remount(ctx: LsmContext) -> i32 {
    let Some(subject) = Subject::current() else {
        return 0;
    };
    if crate::verdict::is_own(SuperBlockAt(ctx.arg(0)), subject.number) {
        return 0;
    }
    decide(&subject, guard::MOUNT, 0, 0, 0, true)
}

/// Where a file system comes from is being said, which is before it is looked at: one that reaches devices or other hosts is not
/// the session's to mount.
#[lsm(hook = "fs_context_parse_param")]
pub fn fs_context_parse_param(ctx: LsmContext) -> i32 {
    let Some(subject) = Subject::current() else {
        return 0;
    };
    let (context, parameter): (u64, u64) = (ctx.arg(0), ctx.arg(1));
    // What the kernel mounts by itself on the way is the host's affair.
    const MOUNT: u64 = 165;
    const FSCONFIG: u64 = 431;
    let call = kernel::system_call();
    if call != MOUNT && call != FSCONFIG && call != kernel::COMPAT_SYSCALL {
        return 0;
    }
    // Controllers go to a new hierarchy before the mount is asked about.
    if kernel::will_be_harmless(context)
        || !(kernel::is_source(parameter) || kernel::will_be_cgroup1(context))
    {
        return 0;
    }
    // What may be is recorded when it is mounted.
    let outcome = decide(&subject, guard::MOUNT, 0, 0, 0, false);
    if outcome != 0 {
        decide(&subject, guard::MOUNT, 0, 0, 0, true);
    }
    outcome
}

/// The same of a file system that has no such thing, or was made by the kernel's older ways.
#[lsm(hook = "sb_kern_mount")]
pub fn sb_kern_mount(ctx: LsmContext) -> i32 {
    let Some(subject) = Subject::current() else {
        return 0;
    };
    let super_block = SuperBlockAt(ctx.arg(0));
    if super_block.is_harmless() || super_block.is_kernels() {
        return 0;
    }
    decide(&subject, guard::MOUNT, 0, super_block.magic(), 0, true)
}
