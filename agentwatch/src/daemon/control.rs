//! The control socket: one task a client, each request judged by the peer's credentials. A client that sends garbage, or
//! never reads, harms only its own connection.

use std::{
    collections::HashMap,
    fs,
    os::{fd::OwnedFd, unix::fs::PermissionsExt as _},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};

use crate::{
    kernel::maps::Processes,
    session::pidfd,
    wire::{
        Connection,
        control::{CONTROL_SOCKET, Request, Response},
    },
};

/// Clients at the same time; of one session, or outside of them one cgroup; and of one user who is not root.
const CLIENTS: usize = 512;
const CLIENTS_OF_GROUP: usize = 128;
const CLIENTS_OF_USER: usize = 256;
/// How long a client may take to send its request, or to take its answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    pub uid: u32,
    pub pid: u32,
}

impl Peer {
    pub fn is_root(self) -> bool {
        self.uid == 0
    }
}

/// The process that asks. Its number alone may be another's by the time that something is to be known of it.
#[derive(Clone, Debug)]
pub struct Asker(Option<Arc<OwnedFd>>);

impl Asker {
    /// The process at the other end of a connection, which may have ended since.
    fn of(stream: &UnixStream, pid: u32) -> Self {
        Self(pidfd::of_peer(stream, pid).map(Arc::new))
    }

    /// Whether it is there no more: nothing can be known of it, and what it was not allowed to do itself is not to be done by who has
    /// its connection.
    pub fn is_gone(&self) -> bool {
        self.0
            .as_ref()
            .is_none_or(|process| pidfd::has_ended(process))
    }
}

/// A request on its way to the engine.
pub struct Order {
    pub peer: Peer,
    pub asker: Asker,
    pub request: Request,
    pub answer: oneshot::Sender<Response>,
}

/// Listens on the control socket; the caller holds the lock that keeps a second daemon away, so a socket that is
/// there is a stale one.
pub fn listen(runtime: &Path) -> Result<UnixListener> {
    let path = runtime.join(CONTROL_SOCKET);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error)
                .with_context(|| format!("remove the stale socket {}", path.display()));
        }
        _ => {}
    }
    let listener =
        UnixListener::bind(&path).with_context(|| format!("listen on {}", path.display()))?;
    // Everyone may ask; what is answered depends on who asks.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666))
        .with_context(|| format!("open {} to all", path.display()))?;
    Ok(listener)
}

pub async fn serve(listener: UnixListener, engine: mpsc::Sender<Order>, processes: Processes) {
    let clients = Arc::new(Semaphore::new(CLIENTS));
    let shares = Arc::new(Mutex::new(HashMap::new()));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a client could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(permit) = clients.clone().try_acquire_owned() else {
            tracing::warn!("a client was turned away: too many at once");
            continue;
        };
        let Some(share) = Share::of(&stream, &shares, &processes) else {
            tracing::warn!(
                "a client was turned away: it has gone already, or its session, its cgroup or its user has too many at once"
            );
            continue;
        };
        let engine = engine.clone();
        tokio::spawn(async move {
            if let Err(error) = client(stream, engine).await {
                tracing::debug!(error = format!("{error:#}"), "a client's connection ended");
            }
            drop((permit, share));
        });
    }
}

/// Whose share of the clients one counts to.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Of {
    Session(u32),
    Cgroup(String),
    User(u32),
}

type Shares = Arc<Mutex<HashMap<Of, usize>>>;

/// A client's place in the shares of its session or cgroup and of its user; nobody takes all there is.
struct Share {
    of: Vec<Of>,
    shares: Shares,
}

impl Share {
    fn of(stream: &UnixStream, shares: &Shares, processes: &Processes) -> Option<Self> {
        let credentials = stream.peer_cred().ok()?;
        // Who has gone already is given no place: whoever has its connection would have one beyond its own share.
        let pid = credentials.pid()?;
        let cgroups = procfs::process::Process::new(pid).ok()?.cgroups().ok()?;
        // Root in a session is in another cgroup for a moment.
        let group = match processes.session_of(pid.cast_unsigned()) {
            Some(number) => Of::Session(number),
            None => Of::Cgroup(
                cgroups
                    .into_iter()
                    .find(|cgroup| cgroup.hierarchy == 0)
                    .map_or_else(String::new, |cgroup| cgroup.pathname),
            ),
        };
        let mut of = vec![group];
        if credentials.uid() != 0 {
            of.push(Of::User(credentials.uid()));
        }
        let mut taken = shares.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = |of: &Of| {
            let most = match of {
                Of::Session(_) | Of::Cgroup(_) => CLIENTS_OF_GROUP,
                Of::User(_) => CLIENTS_OF_USER,
            };
            taken.get(of).is_some_and(|taken| *taken >= most)
        };
        if of.iter().any(is_full) {
            return None;
        }
        for of in &of {
            *taken.entry(of.clone()).or_default() += 1;
        }
        drop(taken);
        Some(Self {
            of,
            shares: Arc::clone(shares),
        })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        for of in &self.of {
            if let Some(count) = taken.get_mut(of) {
                *count -= 1;
                if *count == 0 {
                    taken.remove(of);
                }
            }
        }
    }
}

async fn client(stream: UnixStream, engine: mpsc::Sender<Order>) -> Result<()> {
    let credentials = stream.peer_cred().context("read the peer's credentials")?;
    let peer = Peer {
        uid: credentials.uid(),
        pid: credentials
            .pid()
            .and_then(|pid| u32::try_from(pid).ok())
            .unwrap_or(0),
    };
    let asker = Asker::of(&stream, peer.pid);
    let mut connection = Connection::new(stream);
    loop {
        let request = match timeout(PATIENCE, connection.receive::<Request>())
            .await
            .context("the client said nothing")?
        {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(()),
            Err(error) => {
                let response = Response::Error {
                    message: format!("{error:#}"),
                    hint: None,
                };
                let _ = timeout(PATIENCE, connection.send(&response)).await;
                return Err(error);
            }
        };
        let (answer, answered) = oneshot::channel();
        engine
            .send(Order {
                peer,
                asker: asker.clone(),
                request,
                answer,
            })
            .await
            .ok()
            .context("the daemon is stopping")?;
        let response = answered.await.context("the daemon is stopping")?;
        timeout(PATIENCE, connection.send(&response))
            .await
            .context("the client does not read")??;
    }
}
