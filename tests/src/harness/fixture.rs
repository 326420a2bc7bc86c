//! Files and sockets that stand before a scenario's first step.

use std::{
    fs::{self, File},
    net::{SocketAddr, TcpListener, UdpSocket},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{PermissionsExt, chown, fchown, lchown},
    },
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    fcntl::OFlag,
    mount::{MntFlags, MsFlags},
    sys::{
        socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr},
        stat::Mode,
    },
};

use super::agentwatch::said;
use super::scenario::{FileFixture, ListenerFixture, ListenerKind, Values};

/// Makes `dir` anew with the files in it, owned by `owner`.
pub fn make_files(dir: &Path, files: &[FileFixture], act: &Path, owner: u32) -> Result<()> {
    if dir.exists() {
        unmount_below(dir)?;
        fs::remove_dir_all(dir).with_context(|| format!("clear {}", dir.display()))?;
    }
    fs::create_dir_all(dir)?;
    chown(dir, Some(owner), Some(owner))?;
    for file in files {
        make_file(dir, file, act, owner)
            .with_context(|| format!("make the fixture {}", file.path))?;
    }
    Ok(())
}

fn make_file(dir: &Path, file: &FileFixture, act: &Path, owner: u32) -> Result<()> {
    let path = dir.join(&file.path);
    let parent = path
        .parent()
        .context("a fixture lies below the scenario's directory")?;
    let fresh: Vec<_> = parent
        .ancestors()
        .take_while(|ancestor| !ancestor.exists())
        .map(Path::to_owned)
        .collect();
    fs::create_dir_all(parent)?;
    for made in fresh {
        chown(&made, Some(owner), Some(owner))?;
    }
    if let Some(levels) = file.levels {
        fs::create_dir_all(&path)?;
        chown(&path, Some(owner), Some(owner))?;
        make_chain(&path, levels, file.level_length.unwrap_or(1), owner)?;
    } else if file.subvolume {
        tool(
            Command::new("btrfs")
                .args(["-q", "subvolume", "create"])
                .arg(&path),
        )?;
        // What is made from here on has another generation than what stands in other subvolumes.
        tool(
            Command::new("btrfs")
                .args(["filesystem", "sync"])
                .arg(&path),
        )?;
    } else if file.btrfs {
        fs::create_dir_all(&path)?;
        let image = dir.join("image");
        // The smallest that mkfs.btrfs makes is 109 MiB; nothing is written to most of it.
        File::create(&image)?.set_len(128 << 20)?;
        tool(Command::new("mkfs.btrfs").arg("-q").arg(&image))?;
        tool(
            Command::new("mount")
                .args(["-o", "loop"])
                .args([&image, &path]),
        )?;
    } else if file.path.ends_with('/') {
        fs::create_dir_all(&path)?;
        let (none, flags) = (None::<&str>, MsFlags::empty());
        if file.proc {
            nix::mount::mount(none, &path, Some("proc"), flags, none)?;
        }
        if file.tmpfs {
            nix::mount::mount(none, &path, Some("tmpfs"), flags, none)?;
            if file.shared {
                nix::mount::mount(none, &path, none, MsFlags::MS_SHARED, none)?;
            }
        }
    } else if let Some(text) = &file.symlink {
        std::os::unix::fs::symlink(text.replace("{dir}", &dir.to_string_lossy()), &path)?;
    } else if let Some(to) = &file.hardlink {
        fs::hard_link(dir.join(to), &path)?;
    } else if let Some(program) = &file.program {
        match program.as_str() {
            "act" => fs::copy(act, &path)?,
            other if other.starts_with('/') => fs::copy(other, &path)?,
            other => bail!("there is no program {other} to copy"),
        };
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    } else {
        fs::write(&path, file.content.replace("{dir}", &dir.to_string_lossy()))?;
    }
    lchown(&path, Some(owner), Some(owner))?;
    if let Some(mode) = &file.mode {
        fs::set_permissions(
            &path,
            fs::Permissions::from_mode(u32::from_str_radix(mode, 8)?),
        )?;
    }
    Ok(())
}

fn tool(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("run {}", command.get_program().display()))?;
    ensure!(
        output.status.success(),
        "{} ended with {}: {}",
        command.get_program().display(),
        output.status,
        said(&output)
    );
    Ok(())
}

/// Takes away what a case has mounted in the harness's own mount namespace.
fn unmount_below(dir: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    for mount in mounts.lines().rev() {
        let place = mount.split(' ').nth(4).unwrap_or_default();
        if Path::new(place).starts_with(dir) {
            nix::mount::umount2(place, MntFlags::MNT_DETACH)
                .with_context(|| format!("unmount {place}"))?;
        }
    }
    Ok(())
}

/// Makes directories of one name, each in the one before, and a file in the last: by descriptors, because the path may be longer
/// than any system call takes.
fn make_chain(top: &Path, levels: u32, length: usize, owner: u32) -> Result<()> {
    let name = "d".repeat(length);
    let mut here = File::open(top)?;
    for _ in 0..levels {
        nix::sys::stat::mkdirat(&here, name.as_str(), Mode::from_bits_truncate(0o755))?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        here = nix::fcntl::openat(&here, name.as_str(), flags, Mode::empty())?.into();
        fchown(&here, Some(owner), Some(owner))?;
    }
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_CLOEXEC;
    let file = nix::fcntl::openat(&here, "file", flags, Mode::from_bits_truncate(0o644))?;
    fchown(&file, Some(owner), Some(owner))?;
    Ok(())
}

/// Sockets that stay open while the value lives.
#[derive(Default)]
pub struct Listeners {
    tcp: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
    unix: Vec<OwnedFd>,
}

impl Listeners {
    /// Opens those whose place does not depend on the scenario's directory, and adds their ports to `values`. Connections wait in the
    /// backlog: nothing needs to accept them.
    pub fn open(&mut self, fixtures: &[ListenerFixture], values: &mut Values) -> Result<()> {
        for fixture in fixtures {
            let port = match fixture.kind {
                ListenerKind::Unix | ListenerKind::UnixDgram | ListenerKind::UnixSeqpacket => {
                    continue;
                }
                ListenerKind::Tcp => {
                    let listener = TcpListener::bind(address(fixture)?)?;
                    let port = listener.local_addr()?.port();
                    self.tcp.push(listener);
                    port
                }
                ListenerKind::Udp => {
                    let socket = UdpSocket::bind(address(fixture)?)?;
                    let port = socket.local_addr()?.port();
                    self.udp.push(socket);
                    port
                }
            };
            values.insert(format!("port.{}", fixture.name), port.to_string());
        }
        Ok(())
    }

    /// Opens UNIX sockets anew: their files go with the scenario's directory. A second path in a socket's address is a hard link to the
    /// first.
    pub fn open_unix(&mut self, fixtures: &[ListenerFixture], dir: &Path) -> Result<()> {
        self.unix.clear();
        for fixture in fixtures {
            let kind = match fixture.kind {
                ListenerKind::Unix => SockType::Stream,
                ListenerKind::UnixDgram => SockType::Datagram,
                ListenerKind::UnixSeqpacket => SockType::SeqPacket,
                ListenerKind::Tcp | ListenerKind::Udp => continue,
            };
            let socket = socket::socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None)?;
            let (addr, link) = match fixture.addr.split_once(' ') {
                Some((addr, link)) => (addr, Some(link)),
                None => (fixture.addr.as_str(), None),
            };
            let path = dir.join(addr);
            let address = match addr.strip_prefix('@') {
                Some(name) => UnixAddr::new_abstract(name.as_bytes())?,
                None => {
                    fs::create_dir_all(path.parent().unwrap_or(dir))?;
                    UnixAddr::new(&path)?
                }
            };
            socket::bind(socket.as_raw_fd(), &address)
                .with_context(|| format!("bind the listener {}", fixture.name))?;
            if !addr.starts_with('@') {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
            }
            if let Some(link) = link {
                fs::hard_link(&path, dir.join(link))?;
            }
            if kind != SockType::Datagram {
                socket::listen(&socket, Backlog::new(64)?)?;
            }
            self.unix.push(socket);
        }
        Ok(())
    }
}

fn address(fixture: &ListenerFixture) -> Result<SocketAddr> {
    let ip = fixture.addr.parse().with_context(|| {
        format!(
            "listener {}: {} is not an IP address",
            fixture.name, fixture.addr
        )
    })?;
    Ok(SocketAddr::new(ip, 0))
}
