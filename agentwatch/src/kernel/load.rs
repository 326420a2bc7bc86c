//! Loads the programs, attaches what this kernel takes, and says what it does not.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use aya::{
    Btf, Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{PerCpuArray, RingBuf},
    programs::{
        BtfTracePoint, CgroupAttachMode, CgroupSockAddr, FExit, Iter, Lsm, ProgramError, TracePoint,
    },
};

use super::{
    btf,
    maps::Maps,
    probe::{self, Check, State},
    ring::Ring,
};

/// The object that build.rs made.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/agentwatch-ebpf.o"));

/// What enforces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// LSM hooks decide on files.
    BpfLsm,
    /// Landlock decides on files, for sessions that `run` starts.
    Landlock,
}

/// Programs of every kernel: `tp_btf`, with the tracepoint.
const TRACEPOINTS: [(&str, &str); 8] = [
    ("task_newtask", "task_newtask"),
    ("cgroup_attach_task", "cgroup_attach_task"),
    ("sched_process_exec", "sched_process_exec"),
    ("sched_process_exec_again", "sched_process_exec"),
    ("sched_process_exit", "sched_process_exit"),
    ("sched_process_exit_again", "sched_process_exit"),
    ("cgroup_mkdir", "cgroup_mkdir"),
    ("cgroup_rmdir", "cgroup_rmdir"),
];

/// LSM hooks: the program's names, any of which will do (a kernel takes the one that fits its signature), and the hook.
const LSM: [(&[&str], &str); 11] = [
    (&["task_alloc"], "task_alloc"),
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
];

/// Outcomes of look-ups and connects, where LSM programs work: the program, and the function's names, newest first.
const FEXIT: [(&str, &[&str]); 2] = [
    // Renamed between 6.12 and 7.2.
    ("do_filp_open", &["do_file_open", "do_filp_open"]),
    ("sys_connect_file", &["__sys_connect_file"]),
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

/// The loaded programs.
pub struct Kernel {
    ebpf: Ebpf,
    pub maps: Maps,
    pub file_backend: Backend,
    pub cgroup_root: PathBuf,
    pub checks: Vec<Check>,
}

/// The rings: verdicts, everything else.
pub struct Rings {
    pub verdicts: Ring,
    pub bulk: Ring,
}

impl Kernel {
    /// Loads and attaches everything that is not a session's own.
    pub fn load() -> Result<(Self, Rings)> {
        let cgroup_root = probe::cgroup2().context(
            "no cgroup2 is mounted; hint: mount -t cgroup2 none /sys/fs/cgroup (or /sys/fs/cgroup/unified beside version 1)",
        )?;
        let offsets = btf::offsets(Path::new(btf::VMLINUX))?;
        let btf = Btf::from_sys_fs().context("read the kernel's types")?;
        let mut loader = EbpfLoader::new();
        loader
            .btf(Some(&btf))
            .allow_unsupported_maps()
            .verifier_log_level(VerifierLogLevel::STATS);
        for (name, offset) in &offsets {
            // A member that no program ended up reading is not in the object.
            loader.override_global(name, offset, false);
        }
        let rename_lock = probe::symbol("rename_lock");
        loader.override_global("RENAME_LOCK", &rename_lock, false);
        let mut ebpf = loader.load(OBJECT).context(
            "load the programs' maps into the kernel; hint: this needs root with CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN, CAP_SYS_ADMIN",
        )?;
        let mut checks = Vec::new();

        for (name, tracepoint) in TRACEPOINTS {
            let program: &mut BtfTracePoint = program(&mut ebpf, name)?;
            program
                .load(tracepoint, &btf)
                .map_err(verifier)
                .with_context(|| format!("load {name}"))?;
            program.attach().with_context(|| format!("attach {name}"))?;
        }
        let root =
            File::open(&cgroup_root).with_context(|| format!("open {}", cgroup_root.display()))?;
        for name in CGROUP {
            let program: &mut CgroupSockAddr = program(&mut ebpf, name)?;
            program
                .load()
                .map_err(verifier)
                .with_context(|| format!("load {name}"))?;
            // A link stands beside others by itself: the kernel takes no flag for it.
            program
                .attach(&root, CgroupAttachMode::Single)
                .with_context(|| format!("attach {name} to {}", cgroup_root.display()))?;
        }
        checks.push(Check::new(
            "cgroup",
            State::Active,
            format!("cgroup2 at {}", cgroup_root.display()),
        ));
        let iterator: &mut Iter = program(&mut ebpf, "tag_tasks")?;
        iterator
            .load("task", &btf)
            .map_err(verifier)
            .context("load tag_tasks")?;

        let file_backend = match lsm_refusal(&mut ebpf, &btf) {
            None => {
                attach_lsm(&mut ebpf, &btf)?;
                checks.push(Check::new(
                    "bpf-lsm",
                    State::Active,
                    "LSM programs load and are called",
                ));
                Backend::BpfLsm
            }
            Some(check) => {
                tracing::info!("{}", check.detail);
                checks.push(check);
                attach_syscalls(&mut ebpf)?;
                Backend::Landlock
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

        let verdicts = ring(&mut ebpf, "VERDICTS")?;
        let bulk = ring(&mut ebpf, "BULK")?;
        let maps = Maps::take(&mut ebpf)?;
        let kernel = Self {
            ebpf,
            maps,
            file_backend,
            cgroup_root,
            checks,
        };
        Ok((kernel, Rings { verdicts, bulk }))
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

fn attach_lsm(ebpf: &mut Ebpf, btf: &Btf) -> Result<()> {
    for (names, hook) in LSM {
        let mut refusal = None;
        let mut attached = false;
        for name in names {
            let program: &mut Lsm = program(ebpf, name)?;
            // `file_open` has been loaded by the probe.
            match program.load(hook, btf) {
                Ok(()) | Err(ProgramError::AlreadyLoaded) => {
                    program.attach().with_context(|| format!("attach {name}"))?;
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
        let program: &mut FExit = program(ebpf, name)?;
        let mut loaded = Err(anyhow::anyhow!(
            "this kernel has no function {}",
            functions.join(" or ")
        ));
        for function in functions {
            match program.load(function, btf) {
                // No function of that name.
                Err(ProgramError::Btf(_)) => {}
                result => {
                    loaded = result.map_err(verifier);
                    break;
                }
            }
        }
        loaded.with_context(|| format!("load {name}"))?;
        program.attach().with_context(|| format!("attach {name}"))?;
    }
    Ok(())
}

fn attach_syscalls(ebpf: &mut Ebpf) -> Result<()> {
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
            program
                .attach("syscalls", &tracepoint)
                .with_context(|| format!("attach {name} to {tracepoint}"))?;
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
