//! What few programs do, and the table of cases cannot set up: files deeper than a walk goes, a keyring for a parent outside, a tun device that
//! stands already.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::fd::AsRawFd,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
};

use super::{Place, attach_to, expect, field, steps};

/// A file so deep that no decision walks up from it is refused, and one less deep is not, in a scope that has both.
pub(super) fn deeper_than_a_walk(place: &Place<'_>) -> Result<()> {
    /// Directories that a decision walks: 65 536.
    const DEPTHS: [u32; 2] = [65_000, 66_000];
    let deep = place.dir.join("in/deep");
    fs::create_dir(&deep)?;
    let none = None::<&str>;
    // Gone at once, where removing each directory would take long.
    mount(none, &deep, Some("tmpfs"), MsFlags::empty(), none).context("mount a tmpfs")?;
    let tried = (|| -> Result<()> {
        let (mut made, mut opened) = (Vec::new(), Vec::new());
        for depth in DEPTHS {
            let dir = deep.join(depth.to_string());
            fs::create_dir(&dir)?;
            let dir = dir.display();
            made.push(format!("mkdir-chain {dir} {depth}"));
            for operation in ["open-read", "open-write"] {
                opened.push(format!("descend {dir} n {depth} ; {operation} file"));
            }
        }
        let policy = place.policy("")?;
        let (made, opened) = (steps(&made), steps(&opened));
        expect(&place.actor().perform(place.unheld(), &made)?, &["ok"; 2])?;
        let without = place.actor().perform(place.unheld(), &opened)?;
        expect(&without, &["ok"; 4]).context("without a session")?;
        let within = place.actor().perform(place.held(&policy), &opened)?;
        expect(&within, &["ok", "ok", "EACCES", "EACCES"])
    })();
    umount2(&deep, MntFlags::MNT_DETACH)?;
    tried?;
    let events = place.events(false)?;
    let told = events
        .iter()
        .filter(|event| {
            field(event, "/verdict") == "denied"
                && field(event, "/kind") == "open"
                && event.pointer("/file/path_truncated") == Some(&true.into())
        })
        .map(|event| event["count"].as_u64().unwrap_or(1));
    let told: u64 = told.sum();
    ensure!(told == 2, "{told} refusals of 2 are in the record");
    Ok(())
}

/// A process whose parent is not in the session cannot put a keyring in that one's place.
pub(super) fn keyring_to_a_parent_outside(place: &Place<'_>) -> Result<()> {
    let policy = place.policy("")?;
    let cgroup = Path::new("/sys/fs/cgroup").join(place.name);
    for attach in [false, true] {
        fs::create_dir_all(&cgroup)?;
        // The parent goes on after it, and so stays.
        let child = "echo 0 > $1/cgroup.procs; echo ready; read go; exec $2 own-keyring-to-parent";
        let mut command = Command::new("dash");
        command.args(["-c", "dash -c \"$0\" - $1 $2; exit $?", child]);
        command.arg(&cgroup).arg(&place.stage.act);
        let mut parent = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut said = BufReader::new(parent.stdout.take().context("it is piped")?);
        let mut line = String::new();
        said.read_line(&mut line)?;
        let attached = match attach {
            true => attach_to(place, &cgroup, &policy),
            false => Ok(()),
        };
        let go = parent
            .stdin
            .take()
            .context("it is piped")?
            .write_all(b"go\n");
        let mut outcome = String::new();
        let heard = said.read_to_string(&mut outcome);
        parent.wait()?;
        let detached = match attach {
            true => place.daemon.agentwatch.output(&["detach", place.name]),
            false => Ok(String::new()),
        };
        fs::remove_dir(&cgroup)?;
        attached?;
        detached?;
        go?;
        heard?;
        // The kernel makes this of whatever refuses it credentials.
        let expected = if attach { "ENOMEM" } else { "ok" };
        ensure!(
            line.trim() == "ready" && outcome.trim() == expected,
            "{line:?} and {outcome:?}, attached: {attach}"
        );
    }
    let events = place.events(false)?;
    let told = events.iter().any(|event| {
        field(event, "/verdict") == "denied" && field(event, "/guard/operation") == "keyring"
    });
    ensure!(told, "the refusal is not in the record");
    Ok(())
}

/// A network device that the host has made for this very user, who needs no capability to use it.
pub(super) fn tun_that_stands(place: &Place<'_>) -> Result<()> {
    const NAME: &str = "awtun0";
    let tun = tun(NAME).context("make a tun device")?;
    let policy = place.stage.root.join(format!("{}.toml", place.name));
    let act = place.stage.act.display();
    fs::write(
        &policy,
        format!("[files]\nexec = ['{act}']\nwrite = ['/proc', '/dev/net/tun']\n"),
    )?;
    let script = steps(&[format!("tun {NAME}")]);
    // It stays when it is let go of.
    drop(tun);
    let without = place.actor().perform(place.unheld(), &script);
    let within = place.actor().perform(place.held(&policy), &script);
    remove_tun(NAME)?;
    expect(&without?, &["ok"]).context("without a session")?;
    expect(&within?, &["EPERM"])?;
    let events = place.events(false)?;
    let told = events.iter().any(|event| {
        field(event, "/verdict") == "denied" && field(event, "/rule/id") == "guard.capability"
    });
    ensure!(told, "the refusal is not in the record");
    Ok(())
}

/// A device that stands and is root's.
fn tun(name: &str) -> Result<File> {
    let tun = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    let mut request = request(name);
    // SAFETY: the structure outlives the call.
    let set = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    Errno::result(set).context("TUNSETIFF")?;
    for (what, value) in [(libc::TUNSETOWNER, 0), (libc::TUNSETPERSIST, 1)] {
        // SAFETY: the argument is a number.
        let set = unsafe { libc::ioctl(tun.as_raw_fd(), what, value) };
        Errno::result(set).context("TUNSETPERSIST")?;
    }
    Ok(tun)
}

fn remove_tun(name: &str) -> Result<()> {
    let tun = tun(name)?;
    // SAFETY: the argument is a number.
    let set = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETPERSIST, 0) };
    Errno::result(set).context("remove a tun device")?;
    Ok(())
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: an ifreq is plain data, all zeroes are a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_TUN as libc::c_short;
    request
}
