//! PID 1 of the test VM: mounts what a host has mounted, runs one command on the second serial port and powers off.
//!
//! The first serial port belongs to the kernel and to this program's own messages, the second to the command and the
//! line with its exit code. Nothing here may decide whether a test passes.

use std::{
    ffi::CString,
    fs::{self, File, OpenOptions},
    os::unix::{
        fs::PermissionsExt,
        process::{CommandExt, ExitStatusExt},
    },
    path::Path,
    process::{Command, ExitStatus},
};

use agentwatch_tests::vm::{EXIT_MARK, JOB, Job, MODULES};
use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    kmod::ModuleInitFlags,
    mount::MsFlags,
    sys::{
        reboot::RebootMode,
        termios::{self, SetArg},
        wait::waitpid,
    },
    unistd::Pid,
};

/// The port of the command.
const PORT: &str = "/dev/ttyS1";

/// The first disk.
const DISK: &str = "/dev/vda";

/// What of the initramfs is bound into a root that is on a disk.
const OURS: [&str; 3] = [
    "/usr/bin/agentwatch",
    "/usr/lib/agentwatch-tests",
    "/usr/share/agentwatch-tests",
];

fn main() {
    if let Err(error) = boot() {
        eprintln!("init: {error:#}");
    }
    // SAFETY: takes no arguments and only writes dirty pages.
    unsafe { libc::sync() };
    let Err(errno) = nix::sys::reboot::reboot(RebootMode::RB_POWER_OFF);
    eprintln!("init: power off: {errno}");
}

fn boot() -> Result<()> {
    let job: Job =
        serde_json::from_slice(&fs::read(JOB).context("read the job")?).context("parse the job")?;
    for name in &job.modules {
        if let Err(error) = load_module(name) {
            eprintln!("init: module {name}: {error:#}");
        }
    }
    leave_rootfs(job.disk).context("stand on a mount")?;
    mount_all();
    bring_up_loopback()?;
    let code = run(&job)?;
    let mut port = open_port()?;
    use std::io::Write;
    writeln!(port, "{EXIT_MARK}{code}")?;
    termios::tcdrain(&port)?;
    Ok(())
}

/// Stands on a mount like any other host: before Linux 7 nothing pivots out of the root that an initramfs is unpacked into, and
/// sandboxes want to.
fn leave_rootfs(disk: bool) -> Result<()> {
    let (none, place) = (None::<&str>, "/mnt");
    let bind = |from: &str, to: &str| {
        nix::mount::mount(Some(from), to, none, MsFlags::MS_BIND, none)
            .with_context(|| format!("bind {from} to {to}"))
    };
    if disk {
        let kind = Some("devtmpfs");
        nix::mount::mount(kind, "/dev", kind, MsFlags::MS_NOSUID, none)?;
        nix::mount::mount(Some(DISK), place, Some("ext4"), MsFlags::MS_NOATIME, none)
            .with_context(|| format!("mount {DISK}"))?;
        nix::mount::umount("/dev")?;
        for path in OURS {
            bind(path, &format!("{place}{path}"))?;
        }
    } else {
        bind("/", place)?;
    }
    std::env::set_current_dir(place)?;
    nix::mount::mount(Some("."), "/", none, MsFlags::MS_MOVE, none)?;
    nix::unistd::chroot(".")?;
    // The root of an initramfs is anybody's, and a host's is not.
    fs::set_permissions("/", fs::Permissions::from_mode(0o755))?;
    Ok(std::env::set_current_dir("/")?)
}

/// Mounts what is missing. A kernel may lack one of these (securityfs, say): that is told, and not fatal.
fn mount_all() {
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let table: &[(&str, &str, MsFlags, &str)] = &[
        ("proc", "/proc", plain, ""),
        ("sysfs", "/sys", plain, ""),
        ("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=0755"),
        (
            "devpts",
            "/dev/pts",
            MsFlags::MS_NOSUID,
            "ptmxmode=0666,mode=0620",
        ),
        ("tmpfs", "/dev/shm", plain, "mode=1777"),
        ("cgroup2", "/sys/fs/cgroup", plain, ""),
        ("bpf", "/sys/fs/bpf", plain, "mode=0700"),
        ("tracefs", "/sys/kernel/tracing", plain, ""),
        ("securityfs", "/sys/kernel/security", plain, ""),
        ("tmpfs", "/tmp", plain, "mode=1777"),
        ("tmpfs", "/run", plain, "mode=0755"),
    ];
    for (kind, at, flags, options) in table {
        let _ = fs::create_dir_all(at);
        if let Err(errno) = nix::mount::mount(Some(*kind), *at, Some(*kind), *flags, Some(*options))
        {
            eprintln!("init: mount {kind} at {at}: {errno}");
        }
    }
    for (link, to) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "fd/0"),
        ("/dev/stdout", "fd/1"),
        ("/dev/stderr", "fd/2"),
    ] {
        let _ = std::os::unix::fs::symlink(to, link);
    }
    for (setting, value) in [
        ("/proc/sys/kernel/printk", "3"),
        ("/proc/sys/kernel/hostname", "vm"),
        // What distributions switch off, and conformance cases must be able to do without agentwatch.
        ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"),
        ("/proc/sys/kernel/unprivileged_bpf_disabled", "0"),
        ("/proc/sys/kernel/perf_event_paranoid", "1"),
        ("/proc/sys/kernel/dmesg_restrict", "0"),
    ] {
        if let Err(error) = fs::write(setting, value) {
            eprintln!("init: {setting}: {error}");
        }
    }
    // Kernels before 6.2 have no such switch: it is on there.
    let _ = fs::write("/proc/sys/dev/tty/legacy_tiocsti", "1");
}

fn bring_up_loopback() -> Result<()> {
    // SAFETY: an ordinary socket, and an ifreq that is zeroed and outlives both calls.
    unsafe {
        let socket = Errno::result(libc::socket(
            libc::AF_INET,
            libc::SOCK_DGRAM | libc::SOCK_CLOEXEC,
            0,
        ))?;
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo\0") {
            *to = *from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        let done = Errno::result(libc::ioctl(socket, libc::SIOCSIFFLAGS, &request));
        libc::close(socket);
        done.context("bring up lo")?;
    }
    Ok(())
}

fn load_module(name: &str) -> Result<()> {
    let path = Path::new(MODULES).join(format!("{name}.ko"));
    if !path.exists() {
        return Ok(());
    }
    let file = File::open(&path)?;
    match nix::kmod::finit_module(&file, &CString::default(), ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn open_port() -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(PORT)
        .with_context(|| format!("open {PORT}"))
}

/// Runs the command and reaps everything else that comes to PID 1 meanwhile.
fn run(job: &Job) -> Result<i32> {
    let port = open_port()?;
    if !job.interactive {
        let mut settings = termios::tcgetattr(&port)?;
        termios::cfmakeraw(&mut settings);
        termios::tcsetattr(&port, SetArg::TCSANOW, &settings)?;
    }
    let (program, arguments) = job
        .command
        .split_first()
        .context("the job names no command")?;
    let interactive = job.interactive;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .env("TERM", "vt100")
        .envs(&job.env)
        .current_dir("/root")
        .stdin(port.try_clone()?)
        .stdout(port.try_clone()?)
        .stderr(port);
    // SAFETY: between fork and exec only async-signal-safe calls are made.
    unsafe {
        command.pre_exec(move || {
            nix::unistd::setsid()?;
            // A person's Ctrl-C needs a controlling terminal. Nobody else gets one: when its leader ends, the kernel hangs
            // the terminal up and throws away what was not sent yet.
            if interactive {
                Errno::result(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
            }
            Ok(())
        });
    }
    let child = command.spawn().with_context(|| format!("run {program}"))?;
    let child = Pid::from_raw(child.id().cast_signed());
    loop {
        let mut raw = 0;
        // SAFETY: the status is a plain integer that outlives the call.
        let reaped = Errno::result(unsafe { libc::waitpid(-1, &raw mut raw, 0) });
        match reaped {
            Ok(pid) if pid == child.as_raw() => {
                let status = ExitStatus::from_raw(raw);
                return Ok(status
                    .code()
                    .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)));
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => {
                let _ = waitpid(child, None);
                return Err(errno).context("wait for the command");
            }
        }
    }
}
