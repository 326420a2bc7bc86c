//! Loads the programs, attaches what this kernel takes, and says what it does not.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use aya::{
    Btf, Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{Array, MapInfo, PerCpuArray, RingBuf},
    programs::{
        BtfTracePoint, CgroupAttachMode, CgroupSockAddr, FEntry, FExit, Iter, KProbe, Lsm,
        ProgramError, TracePoint,
    },
};
use sha2::{Digest as _, Sha256};

use crate::policy::model::Compiled;

use super::{
    btf, facts,
    maps::{Bound, Maps},
    opens,
    pin::{Attached, Links, Pins},
    probe::{self, Check, State},
    relocate::relocate,
    ring::Ring,
};

/// The object that build.rs made.
pub(super) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/agentwatch-ebpf.o"));

/// What enforces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// LSM hooks decide on files.
    BpfLsm,
    /// Landlock decides on files, for sessions that `run` starts.
    Landlock,
}

/// Programs of every kernel: `tp_btf`, with the tracepoint.
const TRACEPOINTS: [(&str, &str); 10] = [
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

/// Ends the name of a program that does what another has left undone, and is attached only where programs of tracepoints can be
/// preempted: since this kernel, which then leaves out the run of the next task on that processor.
const AGAIN: &str = "_again";
const PREEMPTIBLE: (u8, u8) = (7, 0);

/// Stops a command that waits and was told to go on: where no LSM program refuses the signal, and where one looked at it before there
/// was anything to refuse. Every page fault of the host passes it, so it is attached when a policy first lets commands wait.
const PAGE_FAULT: &str = "page_fault_user";

/// Stands last among a hook's programs where a kernel need not have the hook.
const ABSENT: &str = "?";

/// LSM hooks: the program's names, any of which will do (a kernel takes the one that fits its signature), and the
/// hook.
const LSM: [(&[&str], &str); 75] = [
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
    (&["tun_dev_create"], "tun_dev_create"),
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
    (&["key_free", "?"], "key_free"),
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
    (&["inode_set_acl", "?"], "inode_set_acl"),
    (&["inode_remove_acl", "?"], "inode_remove_acl"),
    (&["file_ioctl_compat", "?"], "file_ioctl_compat"),
    // Before 6.17 there is no such system call.
    (&["inode_file_setattr", "?"], "inode_file_setattr"),
];

/// The outcome of every look-up, for kernels where an open that failed does not show what it was about: the program, and the function's
/// names, newest first. Renamed between 6.12 and 7.2.
const LOOK_UP: (&str, &[&str]) = ("do_filp_open", &["do_file_open", "do_filp_open"]);

/// What shows a failed open, and the outcomes of what does not pass it.
const FAILED_OPEN: &str = "put_unused_fd";
const FAILED: [(&str, &[&str]); 2] = [
    ("do_open_execat", &["do_open_execat"]),
    ("io_openat2_end", &["io_openat2"]),
];
const URING_OPEN: &str = "io_openat2";

/// Outcomes of connects and the like, where LSM programs work.
const FEXIT: [(&str, &[&str]); 3] = [
    ("sys_connect_file", &["__sys_connect_file"]),
    ("udp_sendmsg", &["udp_sendmsg"]),
    ("udpv6_sendmsg", &["udpv6_sendmsg"]),
];

/// System-call tracepoints, where they do not: a program, and the system calls whose beginning (`sys_enter_…`) or end
/// (`sys_exit_…`) it sees.
const SYSCALLS: &[(&str, &[&str])] = &[
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
const CGROUP: [&str; 6] = [
    "connect4", "connect6", "sendmsg4", "sendmsg6", "bind4", "bind6",
];

/// Maps that are pinned: all of them, so that programs of one daemon and the maps of the next are never strangers.
const PINNED: [&str; 28] = [
    "VERDICTS",
    "BULK",
    "SESSIONS",
    "BINDINGS",
    "POLICIES",
    "CENSUS",
    "CGROUPS",
    "PROCESSES",
    "TAGS",
    "PLACES",
    "CHILDREN",
    "NAMES",
    "PREFIXES",
    "COMMANDS",
    "HOLDS",
    "GRANTS",
    "DIRECTORIES",
    "SOCKETS",
    "OBJECTS",
    "OWNERS",
    "HOST",
    "IDENTIFIED",
    "OPENS",
    "URING_OPENS",
    "FOLDS",
    "FOLD_MARKS",
    "SCRATCH",
    "STATS",
];
/// Maps that hold nothing of a session: programs of another version get new ones where theirs differ.
const RENEWED: [&str; 6] = [
    "SCRATCH",
    "STATS",
    "DIRECTORIES",
    "IDENTIFIED",
    "OPENS",
    "URING_OPENS",
];

/// How the programs came to be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// Nothing was there.
    Fresh,
    /// The daemon before had attached the same programs: they were left as they are.
    Adopted,
    /// Other programs were attached: ours took their place on the same maps.
    Replaced,
}

/// Pins a link that was just made, where there is a place for it; else its program keeps it.
macro_rules! keep {
    ($links:expr, $name:expr, $program:expr, $link:expr) => {
        if let Some(links) = $links {
            links.keep($name, $program.take_link($link)?)?;
        }
    };
}

/// The loaded programs.
pub struct Kernel {
    ebpf: Ebpf,
    /// Whether what stops commands that wait is attached.
    commands_wait: bool,
    /// Where the kernel keeps them beyond our life; `None` where it does not.
    pins: Option<Pins>,
    pub taken: Taken,
    pub maps: Maps,
    pub file_backend: Backend,
    pub cgroup_root: PathBuf,
    pub checks: Vec<Check>,
}

/// The types of the running kernel.
fn kernel_types() -> Result<Btf> {
    Btf::from_sys_fs().context("read the kernel's types")
}

/// The rings: verdicts, everything else.
pub struct Rings {
    pub verdicts: Ring,
    pub bulk: Ring,
}

impl Kernel {
    /// Loads and attaches everything that is not a session's own. With pins it takes over what the daemon before has left,
    /// and leaves it in its turn. `kept` is a file for what the kernel's types say, so that they are not read each time.
    pub fn load(pins: Option<Pins>, kept: Option<&Path>) -> Result<(Self, Rings)> {
        match Self::load_on(pins.as_ref(), kept) {
            Ok((mut kernel, rings)) => {
                kernel.pins = pins;
                Ok((kernel, rings))
            }
            Err(error) => {
                // Nothing is left of a start that failed; what the daemon before left stays.
                if let Some(pins) = pins
                    && matches!(pins.attached(), Ok(None))
                {
                    let _ = pins.release();
                }
                Err(error)
            }
        }
    }

    fn load_on(pins: Option<&Pins>, kept: Option<&Path>) -> Result<(Self, Rings)> {
        let cgroup_root = probe::cgroup2().context(
            "no cgroup2 is mounted; hint: mount -t cgroup2 none /sys/fs/cgroup (or /sys/fs/cgroup/unified beside version 1)",
        )?;
        let object = relocate(OBJECT, &facts::facts(Path::new(btf::VMLINUX), kept)?)?;
        // What is written into the programs is part of them: another version of this may write it otherwise.
        let digest = hex::encode(Sha256::digest(&object));
        let before = match pins {
            Some(pins) => pins.attached()?,
            None => None,
        };
        if let (Some(pins), Some(before)) = (pins, &before)
            && before.object != digest
        {
            check_layout(pins, &object)?;
        }
        let place = pins.map(|pins| |name: &str| pins.map(name));
        let mut ebpf = load_object(&object, place)?;
        // One after the other: each who reads the kernel's types holds all of them while it is at work.
        let btf = kernel_types()?;
        let mut checks = vec![Check::new(
            "cgroup",
            State::Active,
            format!("cgroup2 at {}", cgroup_root.display()),
        )];
        // Runs when it is read, and is never attached: everyone loads their own.
        let iterator: &mut Iter = program(&mut ebpf, "tag_tasks")?;
        iterator
            .load("task", &btf)
            .map_err(verifier)
            .context("load tag_tasks")?;

        let adopted = match (pins, &before) {
            (Some(pins), Some(before)) if before.object == digest && pins.is_complete(before) => {
                Some(before.clone())
            }
            _ => None,
        };
        // Sessions of the daemon before may need it.
        let commands_wait = match (pins, &before) {
            (Some(pins), Some(before)) => pins.has(before, PAGE_FAULT),
            _ => false,
        };
        let (file_backend, taken) = match adopted {
            Some(Attached { backend, .. }) => {
                checks.push(match backend {
                    Backend::BpfLsm => Check::new(
                        "bpf-lsm",
                        State::Active,
                        "LSM programs of the daemon before are in force",
                    ),
                    Backend::Landlock => lsm_refusal(&mut ebpf, &btf).unwrap_or_else(|| {
                        Check::new(
                            "bpf-lsm",
                            State::Disabled,
                            "the kernel refused LSM programs when the programs were attached",
                        )
                    }),
                });
                (backend, Taken::Adopted)
            }
            None => {
                let mut links = match pins {
                    Some(pins) => Some(pins.begin()?),
                    None => None,
                };
                let backend = attach(
                    &mut ebpf,
                    &btf,
                    &cgroup_root,
                    commands_wait,
                    &mut links,
                    &mut checks,
                )?;
                if let (Some(pins), Some(links)) = (pins, &links) {
                    pins.complete(links, &digest, backend)?;
                }
                let taken = if before.is_some() {
                    Taken::Replaced
                } else {
                    Taken::Fresh
                };
                (backend, taken)
            }
        };
        let abi = probe::landlock_abi();
        checks.push(if abi > 0 {
            Check::new("landlock", State::Active, format!("ABI {abi}"))
        } else {
            Check::new(
                "landlock",
                State::Absent,
                "the kernel has no Landlock, or it is not in the lsm= list",
            )
            .hint("add landlock to lsm= on the kernel's command line")
        });

        drop(btf);
        let verdicts = ring(&mut ebpf, "VERDICTS")?;
        let bulk = ring(&mut ebpf, "BULK")?;
        let maps = Maps::take(&mut ebpf, file_backend == Backend::BpfLsm)?;
        let kernel = Self {
            ebpf,
            pins: None,
            commands_wait,
            taken,
            maps,
            file_backend,
            cgroup_root,
            checks,
        };
        Ok((kernel, Rings { verdicts, bulk }))
    }

    /// Puts a policy into the kernel: see [`Maps::insert_policy`]. What only its rules need is attached first.
    pub fn insert_policy(
        &mut self,
        number: u32,
        policy: &Compiled,
        cgroup: Option<&Path>,
    ) -> Result<Bound> {
        if policy.commands_wait() && !self.commands_wait {
            self.stop_commands().context(
                "commands cannot be made to wait on this kernel; hint: no `approve` under [exec]",
            )?;
        }
        self.maps.insert_policy(number, policy, cgroup)
    }

    /// Attaches what stops a command that waits and was told to go on.
    fn stop_commands(&mut self) -> Result<()> {
        let mut links = match &self.pins {
            Some(pins) => Some(pins.resume()?),
            None => None,
        };
        // Read again: kept from the start on it would be most of the daemon's memory.
        let btf = kernel_types()?;
        attach_tracepoint(&mut self.ebpf, &btf, PAGE_FAULT, PAGE_FAULT, &mut links)?;
        // It stops what runs from here on, whatever becomes of the note.
        self.commands_wait = true;
        if let (Some(pins), Some(links)) = (&self.pins, &links) {
            pins.extend(links)?;
        }
        Ok(())
    }

    /// Whether sessions go on without a daemon.
    pub fn outlives_us(&self) -> bool {
        self.pins.is_some()
    }

    /// The last number that was given out, where the pins know one.
    pub fn last_number(&self) -> Option<u32> {
        self.pins.as_ref()?.last_number()
    }

    /// Writes down that a number was given out: none is given twice while the programs stay loaded.
    pub fn set_last_number(&self, number: u32) -> Result<()> {
        self.pins
            .as_ref()
            .map_or(Ok(()), |pins| pins.set_last_number(number))
    }

    /// Tags every task that is in a session's cgroup already, and counts the live tasks of each session.
    pub fn census(&mut self) -> Result<()> {
        self.maps.clear_census()?;
        let iterator: &mut Iter = program(&mut self.ebpf, "tag_tasks")?;
        let link = iterator.attach().context("attach the task iterator")?;
        let mut tasks = iterator
            .take_link(link)?
            .into_file()
            .context("open the task iterator")?;
        std::io::copy(&mut tasks, &mut std::io::sink()).context("walk the host's tasks")?;
        Ok(())
    }

    /// The programs' counters by name.
    pub fn counters(&self) -> Result<BTreeMap<String, u64>> {
        let stats: PerCpuArray<_, u64> =
            PerCpuArray::try_from(self.ebpf.map("STATS").context("map STATS")?)?;
        agentwatch_common::stats::NAMES
            .iter()
            .zip(0..)
            .map(|(name, index)| {
                let sum = stats
                    .get(&index, 0)
                    .with_context(|| format!("read counter {name}"))?
                    .iter()
                    .sum();
                Ok(((*name).to_owned(), sum))
            })
            .collect()
    }

    /// How many instructions the verifier walked for each loaded program: what is left to its limit of a million.
    pub fn verified(&self) -> BTreeMap<String, u32> {
        self.ebpf
            .programs()
            .filter_map(|(name, program)| {
                Some((
                    name.to_owned(),
                    program.info().ok()?.verified_instruction_count()?,
                ))
            })
            .collect()
    }

    /// How often each program ran, and for how many nanoseconds together: only while `kernel.bpf_stats_enabled` is set.
    pub fn costs(&self) -> BTreeMap<String, (u64, u64)> {
        self.ebpf
            .programs()
            .filter_map(|(name, program)| {
                let info = program.info().ok()?;
                let nanoseconds = u64::try_from(info.run_time().as_nanos()).unwrap_or(u64::MAX);
                (info.run_count() > 0).then(|| (name.to_owned(), (info.run_count(), nanoseconds)))
            })
            .collect()
    }

    /// Whether system-call tracepoints do the tracing, because the kernel refuses LSM programs.
    pub fn traces_by_syscall(&self) -> bool {
        self.file_backend == Backend::Landlock
    }

    /// What enforces here, by the names that events and `doctor` use.
    pub fn backends(&self) -> Vec<String> {
        let files = match self.file_backend {
            Backend::BpfLsm => Some("bpf-lsm"),
            Backend::Landlock => (probe::landlock_abi() > 0).then_some("landlock"),
        };
        files
            .into_iter()
            .chain(["cgroup"])
            .map(str::to_owned)
            .collect()
    }
}

/// What no session needs goes with the daemon.
impl Drop for Kernel {
    fn drop(&mut self) {
        let Some(pins) = &self.pins else { return };
        if !self.maps.sessions().is_empty() {
            tracing::info!(pins = %pins.dir().display(), "the sessions stay in force");
        } else if let Err(error) = pins.release() {
            tracing::error!(
                error = format!("{error:#}"),
                "the programs stay in the kernel"
            );
        }
    }
}

/// `place` says where each map is pinned; one that is there already is used as it is.
fn load_object(object: &[u8], place: Option<impl Fn(&str) -> PathBuf>) -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    loader
        // It has read the kernel's types, for relocations of which the object has none.
        .btf(None)
        .allow_unsupported_maps()
        .verifier_log_level(VerifierLogLevel::STATS);
    let rename_lock = probe::symbol("rename_lock");
    loader.override_global("RENAME_LOCK", &rename_lock, false);
    if let Some(place) = place {
        for name in PINNED {
            loader.map_pin_path(name, place(name));
        }
    }
    let ebpf = loader.load(object).context(
        "load the programs' maps into the kernel; hint: this needs root with CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN, CAP_SYS_ADMIN",
    )?;
    // Constants of the object itself begin with a dot.
    for (name, _) in ebpf.maps() {
        anyhow::ensure!(
            name.starts_with('.') || PINNED.contains(&name),
            "map {name} is not among those that are pinned (agentwatch/src/kernel/load.rs)"
        );
    }
    Ok(ebpf)
}

/// Makes sure that our programs can work on the maps of other ones.
fn check_layout(pins: &Pins, object: &[u8]) -> Result<()> {
    let trial = pins.trial()?;
    load_object(object, Some(|name: &str| trial.map(name)))?;
    let shape = |path: PathBuf| {
        let info = MapInfo::from_pin(&path)
            .with_context(|| format!("look at the map {}", path.display()))?;
        anyhow::Ok((
            info.map_type().ok(),
            info.key_size(),
            info.value_size(),
            info.max_entries(),
            info.map_flags(),
        ))
    };
    for name in PINNED {
        // A map that only one of the two has is no obstacle.
        let (theirs, ours) = (pins.map(name), trial.map(name));
        if !theirs.exists() || !ours.exists() || shape(theirs)? == shape(ours)? {
            continue;
        }
        anyhow::ensure!(
            RENEWED.contains(&name),
            "the programs in the kernel are another version's and keep {name} in another form: they hold their sessions on, \
             and this version cannot take them over; hint: `agentwatch release` ends the sessions, then start the daemon again"
        );
        pins.forget_map(name)?;
    }
    Ok(())
}

/// Attaches everything, and pins each link where there is a place for it.
fn attach(
    ebpf: &mut Ebpf,
    btf: &Btf,
    cgroup_root: &Path,
    commands_wait: bool,
    links: &mut Option<Links>,
    checks: &mut Vec<Check>,
) -> Result<Backend> {
    let preemptible = probe::release() >= PREEMPTIBLE;
    for (name, tracepoint) in TRACEPOINTS {
        if preemptible || !name.ends_with(AGAIN) {
            attach_tracepoint(ebpf, btf, name, tracepoint, links)?;
        }
    }
    if commands_wait {
        attach_tracepoint(ebpf, btf, PAGE_FAULT, PAGE_FAULT, links)?;
    }
    let root =
        File::open(cgroup_root).with_context(|| format!("open {}", cgroup_root.display()))?;
    for name in CGROUP {
        let program: &mut CgroupSockAddr = program(ebpf, name)?;
        program
            .load()
            .map_err(verifier)
            .with_context(|| format!("load {name}"))?;
        // A link stands beside others by itself: the kernel takes no flag for it.
        let link = program
            .attach(&root, CgroupAttachMode::Single)
            .with_context(|| format!("attach {name} to {}", cgroup_root.display()))?;
        keep!(links, name, program, link);
    }
    Ok(match lsm_refusal(ebpf, btf) {
        None => {
            attach_lsm(ebpf, btf, links)?;
            checks.push(Check::new(
                "bpf-lsm",
                State::Active,
                "LSM programs load and are called",
            ));
            checks.push(attach_failed(ebpf, btf, links)?);
            Backend::BpfLsm
        }
        Some(check) => {
            checks.push(check);
            attach_syscalls(ebpf, links)?;
            Backend::Landlock
        }
    })
}

fn attach_tracepoint(
    ebpf: &mut Ebpf,
    btf: &Btf,
    name: &str,
    tracepoint: &str,
    links: &mut Option<Links>,
) -> Result<()> {
    let program: &mut BtfTracePoint = program(ebpf, name)?;
    match program.load(tracepoint, btf) {
        // By a try before, whose attaching failed.
        Ok(()) | Err(ProgramError::AlreadyLoaded) => {}
        Err(error) => return Err(verifier(error)).with_context(|| format!("load {name}")),
    }
    let link = program.attach().with_context(|| format!("attach {name}"))?;
    keep!(links, name, program, link);
    Ok(())
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    ebpf.program_mut(name)
        .with_context(|| format!("the object has no program {name}"))?
        .try_into()
        .with_context(|| format!("program {name} is of another type"))
}

fn ring(ebpf: &mut Ebpf, name: &str) -> Result<Ring> {
    let map = ebpf
        .take_map(name)
        .with_context(|| format!("the object has no map {name}"))?;
    Ring::new(RingBuf::try_from(map)?).with_context(|| format!("wait on ring {name}"))
}

/// Why this kernel does not take LSM programs; `None` where it does.
fn lsm_refusal(ebpf: &mut Ebpf, btf: &Btf) -> Option<Check> {
    let refused = |state, detail: String| Check::new("bpf-lsm", state, detail);
    let lsm: &mut Lsm = match program(ebpf, "file_open") {
        Ok(lsm) => lsm,
        Err(error) => return Some(refused(State::Absent, format!("{error:#}"))),
    };
    if let Err(error) = lsm.load("file_open", btf) {
        return Some(
            refused(State::Disabled, format!("the kernel refuses LSM programs: {:#}", verifier(error)))
                .hint("a kernel with CONFIG_BPF_LSM and BPF trampolines; until then files are held by Landlock"),
        );
    }
    match lsm.attach() {
        Ok(link) => {
            // Attached for good below, with the others.
            if let Err(error) = lsm.detach(link) {
                return Some(refused(State::Disabled, format!("detach: {error}")));
            }
        }
        Err(error) => {
            return Some(
                refused(
                    State::Disabled,
                    format!("the kernel does not attach LSM programs: {}", brief(&error)),
                )
                .hint("a kernel with BPF trampolines; until then files are held by Landlock"),
            );
        }
    }
    // Attaching succeeds when the list lacks bpf, and nothing is ever called.
    match probe::lsms() {
        Ok(list) if list.iter().any(|name| name == "bpf") => None,
        Ok(list) => Some(
            refused(
                State::Disabled,
                format!("bpf is not among the active LSMs ({})", list.join(",")),
            )
            .hint(format!(
                "add lsm={},bpf to the kernel's command line",
                list.join(",")
            )),
        ),
        Err(error) => Some(refused(State::Disabled, error)),
    }
}

fn attach_lsm(ebpf: &mut Ebpf, btf: &Btf, links: &mut Option<Links>) -> Result<()> {
    for (names, hook) in LSM {
        let mut refusal = None;
        let mut attached = false;
        for name in names {
            if *name == ABSENT {
                attached = matches!(refusal, Some(ProgramError::Btf(_)));
                break;
            }
            let program: &mut Lsm = program(ebpf, name)?;
            // `file_open` has been loaded by the probe.
            match program.load(hook, btf) {
                Ok(()) | Err(ProgramError::AlreadyLoaded) => {
                    let link = program.attach().with_context(|| format!("attach {name}"))?;
                    keep!(links, name, program, link);
                    attached = true;
                    break;
                }
                Err(error) => refusal = Some(error),
            }
        }
        if !attached {
            let error = refusal.map_or_else(|| anyhow::anyhow!("no program"), verifier);
            return Err(error).with_context(|| format!("load LSM hook {hook}"));
        }
    }
    for (name, functions) in FEXIT {
        attach_fexit(ebpf, btf, name, functions, links)?;
    }
    Ok(())
}

/// Loads a program for the end of a function, by the first of its names that this kernel has.
fn load_fexit(ebpf: &mut Ebpf, btf: &Btf, name: &str, functions: &[&str]) -> Result<()> {
    let program: &mut FExit = program(ebpf, name)?;
    for function in functions {
        match program.load(function, btf) {
            Ok(()) | Err(ProgramError::AlreadyLoaded) => return Ok(()),
            // No function of that name.
            Err(ProgramError::Btf(_)) => {}
            Err(error) => return Err(verifier(error)).with_context(|| format!("load {name}")),
        }
    }
    anyhow::bail!("this kernel has no function {}", functions.join(" or "))
}

fn attach_fexit(
    ebpf: &mut Ebpf,
    btf: &Btf,
    name: &str,
    functions: &[&str],
    links: &mut Option<Links>,
) -> Result<()> {
    load_fexit(ebpf, btf, name, functions)?;
    let program: &mut FExit = program(ebpf, name)?;
    let link = program.attach().with_context(|| format!("attach {name}"))?;
    keep!(links, name, program, link);
    Ok(())
}

/// Attaches what records opens that fail before there is a file: where only those pass that fail, if this kernel shows there what they
/// were about.
fn attach_failed(ebpf: &mut Ebpf, btf: &Btf, links: &mut Option<Links>) -> Result<Check> {
    const NAME: &str = "failed-opens";
    match learn_failed(ebpf, btf) {
        Ok(()) => {
            let kprobe: &mut KProbe = program(ebpf, FAILED_OPEN)?;
            let link = kprobe
                .attach(FAILED_OPEN, 0)
                .with_context(|| format!("attach {FAILED_OPEN}"))?;
            keep!(links, FAILED_OPEN, kprobe, link);
            let fentry: &mut FEntry = program(ebpf, URING_OPEN)?;
            let link = fentry
                .attach()
                .with_context(|| format!("attach {URING_OPEN}"))?;
            keep!(links, URING_OPEN, fentry, link);
            for (name, functions) in FAILED {
                attach_fexit(ebpf, btf, name, functions, links)?;
            }
            let detail = "looked at where an open has failed";
            Ok(Check::new(NAME, State::Active, detail))
        }
        Err(error) => {
            let (name, functions) = LOOK_UP;
            attach_fexit(ebpf, btf, name, functions, links)?;
            let detail = format!("looked at where any open of the host ends, because {error:#}");
            Ok(Check::new(NAME, State::Active, detail))
        }
    }
}

/// Loads what looks at failed opens alone, and lets it find out where they keep what they are about.
fn learn_failed(ebpf: &mut Ebpf, btf: &Btf) -> Result<()> {
    let fentry: &mut FEntry = program(ebpf, URING_OPEN)?;
    fentry
        .load(URING_OPEN, btf)
        .map_err(verifier)
        .with_context(|| format!("load {URING_OPEN}"))?;
    for (name, functions) in FAILED {
        load_fexit(ebpf, btf, name, functions)?;
    }
    let kprobe: &mut KProbe = program(ebpf, FAILED_OPEN)?;
    kprobe
        .load()
        .map_err(verifier)
        .with_context(|| format!("load {FAILED_OPEN}"))?;
    let link = kprobe
        .attach(FAILED_OPEN, 0)
        .with_context(|| format!("attach {FAILED_OPEN}"))?;
    let map = ebpf.map_mut("OPENS").context("map OPENS")?;
    let learned = opens::learn(&mut Array::try_from(map)?);
    let kprobe: &mut KProbe = program(ebpf, FAILED_OPEN)?;
    kprobe.detach(link)?;
    learned
}

fn attach_syscalls(ebpf: &mut Ebpf, links: &mut Option<Links>) -> Result<()> {
    probe::tracefs().map_err(|error| {
        anyhow::anyhow!("{error}; hint: mount -t tracefs none /sys/kernel/tracing")
    })?;
    for (name, calls) in SYSCALLS {
        let program: &mut TracePoint = program(ebpf, name)?;
        program
            .load()
            .map_err(verifier)
            .with_context(|| format!("load {name}"))?;
        let end = if name.starts_with("sys_enter_") {
            "sys_enter"
        } else {
            "sys_exit"
        };
        for call in *calls {
            let tracepoint = format!("{end}_{call}");
            let link = program
                .attach("syscalls", &tracepoint)
                .with_context(|| format!("attach {name} to {tracepoint}"))?;
            // One program can stand on several.
            keep!(links, &format!("{name}-{call}"), program, link);
        }
    }
    Ok(())
}

/// A load error with the end of the verifier's log, where it says what it minds.
fn verifier(error: ProgramError) -> anyhow::Error {
    if let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = &error
    {
        let log = verifier_log.to_string();
        if log.is_empty() {
            return anyhow::anyhow!("{io_error}");
        }
        let lines: Vec<_> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(30)..].join("\n");
        return anyhow::anyhow!("the verifier refuses it: {io_error}\n{tail}");
    }
    error.into()
}

fn brief(error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError { io_error, .. } => io_error.to_string(),
        ProgramError::SyscallError(error) => format!("{error}: {}", error.io_error),
        other => other.to_string(),
    }
}
