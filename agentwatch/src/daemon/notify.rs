//! Tells a command and a web hook of requests and decisions: the `approval` event as JSON. Nothing waits for them. What does not
//! find room, or fails, is counted and logged.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use anyhow::{Context as _, Result};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

use super::{config::NotifyConfig, hook::Hook};
use crate::{
    approval::metrics::Notifications,
    cli::webhook,
    event::{Event, model::Step},
};

/// Notifications that wait for a command.
const QUEUE: usize = 256;

#[derive(Default)]
struct Figures {
    sent: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
}

/// What the engine tells.
#[derive(Default)]
pub struct Notifier {
    hooks: Vec<mpsc::Sender<Arc<[u8]>>>,
    figures: Arc<Figures>,
}

impl Notifier {
    /// Passes a step on, where it is one that people wait for.
    pub fn tell(&self, event: &Event) {
        let told = event.approval.as_ref().is_some_and(|approval| {
            matches!(
                approval.step,
                Step::Requested
                    | Step::Escalated
                    | Step::Approved
                    | Step::Rejected
                    | Step::Expired
                    | Step::Withdrawn
            )
        });
        if self.hooks.is_empty() || !told {
            return;
        }
        let json: Arc<[u8]> = match serde_json::to_vec(event) {
            Ok(json) => json.into(),
            Err(error) => {
                tracing::error!(%error, "a notification cannot be encoded");
                self.figures.failed.fetch_add(1, Ordering::Relaxed);
                return;
            }
        };
        for hook in &self.hooks {
            if hook.try_send(Arc::clone(&json)).is_err() {
                let before = self.figures.dropped.fetch_add(1, Ordering::Relaxed);
                if before.is_multiple_of(QUEUE as u64) {
                    tracing::warn!(
                        dropped = before + 1,
                        "notifications do not find room: their command is slow"
                    );
                }
            }
        }
    }

    pub fn figures(&self) -> Notifications {
        Notifications {
            sent: self.figures.sent.load(Ordering::Relaxed),
            failed: self.figures.failed.load(Ordering::Relaxed),
            dropped: self.figures.dropped.load(Ordering::Relaxed),
        }
    }
}

/// Starts what the configuration asks for, until told to stop.
///
/// # Errors
/// Where the configuration makes no sense.
pub fn start(
    config: &NotifyConfig,
    stopped: &watch::Receiver<bool>,
) -> Result<(Notifier, Vec<JoinHandle<()>>)> {
    const KEY: &str = "approvals.notify";
    let user = config.user.as_deref();
    let mut hooks = Vec::new();
    if !config.command.is_empty() {
        hooks.push(Hook::new(KEY, &config.command, user, config.deadline)?);
    }
    if let Some(url) = &config.webhook {
        webhook::check(url).with_context(|| format!("{KEY}.webhook"))?;
        // We ourselves, as somebody else: the daemon speaks no HTTP.
        let command = ["/proc/self/exe", "webhook", url].map(str::to_owned);
        hooks.push(Hook::new(KEY, &command, None, config.deadline)?);
    }
    let mut notifier = Notifier::default();
    let mut tasks = Vec::new();
    for hook in hooks {
        let (queue, told) = mpsc::channel(QUEUE);
        notifier.hooks.push(queue);
        tasks.push(tokio::spawn(run(
            hook,
            told,
            Arc::clone(&notifier.figures),
            stopped.clone(),
        )));
    }
    Ok((notifier, tasks))
}

async fn run(
    hook: Hook,
    mut told: mpsc::Receiver<Arc<[u8]>>,
    figures: Arc<Figures>,
    mut stopped: watch::Receiver<bool>,
) {
    loop {
        let json = tokio::select! {
            _ = stopped.changed() => break,
            json = told.recv() => match json {
                Some(json) => json,
                None => break,
            },
        };
        match hook.run(&json, &mut stopped).await {
            Ok(_) => figures.sent.fetch_add(1, Ordering::Relaxed),
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "a notification fails");
                figures.failed.fetch_add(1, Ordering::Relaxed)
            }
        };
        if *stopped.borrow() {
            break;
        }
    }
    let left = told.len();
    if left > 0 {
        tracing::warn!(left, command = hook.name(), "notifications were not sent");
    }
}
