//! The process: directories, locks, sockets, and who is let in. It starts what serves the connections and ends it in
//! order: first no new connection, then the batches in hand, then the store.

use std::{
    collections::HashMap,
    fs::{self, DirBuilder, OpenOptions, Permissions},
    io::ErrorKind,
    os::unix::{
        fs::{DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _},
        net::{UnixListener as StdListener, UnixStream as StdStream},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Notify, Semaphore, mpsc, watch},
    task::JoinSet,
    time::timeout,
};

use super::{
    Config, Limits, ingest,
    query::{self, Asker},
    sandbox,
    store::{self, FILE, Host, Store, StoreError},
    writer::{self, Job},
};
use crate::{
    allocator,
    sinks::{self, Needs, SinkConfig},
    wire::collector::{INGEST_SOCKET, QUERY_SOCKET},
};

/// Name of the locks in both directories. They are held, not read: a file left behind locks nothing.
const LOCK: &str = "collector.lock";
/// Time for the batches in hand when the collector stops.
const LAST_BATCHES: Duration = Duration::from_secs(20);
/// Time for sinks to write their positions when the collector stops.
const LAST_DELIVERIES: Duration = Duration::from_secs(5);
/// How often it is looked for what has become old.
const LOOK: Duration = Duration::from_secs(60);
/// Askers that are being told that there is no room.
const TURNED_AWAY: usize = 32;
/// An answer that takes so long used memory that is worth giving back.
const LONG_ANSWER: Duration = Duration::from_millis(100);
/// Pause between an answer and giving back, which all threads wait for: several answers are served by it.
const TRIM_PAUSE: Duration = Duration::from_millis(100);
/// Pause after a connection could not be accepted, most likely for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Runs the collector on this thread until `stopping` says so.
pub(super) fn serve(
    config: &Config,
    limits: Limits,
    stopping: watch::Receiver<bool>,
) -> Result<()> {
    let state = &config.state_dir;
    let sockets = config.runtime_dir.join("collector");
    make_directory(state, 0o700)?;
    make_directory(&sockets, 0o755)?;
    let _state_lock = lock(state)?;
    let _runtime_lock = lock(&sockets)?;

    store::sort_in(state).map_err(|error| unusable(state, error))?;
    let host = Host::read()?;
    let (mut store, _) = Store::open(state, &host).map_err(|error| unusable(state, error))?;
    store.segment_events = config.segment_events.max(1);
    let (ingest_path, query_path) = (sockets.join(INGEST_SOCKET), sockets.join(QUERY_SOCKET));
    let ingest = listen(&ingest_path, 0o600)?;
    let query = listen(&query_path, 0o666)?;
    let (sinks, needs) = sinks(config)?;
    // The store is open, the sockets are bound and the certificates read: nothing outside the two directories is needed from
    // here on but what sinks send to.
    sandbox::enter(&[state, &sockets], &needs);

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("collector")
        .enable_all()
        .build()
        .context("start the collector's runtime")?;
    let (_, last) = store::feed::end(state).map_err(|error| unusable(state, error))?;
    let (committed, newest) = watch::channel(last);
    let (jobs, writer) = writer::start(store, config.retention, committed)?;
    let own = nix::unistd::geteuid().as_raw();
    let result = runtime.block_on(async {
        let sinks = sinks::start(sinks, state, &host, &newest, &stopping)?;
        let shared = Arc::new(query::Shared {
            state_dir: state.clone(),
            limits: limits.clone(),
            newest,
            jobs: jobs.downgrade(),
            sinks: sinks.states(),
        });
        let ingest = UnixListener::from_std(ingest).context("listen for events")?;
        let query = UnixListener::from_std(query).context("listen for questions")?;
        tracing::info!(state = %state.display(), sockets = %sockets.display(), "the collector listens");
        allocator::give_back_code();
        tokio::spawn(look(jobs.downgrade()));
        tokio::join!(
            accept_senders(ingest, own, limits.ingest, jobs, stopping.clone()),
            accept_askers(query, own, &shared, stopping.clone()),
        );
        // A delivery that is under way comes again; positions are written.
        if timeout(LAST_DELIVERIES, sinks.ended()).await.is_err() {
            tracing::warn!("sinks did not end in time; what they were delivering comes again");
        }
        anyhow::Ok(())
    });
    // The files go while the locks are held, so that none of a successor is removed.
    for path in [&ingest_path, &query_path] {
        let _ = fs::remove_file(path);
    }
    runtime.shutdown_timeout(Duration::from_secs(2));
    if writer.join().is_err() {
        bail!("the writer ended in a panic; what it acknowledged is on disk");
    }
    result
}

/// Makes the sinks, which read what they need of the host now.
fn sinks(config: &Config) -> Result<(Vec<(SinkConfig, sinks::Any)>, Needs)> {
    sinks::config::check(&config.sinks)?;
    let mut needs = Needs::default();
    let mut made = Vec::new();
    for sink in &config.sinks {
        let any = sinks::make(sink)?;
        any.needs(&mut needs);
        made.push((sink.clone(), any));
    }
    Ok((made, needs))
}

/// Has the writer look for what has become old, as long as there is one.
async fn look(jobs: mpsc::WeakSender<Job>) {
    loop {
        tokio::time::sleep(LOOK).await;
        match jobs.upgrade() {
            // A full queue looks by itself.
            Some(jobs) => drop(jobs.try_send(Job::Look)),
            None => return,
        }
    }
}

async fn accept_senders(
    listener: UnixListener,
    own: u32,
    most: usize,
    jobs: mpsc::Sender<Job>,
    mut stopping: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            stream = accept(&listener) => stream,
            () = stopped(&mut stopping) => break,
        };
        while connections.try_join_next().is_some() {}
        match stream.peer_cred() {
            Ok(peer) if is_privileged(peer.uid(), own) => {}
            Ok(peer) => {
                tracing::warn!(
                    uid = peer.uid(),
                    pid = peer.pid(),
                    "a stranger tried to bring events; it was hung up on"
                );
                continue;
            }
            Err(error) => {
                tracing::warn!(%error, "a peer without credentials was hung up on");
                continue;
            }
        }
        if connections.len() >= most {
            tracing::warn!(
                connections = connections.len(),
                "too many connections bring events; one was hung up on"
            );
            continue;
        }
        let (jobs, stopping) = (jobs.clone(), stopping.clone());
        connections.spawn(async move {
            if let Err(error) = ingest::serve(stream, jobs, stopping).await {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "a connection that brought events ended"
                );
            }
        });
    }
    if timeout(LAST_BATCHES, async {
        while connections.join_next().await.is_some() {}
    })
    .await
    .is_err()
    {
        tracing::warn!("batches in hand were not answered in time; their sender keeps them");
    }
}

async fn accept_askers(
    listener: UnixListener,
    own: u32,
    shared: &Arc<query::Shared>,
    mut stopping: watch::Receiver<bool>,
) {
    let slots = Arc::new(Slots::new(&shared.limits));
    let turns = Arc::new(Semaphore::new(TURNED_AWAY));
    let used_much = Arc::new(Notify::new());
    let mut connections = JoinSet::new();
    connections.spawn(give_back_after(Arc::clone(&used_much)));
    loop {
        let stream = tokio::select! {
            stream = accept(&listener) => stream,
            () = stopped(&mut stopping) => break,
        };
        while connections.try_join_next().is_some() {}
        let Ok(peer) = stream.peer_cred() else {
            continue;
        };
        let asker = Asker {
            uid: peer.uid(),
            privileged: is_privileged(peer.uid(), own),
        };
        let slot = Slots::take(&slots, asker);
        // Turning away costs a descriptor for a moment, so it is bounded too; beyond that the connection just closes.
        let turn = match &slot {
            Some(_) => None,
            None => match Arc::clone(&turns).try_acquire_owned() {
                Ok(turn) => Some(turn),
                Err(_) => continue,
            },
        };
        let shared = Arc::clone(shared);
        let used_much = Arc::clone(&used_much);
        connections.spawn(async move {
            let begun = Instant::now();
            let result = match &slot {
                Some(_) => query::serve(stream, asker, &shared).await,
                None => query::turn_away(stream).await,
            };
            // A long answer took memory that nothing needs until the next one.
            if slot.is_some() && begun.elapsed() > LONG_ANSWER {
                used_much.notify_one();
            }
            drop((slot, turn));
            if let Err(error) = result {
                tracing::debug!(
                    error = format!("{error:#}"),
                    uid = asker.uid,
                    "a question ended"
                );
            }
        });
    }
}

/// Gives memory back some time after it was used, once for all who used it meanwhile.
async fn give_back_after(used_much: Arc<Notify>) {
    loop {
        used_much.notified().await;
        tokio::time::sleep(TRIM_PAUSE).await;
        let _ = tokio::task::spawn_blocking(allocator::give_back).await;
    }
}

/// The next connection, whatever happens in between.
async fn accept(listener: &UnixListener) -> UnixStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Done when the collector is to stop, or when nobody is left who could say so.
pub(super) async fn stopped(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stop| *stop).await;
}

fn is_privileged(uid: u32, own: u32) -> bool {
    uid == 0 || uid == own
}

/// How many questions are being answered, so that no user takes all the room.
struct Slots {
    taken: Mutex<HashMap<u32, usize>>,
    most: usize,
    most_per_user: usize,
}

struct Slot {
    slots: Arc<Slots>,
    uid: u32,
}

impl Slots {
    fn new(limits: &Limits) -> Self {
        Self {
            taken: Mutex::default(),
            most: limits.questions,
            most_per_user: limits.questions_per_user,
        }
    }

    fn take(slots: &Arc<Self>, asker: Asker) -> Option<Slot> {
        // The privileged share one count of their own.
        let uid = if asker.privileged { 0 } else { asker.uid };
        let mut taken = slots.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.get(&uid).copied().unwrap_or(0);
        let room = if asker.privileged {
            own < slots.most
        } else {
            let others: usize = taken
                .iter()
                .filter(|(uid, _)| **uid != 0)
                .map(|(_, count)| count)
                .sum();
            own < slots.most_per_user && others < slots.most
        };
        room.then(|| {
            taken.insert(uid, own + 1);
            Slot {
                slots: Arc::clone(slots),
                uid,
            }
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self
            .slots
            .taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match taken.get_mut(&self.uid) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                taken.remove(&self.uid);
            }
        }
    }
}

fn make_directory(path: &Path, mode: u32) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .with_context(|| format!("make the directory {}", path.display()))
}

fn lock(directory: &Path) -> Result<Flock<fs::File>> {
    let path = directory.join(LOCK);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("open the lock {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => bail!(
            "another collector uses {}\nhint: give this one its own --state-dir and --runtime-dir, or stop the other one",
            directory.display()
        ),
        Err((_, error)) => Err(error).with_context(|| format!("lock {}", path.display())),
    }
}

/// Binds a socket, in the place of one that nobody listens on any more.
fn listen(path: &Path, mode: u32) -> Result<StdListener> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("look at {}", path.display())),
        Ok(there) if !there.file_type().is_socket() => {
            bail!(
                "{} is there and is not a socket\nhint: remove it, or give another --runtime-dir",
                path.display()
            )
        }
        Ok(_) if StdStream::connect(path).is_ok() => {
            bail!("another process listens on {}", path.display())
        }
        Ok(_) => fs::remove_file(path)
            .with_context(|| format!("remove the stale socket {}", path.display()))?,
    }
    let listener = StdListener::bind(path).with_context(|| format!("bind {}", path.display()))?;
    fs::set_permissions(path, Permissions::from_mode(mode))
        .with_context(|| format!("set the mode of {}", path.display()))?;
    listener
        .set_nonblocking(true)
        .with_context(|| format!("listen on {}", path.display()))?;
    Ok(listener)
}

fn unusable(state: &Path, error: StoreError) -> anyhow::Error {
    let path: PathBuf = state.join(FILE);
    let hint = match &error {
        StoreError::Newer { .. } => "run the agentwatch that wrote it, or give another --state-dir",
        StoreError::Full => "free some space where it lies",
        error if error.is_permission() => "the collector's user must be able to write there",
        // Of what is damaged the error itself says what to do.
        _ => return anyhow::anyhow!("open the history {}: {error}", path.display()),
    };
    anyhow::anyhow!("open the history {}: {error}\nhint: {hint}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_hinted_at_where_they_are_missing_only() {
        let sql = |code| {
            StoreError::Sql(rusqlite::Error::SqliteFailure(
                rusqlite::ffi::Error::new(code),
                None,
            ))
        };
        for (error, hinted) in [
            (StoreError::Io(ErrorKind::PermissionDenied.into()), true),
            (sql(rusqlite::ffi::SQLITE_CANTOPEN), true),
            (StoreError::Io(ErrorKind::InvalidData.into()), false),
            (sql(rusqlite::ffi::SQLITE_BUSY), false),
            (StoreError::Segment("it is cut off".to_owned()), false),
        ] {
            let said = unusable(Path::new("/var/lib/agentwatch"), error).to_string();
            assert_eq!(said.contains("must be able to write"), hinted, "{said}");
        }
    }
}
