//! Files and sockets that stand before a scenario's first step.

use std::{
    fs,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::{PermissionsExt, chown, lchown},
            net::UnixListener,
        },
    },
    path::Path,
};

use anyhow::{Context, Result, bail};

use super::scenario::{FileFixture, ListenerFixture, ListenerKind, Values};

/// Makes `dir` anew with the files in it, owned by `owner`.
pub fn make_files(dir: &Path, files: &[FileFixture], act: &Path, owner: u32) -> Result<()> {
    if dir.exists() {
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
    if file.path.ends_with('/') {
        fs::create_dir_all(&path)?;
    } else if let Some(text) = &file.symlink {
        std::os::unix::fs::symlink(text.replace("{dir}", &dir.to_string_lossy()), &path)?;
    } else if let Some(to) = &file.hardlink {
        fs::hard_link(dir.join(to), &path)?;
    } else if let Some(program) = &file.program {
        match program.as_str() {
            "act" => fs::copy(act, &path)?,
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

/// Sockets that stay open while the value lives.
#[derive(Default)]
pub struct Listeners {
    tcp: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
    unix: Vec<UnixListener>,
}

impl Listeners {
    /// Opens those whose place does not depend on the scenario's directory, and adds their ports to `values`. Connections wait in the
    /// backlog: nothing needs to accept them.
    pub fn open(&mut self, fixtures: &[ListenerFixture], values: &mut Values) -> Result<()> {
        for fixture in fixtures {
            let port = match fixture.kind {
                ListenerKind::Unix => continue,
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

    /// Opens UNIX sockets anew: their files go with the scenario's directory.
    pub fn open_unix(&mut self, fixtures: &[ListenerFixture], dir: &Path) -> Result<()> {
        self.unix.clear();
        for fixture in fixtures
            .iter()
            .filter(|fixture| fixture.kind == ListenerKind::Unix)
        {
            let listener = match fixture.addr.strip_prefix('@') {
                Some(name) => UnixListener::bind_addr(
                    &std::os::unix::net::SocketAddr::from_abstract_name(name)?,
                )?,
                None => {
                    let path = dir.join(&fixture.addr);
                    let listener = UnixListener::bind(&path)?;
                    fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
                    listener
                }
            };
            self.unix.push(listener);
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
