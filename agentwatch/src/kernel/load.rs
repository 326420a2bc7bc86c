//! Loads the programs, attaches what this kernel takes, and says what it does not.

mod attach;
mod layout;
mod programs;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Btf, Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{PerCpuArray, RingBuf},
    programs::Iter,
};
use sha2::{Digest as _, Sha256};

use self::{
    attach::{Attacher, program, verifier},
    layout::{PINNED, check_layout},
    programs::{PAGE_FAULT, TASKS},
};
use super::{
    btf,
    container::Private,
    facts,
    maps::{Bound, Maps},
    pin::{Attached, Pins},
    probe::{self, Check, State},
    relocate::relocate,
    ring::Ring,
};
use crate::policy::model::Compiled;

#[cfg(test)]
pub(crate) use self::programs::{cgroup_programs, lsm_programs};

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
        let before = pins.map(Pins::attached).transpose()?.flatten();
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
        // Everyone loads their own.
        let iterator: &mut Iter = program(&mut ebpf, TASKS)?;
        iterator
            .load("task", &btf)
            .map_err(verifier)
            .with_context(|| format!("load {TASKS}"))?;

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
        let mut attacher = Attacher {
            ebpf: &mut ebpf,
            btf: &btf,
            links: None,
        };
        let (file_backend, taken) = match adopted {
            Some(Attached { backend, .. }) => {
                checks.push(adopted_check(backend, &mut attacher));
                (backend, Taken::Adopted)
            }
            None => {
                attacher.links = pins.map(Pins::begin).transpose()?;
                let backend = attacher.attach(&cgroup_root, commands_wait, &mut checks)?;
                if let (Some(pins), Some(links)) = (pins, &attacher.links) {
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
        checks.push(landlock_check());

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
        session: u32,
        policy: &Compiled,
        private: Arc<Private>,
    ) -> Result<Bound> {
        if policy.commands_wait() && !self.commands_wait {
            self.stop_commands().context(
                "commands cannot be made to wait on this kernel; hint: no `approve` under [exec]",
            )?;
        }
        self.maps.insert_policy(number, session, policy, private)
    }

    /// Attaches what stops a command that waits and was told to go on.
    fn stop_commands(&mut self) -> Result<()> {
        let mut attacher = Attacher {
            links: self.pins.as_ref().map(Pins::resume).transpose()?,
            ebpf: &mut self.ebpf,
            // Read again: kept from the start on it would be most of the daemon's memory.
            btf: &kernel_types()?,
        };
        attacher.attach_page_fault()?;
        // It stops what runs from here on, whatever becomes of the note.
        self.commands_wait = true;
        if let (Some(pins), Some(links)) = (&self.pins, &attacher.links) {
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
        let iterator: &mut Iter = program(&mut self.ebpf, TASKS)?;
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

/// Whether LSM programs are in force that the daemon before has attached.
fn adopted_check(backend: Backend, attacher: &mut Attacher<'_>) -> Check {
    match backend {
        Backend::BpfLsm => Check::new(
            "bpf-lsm",
            State::Active,
            "LSM programs of the daemon before are in force",
        ),
        Backend::Landlock => attacher.lsm_refusal().unwrap_or_else(|| {
            Check::new(
                "bpf-lsm",
                State::Disabled,
                "the kernel refused LSM programs when the programs were attached",
            )
        }),
    }
}

fn landlock_check() -> Check {
    let abi = probe::landlock_abi();
    if abi > 0 {
        return Check::new("landlock", State::Active, format!("ABI {abi}"));
    }
    Check::new(
        "landlock",
        State::Absent,
        "the kernel has no Landlock, or it is not in the lsm= list",
    )
    .hint("add landlock to lsm= on the kernel's command line")
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
        ensure!(
            name.starts_with('.') || PINNED.contains(&name),
            "map {name} is not among those that are pinned; hint: enter it in agentwatch/src/kernel/load/layout.rs"
        );
    }
    programs::check(ebpf.programs().map(|(name, _)| name))?;
    Ok(ebpf)
}

fn ring(ebpf: &mut Ebpf, name: &str) -> Result<Ring> {
    let map = ebpf
        .take_map(name)
        .with_context(|| format!("the object has no map {name}"))?;
    Ring::new(RingBuf::try_from(map)?).with_context(|| format!("wait on ring {name}"))
}
