//! The process outside the session that conformance cases act upon: it has memory, descriptors, keys and shared objects of its own,
//! and hands out descriptors to whoever asks. It does what it is asked only because it is part of a test.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, IoSlice, IoSliceMut, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        linux::net::SocketAddrExt,
        unix::{
            fs::PermissionsExt,
            net::{self as unix, UnixListener, UnixStream},
        },
    },
    path::Path,
};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{
    self, ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, sockopt,
};

use super::{Failure, ipc, sys};

/// What it keeps in its memory at `outside.word`.
pub const WORD: [u8; 8] = *b"outside!";

/// Makes everything in `dir`, says on standard output where it is, and serves until standard input ends. A `neighbour` is in a
/// session of its own, and makes what a session may.
pub fn serve(dir: &Path, neighbour: bool) -> Result<()> {
    // Whatever Yama says about strangers: these tests are about what agentwatch says.
    // SAFETY: takes numbers only.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY, 0, 0, 0) };
    let word = Box::new(WORD);
    let listener = UnixListener::bind(dir.join("in/descriptors")).context("bind the socket")?;
    fs::set_permissions(dir.join("in/descriptors"), PermissionsExt::from_mode(0o666))?;
    let own = std::process::id();
    let kept = OpenOptions::new()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(dir.join("in/kept"))?;
    let name = format!("agentwatch-outside-{own}");
    let abstract_name = unix::SocketAddr::from_abstract_name(name.as_bytes())?;
    let _abstract = UnixListener::bind_addr(&abstract_name).context("bind the abstract name")?;
    let posix = format!("/dev/shm/{name}");
    fs::write(&posix, "x")?;
    let values = make(own, neighbour).map_err(|failure| anyhow::anyhow!("{failure}"))?;
    let mut values: BTreeMap<String, String> = values;
    values.insert("outside.pid".into(), own.to_string());
    values.insert("outside.word".into(), (word.as_ptr() as usize).to_string());
    values.insert("outside.fd".into(), kept.as_raw_fd().to_string());
    let waits = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen")?;
    let own_socket = waits.as_raw_fd().to_string();
    values.insert("outside.socket".into(), own_socket);
    let port = waits.local_addr().context("where it listens")?.port();
    values.insert("outside.port".into(), port.to_string());
    values.insert("outside.abstract".into(), format!("@{name}"));
    let cgroup = fs::read_to_string("/proc/self/cgroup")?;
    let cgroup = cgroup.lines().find_map(|line| line.strip_prefix("0::/"));
    values.insert(
        "outside.own-cgroup".into(),
        cgroup.unwrap_or_default().to_owned(),
    );
    values.insert("outside.posix-shm".into(), posix.clone());
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            // A client that goes away in the middle is no concern of the next one.
            let _ = hand_out(&client, &kept);
        }
    });
    println!("{}", serde_json::to_string(&values)?);
    std::io::stdout().flush()?;
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    remove(&values);
    let _ = fs::remove_file(posix);
    std::hint::black_box(&word);
    Ok(())
}

/// Objects that outlive the process unless they are removed.
fn make(own: u32, neighbour: bool) -> Result<BTreeMap<String, String>, Failure> {
    let mut values = BTreeMap::new();
    let mut put = |name: &str, value: String| values.insert(format!("outside.{name}"), value);
    let key = 0x6177_0000 | (own as i32 & 0xffff);
    put("shm-key", key.to_string());
    let exclusive = libc::IPC_CREAT | libc::IPC_EXCL | 0o600;
    put("shm", sys!(libc::shmget(key, 4096, exclusive))?.to_string());
    let private = libc::IPC_PRIVATE;
    put(
        "shm-2",
        sys!(libc::shmget(private, 4096, 0o600))?.to_string(),
    );
    put("sem", sys!(libc::semget(private, 1, 0o600))?.to_string());
    put("sem-2", sys!(libc::semget(private, 1, 0o600))?.to_string());
    let queue = sys!(libc::msgget(private, 0o600))?;
    let message = [1_u64, 0];
    sys!(libc::msgsnd(
        queue,
        message.as_ptr().cast(),
        8,
        libc::IPC_NOWAIT
    ))?;
    put("msg", queue.to_string());
    put("msg-2", sys!(libc::msgget(private, 0o600))?.to_string());

    const PROCESS_KEYRING: i32 = -2;
    const USER_KEYRING: i32 = -4;
    let keyring = if neighbour {
        PROCESS_KEYRING
    } else {
        USER_KEYRING
    };
    const ALL_RIGHTS: u32 = 0x3f3f_0000;
    for (name, description) in [
        ("key", c"agentwatch-outside"),
        ("key-2", c"agentwatch-other"),
    ] {
        let key = ipc::add_key(description, keyring)?;
        sys!(libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_SETPERM,
            key,
            ALL_RIGHTS
        ))?;
        put(name, key.to_string());
    }

    if !neighbour {
        let name = format!("/agentwatch-outside-{own}");
        let c_name = super::c_string(&name)?;
        let none = std::ptr::null::<libc::mq_attr>();
        sys!(libc::mq_open(
            c_name.as_ptr(),
            libc::O_RDWR | libc::O_CREAT,
            0o600,
            none
        ))?;
        put("mq", name);
    }

    // The master stays open with the process.
    let master = nix::pty::posix_openpt(nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_NOCTTY)?;
    nix::pty::grantpt(&master)?;
    nix::pty::unlockpt(&master)?;
    put("terminal", nix::pty::ptsname_r(&master)?);
    std::mem::forget(master);
    Ok(values)
}

fn remove(values: &BTreeMap<String, String>) {
    let id = |name: &str| -> i32 {
        values
            .get(&format!("outside.{name}"))
            .and_then(|text| text.parse().ok())
            .unwrap_or(-1)
    };
    for name in ["shm", "shm-2"] {
        // What a case has removed already is gone: either way nothing stays.
        let _ = sys!(libc::shmctl(id(name), libc::IPC_RMID, std::ptr::null_mut()));
    }
    for name in ["sem", "sem-2"] {
        let _ = sys!(libc::semctl(id(name), 0, libc::IPC_RMID));
    }
    for name in ["msg", "msg-2"] {
        let _ = sys!(libc::msgctl(id(name), libc::IPC_RMID, std::ptr::null_mut()));
    }
    if let Some(name) = values
        .get("outside.mq")
        .and_then(|name| super::c_string(name).ok())
    {
        let _ = sys!(libc::mq_unlink(name.as_ptr()));
    }
}

/// Reads what is wanted and answers with a descriptor of it: a path, `socket` and the words of [`make_socket`], or `connect ADDR PORT` with
/// a socket that comes along. After `make PATH`, or `make-again DIRECTORY PATH`, which takes the directory away before, there is a file, and the answer is `kept`, which says nothing of it.
fn hand_out(client: &UnixStream, kept: &File) -> Result<()> {
    let (wanted, lent) = request(client)?;
    let words: Vec<&str> = wanted.trim().split(' ').collect();
    let file = match (&words[..], lent) {
        (["socket", words @ ..], _) => make_socket(words)?,
        (["connect", addr, port], Some(lent)) => {
            let to = SockaddrStorage::from(peer(addr, port)?);
            socket::connect(lent.as_raw_fd(), &to)?;
            lent
        }
        (["make", path], _) => {
            make_file(Path::new(path))?;
            kept.try_clone()?.into()
        }
        (["make-again", top, path], _) => {
            fs::remove_dir_all(top)?;
            make_file(Path::new(path))?;
            kept.try_clone()?.into()
        }
        _ => File::open(wanted.trim())?.into(),
    };
    let fds = [file.as_raw_fd()];
    sendmsg::<()>(
        client.as_raw_fd(),
        &[IoSlice::new(b"x")],
        &[ControlMessage::ScmRights(&fds)],
        MsgFlags::empty(),
        None,
    )?;
    Ok(())
}

/// Makes a file that was not there, and the directories above it.
fn make_file(path: &Path) -> Result<()> {
    fs::create_dir_all(path.parent().context("a file lies in a directory")?)?;
    File::create_new(path)?.write_all(b"made outside")?;
    Ok(())
}

/// A line, and the descriptor that may come with its first byte.
fn request(client: &UnixStream) -> Result<(String, Option<OwnedFd>)> {
    let mut bytes = [0_u8; 1];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let mut space = nix::cmsg_space!(RawFd);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(client.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let lent = message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::ScmRights(list) => list.first().copied(),
        _ => None,
    });
    // SAFETY: the kernel just handed out this descriptor and nobody else knows it.
    let lent = lent.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    let mut wanted = String::from_utf8(bytes.to_vec())?;
    BufReader::new(client).read_line(&mut wanted)?;
    Ok((wanted, lent))
}

/// Makes a socket: `raw`, `udplite`, `packet`, `stream` and `datagram` as they are; `tcp`, `mptcp`, `udp ADDR PORT` and `unix PATH` that are connected,
/// `mapped ADDR PORT` one of IPv6 to an address of IPv4; `bound ADDR PORT`; `listener ADDR PORT` that a connection waits at.
fn make_socket(words: &[&str]) -> Result<OwnedFd> {
    let [kind, rest @ ..] = words else {
        bail!("no socket was named");
    };
    let plain = |kind, protocol| open(libc::AF_INET, kind, protocol);
    Ok(match (*kind, rest) {
        ("raw", []) => plain(libc::SOCK_RAW, libc::IPPROTO_ICMP)?,
        ("udplite", []) => plain(libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE)?,
        ("packet", []) => open(libc::AF_PACKET, libc::SOCK_DGRAM, 0)?,
        ("stream", []) => plain(libc::SOCK_STREAM, 0)?,
        ("datagram", []) => plain(libc::SOCK_DGRAM, 0)?,
        ("unix", [path]) => UnixStream::connect(path)?.into(),
        ("tcp", [addr, port]) => TcpStream::connect(peer(addr, port)?)?.into(),
        ("mapped", [addr, port]) => match peer(addr, port)?.ip() {
            IpAddr::V4(addr) => {
                let mapped = addr.to_ipv6_mapped().into();
                let to = SocketAddr::new(mapped, port.parse()?);
                TcpStream::connect(to)?.into()
            }
            IpAddr::V6(addr) => bail!("{addr} is no address of IPv4"),
        },
        ("mptcp", [addr, port]) => {
            let fd = plain(libc::SOCK_STREAM, libc::IPPROTO_MPTCP)?;
            socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(peer(addr, port)?))?;
            fd
        }
        ("udp", [addr, port]) => {
            let to = peer(addr, port)?;
            let family = match to {
                SocketAddr::V4(_) => libc::AF_INET,
                SocketAddr::V6(_) => libc::AF_INET6,
            };
            let fd = open(family, libc::SOCK_DGRAM, 0)?;
            socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
            fd
        }
        ("bound", [addr, port]) => bound(peer(addr, port)?)?,
        ("listener", [addr, port]) => {
            let at = peer(addr, port)?;
            let fd = bound(at)?;
            socket::listen(&fd, socket::Backlog::new(1)?)?;
            // The connection waits, though nobody is at its other end any more.
            TcpStream::connect(at)?;
            fd
        }
        _ => bail!("there is no socket {}", words.join(" ")),
    })
}

fn peer(addr: &str, port: &str) -> Result<SocketAddr> {
    Ok(SocketAddr::new(addr.parse()?, port.parse()?))
}

fn open(family: i32, kind: i32, protocol: i32) -> Result<OwnedFd> {
    let fd = sys!(libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol))
        .map_err(|failure| anyhow::anyhow!("{failure}"))?;
    // SAFETY: the kernel just handed out this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A TCP socket with an address of its own.
fn bound(address: SocketAddr) -> Result<OwnedFd> {
    let fd = open(libc::AF_INET, libc::SOCK_STREAM, 0)?;
    socket::setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(fd)
}
