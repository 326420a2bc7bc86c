//! What is attached where: each program of the object stands here, once. A hook is added by a line in one of these tables.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

/// Programs of every kernel: `tp_btf`, with the tracepoint.
pub(super) const TRACEPOINTS: [(&str, &str); 10] = [
    ("task_newtask", "task_newtask"),
    ("cgroup_attach_task", "cgroup_attach_task"),
    // In the order in which they are called.
    ("exec_judge", "sched_process_exec"),
    ("exec_judge_again", "sched_process_exec"),
    ("sched_process_exec", "sched_process_exec"),
    ("sched_process_exec_again", "sched_process_exec"),
    ("sched_process_exit", "sched_process_exit"),
    ("sched_process_exit_again", "sched_process_exit"),
    ("cgroup_mkdir", "cgroup_mkdir"),
    ("cgroup_rmdir", "cgroup_rmdir"),
];

/// Suffix of a backup program. Since 7.0 a tracepoint program can be preempted, and the kernel then skips it for the next task on that
/// processor; the backup does the skipped work. Attached only from 7.0 on.
pub(super) const AGAIN: &str = "_again";
pub(super) const PREEMPTIBLE: (u8, u8) = (7, 0);

/// Stops a command that waits and was told to go on: where no LSM program refuses the signal, and where one looked at it before there
/// was anything to refuse. Every page fault of the host passes it, so it is attached when a policy first lets commands wait.
pub(super) const PAGE_FAULT: &str = "page_fault_user";

/// Stands last among a hook's programs where a kernel need not have the hook.
pub(super) const ABSENT: &str = "?";

/// LSM hooks: the program's names, any of which will do (a kernel takes the one that fits its signature), and the
/// hook.
pub(super) const LSM: [(&[&str], &str); 74] = [
    (&["task_alloc"], "task_alloc"),
    (&["bprm_creds_for_exec"], "bprm_creds_for_exec"),
    (&["file_open"], "file_open"),
    (&["inode_create"], "inode_create"),
    (&["inode_mkdir"], "inode_mkdir"),
    (&["inode_mknod"], "inode_mknod"),
    (&["inode_symlink"], "inode_symlink"),
    (&["inode_unlink"], "inode_unlink"),
    (&["inode_rmdir"], "inode_rmdir"),
    (&["inode_rename"], "inode_rename"),
    (&["inode_link"], "inode_link"),
    (&["inode_setattr_idmap", "inode_setattr"], "inode_setattr"),
    (&["inode_setxattr"], "inode_setxattr"),
    (&["inode_removexattr"], "inode_removexattr"),
    (&["file_ioctl"], "file_ioctl"),
    (&["mmap_file"], "mmap_file"),
    (&["file_mprotect"], "file_mprotect"),
    (&["file_receive"], "file_receive"),
    (&["socket_receive"], "file_receive"),
    (&["path_notify"], "path_notify"),
    (&["socket_create"], "socket_create"),
    (&["socket_post_create"], "socket_post_create"),
    (&["socket_bind"], "socket_bind"),
    (&["socket_connect"], "socket_connect"),
    (&["socket_listen"], "socket_listen"),
    (&["socket_accept"], "socket_accept"),
    (&["unix_stream_connect"], "unix_stream_connect"),
    (&["unix_may_send"], "unix_may_send"),
    (&["ptrace_access_check"], "ptrace_access_check"),
    (&["ptrace_traceme"], "ptrace_traceme"),
    (&["task_kill"], "task_kill"),
    (&["task_kill_held"], "task_kill"),
    (&["ptrace_held"], "ptrace_access_check"),
    (&["file_send_sigiotask"], "file_send_sigiotask"),
    (&["file_set_fowner"], "file_set_fowner"),
    (&["file_fcntl"], "file_fcntl"),
    (&["cred_alloc_blank"], "cred_alloc_blank"),
    (&["task_setnice"], "task_setnice"),
    (&["task_setioprio"], "task_setioprio"),
    (&["task_setscheduler"], "task_setscheduler"),
    (&["task_movememory"], "task_movememory"),
    (&["task_setrlimit"], "task_setrlimit"),
    (&["bpf"], "bpf"),
    (&["perf_event_open"], "perf_event_open"),
    (&["uring_override_creds"], "uring_override_creds"),
    (&["tun_dev_open"], "tun_dev_open"),
    (&["syslog"], "syslog"),
    (&["capable"], "capable"),
    (&["sb_mount"], "sb_mount"),
    (&["move_mount"], "move_mount"),
    (&["sb_umount"], "sb_umount"),
    (&["sb_pivotroot"], "sb_pivotroot"),
    (&["sb_remount"], "sb_remount"),
    (&["fs_context_parse_param"], "fs_context_parse_param"),
    (&["sb_kern_mount"], "sb_kern_mount"),
    (&["sb_alloc_security"], "sb_alloc_security"),
    (&["sb_free_security"], "sb_free_security"),
    (&["key_alloc"], "key_alloc"),
    // Since 6.13 there is none: what stands for a key that is gone means nothing until there is another at its place.
    (&["key_free", ABSENT], "key_free"),
    (&["key_permission"], "key_permission"),
    (&["shm_alloc_security"], "shm_alloc_security"),
    (&["sem_alloc_security"], "sem_alloc_security"),
    (&["msg_queue_alloc_security"], "msg_queue_alloc_security"),
    (&["shm_free_security"], "shm_free_security"),
    (&["sem_free_security"], "sem_free_security"),
    (&["msg_queue_free_security"], "msg_queue_free_security"),
    (&["ipc_permission"], "ipc_permission"),
    (&["shm_shmctl"], "shm_shmctl"),
    (&["sem_semctl"], "sem_semctl"),
    (&["msg_queue_msgctl"], "msg_queue_msgctl"),
    // On kernels that have not got them, others decide the same operations.
    (&["inode_set_acl", ABSENT], "inode_set_acl"),
    (&["inode_remove_acl", ABSENT], "inode_remove_acl"),
    (&["file_ioctl_compat", ABSENT], "file_ioctl_compat"),
    // Before 6.17 there is no such system call.
    (&["inode_file_setattr", ABSENT], "inode_file_setattr"),
];

/// The outcome of every look-up, for kernels where an open that failed does not show what it was about: the program, and the function's
/// names, newest first. Renamed between 6.12 and 7.2.
pub(super) const LOOK_UP: (&str, &[&str]) = ("do_filp_open", &["do_file_open", "do_filp_open"]);

/// What shows a failed open, and the outcomes of what does not pass it.
pub(super) const FAILED_OPEN: &str = "put_unused_fd";
pub(super) const FAILED: [(&str, &[&str]); 2] = [
    ("do_open_execat", &["do_open_execat"]),
    ("io_openat2_end", &["io_openat2"]),
];
pub(super) const URING_OPEN: &str = "io_openat2";

/// Outcomes of connects and the like, where LSM programs work.
pub(super) const FEXIT: [(&str, &[&str]); 3] = [
    ("sys_connect_file", &["__sys_connect_file"]),
    ("udp_sendmsg", &["udp_sendmsg"]),
    ("udpv6_sendmsg", &["udpv6_sendmsg"]),
];

/// System-call tracepoints, where they do not: a program, and the system calls whose beginning (`sys_enter_…`) or end
/// (`sys_exit_…`) it sees.
pub(super) const SYSCALLS: &[(&str, &[&str])] = &[
    ("sys_enter_open", &["open"]),
    ("sys_enter_creat", &["creat"]),
    ("sys_enter_openat", &["openat"]),
    ("sys_enter_openat2", &["openat2"]),
    ("sys_exit_open", &["open", "creat", "openat", "openat2"]),
    ("sys_enter_execve", &["execve"]),
    ("sys_enter_execveat", &["execveat"]),
    ("sys_exit_exec", &["execve", "execveat"]),
    ("sys_enter_connect", &["connect"]),
    ("sys_exit_connect", &["connect"]),
    ("sys_exit_send", &["sendto", "sendmsg"]),
    ("sys_enter_mkdir", &["mkdir"]),
    ("sys_enter_mkdirat", &["mkdirat"]),
    ("sys_enter_mknod", &["mknod"]),
    ("sys_enter_mknodat", &["mknodat"]),
    ("sys_enter_symlink", &["symlink"]),
    ("sys_enter_symlinkat", &["symlinkat"]),
    ("sys_enter_unlink", &["unlink"]),
    ("sys_enter_unlinkat", &["unlinkat"]),
    ("sys_enter_rmdir", &["rmdir"]),
    ("sys_enter_rename", &["rename", "link"]),
    ("sys_enter_renameat", &["renameat", "renameat2", "linkat"]),
    (
        "sys_exit_create",
        &[
            "mkdir",
            "mkdirat",
            "mknod",
            "mknodat",
            "symlink",
            "symlinkat",
        ],
    ),
    ("sys_exit_delete", &["unlink", "unlinkat", "rmdir"]),
    ("sys_exit_rename", &["rename", "renameat", "renameat2"]),
    ("sys_exit_link", &["link", "linkat"]),
];

/// Socket programs. They stand on the root of all cgroups and decide for sessions only, because a process of a session
/// that leaves its cgroup is still one of the session's.
pub(super) const CGROUP: [&str; 6] = [
    "connect4", "connect6", "sendmsg4", "sendmsg6", "bind4", "bind6",
];

/// Runs when it is read, and is never attached: tags tasks that are there already.
pub(super) const TASKS: &str = "tag_tasks";

/// All of them, as the object has to have them.
fn names() -> impl Iterator<Item = &'static str> {
    fn first<T>(row: &(&'static str, T)) -> &'static str {
        row.0
    }
    let lsm = LSM.iter().flat_map(|(names, _)| names.iter().copied());
    TRACEPOINTS
        .iter()
        .map(first)
        .chain(lsm.filter(|name| *name != ABSENT))
        .chain(FAILED.iter().map(first))
        .chain(FEXIT.iter().map(first))
        .chain(SYSCALLS.iter().map(first))
        .chain(CGROUP)
        .chain([PAGE_FAULT, LOOK_UP.0, FAILED_OPEN, URING_OPEN, TASKS])
}

/// Makes sure that what an object has is what the tables name: a program that none of them does would never be loaded.
pub(super) fn check<'a>(object: impl Iterator<Item = &'a str>) -> Result<()> {
    let tables: BTreeSet<&str> = names().collect();
    let object: BTreeSet<&str> = object.collect();
    let list = |names: &BTreeSet<&str>, others| {
        names
            .difference(others)
            .copied()
            .collect::<Vec<_>>()
            .join(", ")
    };
    let (forgotten, missing) = (list(&object, &tables), list(&tables, &object));
    ensure!(
        forgotten.is_empty(),
        "the object has programs that stand in no table and would never be loaded: {forgotten}; \
         hint: enter them in agentwatch/src/kernel/load/programs.rs"
    );
    ensure!(
        missing.is_empty(),
        "the object lacks programs that stand in a table: {missing}; hint: see agentwatch/src/kernel/load/programs.rs"
    );
    Ok(())
}

/// The LSM programs, of several for one hook the one that the hook is named by.
#[cfg(test)]
pub(crate) fn lsm_programs() -> impl Iterator<Item = &'static str> {
    LSM.iter().filter_map(|(names, _)| {
        let mut named = names.iter().copied().filter(|name| *name != ABSENT);
        named.next_back()
    })
}

#[cfg(test)]
pub(crate) fn cgroup_programs() -> impl Iterator<Item = &'static str> {
    CGROUP.into_iter()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SectionKind, SymbolKind};

    use super::{super::OBJECT, *};

    /// The object's programs: its functions, but for those that they call, which stand in `.text`.
    fn programs() -> Vec<String> {
        let file = object::File::parse(OBJECT).expect("an object");
        let is_program = |symbol: &object::Symbol<'_, '_>| {
            let section = symbol
                .section_index()
                .map(|index| file.section_by_index(index).expect("a symbol's section"));
            symbol.kind() == SymbolKind::Text
                && section.is_some_and(|section| {
                    section.kind() == SectionKind::Text && section.name() != Ok(".text")
                })
        };
        file.symbols()
            .filter(is_program)
            .map(|symbol| symbol.name().expect("a name").to_owned())
            .collect()
    }

    #[test]
    fn every_program_of_the_object_stands_in_exactly_one_table() {
        let mut times: BTreeMap<&str, u32> = BTreeMap::new();
        for name in names() {
            *times.entry(name).or_default() += 1;
        }
        times.retain(|_, times| *times != 1);
        assert!(times.is_empty(), "not once: {times:?}");
        let programs = programs();
        assert!(programs.len() > 100, "{programs:?}");
        check(programs.iter().map(String::as_str)).expect("tables and object agree");
    }

    #[test]
    fn a_program_that_was_forgotten_is_an_error_and_so_is_one_that_is_not_there() {
        let error = check(names().chain(["forgotten"])).expect_err("it is in no table");
        assert!(
            error
                .to_string()
                .contains("no table and would never be loaded: forgotten")
        );
        let error = check(names().filter(|name| *name != "bpf")).expect_err("it is not there");
        assert!(error.to_string().contains("stand in a table: bpf;"));
    }
}
