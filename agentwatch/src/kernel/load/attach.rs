//! Attaches the programs, as the tables say, and pins each link where there is a place for it.

use std::{fs::File, path::Path};

use anyhow::{Context as _, Result};
use aya::{
    Btf, Ebpf,
    maps::Array,
    programs::{
        BtfTracePoint, CgroupAttachMode, CgroupSockAddr, FEntry, FExit, KProbe, Lsm, Program,
        ProgramError, TracePoint,
    },
};

use super::{
    super::{
        opens,
        pin::Links,
        probe::{self, Check, State},
    },
    Backend,
    programs::{
        ABSENT, AGAIN, CGROUP, FAILED, FAILED_OPEN, FEXIT, LOOK_UP, LSM, PAGE_FAULT, PREEMPTIBLE,
        SYSCALLS, TRACEPOINTS, URING_OPEN,
    },
};

/// Pins a link that was just made, where there is a place for it; else its program keeps it.
macro_rules! keep {
    ($links:expr, $name:expr, $program:expr, $link:expr) => {
        if let Some(links) = &mut $links {
            links.keep($name, $program.take_link($link)?)?;
        }
    };
}

/// Attaches programs of the object, by the kernel's types. Each link is pinned among `links` where there are any.
pub(super) struct Attacher<'a> {
    pub ebpf: &'a mut Ebpf,
    pub btf: &'a Btf,
    pub links: Option<Links>,
}

impl Attacher<'_> {
    /// Attaches everything. `commands_wait`: also what is needed only where a policy lets them.
    pub fn attach(
        &mut self,
        cgroup_root: &Path,
        commands_wait: bool,
        checks: &mut Vec<Check>,
    ) -> Result<Backend> {
        let preemptible = probe::release() >= PREEMPTIBLE;
        for (name, tracepoint) in TRACEPOINTS {
            if preemptible || !name.ends_with(AGAIN) {
                self.attach_tracepoint(name, tracepoint)?;
            }
        }
        if commands_wait {
            self.attach_page_fault()?;
        }
        self.attach_cgroup(cgroup_root)?;
        if let Some(refusal) = self.lsm_refusal() {
            checks.push(refusal);
            self.attach_syscalls()?;
            return Ok(Backend::Landlock);
        }
        for (names, hook) in LSM {
            self.attach_lsm(names, hook)?;
        }
        for (name, functions) in FEXIT {
            self.attach_fexit(name, functions)?;
        }
        checks.push(Check::new(
            "bpf-lsm",
            State::Active,
            "LSM programs load and are called",
        ));
        checks.push(self.attach_failed()?);
        Ok(Backend::BpfLsm)
    }

    /// Attaches what stops a command that waits and was told to go on.
    pub fn attach_page_fault(&mut self) -> Result<()> {
        self.attach_tracepoint(PAGE_FAULT, PAGE_FAULT)
    }

    fn attach_tracepoint(&mut self, name: &str, tracepoint: &str) -> Result<()> {
        let program: &mut BtfTracePoint = program(self.ebpf, name)?;
        match program.load(tracepoint, self.btf) {
            // By a try before, whose attaching failed.
            Ok(()) | Err(ProgramError::AlreadyLoaded) => {}
            Err(error) => return Err(verifier(error)).with_context(|| format!("load {name}")),
        }
        let link = program.attach().with_context(|| format!("attach {name}"))?;
        keep!(self.links, name, program, link);
        Ok(())
    }

    fn attach_cgroup(&mut self, root: &Path) -> Result<()> {
        let opened = File::open(root).with_context(|| format!("open {}", root.display()))?;
        for name in CGROUP {
            let program: &mut CgroupSockAddr = program(self.ebpf, name)?;
            program
                .load()
                .map_err(verifier)
                .with_context(|| format!("load {name}"))?;
            // A link stands beside others by itself: the kernel takes no flag for it.
            let link = program
                .attach(&opened, CgroupAttachMode::Single)
                .with_context(|| format!("attach {name} to {}", root.display()))?;
            keep!(self.links, name, program, link);
        }
        Ok(())
    }

    /// Why this kernel does not take LSM programs; `None` where it does.
    pub fn lsm_refusal(&mut self) -> Option<Check> {
        let refused = |state, detail: String| Check::new("bpf-lsm", state, detail);
        let lsm: &mut Lsm = match program(self.ebpf, "file_open") {
            Ok(lsm) => lsm,
            Err(error) => return Some(refused(State::Absent, format!("{error:#}"))),
        };
        if let Err(error) = lsm.load("file_open", self.btf) {
            return Some(
                refused(State::Disabled, format!("the kernel refuses LSM programs: {:#}", verifier(error)))
                    .hint("a kernel with CONFIG_BPF_LSM and BPF trampolines; until then files are held by Landlock"),
            );
        }
        match lsm.attach() {
            Ok(link) => {
                // Attached for good later, with the others.
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

    /// Attaches the first of a hook's programs that fits it.
    fn attach_lsm(&mut self, names: &[&str], hook: &str) -> Result<()> {
        let mut refusal = None;
        for name in names {
            if *name == ABSENT {
                if matches!(refusal, Some(ProgramError::Btf(_))) {
                    return Ok(());
                }
                break;
            }
            let program: &mut Lsm = program(self.ebpf, name)?;
            // `file_open` has been loaded by the probe.
            match program.load(hook, self.btf) {
                Ok(()) | Err(ProgramError::AlreadyLoaded) => {
                    let link = program.attach().with_context(|| format!("attach {name}"))?;
                    keep!(self.links, name, program, link);
                    return Ok(());
                }
                Err(error) => refusal = Some(error),
            }
        }
        let error = refusal.map_or_else(|| anyhow::anyhow!("no program"), verifier);
        Err(error).with_context(|| format!("load LSM hook {hook}"))
    }

    /// Loads a program for the end of a function, by the first of its names that this kernel has.
    fn load_fexit(&mut self, name: &str, functions: &[&str]) -> Result<()> {
        let program: &mut FExit = program(self.ebpf, name)?;
        for function in functions {
            match program.load(function, self.btf) {
                Ok(()) | Err(ProgramError::AlreadyLoaded) => return Ok(()),
                // No function of that name.
                Err(ProgramError::Btf(_)) => {}
                Err(error) => return Err(verifier(error)).with_context(|| format!("load {name}")),
            }
        }
        anyhow::bail!("this kernel has no function {}", functions.join(" or "))
    }

    fn attach_fexit(&mut self, name: &str, functions: &[&str]) -> Result<()> {
        self.load_fexit(name, functions)?;
        let program: &mut FExit = program(self.ebpf, name)?;
        let link = program.attach().with_context(|| format!("attach {name}"))?;
        keep!(self.links, name, program, link);
        Ok(())
    }

    /// Attaches what records opens that fail before there is a file: where only those pass that fail, if this kernel shows there what they
    /// were about.
    fn attach_failed(&mut self) -> Result<Check> {
        const NAME: &str = "failed-opens";
        if let Err(error) = self.learn_failed() {
            let (name, functions) = LOOK_UP;
            self.attach_fexit(name, functions)?;
            let detail = format!("looked at where any open of the host ends, because {error:#}");
            return Ok(Check::new(NAME, State::Active, detail));
        }
        let kprobe: &mut KProbe = program(self.ebpf, FAILED_OPEN)?;
        let link = kprobe
            .attach(FAILED_OPEN, 0)
            .with_context(|| format!("attach {FAILED_OPEN}"))?;
        keep!(self.links, FAILED_OPEN, kprobe, link);
        let fentry: &mut FEntry = program(self.ebpf, URING_OPEN)?;
        let link = fentry
            .attach()
            .with_context(|| format!("attach {URING_OPEN}"))?;
        keep!(self.links, URING_OPEN, fentry, link);
        for (name, functions) in FAILED {
            self.attach_fexit(name, functions)?;
        }
        let detail = "looked at where an open has failed";
        Ok(Check::new(NAME, State::Active, detail))
    }

    /// Loads what looks at failed opens alone, and lets it find out where they keep what they are about.
    fn learn_failed(&mut self) -> Result<()> {
        let fentry: &mut FEntry = program(self.ebpf, URING_OPEN)?;
        fentry
            .load(URING_OPEN, self.btf)
            .map_err(verifier)
            .with_context(|| format!("load {URING_OPEN}"))?;
        for (name, functions) in FAILED {
            self.load_fexit(name, functions)?;
        }
        let kprobe: &mut KProbe = program(self.ebpf, FAILED_OPEN)?;
        kprobe
            .load()
            .map_err(verifier)
            .with_context(|| format!("load {FAILED_OPEN}"))?;
        let link = kprobe
            .attach(FAILED_OPEN, 0)
            .with_context(|| format!("attach {FAILED_OPEN}"))?;
        let map = self.ebpf.map_mut("OPENS").context("map OPENS")?;
        let learned = opens::learn(&mut Array::try_from(map)?);
        let kprobe: &mut KProbe = program(self.ebpf, FAILED_OPEN)?;
        kprobe.detach(link)?;
        learned
    }

    fn attach_syscalls(&mut self) -> Result<()> {
        probe::tracefs().map_err(|error| {
            anyhow::anyhow!("{error}; hint: mount -t tracefs none /sys/kernel/tracing")
        })?;
        for (name, calls) in SYSCALLS {
            let program: &mut TracePoint = program(self.ebpf, name)?;
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
                keep!(self.links, &format!("{name}-{call}"), program, link);
            }
        }
        Ok(())
    }
}

/// A program of the object.
pub(super) fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    ebpf.program_mut(name)
        .with_context(|| format!("the object has no program {name}"))?
        .try_into()
        .with_context(|| format!("program {name} is of another type"))
}

/// A load error with the end of the verifier's log, where it says what it minds.
pub(super) fn verifier(error: ProgramError) -> anyhow::Error {
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
