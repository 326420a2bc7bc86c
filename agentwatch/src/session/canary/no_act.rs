//! The LSM programs that the canary has no act for, by the reason. Together with the acts they are all that there are: a hook that is
//! added gets an act, or a place here.

use std::collections::BTreeSet;

use super::ACTS;
use crate::kernel::load::{cgroup_programs, lsm_programs};

const NO_ACT: &[(&str, &[&str])] = &[
    (
        "it enters whose something is, and refuses at most what there is no room for",
        &[
            "task_alloc",
            "socket_post_create",
            "socket_bind",
            "file_set_fowner",
            "file_fcntl",
            "sb_alloc_security",
            "shm_alloc_security",
            "sem_alloc_security",
            "msg_queue_alloc_security",
        ],
    ),
    (
        "it forgets what is gone, and refuses nothing",
        &[
            "sb_free_security",
            "key_free",
            "shm_free_security",
            "sem_free_security",
            "msg_queue_free_security",
        ],
    ),
    (
        "it notes what an execution began with, for others to decide",
        &["bprm_creds_for_exec"],
    ),
    (
        "it refuses only what waits for a person, and the canary waits for none",
        &["socket_connect", "task_kill_held", "ptrace_held"],
    ),
    (
        "what it refuses is left out, and nobody is given an error",
        &["file_send_sigiotask"],
    ),
    (
        "besides a key that there is no room for it refuses a request that starts a program of the host's, as what comes through would",
        &["key_alloc"],
    ),
    (
        "what comes through could give the daemon another keyring",
        &["cred_alloc_blank"],
    ),
    (
        "what comes through makes the daemon the canary's tracer",
        &["ptrace_traceme"],
    ),
    (
        "`ptrace_access_check` is asked first, and refuses",
        &["task_movememory"],
    ),
    ("`capable` is asked first, and refuses", &["sb_pivotroot"]),
    (
        "in the host's mounts, where the canary is, `capable` or `sb_mount` is asked first, and refuses",
        &[
            "move_mount",
            "sb_umount",
            "sb_remount",
            "fs_context_parse_param",
            "sb_kern_mount",
        ],
    ),
    (
        "what would be made for it outlives a canary that is killed",
        &["sem_semctl", "msg_queue_msgctl", "tun_dev_open"],
    ),
    (
        "only a program of 32 bits comes to it",
        &["file_ioctl_compat"],
    ),
    (
        "not tried, though it could be",
        &[
            "socket_receive",
            "unix_may_send",
            "uring_override_creds",
            "inode_set_acl",
            "inode_remove_acl",
            "inode_file_setattr",
        ],
    ),
];

/// Names, each of them once.
fn set<'a>(names: impl Iterator<Item = &'a str>) -> BTreeSet<&'a str> {
    let mut set = BTreeSet::new();
    for name in names {
        assert!(set.insert(name), "{name} stands there twice");
    }
    set
}

#[test]
fn acts_and_reasons_are_the_programs_that_decide() {
    let by_lsm = ACTS.iter().filter(|act| !act.by_cgroup);
    let reasons = NO_ACT.iter().flat_map(|(_, names)| names.iter().copied());
    assert_eq!(
        set(by_lsm.map(|act| act.hook).chain(reasons)),
        set(lsm_programs())
    );
    let by_cgroup = ACTS.iter().filter(|act| act.by_cgroup);
    assert_eq!(set(by_cgroup.map(|act| act.hook)), set(cgroup_programs()));
}
