//! The privileged part: loads the programs, holds sessions, turns records into events and passes them on.
//!
//! `engine` owns the kernel side and all sessions, on one task and without locks; `control` listens to the command line;
//! `forward` brings events to the collector, by way of `spool` while that is away; `supervise` keeps the collector running, as `exporter` does what
//! serves the metrics; `child` is what both do alike.

mod child;
pub mod config;
mod control;
mod engine;
mod exporter;
mod forward;
mod hook;
mod launch;
mod notify;
mod reckon;
mod registry;
mod release;
mod review;
mod spool;
mod supervise;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::{JoinError, JoinHandle},
};

use crate::{
    allocator,
    event::redact::Redactor,
    kernel::{self, Kernel, load::Rings, pin::Pins},
};
use config::Config;
pub use release::release;

/// How long a daemon that ends is waited for.
const LAST_BREATH: Duration = Duration::from_secs(1);

/// Where a daemon keeps what it needs.
#[derive(Clone, Debug)]
pub struct Paths {
    /// What outlives the host's next start: history, spool.
    pub state: PathBuf,
    /// Sockets.
    pub runtime: PathBuf,
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(config: Config, paths: Paths) -> Result<()> {
    let _lock = prepare(&paths)?;
    let mut running = Running::start(&config, &paths)?;
    tracing::info!(runtime = %paths.runtime.display(), state = %paths.state.display(), "ready");
    allocator::give_back_code();
    let ended = running.wait().await?;
    tracing::info!("stopping");
    running.stop(ended, &paths).await
}

/// Makes the directories, and sees to it that they have one daemon for as long as the lock lives.
fn prepare(paths: &Paths) -> Result<Flock<fs::File>> {
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "the daemon must be root: it loads programs into the kernel; hint: sudo agentwatch daemon"
        );
    }
    for (dir, mode) in [(&paths.state, 0o755), (&paths.runtime, 0o755)] {
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        fs::set_permissions(dir, fs::Permissions::from_mode(mode))
            .with_context(|| format!("open {} to readers", dir.display()))?;
    }
    lock(paths)
}

/// How the engine's task has ended.
type Ended = Result<Result<()>, JoinError>;

/// Everything that runs.
struct Running {
    /// Says to all but `control` that the daemon stops.
    stop: watch::Sender<bool>,
    engine: JoinHandle<Result<()>>,
    control: JoinHandle<()>,
    forward: std::thread::JoinHandle<()>,
    reckoner: JoinHandle<()>,
    supervisor: JoinHandle<()>,
    /// The reviewer, what notifies, and what serves metrics, where there are such.
    helpers: Vec<JoinHandle<()>>,
}

impl Running {
    fn start(config: &Config, paths: &Paths) -> Result<Self> {
        let redactor = Arc::new(redactor(config, paths)?);
        let (stop, stopped) = watch::channel(false);
        let (colleagues, opinions, mut helpers) = colleagues(config, &redactor, &stopped)?;
        let listener = control::listen(&paths.runtime)?;
        let (kernel, rings) = load(paths)?;

        let collector = supervise::Collector::new(config, paths)?;
        helpers.extend(exporter(config, paths, &collector, &stopped));
        // Short: what it has no room for waits in the kernel's rings, which are there in any case.
        let (events, inbox) = mpsc::channel(256);
        let (forward, figures) = forward::start(inbox, paths, config.spool.max_bytes, redactor)?;
        let supervisor = tokio::spawn(collector.run(stopped.clone()));
        let (commands, orders) = mpsc::channel(64);
        let processes = kernel.maps.processes();
        let mut engine = engine::Engine::new(
            kernel,
            rings,
            events,
            config,
            figures.clone(),
            registry::Registry::open(&paths.state)?,
            &paths.runtime,
            colleagues,
        )?;
        let (ask, wanted) = mpsc::unbounded_channel();
        engine.take_over(ask)?;
        let (answers, found) = mpsc::channel(16);
        let reckoner = tokio::spawn(reckon::run(
            paths.runtime.clone(),
            figures,
            wanted,
            answers,
            stopped.clone(),
        ));
        Ok(Self {
            stop,
            engine: tokio::spawn(engine.run(orders, found, opinions, stopped)),
            control: tokio::spawn(control::serve(listener, commands, processes)),
            forward,
            reckoner,
            supervisor,
            helpers,
        })
    }

    /// Until the daemon is told to stop, or the engine ends by itself: how, then.
    async fn wait(&mut self) -> Result<Option<Ended>> {
        let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
        Ok(tokio::select! {
            _ = terminate.recv() => None,
            _ = interrupt.recv() => None,
            ended = &mut self.engine => Some(ended),
        })
    }

    /// Stops everything, the engine before what it tells.
    async fn stop(self, ended: Option<Ended>, paths: &Paths) -> Result<()> {
        self.control.abort();
        let _ = self.stop.send(true);
        let ended = match ended {
            Some(ended) => ended,
            None => self.engine.await,
        };
        // The engine has let go of its end, so the forwarder empties what it has, to the collector or to disk.
        tokio::task::spawn_blocking(move || self.forward.join())
            .await
            .context("wait for the forwarder")?
            .map_err(|_| anyhow::anyhow!("the forwarder panicked"))?;
        for helper in self.helpers {
            helper
                .await
                .context("wait for the reviewer, what notifies, and what serves metrics")?;
        }
        self.reckoner.await.context("wait for the reckoner")?;
        self.supervisor.await.context("wait for the collector")?;
        let _ = fs::remove_file(paths.runtime.join(crate::wire::control::CONTROL_SOCKET));
        ended.context("the engine panicked")?
    }
}

/// Starts who is told of what waits and who decides on it, where the configuration names some.
fn colleagues(
    config: &Config,
    redactor: &Arc<Redactor>,
    stopped: &watch::Receiver<bool>,
) -> Result<(
    engine::Colleagues,
    mpsc::Receiver<review::Reviewed>,
    Vec<JoinHandle<()>>,
)> {
    let (notifier, mut helpers) =
        notify::start(&config.approvals.notify, Arc::clone(redactor), stopped)?;
    let (said, opinions) = mpsc::channel(16);
    let reviewer = match &config.approvals.reviewer {
        Some(config) => {
            let (reviewer, task) =
                review::start(config, Arc::clone(redactor), said, stopped.clone())?;
            helpers.push(task);
            Some(reviewer)
        }
        None => None,
    };
    let colleagues = engine::Colleagues { reviewer, notifier };
    Ok((colleagues, opinions, helpers))
}

/// Puts the programs in force, with what is our own protected.
fn load(paths: &Paths) -> Result<(Kernel, Rings)> {
    let started = Instant::now();
    let pins = match Pins::open(&paths.runtime) {
        Ok(pins) => Some(pins),
        Err(error) => {
            tracing::error!(
                error = format!("{error:#}"),
                "nothing can be pinned: sessions end with this daemon"
            );
            None
        }
    };
    let pinned = pins.as_ref().map(|pins| pins.dir().to_owned());
    let (mut kernel, rings) = Kernel::load(pins, Some(&paths.state.join(kernel::facts::FILE)))?;
    kernel.maps.protect(crate::kernel::bind::Own {
        directories: [
            Some(paths.state.clone()),
            Some(paths.runtime.clone()),
            pinned,
        ]
        .into_iter()
        .flatten()
        .collect(),
        socket: Some(paths.runtime.join(crate::wire::control::CONTROL_SOCKET)),
    });
    tracing::info!(programs = ?kernel.taken, milliseconds = started.elapsed().as_millis(), "the programs are in force");
    for check in &kernel.checks {
        tracing::info!(check = check.name, state = ?check.state, "{}", check.detail);
    }
    // The kernel's types took tens of megabytes to look through, and are not needed again.
    allocator::give_back();
    Ok((kernel, rings))
}

/// Starts what serves the metrics, where the configuration says at which address.
fn exporter(
    config: &Config,
    paths: &Paths,
    collector: &supervise::Collector,
    stopped: &watch::Receiver<bool>,
) -> Option<JoinHandle<()>> {
    let listen = config.metrics.listen.clone()?;
    let (uid, gid) = collector.user();
    let exporter = exporter::Exporter {
        listen,
        runtime: paths.runtime.clone(),
        uid,
        gid,
    };
    Some(tokio::spawn(exporter.run(stopped.clone())))
}

/// What takes secrets out of events, with this host's key, which is made at the first start.
fn redactor(config: &Config, paths: &Paths) -> Result<Redactor> {
    let path = paths.state.join("redact.key");
    let key = match fs::read(&path) {
        Ok(bytes) => bytes.try_into().map_err(|bytes: Vec<u8>| {
            anyhow::anyhow!(
                "{} has {} bytes and a key has 32; hint: put it aside; marks of before will then not equal those of after",
                path.display(),
                bytes.len()
            )
        })?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let mut key = [0; 32];
            getrandom::fill(&mut key).context("make a key for redaction")?;
            crate::collector::chain::write_through(&path, &key)
                .with_context(|| format!("write {}", path.display()))?;
            key
        }
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    Redactor::new(key, &config.redact).map_err(anyhow::Error::msg)
}

/// One daemon for a pair of directories.
fn lock(paths: &Paths) -> Result<Flock<fs::File>> {
    let path = paths.runtime.join("daemon.lock");
    let file = fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    // One that was just killed takes a moment to be gone.
    let since = Instant::now();
    let mut file = file;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, Errno::EWOULDBLOCK)) if since.elapsed() < LAST_BREATH => {
                file = back;
                std::thread::sleep(Duration::from_millis(20));
            }
            Err((_, error)) => bail!(
                "another daemon runs on {} ({error}); hint: `agentwatch status`, or another --runtime-dir and --state-dir",
                paths.runtime.display()
            ),
        }
    }
}
